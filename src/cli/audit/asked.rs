//! What was asked of the server, and what it answered.

use std::{collections::BTreeMap, sync::Arc};

use chrono::DateTime;
use lamina_core::{Micros, Offset, Partition, Segment};
use lamina_metric::{Length, Metric, time::format_time};
use serde_json::Value;

/// A bucket of one view, as it was answered.
pub(super) struct Asked {
    pub(super) metric: Arc<Metric>,
    /// Index into the metric's views.
    pub(super) view: usize,
    pub(super) width: Micros,
    pub(super) bucket: Micros,
    pub(super) answer: Value,
    pub(super) positions: BTreeMap<Partition, Offset>,
    /// Rules of expiry, by index, whose series the answer leaves out, and where they begin: past the bucket.
    pub(super) expired: BTreeMap<usize, Micros>,
}

impl Asked {
    pub(super) fn touches(&self, file: &Segment) -> bool {
        file.event_time().is_some_and(|(first, last)| first < self.bucket + self.width && last >= self.bucket)
    }

    /// The rules that an answer names, by index, with their horizons.
    pub(super) fn expired_in(&self, answer: &Value) -> Result<BTreeMap<usize, Micros>, String> {
        let one = |named: &Value| {
            let rule = self.metric.expire.iter().position(|rule| named["where"] == rule.sql);
            let horizon = named["retained_from"].as_str().and_then(|text| DateTime::parse_from_rfc3339(text).ok());
            let known = rule.zip(horizon.map(|horizon| horizon.timestamp_micros()));
            known.ok_or_else(|| format!("the answer names a rule of expiry that is not the metric's: {named}"))
        };
        answer["meta"]["expired"].as_array().into_iter().flatten().map(one).collect()
    }

    pub(super) fn place(&self) -> String {
        let step = Length(self.width);
        format!("{} {} {step} by {:?}", self.metric.name, format_time(self.bucket), self.dimensions())
    }

    pub(super) fn dimensions(&self) -> Vec<&str> {
        let view = &self.metric.views[self.view];
        view.dimensions.iter().map(|&at| self.metric.dimensions[at].name.as_str()).collect()
    }
}
