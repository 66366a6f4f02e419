//! What scenarios came to, for people and for other programs.

use std::path::Path;

use serde::Serialize;

use crate::{
    failure::{Doing, Outcome},
    world::Totals,
};

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) scenario: &'static str,
    /// Events per second that were sent.
    pub(crate) rate: u32,
    /// What was done to it.
    pub(crate) faults: Vec<String>,
    /// What was measured besides.
    pub(crate) notes: Vec<String>,
    pub(crate) totals: Totals,
    pub(crate) failure: Option<String>,
}

const HEAD: &str = "| scenario | load | faults | lasted | answers checked (values) | differences | incomplete / refused | longest recovery | remarks |\n\
                    |---|---|---|---|---|---|---|---|---|";

impl Report {
    /// A row of a Markdown table.
    pub(crate) fn row(&self) -> String {
        let Totals { seconds, acknowledged, figures, .. } = &self.totals;
        let outcome = if self.failure.is_some() { " **FAILED**" } else { "" };
        let sum = |counts: &std::collections::BTreeMap<String, u64>| counts.values().sum::<u64>();
        format!(
            "| `{}`{outcome} | {} events/s, {} in all | {} | {} s | {} ({}) | {} | {} / {} | {:.1} s | {} |",
            self.scenario,
            thousands(u64::from(self.rate)),
            thousands(*acknowledged),
            self.faults.join("; "),
            seconds,
            thousands(figures.checked),
            thousands(figures.values),
            figures.wrong,
            sum(&figures.incomplete),
            sum(&figures.refused),
            figures.longest_recovery_ms as f64 / 1e3,
            self.notes.join("; "),
        )
    }
}

/// Writes `results.json` and `results.md`.
pub(crate) fn write(folder: &Path, reports: &[Report]) -> Outcome {
    let json = serde_json::to_string_pretty(reports).doing("write the results")?;
    std::fs::write(folder.join("results.json"), json + "\n").doing("write the results")?;
    let rows: Vec<String> = reports.iter().map(Report::row).collect();
    std::fs::write(folder.join("results.md"), format!("{HEAD}\n{}\n", rows.join("\n"))).doing("write the results")
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
