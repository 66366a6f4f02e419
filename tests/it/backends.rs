//! Every backend passes the same suites.

use lamina::backends::embedded;
use lamina_core::conformance::{log_suite, store_suite};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_log_keeps_the_laws_of_a_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let embedded = embedded::open(folder.path()).expect("open");
    log_suite(&*embedded.log, "it").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_keeps_the_laws_of_a_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let embedded = embedded::open(folder.path()).expect("open");
    store_suite(&*embedded.store).await;
}
