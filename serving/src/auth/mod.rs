//! Who may do what: credentials → [`principal::Principal`] → the endpoint's demands → rules over rows.
//!
//! # Invariants
//! - A request reaches a handler only with a principal whom [`endpoints`] lets through; what the table lacks is the admin's.
//! - Rules over rows are applied where queries are planned and nowhere else; what does not go by rows is refused to whoever
//!   has rules.
//! - No secret is stored, logged or answered twice.

mod access;
pub mod audit;
pub(crate) mod endpoints;
pub(crate) mod guard;
pub mod jwt;
pub mod keys;
mod lasting;
pub(crate) mod principal;
pub(crate) mod scope;
pub(crate) mod secret;

use std::time::Duration;

pub(crate) use self::{access::Access, principal::Principal};
pub use self::{
    principal::Rows,
    scope::{Scope, Scopes},
    secret::Presented,
};

/// How long a key is believed to be as it was: a revocation takes effect everywhere within this time, and at once in the
/// process that is asked for it.
pub const KEY_CACHE: Duration = Duration::from_secs(5);
/// For how long it is believed so while the store does not answer: nobody can revoke a key there meanwhile, and events go on to
/// come in.
pub const WITHOUT_STORE: Duration = Duration::from_secs(15 * 60);

/// Whether credentials are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Not until the first key is made; then for ever. For loopback addresses only.
    #[default]
    UntilFirstKey,
    Required,
    /// Never: for simulations and the demonstration.
    Open,
}

/// What an operator says about access.
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub mode: Mode,
    /// Tokens of an identity provider.
    pub jwt: Option<jwt::Config>,
    /// Whether `/metrics` is open to everybody.
    pub open_metrics: bool,
}
