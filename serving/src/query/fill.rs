//! What stands in buckets where nothing was counted.

use lamina_core::Micros;
use lamina_metric::Answer;

use crate::query::{params::Fill, question::Column, table::Point};

/// `points` with a point for every start of `spine`; answers are of the types of the columns.
pub(crate) fn filled(points: Vec<Point>, spine: &[Micros], fill: Fill, columns: &[Column]) -> Vec<Point> {
    let zeros: Vec<Answer> = columns.iter().map(|column| column.kind.zero()).collect();
    let nulls = || vec![Answer::Null; columns.len()];
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

/// On the line between two points, at `start`.
fn between(before: &Point, after: &Point, start: Micros) -> Vec<Answer> {
    #[expect(clippy::cast_precision_loss, reason = "a share of a range of time")]
    let share = (start - before.start) as f64 / (after.start - before.start) as f64;
    let line = |(a, b): (&Answer, &Answer)| match (a.to_f64(), b.to_f64()) {
        (Some(a), Some(b)) => {
            let value = a + (b - a) * share;
            if value.is_finite() { Answer::Float(value) } else { Answer::Null }
        }
        _ => Answer::Null,
    };
    before.answers.iter().zip(&after.answers).map(line).collect()
}
