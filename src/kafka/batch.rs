//! What flows from the stage that reads Postgres to the stage that writes Kafka: the contract between
//! the two, so that neither needs to know the other.
//!
//! A batch is what one read of the socket brought, never a whole transaction.

use std::sync::Arc;
use std::time::Instant;

use crate::change::{Begin, Change, Commit, LogicalMessage};
use crate::kafka::envelope::TableShape;
use crate::lsn::Lsn;

/// What the source brings, in order.
#[derive(Debug)]
pub enum Item {
    /// How the changes of a table that follow are written.
    Shape(Arc<TableShape>),
    /// With the transaction id in 64 bits (B6).
    Begin(Begin, u64),
    /// With the LSN of the change itself, for show.
    Change(Lsn, Change),
    /// `xid`: of its transaction, in 64 bits; None if it belongs to none.
    Message {
        message: LogicalMessage,
        xid: Option<u64>,
    },
    Commit(Commit),
    Keepalive {
        wal_end: Lsn,
    },
}

/// What one read of the stream brought.
#[derive(Debug)]
pub struct Batch {
    /// When the slot was ours for certain, after which another may have begun to publish.
    pub ours: Instant,
    pub items: Vec<Item>,
}
