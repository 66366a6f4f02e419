//! Reads what a query needs, waiting for the positions that it asks for.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::http::StatusCode;
use bytes::Bytes;
use lamina_core::{
    LogId, Partition, Shard, ViewState, generation,
    read::{self, Request},
    rules::{self, Rule},
};
use lamina_metric::{Metric, Series, Source, View};
use tokio::time::Instant;

use crate::{
    app::App,
    problem::Problem,
    query::{
        merge::Read,
        params::Params,
        plan::{self, Plan},
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

/// Inputs that fit together, no older than the tokens ask, and the plan that they were read for.
pub(crate) async fn read(app: &App, metric: &Arc<Metric>, params: &Params) -> Result<(Plan, Read), Problem> {
    let views = plan::views(metric, params)?;
    let tokens = tokens_for(app, metric, &params.at_least).await?;
    let deadline = Instant::now() + params.wait;
    loop {
        let (plan, state) = choose(app, metric, params, &views).await?;
        let partitions = partitions_of(app, &metric.source).await?;
        if let Some(read) = read_at(app, &plan, &partitions, &tokens).await? {
            // Below a horizon that rose meanwhile, chunks may have gone before they were read.
            let (_, after) = generation::load_view(&*app.deps.store, &plan.view.id).await?;
            if !after.rose_since(&state, plan.width) {
                return Ok((plan, read));
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

/// The plan over the smallest view that no rule of expiry cuts, or else over the smallest; with the view's state.
async fn choose(
    app: &App,
    metric: &Arc<Metric>,
    params: &Params,
    views: &[&View],
) -> Result<(Plan, ViewState), Problem> {
    let mut smallest: Option<(Plan, ViewState)> = None;
    for view in views {
        // A rule that cuts the smallest view would cut this one, too.
        if smallest.as_ref().is_some_and(|(plan, _)| plan.cut_by().any(|(rule, _)| rule.concerns(view))) {
            continue;
        }
        let (_, state) = generation::load_view(&*app.deps.store, &view.id).await?;
        let plan = Plan::of(metric, view, params, app.deps.clock.now(), &state)?;
        if plan.expired.is_empty() {
            return Ok((plan, state));
        }
        smallest.get_or_insert((plan, state));
    }
    // Every metric keeps the full view, which holds whatever can be asked for.
    smallest.ok_or_else(|| Problem::internal(&"no view holds what is asked for"))
}

/// Inputs that fit together, or `None` if they do not reach the tokens yet.
async fn read_at(app: &App, plan: &Plan, partitions: &Partitions, tokens: &[&Token]) -> Result<Option<Read>, Problem> {
    let place = |series: &Series| (series.shard(plan.view.shards), series.to_bytes());
    let named: Option<Vec<(Shard, Bytes)>> = plan.named.as_ref().map(|named| named.iter().map(place).collect());
    let shards: Vec<Shard> = match &named {
        Some(named) => named.iter().map(|(shard, _)| *shard).collect::<BTreeSet<_>>().into_iter().collect(),
        None => (0..plan.view.shards).collect(),
    };
    let request = Request {
        log: &partitions.log,
        partitions: &partitions.all,
        view: &plan.view.id,
        since: plan.metric.since,
        shards: &shards,
        width: plan.width,
        periods: plan.periods(),
        series: named.as_deref(),
        now: app.deps.clock.now(),
    };
    let within = app.config.request_timeout;
    let reading = async {
        if !tokens.is_empty() {
            let positions = read::take(&*app.deps.store, &request, false).await?.positions();
            if !tokens.iter().all(|token| token.reached(&positions)) && rules::on(Rule::AtLeastIsChecked) {
                return Ok(None);
            }
        }
        let read = read::read(&*app.deps.store, &app.chunks, &request).await?;
        // A takeover may have set the open tail back between the two.
        let positions = read.snapshot.positions();
        let reached = tokens.iter().all(|token| token.reached(&positions)) || !rules::on(Rule::AtLeastIsChecked);
        Ok(reached.then_some(read))
    };
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
