//! What a column of an answer asks of one metric: an aggregate, or how much of it there was per second.

use crate::{
    Metric,
    answer::{Answer, AnswerType, Approximate, Ask},
    state::{StateError, States},
};

/// As parsed from `sum`, `p99.9`, `rate(count)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    name: String,
    ask: Ask,
    per_second: bool,
}

impl Measure {
    /// # Errors
    /// If the metric does not keep what is asked, or the text asks nothing known; names what is allowed.
    pub fn parse(text: &str, metric: &Metric) -> Result<Self, String> {
        let name = text.trim().to_owned();
        let inner = name.strip_prefix("rate").map(str::trim_start).and_then(|rest| rest.strip_prefix('('));
        let Some(inner) = inner.and_then(|inner| inner.strip_suffix(')')) else {
            let ask = Ask::parse(&name, metric).map_err(|why| format!("{why}; and rate(count) or rate(sum)"))?;
            return Ok(Self { name, ask, per_second: false });
        };
        let ask = Ask::parse(inner, metric)?;
        if !ask.adds_up() {
            return Err(format!("`{name}` is not known: there are rate(count) and rate(sum), per second"));
        }
        Ok(Self { name, ask, per_second: true })
    }

    /// As it was asked.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether its answers depend on how long buckets are.
    pub fn is_rate(&self) -> bool {
        self.per_second
    }

    /// The error bound, if the answer is not exact.
    pub fn approximate(&self) -> Option<Approximate> {
        self.ask.approximate()
    }

    pub fn answer_type(&self, metric: &Metric) -> AnswerType {
        if self.per_second { AnswerType::Float } else { self.ask.answer_type(metric) }
    }

    /// The answer of a row of states, or of nothing; `seconds` is how long the bucket is.
    ///
    /// # Errors
    /// As [`States::answer`].
    pub fn answer(&self, row: Option<(&States, usize)>, seconds: f64) -> Result<Answer, StateError> {
        let answer = match row {
            Some((states, row)) => states.answer(row, &self.ask)?,
            None => self.ask.of_nothing(),
        };
        if !self.per_second {
            return Ok(answer);
        }
        Ok(answer.to_f64().map_or(Answer::Null, |value| Answer::Float(value / seconds)))
    }

    /// As arithmetic takes it: a count, sum or number of distinct values of nothing is zero.
    pub(crate) fn as_operand(&self, answer: Answer, kind: AnswerType) -> Answer {
        if answer == Answer::Null && self.ask.is_zero_of_nothing() { kind.zero() } else { answer }
    }
}
