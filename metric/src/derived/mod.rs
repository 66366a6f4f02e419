//! Metrics that are made of others: an expression over their aggregates, computed when it is asked for. Nothing is stored.

mod formula;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::formula::{Formula, FormulaError, Leaf};
use crate::{
    answer::{Answer, AnswerType},
    definition::fingerprint,
    diagnostic::{Problem, Problems, nearest, or_list},
    measure::Measure,
    metric::{Dimension, Metric},
    reading::{Draft, Places, check_name},
    state::StateError,
    time::Length,
    toml_table::{At, Table},
};

/// What queries call the value of a derived metric.
pub const VALUE: &str = "value";

/// `[derived.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DerivedDefinition {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Such as `sum(revenue) / count(requests)`.
    pub expression: String,
}

/// A derived metric, checked over the metrics that are defined beside it.
#[derive(Debug)]
pub struct Derived {
    pub name: String,
    pub definition: DerivedDefinition,
    formula: Formula,
    leaves: Vec<Leaf>,
}

/// A derived metric over metrics as they are now.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub derived: Arc<Derived>,
    /// The metrics that it is made of, each once.
    pub metrics: Vec<Arc<Metric>>,
    /// What it takes: index of a metric, and the aggregate.
    pub operands: Vec<(usize, Measure)>,
    types: Vec<AnswerType>,
    /// The coarsest grain of the metrics: a multiple of each.
    pub grain: lamina_core::Micros,
    /// Those that all metrics have.
    pub dimensions: Vec<Dimension>,
}

impl DerivedDefinition {
    /// Equal for definitions that mean the same.
    pub fn fingerprint(&self) -> String {
        fingerprint(&Self { description: None, ..self.clone() })
    }
}

impl Derived {
    /// Names of the metrics that it is made of.
    pub fn metrics(&self) -> impl Iterator<Item = &str> {
        self.leaves.iter().map(|leaf| leaf.metric.as_str())
    }

    /// # Errors
    /// If a metric is gone or does not keep what is asked of it, or grains do not fit.
    pub fn over<'a>(self: &Arc<Self>, metric: impl Fn(&str) -> Option<&'a Arc<Metric>>) -> Result<Resolved, String> {
        self.resolve(|name| metric(name).ok_or_else(|| format!("there is no metric {name}"))).map_err(|(_, why)| why)
    }

    /// With the index of the operand that is to blame.
    fn resolve<'a>(
        self: &Arc<Self>,
        metric: impl Fn(&str) -> Result<&'a Arc<Metric>, String>,
    ) -> Result<Resolved, (usize, String)> {
        let mut metrics: Vec<Arc<Metric>> = Vec::new();
        let (mut operands, mut types) = (Vec::new(), Vec::new());
        for (at, leaf) in self.leaves.iter().enumerate() {
            let own = metric(&leaf.metric).map_err(|why| (at, why))?;
            let measure = measure(leaf, own).map_err(|why| (at, why))?;
            let kind = measure.answer_type(own);
            if kind == AnswerType::Top {
                return Err((at, "top is a list, with which nothing can be computed".to_owned()));
            }
            let known = metrics.iter().position(|known| known.name == own.name);
            operands.push((known.unwrap_or(metrics.len()), measure));
            types.push(kind);
            if known.is_none() {
                metrics.push(Arc::clone(own));
            }
        }
        let grain = metrics.iter().map(|metric| metric.grain).max().unwrap_or_default();
        if let Some(finer) = metrics.iter().find(|metric| grain % metric.grain != 0) {
            let at = self.leaves.iter().position(|leaf| leaf.metric == finer.name).unwrap_or_default();
            let (own, grain) = (Length(finer.grain), Length(grain));
            return Err((at, format!("the grain {own} of metric {} does not divide another's, {grain}", finer.name)));
        }
        let dimensions = shared(&metrics);
        Ok(Resolved { derived: Arc::clone(self), metrics, operands, types, grain, dimensions })
    }
}

impl Resolved {
    pub fn answer_type(&self) -> AnswerType {
        self.derived.formula.answer_type(&self.types)
    }

    /// The value where `operand`, by index of [`Resolved::operands`], is answered so.
    ///
    /// # Errors
    /// If a number does not fit; what `operand` fails with.
    pub fn value(&self, mut operand: impl FnMut(usize) -> Result<Answer, StateError>) -> Result<Answer, StateError> {
        self.derived.formula.value(&mut |at| Ok(self.operands[at].1.as_operand(operand(at)?, self.types[at])))
    }

    /// Whether some of it is approximate.
    pub fn is_approximate(&self) -> bool {
        self.operands.iter().any(|(_, measure)| measure.approximate().is_some())
    }
}

fn measure(leaf: &Leaf, metric: &Metric) -> Result<Measure, String> {
    if let Some(aggregate) = &leaf.aggregate {
        return Measure::parse(aggregate, metric);
    }
    match metric.all_asks().as_slice() {
        [only] => Measure::parse(only, metric),
        several => {
            let written: Vec<String> = several.iter().map(|one| format!("{one}({})", leaf.metric)).collect();
            Err(format!("metric {} has several aggregates: say which, as in {}", leaf.metric, or_list(&written)))
        }
    }
}

/// The dimensions that all have, of the same type.
fn shared(metrics: &[Arc<Metric>]) -> Vec<Dimension> {
    let Some((first, others)) = metrics.split_first() else { return Vec::new() };
    let everywhere = |one: &&Dimension| others.iter().all(|metric| metric.dimensions.contains(one));
    first.dimensions.iter().filter(everywhere).cloned().collect()
}

pub(crate) fn read_derived(
    name: At<String>,
    mut table: Table<'_, '_>,
    problems: &mut Problems<'_>,
) -> Draft<DerivedDefinition> {
    let mut places = Places::at(&name);
    check_name("derived metric", &name, problems);
    let description = table.text("description", problems).map(|text| text.value);
    let help = "say what it is made of, as in expression = \"sum(revenue) / count(requests)\"";
    let expression = table.required("expression", help, problems);
    let expression = expression.map(|text| places.keep("expression", text)).unwrap_or_default();
    table.finish(problems);
    Draft { name, definition: DerivedDefinition { description, expression }, places }
}

/// A metric by its name: `None` if it is not known, `Some(None)` if it is defined, but wrongly.
pub(crate) type Known<'a> = dyn Fn(&str) -> Option<Option<&'a Arc<Metric>>> + 'a;

/// `names` are all that there are.
pub(crate) fn compile_derived(
    draft: Draft<DerivedDefinition>,
    known: &Known<'_>,
    names: &[&str],
    problems: &mut Problems<'_>,
) -> Option<Derived> {
    let Draft { name, definition, places } = draft;
    let (span, text) = (places.of("expression"), definition.expression.as_str());
    if text.is_empty() {
        return None;
    }
    let mut refuse = |at: usize, why: String, help: Option<String>| {
        let span = problems.within(&span, text, at);
        problems.add(span, Problem { message: format!("`expression`: {why}"), help });
    };
    let (formula, leaves) = match Formula::parse(text) {
        Ok(parsed) => parsed,
        Err(FormulaError { at, message }) => {
            let help = "numbers, METRIC, AGGREGATE(METRIC), distinct(METRIC, FIELD), + - * / and parentheses";
            refuse(at, message, Some(help.to_owned()));
            return None;
        }
    };
    if leaves.is_empty() {
        refuse(0, "names no metric".to_owned(), Some("as in errors / requests".to_owned()));
        return None;
    }
    let mut sound = true;
    for leaf in &leaves {
        match known(&leaf.metric) {
            Some(Some(_)) => continue,
            // That one has its own problems.
            Some(None) => {}
            None => {
                let help = match nearest(&leaf.metric, names.iter().copied()) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("there are {}", or_list(names).replace(" or ", " and ")),
                };
                refuse(leaf.at, format!("there is no metric {}", leaf.metric), Some(help));
            }
        }
        sound = false;
    }
    let derived = Arc::new(Derived { name: name.value, definition: definition.clone(), formula, leaves });
    if !sound {
        return None;
    }
    let resolved = derived.resolve(|name| known(name).flatten().ok_or_else(String::new)).map(|_| ());
    if let Err((at, why)) = resolved {
        refuse(derived.leaves[at].at, why, None);
        return None;
    }
    Arc::into_inner(derived)
}
