//! Queries: parameters → question → plan → read → merge → table → a format.
//!
//! # Invariants
//! - An answer is the fold of one prefix of the log per partition: exactly `meta.speed.positions`.
//! - What cannot be proven complete says so; a chunk that should be there and is not is an error, never emptiness.

mod arrow;
pub(crate) mod calendar;
mod compare;
mod csv;
mod encode;
mod fill;
pub(crate) mod format;
mod merge;
pub(crate) mod meta;
pub(crate) mod page;
pub(crate) mod params;
mod plan;
mod question;
mod read;
pub(crate) mod schema;
mod table;
pub(crate) mod validator;

use std::sync::Arc;

use lamina_core::{Micros, SPANS, offload::offload};
use lamina_metric::{Answer, Metric};
use tracing::{Instrument, Span};

use self::{
    encode::Body,
    format::Format,
    meta::{Meta, PageMeta},
    question::Question,
    read::PartRead,
    table::{Operand, Row},
    validator::Validator,
};
pub(crate) use self::{
    merge::{Merged, MergedSeries},
    params::Params,
    question::Subject,
    read::partitions_of,
};
use crate::{app::App, problem::Problem, token::Token};

/// A whole answer before it is written in some format.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) question: Question,
    pub(crate) rows: Vec<Row>,
    pub(crate) meta: Meta,
    /// The prefix of each source's log that it folds.
    pub(crate) positions: Vec<Token>,
    /// `None` if nothing short of reading everything again tells whether it still stands.
    pub(crate) validator: Option<Validator>,
    /// Of the question without its page.
    pub(crate) query: u128,
    /// Of what it folds.
    pub(crate) prefix: u128,
}

/// An answer in some format.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) bytes: Vec<u8>,
    pub(crate) complete: bool,
    /// The proof as a line of JSON.
    pub(crate) meta: String,
    /// Of a page that is not the last.
    pub(crate) next: Option<String>,
}

impl Document {
    pub(crate) fn points(&self) -> usize {
        self.rows.iter().map(|row| row.points.len()).sum()
    }

    /// About how much memory its rows take.
    pub(crate) fn bytes(&self) -> usize {
        let answers = self.question.columns.len() * size_of::<Answer>();
        let series = self.rows.len() * 200;
        let lists = |answer: &Answer| match answer {
            Answer::Top(items) => items.iter().map(|item| size_of_val(item) + item.value.len()).sum(),
            _ => 0,
        };
        let points = self.rows.iter().flat_map(|row| &row.points);
        series + self.points() * (answers + 48) + points.flat_map(|point| &point.answers).map(lists).sum::<usize>()
    }

    /// All of it.
    pub(crate) fn write(&self, format: Format) -> Result<Written, Problem> {
        self.written(format, &self.rows, &self.meta, None)
    }

    fn written(
        &self,
        format: Format,
        rows: &[Row],
        meta: &Meta,
        next: Option<Option<&str>>,
    ) -> Result<Written, Problem> {
        let body = Body { document: self, rows, meta, next };
        let bytes = match format {
            Format::Json => serde_json::to_vec(&body).map_err(|error| Problem::internal(&error))?,
            Format::Ndjson => format::ndjson(&body)?,
            Format::Csv => csv::csv(&body),
            Format::Arrow => arrow::stream(&body)?,
        };
        let text = serde_json::to_string(meta).map_err(|error| Problem::internal(&error))?;
        Ok(Written { bytes, complete: meta.complete, meta: text, next: next.flatten().map(str::to_owned) })
    }
}

/// Answers a question in a format, or a page of the answer.
pub(crate) async fn answer(
    app: &App,
    question: Question,
    format: Format,
) -> Result<(Written, Option<String>), Problem> {
    let Some(page) = question.params.page.clone() else {
        let document = evaluate(app, question).await?;
        let tag = document.validator.as_ref().map(|validator| validator.tag(format));
        // Encoding may take a while; other requests go on meanwhile.
        let written = offload(move || document.write(format)).await;
        return Ok((written.map_err(|error| Problem::internal(&error))??, tag));
    };
    let query = question.fingerprint();
    if page.after.as_ref().is_some_and(|token| token.query != query) {
        return Err(Problem::parameter("page_token", "is of another query: give the parameters of the first page"));
    }
    let kept = match &page.after {
        Some(token) => app.pages.find(token).await,
        None => None,
    };
    let document = match kept {
        Some(document) => document,
        None => Arc::new(evaluate(app, question).await?),
    };
    let same_prefix = page.after.as_ref().is_none_or(|token| token.prefix == document.prefix);
    let (rows, next) = app.pages.cut(&document, page.after.as_ref(), page.size).await;
    let meta = Meta { page: Some(PageMeta { same_prefix }), ..document.meta.clone() };
    let written = offload(move || document.written(format, &rows, &meta, Some(next.as_deref()))).await;
    Ok((written.map_err(|error| Problem::internal(&error))??, None))
}

/// The question of parameters. Of a later page the range is that of the first.
pub(crate) fn question(app: &App, subject: Subject, params: &Params) -> Result<Question, Problem> {
    let ended = params.page.as_ref().and_then(|page| page.after.as_ref()).map(|token| token.to);
    let now: Micros = ended.unwrap_or_else(|| app.deps.clock.now());
    Question::of(subject, params, now)
}

/// Reads and merges, through the one plan of each part.
pub(crate) async fn evaluate(app: &App, question: Question) -> Result<Document, Problem> {
    let parts = read::read(app, &question).await?;
    // Merging may take a while; other requests go on meanwhile.
    offload(move || document(question, &parts))
        .instrument(merging())
        .await
        .map_err(|error| Problem::internal(&error))?
}

/// Merged states of one metric, with what proves them.
pub(crate) struct Merging {
    pub(crate) merged: Merged,
    pub(crate) meta: Meta,
}

/// The states that answer a query of a metric, for interfaces that make rows of them in their own way: not ordered, not
/// limited, not filled.
pub(crate) async fn merged(app: &App, metric: &Arc<Metric>, params: &Params) -> Result<Merging, Problem> {
    let question = question(app, Subject::Metric(Arc::clone(metric)), params)?;
    let parts = read::read(app, &question).await?;
    let work = offload(move || {
        let [PartRead { plan, read, .. }] = &*parts else {
            return Err(Problem::internal(&"a metric is one part of a question"));
        };
        let merged = merge::merge(plan, read, question.params.layer)?;
        let meta = meta::meta(&question, &parts, &[merged.overflow], false);
        Ok(Merging { merged, meta })
    });
    work.instrument(merging()).await.map_err(|error| Problem::internal(&error))?
}

fn merging() -> Span {
    tracing::debug_span!(target: SPANS, "merge")
}

fn document(question: Question, parts: &[PartRead]) -> Result<Document, Problem> {
    let merged = parts.iter().map(|PartRead { plan, read, .. }| {
        Ok(Operand { plan, merged: merge::merge(plan, read, question.params.layer)? })
    });
    let operands = merged.collect::<Result<Vec<_>, Problem>>()?;
    let table = table::table(&question, &operands)?;
    let overflow: Vec<u64> = operands.iter().map(|operand| operand.merged.overflow).collect();
    let token = |part: &PartRead| {
        let (source, positions) = (part.plan.metric.source.name.clone(), part.read.snapshot.positions());
        Token { source, topic_id: part.log.topic_id().to_owned(), positions }
    };
    let mut positions: Vec<Token> = parts.iter().map(token).collect();
    positions.dedup();
    Ok(Document {
        meta: meta::meta(&question, parts, &overflow, table.truncated),
        validator: Validator::of(&question, parts),
        prefix: validator::prefix(parts),
        query: question.fingerprint(),
        rows: table.series,
        positions,
        question,
    })
}

/// Whether an answer with one of these tags still stands, as far as that is seen without reading everything.
pub(crate) async fn still_stands(
    app: &App,
    question: &Question,
    format: Format,
    tags: &[String],
) -> Result<Option<String>, Problem> {
    if tags.is_empty() || question.params.page.is_some() || !question.params.at_least.is_empty() {
        return Ok(None);
    }
    let Some(parts) = read::peek(app, question).await? else { return Ok(None) };
    let tag = Validator::of(question, &parts).map(|validator| validator.tag(format));
    Ok(tag.filter(|tag| tags.contains(tag)))
}
