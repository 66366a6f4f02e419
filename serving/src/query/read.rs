//! Reads what a query needs, waiting for the positions that it asks for.

use std::{collections::BTreeSet, time::Duration};

use axum::http::StatusCode;
use bytes::Bytes;
use lamina_core::{
    LogId, Partition, SPANS, Shard, ViewState, generation,
    read::{self, Request},
    rules::{self, Rule},
};
use lamina_metric::{Metric, Series, Source, View};
use tokio::time::Instant;
use tracing::Instrument;

use crate::{
    app::App,
    problem::Problem,
    query::{
        merge::Read,
        params::Params,
        plan::{self, Plan},
        question::{Part, Question},
    },
    token::Token,
};

/// How long between two looks at positions.
const POLL: Duration = Duration::from_millis(20);

/// A source's ledgers: which log, and which partitions.
pub(crate) struct Partitions {
    pub(crate) log: LogId,
    pub(crate) all: Vec<Partition>,
}

/// The partitions of a source's topic: none while the topic does not exist, nor of a table.
pub(crate) async fn partitions_of(app: &App, source: &Source) -> Result<Partitions, Problem> {
    if source.table.is_some() {
        return Ok(Partitions { log: LogId::new(&source.name, ""), all: Vec::new() });
    }
    Ok(match app.topics.find_or_last(&source.topic).await? {
        Some(topic) => Partitions { log: topic.log_id(&source.name), all: (0..topic.partitions).collect() },
        None => Partitions { log: LogId::new(&source.name, ""), all: Vec::new() },
    })
}

/// The inputs of one part, and the plan that they were read for.
#[derive(Debug)]
pub(crate) struct PartRead {
    /// Whose positions the answer folds.
    pub(crate) log: LogId,
    pub(crate) plan: Plan,
    pub(crate) read: Read,
}

/// Inputs of every part that fit together, no older than the tokens ask. Parts of one source fold the same prefix of its log.
pub(crate) async fn read(app: &App, question: &Question) -> Result<Vec<PartRead>, Problem> {
    let deadline = Instant::now() + question.params.wait;
    let mut all: Vec<Option<PartRead>> = question.parts.iter().map(|_| None).collect();
    for at in 0..question.parts.len() {
        if all[at].is_some() {
            continue;
        }
        let source = &question.parts[at].metric.source.name;
        let same = |part: &(usize, &Part)| part.1.metric.source.name == *source;
        let (places, parts): (Vec<usize>, Vec<&Part>) = question.parts.iter().enumerate().filter(same).unzip();
        let metrics = || parts.iter().map(|part| part.metric.name.as_str()).collect::<Vec<_>>().join(",");
        let span =
            tracing::debug_span!(target: SPANS, "read", lamina.source = source.as_str(), lamina.metrics = metrics());
        let read = read_source(app, &parts, &question.params, deadline).instrument(span).await?;
        for (place, read) in places.into_iter().zip(read) {
            all[place] = Some(read);
        }
    }
    Ok(all.into_iter().flatten().collect())
}

/// Parts over one source.
async fn read_source(app: &App, parts: &[&Part], params: &Params, deadline: Instant) -> Result<Vec<PartRead>, Problem> {
    let Some(metric) = parts.first().map(|part| &part.metric) else { return Ok(Vec::new()) };
    let views = parts.iter().map(|part| plan::views(part)).collect::<Result<Vec<_>, _>>()?;
    let tokens = tokens_for(app, metric, &params.at_least).await?;
    loop {
        let mut planned = Vec::with_capacity(parts.len());
        for (part, views) in parts.iter().zip(&views) {
            planned.push(choose(app, part, views).await?);
        }
        let partitions = partitions_of(app, &metric.source).await?;
        let plans: Vec<&Plan> = planned.iter().map(|(plan, _)| plan).collect();
        if let Some(read) = read_at(app, &plans, &partitions, &tokens).await? {
            // Below a horizon that rose meanwhile, chunks may have gone before they were read.
            let mut rose = false;
            for (plan, state) in &planned {
                let (_, after) = generation::load_view(&*app.deps.store, &plan.view.id).await?;
                rose |= after.rose_since(state, plan.width);
            }
            if !rose {
                let plans = planned.into_iter().map(|(plan, _)| plan);
                let log = || partitions.log.clone();
                return Ok(plans.zip(read).map(|(plan, read)| PartRead { log: log(), plan, read }).collect());
            }
            continue;
        }
        if Instant::now() >= deadline {
            // The topic may have been replaced since it was last asked for: then waiting longer would not help.
            app.topics.forget(&metric.source.topic).await;
            tokens_for(app, metric, &params.at_least).await?;
            return Err(not_visible(params.wait));
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + POLL)).await;
    }
}

/// What speed has for each part, without reading batch; `None` if that does not fit together at once.
pub(crate) async fn peek(app: &App, question: &Question) -> Result<Option<Vec<PartRead>>, Problem> {
    let mut all = Vec::with_capacity(question.parts.len());
    for part in &question.parts {
        let (plan, _) = choose(app, part, &plan::views(part)?).await?;
        let partitions = partitions_of(app, &plan.metric.source).await?;
        let wanted = Wanted::of(&plan);
        let request = wanted.request(app, &plan, &partitions);
        let peeked = within(app, async { Ok(read::peek(&*app.deps.store, &app.chunks, &request).await?) }).await?;
        let Some(read) = peeked else { return Ok(None) };
        drop(wanted);
        all.push(PartRead { log: partitions.log, plan, read });
    }
    Ok(Some(all))
}

/// The plan over the smallest view that no rule of expiry cuts, or else over the smallest; with the view's state.
async fn choose(app: &App, part: &Part, views: &[&View]) -> Result<(Plan, ViewState), Problem> {
    let mut smallest: Option<(Plan, ViewState)> = None;
    for view in views {
        // A rule that cuts the smallest view would cut this one, too.
        if smallest.as_ref().is_some_and(|(plan, _)| plan.cut_by().any(|(rule, _)| rule.concerns(view))) {
            continue;
        }
        let (_, state) = generation::load_view(&*app.deps.store, &view.id).await?;
        let plan = Plan::of(part, view, &state)?;
        if plan.expired.is_empty() {
            return Ok((plan, state));
        }
        smallest.get_or_insert((plan, state));
    }
    // Every metric keeps the full view, which holds whatever can be asked for.
    smallest.ok_or_else(|| Problem::internal(&"no view holds what is asked for"))
}

/// The shards and series that a plan reads.
struct Wanted {
    shards: Vec<Shard>,
    named: Option<Vec<(Shard, Bytes)>>,
}

impl Wanted {
    fn of(plan: &Plan) -> Self {
        let place = |series: &Series| (series.shard(plan.view.shards), series.to_bytes());
        let named: Option<Vec<(Shard, Bytes)>> = plan.named.as_ref().map(|named| named.iter().map(place).collect());
        let shards = match &named {
            Some(named) => named.iter().map(|(shard, _)| *shard).collect::<BTreeSet<_>>().into_iter().collect(),
            None => (0..plan.view.shards).collect(),
        };
        Self { shards, named }
    }

    fn request<'a>(&'a self, app: &App, plan: &'a Plan, partitions: &'a Partitions) -> Request<'a> {
        Request {
            log: &partitions.log,
            partitions: &partitions.all,
            view: &plan.view.id,
            since: plan.metric.since,
            shards: &self.shards,
            width: plan.width,
            periods: plan.periods(),
            series: self.named.as_deref(),
            now: app.deps.clock.now(),
        }
    }
}

/// Inputs that fit together, or `None` if they do not reach the tokens yet.
async fn read_at(
    app: &App,
    plans: &[&Plan],
    partitions: &Partitions,
    tokens: &[&Token],
) -> Result<Option<Vec<Read>>, Problem> {
    let wanted: Vec<Wanted> = plans.iter().map(|plan| Wanted::of(plan)).collect();
    let requests: Vec<Request<'_>> =
        plans.iter().zip(&wanted).map(|(plan, wanted)| wanted.request(app, plan, partitions)).collect();
    let reading = async {
        if let Some(request) = requests.first().filter(|_| !tokens.is_empty()) {
            let positions = read::take(&*app.deps.store, request, false).await?.positions();
            if !tokens.iter().all(|token| token.reached(&positions)) && rules::on(Rule::AtLeastIsChecked) {
                return Ok(None);
            }
        }
        let read = read::read_together(&*app.deps.store, &app.chunks, &requests).await?;
        // A takeover may have set the open tail back between the two.
        let reached = read.iter().all(|read| {
            let positions = read.snapshot.positions();
            tokens.iter().all(|token| token.reached(&positions))
        });
        Ok((reached || !rules::on(Rule::AtLeastIsChecked)).then_some(read))
    };
    within(app, reading).await
}

async fn within<T>(app: &App, reading: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let within = app.config.request_timeout;
    tokio::time::timeout(within, reading).await.map_err(|_| {
        let detail =
            format!("the view store did not deliver within {} s: ask for less, or again later", within.as_secs());
        Problem::unavailable("timeout", detail)
    })?
}

/// The tokens that concern this metric's source, after all were checked.
async fn tokens_for<'a>(app: &App, metric: &Metric, tokens: &'a [Token]) -> Result<Vec<&'a Token>, Problem> {
    let catalog = app.catalog();
    let mut own = Vec::new();
    for token in tokens {
        let source = catalog.sources.get(&token.source).ok_or_else(|| {
            Problem::parameter("at_least", format!("is a position of source {:?}, which does not exist", token.source))
        })?;
        if source.table.is_some() || !is_current(app, source, token).await? {
            let detail = format!("is a position of an earlier topic {:?}; events before it are gone", source.topic);
            return Err(Problem::parameter("at_least", detail));
        }
        if source.name == metric.source.name {
            own.push(token);
        }
    }
    Ok(own)
}

/// Whether the token is of the topic as it is now.
async fn is_current(app: &App, source: &Source, token: &Token) -> Result<bool, Problem> {
    let known = |topic: &lamina_core::log::Topic| {
        topic.id == token.topic_id && token.positions.keys().all(|partition| *partition < topic.partitions)
    };
    if app.topics.find_or_last(&source.topic).await?.is_some_and(|topic| known(&topic)) {
        return Ok(true);
    }
    // What is remembered of the topic may be older than the token.
    app.topics.forget(&source.topic).await;
    Ok(app.topics.find(&source.topic).await?.is_some_and(|topic| known(&topic)))
}

fn not_visible(wait: Duration) -> Problem {
    let detail = format!(
        "the events of `at_least` were not visible within {} ms: ask again, or with a longer `wait` (up to 60s)",
        wait.as_millis()
    );
    Problem::new(StatusCode::GATEWAY_TIMEOUT, "not_visible_yet", detail).retry_after(Duration::from_secs(1))
}
