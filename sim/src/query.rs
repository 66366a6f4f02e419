//! Queries as readers ask them.

use std::collections::BTreeMap;

use lamina_core::{Micros, Offset, Partition};

use crate::{
    plan::{GRAIN, SECOND},
    random::Random,
    world::Who,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layer {
    Merged,
    Batch,
    Speed,
}

#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) metric: &'static str,
    pub(crate) from: Micros,
    pub(crate) to: Micros,
    pub(crate) step: Option<Micros>,
    pub(crate) group_by: Vec<&'static str>,
    pub(crate) filter: Option<(&'static str, String)>,
    pub(crate) layer: Layer,
    /// A position token, and the positions that it stands for.
    pub(crate) at_least: Option<(String, BTreeMap<Partition, Offset>)>,
}

/// A question and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) number: u64,
    pub(crate) who: Who,
    pub(crate) query: Query,
    pub(crate) at: Micros,
    /// What had been sealed for every quorum reader to see when it was asked.
    pub(crate) sealed: BTreeMap<Partition, Offset>,
    /// Whether everything was covered: the answer must be whole.
    pub(crate) is_final: bool,
}

impl Query {
    /// Everything there is, by all dimensions and the finest buckets.
    pub(crate) fn whole(metric: &'static str, begin: Micros) -> Self {
        let group_by = match metric {
            "added" => vec!["page", "country"],
            "hits" => vec!["country"],
            _ => vec!["page"],
        };
        let minute = 60 * SECOND;
        Self {
            metric,
            from: (begin - 7_200 * SECOND).div_euclid(minute) * minute,
            to: (begin + 3_600 * SECOND).div_euclid(minute) * minute,
            step: Some(if metric == "late" { minute } else { GRAIN }),
            group_by,
            filter: None,
            layer: Layer::Merged,
            at_least: None,
        }
    }

    pub(crate) fn random(random: &mut Random, metrics: &[&'static str], begin: Micros) -> Self {
        let mut query = Self::whole(metrics[random.below(metrics.len() as u64) as usize], begin);
        let minute = 60 * SECOND;
        if query.metric == "added" {
            query.group_by =
                [vec![], vec!["page"], vec!["country"], vec!["page", "country"]][random.below(4) as usize].clone();
            if random.permille(200) {
                query.filter = Some(("page", format!("p{}", random.below(4))));
            }
        } else if random.permille(300) {
            query.group_by = Vec::new();
        }
        query.step = match random.below(4) {
            0 => None,
            1 => Some(minute),
            2 => Some(10 * minute),
            _ => query.step,
        };
        if random.permille(200) {
            query.from = (begin - random.within(0, 600) * SECOND).div_euclid(minute) * minute;
            query.to = query.from + random.within(1, 20) * minute;
        }
        query.layer = match random.below(8) {
            0 => Layer::Batch,
            1 => Layer::Speed,
            _ => Layer::Merged,
        };
        query
    }

    pub(crate) fn uri(&self) -> String {
        let mut uri = format!("/v1/metrics/{}/query?from={}&to={}", self.metric, self.from / 1000, self.to / 1000);
        if let Some(step) = self.step {
            uri.push_str(&format!("&step={}s", step / SECOND));
        }
        if !self.group_by.is_empty() {
            uri.push_str(&format!("&group_by={}", self.group_by.join(",")));
        }
        if let Some((name, value)) = &self.filter {
            uri.push_str(&format!("&where={name}%3D%27{value}%27"));
        }
        match self.layer {
            Layer::Merged => {}
            Layer::Batch => uri.push_str("&layer=batch"),
            Layer::Speed => uri.push_str("&layer=speed"),
        }
        if let Some((token, _)) = &self.at_least {
            uri.push_str(&format!("&at_least={token}"));
        }
        uri
    }

    /// The dimensions of the view that answers.
    pub(crate) fn view(&self) -> Vec<&'static str> {
        let needs =
            |name: &str| self.group_by.contains(&name) || self.filter.as_ref().is_some_and(|(own, _)| *own == name);
        match (self.metric, needs("page"), needs("country")) {
            (_, false, false) => vec![],
            ("added", true, false) | ("late", ..) => vec!["page"],
            ("hits", ..) => vec!["country"],
            _ => vec!["page", "country"],
        }
    }

    /// Whether the view has a cap that is ever reached.
    pub(crate) fn is_capped(&self) -> bool {
        self.metric == "added"
    }
}
