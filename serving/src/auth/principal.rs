//! Who asks.

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use axum::{extract::FromRequestParts, http::request::Parts};
use lamina_metric::Metric;

use super::scope::{Scope, Scopes};
use crate::{app::App, problem::Problem};

/// Rules over rows: dimension → the only values of it that are shown. Empty is no rule. Values are texts; those of a dimension
/// that is no text are written as queries write them.
pub type Rows = BTreeMap<String, Vec<String>>;

/// Who asks, what they may do and what they may see. Every request that is not for an open endpoint carries one as an
/// extension, put there by [`super::guard`].
#[derive(Clone, Debug)]
pub(crate) struct Principal(Arc<Identity>);

#[derive(Debug)]
pub(crate) struct Identity {
    /// For logs, limits and idempotency: `open`, `key:ID` or `jwt:SUBJECT`. Holds no secret.
    pub(crate) id: String,
    pub(crate) scopes: Scopes,
    pub(crate) rows: Rows,
}

impl Principal {
    pub(crate) fn new(id: String, scopes: Scopes, rows: Rows) -> Self {
        Self(Arc::new(Identity { id, scopes, rows }))
    }

    /// Everybody, where nobody has to say who they are.
    pub(crate) fn open() -> Self {
        Self::new("open".to_owned(), Scopes::all(), Rows::new())
    }

    pub(crate) fn is_open(&self) -> bool {
        self.id == "open"
    }

    pub(crate) fn allows(&self, scope: Scope) -> bool {
        self.scopes.allow(scope)
    }

    /// Whether rules hold rows back.
    pub(crate) fn is_restricted(&self) -> bool {
        !self.rows.is_empty()
    }

    /// Whether every rule can be applied to the metric: it has the dimensions.
    pub(crate) fn sees(&self, metric: &Metric) -> bool {
        self.rows.keys().all(|name| metric.dimensions.iter().any(|dimension| dimension.name == *name))
    }

    /// # Errors
    /// 403 if a rule cannot be applied to the metric.
    pub(crate) fn check_sees(&self, metric: &Metric) -> Result<(), Problem> {
        let lacks = self.rows.keys().find(|name| !metric.dimensions.iter().any(|own| own.name == **name));
        match lacks {
            None => Ok(()),
            Some(name) => Err(Problem::row_rules(&metric.name, name)),
        }
    }
}

impl Deref for Principal {
    type Target = Identity;

    fn deref(&self) -> &Identity {
        &self.0
    }
}

impl FromRequestParts<App> for Principal {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Problem::internal(&"a request without a principal"))
    }
}
