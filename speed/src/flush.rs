//! The flush: dead letters and delta chunks, all acknowledged, then the mark.
//!
//! While log or store do not answer, the same bytes are sent again; meanwhile records wait in the feed, and then in the
//! log. Nothing of another topic of that name is made visible. No mark passes offsets without a record before it is known whether they were lost; the mark says so if they were.

use std::sync::Arc;

use lamina_core::{
    Offset, Stamp,
    log::LogError,
    rules::{self, Rule},
};
use tokio::time::Instant;
use tracing::error;

use crate::{
    fold::EpochFold,
    partition::{Hold, Interrupt},
    retry::{Patience, until_done},
    views::shards_of,
};

impl Hold {
    /// Makes visible what was folded.
    pub(crate) async fn flush(&mut self) -> Result<(), Interrupt> {
        let began = Instant::now();
        let place = Arc::clone(&self.place);
        let (log, store) = (&*place.deps.log, &*place.deps.store);
        let mut delta = self.bench.run(EpochFold::take_delta).await?;
        self.note_gap(delta.gap);
        until_done!("tell what was lost", &place, self.check_gap());
        let letters = delta.dead.iter().filter(|letter| letter.metric.is_some()).count();
        place.instruments.rejected(letters as u64);
        let (dirty, bytes): (Vec<_>, Vec<_>) = delta.chunks.into_iter().unzip();
        self.writer.folds(shards_of(&self.folding, &place.source, self.writer.epoch().revision));
        let flush = self.writer.flush(&dirty, delta.watermark, delta.appended_at);
        let chunks: Vec<_> = flush.keys.iter().cloned().zip(bytes).collect();
        let stamp = Stamp { at: flush.stamp, ttl: place.config.ttl_seconds() };

        self.same_topic().await?;
        until_done!("append dead letters", &place, self.dead_letters.append(log, &mut delta.dead));
        if !chunks.is_empty() {
            if rules::on(Rule::ChunksBeforeMark) {
                until_done!("write chunks", &place, place.put_chunks(&chunks, stamp));
            } else {
                let _ = place.put_chunks(&chunks, stamp).await;
            }
        }
        let epoch = self.writer.epoch().id;
        until_done!("write the mark", &place, store.put_mark(&self.log, place.partition, epoch, &flush.mark, stamp));

        self.writer.flushed(&flush);
        self.standing.dead_bytes = 0;
        // What is rebuilt at a takeover was visible before, and counts for nobody until it is published.
        let waiting_since = delta.waiting_since.filter(|_| self.writer.is_live());
        let visible = waiting_since.map(|since| place.deps.clock.now() - since);
        place.instruments.flushed(began.elapsed(), flush.mark.end, visible);
        Ok(())
    }

    /// What is made visible was read of the topic that was taken over: it is still there after the last record was taken in.
    /// Whoever reads on by name and offset does not notice that it was made again.
    async fn same_topic(&self) -> Result<(), Interrupt> {
        let (place, log) = (&self.place, &self.place.deps.log);
        let mut patience = Patience::new("ask for the topic's id", place);
        loop {
            match log.topic_id(&place.topic).await {
                Ok(id) if id == self.log.topic_id() => return Ok(()),
                Ok(_) | Err(LogError::NoTopic(_)) => {
                    return Err(Interrupt::Again("the topic was made again".to_owned()));
                }
                Err(error @ LogError::Refused(_)) => return Err(Interrupt::Again(error.to_string())),
                Err(error) => patience.wait(error).await,
            }
        }
    }

    fn note_gap(&mut self, gap: Option<(Offset, Offset)>) {
        self.gap = match (self.gap, gap) {
            (Some(known), Some(new)) => Some((known.0.min(new.0), known.1.max(new.1))),
            (known, new) => known.or(new),
        };
    }

    /// Offsets may hold no record, but only where the log still is, whole: if its start has passed them, or they may have
    /// been compacted away, they are lost.
    pub(crate) async fn check_gap(&mut self) -> Result<(), LogError> {
        let Some((from, to)) = self.gap else { return Ok(()) };
        let spans = self.place.deps.log.spans(&self.place.topic).await?;
        let start = spans.get(&self.place.partition).map_or(0, |span| span.start);
        let trusted = start.max(self.place.holes_below);
        if trusted > from {
            let to = to.min(trusted);
            error!(place = %self.place, from, to, "records may be gone from the log before they were read");
            self.place.instruments.lost(to - from);
            self.writer.lost((from, to));
        }
        self.gap = None;
        Ok(())
    }
}
