//! Evaluates an expression over what its selectors have read.

use std::sync::Arc;

use promql_parser::label::MatchOp;

use super::{
    Failure, Grid,
    aggregate::aggregate,
    binary::binary,
    expression::{Function, Node, Parsed, Take, Window},
    fetch::{Fetched, Held},
    functions::{scalar, vector},
    names::NAME,
    times::seconds,
    vector::{Budget, Labels, Row, Value, distinct, without_name},
    window::taken,
};

pub(super) fn evaluate(parsed: &Parsed, fetched: &Fetched, grid: &Grid) -> Result<Value, Failure> {
    Evaluation { parsed, fetched, grid, budget: Budget::default() }.of(&parsed.root)
}

struct Evaluation<'a> {
    parsed: &'a Parsed,
    fetched: &'a Fetched,
    grid: &'a Grid,
    budget: Budget,
}

impl Evaluation<'_> {
    fn of(&mut self, node: &Node) -> Result<Value, Failure> {
        let instants = self.grid.len();
        match node {
            Node::Number(value) => {
                self.budget.values(1, instants)?;
                Ok(Value::Scalar(vec![*value; instants]))
            }
            Node::Text(text) => Ok(Value::Text(text.clone())),
            Node::Time => {
                self.budget.values(1, instants)?;
                Ok(Value::Scalar(self.grid.instants().map(seconds).collect()))
            }
            Node::Selected(index) => self.selected(*index).map(Value::Vector),
            Node::Call(function, arguments) => {
                let labels = match (function, arguments.first()) {
                    (Function::Absent, Some(Node::Selected(index))) => self.equal_labels(*index),
                    _ => Labels::new(),
                };
                let arguments = arguments.iter().map(|argument| self.of(argument)).collect::<Result<Vec<_>, _>>()?;
                function.of(arguments, labels, instants, &mut self.budget)
            }
            Node::Aggregate { operator, grouping, parameter, of } => {
                let parameter = parameter.as_ref().map(|parameter| self.of(parameter).and_then(scalar)).transpose()?;
                let rows = self.of(of).and_then(vector)?;
                let rows = aggregate(*operator, grouping, parameter.as_deref(), rows, instants, &mut self.budget)?;
                Ok(Value::Vector(rows))
            }
            Node::Binary { operator, left, right, matching } => {
                let (left, right) = (self.of(left)?, self.of(right)?);
                binary(*operator, left, right, matching, instants, &mut self.budget)
            }
            Node::Negated(node) => match self.of(node)? {
                Value::Scalar(values) => Ok(Value::Scalar(values.into_iter().map(|value| -value).collect())),
                Value::Vector(rows) => {
                    let negated = |row: Row| Row {
                        labels: without_name(row.labels),
                        values: row.values.into_iter().map(|value| value.map(|value| -value)).collect(),
                    };
                    distinct(rows.into_iter().map(negated).collect()).map(Value::Vector)
                }
                Value::Text(_) => Err(Failure::bad_data("a string cannot be negated")),
            },
        }
    }

    fn selected(&mut self, index: usize) -> Result<Vec<Row>, Failure> {
        let selector = &self.parsed.selectors[index];
        let mut rows = Vec::new();
        for selected in &self.fetched.selected[index] {
            self.budget.values(selected.series.len(), self.grid.len())?;
            for (labels, held) in &selected.series {
                let values = match held {
                    Held::Values(values) => values.clone(),
                    Held::Samples(samples) => taken(samples, &selected.windows, &selector.take, &mut self.budget)?,
                };
                if values.iter().any(Option::is_some) {
                    rows.push(Row { labels: labels.clone(), values });
                }
            }
        }
        if matches!(selector.take, Take::Latest | Take::Window(Window::Last, _)) {
            return Ok(rows);
        }
        distinct(rows.into_iter().map(|row| Row { labels: without_name(row.labels), ..row }).collect())
    }

    /// What a selector says its series' labels are.
    fn equal_labels(&self, index: usize) -> Labels {
        let matchers = self.parsed.selectors[index].matchers.iter();
        let equal =
            matchers.filter(|one| matches!(one.op, MatchOp::Equal) && one.name != NAME && !one.value.is_empty());
        equal.map(|one| (Arc::from(one.name.as_str()), Arc::from(one.value.as_str()))).collect()
    }
}
