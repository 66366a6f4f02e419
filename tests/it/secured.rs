//! A broker that demands TLS and SASL, and a node that demands TLS and a password.

use std::{
    fs,
    process::Output,
    time::{Duration, Instant},
};

use super::{
    place::{Place, count_and_sum, event},
    process::{Backend, Lamina, Launch, run},
};

const EVENTS: usize = 300;

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
#[ignore = "needs a broker and a node that demand TLS and passwords: deploy/local/secured.sh"]
fn a_password_opens_kafka_and_cassandra() {
    let given =
        std::env::var("LAMINA_TEST_SECURED").expect("addresses of the broker and of the node, and certificates");
    let [kafka, cassandra, right_ca, other_ca] = given.split(',').collect::<Vec<_>>().try_into().expect("four");
    let place = Place::new(Backend::Embedded);
    fs::write(place.path().join("of-lamina"), "of lamina\n").unwrap();
    fs::write(place.path().join("of-cassandra"), "cassandra\n").unwrap();
    fs::write(place.path().join("wrong"), "wrong\n").unwrap();
    let (settings, keyspace) = (place.settings(), place.name.as_str());
    let secured = |log_password: &str, store_password: &str, ca: &str| {
        let log = format!(
            "[log]\nkind = \"kafka\"\nbrokers = \"{kafka}\"\nusername = \"lamina\"\npassword_file = \"{log_password}\"\n"
        );
        let store = format!(
            "[store]\nkind = \"cassandra\"\ncontact_points = [\"{cassandra}\"]\nkeyspace = \"{keyspace}\"\n\
             username = \"cassandra\"\npassword_file = \"{store_password}\"\n\
             [store.tls]\nca = \"{ca}\"\n"
        );
        let options = format!(
            "[log.options]\n\"security.protocol\" = \"sasl_ssl\"\n\"sasl.mechanism\" = \"SCRAM-SHA-512\"\n\
             \"ssl.ca.location\" = \"{ca}\"\n[store]\n"
        );
        move |text: String| {
            let text = text.replace("[store]\nkind = \"embedded\"\n", &store);
            text.replace("[log]\nkind = \"embedded\"\n", &log).replacen("[store]\n", &options, 1)
        }
    };
    let (config, _) = super::process::configure(place.path(), &settings, keyspace);
    let usual = fs::read_to_string(&config).unwrap();
    let migrate = |store_password: &str, ca: &str| {
        fs::write(&config, secured("of-lamina", store_password, ca)(usual.clone())).unwrap();
        run(&["migrate", "--config", &config.to_string_lossy()])
    };
    // The first superuser comes a moment after the node.
    let from = Instant::now();
    while !migrate("of-cassandra", right_ca).status.success() {
        assert!(from.elapsed() < Duration::from_secs(60), "{}", errors(&migrate("of-cassandra", right_ca)));
        std::thread::sleep(Duration::from_secs(1));
    }
    let refused = migrate("wrong", right_ca);
    assert!(!refused.status.success(), "a wrong password opens Cassandra");
    assert!(!errors(&refused).contains("of lamina"), "{}", errors(&refused));
    let refused = migrate("of-cassandra", other_ca);
    assert!(!refused.status.success(), "a node that nobody vouches for is given the password");
    assert!(errors(&refused).contains("certificate"), "{}", errors(&refused));

    let start = |name, change| Lamina::start_as(name, Launch::default(), place.path(), &settings, keyspace, change);
    let lamina = start("right", secured("of-lamina", "of-cassandra", right_ca));
    let file = place.path().join("events.ndjson");
    fs::write(&file, (0..EVENTS).map(event).collect::<Vec<_>>().join("\n")).unwrap();
    let token = lamina.ingest("hits", &file);
    let range = "from=2020-01-01T00:00:00Z&to=2020-01-01T01:00:00Z&aggregate=count,sum";
    let answer = lamina.get(&format!("/v1/metrics/bytes/query?{range}&wait=30s&at_least={token}"), &[]);
    let point = &answer["series"][0]["points"][0];
    let (count, sum) = count_and_sum(EVENTS);
    assert_eq!((point["count"].as_u64(), point["sum"].as_u64()), (Some(count), Some(sum)));
    drop(lamina);

    // With a wrong password for the broker a process lives and is not ready.
    // The same if nobody vouches for the broker.
    for (name, password, ca_of_log) in [("wrong", "wrong", right_ca), ("stranger", "of-lamina", other_ca)] {
        let change = secured(password, "of-cassandra", right_ca);
        let change = |text| {
            change(text).replace(
                &format!("\"ssl.ca.location\" = \"{right_ca}\""),
                &format!("\"ssl.ca.location\" = \"{ca_of_log}\""),
            )
        };
        let mut launched = Lamina::launch_as(name, place.path(), &settings, keyspace, change);
        let ready = launched.readiness_within(Duration::from_secs(8));
        assert!(ready.contains("503") && ready.contains("log"), "{name}: Kafka is open: {ready}");
        launched.kill();
    }
    let log = fs::read_to_string(place.path().join("lamina.log")).unwrap();
    assert!(!log.contains("of lamina") && !log.contains("password="), "a log holds a password");
}
