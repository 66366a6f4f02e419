//! Label matchers: what of them the planner takes as a condition over dimensions, and what is tested on the series read.

use std::{collections::BTreeMap, sync::Arc};

use arrow::datatypes::DataType;
use lamina_metric::Metric;
use promql_parser::label::{MatchOp, Matcher};

use super::names::{NAME, QUANTILE};

/// Longest condition that is handed on; what does not fit is tested on the series.
const MAX_CONDITION: usize = 4_000;

/// The matchers of a selector, for one metric.
#[derive(Debug)]
pub(super) struct LabelFilter {
    condition: String,
    /// By dimension, what the condition does not say.
    tests: BTreeMap<usize, Vec<Matcher>>,
}

impl LabelFilter {
    /// `None` if no series can pass: a label that is not there is as good as an empty one.
    pub(super) fn of(matchers: &[Matcher], metric: &Metric, labels: &[Arc<str>], has_quantile: bool) -> Option<Self> {
        let mut filter = Self { condition: String::new(), tests: BTreeMap::new() };
        for matcher in matchers.iter().filter(|one| one.name != NAME) {
            if matcher.name == QUANTILE && has_quantile {
                continue;
            }
            let Some(at) = labels.iter().position(|label| **label == *matcher.name) else {
                if matcher.is_match("") {
                    continue;
                }
                return None;
            };
            let dimension = &metric.dimensions[at];
            let name = format!("\"{}\"", dimension.name.replace('"', "\"\""));
            let is_text = dimension.data_type == DataType::Utf8;
            let condition = is_text.then(|| condition(&name, matcher)).flatten();
            let room = MAX_CONDITION.saturating_sub(filter.condition.len());
            match condition.filter(|condition| condition.len() + 5 <= room) {
                Some(condition) => {
                    let and = if filter.condition.is_empty() { "" } else { " AND " };
                    filter.condition.push_str(and);
                    filter.condition.push_str(&condition);
                }
                None => filter.tests.entry(at).or_default().push(matcher.clone()),
            }
        }
        Some(filter)
    }

    /// Whether the dimension's values are needed to tell.
    pub(super) fn reads(&self, dimension: usize) -> bool {
        self.tests.contains_key(&dimension)
    }

    /// Whether a series with this value of a dimension passes what is tested.
    pub(super) fn passes(&self, dimension: usize, value: Option<&str>) -> bool {
        let tests = self.tests.get(&dimension).into_iter().flatten();
        tests.into_iter().all(|matcher| matcher.is_match(value.unwrap_or_default()))
    }

    /// What the planner takes, as SQL.
    pub(super) fn sql(&self) -> Option<String> {
        (!self.condition.is_empty()).then(|| self.condition.clone())
    }
}

/// The same as SQL, if it can be said so.
fn condition(name: &str, matcher: &Matcher) -> Option<String> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', "''"));
    Some(match &matcher.op {
        MatchOp::Equal if matcher.value.is_empty() => format!("({name} IS NULL OR {name} = '')"),
        MatchOp::Equal => format!("{name} = {}", quoted(&matcher.value)),
        MatchOp::NotEqual if matcher.value.is_empty() => format!("({name} IS NOT NULL AND {name} <> '')"),
        MatchOp::NotEqual => format!("({name} IS NULL OR {name} <> {})", quoted(&matcher.value)),
        MatchOp::Re(_) => {
            // As dashboards write a choice of several values.
            let values: Vec<&str> = matcher.value.split('|').collect();
            let plain = |text: &&str| {
                let allowed = |c: char| c.is_alphanumeric() || "_- :#@/,".contains(c);
                !text.is_empty() && text.chars().all(allowed)
            };
            if !values.iter().all(plain) {
                return None;
            }
            let values: Vec<String> = values.into_iter().map(quoted).collect();
            format!("{name} IN ({})", values.join(", "))
        }
        MatchOp::NotRe(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prometheus::matchers;

    #[test]
    fn a_matcher_becomes_a_condition_where_sql_can_say_it() {
        let of = |matcher: &str| condition("\"d\"", &matchers(&format!("x{{d{matcher}}}")).unwrap()[1]);
        assert_eq!(of("=\"it's\"").as_deref(), Some("\"d\" = 'it''s'"));
        assert_eq!(of("=\"\"").as_deref(), Some("(\"d\" IS NULL OR \"d\" = '')"));
        assert_eq!(of("!=\"x\"").as_deref(), Some("(\"d\" IS NULL OR \"d\" <> 'x')"));
        assert_eq!(of("=~\"eu-west|us\"").as_deref(), Some("\"d\" IN ('eu-west', 'us')"));
        for pattern in ["a.*", "a|", "a\\\\.b", "^a", "(a)"] {
            assert_eq!(of(&format!("=~\"{pattern}\"")), None, "{pattern}");
        }
        assert_eq!(of("!~\"a\""), None);
    }
}
