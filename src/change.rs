//! What happened to rows, in the order of commits.
//!
//! Changes flow singly between a [`Begin`] and its [`Commit`]; no type here holds a whole
//! transaction, so that memory stays flat under one of ten million rows.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::lsn::Lsn;
use crate::relation::Relation;

/// A transaction starts. Sent by Postgres once the transaction has committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// LSN of the transaction's *commit record*; not where the transaction starts.
    pub final_lsn: Lsn,
    /// Microseconds since 2000-01-01 00:00:00 UTC, the Postgres epoch.
    pub commit_time_us: i64,
    /// The top-level transaction id, 32 bits as on the wire.
    pub xid: u32,
}

/// A transaction ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// LSN of the commit record, equal to the Begin's `final_lsn`.
    pub commit_lsn: Lsn,
    /// Where the commit record ends: the only kind of LSN that may be confirmed (rule 1).
    pub end_lsn: Lsn,
    /// Microseconds since the Postgres epoch.
    pub commit_time_us: i64,
}

/// One column's value as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datum<'a> {
    Null,
    /// A TOASTed value that the UPDATE did not touch, so Postgres did not send it. Not a NULL.
    UnchangedToast,
    /// The type's output text, in the server's encoding (we ask for UTF-8).
    Text(&'a [u8]),
}

/// A [`Datum`] as a place in [`Tuple::data`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span {
    Null,
    UnchangedToast,
    Text(Range<u32>),
}

/// A row's values, in the relation's column order: one shared buffer and the places in it, so that
/// a row costs one allocation and no copy of its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuple {
    pub data: Bytes,
    pub spans: Vec<Span>,
}

impl Tuple {
    /// Builds a tuple from values; for tests and for rows that were not read from the wire.
    pub fn from_datums<'a>(datums: impl IntoIterator<Item = Datum<'a>>) -> Self {
        let mut data = Vec::new();
        let mut at = 0u32;
        let spans = datums
            .into_iter()
            .map(|it| match it {
                Datum::Null => Span::Null,
                Datum::UnchangedToast => Span::UnchangedToast,
                Datum::Text(text) => {
                    data.extend_from_slice(text);
                    let start = at;
                    at = u32::try_from(data.len()).expect("a row is smaller than 4 GiB");
                    Span::Text(start..at)
                }
            })
            .collect();
        Self { data: data.into(), spans }
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The value of column `nth`; None past the last.
    pub fn get(&self, nth: usize) -> Option<Datum<'_>> {
        Some(match self.spans.get(nth)? {
            Span::Null => Datum::Null,
            Span::UnchangedToast => Datum::UnchangedToast,
            Span::Text(range) => {
                let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
                Datum::Text(self.data.get(range)?)
            }
        })
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = Datum<'_>> {
        (0..self.len()).map(|nth| self.get(nth).expect("spans lie within data"))
    }
}

/// The old row, as far as the replica identity has Postgres send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldRow {
    /// Only the identity's columns are there, the others read as NULL ('K').
    Identity(Tuple),
    /// REPLICA IDENTITY FULL ('O').
    Full(Tuple),
}

/// One row's change, or a table's truncation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Insert {
        relation: Arc<Relation>,
        new: Tuple,
    },
    Update {
        relation: Arc<Relation>,
        /// None: the identity's columns did not change (and the identity is not FULL).
        old: Option<OldRow>,
        new: Tuple,
    },
    Delete {
        relation: Arc<Relation>,
        old: OldRow,
    },
    Truncate {
        relations: Vec<Arc<Relation>>,
        cascade: bool,
        restart_identity: bool,
    },
}

/// What `pg_logical_emit_message` wrote: nothing that happened to a row, but a word to whoever
/// reads the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalMessage {
    /// It belongs to its transaction: it comes at its place between the transaction's changes,
    /// and not at all if that is rolled back. One that is not comes between transactions, as soon
    /// as it is decoded, possibly before changes that were made before it.
    pub transactional: bool,
    /// Only for show: not an LSN that anything may be concluded from.
    pub lsn: Lsn,
    /// Says whose message it is: ours begin with `onelog.`.
    pub prefix: String,
    pub content: Bytes,
}

/// What the stream brings, one at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Begin(Begin),
    Change(Change),
    /// Within its transaction, or between two if it is not transactional.
    Message(LogicalMessage),
    Commit(Commit),
    /// All WAL before `wal_end` has been decoded: nothing of it is still to come.
    Keepalive {
        wal_end: Lsn,
    },
}
