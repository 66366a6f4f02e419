//! Each rule switched off in the real code, and the law that then breaks.
//!
//! Names follow the seam models' mutants where they have one.

use super::world::{Faults, Violation, World};
use crate::rules::{self, Rule};

/// The first violation over many generated worlds, or none.
fn hunt(faults: Faults, off: &'static [Rule]) -> Option<Violation> {
    rules::without(off, || (0..60_000).find_map(|seed| World::new(seed, faults).run(220).err()))
}

fn dies(off: &'static [Rule], law: &str) {
    dies_under(Faults::all(), off, law);
}

fn dies_under(faults: Faults, off: &'static [Rule], law: &str) {
    let found = hunt(faults, off).unwrap_or_else(|| panic!("no law broke without {off:?}"));
    assert!(found.law.contains(law), "without {off:?} another law broke than {law:?}: {found}");
}

macro_rules! mutants {
    ($($name:ident: $($rule:ident)+ => $law:literal;)*) => {
        $(#[test] fn $name() { dies(&[$(Rule::$rule),+], $law); })*
    };
}

mutants! {
    // seam_model.py
    write_under_the_old_id: NewIdAtTakeover => "";
    resume_at_the_flushed_end: RewindAtTakeover => "";
    no_compare_and_set: CompareAndSet => "";
    seal_before_the_flush: FlushBeforeSeal => "";
    every_row_counts: LedgerDecides => "double count";
    batch_read_before_speed_while_rows_expire: SpeedBeforeBatch MissingIsAnError => "not the prefix";
    // seam_model_chunks.py
    a3_recheck_only_the_end: RecheckStarts => "";
    b_no_flush_mark: MarkBounds => "not the prefix";
    c_marks_but_no_recheck: RecheckCuts => "";
    c2_no_recheck_and_batch_before_speed: RecheckCuts SpeedBeforeBatch => "";
    e_extends_from_the_published_cut: ExtendFromOwnCut => "double count";
    f_cached_batch_chunk: FreshBatchChunks => "";
    g_batch_before_speed_with_expiry_and_trim: SpeedBeforeBatch MissingIsAnError => "not the prefix";
    // lamina's own
    ledger_trimmed_beyond_the_cut_taken: RecheckTrimmed => "not the prefix";
    rollback_forgets_what_came_since: RollbackExtends => "not the prefix";
    belated_run_overwrites: LaterGenerationWins => "";
    publish_before_the_chunks: PublishAfterChunks => "not the prefix";
    abandoned_run_publishes: OnlyTheOpenPublishes => "";
    trim_above_the_published_cut: TrimBelowPublished => "";
}

/// A takeover that is published before it passed what readers saw.
#[test]
fn publish_before_the_goal() {
    dies_under(Faults { zombies: false, monotone: true }, &[Rule::PublishPastTheGoal], "steps back");
}

/// D of seam_model_chunks.py. Consolidated chunks keep the sealed epoch itself exact; what was flushed after the seal was
/// sent, and seen, is gone when the delayed seal applies.
#[test]
fn d_goes_on_after_an_unknown_seal() {
    dies_under(Faults { zombies: false, monotone: true }, &[Rule::StopAfterSeal], "steps back");
}

/// H of seam_model_chunks.py, and the limit of what is promised: behind a worker that flushed on after losing its
/// partition, the open tail may step back.
#[test]
fn h_the_open_tail_may_step_back_behind_a_zombie() {
    let found = hunt(Faults { zombies: true, monotone: true }, &[]).expect("zombies make the open tail step back");
    assert!(found.law.contains("steps back"), "{found}");
}
