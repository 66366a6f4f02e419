//! Keys, TLS and the audit log of a lamina that runs, through its own command line.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    place::{Place, event},
    process::{Backend, LAMINA, Lamina, configure, run},
};

fn text(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn done(output: &Output) -> String {
    let (out, errors) = text(output);
    assert!(output.status.success(), "{errors}");
    out
}

/// Runs a command as whoever holds the key in the file.
fn run_as(key: &Path, arguments: &[&str]) -> Output {
    let key = key.to_string_lossy();
    run(&[arguments, &["--key-file", &key]].concat())
}

#[test]
fn elsewhere_than_on_loopback_lamina_starts_only_once_there_is_a_key() {
    let place = Place::new(Backend::Embedded);
    let (config, port) = configure(place.path(), &place.settings(), &place.name);
    let everywhere = place.path().join("everywhere.toml");
    let text_of = fs::read_to_string(&config).unwrap();
    fs::write(&everywhere, text_of.replace(&format!("127.0.0.1:{port}"), &format!("0.0.0.0:{port}"))).unwrap();
    let refused = run(&["serve", "--config", &everywhere.to_string_lossy()]);
    let (_, errors) = text(&refused);
    assert_eq!(refused.status.code(), Some(2), "{errors}");
    assert!(errors.contains("loopback") && errors.contains("lamina keys create"), "{errors}");
    let refused = run(&["serve", "--config", &everywhere.to_string_lossy(), "--role", "executor"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused).1);
    for (wrong, named) in [
        (
            "[http.auth.jwt]\nissuer = \"i\"\naudience = \"a\"\njwks_url = \"http://h/\"\nalgorithms = [\"HS256\"]\n",
            "HS256",
        ),
        ("[http.tls]\ncert = \"none.pem\"\nkey = \"none.pem\"\n", "none.pem"),
        ("[http.limits]\nburst = 0\n", "http.limits.burst"),
        ("[http.auth]\nrequire = true\n", "require"),
    ] {
        let path = place.path().join("lamina.toml");
        fs::write(&path, format!("{text_of}{wrong}")).unwrap();
        let refused = run(&["serve", "--config", &path.to_string_lossy()]);
        let (_, errors) = text(&refused);
        assert!(refused.status.code() == Some(2) && errors.contains(named), "{errors}");
    }
}

#[test]
fn keys_are_made_in_the_store_and_over_http_and_no_log_holds_them() {
    let place = Place::new(Backend::Embedded);
    let (config, _) = configure(place.path(), &place.settings(), &place.name);
    let in_store = |arguments: &[&str]| run(&[arguments, &["--config", &config.to_string_lossy()]].concat());
    let file = |name: &str, secret: &str| -> PathBuf {
        let path = place.path().join(name);
        fs::write(&path, secret).unwrap();
        path
    };
    let root = done(&in_store(&["keys", "create", "root", "--scopes", "admin"]));
    assert!(root.starts_with("lam_") && root.len() == 64, "{root}");
    let root_key = file("root.key", &root);
    let listed: Value = serde_json::from_str(&done(&in_store(&["keys", "list", "--output", "json"]))).unwrap();
    assert_eq!((&listed["keys"][0]["name"], listed["keys"].as_array().unwrap().len()), (&"root".into(), 1));
    let refused = in_store(&["keys", "create", "x", "--scopes", "admin", "--row", "site=a"]);
    assert!(refused.status.code() == Some(2) && text(&refused).1.contains("rows"), "{refused:?}");

    let lamina = Lamina::start(place.path(), &place.settings(), &place.name);
    let server = ["--server", lamina.url.as_str()];
    let over_http = |arguments: &[&str]| run_as(&root_key, &[arguments, &server].concat());
    let without = run(&[&["freshness"][..], &server].concat());
    assert!(text(&without).1.contains("401"), "{without:?}");
    let busy = run(&["keys", "list", "--config", &place.path().join("lamina.toml").to_string_lossy()]);
    assert!(busy.status.code() == Some(2) && text(&busy).1.contains("--server"), "{busy:?}");

    let writer = done(&over_http(&["keys", "create", "writer", "--scopes", "events:write"]));
    let writer_key = file("writer.key", &writer);
    let bound = done(&over_http(&["keys", "create", "bound", "--scopes", "metrics:read", "--row", "site=a"]));
    let bound_key = file("bound.key", &bound);
    let events = place.path().join("events.ndjson");
    fs::write(&events, (0..300).map(event).collect::<Vec<_>>().join("\n")).unwrap();
    let events = events.to_string_lossy();
    let ingest = ["ingest", "--source", "hits", &events, server[0], server[1]];
    assert!(!run_as(&bound_key, &ingest).status.success());
    let position = done(&run_as(&writer_key, &ingest));
    let query = |key: &Path, more: &[&str]| {
        let range = ["--from", "2020-01-01T00:00:00Z", "--to", "2020-01-01T01:00:00Z", "--aggregate", "count"];
        let rest = ["--at-least", &position, "--output", "json"];
        run_as(key, &[&["query", "bytes"][..], &range, &rest, &server, more].concat())
    };
    let count = |output: Output| -> u64 {
        let answer: Value = serde_json::from_str(&done(&output)).unwrap();
        answer["series"][0]["points"][0]["count"].as_u64().unwrap_or(0)
    };
    assert_eq!(count(query(&root_key, &[])), 200);
    assert_eq!(count(query(&bound_key, &[])), 100);
    assert_eq!(count(query(&bound_key, &["--where", "site = 'a' OR site = 'b'"])), 100);
    assert_eq!(count(query(&bound_key, &["--where", "site = 'b'"])), 0);
    assert!(text(&query(&writer_key, &[])).1.contains("metrics:read"));

    let id = |secret: &str| secret[4..20].to_owned();
    let renewed = done(&over_http(&["keys", "rotate", &id(&bound), "--overlap", "0"]));
    let renewed_key = file("renewed.key", &renewed);
    assert!(text(&query(&bound_key, &[])).1.contains("401"));
    assert_eq!(count(query(&renewed_key, &[])), 100);
    done(&over_http(&["keys", "revoke", &id(&bound)]));
    assert!(text(&query(&renewed_key, &[])).1.contains("401"));

    let audit = lamina.request(reqwest::Method::GET, "/v1/audit").bearer_auth(&root).send().unwrap();
    let audit: Value = serde_json::from_str(&audit.text().unwrap()).unwrap();
    let actions: Vec<&str> =
        audit["entries"].as_array().unwrap().iter().rev().map(|entry| entry["action"].as_str().unwrap()).collect();
    let made = "POST /v1/keys";
    let sent = "POST /v1/sources/{source}/events";
    assert_eq!(
        actions,
        ["lamina keys create", made, made, sent, "POST /v1/keys/{id}/rotate", "DELETE /v1/keys/{id}"],
        "{audit:#}"
    );
    let log = fs::read_to_string(place.path().join("lamina.log")).unwrap();
    assert!(log.contains("lamina::audit") && log.contains(&id(&writer)), "the audit is not in the log");
    for secret in [&root, &writer, &bound, &renewed] {
        assert!(!log.contains(&secret[21..]) && !audit.to_string().contains(&secret[21..]), "a log holds a secret");
    }
}

/// A child that is killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_command_line_speaks_tls_with_a_lamina_that_does() {
    let place = Place::new(Backend::Embedded);
    let (config, port) = configure(place.path(), &place.settings(), &place.name);
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (place.path().join("cert.pem"), place.path().join("key.pem"));
    fs::write(&cert, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = "[http.tls]\ncert = \"cert.pem\"\nkey = \"key.pem\"\n";
    fs::write(&config, fs::read_to_string(&config).unwrap() + tls).unwrap();
    let serve =
        Command::new(LAMINA).args(["serve", "--config", &config.to_string_lossy()]).stderr(Stdio::null()).spawn();
    let _running = Running(serve.unwrap());
    let server = format!("https://localhost:{port}");
    let trusting = ["freshness", "--server", &server, "--ca-file", &cert.to_string_lossy()];
    let from = Instant::now();
    while !run(&trusting).status.success() {
        assert!(from.elapsed() < Duration::from_secs(60), "{:?}", text(&run(&trusting)));
        std::thread::sleep(Duration::from_millis(200));
    }
    let distrusting = run(&["freshness", "--server", &server]);
    assert!(text(&distrusting).1.to_lowercase().contains("certificate"), "{distrusting:?}");
    assert!(!run(&["freshness", "--server", &format!("http://127.0.0.1:{port}")]).status.success());
}
