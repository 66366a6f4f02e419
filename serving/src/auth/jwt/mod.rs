//! Tokens of an identity provider: JWT signed with keys that the issuer publishes.
//!
//! # Invariants
//! - Algorithms are pinned and asymmetric: neither `none` nor a MAC made with a public key passes.
//! - `exp`, `nbf`, `iss`, `aud`, `sub` and the header's `kid` must be there; a claim that rows go by, too.

mod keys;
mod provider;

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, Validation};
use lamina_core::Micros;
use serde_json::{Map, Value};
use url::{Host, Url};

use self::keys::Keys;
use super::{
    principal::{Principal, Rows},
    scope::Scopes,
};

/// Longest subject.
const MAX_SUBJECT: usize = 255;

/// Whose tokens are taken, and what they say.
#[derive(Clone, Debug)]
pub struct Config {
    pub issuer: String,
    /// One of them must be the token's.
    pub audience: Vec<String>,
    pub keys: KeySource,
    /// See [`algorithms`].
    pub algorithms: Vec<Algorithm>,
    /// The claim with the scopes: a text with spaces between, or a list. Dots go into objects.
    pub scope_claim: String,
    /// Dimension → the claim with the only values of it that are shown.
    pub rows: BTreeMap<String, String>,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// Where the issuer's public keys are, as a JWK set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    Url(Url),
    File(PathBuf),
}

impl KeySource {
    /// # Errors
    /// If it is no URL, or neither https nor on loopback.
    pub fn url(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|why| format!("jwks_url {text:?} is not a URL: {why}"))?;
        let loopback = match url.host() {
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        match url.scheme() {
            "https" if url.has_host() => Ok(Self::Url(url)),
            "http" if loopback => Ok(Self::Url(url)),
            _ => Err(format!("jwks_url {text:?} must be https: whoever could change the answer could sign tokens")),
        }
    }
}

/// The algorithms that may be pinned, by name.
///
/// # Errors
/// If there is none, or one that is unknown or symmetric.
pub fn algorithms(names: &[String]) -> Result<Vec<Algorithm>, String> {
    let known = provider::ALGORITHMS;
    let all = || known.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        return Err(format!("algorithms must name those that the issuer signs with: {}", all()));
    }
    let one = |name: &String| {
        let found = known.iter().find(|(known, _)| known == name).map(|(_, algorithm)| *algorithm);
        found.ok_or_else(|| format!("algorithm {name:?} is not taken; there are {}", all()))
    };
    names.iter().map(one).collect()
}

/// Why a token is not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    Token(String),
    /// Nothing can be said: the issuer's keys are not known.
    Unavailable(String),
}

/// Checks tokens.
pub(crate) struct Verifier {
    config: Config,
    keys: Keys,
}

impl Verifier {
    pub(crate) fn new(config: Config) -> Self {
        provider::install();
        Self { keys: Keys::new(config.keys.clone()), config }
    }

    /// The principal whom the token names.
    pub(crate) async fn principal(&self, token: &str, now: Micros) -> Result<Principal, Refused> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| refused("it is no JWT with a known algorithm"))?;
        let algorithm = header.alg;
        if !self.config.algorithms.contains(&algorithm) {
            return Err(refused(format!("algorithm {algorithm:?} is not one that is taken here")));
        }
        if has_critical(token) {
            return Err(refused("its header has `crit`, which is not understood here"));
        }
        let kid = header.kid.ok_or_else(|| refused("its header has no `kid`"))?;
        let key = self.keys.find(&kid, now).await?;
        let key = key.filter(|key| key.takes(algorithm)).ok_or_else(|| refused("the issuer has no such key"))?;
        let claims = jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &signature_only(algorithm));
        let claims = claims.map_err(|_| refused("the signature is not the issuer's"))?.claims;
        self.check(&claims, now)?;
        self.read(&claims)
    }

    /// Time, issuer and audience. Not left to the library: with numbers of arbitrary precision, as lamina reads JSON, it takes
    /// every `exp` to be malformed.
    fn check(&self, claims: &Map<String, Value>, now: Micros) -> Result<(), Refused> {
        let leeway = self.config.leeway.as_secs_f64();
        let now = now as f64 / 1e6;
        if instant(claims, "exp")? + leeway <= now {
            return Err(refused("it has expired"));
        }
        if instant(claims, "nbf")? - leeway > now {
            return Err(refused("it is not valid yet"));
        }
        if claims.get("iss").and_then(Value::as_str) != Some(self.config.issuer.as_str()) {
            return Err(refused("it is of another issuer"));
        }
        let audience = texts(claims.get("aud"));
        if !audience.iter().any(|one| self.config.audience.contains(one)) {
            return Err(refused("it is for another audience"));
        }
        Ok(())
    }

    fn read(&self, claims: &Map<String, Value>) -> Result<Principal, Refused> {
        let subject = claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        if subject.is_empty() || subject.len() > MAX_SUBJECT || subject.chars().any(char::is_control) {
            return Err(refused("it has no `sub` that can be used"));
        }
        // Scopes of other services are none of ours.
        let scopes = texts(claim(claims, &self.config.scope_claim));
        let scopes: Scopes =
            scopes.iter().flat_map(|text| text.split_whitespace()).filter_map(|one| one.parse().ok()).collect();
        let mut rows = Rows::new();
        for (dimension, name) in &self.config.rows {
            let values = texts(claim(claims, name));
            if values.is_empty() {
                return Err(refused(format!("it has no claim {name:?}, by which rows are shown")));
            }
            rows.insert(dimension.clone(), values);
        }
        Ok(Principal::new(format!("jwt:{subject}"), scopes, rows))
    }
}

fn refused(why: impl Into<String>) -> Refused {
    Refused::Token(why.into())
}

/// The library checks the signature; the claims are ours.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

/// Whether the header names extensions that must be understood.
fn has_critical(token: &str) -> bool {
    let header = token.split('.').next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).unwrap_or_default();
    serde_json::from_slice::<Map<String, Value>>(&header).is_ok_and(|header| header.contains_key("crit"))
}

/// Seconds since the Unix epoch.
fn instant(claims: &Map<String, Value>, name: &str) -> Result<f64, Refused> {
    let at = claims.get(name).and_then(Value::as_f64).filter(|at| at.is_finite());
    at.ok_or_else(|| refused(format!("it has no `{name}`")))
}

/// A claim by its name, or by a path of names with dots between.
fn claim<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    rest.split('.').try_fold(claims.get(first)?, |value, name| value.get(name))
}

/// A text, number or boolean, or a list of them, as texts.
fn texts(value: Option<&Value>) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    };
    match value {
        Some(Value::Array(values)) => values.iter().filter_map(text).collect(),
        Some(one) => text(one).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod signed;
#[cfg(test)]
mod tests;
