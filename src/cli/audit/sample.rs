//! Which buckets are looked at: those of events drawn evenly from the archive.

use arrow::{
    array::AsArray,
    datatypes::{TimestampMicrosecondType, UInt8Type},
};
use lamina_core::Micros;
use lamina_metric::archive::ACCEPTED;
use object_store::ObjectStore;

use super::{
    Files,
    recompute::{Broken, fetch, read},
};

/// SplitMix64: the same seed draws the same sample of the same archive.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, 0 if there is none.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    pub(super) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }
}

/// The event time of an accepted event, each as likely as any other; `None` if there is none.
pub(super) async fn event_time(
    archive: &dyn ObjectStore,
    files: &Files,
    random: &mut Random,
) -> Result<Option<Micros>, Broken> {
    let accepted = |file: &lamina_core::Segment| file.counts().accepted;
    let total: u64 = files.all().map(|(_, file)| accepted(file)).sum();
    let mut number = random.below(usize::try_from(total).unwrap_or(usize::MAX)) as u64;
    for (_, file) in files.all() {
        if number >= accepted(file) {
            number -= accepted(file);
            continue;
        }
        let Some(named) = &file.archive else { continue };
        let file = fetch(archive, named).await?;
        for rows in read(&named.path, file)? {
            let damaged = |what: &str| Broken::Damaged(format!("archive file {}: {what}", named.path));
            let rows = rows.map_err(|error| damaged(&error.to_string()))?;
            let outcomes = rows.column_by_name("_outcome").and_then(|column| column.as_primitive_opt::<UInt8Type>());
            let times =
                rows.column_by_name("_time").and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
            let (outcomes, times) = outcomes.zip(times).ok_or_else(|| damaged("columns are missing"))?;
            for (outcome, time) in outcomes.values().iter().zip(times.values()) {
                if *outcome == ACCEPTED && number == 0 {
                    return Ok(Some(*time));
                }
                number -= u64::from(*outcome == ACCEPTED);
            }
        }
        return Ok(None);
    }
    Ok(None)
}
