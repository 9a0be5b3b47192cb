//! Why a slot can't be used, with what is lost and the command that goes on from there.

use crate::lsn::Lsn;
use crate::postgres::query_error::QueryError;

/// Why the slot can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error("slot \"{slot}\" does not exist; run `onelog prepare`")]
    Missing { slot: String },
    #[error(
        "slot \"{slot}\" does not exist any more, but changes up to {published} were published from \
         it, and those since are gone; run `onelog prepare --adopt-slot`, which creates it anew \
         and has every collection swept"
    )]
    Dropped { slot: String, published: Lsn },
    #[error(
        "slot \"{slot}\" belongs to plugin {plugin} in database {found}, but onelog needs a \
         pgoutput slot in {wanted}; choose another [postgres] slot_name"
    )]
    NotOurs { slot: String, plugin: String, found: String, wanted: String },
    #[error(
        "slot \"{slot}\" has lost WAL that is not yet published ({reason}), so changes since \
         {resume} are gone; run `onelog prepare --adopt-slot`, which creates it anew and has every \
         collection swept; a larger max_slot_wal_keep_size prevents it"
    )]
    WalLost { slot: String, reason: String, resume: Lsn },
    #[error(
        "there is no progress record for slot \"{slot}\" in Kafka, so nobody knows whether changes \
         are missing; run `onelog prepare --adopt-slot`, which also has every collection swept"
    )]
    NoProgressRecord { slot: String },
    #[error(
        "this is Postgres system {found}, but slot \"{slot}\" was published from system {wanted}; \
         point [postgres] url to that one, or choose another topic_prefix for this database"
    )]
    OtherSystem { slot: String, wanted: u64, found: u64 },
    #[error(
        "this server is on timeline {found}, but slot \"{slot}\" was published from timeline \
         {wanted}, which is not in its past: this is an old primary, or another copy of it; point \
         [postgres] url to the current primary, or, if this is the one to go on with, run `onelog \
         prepare --adopt-slot`, which also has every collection swept"
    )]
    OtherTimeline { slot: String, wanted: u32, found: u32 },
    #[error(
        "changes of slot \"{slot}\" up to {published} were published, but the standby that was \
         promoted had only those up to {fork}: what came after is in the log and in no database; \
         run `onelog prepare --adopt-slot`, which also has every collection swept; \
         synchronized_standby_slots prevents it (`onelog check` says how)"
    )]
    PublishedPastFork { slot: String, published: Lsn, fork: Lsn },
    #[error(
        "slot \"{slot}\" resumes at {available}, but changes since {needed} are not yet published: \
         someone moved or re-created it; run `onelog prepare --adopt-slot`, which also has every \
         collection swept"
    )]
    SlotPastResumePoint { slot: String, needed: Lsn, available: Lsn },
    #[error(
        "changes up to {published} were published from slot \"{slot}\", but this server's WAL ends \
         at {server}: its data is older than what was published, as after a restore; run \
         `onelog prepare --adopt-slot`, which also has every collection swept"
    )]
    ServerBehind { slot: String, published: Lsn, server: Lsn },
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("pg_replication_slots answers what we do not understand: {0}")]
    Malformed(String),
}

impl SlotError {
    /// Whether trying again may help without a person's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Query(error) => error.is_transient(),
            Self::Missing { .. }
            | Self::Dropped { .. }
            | Self::NotOurs { .. }
            | Self::WalLost { .. }
            | Self::NoProgressRecord { .. }
            | Self::OtherSystem { .. }
            | Self::OtherTimeline { .. }
            | Self::PublishedPastFork { .. }
            | Self::SlotPastResumePoint { .. }
            | Self::ServerBehind { .. }
            | Self::Malformed(_) => false,
        }
    }
}
