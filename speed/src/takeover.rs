//! Taking a partition over: from the ledger, at the start of the open epoch, under a new id.
//!
//! Whoever dedups reads one window of the log before the epoch's start as well; those records only feed the memory of ids.

use std::{sync::Arc, time::Duration};

use lamina_core::{
    Consistency, Epoch, EpochId, Ledger, LedgerError, LogId, Mark, Offset,
    log::{Record, Span},
    read::open_mark,
    rules::{self, Rule},
    writer::{Takeover, Writer},
};
use lamina_metric::{Catalog, Source};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tracing::{error, warn};

use crate::{
    dead_letters::DeadLetters,
    feed::{Order, feed},
    fold::{EpochFold, Workbench},
    partition::{Due, Hold, Interrupt, Place},
    retry::until_done,
};

/// How long newer definitions are waited for before the ledger is read again.
const DEFINITIONS_PAUSE: Duration = Duration::from_secs(1);

/// What a takeover begins with.
struct Found {
    log: LogId,
    ledger: Ledger,
    mark: Option<Mark>,
    span: Span,
}

pub(crate) async fn take_over(place: &Arc<Place>) -> Result<Hold, Interrupt> {
    let mut catalog = place.deps.catalog.clone();
    loop {
        let folding = Arc::clone(&catalog.borrow_and_update());
        let Some(source) = folding.sources.get(&place.source).cloned() else {
            return Err(Interrupt::Again(format!("source {} is no longer defined", place.source)));
        };
        let found = find(place).await?;
        recognise(place, &found).await?;
        let now = place.deps.clock.now();
        let takeover = Takeover {
            id: EpochId::new(),
            now,
            revision: folding.revision,
            log_start: found.span.start,
            alive_until: place.config.alive_until(now),
        };
        match Writer::take_over(&found.ledger, found.mark.as_ref(), takeover) {
            Ok(writer) => return begin(place, catalog, folding, &source, found, writer).await,
            Err(LedgerError::OldRevision { expected, found }) => {
                warn!(%place, needed = expected, have = found, "waiting for newer definitions before taking over");
                let _ = timeout(DEFINITIONS_PAUSE, catalog.changed()).await;
                if catalog.has_changed().is_err() {
                    tokio::time::sleep(DEFINITIONS_PAUSE).await;
                }
            }
            Err(other) => return Err(other.into()),
        }
    }
}

/// The ledger, then the open epoch's mark, then where the log begins and ends.
async fn find(place: &Arc<Place>) -> Result<Found, Interrupt> {
    let (log, store) = (&place.deps.log, &place.deps.store);
    let topic = until_done!("find the topic", place, log.topic(&place.topic));
    let id = topic.log_id(&place.source);
    let ledger = until_done!("read the ledger", place, store.load(&id, place.partition, Consistency::Serial));
    ledger.check()?;
    let mark = until_done!("read the open epoch's mark", place, open_mark(&**store, &id, place.partition, &ledger));
    let spans = until_done!("read the log's span", place, log.spans(&place.topic));
    let span = spans.get(&place.partition).copied();
    let span = span.ok_or_else(|| Interrupt::Again(format!("topic {} lacks the partition", place.topic)))?;
    Ok(Found { log: id, ledger, mark, span })
}

/// The log must be the one that was sealed: it holds what was sealed last, unless retention has passed it. One that was cut
/// off below and written anew gives other records the same offsets, and counting on would leave some out for ever.
async fn recognise(place: &Arc<Place>, found: &Found) -> Result<(), Interrupt> {
    let Found { ledger, span, .. } = found;
    let sealed = ledger.sealed_end();
    if span.end < sealed {
        return Err(Interrupt::CutOff(format!("it ends at offset {}, and {sealed} was sealed", span.end)));
    }
    let files = ledger.sealed().filter_map(|epoch| epoch.archive.as_ref());
    let Some((offset, checksum)) = files.filter_map(|archive| archive.last_record).last() else { return Ok(()) };
    if offset < span.start {
        return Ok(());
    }
    let read = place.deps.log.read(&place.topic, place.partition, offset, 1).await;
    let (records, _) = read.map_err(|error| Interrupt::Again(format!("the last sealed record: {error}")))?;
    let same = |record: &Record| record.offset == offset && crc32fast::hash(&record.payload) == checksum;
    if records.first().is_some_and(same) {
        return Ok(());
    }
    Err(Interrupt::CutOff(format!("it holds another record at offset {offset} than the one that was sealed")))
}

async fn begin(
    place: &Arc<Place>,
    catalog: watch::Receiver<Arc<Catalog>>,
    folding: Arc<Catalog>,
    source: &Arc<Source>,
    found: Found,
    mut writer: Writer,
) -> Result<Hold, Interrupt> {
    let Found { log, ledger, mark, span } = found;
    let epoch = writer.epoch().clone();
    let goal = mark.map_or(0, |mark| mark.end);
    if span.end < goal.max(epoch.start) {
        let (ends, served) = (span.end, goal.max(epoch.start));
        error!(%place, ends, served, "the log ends before what was served of it; answers stand still until it has passed that");
    }
    let mut fold = EpochFold::new(&folding, source, place.partition, &epoch);
    let mut from = rewind(place, source, &epoch).await.max(span.start);
    if span.start > epoch.start {
        error!(%place, from = epoch.start, to = span.start, "records are gone from the log before they were sealed");
        place.instruments.lost(span.start - epoch.start);
        writer.lost((epoch.start, span.start));
        fold.skip_lost(span.start);
        writer.folded_to(span.start);
        from = span.start;
    }
    let standing = fold.standing();
    let mut due = Due::new(&place.config);
    // What was lost is sealed in time, even if nothing follows it.
    due.first_record = (standing.position > epoch.start).then(Instant::now);
    let (feed, intake) = feed();
    place.order(Order::Start(from, feed));
    Ok(Hold {
        dead_letters: DeadLetters::new(&place.source, &place.topic, place.partition),
        place: Arc::clone(place),
        log,
        catalog,
        folding,
        writer,
        ledger,
        bench: Workbench::new(fold),
        standing,
        intake,
        fed: from,
        goal,
        gap: None,
        draft: None,
        due,
    })
}

/// Where to begin to read: the epoch's start, or one dedup window before it.
async fn rewind(place: &Arc<Place>, source: &Source, epoch: &Epoch) -> Offset {
    let forgets = !rules::on(Rule::RememberOneWindow);
    if source.definition.id.is_none() || epoch.dedup_clock == 0 || forgets {
        return epoch.start;
    }
    let at = epoch.dedup_clock.saturating_sub(source.dedup_window);
    let log = &place.deps.log;
    let from = until_done!("find the dedup window", place, log.offset_at(&place.topic, place.partition, at));
    from.min(epoch.start)
}
