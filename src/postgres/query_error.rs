//! A plain SQL query that failed, and whether asking again can help.

use tokio_postgres::error::SqlState;

/// A query of ours that Postgres, or the connection, did not answer.
#[derive(Debug, thiserror::Error)]
#[error("can't {doing}")]
pub struct QueryError {
    /// What we were doing, as a phrase: "read the slot's state".
    pub doing: &'static str,
    #[source]
    pub source: tokio_postgres::Error,
}

impl QueryError {
    /// For `map_err`.
    pub fn while_doing(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> Self {
        move |source| Self { doing, source }
    }

    /// Whether the same query may succeed later with nothing changed by a person. An error
    /// without a code is a broken connection, so it may.
    pub fn is_transient(&self) -> bool {
        self.source.code().is_none_or(is_transient_code)
    }
}

/// As `ServerError::is_transient`, and for a lock that was not had in time (55P03), a deadlock or
/// a serialization failure (class 40).
fn is_transient_code(code: &SqlState) -> bool {
    let code = code.code();
    ["55006", "55P03"].contains(&code)
        || ["57P0", "08", "53", "40"].iter().any(|it| code.starts_with(it))
}
