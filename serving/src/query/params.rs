//! The parameters of a query as a client writes them, checked one by one.

use std::{collections::HashMap, ops::Range, time::Duration};

use chrono_tz::Tz;
use lamina_core::Micros;
use lamina_metric::Numbers;
use utoipa::ToSchema;

use crate::{
    auth::{Principal, Rows},
    instant,
    problem::Problem,
    query::{calendar::Step, page::PageToken},
    token::Token,
};

/// Every parameter there is; others are refused, so that a misspelt one is not silently ignored.
pub(crate) const NAMES: [&str; 18] = [
    "from",
    "to",
    "step",
    "aggregate",
    "group_by",
    "where",
    "layer",
    "order_by",
    "limit",
    "fill",
    "tz",
    "at_least",
    "wait",
    "align",
    "numbers",
    "compare",
    "page_size",
    "page_token",
];
const MAX_AGGREGATES: usize = 64;
const MAX_DIMENSIONS: usize = 64;
const MAX_TOKENS: usize = 64;
pub(crate) const MAX_WAIT: Duration = Duration::from_secs(60);
const DEFAULT_WAIT: Duration = Duration::from_secs(5);
pub(crate) const MAX_SERIES: usize = 10_000;
pub(crate) const MAX_PAGE: usize = 100_000;

/// Which views answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(crate) enum Layer {
    Merged,
    Batch,
    Speed,
}

/// What stands where nothing was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "lowercase")]
pub(crate) enum Fill {
    Null,
    Zero,
    Previous,
    Linear,
}

/// An aggregate or dimension to order by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OrderBy {
    pub(crate) name: String,
    pub(crate) descending: bool,
}

/// Part of a long answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// Most points.
    pub(crate) size: usize,
    /// What the page before answered; the first page has none.
    pub(crate) after: Option<PageToken>,
}

/// A query, checked as far as that goes without knowing the metric.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) from: Micros,
    /// `None` is now.
    pub(crate) to: Option<Micros>,
    pub(crate) step: Option<(Step, String)>,
    /// Empty is all that the metric keeps.
    pub(crate) aggregates: Vec<String>,
    pub(crate) group_by: Vec<String>,
    pub(crate) filter: Option<String>,
    /// Rules over rows of whoever asks, which hold whatever the filter says.
    pub(crate) rows: Rows,
    pub(crate) layer: Layer,
    pub(crate) order_by: Vec<OrderBy>,
    pub(crate) limit: Option<usize>,
    pub(crate) fill: Option<Fill>,
    pub(crate) zone: Option<Tz>,
    pub(crate) at_least: Vec<Token>,
    pub(crate) wait: Duration,
    /// Refuse what would have to be widened.
    pub(crate) strict: bool,
    pub(crate) numbers: Numbers,
    /// The period earlier whose values stand beside.
    pub(crate) compare: Option<(Step, String)>,
    pub(crate) page: Option<Page>,
}

impl Params {
    /// Of a query that this principal asks.
    pub(crate) fn parse(pairs: &[(String, String)], principal: &Principal) -> Result<Self, Problem> {
        let mut once: HashMap<&str, &str> = HashMap::new();
        let mut at_least = Vec::new();
        for (name, value) in pairs {
            if !NAMES.contains(&name.as_str()) {
                return Err(Problem::parameter(name, format!("is not a parameter; there are {}", NAMES.join(", "))));
            }
            if name == "at_least" {
                tokens(value, &mut at_least)?;
            } else if once.insert(name, value).is_some() {
                return Err(Problem::parameter(name, "is given twice"));
            }
        }
        let text = |name: &str| once.get(name).copied();
        let time = |name: &'static str| text(name).map(|text| instant_of(name, text)).transpose();
        let from = time("from")?.ok_or_else(|| Problem::parameter("from", format!("is required: {TIME}")))?;
        let params = Self {
            from,
            to: time("to")?,
            step: text("step").map(|text| length("step", text)).transpose()?,
            aggregates: names("aggregate", text("aggregate"), MAX_AGGREGATES)?,
            group_by: names("group_by", text("group_by"), MAX_DIMENSIONS)?,
            filter: text("where").map(str::to_owned),
            rows: principal.rows.clone(),
            layer: choice("layer", text("layer"), LAYERS)?.unwrap_or(Layer::Merged),
            order_by: order_by(text("order_by"))?,
            limit: text("limit").map(limit).transpose()?,
            fill: choice("fill", text("fill"), FILLS)?,
            zone: text("tz").map(zone).transpose()?,
            at_least,
            wait: text("wait").map_or(Ok(DEFAULT_WAIT), wait)?,
            strict: choice("align", text("align"), &[("widen", false), ("strict", true)])?.unwrap_or(false),
            numbers: choice("numbers", text("numbers"), NUMBERS)?.unwrap_or_default(),
            compare: text("compare").map(|text| length("compare", text)).transpose()?,
            page: page(text("page_size"), text("page_token"))?,
        };
        match params.to {
            Some(to) if to <= params.from => Err(Problem::parameter("to", "must lie after `from`")),
            _ => Ok(params),
        }
    }
}

impl Params {
    /// A query that another interface makes for this principal: buckets of `step` over a range, both multiples of the
    /// grain; one bucket without a step.
    pub(crate) fn over(
        principal: &Principal,
        range: Range<Micros>,
        step: Option<Micros>,
        aggregates: Vec<String>,
    ) -> Self {
        Self {
            from: range.start,
            to: Some(range.end),
            step: step.map(|step| (Step::Fixed(step), String::new())),
            aggregates,
            group_by: Vec::new(),
            filter: None,
            rows: principal.rows.clone(),
            layer: Layer::Merged,
            order_by: Vec::new(),
            limit: None,
            fill: None,
            zone: None,
            at_least: Vec::new(),
            wait: DEFAULT_WAIT,
            strict: false,
            numbers: Numbers::default(),
            compare: None,
            page: None,
        }
    }
}

const TIME: &str = "RFC 3339 such as 2015-09-12T00:00:00Z, or Unix milliseconds, within the years 1 to 9999";
const LAYERS: &[(&str, Layer)] = &[("merged", Layer::Merged), ("batch", Layer::Batch), ("speed", Layer::Speed)];
const FILLS: &[(&str, Fill)] =
    &[("null", Fill::Null), ("zero", Fill::Zero), ("previous", Fill::Previous), ("linear", Fill::Linear)];
const NUMBERS: &[(&str, Numbers)] = &[("number", Numbers::Number), ("string", Numbers::String)];

/// One of several words.
pub(crate) fn choice<T: Copy>(name: &str, text: Option<&str>, among: &[(&str, T)]) -> Result<Option<T>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let found = among.iter().find(|(word, _)| *word == text);
    let words = || among.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
    found.map(|(_, value)| Some(*value)).ok_or_else(|| Problem::parameter(name, format!("one of {}", words())))
}

pub(crate) fn instant_of(name: &str, text: &str) -> Result<Micros, Problem> {
    instant::parse(text).ok_or_else(|| Problem::parameter(name, TIME))
}

fn length(name: &str, text: &str) -> Result<(Step, String), Problem> {
    let parsed = Step::parse(text).ok_or_else(|| {
        Problem::parameter(
            name,
            "a number and a unit, such as 10s, 1m, 6h, 1d, 1w or 1mo (units ms, s, m, h, d, w, mo)",
        )
    });
    Ok((parsed?, text.to_owned()))
}

fn limit(text: &str) -> Result<usize, Problem> {
    let limit = text.parse().ok().filter(|limit| (1..=MAX_SERIES).contains(limit));
    limit.ok_or_else(|| Problem::parameter("limit", format!("a number of series from 1 to {MAX_SERIES}")))
}

fn page(size: Option<&str>, token: Option<&str>) -> Result<Option<Page>, Problem> {
    let Some(size) = size else {
        return match token {
            Some(_) => Err(Problem::parameter("page_token", "needs the `page_size` that the first page had")),
            None => Ok(None),
        };
    };
    let size = size.parse().ok().filter(|size| (1..=MAX_PAGE).contains(size));
    let size =
        size.ok_or_else(|| Problem::parameter("page_size", format!("a number of points from 1 to {MAX_PAGE}")))?;
    let token = token.map(|text| {
        let why = "the `next_page_token` that the page before answered, unchanged";
        PageToken::decode(text).ok_or_else(|| Problem::parameter("page_token", why))
    });
    Ok(Some(Page { size, after: token.transpose()? }))
}

fn zone(text: &str) -> Result<Tz, Problem> {
    text.parse().map_err(|_| Problem::parameter("tz", "the IANA name of a time zone, such as Europe/Berlin or UTC"))
}

fn wait(text: &str) -> Result<Duration, Problem> {
    let wait = instant::parse_duration(text).filter(|wait| *wait <= MAX_WAIT);
    wait.ok_or_else(|| Problem::parameter("wait", "a length of time up to 60s, such as 500ms or 5s"))
}

fn tokens(value: &str, into: &mut Vec<Token>) -> Result<(), Problem> {
    for text in value.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        let token = Token::decode(text).ok_or_else(|| {
            Problem::parameter(
                "at_least",
                "the `position` that an ingest answered, unchanged; several separated by commas",
            )
        })?;
        if into.len() == MAX_TOKENS {
            return Err(Problem::parameter("at_least", format!("at most {MAX_TOKENS} tokens")));
        }
        into.push(token);
    }
    Ok(())
}

/// A list separated by commas that are not within parentheses or quotes; each name once.
fn names(parameter: &str, text: Option<&str>, most: usize) -> Result<Vec<String>, Problem> {
    let mut names: Vec<String> = Vec::new();
    for name in split(text.unwrap_or_default()) {
        if name.is_empty() {
            return Err(Problem::parameter(parameter, "a name between commas is empty"));
        }
        if names.len() == most {
            return Err(Problem::parameter(parameter, format!("at most {most} names")));
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn split(text: &str) -> Vec<&str> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    let (mut depth, mut quoted, mut from, mut parts) = (0_usize, false, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth = depth.saturating_sub(1),
            ',' if !quoted && depth == 0 => {
                parts.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[from..].trim());
    parts
}

fn order_by(text: Option<&str>) -> Result<Vec<OrderBy>, Problem> {
    let order = |item: &str| match item.rsplit_once(' ').map(|(name, way)| (name.trim(), way.to_ascii_lowercase())) {
        Some((name, way)) if way == "desc" => OrderBy { name: name.to_owned(), descending: true },
        Some((name, way)) if way == "asc" => OrderBy { name: name.to_owned(), descending: false },
        _ => OrderBy { name: item.to_owned(), descending: false },
    };
    Ok(names("order_by", text, MAX_DIMENSIONS)?.iter().map(|item| order(item)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<Params, Problem> {
        let pair = |pair: &str| pair.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap();
        Params::parse(&query.split('&').map(pair).collect::<Vec<_>>(), &Principal::open())
    }

    #[test]
    fn every_refusal_names_the_parameter_and_what_is_allowed() {
        for (query, parameter, allowed) in [
            ("to=1", "from", "RFC 3339"),
            ("from=x", "from", "RFC 3339"),
            ("from=5&to=5", "to", "after `from`"),
            ("from=0&from=1", "from", "twice"),
            ("from=0&step=1y", "step", "1mo"),
            ("from=0&layer=both", "layer", "merged, batch, speed"),
            ("from=0&fill=0", "fill", "null, zero, previous, linear"),
            ("from=0&limit=0", "limit", "1 to 10000"),
            ("from=0&tz=Mars", "tz", "IANA"),
            ("from=0&wait=2m", "wait", "60s"),
            ("from=0&at_least=x", "at_least", "position"),
            ("from=0&align=x", "align", "widen, strict"),
            ("from=0&numbers=x", "numbers", "number, string"),
            ("from=0&compare=x", "compare", "1w"),
            ("from=0&page_size=0", "page_size", "1 to 100000"),
            ("from=0&page_token=x", "page_token", "page_size"),
            ("from=0&page_size=1&page_token=x", "page_token", "next_page_token"),
            ("from=0&aggregate=a,,b", "aggregate", "empty"),
            ("from=0&agregate=a", "agregate", "group_by"),
        ] {
            let problem = parse(query).unwrap_err();
            assert_eq!((problem.status.as_u16(), problem.code), (400, "bad_parameter"));
            let named = problem.detail.starts_with(&format!("`{parameter}`:"));
            assert!(named && problem.detail.contains(allowed), "{query}: {}", problem.detail);
        }
    }

    #[test]
    fn lists_are_split_at_commas_outside_of_parentheses() {
        let params = parse("from=0&aggregate=top(page, 5),count,p99.9,count&order_by=top(a,1) DESC, b").unwrap();
        assert_eq!(params.aggregates, ["top(page, 5)", "count", "p99.9"]);
        let order = |name: &str, descending| OrderBy { name: name.to_owned(), descending };
        assert_eq!(params.order_by, [order("top(a,1)", true), order("b", false)]);
    }
}
