//! Batch in a data centre of its own, on a real cluster.

use scylla::{client::session::Session, client::session_builder::SessionBuilder, value::CqlValue};

use super::{
    place::{Place, count_and_sum, event},
    process::{Backend, Lamina, Launch, run},
};

const EVENTS: usize = 3_000;
const RANGE: &str = "from=2020-01-01T00:00:00Z&to=2020-01-01T01:00:00Z&aggregate=count,sum";
/// What each node counts of the requests that it coordinated itself, per table.
const COUNTERS: [&str; 3] = ["coordinator_read_latency", "coordinator_scan_latency", "coordinator_write_latency"];

/// What this node has coordinated for the keyspace's table, as it says itself.
async fn coordinated(node: &str, keyspace: &str, table: &str) -> i64 {
    let session = only(node).await;
    let mut sum = 0;
    for counter in COUNTERS {
        let text = format!("SELECT count FROM system_views.{counter} WHERE keyspace_name = ? AND table_name = ?");
        let rows = session.query_unpaged(text, (keyspace, table)).await.unwrap().into_rows_result().unwrap();
        for row in rows.rows::<(CqlValue,)>().unwrap() {
            let CqlValue::BigInt(count) = row.unwrap().0 else { panic!("a count of another type") };
            sum += count;
        }
    }
    sum
}

/// A session whose requests all go to this node.
async fn only(node: &str) -> Session {
    let address = node.parse().unwrap();
    let only = std::sync::Arc::new(scylla::policies::host_filter::AllowListHostFilter::new([node]).unwrap());
    SessionBuilder::new().known_node_addr(address).host_filter(only).build().await.unwrap()
}

#[test]
#[ignore = "needs a cluster of two data centres: deploy/local/isolation.sh"]
fn batch_leaves_the_online_data_centre_alone() {
    let nodes = std::env::var("LAMINA_TEST_CLUSTER").expect("addresses: two nodes of dc1, one of analytics");
    let nodes: Vec<&str> = nodes.split(',').collect();
    let place = Place::new(Backend::Real);
    let keyspace = &place.name;
    let mut settings = place.settings();
    settings.addresses.cassandra = nodes[0].to_owned();
    place.runtime.block_on(async {
        let replication = "{'class': 'NetworkTopologyStrategy', 'dc1': 2, 'analytics': 1}";
        let text = format!("CREATE KEYSPACE {keyspace} WITH replication = {replication}");
        let session = SessionBuilder::new().known_node(nodes[0]).build().await.unwrap();
        session.query_unpaged(text, ()).await.unwrap();
        session.await_schema_agreement().await.unwrap();
    });
    let both = |text: String| {
        let text = text.replace("[speed]", "write_consistency = \"each_quorum\"\n[speed]");
        text.replace("[batch]", "[batch]\nlocal_dc = \"analytics\"")
    };
    let start = |name, roles: Vec<&'static str>, contact: &str| {
        let launch = Launch { roles, ..Launch::default() };
        let at = |text: String| both(text).replace(nodes[0], contact);
        Lamina::start_as(name, launch, place.path(), &settings, keyspace, at)
    };
    let config = place.path().join("migrate.toml");
    let (usual, _) = super::process::configure(place.path(), &settings, keyspace);
    std::fs::write(&config, both(std::fs::read_to_string(usual).unwrap())).unwrap();
    let migrated = run(&["migrate", "--config", &config.to_string_lossy()]);
    assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));

    let online = start("online", vec!["speed", "serving"], nodes[0]);
    let file = place.path().join("events.ndjson");
    std::fs::write(&file, (0..EVENTS).map(event).collect::<Vec<_>>().join("\n")).unwrap();
    let token = online.ingest("hits", &file);
    let _batch = start("batch", vec!["batch"], nodes[2]);
    online.until("all is sealed", || {
        let epochs = online.get("/v1/sources/hits/epochs", &[]);
        let partitions = epochs["partitions"].as_array().unwrap();
        let sealed = partitions.iter().flat_map(|one| one["epochs"].as_array().unwrap());
        let offsets = sealed.map(|epoch| epoch["end"].as_u64().unwrap() - epoch["start"].as_u64().unwrap());
        offsets.sum::<u64>() == EVENTS as u64
    });
    // Nobody asks while batch works: what the nodes coordinate of its table is batch's.
    online.recompute_all();
    online.recompute_all();
    let counts = |table: &'static str| {
        let ask = async {
            let mut counts = Vec::new();
            for node in &nodes {
                counts.push(coordinated(node, keyspace, table).await);
            }
            counts
        };
        place.runtime.block_on(ask)
    };
    let chunks = counts("batch_chunks");
    eprintln!("batch_chunks coordinated by dc1, dc1, analytics: {chunks:?}");
    assert_eq!(chunks[..2], [0, 0], "the online data centre coordinated what batch read or wrote");
    assert!(chunks[2] > 0, "analytics coordinated nothing: {chunks:?}");

    let answer = online.get(&format!("/v1/metrics/bytes/query?{RANGE}&at_least={token}"), &[]);
    let point = &answer["series"][0]["points"][0];
    assert_eq!((point["count"].as_u64(), point["sum"].as_u64()), {
        let (count, sum) = count_and_sum(EVENTS);
        (Some(count), Some(sum))
    });
    assert!(
        answer["meta"]["batch"]["generation"].as_u64() > Some(0),
        "the online data centre reads what batch wrote there"
    );
    let after = counts("batch_chunks");
    assert!(after[0] + after[1] > 0 && after[2] == chunks[2], "serving reads in its own data centre: {after:?}");
}
