use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Json, Router, extract::State, routing::get};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair},
};
use serde_json::json;

use super::{
    keys::{FRESH, RETRY},
    signed, *,
};
use crate::auth::scope::Scope;

/// 2026-01-01T00:00:00Z.
const NOW: i64 = 1_767_225_600;
const MICROS: Micros = NOW * 1_000_000;

/// An issuer with a key of each kind.
struct Issuer {
    p256: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn message(header: &Value, claims: &Value) -> String {
    format!("{}.{}", encode(header.to_string()), encode(claims.to_string()))
}

impl Issuer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, p256.as_ref(), &random).unwrap();
        let ed = Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap();
        Self { p256, ed }
    }

    fn set(&self) -> Value {
        let point = &self.p256.public_key().as_ref()[1..];
        json!({"keys": [
            {"kty": "EC", "crv": "P-256", "kid": "ec", "alg": "ES256", "x": encode(&point[..32]), "y": encode(&point[32..])},
            {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "use": "sig", "x": encode(self.ed.public_key().as_ref())},
            {"kty": "RSA", "kid": "rsa", "use": "sig", "n": signed::N, "e": "AQAB"},
            {"kty": "RSA", "kid": "for encryption", "use": "enc", "n": signed::N, "e": "AQAB"},
            {"kty": "of the future", "kid": "new"},
            {"kty": "oct", "kid": "mac", "k": encode("secret")},
        ]})
    }

    fn file(&self) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(self.set().to_string().as_bytes()).unwrap();
        file
    }

    fn es256(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let signature = self.p256.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encode(signature))
    }

    fn eddsa(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        format!("{message}.{}", encode(self.ed.sign(message.as_bytes())))
    }
}

fn header(alg: &str, kid: &str) -> Value {
    json!({"alg": alg, "kid": kid, "typ": "JWT"})
}

fn claims() -> Value {
    json!({"iss": "https://issuer.test", "aud": ["other", "lamina"], "sub": "anna", "scope": "openid metrics:read sql:run",
        "nbf": NOW - 60, "exp": NOW + 60, "tenant_id": "acme"})
}

fn with(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims();
    claims[name] = value.into();
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

fn config(keys: KeySource) -> Config {
    Config {
        issuer: "https://issuer.test".to_owned(),
        audience: vec!["lamina".to_owned()],
        keys,
        algorithms: algorithms(&["ES256", "EdDSA", "RS256", "PS256"].map(str::to_owned)).unwrap(),
        scope_claim: "scope".to_owned(),
        rows: BTreeMap::new(),
        leeway: Duration::from_secs(5),
    }
}

async fn refusal(verifier: &Verifier, token: &str) -> String {
    match verifier.principal(token, MICROS).await {
        Err(Refused::Token(why)) => why,
        other => panic!("not refused but {other:?}: {token}"),
    }
}

#[tokio::test]
async fn a_valid_token_of_each_algorithm_names_its_principal() {
    let issuer = Issuer::new();
    let file = issuer.file();
    let verifier = Verifier::new(config(KeySource::File(file.path().to_owned())));
    for token in [
        issuer.es256(&header("ES256", "ec"), &claims()),
        issuer.eddsa(&header("EdDSA", "ed"), &claims()),
        signed::RS256.to_owned(),
        signed::PS256.to_owned(),
        issuer.es256(&header("ES256", "ec"), &with("exp", NOW as f64 + 0.5)),
        issuer.es256(&header("ES256", "ec"), &with("exp", NOW - 4)),
        issuer.es256(&header("ES256", "ec"), &with("nbf", NOW + 4)),
        issuer.es256(&header("ES256", "ec"), &with("aud", "lamina")),
        issuer.es256(&header("ES256", "ec"), &with("scope", json!(["metrics:read", "else"]))),
    ] {
        let principal = verifier.principal(&token, MICROS).await.unwrap_or_else(|why| panic!("{why:?}: {token}"));
        assert_eq!(principal.id, "jwt:anna");
        assert!(principal.allows(Scope::MetricsRead) && !principal.allows(Scope::Admin) && !principal.is_restricted());
    }
}

#[tokio::test]
async fn whatever_is_wrong_with_a_token_it_is_refused() {
    let issuer = Issuer::new();
    let file = issuer.file();
    let verifier = Verifier::new(config(KeySource::File(file.path().to_owned())));
    let ec = |claims: &Value| issuer.es256(&header("ES256", "ec"), claims);
    for (claims, why) in [
        (with("exp", NOW - 6), "expired"),
        (with("nbf", NOW + 6), "not valid yet"),
        (with("exp", "soon"), "`exp`"),
        (with("iss", "https://other.test"), "issuer"),
        (with("aud", "other"), "audience"),
        (with("aud", json!([])), "audience"),
        (with("sub", ""), "`sub`"),
        (with("sub", "a\nb"), "`sub`"),
        (with("sub", 7), "`sub`"),
        (without("exp"), "`exp`"),
        (without("nbf"), "`nbf`"),
        (without("iss"), "issuer"),
        (without("aud"), "audience"),
        (without("sub"), "`sub`"),
    ] {
        let said = refusal(&verifier, &ec(&claims)).await;
        assert!(said.contains(why), "{claims}: {said}");
    }
    let valid = ec(&claims());
    let [head, body, signature] = valid.split('.').collect::<Vec<_>>().try_into().unwrap();
    let none = message(&header("none", "ec"), &claims());
    // A MAC made with what everybody knows: the public key, as it is in the set.
    let mac = |kid: &str, secret: &[u8]| {
        let message = message(&header("HS256", kid), &claims());
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
        format!("{message}.{}", encode(ring::hmac::sign(&key, message.as_bytes())))
    };
    let swapped = message(&header("ES256", "ec"), &with("sub", "root"));
    for token in [
        String::new(),
        "a.b.c".to_owned(),
        format!("{none}."),
        format!("{none}.{signature}"),
        mac("ec", issuer.p256.public_key().as_ref()),
        mac("ed", issuer.ed.public_key().as_ref()),
        mac("rsa", signed::N.as_bytes()),
        mac("mac", b"secret"),
        format!("{swapped}.{signature}"),
        format!("{head}.{body}"),
        format!("{head}.{body}."),
        format!("{head}.{body}.{}", encode([0; 64])),
        format!("{head}.{body}.{signature}.{signature}"),
        issuer.es256(&json!({"alg": "ES256"}), &claims()),
        issuer.es256(&header("ES256", "nobody"), &claims()),
        // A key of another kind, of another name, for another purpose.
        issuer.es256(&header("ES256", "ed"), &claims()),
        issuer.es256(&header("ES256", "rsa"), &claims()),
        issuer.eddsa(&header("EdDSA", "ec"), &claims()),
        issuer.eddsa(&header("ES384", "ec"), &claims()),
        issuer.es256(&json!({"alg": "ES256", "kid": "ec", "crit": ["exp"]}), &claims()),
        Issuer::new().es256(&header("ES256", "ec"), &claims()),
        format!("{}A", &signed::RS256[..signed::RS256.len() - 1]).replace("ey", "e0"),
        format!("{}.{}", encode(header("PS256", "rsa").to_string()), signed::RS256.split_once('.').unwrap().1),
    ] {
        refusal(&verifier, &token).await;
    }
}

#[tokio::test]
async fn only_pinned_algorithms_pass() {
    let issuer = Issuer::new();
    let file = issuer.file();
    let only = Config {
        algorithms: algorithms(&["EdDSA".to_owned()]).unwrap(),
        ..config(KeySource::File(file.path().to_owned()))
    };
    let verifier = Verifier::new(only);
    let why = refusal(&verifier, &issuer.es256(&header("ES256", "ec"), &claims())).await;
    assert!(why.contains("ES256"), "{why}");
    for name in ["none", "HS256", "HS512", "es256", ""] {
        assert!(algorithms(&[name.to_owned()]).is_err(), "{name}");
    }
    assert!(algorithms(&[]).is_err());
}

#[tokio::test]
async fn rows_come_from_claims_and_a_token_without_them_is_refused() {
    let issuer = Issuer::new();
    let file = issuer.file();
    let rows = [("tenant".to_owned(), "org.tenant".to_owned())].into();
    let verifier = Verifier::new(Config { rows, ..config(KeySource::File(file.path().to_owned())) });
    let token = |claims: &Value| issuer.es256(&header("ES256", "ec"), claims);
    let principal = verifier.principal(&token(&with("org", json!({"tenant": ["acme", 7]}))), MICROS).await.unwrap();
    assert_eq!(principal.rows["tenant"], ["acme", "7"]);
    for org in [json!(null), json!({}), json!({"tenant": []}), json!({"tenant": {}})] {
        let why = refusal(&verifier, &token(&with("org", org))).await;
        assert!(why.contains("org.tenant"), "{why}");
    }
}

#[tokio::test]
async fn keys_are_asked_for_again_when_one_is_unknown_but_not_often() {
    let asked = Arc::new(AtomicUsize::new(0));
    let issuer = Arc::new(Issuer::new());
    let answer = async |State((asked, issuer)): State<(Arc<AtomicUsize>, Arc<Issuer>)>| {
        // The first time, the key is not there yet.
        let keys = if asked.fetch_add(1, Ordering::SeqCst) == 0 { json!({"keys": []}) } else { issuer.set() };
        Json(keys)
    };
    let app = Router::new().route("/jwks", get(answer)).with_state((Arc::clone(&asked), Arc::clone(&issuer)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    let verifier = Verifier::new(config(KeySource::url(&url).unwrap()));
    let token = issuer.es256(&header("ES256", "ec"), &with("exp", NOW + 1_000_000));
    let at = async |now| verifier.principal(&token, now).await;
    for _ in 0..5 {
        assert!(matches!(at(MICROS).await, Err(Refused::Token(_))));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "unknown names ask once in ten seconds");
    assert!(at(MICROS + RETRY).await.is_ok());
    for _ in 0..5 {
        assert!(at(MICROS + RETRY + 1).await.is_ok());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert!(at(MICROS + RETRY + FRESH).await.is_ok());
    assert_eq!(asked.load(Ordering::SeqCst), 3, "an hour later they are read again");
    serving.abort();
    let _ = serving.await;
    assert!(at(MICROS + 2 * FRESH).await.is_ok(), "what is known outlives the issuer");
    assert!(matches!(at(MICROS + 48 * FRESH).await, Err(Refused::Unavailable(_))), "but not for long");
}

#[tokio::test]
async fn without_keys_nothing_can_be_said() {
    let missing = Verifier::new(config(KeySource::File("/nonexistent/jwks.json".into())));
    let token = Issuer::new().es256(&header("ES256", "ec"), &claims());
    assert!(matches!(missing.principal(&token, MICROS).await, Err(Refused::Unavailable(_))));
    for url in ["http://issuer.test/jwks", "ftp://127.0.0.1/", "nowhere", "file:///etc/passwd"] {
        assert!(KeySource::url(url).is_err(), "{url}");
    }
    assert!(KeySource::url("https://issuer.test/jwks").is_ok() && KeySource::url("http://localhost:1/").is_ok());
}
