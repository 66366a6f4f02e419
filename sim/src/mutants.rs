//! Rules of the real code, switched off one at a time: each must break a law that is named here.

use lamina_core::rules::Rule;

/// A rule, the law that breaks without it, and the seed from which on it is hunted.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    pub name: &'static str,
    pub off: &'static [Rule],
    pub law: &'static str,
    pub from: u64,
}

const fn mutant(name: &'static str, off: &'static [Rule], law: &'static str, from: u64) -> Mutant {
    Mutant { name, off, law, from }
}

const FOLD: &str = "answers-fold-the-prefix-they-name";
const CONTENT: &str = "one-key-one-content";
const ARCHIVED: &str = "sealed-epochs-are-archived";
const MARKS: &str = "marks-name-acknowledged-chunks";

/// Rules that need seldom meetings begin where one is near.
pub const MUTANTS: &[Mutant] = &[
    mutant("NewIdAtTakeover", &[Rule::NewIdAtTakeover], CONTENT, 0),
    mutant("RewindAtTakeover", &[Rule::RewindAtTakeover], ARCHIVED, 0),
    mutant("CompareAndSet", &[Rule::CompareAndSet], "ledgers-chain", 0),
    mutant("StopAfterSeal", &[Rule::StopAfterSeal], CONTENT, 0),
    mutant("LedgerDecides", &[Rule::LedgerDecides], FOLD, 0),
    mutant("MarkBounds", &[Rule::MarkBounds], FOLD, 0),
    mutant("RecheckCuts", &[Rule::RecheckCuts], FOLD, 0),
    mutant("UnnamedIsAnError", &[Rule::UnnamedIsAnError], FOLD, 0),
    mutant("FreshBatchChunks", &[Rule::FreshBatchChunks], FOLD, 0),
    mutant("ExtendFromOwnCut", &[Rule::ExtendFromOwnCut], FOLD, 0),
    mutant("PublishAfterChunks", &[Rule::PublishAfterChunks], FOLD, 40),
    mutant("TrimBelowPublished", &[Rule::TrimBelowPublished], FOLD, 0),
    mutant("ChunksBeforeMark", &[Rule::ChunksBeforeMark], MARKS, 0),
    mutant("FileBeforeSeal", &[Rule::FileBeforeSeal], ARCHIVED, 0),
    mutant("RememberOneWindow", &[Rule::RememberOneWindow], FOLD, 0),
    mutant("CapLikeSpeed", &[Rule::CapLikeSpeed], FOLD, 0),
    mutant("AtLeastIsChecked", &[Rule::AtLeastIsChecked], "at-least-is-honoured", 0),
];
