//! What is refused before it is planned: texts that would keep the parser busy, or nest too deep to be walked.

use axum::http::StatusCode;
use datafusion::sql::sqlparser::{
    dialect::GenericDialect,
    tokenizer::{Token, Tokenizer},
};

use crate::problem::Problem;

/// Longest statement, in bytes.
const MAX_LENGTH: usize = 16 << 10;
/// Most tokens: what they build is walked recursively.
const MAX_TOKENS: usize = 2_000;
/// Deepest nesting of parentheses and brackets. The parser tries some of what begins with one again and again.
const MAX_DEPTH: usize = 10;

/// # Errors
/// If the text is no SQL, or too much of it.
pub(super) fn check(sql: &str) -> Result<(), Problem> {
    if sql.len() > MAX_LENGTH {
        return Err(Problem::parameter(
            "query",
            format!("is {} bytes long, at most {MAX_LENGTH} are allowed", sql.len()),
        ));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql).tokenize().map_err(|error| refused(error.to_string()))?;
    let (mut count, mut depth) = (0_usize, 0_usize);
    for token in &tokens {
        match token {
            Token::Whitespace(_) => continue,
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            _ => {}
        }
        count += 1;
        if depth > MAX_DEPTH {
            return Err(Problem::parameter("query", format!("nests parentheses deeper than {MAX_DEPTH}")));
        }
    }
    if count > MAX_TOKENS {
        return Err(Problem::parameter(
            "query",
            format!("has {count} words and signs, at most {MAX_TOKENS} are allowed"),
        ));
    }
    Ok(())
}

/// SQL that cannot be run as it stands.
pub(super) fn refused(why: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_sql", why)
}
