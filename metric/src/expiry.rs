//! Rules of expiry: series that a condition over dimensions takes are kept for less than the others of a view.
//!
//! # Invariants
//! - A rule concerns the views that hold every dimension that its condition names, and no other.
//! - Whether a series matches depends on the series alone: batch and serving leave out the same ones.
//! - The overflow series matches no rule: of which series its events are is not known.
//! - A rule only ever shortens.

use std::collections::BTreeMap;

use lamina_core::Micros;

use crate::{
    compile_metric::Compiler,
    definition::ExpireDefinition,
    diagnostic::Problem,
    metric::{Dimension, Metric, View},
    select::SeriesFilter,
    series::Series,
    time::Length,
};

/// Each rule is asked about each series that a query meets below its horizon.
const MOST_RULES: usize = 64;

/// A rule of a metric: how long matching series are kept.
#[derive(Clone, Debug)]
pub struct Expiry {
    /// The condition as it is written.
    pub sql: String,
    pub filter: SeriesFilter,
    /// Width → how long its buckets are kept, always less than for other series; absent = as long as for them.
    pub kept: BTreeMap<Micros, Micros>,
}

impl Expiry {
    /// Whether the view holds what decides which series match.
    pub fn concerns(&self, view: &View) -> bool {
        self.filter.columns().iter().all(|column| view.dimensions.contains(column))
    }
}

impl Metric {
    /// For each series of a view the `best` of `values` (by index of the rule) over the rules that it matches; `None` if it
    /// matches none.
    ///
    /// # Errors
    /// If a value is of a rule that does not exist or does not concern the view, or a series does not decode.
    pub fn by_rules(
        &self,
        view: &View,
        values: &BTreeMap<usize, Micros>,
        best: fn(Micros, Micros) -> Micros,
        series: &[&Series],
    ) -> Result<Vec<Option<Micros>>, String> {
        let mut found: Vec<Option<Micros>> = vec![None; series.len()];
        for (&rule, &value) in values {
            let rule = self.expire.get(rule).ok_or_else(|| format!("metric {} has no rule {rule}", self.name))?;
            let matches = rule.filter.mask(view, self, series)?;
            for (found, _) in found.iter_mut().zip(matches).filter(|(_, matches)| *matches) {
                *found = Some(found.map_or(value, |known| best(known, value)));
            }
        }
        let overflow = Series::overflow(view.dimensions.len());
        let unknown = found.iter_mut().zip(series).filter(|(_, series)| ***series == overflow);
        unknown.for_each(|(found, _)| *found = None);
        Ok(found)
    }
}

impl Compiler<'_, '_> {
    fn widths(&self) -> Vec<Length> {
        std::iter::once(self.definition.grain).chain(self.definition.rollups.iter().copied()).collect()
    }

    /// One entry of a table `retention`; `path` is what the table stands in.
    pub(crate) fn check_kept(&mut self, path: &str, width: Length, kept: Length) {
        if !self.widths().contains(&width) {
            let widths: Vec<String> = self.widths().iter().map(Length::to_string).collect();
            let message = format!("retention for {width}, which is neither the grain nor a rollup");
            let help = format!("widths are {}", widths.join(", "));
            self.note(&format!("{path}retention.{width}"), Problem::new(message, help));
        } else if kept < width {
            let message = format!("buckets of {width} cannot be kept for only {kept}");
            let help = "keep them for at least their own width";
            self.note(&format!("{path}retention.{width}.kept"), Problem::new(message, help));
        }
    }

    /// Checks how long the rules keep what they take. Their conditions are compiled by [`Compiler::rules`].
    pub(crate) fn check_expire(&mut self) {
        let definition = self.definition;
        if definition.expire.len() > MOST_RULES {
            let problem = Problem::plain(format!("there are {} rules; at most {MOST_RULES}", definition.expire.len()));
            self.note(&format!("expire[{MOST_RULES}]"), problem);
        }
        for (i, rule) in definition.expire.iter().enumerate() {
            let path = format!("expire[{i}].");
            for (&width, &kept) in &rule.retention {
                self.check_kept(&path, width, kept);
                if let Some(&own) = definition.retention.get(&width).filter(|own| **own <= kept) {
                    let message = format!("buckets of {width} are kept for only {own} anyway");
                    let help = "a rule can only shorten what the metric's retention says; leave it out";
                    self.note(&format!("{path}retention.{width}.kept"), Problem::new(message, help));
                }
            }
            if let Some(after) = rule.after {
                self.check_after(&path, rule, after);
            }
        }
    }

    fn check_after(&mut self, path: &str, rule: &ExpireDefinition, after: Length) {
        let kept = self.kept(rule);
        let path = format!("{path}after");
        if kept.is_empty() {
            let message = format!("every rollup is kept for at most {after} anyway");
            let help = "a rule can only shorten what the metric's retention says; leave it out";
            self.note(&path, Problem::new(message, help));
        } else if let Some(&width) = kept.keys().find(|width| **width > after.0) {
            let message = format!("buckets of {} cannot be kept for only {after}", Length(width));
            let help = "keep them for at least their own width, or say it by rollup in a table `retention`";
            self.note(&path, Problem::new(message, help));
        }
    }

    /// How long a rule keeps what it takes, where that is for less than the others.
    fn kept(&self, rule: &ExpireDefinition) -> BTreeMap<Micros, Micros> {
        let shortens = |width: &Length, after| self.definition.retention.get(width).is_none_or(|own| *own > after);
        let all = rule.after.into_iter().flat_map(|after| {
            self.widths().into_iter().filter(move |width| shortens(width, after)).map(move |width| (width.0, after.0))
        });
        all.chain(rule.retention.iter().map(|(width, kept)| (width.0, kept.0))).collect()
    }

    pub(crate) fn rules(&mut self, dimensions: &[Dimension]) -> Vec<Expiry> {
        let definition = self.definition;
        let mut rules = Vec::with_capacity(definition.expire.len());
        for (i, rule) in definition.expire.iter().enumerate() {
            let listed = definition.expire[..i].iter().any(|earlier| earlier.filter == rule.filter);
            let problem = match SeriesFilter::over(&rule.filter, dimensions) {
                Ok(_) if listed => Problem::new("the condition is listed twice", "say by rollup how long, in one rule"),
                Ok(filter) if !filter.columns().is_empty() => {
                    rules.push(Expiry { sql: rule.filter.clone(), filter, kept: self.kept(rule) });
                    continue;
                }
                Ok(_) => {
                    let help = "what holds for every series stands in the metric's own `retention`";
                    Problem::new("the condition names no dimension", help)
                }
                // That it is missing has been noted.
                Err(_) if rule.filter.is_empty() => continue,
                Err(why) => Problem::plain(why),
            };
            self.note(&format!("expire[{i}].where"), problem);
        }
        rules
    }
}
