//! Why a read gave nothing, sorted by what is to be done about it.

use tokio_postgres::error::SqlState;

use crate::lsn::Lsn;
use crate::postgres::client::ConnectError;

/// One variant for each reaction. The reader can be used again if [`super::Reader::is_usable`]
/// says so; otherwise connect anew.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The network or the server went away, or has no room. Connect again.
    #[error("connection to Postgres lost while {doing}")]
    Lost {
        /// A phrase: "reading documents".
        doing: &'static str,
        #[source]
        source: Option<tokio_postgres::Error>,
    },

    /// No connection in the first place.
    #[error("cannot connect to Postgres to read documents")]
    Connect(#[source] ConnectError),

    /// A standby's snapshots order nothing (B2). Connect again until a primary answers.
    #[error("this server is a standby or still in recovery; documents are read from the primary")]
    InRecovery,

    /// Someone holds a lock that DDL takes, or waits for one. Read again later.
    #[error("the tables could not be locked in time, as some DDL holds or awaits a lock on them")]
    LockTimeout(#[source] tokio_postgres::Error),

    /// Somebody waited for our locks, so the read was given up (A10). Read again later, less.
    #[error("the read stood in the way of someone who waits for a lock, and was given up")]
    GaveWay,

    /// Too slow. Read fewer keys; a single key this slow wants an index.
    #[error("query {nth} took longer than statement_timeout; see `onelog explain` for its indexes")]
    StatementTimeout {
        nth: usize,
        #[source]
        source: tokio_postgres::Error,
    },

    /// The tables or views are no longer what the SQL was resolved against. Resolve anew.
    #[error("the definition of a table, view, type or function changed since the SQL was resolved")]
    PlanChanged(#[source] tokio_postgres::Error),

    /// We may not. Someone has to GRANT.
    #[error("Postgres does not let us read; grant SELECT on every table that the mappings use")]
    Denied(#[source] tokio_postgres::Error),

    /// The data or the SQL of one query: a division by zero, a key's text that is no number.
    /// Bisect the keys.
    #[error("query {nth} failed")]
    Query {
        /// Which of the queries given, from 0.
        nth: usize,
        #[source]
        source: tokio_postgres::Error,
    },

    /// A check of our own did not hold, so nothing may be concluded from the rows. Connect again.
    #[error("the read is not one snapshot of one primary: {what}")]
    Inconsistent { what: String },

    /// What was read is in memory on the server but not yet in its WAL on disk, so a crash could
    /// undo it (A1). Read again.
    #[error("the WAL of what was read (up to {insert}) is flushed only up to {flushed}")]
    NotFlushed { insert: Lsn, flushed: Lsn },
}

impl ReadError {
    /// Whether the same read may succeed later with nobody having changed anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect(source) => source.is_transient(),
            Self::Lost { .. }
            | Self::InRecovery
            | Self::LockTimeout(_)
            | Self::GaveWay
            | Self::Inconsistent { .. }
            | Self::NotFlushed { .. } => true,
            Self::StatementTimeout { .. }
            | Self::PlanChanged(_)
            | Self::Denied(_)
            | Self::Query { .. } => false,
        }
    }
}

/// Where in the read an error arose.
#[derive(Debug, Clone, Copy)]
pub(super) enum At {
    /// A statement of our own, or the connection itself.
    Frame(&'static str),
    /// The caller's query, from 0.
    Query(usize),
}

/// Sorts what tokio-postgres says, by SQLSTATE (manual, appendix A).
pub(super) fn classify(source: tokio_postgres::Error, at: At) -> ReadError {
    let doing = match at {
        At::Frame(doing) => doing,
        At::Query(_) => "reading documents",
    };
    let Some(db) = source.as_db_error() else {
        return match at {
            // A result that is not text, or a parameter that does not fit: the query's own.
            At::Query(nth) if !source.is_closed() && is_conversion(&source) => {
                ReadError::Query { nth, source }
            }
            _ => ReadError::Lost { doing, source: Some(source) },
        };
    };
    let (code, result_type) = (db.code().clone(), db.message().contains("result type"));
    let lost_class = ["08", "53", "57", "58", "25P03", "25P04"];
    match (code, at) {
        (SqlState::LOCK_NOT_AVAILABLE | SqlState::T_R_DEADLOCK_DETECTED, _) => {
            ReadError::LockTimeout(source)
        }
        (SqlState::QUERY_CANCELED, At::Query(nth)) => ReadError::StatementTimeout { nth, source },
        // LOCK waits under statement_timeout too.
        (SqlState::QUERY_CANCELED, At::Frame(_)) => ReadError::LockTimeout(source),
        (SqlState::FEATURE_NOT_SUPPORTED, _) if result_type => ReadError::PlanChanged(source),
        // XX000: "cache lookup failed", "could not open relation": lost a race against DDL.
        (
            SqlState::UNDEFINED_TABLE
            | SqlState::UNDEFINED_COLUMN
            | SqlState::UNDEFINED_FUNCTION
            | SqlState::UNDEFINED_OBJECT
            | SqlState::INVALID_SCHEMA_NAME
            | SqlState::WRONG_OBJECT_TYPE
            | SqlState::INTERNAL_ERROR,
            _,
        ) => ReadError::PlanChanged(source),
        (SqlState::INSUFFICIENT_PRIVILEGE, _) => ReadError::Denied(source),
        (code, _) if lost_class.iter().any(|it| code.code().starts_with(it)) => {
            ReadError::Lost { doing, source: Some(source) }
        }
        (_, At::Query(nth)) => ReadError::Query { nth, source },
        (_, At::Frame(doing)) => ReadError::Lost { doing, source: Some(source) },
    }
}

/// Whether the client, not the connection, refused: the source is then a conversion error.
fn is_conversion(error: &tokio_postgres::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(|it| !it.is::<std::io::Error>())
}
