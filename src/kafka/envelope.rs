//! A change as the records that Kafka gets: Debezium's keys, envelopes and tombstones.
//!
//! Field names and meanings are Debezium's, so that a consumer written for it works unchanged; the
//! values inside `before` and `after` are Postgres' own JSON (`postgres::text`). JSON is written
//! straight into buffers that live as long as the [`EnvelopeWriter`]; what is the same for a
//! session, a table or a transaction is rendered once.
//!
//! Which records a change is:
//! - INSERT `c`; UPDATE `u`; DELETE `d`, then a tombstone on the same key, so that compaction may
//!   forget the row;
//! - UPDATE that changes the key: `d` and tombstone on the old key, which carry the new key in
//!   `__debezium.newkey`, then `c` on the new key, which carries the old one in
//!   `__debezium.oldkey`. Keys are compared as they are published, by their text;
//! - TRUNCATE `t`, one record for each table. Debezium gives it a null key, which a compacted
//!   topic refuses; so on a keyed topic the key is [`TRUNCATE_KEY`], which no row can have, its
//!   column being an object. It is never deleted from the log, and the newest is kept. It lands
//!   on one partition: its order among the rows of other partitions is not told by the log, so a
//!   consumer that keeps rows must read the table anew, as our translator does by a sweep;
//! - a row without a key has a null key, and no tombstones, which would be records without meaning.
//!
//! Invariant: what is returned without an error is valid JSON, and a delete's key equals its
//! tombstone's.

mod connect;
mod headers;
mod message;
mod row;
mod source;
mod table;
mod writer;

pub use headers::{Header, transaction_headers};
pub use source::{SourceContext, TransactionContext};
pub use table::TableShape;
pub use writer::{ChangeAt, EnvelopeWriter, OutRecord, Records};

use crate::postgres::decode::DecodeError;
use crate::relation::RelationId;

/// The key of a TRUNCATE on a topic whose records have keys.
pub const TRUNCATE_KEY: &[u8] = br#"{"__onelog":{"op":"t"}}"#;

/// What stands for a TOASTed value that Postgres did not send: Debezium's placeholder.
pub const UNAVAILABLE_VALUE: &str = "__debezium_unavailable_value";

/// Says on a `d` and its tombstone which key the row has now.
pub const NEW_KEY_HEADER: &str = "__debezium.newkey";

/// Says on a `c` which key the row had before.
pub const OLD_KEY_HEADER: &str = "__debezium.oldkey";

/// Says on a `u` that the row has another value though `before` and `after` are the same JSON in
/// that column: SQL's null and JSON's, a float's 0 and -0, arrays that count from another number.
/// SQL tells them apart, so that documents may differ.
pub const UNSEEN_HEADER: &str = "onelog.unseen-change";

/// Why a change has no records.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// A type whose kind is not known: its rows must be read from the catalog first.
    #[error("column {column} of {relation} has type {oid}, which the catalog was not asked for")]
    UnknownType { relation: String, column: String, oid: u32 },
    /// The table's definition changed: make a new [`TableShape`] from the change's relation.
    #[error("the shape of relation {id} is not that of the change")]
    StaleShape { id: RelationId },
    /// A value that cannot be written as JSON.
    #[error("column {column} of {relation} cannot be written as JSON")]
    Value {
        relation: String,
        column: String,
        #[source]
        source: DecodeError,
    },
    /// The key is in a TOASTed value that Postgres did not send.
    #[error("column {column} is part of the key of {relation}, but its value was not sent")]
    KeyNotSent { relation: String, column: String },
}

impl EnvelopeError {
    /// Whether the same change can succeed once the catalog was read again.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::UnknownType { .. } | Self::StaleShape { .. } => true,
            Self::Value { source, .. } => source.is_transient(),
            Self::KeyNotSent { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests;
