//! What stands in buckets where nothing was counted.

use lamina_core::Micros;
use lamina_metric::{Answer, Ask, States};

use crate::query::{params::Fill, table::Point};

/// `points` with a point for every start of `spine`. `states` tells of which type an answer is.
pub(crate) fn filled(points: Vec<Point>, spine: &[Micros], fill: Fill, states: &States, asks: &[Ask]) -> Vec<Point> {
    let zeros: Vec<Answer> = match fill {
        Fill::Zero => zeros(&points, states, asks),
        _ => Vec::new(),
    };
    let nulls = || vec![Answer::Null; asks.len()];
    let mut known = points.into_iter().peekable();
    let mut before: Option<Point> = None;
    let mut filled = Vec::with_capacity(spine.len());
    for &start in spine {
        if let Some(point) = known.next_if(|point| point.start == start) {
            before = Some(point.clone());
            filled.push(point);
            continue;
        }
        let answers = match (fill, &before, known.peek()) {
            (Fill::Zero, _, _) => zeros.clone(),
            (Fill::Previous, Some(before), _) => before.answers.clone(),
            (Fill::Linear, Some(before), Some(after)) => between(before, after, start),
            _ => nulls(),
        };
        filled.push(Point { start, answers });
    }
    filled
}

/// Zero in the type of each answer; null where there is none, as for times, texts and lists.
fn zeros(points: &[Point], states: &States, asks: &[Ask]) -> Vec<Answer> {
    let example = |at: usize, ask: &Ask| {
        let own = points.iter().map(|point| point.answers[at].clone());
        // A series without a value of its own takes the type from any other.
        let other = (0..states.len()).filter_map(|row| states.answer(row, ask).ok());
        own.chain(other).find(|answer| *answer != Answer::Null)
    };
    let zero = |(at, ask)| match example(at, ask) {
        Some(Answer::Float(_)) => Answer::Float(0.0),
        Some(Answer::Decimal { scale, .. }) => Answer::Decimal { value: 0, scale },
        Some(Answer::Top(_)) => Answer::Top(Vec::new()),
        Some(Answer::Str(_) | Answer::Bool(_) | Answer::Time(_)) => Answer::Null,
        Some(Answer::Int(_) | Answer::Null) | None => Answer::Int(0),
    };
    asks.iter().enumerate().map(zero).collect()
}

/// On the line between two points, at `start`.
fn between(before: &Point, after: &Point, start: Micros) -> Vec<Answer> {
    #[expect(clippy::cast_precision_loss, reason = "a share of a range of time")]
    let share = (start - before.start) as f64 / (after.start - before.start) as f64;
    let line = |(a, b): (&Answer, &Answer)| match (number(a), number(b)) {
        (Some(a), Some(b)) => {
            let value = a + (b - a) * share;
            if value.is_finite() { Answer::Float(value) } else { Answer::Null }
        }
        _ => Answer::Null,
    };
    before.answers.iter().zip(&after.answers).map(line).collect()
}

#[expect(clippy::cast_precision_loss, reason = "interpolated values are approximate by nature")]
fn number(answer: &Answer) -> Option<f64> {
    match answer {
        Answer::Int(value) => Some(*value as f64),
        Answer::Float(value) => Some(*value),
        Answer::Decimal { value, scale } => Some(*value as f64 / 10_f64.powi(i32::from(*scale))),
        _ => None,
    }
}
