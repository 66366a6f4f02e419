//! What is remembered of every definition, and what a change of them makes of it.
//!
//! # Invariants
//! - A name never gets an old version again, and a version never means something else.
//! - A changed metric goes on answering as it did while batch builds its new version from the archive; once that lacks
//!   nothing, the two are exchanged in one step. Where there is nothing to go on with (a new metric, a topic that was made
//!   again, a source under which the old version means something else) the new version answers at once, and its answers
//!   say what they lack.
//! - A version that no longer answers is folded a little longer, as some process may not know yet.

use std::collections::BTreeMap;

use lamina_core::Micros;
use lamina_metric::{Catalog, Diagnostic, Metric, Source, SourceDefinition, Versions};
use serde::{Deserialize, Serialize};

/// How long a version that no longer answers is folded: other processes look for changes every few seconds, and a query
/// under way has its time-out.
const RETIRING: Micros = 60_000_000;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) revision: u64,
    sources: BTreeMap<String, KnownSource>,
    metrics: BTreeMap<String, KnownMetric>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KnownSource {
    fingerprint: String,
    /// Id of its topic, once it was seen.
    topic: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KnownMetric {
    answers: KnownVersion,
    /// Will answer once batch has built it.
    building: Option<KnownVersion>,
    /// Answered before, and until when it is folded.
    retiring: Option<(KnownVersion, Micros)>,
    last_version: u32,
    /// False once removed; it is remembered so that the name never gets an old version again.
    active: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KnownVersion {
    version: u32,
    /// The revision since which it counts epochs.
    since: u64,
    fingerprint: String,
    /// The definition alone, as TOML.
    metric: String,
    /// Its source's as it was, as TOML.
    source: String,
}

impl Known {
    /// What is known once `draft` is in force: an unchanged metric over an unchanged topic keeps its version, and the
    /// versions `built`, by metric, begin to answer.
    pub(super) fn with(
        &self,
        draft: &Catalog,
        topics: &BTreeMap<String, String>,
        built: &BTreeMap<String, u32>,
        now: Micros,
    ) -> Self {
        let since = self.revision + 1;
        let inactive =
            |known: &KnownMetric| KnownMetric { building: None, retiring: None, active: false, ..known.clone() };
        let mut metrics: BTreeMap<_, _> =
            self.metrics.iter().map(|(name, known)| (name.clone(), inactive(known))).collect();
        for (name, metric) in &draft.metrics {
            let same_topic = !self.topic_changed(&metric.source.name, topics);
            let before = self.metrics.get(name).filter(|known| known.active && same_topic);
            let next = match before {
                Some(known) => known.with(draft, metric, since, built.get(name).copied(), now),
                None => {
                    let last_version = self.metrics.get(name).map_or(0, |known| known.last_version) + 1;
                    let answers = KnownVersion::new(metric, last_version, since);
                    KnownMetric { answers, building: None, retiring: None, last_version, active: true }
                }
            };
            metrics.insert(name.clone(), next);
        }
        let source = |(name, source): (&String, &std::sync::Arc<Source>)| {
            let before = self.sources.get(name).and_then(|known| known.topic.clone());
            let topic = topics.get(name).cloned().or(before);
            (name.clone(), KnownSource { fingerprint: source.definition.fingerprint(), topic })
        };
        let sources = draft.sources.iter().map(source).collect();
        let next = Self { revision: self.revision, sources, metrics };
        // that a topic is seen for the first time changes no definition
        let forget = |known: &Self| known.sources.values().map(|source| source.fingerprint.clone()).collect::<Vec<_>>();
        let same = next.metrics == self.metrics && forget(&next) == forget(self) && self.revision > 0;
        if same { next } else { Self { revision: since, ..next } }
    }

    /// Whether these are the definitions of this catalogue, whatever their topics.
    pub(super) fn is_of(&self, catalog: &Catalog) -> bool {
        let sources = self.sources.iter().map(|(name, known)| (name, known.fingerprint.clone()));
        let metrics = self.metrics.iter().filter(|(_, known)| known.active);
        let metrics = metrics.map(|(name, known)| (name, known.latest().fingerprint.clone()));
        sources.eq(catalog.sources.iter().map(|(name, source)| (name, source.definition.fingerprint())))
            && metrics.eq(catalog.metrics.iter().map(|(name, metric)| (name, metric.fingerprint())))
    }

    fn topic_changed(&self, source: &str, topics: &BTreeMap<String, String>) -> bool {
        let before = self.sources.get(source).and_then(|known| known.topic.as_ref());
        matches!((before, topics.get(source)), (Some(before), Some(now)) if before != now)
    }

    /// The versions that the definitions in force have.
    pub(super) fn versions(&self) -> Versions {
        let latest = |(name, known): (&String, &KnownMetric)| (name.clone(), known.latest().key());
        Versions { revision: self.revision, metrics: self.metrics.iter().map(latest).collect() }
    }

    /// Gives each version of `catalog`, compiled with [`Known::versions`], its place, and adds those beside them.
    ///
    /// # Errors
    /// If an earlier version does not compile, which [`Known::with`] has seen it do.
    pub(super) fn place(&self, mut catalog: Catalog) -> Result<Catalog, Vec<Diagnostic>> {
        for (name, known) in self.metrics.iter().filter(|(_, known)| known.active) {
            if known.building.is_some() {
                let answers = known.answers.compile(name, &catalog)?.into();
                if let Some(latest) = catalog.metrics.insert(name.clone(), answers) {
                    catalog.building.insert(name.clone(), latest);
                }
            }
            if let Some((retiring, _)) = &known.retiring {
                let retiring = retiring.compile(name, &catalog)?;
                catalog.retiring.push(retiring.into());
            }
        }
        Ok(catalog)
    }
}

impl KnownMetric {
    fn latest(&self) -> &KnownVersion {
        self.building.as_ref().unwrap_or(&self.answers)
    }

    fn with(&self, draft: &Catalog, metric: &Metric, since: u64, built: Option<u32>, now: Micros) -> Self {
        let name = &metric.name;
        let mut next = self.clone();
        next.retiring.take_if(|(version, until)| *until <= now || !version.goes_on(name, draft));
        let fingerprint = metric.fingerprint();
        if self.answers.fingerprint == fingerprint {
            next.building = None;
            return next;
        }
        if self.latest().fingerprint != fingerprint {
            next.last_version += 1;
            next.building = Some(KnownVersion::new(metric, next.last_version, since));
        }
        let goes_on = self.answers.goes_on(name, draft);
        // What was seen to be built may be older than what others have asked for since.
        if let Some(latest) = next.building.take_if(|building| built == Some(building.version) || !goes_on) {
            let before = std::mem::replace(&mut next.answers, latest);
            next.retiring = goes_on.then(|| (before, now.saturating_add(RETIRING)));
        }
        next
    }
}

impl KnownVersion {
    fn new(metric: &Metric, version: u32, since: u64) -> Self {
        // What was read from TOML can be written as such.
        let text = metric.definition.to_toml(&metric.name).unwrap_or_default();
        let source = toml::to_string(&metric.source.definition).unwrap_or_default();
        Self { version, since, fingerprint: metric.fingerprint(), metric: text, source }
    }

    fn key(&self) -> (u32, u64) {
        (self.version, self.since)
    }

    fn compile(&self, name: &str, catalog: &Catalog) -> Result<Metric, Vec<Diagnostic>> {
        catalog.version(&format!("version {} of metric {name}", self.version), &self.metric, self.key())
    }

    /// Whether it means over the sources of `draft` what it meant when it was defined.
    fn goes_on(&self, name: &str, draft: &Catalog) -> bool {
        let Ok(before) = toml::from_str::<SourceDefinition>(&self.source) else { return false };
        self.compile(name, draft).is_ok_and(|metric| metric.source.definition.extends(&before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str =
        "[source.s]\nformat = \"json\"\ntime = \"t\"\n[source.s.fields]\nt = \"timestamp\"\nv = \"int64\"\n";
    const NOW: Micros = 1_000_000;

    fn catalog_over(source: &str, metrics: &str) -> Catalog {
        Catalog::compile(&[("m.toml".to_owned(), format!("{source}{metrics}"))], &Versions::default()).unwrap()
    }

    fn catalog(metrics: &str) -> Catalog {
        catalog_over(SOURCE, metrics)
    }

    fn metric(name: &str, grain: &str) -> String {
        format!("[metric.{name}]\nsource = \"s\"\nvalue = \"v\"\naggregates = [\"sum\"]\ngrain = \"{grain}\"\n")
    }

    fn topic(id: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("s".to_owned(), id.to_owned())])
    }

    fn with(known: &Known, draft: &Catalog) -> Known {
        known.with(draft, &BTreeMap::new(), &BTreeMap::new(), NOW)
    }

    /// Version `version` of the metric `a` was seen to be built.
    fn built(known: &Known, draft: &Catalog, version: u32) -> Known {
        known.with(draft, &BTreeMap::new(), &BTreeMap::from([("a".to_owned(), version)]), NOW)
    }

    /// Version and first revision of what answers, and versions of what is built and retires.
    fn state(known: &Known, name: &str) -> ((u32, u64), Option<u32>, Option<u32>) {
        let known = &known.metrics[name];
        let version = |known: &KnownVersion| known.version;
        (
            known.answers.key(),
            known.building.as_ref().map(version),
            known.retiring.as_ref().map(|(one, _)| version(one)),
        )
    }

    #[test]
    fn only_what_changed_gets_a_new_version_and_the_old_one_answers_until_that_is_built() {
        let first = with(&Known::default(), &catalog(&(metric("a", "1m") + &metric("b", "1m"))));
        assert_eq!((first.revision, state(&first, "a"), state(&first, "b").0), (1, ((1, 1), None, None), (1, 1)));
        let same = first.with(&catalog(&(metric("b", "1m") + &metric("a", "1m"))), &topic("x"), &BTreeMap::new(), NOW);
        assert_eq!((same.revision, state(&same, "a").0), (1, (1, 1)));
        let draft = catalog(&(metric("a", "1h") + &metric("b", "1m")));
        let changed = with(&same, &draft);
        assert_eq!((changed.revision, state(&changed, "a")), (2, ((1, 1), Some(2), None)));
        assert_eq!(state(&changed, "b"), ((1, 1), None, None));
        assert!(changed.is_of(&draft) && with(&changed, &draft) == changed);
        let switched = built(&changed, &draft, 2);
        assert_eq!((switched.revision, state(&switched, "a")), (3, ((2, 2), None, Some(1))));
        let later = switched.with(&draft, &BTreeMap::new(), &BTreeMap::new(), NOW + RETIRING);
        assert_eq!((later.revision, state(&later, "a")), (4, ((2, 2), None, None)));
    }

    #[test]
    fn a_change_that_is_taken_back_or_made_again_while_it_is_built_needs_no_old_number() {
        let (first, second, third) = (metric("a", "1m"), metric("a", "1h"), metric("a", "1d"));
        let known = with(&with(&Known::default(), &catalog(&first)), &catalog(&second));
        let back = with(&known, &catalog(&first));
        assert_eq!((back.revision, state(&back, "a")), (3, ((1, 1), None, None)));
        let again = with(&back, &catalog(&second));
        assert_eq!((again.revision, state(&again, "a")), (4, ((1, 1), Some(3), None)));
        assert_eq!(state(&built(&again, &catalog(&second), 2), "a"), ((1, 1), Some(3), None), "another was built");
        let other = built(&again, &catalog(&third), 3);
        assert_eq!(state(&other, "a"), ((1, 1), Some(4), None), "what was built is not what is asked for now");
    }

    #[test]
    fn every_version_is_compiled_in_its_place() {
        let draft = catalog(&metric("a", "1h"));
        let known = with(&with(&Known::default(), &catalog(&metric("a", "1m"))), &draft);
        let place = |known: &Known| {
            let text = format!("{SOURCE}{}", metric("a", "1h"));
            known.place(Catalog::compile(&[("m.toml".to_owned(), text)], &known.versions()).unwrap()).unwrap()
        };
        let one = |metric: &Metric| (metric.version, metric.since, metric.grain);
        let placed = place(&known);
        assert_eq!(one(&placed.metrics["a"]), (1, 1, 60_000_000));
        assert_eq!(one(&placed.building["a"]), (2, 2, 3_600_000_000));
        assert_eq!(one(placed.latest("a").unwrap()), one(&placed.building["a"]));
        assert_eq!(placed.metrics_of("s").count(), 2);
        let placed = place(&built(&known, &draft, 2));
        assert_eq!(one(&placed.metrics["a"]), (2, 2, 3_600_000_000));
        assert_eq!(one(&placed.retiring[0]), (1, 1, 60_000_000));
        assert!(placed.building.is_empty() && placed.metrics_of("s").count() == 2);
    }

    #[test]
    fn a_source_that_only_adds_a_field_lets_old_versions_go_on() {
        let known = with(&Known::default(), &catalog(&metric("a", "1m")));
        let wider = with(&known, &catalog_over(&format!("{SOURCE}more = \"string\"\n"), &metric("a", "1m")));
        assert_eq!(state(&wider, "a"), ((1, 1), Some(2), None));
        for other in [
            SOURCE.replace("v = \"int64\"", "v = \"float64\""),
            SOURCE.replace("time = \"t\"", "time = \"to_timestamp(v)\""),
        ] {
            let changed = with(&known, &catalog_over(&other, &metric("a", "1m")));
            assert_eq!(state(&changed, "a"), ((2, 2), None, None), "{other}");
            let changed = with(&wider, &catalog_over(&other, &metric("a", "1m")));
            assert_eq!(state(&changed, "a"), ((3, 3), None, None), "{other}");
        }
    }

    #[test]
    fn a_metric_that_comes_back_counts_anew() {
        let both = with(&Known::default(), &catalog(&(metric("a", "1m") + &metric("b", "1m"))));
        let without = with(&both, &catalog(&metric("a", "1m")));
        assert_eq!(without.revision, 2);
        let back = with(&without, &catalog(&(metric("a", "1m") + &metric("b", "1m"))));
        assert_eq!((back.revision, state(&back, "a").0, state(&back, "b").0), (3, (1, 1), (2, 3)));
    }

    #[test]
    fn a_topic_that_was_made_again_makes_new_versions() {
        let definitions = catalog(&metric("a", "1m"));
        let with = |known: &Known, topics| known.with(&definitions, &topics, &BTreeMap::new(), NOW);
        let known = with(&with(&Known::default(), topic("x")), topic("x"));
        assert_eq!(state(&known, "a").0, (1, 1));
        let unseen = with(&known, BTreeMap::new());
        assert_eq!(unseen, known, "a log that does not answer changes nothing");
        let again = with(&known, topic("y"));
        assert_eq!((again.revision, state(&again, "a")), (2, ((2, 2), None, None)));
    }
}
