//! The replication slot: looked at, created, and refused when it is not where we left it.
//!
//! A slot that was dropped and created again, or moved by someone, looks just like ours and
//! silently lacks changes. What tells them apart is the progress record, which is always durable
//! before its LSN is confirmed (rule 1): the slot's confirmed LSN is at or before ours, or the
//! slot is not the one that we left.
//!
//! **Invariant:** [`decide`] is the only place that lets a stream start, and it never guesses:
//! when changes may be missing, a person decides.

mod error;

use serde::Deserialize;

pub use error::SlotError;

use crate::kafka::progress_record::ProgressRecord;
use crate::lsn::Lsn;
use crate::postgres::connection::{ConnectionError, IdentifySystem, ReplicationConnection};
use crate::postgres::query_error::QueryError;

/// The only output plugin that we read.
const PLUGIN: &str = "pgoutput";

/// `pg_replication_slots.wal_status`: how sure it is that the slot's WAL is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond it, and kept.
    Extended,
    /// `max_slot_wal_keep_size` is exceeded: the next checkpoint may remove it.
    Unreserved,
    /// Removed. The slot can't be read any more.
    Lost,
    /// Before Postgres 13 nothing is said, and nothing is removed.
    Unknown,
}

/// A slot as `pg_replication_slots` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    pub name: String,
    /// None: a physical slot.
    pub plugin: Option<String>,
    pub database: Option<String>,
    /// The process that holds it.
    pub active_pid: Option<i32>,
    pub confirmed_flush_lsn: Option<Lsn>,
    pub restart_lsn: Option<Lsn>,
    pub wal_status: WalStatus,
    /// Why the server gave the slot up (Postgres 16 and later).
    pub invalidation: Option<String>,
    /// How much WAL may still be written before some of it is lost; None: no limit.
    pub safe_wal_bytes: Option<i64>,
    /// Standbys keep a copy of it, by which a promoted one goes on. None: before Postgres 17.
    pub failover: Option<bool>,
}

/// The server, as far as it decides whether its slot is a continuation of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    pub system: IdentifySystem,
    /// Where its history left the timeline of our record, if it is now on a later one.
    pub fork: Option<Lsn>,
}

impl Server {
    /// Asks the server who it is, and if need be whom it descends from.
    ///
    /// # Errors
    /// If the connection fails, or the server refuses.
    pub async fn of(
        connection: &mut ReplicationConnection,
        record: Option<&ProgressRecord>,
    ) -> Result<Self, ConnectionError> {
        let system = connection.identify_system().await?;
        let is_ours = |it: &&ProgressRecord| it.system_id == system.system_id;
        let fork = match record.filter(is_ours) {
            Some(it) if it.timeline < system.timeline => {
                connection.fork_of(system.timeline, it.timeline).await?
            }
            _ => None,
        };
        Ok(Self { system, fork })
    }
}

/// The stream may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// Everything before it is durable in Kafka: START_REPLICATION begins here.
    pub lsn: Lsn,
    /// The last writer stopped with nothing in flight.
    pub clean: bool,
}

/// The row as JSON: columns come and go with versions, and `to_jsonb` has what there is.
#[derive(Deserialize)]
struct WireSlot {
    slot_name: String,
    plugin: Option<String>,
    database: Option<String>,
    active_pid: Option<i32>,
    confirmed_flush_lsn: Option<String>,
    restart_lsn: Option<String>,
    /// Since 13.
    #[serde(default)]
    wal_status: Option<String>,
    /// 16 only: a standby's slot that recovery made unusable.
    #[serde(default)]
    conflicting: Option<bool>,
    /// Since 17.
    #[serde(default)]
    invalidation_reason: Option<String>,
    /// Since 13; null without max_slot_wal_keep_size.
    #[serde(default)]
    safe_wal_size: Option<i64>,
    /// Since 17.
    #[serde(default)]
    failover: Option<bool>,
}

impl SlotState {
    fn from_json(text: &str) -> Result<Self, SlotError> {
        let wire: WireSlot =
            serde_json::from_str(text).map_err(|err| SlotError::Malformed(err.to_string()))?;
        let lsn = |text: Option<String>| -> Result<Option<Lsn>, SlotError> {
            text.map(|it| it.parse())
                .transpose()
                .map_err(|err: crate::lsn::ParseLsnError| SlotError::Malformed(err.to_string()))
        };
        let conflicting = wire.conflicting.filter(|&it| it).map(|_| "conflict".to_owned());
        Ok(Self {
            name: wire.slot_name,
            plugin: wire.plugin,
            database: wire.database,
            active_pid: wire.active_pid,
            confirmed_flush_lsn: lsn(wire.confirmed_flush_lsn)?,
            restart_lsn: lsn(wire.restart_lsn)?,
            wal_status: match wire.wal_status.as_deref() {
                Some("reserved") => WalStatus::Reserved,
                Some("extended") => WalStatus::Extended,
                Some("unreserved") => WalStatus::Unreserved,
                Some("lost") => WalStatus::Lost,
                Some(_) | None => WalStatus::Unknown,
            },
            invalidation: wire.invalidation_reason.or(conflicting),
            safe_wal_bytes: wire.safe_wal_size,
            failover: wire.failover,
        })
    }
}

/// The slot's state; None: there is none of that name.
///
/// # Errors
/// If the query fails, or answers what no version of Postgres does.
pub async fn inspect(
    client: &tokio_postgres::Client,
    name: &str,
) -> Result<Option<SlotState>, SlotError> {
    let sql = "SELECT pg_catalog.to_jsonb(s)::text FROM pg_catalog.pg_replication_slots s \
               WHERE s.slot_name = $1";
    let row = client
        .query_opt(sql, &[&name])
        .await
        .map_err(QueryError::while_doing("read the slot's state"))?;
    row.map(|row| SlotState::from_json(row.get(0))).transpose()
}

/// Where the server's WAL ends.
///
/// # Errors
/// If the query fails, as on a standby.
pub async fn wal_end(client: &tokio_postgres::Client) -> Result<Lsn, SlotError> {
    let sql = "SELECT pg_catalog.pg_current_wal_lsn()::text";
    let row = client.query_one(sql, &[]).await;
    let row = row.map_err(QueryError::while_doing("read the end of WAL"))?;
    let text: String = row.get(0);
    text.parse().map_err(|err: crate::lsn::ParseLsnError| SlotError::Malformed(err.to_string()))
}

/// Creates the slot and returns its first LSN. Waits for the transactions that are running, so a
/// long one holds it up. With `failover` where the server knows it.
///
/// # Errors
/// If Postgres refuses: no free slot, no REPLICATION privilege, `wal_level` not logical.
pub async fn create(
    client: &tokio_postgres::Client,
    name: &str,
    failover: bool,
) -> Result<Lsn, SlotError> {
    // Since 17.
    let version = "SELECT pg_catalog.current_setting('server_version_num')::int >= 170000";
    let row = client.query_one(version, &[]).await;
    let knows_failover = row.map_err(QueryError::while_doing("read the server's version"))?.get(0);
    let more = if failover && knows_failover { ", failover => true" } else { "" };
    let sql = format!(
        "SELECT lsn::text FROM pg_catalog.pg_create_logical_replication_slot($1, $2{more})"
    );
    let row = client
        .query_one(&sql, &[&name, &PLUGIN])
        .await
        .map_err(QueryError::while_doing("create the replication slot"))?;
    let text: String = row.get(0);
    text.parse().map_err(|err: crate::lsn::ParseLsnError| SlotError::Malformed(err.to_string()))
}

/// Drops the slot if it is there, and ends the session that uses it: one of our own role Postgres
/// lets us end.
///
/// # Errors
/// If the session does not end in time, or Postgres refuses.
pub async fn drop_slot(client: &tokio_postgres::Client, name: &str) -> Result<(), QueryError> {
    let end = "SELECT pg_catalog.pg_terminate_backend(active_pid, 5000) \
               FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND active";
    let ended = client.query(end, &[&name]).await;
    ended.map_err(QueryError::while_doing("end the session that uses the slot"))?;
    let drop = "SELECT pg_catalog.pg_drop_replication_slot(slot_name)::text \
                FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
    let dropped = client.query(drop, &[&name]).await;
    dropped.map(|_| ()).map_err(QueryError::while_doing("drop the slot"))
}

/// What of the slot itself, without our record, stands against using it.
pub fn check(name: &str, database: &str, state: Option<&SlotState>) -> Result<Lsn, SlotError> {
    let slot = name.to_owned();
    let Some(state) = state else {
        return Err(SlotError::Missing { slot });
    };
    let lsn = match (&state.plugin, &state.database, state.confirmed_flush_lsn) {
        (Some(plugin), Some(found), Some(lsn)) if plugin == PLUGIN && found == database => lsn,
        (plugin, found, _) => {
            return Err(SlotError::NotOurs {
                slot,
                plugin: plugin.clone().unwrap_or_else(|| "none (it is physical)".to_owned()),
                found: found.clone().unwrap_or_else(|| "none".to_owned()),
                wanted: database.to_owned(),
            });
        }
    };
    let lost = state.wal_status == WalStatus::Lost;
    if lost || state.invalidation.is_some() {
        let reason = state.invalidation.clone().unwrap_or_else(|| "wal_status is lost".to_owned());
        return Err(SlotError::WalLost { slot, reason, resume: lsn });
    }
    Ok(lsn)
}

/// Whether the stream may start, and where.
///
/// The order is from what is most surely wrong: a record of another system says nothing about
/// this one's slot.
pub fn decide(
    (name, database): (&str, &str),
    state: Option<&SlotState>,
    record: Option<&ProgressRecord>,
    server: &Server,
) -> Result<Resume, SlotError> {
    let slot = || name.to_owned();
    if let Some(record) = record {
        check_system(name, record, server)?;
        if state.is_none() {
            return Err(SlotError::Dropped { slot: slot(), published: record.lsn });
        }
    }
    let available = check(name, database, state)?;
    let Some(record) = record else {
        return Err(SlotError::NoProgressRecord { slot: slot() });
    };
    if record.lsn < available {
        return Err(SlotError::SlotPastResumePoint { slot: slot(), needed: record.lsn, available });
    }
    if server.system.xlogpos < record.lsn {
        return Err(SlotError::ServerBehind {
            slot: slot(),
            published: record.lsn,
            server: server.system.xlogpos,
        });
    }
    Ok(Resume { lsn: record.lsn, clean: record.clean })
}

/// After a promotion the slot goes on if all that was published is part of the new timeline, too.
fn check_system(name: &str, record: &ProgressRecord, server: &Server) -> Result<(), SlotError> {
    let slot = name.to_owned();
    let system = &server.system;
    if record.system_id != system.system_id {
        let (wanted, found) = (record.system_id, system.system_id);
        return Err(SlotError::OtherSystem { slot, wanted, found });
    }
    let (wanted, found) = (record.timeline, system.timeline);
    match server.fork {
        _ if wanted == found => Ok(()),
        Some(fork) if wanted < found && record.lsn <= fork => Ok(()),
        Some(fork) if wanted < found => {
            Err(SlotError::PublishedPastFork { slot, published: record.lsn, fork })
        }
        _ => Err(SlotError::OtherTimeline { slot, wanted, found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYSTEM: Server = Server {
        system: IdentifySystem { system_id: 7, timeline: 2, xlogpos: Lsn(100) },
        fork: None,
    };

    fn state() -> SlotState {
        SlotState {
            name: "s".to_owned(),
            plugin: Some("pgoutput".to_owned()),
            database: Some("app".to_owned()),
            active_pid: None,
            confirmed_flush_lsn: Some(Lsn(50)),
            restart_lsn: Some(Lsn(40)),
            wal_status: WalStatus::Reserved,
            invalidation: None,
            safe_wal_bytes: None,
            failover: None,
        }
    }

    fn record() -> ProgressRecord {
        ProgressRecord {
            system_id: 7,
            timeline: 2,
            lsn: Lsn(60),
            clean: false,
            exactly_once: false,
            run_id: "r".to_owned(),
            at_ms: 0,
        }
    }

    #[track_caller]
    fn check(state: Option<SlotState>, record: Option<ProgressRecord>, expected: &str) {
        let decided = decide(("s", "app"), state.as_ref(), record.as_ref(), &SYSTEM);
        let text = decided.map_or_else(|err| err.to_string(), |it| format!("{it:?}"));
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_slot_where_we_left_it_resumes_at_our_record() {
        check(Some(state()), Some(record()), "Resume { lsn: 0/3C, clean: false }");
        let at_slot = ProgressRecord { lsn: Lsn(50), clean: true, ..record() };
        check(Some(state()), Some(at_slot), "Resume { lsn: 0/32, clean: true }");
    }

    #[test]
    fn a_promoted_standby_goes_on_if_it_has_all_that_was_published() {
        let promoted = |fork| Server { fork: Some(Lsn(fork)), ..SYSTEM };
        let before = ProgressRecord { timeline: 1, ..record() };
        let decided = |server| {
            let decided = decide(("s", "app"), Some(&state()), Some(&before), &server);
            decided.map_or_else(|err| err.to_string(), |it| format!("{it:?}"))
        };
        assert_eq!(decided(promoted(60)), "Resume { lsn: 0/3C, clean: false }");
        let lost = decided(promoted(59));
        assert!(lost.contains("up to 0/3C were published, but"), "{lost}");
        assert!(decided(SYSTEM).contains("published from timeline 1"));
    }

    #[test]
    fn what_may_lack_changes_is_refused_by_name() {
        check(None, None, "slot \"s\" does not exist; run `onelog prepare`");
        check(None, Some(record()), "does not exist any more, but changes up to 0/3C");
        let other = SlotState { plugin: Some("wal2json".to_owned()), ..state() };
        check(Some(other), Some(record()), "plugin wal2json in database app");
        let other = SlotState { database: Some("x".to_owned()), ..state() };
        check(Some(other), Some(record()), "in database x");
        let physical = SlotState { plugin: None, database: None, ..state() };
        check(Some(physical), Some(record()), "it is physical");
        let lost = SlotState { wal_status: WalStatus::Lost, ..state() };
        check(Some(lost), Some(record()), "has lost WAL");
        let invalid = SlotState { invalidation: Some("rows_removed".to_owned()), ..state() };
        check(Some(invalid), Some(record()), "(rows_removed)");
        check(Some(state()), None, "no progress record for slot \"s\"");
        let moved = SlotState { confirmed_flush_lsn: Some(Lsn(61)), ..state() };
        check(Some(moved), Some(record()), "resumes at 0/3D, but changes since 0/3C are not yet");
        check(
            Some(state()),
            Some(ProgressRecord { system_id: 8, ..record() }),
            "system 7, but slot \"s\" was published from system 8",
        );
        check(
            Some(state()),
            Some(ProgressRecord { timeline: 1, ..record() }),
            "timeline 2, but slot \"s\" was published from timeline 1",
        );
        check(
            Some(state()),
            Some(ProgressRecord { lsn: Lsn(101), ..record() }),
            "WAL ends at 0/64",
        );
    }

    #[test]
    fn rows_of_old_and_new_versions_are_read() {
        let old = r#"{"slot_name":"s","plugin":"pgoutput","database":"app","active_pid":null,
            "confirmed_flush_lsn":"0/32","restart_lsn":"0/28","slot_type":"logical"}"#;
        let expected = SlotState { wal_status: WalStatus::Unknown, ..state() };
        assert_eq!(SlotState::from_json(old).unwrap(), expected);

        let new = old
            .replace("\"slot_type\":\"logical\"", "\"wal_status\":\"extended\",\"failover\":true");
        let expected =
            SlotState { wal_status: WalStatus::Extended, failover: Some(true), ..state() };
        assert_eq!(SlotState::from_json(&new).unwrap(), expected);
        assert!(SlotState::from_json("{}").is_err());
    }
}
