//! How long the chunks of a view are kept: its rollup's retention, or less where a rule takes their series.

use std::collections::BTreeMap;

use lamina_core::Micros;
use lamina_metric::Series;

use crate::{BatchError, open::Target};

impl Target {
    /// From which period on the chunks of each of these series are kept, as far as periods from `earliest` on go.
    pub(crate) fn kept_from(
        &self,
        width: Micros,
        earliest: Micros,
        series: &[&Series],
    ) -> Result<Vec<Micros>, BatchError> {
        let all = self.horizons.get(&width).copied().unwrap_or(Micros::MIN);
        let rules = self.rule_horizons.get(&width).into_iter().flatten().filter(|(_, at)| **at > earliest.max(all));
        let rules = rules.map(|(&rule, &at)| (rule, at)).collect();
        let found = self.by_rules(&rules, Micros::max, series)?;
        Ok(found.into_iter().map(|found| found.unwrap_or(all)).collect())
    }

    /// How long after its end a chunk of each of these series is kept; `None` is for ever.
    pub(crate) fn kept_for(&self, width: Micros, series: &[&Series]) -> Result<Vec<Option<Micros>>, BatchError> {
        let all = self.metric.retention.get(&width).copied();
        let rules = self.metric.expire.iter().enumerate().filter(|(_, rule)| rule.concerns(&self.view));
        let rules = rules.filter_map(|(at, rule)| Some((at, *rule.kept.get(&width)?))).collect();
        let found = self.by_rules(&rules, Micros::min, series)?;
        Ok(found.into_iter().map(|found| found.or(all)).collect())
    }

    /// Without rules no series is looked at.
    fn by_rules(
        &self,
        values: &BTreeMap<usize, Micros>,
        best: fn(Micros, Micros) -> Micros,
        series: &[&Series],
    ) -> Result<Vec<Option<Micros>>, BatchError> {
        if values.is_empty() {
            return Ok(vec![None; series.len()]);
        }
        self.metric.by_rules(&self.view, values, best, series).map_err(BatchError::Rules)
    }
}
