//! Arithmetic over answers: numbers, operands, `+ - * /` and parentheses.
//!
//! # Invariants
//! - Integers and decimals are added, subtracted and multiplied exactly; an overflow is an error, never a wrap.
//! - A division gives a float; one by zero gives null. Null with anything is null.

use crate::{
    answer::{Answer, AnswerType},
    state::StateError,
};

/// Longest text of a formula, bytes.
const MAX_TEXT: usize = 2_000;
/// Most numbers and operands.
const MAX_LEAVES: usize = 64;
/// Most parentheses and signs within each other.
const MAX_DEPTH: usize = 32;
/// Most digits behind the point that a decimal has; what would have more is a float.
const MAX_SCALE: i8 = 38;

/// What a formula takes: an aggregate of a metric, in the words of queries; no aggregate is the only one that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) metric: String,
    pub(crate) aggregate: Option<String>,
    /// Where it stands in the text, bytes.
    pub(crate) at: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Formula {
    Number(Answer),
    /// Index of an operand.
    Operand(usize),
    Negated(Box<Self>),
    Two(Op, Box<Self>, Box<Self>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Plus,
    Minus,
    Times,
    Over,
}

/// Why a text is no formula, and where, bytes from its beginning.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FormulaError {
    pub(crate) at: usize,
    pub(crate) message: String,
}

impl Formula {
    /// The formula, with its operands in the order in which they stand there, each once.
    pub(crate) fn parse(text: &str) -> Result<(Self, Vec<Leaf>), FormulaError> {
        if text.len() > MAX_TEXT {
            return Err(FormulaError { at: 0, message: format!("is over the limit of {MAX_TEXT} characters") });
        }
        let mut parser = Parser { text, at: 0, leaves: Vec::new(), count: 0 };
        let formula = parser.sum(0)?;
        match parser.peek() {
            None => Ok((formula, parser.leaves)),
            Some(c) => Err(parser.error(format!("has an unexpected {c:?}"))),
        }
    }

    /// # Errors
    /// [`StateError::Overflow`] if a number does not fit; what `operand` fails with.
    pub(crate) fn value(
        &self,
        operand: &mut impl FnMut(usize) -> Result<Answer, StateError>,
    ) -> Result<Answer, StateError> {
        match self {
            Self::Number(number) => Ok(number.clone()),
            Self::Operand(at) => operand(*at),
            Self::Negated(inner) => two(Op::Minus, &Answer::Int(0), &inner.value(operand)?),
            Self::Two(op, a, b) => two(*op, &a.value(operand)?, &b.value(operand)?),
        }
    }

    /// The type of its values, of operands of these types.
    pub(crate) fn answer_type(&self, operands: &[AnswerType]) -> AnswerType {
        let scale = |kind| match kind {
            AnswerType::Int | AnswerType::BigInt => Some(0),
            AnswerType::Decimal { scale } => Some(scale),
            AnswerType::Float | AnswerType::Top => None,
        };
        match self {
            Self::Number(Answer::Decimal { scale, .. }) => AnswerType::Decimal { scale: *scale },
            Self::Number(Answer::Float(_)) => AnswerType::Float,
            Self::Number(_) => AnswerType::BigInt,
            Self::Operand(at) => operands[*at],
            Self::Negated(inner) => match inner.answer_type(operands) {
                AnswerType::Int => AnswerType::BigInt,
                other => other,
            },
            Self::Two(op, a, b) => {
                let both = scale(a.answer_type(operands)).zip(scale(b.answer_type(operands)));
                let scale = match (op, both) {
                    (Op::Over, _) | (_, None) => None,
                    (Op::Times, Some((a, b))) => Some(a.saturating_add(b)),
                    (_, Some((a, b))) => Some(a.max(b)),
                };
                match scale {
                    Some(0) => AnswerType::BigInt,
                    Some(scale) if scale <= MAX_SCALE => AnswerType::Decimal { scale },
                    _ => AnswerType::Float,
                }
            }
        }
    }
}

fn two(op: Op, a: &Answer, b: &Answer) -> Result<Answer, StateError> {
    if op == Op::Over {
        let (Some(a), Some(b)) = (a.to_f64(), b.to_f64()) else { return Ok(Answer::Null) };
        return if b == 0.0 { Ok(Answer::Null) } else { finite(a / b) };
    }
    if let (Some(a), Some(b)) = (exact(a), exact(b)) {
        let scale = if op == Op::Times { a.1.saturating_add(b.1) } else { a.1.max(b.1) };
        if scale <= MAX_SCALE {
            let value = match op {
                Op::Times => a.0.checked_mul(b.0),
                _ => raised(a, scale).zip(raised(b, scale)).and_then(|(a, b)| match op {
                    Op::Plus => a.checked_add(b),
                    _ => a.checked_sub(b),
                }),
            };
            let value = value.ok_or(StateError::Overflow)?;
            return Ok(if scale == 0 { Answer::Int(value) } else { Answer::Decimal { value, scale } });
        }
    }
    let (Some(a), Some(b)) = (a.to_f64(), b.to_f64()) else { return Ok(Answer::Null) };
    finite(match op {
        Op::Plus => a + b,
        Op::Minus => a - b,
        _ => a * b,
    })
}

/// Unscaled value and scale.
fn exact(answer: &Answer) -> Option<(i128, i8)> {
    match answer {
        Answer::Int(value) => Some((*value, 0)),
        Answer::Decimal { value, scale } if *scale >= 0 => Some((*value, *scale)),
        _ => None,
    }
}

fn raised((value, from): (i128, i8), to: i8) -> Option<i128> {
    10_i128.checked_pow(u32::from((to - from).unsigned_abs())).and_then(|factor| value.checked_mul(factor))
}

fn finite(value: f64) -> Result<Answer, StateError> {
    // `+ 0.0` makes a negative zero positive.
    if value.is_finite() { Ok(Answer::Float(value + 0.0)) } else { Err(StateError::Overflow) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    leaves: Vec<Leaf>,
    /// Numbers and operands so far.
    count: usize,
}

impl Parser<'_> {
    fn error(&self, message: impl Into<String>) -> FormulaError {
        FormulaError { at: self.at, message: message.into() }
    }

    /// The next character that is no space.
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
        self.text[self.at..].chars().next()
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn sum(&mut self, depth: usize) -> Result<Formula, FormulaError> {
        let mut all = self.product(depth)?;
        loop {
            let op = match self.peek() {
                Some('+') => Op::Plus,
                Some('-') => Op::Minus,
                _ => return Ok(all),
            };
            self.at += 1;
            all = Formula::Two(op, Box::new(all), Box::new(self.product(depth)?));
        }
    }

    fn product(&mut self, depth: usize) -> Result<Formula, FormulaError> {
        let mut all = self.single(depth)?;
        loop {
            let op = match self.peek() {
                Some('*') => Op::Times,
                Some('/') => Op::Over,
                _ => return Ok(all),
            };
            self.at += 1;
            all = Formula::Two(op, Box::new(all), Box::new(self.single(depth)?));
        }
    }

    fn single(&mut self, depth: usize) -> Result<Formula, FormulaError> {
        if depth == MAX_DEPTH {
            return Err(self.error(format!("has more than {MAX_DEPTH} parentheses within each other")));
        }
        match self.peek() {
            Some('-') => {
                self.at += 1;
                Ok(Formula::Negated(Box::new(self.single(depth + 1)?)))
            }
            Some('(') => {
                self.at += 1;
                let inner = self.sum(depth + 1)?;
                self.close()?;
                Ok(inner)
            }
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some(c) if is_name(c) || c == '"' => self.operand(),
            Some(c) => Err(self.error(format!("has an unexpected {c:?}"))),
            None => Err(self.error("ends where a number or a metric should stand")),
        }
    }

    fn close(&mut self) -> Result<(), FormulaError> {
        if self.take(')') { Ok(()) } else { Err(self.error("lacks a `)`")) }
    }

    fn counted(&mut self, leaf: Formula) -> Result<Formula, FormulaError> {
        self.count += 1;
        if self.count > MAX_LEAVES {
            return Err(self.error(format!("has more than {MAX_LEAVES} numbers and metrics")));
        }
        Ok(leaf)
    }

    /// `100`, `0.5`: exact.
    fn number(&mut self) -> Result<Formula, FormulaError> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len());
        let (digits, fraction) = rest[..end].split_once('.').unwrap_or((&rest[..end], ""));
        let all = format!("{digits}{fraction}");
        let plain = !all.is_empty() && all.len() <= usize::from(MAX_SCALE.unsigned_abs());
        let value: Option<i128> = all.parse().ok().filter(|_| plain && all.bytes().all(|b| b.is_ascii_digit()));
        let value = value.ok_or_else(|| {
            self.error(format!("has {:?}, which is no number; write it as 100 or 0.25", &rest[..end]))
        })?;
        self.at += end;
        let number = match i8::try_from(fraction.len()).unwrap_or(MAX_SCALE) {
            0 => Answer::Int(value),
            scale => Answer::Decimal { value, scale },
        };
        self.counted(Formula::Number(number))
    }

    /// `requests`, `sum(revenue)`, `distinct(visits, user)`, `rate(count(requests))`.
    fn operand(&mut self) -> Result<Formula, FormulaError> {
        let at = self.at;
        let name = self.name()?;
        let (metric, aggregate) = match name.as_str() {
            "rate" if self.take('(') => {
                let inner = self.name()?;
                if !self.take('(') {
                    return Err(
                        self.error("has a rate of no aggregate; write rate(count(METRIC)) or rate(sum(METRIC))")
                    );
                }
                let metric = self.name()?;
                self.close()?;
                self.close()?;
                (metric, Some(format!("rate({inner})")))
            }
            _ if self.take('(') => {
                let metric = self.name()?;
                let field = if self.take(',') { Some(self.field()?) } else { None };
                self.close()?;
                (metric, Some(field.map_or_else(|| name.clone(), |field| format!("{name}({field})"))))
            }
            _ => (name, None),
        };
        let leaf = Leaf { metric, aggregate, at };
        let same = |known: &Leaf| known.metric == leaf.metric && known.aggregate == leaf.aggregate;
        let index = self.leaves.iter().position(same).unwrap_or(self.leaves.len());
        if index == self.leaves.len() {
            self.leaves.push(leaf);
        }
        self.counted(Formula::Operand(index))
    }

    /// An identifier, or any name in double quotes.
    fn name(&mut self) -> Result<String, FormulaError> {
        if self.take('"') {
            let rest = &self.text[self.at..];
            let end = rest.find('"').ok_or_else(|| self.error("has a quote that does not end"))?;
            self.at += end + 1;
            return Ok(rest[..end].to_owned());
        }
        self.peek();
        let rest = &self.text[self.at..];
        // A point within stands in p99.9.
        let end = rest.find(|c: char| !is_name(c) && !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        if end == 0 {
            return Err(self.error("lacks a name here"));
        }
        self.at += end;
        Ok(rest[..end].to_owned())
    }

    /// What stands up to the next `)`, as definitions of metrics write it.
    fn field(&mut self) -> Result<String, FormulaError> {
        let rest = &self.text[self.at..];
        let end = rest.find(')').ok_or_else(|| self.error("lacks a `)`"))?;
        self.at += end;
        Ok(rest[..end].trim().to_owned())
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

#[cfg(test)]
#[path = "formula_tests.rs"]
mod tests;
