//! Derived metrics have no versions: a changed one holds at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lamina_metric::{Catalog, Derived, DerivedDefinition};
use lamina_serving::registry::DefinitionKind;

/// The derived metrics as they are defined.
pub(super) fn derived(catalog: &Catalog) -> BTreeMap<&str, &DerivedDefinition> {
    catalog.derived.iter().map(|(name, derived)| (name.as_str(), &derived.definition)).collect()
}

/// What reads a definition, in words.
pub(super) fn users(catalog: &Catalog, kind: DefinitionKind, name: &str) -> Option<String> {
    let (what, users): (_, BTreeSet<&str>) = match kind {
        DefinitionKind::Source => ("metrics", catalog.metrics_of(name).map(|metric| metric.name.as_str()).collect()),
        DefinitionKind::Metric => {
            let made_of = |derived: &&Arc<Derived>| derived.metrics().any(|metric| metric == name);
            let users = catalog.derived.values().filter(made_of).map(|derived| derived.name.as_str());
            ("derived metrics", users.collect())
        }
        DefinitionKind::Derived => return None,
    };
    (!users.is_empty()).then(|| format!("{what} {} read it", users.into_iter().collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use lamina_serving::registry::{DefinitionBody, Put, Registry, RegistryError};

    use super::*;
    use crate::{backends::embedded, registry::Definitions};

    const BASE: &str = r#"
[source.s]
format = "json"
time = "t"
[source.s.fields]
t = "timestamp"
v = "int64"
"#;
    const METRIC: &str = "source = \"s\"\nvalue = \"v\"\naggregates = [\"sum\"]\ngrain = \"1m\"\n";

    #[tokio::test]
    async fn a_derived_metric_is_in_force_at_once_without_a_new_revision() {
        let folder = tempfile::tempdir().unwrap();
        let backends = embedded::open(folder.path()).unwrap();
        let built_in = vec![("m.toml".to_owned(), BASE.to_owned())];
        let all = Definitions::new(Vec::new(), built_in, Arc::clone(&backends.store), Arc::clone(&backends.log) as _);
        all.refresh().await.unwrap();
        let put =
            async |kind, name: &str, text: &str| all.put(kind, name, DefinitionBody::Toml(text.to_owned()), None).await;
        let (metric, derived) = (DefinitionKind::Metric, DefinitionKind::Derived);
        let wrong = put(derived, "double", "expression = \"2 * a\"").await;
        assert!(matches!(wrong, Err(RegistryError::Invalid(_))), "its metric is not there yet");
        assert_eq!(put(metric, "a", METRIC).await.unwrap(), Put::Created);
        let revision = all.watch().borrow().revision;
        assert_eq!(put(derived, "double", "expression = \"2 * a\"").await.unwrap(), Put::Created);
        assert_eq!(put(derived, "double", "expression = \"2 * a\"").await.unwrap(), Put::Unchanged);
        assert_eq!(put(derived, "double", "expression = \"2 * sum(a)\"").await.unwrap(), Put::Changed);
        let expression = all.watch().borrow().derived["double"].definition.expression.clone();
        assert_eq!((expression.as_str(), all.watch().borrow().revision), ("2 * sum(a)", revision));
        let used = all.delete(metric, "a", None).await;
        assert!(matches!(&used, Err(RegistryError::InUse(why)) if why.contains("double")), "{used:?}");
        let without = put(metric, "a", &METRIC.replace("sum", "count")).await;
        assert!(matches!(without, Err(RegistryError::Invalid(_))), "a sum is asked of it");
        all.delete(derived, "double", None).await.unwrap();
        assert!(all.watch().borrow().derived.is_empty());
        all.delete(metric, "a", None).await.unwrap();
    }
}
