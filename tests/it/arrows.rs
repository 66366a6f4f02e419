//! Who may import whom: `core` nobody, `metric` core, the layers core and metric but never each other, and only the root
//! names a backend; the simulation stands above the layers, for tests only.

use std::{fs, path::Path};

const LAYERS: [&str; 3] = ["speed", "batch", "serving"];
const BACKENDS: [&str; 3] = ["rdkafka", "scylla", "fjall"];

fn manifest(folder: &str) -> toml::Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("Cargo.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of all dependencies of a crate, those of its tests included.
fn dependencies(folder: &str) -> Vec<String> {
    let manifest = manifest(folder);
    let tables = ["dependencies", "dev-dependencies", "build-dependencies"];
    let names = tables.iter().filter_map(|table| manifest.get(*table)?.as_table()).flat_map(|table| table.keys());
    names.cloned().collect()
}

fn ours(folder: &str) -> Vec<String> {
    dependencies(folder).into_iter().filter(|name| name.starts_with("lamina-")).collect()
}

#[test]
fn core_imports_nothing_of_ours_and_metric_only_core() {
    assert_eq!(ours("core"), Vec::<String>::new());
    assert_eq!(ours("metric"), ["lamina-core"]);
}

#[test]
fn layers_do_not_know_each_other() {
    for layer in LAYERS {
        let foreign: Vec<_> =
            ours(layer).into_iter().filter(|name| name != "lamina-core" && name != "lamina-metric").collect();
        assert!(foreign.is_empty(), "{layer} imports {foreign:?}; share through lamina-core");
    }
}

#[test]
fn only_the_simulation_knows_all_layers_and_nobody_knows_it() {
    assert_eq!(ours("sim"), ["lamina-batch", "lamina-core", "lamina-metric", "lamina-serving", "lamina-speed"]);
    for folder in ["core", "metric", "speed", "batch", "serving", "."] {
        assert!(!ours(folder).contains(&"lamina-sim".to_owned()), "{folder} imports the simulation");
    }
}

#[test]
fn only_the_root_names_a_backend() {
    for folder in ["core", "metric", "speed", "batch", "serving", "sim"] {
        let named: Vec<_> = dependencies(folder).into_iter().filter(|name| BACKENDS.contains(&name.as_str())).collect();
        assert!(named.is_empty(), "{folder} names {named:?}; go through the traits of lamina-core");
    }
}

#[test]
fn the_oracle_of_chaos_imports_nothing_of_ours() {
    assert_eq!(ours("chaos"), Vec::<String>::new());
}

#[test]
fn every_crate_says_what_it_is_for() {
    for folder in ["core", "metric", "speed", "batch", "serving", "sim", "."] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("src/lib.rs");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(text.starts_with("//!"), "{} does not open with what the crate is for", path.display());
    }
}
