//! The driver's errors in lamina's words.
//!
//! What matters is what the caller may do: repeat (`Unavailable`), read back (`Unknown`), or tell somebody (`Refused`).

use lamina_core::StoreError;
use scylla::errors::{DbError, ExecutionError, PrepareError, RequestAttemptError};

/// An error of a reading or of an upsert, which may both be repeated.
pub(super) fn repeatable(error: ExecutionError) -> StoreError {
    if refused(&error) { StoreError::Refused(error.to_string()) } else { StoreError::Unavailable(error.to_string()) }
}

/// An error of a conditional write. Only where it cannot have run is the outcome known.
pub(super) fn conditional(error: ExecutionError) -> StoreError {
    if refused(&error) {
        StoreError::Refused(error.to_string())
    } else if never_sent(&error) {
        StoreError::Unavailable(error.to_string())
    } else {
        StoreError::Unknown(error.to_string())
    }
}

pub(super) fn preparing(error: PrepareError) -> StoreError {
    match &error {
        PrepareError::AllAttemptsFailed { first_attempt } if refused_attempt(first_attempt) => {
            StoreError::Refused(error.to_string())
        }
        _ => StoreError::Unavailable(error.to_string()),
    }
}

/// An answer that does not have the shape that the statement asks for: another schema than ours.
pub(super) fn shape(error: impl std::error::Error) -> StoreError {
    StoreError::Refused(format!("the answer is not of the expected shape: {error}; does the schema fit this version?"))
}

fn refused(error: &ExecutionError) -> bool {
    match error {
        ExecutionError::BadQuery(_) => true,
        ExecutionError::LastAttemptError(attempt) => refused_attempt(attempt),
        _ => false,
    }
}

/// The statement itself is at fault, and did not run.
fn refused_attempt(error: &RequestAttemptError) -> bool {
    use DbError::{AlreadyExists, ConfigError, Invalid, ProtocolError, SyntaxError, Unauthorized};
    match error {
        RequestAttemptError::SerializationError(_) | RequestAttemptError::CqlRequestSerialization(_) => true,
        RequestAttemptError::DbError(error, _) => {
            matches!(error, SyntaxError | Invalid | Unauthorized | ConfigError | ProtocolError | AlreadyExists { .. })
        }
        _ => false,
    }
}

fn never_sent(error: &ExecutionError) -> bool {
    match error {
        ExecutionError::EmptyPlan | ExecutionError::PrepareError(_) | ExecutionError::ConnectionPoolError(_) => true,
        ExecutionError::LastAttemptError(attempt) => matches!(
            attempt,
            RequestAttemptError::UnableToAllocStreamId
                | RequestAttemptError::DbError(DbError::Overloaded | DbError::IsBootstrapping, _)
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use scylla::{errors::WriteType, statement::Consistency};

    use super::*;

    fn timed_out(write_type: WriteType) -> ExecutionError {
        let error = DbError::WriteTimeout { consistency: Consistency::Serial, received: 1, required: 2, write_type };
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, String::new()))
    }

    #[test]
    fn a_conditional_write_that_may_have_run_is_unknown() {
        for error in [
            timed_out(WriteType::Cas),
            timed_out(WriteType::Simple),
            ExecutionError::RequestTimeout(Duration::from_secs(3)),
            ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::ServerError, String::new())),
            ExecutionError::LastAttemptError(RequestAttemptError::NonfinishedPagingState),
        ] {
            assert!(matches!(conditional(error.clone()), StoreError::Unknown(_)), "{error}");
            assert!(matches!(repeatable(error.clone()), StoreError::Unavailable(_)), "{error}");
        }
    }

    #[test]
    fn a_conditional_write_that_never_ran_is_not_unknown() {
        assert!(matches!(conditional(ExecutionError::EmptyPlan), StoreError::Unavailable(_)));
        let invalid = ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Invalid, "no".to_owned()));
        assert!(matches!(conditional(invalid), StoreError::Refused(_)));
    }
}
