//! States as values of SQL, and the functions that merge and answer them.
//!
//! What does not simply add up is no number until it is merged: the users of two hours are not the users of the one plus
//! the users of the other. So a column of such an aggregate holds *summaries*, the encoded state of one aggregate as
//! Binary, and `lamina_distinct`, `lamina_quantile`, `lamina_avg` and `lamina_top` merge the rows of a group and answer.

use std::{hash::Hash, sync::Arc};

use crate::{
    aggregate::Aggregate,
    answer::{Answer, Ask, Numbers},
    chunk::ChunkError,
    state::{Kind, Layout, States},
};
use arrow::{
    array::{Array, ArrayRef, AsArray},
    datatypes::{DataType, Field, FieldRef},
};
use datafusion::{
    common::{DataFusionError, Result, ScalarValue, plan_err},
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, Signature, TypeSignature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
        utils::AggregateOrderSensitivity,
    },
    physical_expr::expressions::Literal,
};

impl States {
    /// What this row keeps for an aggregate, alone: as [`functions`] read it. `None` if it keeps nothing of the kind.
    ///
    /// # Errors
    /// If it cannot be encoded.
    ///
    /// # Panics
    /// If the row does not exist.
    pub fn summary(&self, row: usize, aggregate: &Aggregate) -> std::result::Result<Option<Vec<u8>>, ChunkError> {
        let kind = match aggregate {
            Aggregate::Sum | Aggregate::Avg => Kind::Sum,
            Aggregate::Quantiles => Kind::Quantiles,
            Aggregate::Distinct { input, .. } => Kind::Distinct { input: *input as u32 },
            Aggregate::Top { input, k, .. } => Kind::Top { input: *input as u32, k: *k },
            Aggregate::Count | Aggregate::Min | Aggregate::Max | Aggregate::First | Aggregate::Last => return Ok(None),
        };
        let Some(at) = self.layout.kinds.iter().position(|own| *own == kind) else { return Ok(None) };
        let one = Self {
            layout: Layout { number: self.layout.number, kinds: vec![kind] },
            counts: vec![self.counts[row]],
            columns: vec![self.columns[at].take(&[row])],
        };
        encode(&one).map(Some)
    }
}

/// The layout of the states of one row, and that row.
fn encode(states: &States) -> std::result::Result<Vec<u8>, ChunkError> {
    let layout = postcard::to_stdvec(states.layout()).map_err(ChunkError::Body)?;
    states.encode_row(0, layout)
}

fn decode(bytes: &[u8]) -> std::result::Result<States, ChunkError> {
    let (layout, row): (Layout, &[u8]) = postcard::take_from_bytes(bytes).map_err(ChunkError::Body)?;
    let mut states = States::new(&layout);
    states.decode_row(row)?;
    states.check()?;
    Ok(states)
}

const RANK: &str = "lamina_quantile(summary, rank): the rank is a number from 0 to 1 of at most eight decimals";

/// The functions over summaries.
pub fn functions() -> Vec<AggregateUDF> {
    let of = |question| AggregateUDF::new_from_impl(Summary::new(question));
    [Question::Distinct, Question::Quantile, Question::Avg, Question::Top].map(of).into()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Question {
    Distinct,
    Quantile,
    Avg,
    Top,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Summary {
    question: Question,
    signature: Signature,
}

impl Summary {
    fn new(question: Question) -> Self {
        let types = match question {
            Question::Distinct | Question::Avg => vec![DataType::Binary],
            Question::Quantile => vec![DataType::Binary, DataType::Float64],
            Question::Top => vec![DataType::Binary, DataType::Int64],
        };
        Self { question, signature: Signature::new(TypeSignature::Exact(types), Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for Summary {
    fn name(&self) -> &str {
        match self.question {
            Question::Distinct => "lamina_distinct",
            Question::Quantile => "lamina_quantile",
            Question::Avg => "lamina_avg",
            Question::Top => "lamina_top",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.question {
            Question::Distinct => DataType::Int64,
            Question::Quantile | Question::Avg => DataType::Float64,
            // As JSON: value, count and error of each.
            Question::Top => DataType::Utf8,
        })
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let constant =
            args.exprs.get(1).map(|expr| expr.downcast_ref::<Literal>().map(|literal| literal.value().clone()));
        let asked = match (self.question, constant.flatten()) {
            (Question::Distinct, _) => Asked::Distinct,
            (Question::Avg, _) => Asked::Avg,
            (Question::Quantile, Some(ScalarValue::Float64(Some(rank)))) => match percents(rank) {
                Some(percents) => Asked::Quantile(format!("p{percents}")),
                None => return plan_err!("{RANK}"),
            },
            (Question::Top, Some(ScalarValue::Int64(Some(limit)))) if limit > 0 => Asked::Top(limit),
            (Question::Quantile, _) => return plan_err!("{RANK}"),
            (Question::Top, _) => return plan_err!("lamina_top(summary, n): n must be a whole number above 0"),
        };
        Ok(Box::new(Merged { asked, states: None }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[summary]", args.name), DataType::Binary, true))])
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }
}

/// A rank from 0 to 1 in percents, as queries ask for quantiles: `0.999` is `99.9`. `None` if it is none, or has more than
/// eight decimals.
pub fn percents(rank: f64) -> Option<String> {
    // Eight decimals of a share are six of its percents, as many as a quantile's rank may have.
    let text = format!("{:.8}", rank.abs());
    let (whole, decimals) = text.split_once('.')?;
    let (hundredths, rest) = decimals.split_at_checked(2)?;
    let exact = (0.0..=1.0).contains(&rank) && text.parse() == Ok(rank.abs());
    let percents: u32 = format!("{whole}{hundredths}").parse().ok().filter(|_| exact)?;
    let rest = rest.trim_end_matches('0');
    Some(if rest.is_empty() { percents.to_string() } else { format!("{percents}.{rest}") })
}

#[derive(Clone, Debug)]
enum Asked {
    Distinct,
    Avg,
    /// As queries ask for it, such as `p95`.
    Quantile(String),
    Top(i64),
}

/// The summaries of one group.
#[derive(Debug)]
struct Merged {
    asked: Asked,
    states: Option<States>,
}

impl Merged {
    fn merge(&mut self, summaries: &dyn Array) -> Result<()> {
        let Some(summaries) = summaries.as_binary_opt::<i32>() else {
            return plan_err!("a summary is expected: a column of an aggregate that does not simply add up");
        };
        for bytes in summaries.iter().flatten() {
            let one = decode(bytes).map_err(|error| DataFusionError::Execution(format!("no summary: {error}")))?;
            match &mut self.states {
                Some(states) => {
                    states.merge(&one, &[0]).map_err(|error| DataFusionError::Execution(error.to_string()))?
                }
                none => *none = Some(one),
            }
        }
        Ok(())
    }

    fn answer(&self, states: &States) -> Result<Answer> {
        let Some(kind) = states.layout.kinds.first() else { return Ok(Answer::Null) };
        let (text, kept) = match (&self.asked, kind) {
            (Asked::Distinct, Kind::Distinct { input }) => {
                ("distinct(x)".to_owned(), Aggregate::Distinct { field: "x".to_owned(), input: *input as usize })
            }
            (Asked::Avg, Kind::Sum) => ("avg".to_owned(), Aggregate::Avg),
            (Asked::Quantile(text), Kind::Quantiles) => (text.clone(), Aggregate::Quantiles),
            (Asked::Top(limit), Kind::Top { input, k }) => {
                let limit = (*limit).min(i64::from(*k));
                (format!("top(x, {limit})"), Aggregate::Top { field: "x".to_owned(), input: *input as usize, k: *k })
            }
            _ => {
                return Err(DataFusionError::Execution(
                    "the summary is of another aggregate than the function".to_owned(),
                ));
            }
        };
        let ask = Ask::of(&text, &[kept], "").map_err(DataFusionError::Execution)?;
        states.answer(0, &ask).map_err(|error| DataFusionError::Execution(error.to_string()))
    }
}

impl Accumulator for Merged {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        values.first().map_or(Ok(()), |summaries| self.merge(summaries))
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let answer = self.states.as_ref().map_or(Ok(Answer::Null), |states| self.answer(states))?;
        Ok(match (&self.asked, answer) {
            (Asked::Distinct, Answer::Int(count)) => ScalarValue::Int64(i64::try_from(count).ok()),
            (Asked::Distinct, _) => ScalarValue::Int64(None),
            (Asked::Avg | Asked::Quantile(_), Answer::Float(value)) => ScalarValue::Float64(Some(value)),
            (Asked::Avg | Asked::Quantile(_), _) => ScalarValue::Float64(None),
            (Asked::Top(_), Answer::Null) => ScalarValue::Utf8(None),
            (Asked::Top(_), top) => ScalarValue::Utf8(Some(top.to_json(Numbers::Number).to_string())),
        })
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.states.as_ref().map_or(0, States::bytes)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let encoded = self.states.as_ref().map(encode).transpose();
        let encoded = encoded.map_err(|error| DataFusionError::Execution(error.to_string()))?;
        Ok(vec![ScalarValue::Binary(encoded)])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_becomes_the_percents_that_were_meant() {
        let known = [(0.95, "95"), (0.999, "99.9"), (1.0, "100"), (0.0, "0"), (-0.0, "0"), (0.07, "7"), (0.29, "29")];
        for (rank, expected) in known {
            assert_eq!(percents(rank).as_deref(), Some(expected));
        }
        for rank in [1.5, -0.1, f64::NAN, f64::INFINITY, 0.123_456_789] {
            assert_eq!(percents(rank), None, "{rank}");
        }
    }
}
