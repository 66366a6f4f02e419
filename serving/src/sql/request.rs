//! What a client asks.

use std::{collections::HashMap, time::Duration};

use datafusion::{
    common::{ParamValues, metadata::ScalarAndMetadata},
    scalar::ScalarValue,
};
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::problem::Problem;

/// Most bound parameters.
const MAX_PARAMS: usize = 200;
/// Longest text of one.
const MAX_TEXT: usize = 4 << 10;

/// A query in SQL.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SqlRequest)]
pub(crate) struct Body {
    /// One SELECT; `docs/sql.md` says over what.
    pub(crate) query: String,
    /// Values of `$1`, `$2`, ... as a list, or of `$name` as an object.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    params: Value,
    /// How long it may take, up to the configured limit, which is also what is taken if it is left out.
    #[serde(default)]
    timeout_ms: Option<u64>,
}

impl Body {
    pub(super) fn timeout(&self, most: Duration) -> Result<Duration, Problem> {
        let Some(millis) = self.timeout_ms else { return Ok(most) };
        let asked = Duration::from_millis(millis);
        if asked.is_zero() || asked > most {
            let detail = format!("a number of milliseconds from 1 to {}", most.as_millis());
            return Err(Problem::parameter("timeout_ms", detail));
        }
        Ok(asked)
    }

    pub(super) fn params(&self) -> Result<Option<ParamValues>, Problem> {
        match &self.params {
            Value::Null => Ok(None),
            Value::Array(values) => {
                few(values.len())?;
                let values = values.iter().map(|value| scalar(value).map(ScalarAndMetadata::from));
                Ok(Some(ParamValues::List(values.collect::<Result<_, _>>()?)))
            }
            Value::Object(values) => {
                few(values.len())?;
                let value =
                    |(name, value): (&String, &Value)| Ok((name.clone(), ScalarAndMetadata::from(scalar(value)?)));
                Ok(Some(ParamValues::Map(values.iter().map(value).collect::<Result<HashMap<_, _>, Problem>>()?)))
            }
            _ => Err(Problem::parameter("params", "a list for $1, $2, ..., or an object for $name")),
        }
    }
}

fn few(params: usize) -> Result<(), Problem> {
    if params > MAX_PARAMS {
        return Err(Problem::parameter("params", format!("at most {MAX_PARAMS} values")));
    }
    Ok(())
}

fn scalar(value: &Value) -> Result<ScalarValue, Problem> {
    Ok(match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(value) => ScalarValue::Boolean(Some(*value)),
        Value::String(text) if text.len() <= MAX_TEXT => ScalarValue::Utf8(Some(text.clone())),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(value), _) => ScalarValue::Int64(Some(value)),
            (None, Some(value)) if value.is_finite() => ScalarValue::Float64(Some(value)),
            _ => return Err(Problem::parameter("params", format!("{number} is no number of 64 bits"))),
        },
        _ => {
            return Err(Problem::parameter(
                "params",
                format!("null, true, false, numbers, and texts of up to {MAX_TEXT} bytes"),
            ));
        }
    })
}
