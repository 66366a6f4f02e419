//! The OpenAPI document holds: it is the one that clients are generated from, every operation answers as it says, schemathesis
//! finds no request to which lamina does not, and the TypeScript client made of it compiles and is answered.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use super::{
    place::{Place, event},
    process::{Backend, Lamina, in_ci, run},
};

const EVENTS: usize = 480;
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/typescript/openapi.json");
const TRIED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/contract.py");
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/contract.toml");
/// Requests for each operation, if nothing else is asked for.
const EXAMPLES: &str = "20";

/// A lamina with events and a batch run over them, which asks for keys.
struct Running {
    place: Place,
    lamina: Lamina,
    key: String,
}

impl Running {
    fn new() -> Self {
        let place = Place::new(Backend::Embedded);
        let lamina = Lamina::start(place.path(), &place.settings(), &place.name);
        let file = place.path().join("events.ndjson");
        let events: String = (0..EVENTS).map(|number| event(number) + "\n").collect();
        fs::write(&file, events).unwrap();
        let token = lamina.ingest("hits", &file);
        let range = [("from", "2020-01-01T00:00:00Z"), ("at_least", &token), ("wait", "30s")];
        lamina.query("bytes", &range.map(|(name, value)| (name.to_owned(), value.to_owned())));
        lamina.recompute_all();
        let made = run(&["keys", "create", "contract", "--scopes", "admin", "--server", &lamina.url]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let key = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        Self { place, lamina, key }
    }

    /// What asks lamina finds it in the environment.
    fn ask(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LAMINA_URL", &self.lamina.url).env("LAMINA_KEY", &self.key).env("NO_PROXY", "127.0.0.1");
        command.current_dir(self.place.path());
        command
    }

    /// The id of another key, to be revoked and rotated.
    fn spare_key(&self) -> String {
        let body = serde_json::json!({"name": "spare", "scopes": ["metrics:read"]});
        let request = self.lamina.request(reqwest::Method::POST, "/v1/keys").bearer_auth(&self.key).json(&body);
        let made: serde_json::Value = request.send().unwrap().json().unwrap();
        made["id"].as_str().unwrap().to_owned()
    }
}

/// What a variable of `make test` names; none means that the test is left out, and must not be in continuous integration.
fn given(name: &str) -> Option<String> {
    let found = std::env::var(name).ok().filter(|value| !value.is_empty());
    if found.is_none() {
        assert!(!in_ci(), "{name} must be set in continuous integration");
        eprintln!("left out: {name} is not set; `make test` sets it");
    }
    found
}

#[track_caller]
fn succeeded(what: &str, output: &Output) {
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {out}{error}");
    eprintln!("{what}: {}", out.lines().last().unwrap_or_default());
}

#[test]
fn the_committed_document_is_what_lamina_says() {
    let printed = run(&["openapi"]);
    succeeded("lamina openapi", &printed);
    let committed = fs::read(COMMITTED).unwrap();
    assert!(committed == printed.stdout, "clients/typescript/openapi.json is not what lamina says: run `make client`");
}

#[test]
fn every_operation_answers_as_documented_and_nothing_else_is_answered_to_what_schemathesis_tries() {
    let Some(tools) = given("LAMINA_TEST_CONTRACT") else { return };
    let running = Running::new();
    let answers = running.ask(&Path::new(&tools).join("python")).arg(TRIED).output().unwrap();
    succeeded("answers", &answers);
    let chosen = |name: &str, usual: &str| std::env::var(name).unwrap_or_else(|_| usual.to_owned());
    // One seed asks the same each time, so that a run does not fail by chance.
    let (examples, seed) = (chosen("LAMINA_TEST_EXAMPLES", EXAMPLES), chosen("LAMINA_TEST_SEED", "1"));
    let url = format!("{}/openapi.json", running.lamina.url);
    let tried = running
        .ask(&Path::new(&tools).join("schemathesis"))
        .env("LAMINA_SPARE_KEY", running.spare_key())
        .args(["--config-file", CONFIG, "run", &url, "--max-examples", &examples, "--seed", &seed, "--no-color"])
        .output()
        .unwrap();
    succeeded("schemathesis", &tried);
}

#[test]
fn the_typescript_client_is_made_of_the_document_compiles_and_is_answered() {
    let Some(client) = given("LAMINA_TEST_TYPESCRIPT") else { return };
    let client = Path::new(&client);
    let tool = |name: &str| {
        let mut command = Command::new(client.join("node_modules/.bin").join(name));
        command.current_dir(client);
        command
    };
    let fresh = tempfile::tempdir().unwrap();
    let types = fresh.path().join("schema.ts");
    let arguments = ["openapi.json", "--default-non-nullable=false", "--output"];
    let made = tool("openapi-typescript").args(arguments).arg(&types).output().unwrap();
    succeeded("openapi-typescript", &made);
    let (made, committed) = (fs::read(&types).unwrap(), fs::read(client.join("src/schema.ts")).unwrap());
    assert!(made == committed, "clients/typescript/src/schema.ts is not made of the document: run `make client`");
    succeeded("tsc", &tool("tsc").output().unwrap());
    let running = Running::new();
    succeeded(
        "roundtrip",
        &running.ask(Path::new("node")).arg(client.join("dist/test/roundtrip.js")).output().unwrap(),
    );
}
