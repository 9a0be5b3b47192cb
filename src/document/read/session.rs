//! The sessions that reads and nudges run in, and what is asked of a server once.

use std::time::Duration;

use super::error::{At, ReadError, classify};
use super::flush::WalLayout;
use crate::postgres::client::{Client, connect};
use crate::postgres::url::PostgresUrl;

/// Ceilings of one reader on the primary. No defaults here: they are the config's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadLimits {
    /// For each statement.
    pub statement_timeout: Duration,
    /// For locking the tables: while we wait, the application's own queries queue behind us.
    pub lock_timeout: Duration,
    /// Prepared statements kept, 1 or more: each holds a plan in the server's memory.
    pub statements_cached: usize,
}

/// What does not change while a connection to a primary lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Server {
    pub system_id: u64,
    pub timeline: u32,
    pub wal: WalLayout,
}

/// Opens a reader's connection to a primary.
pub(super) async fn connect_reader(
    url: &PostgresUrl,
    limits: &ReadLimits,
) -> Result<(Client, Server), ReadError> {
    let client = connect(url, "onelog read").await.map_err(ReadError::Connect)?;
    // JIT takes longer than any of our queries should; plans adapt to the number of keys, but see
    // `STATE_FEW_KEYS`.
    let settings = format!(
        "SET statement_timeout = {}; SET lock_timeout = {}; SET jit = off; \
         SET plan_cache_mode = auto; SET idle_in_transaction_session_timeout = {}",
        limits.statement_timeout.as_millis(),
        limits.lock_timeout.as_millis(),
        // A reader is never idle in its transaction for longer than a network's hiccup.
        limits.statement_timeout.as_millis() + 10_000,
    );
    let setting = |it| classify(it, At::Frame("setting up a session"));
    client.batch_execute(&settings).await.map_err(setting)?;
    let server = ask(&client).await?;
    Ok((client, server))
}

/// Opens the connection that watches the flush: a nudge waits for our own disk, not for a standby.
pub(super) async fn connect_flusher(url: &PostgresUrl) -> Result<(Client, Server), ReadError> {
    let client = connect(url, "onelog flush").await.map_err(ReadError::Connect)?;
    let settings = "SET synchronous_commit = local; SET default_transaction_read_only = off; \
                    SET statement_timeout = '10s'; SET lock_timeout = '1s'; \
                    SET idle_in_transaction_session_timeout = '10s'";
    let setting = |it| classify(it, At::Frame("setting up a session"));
    client.batch_execute(settings).await.map_err(setting)?;
    let server = ask(&client).await?;
    Ok((client, server))
}

/// Opens the connection of a lookout. Its question takes the lock manager's own locks for a
/// moment, and must not queue for long.
pub(super) async fn connect_lookout(url: &PostgresUrl) -> Result<Client, ReadError> {
    let client = connect(url, "onelog lookout").await.map_err(ReadError::Connect)?;
    let setting = |it| classify(it, At::Frame("setting up a session"));
    let settings = "SET statement_timeout = '5s'; SET synchronous_commit = local; \
                    SET default_transaction_read_only = off";
    client.batch_execute(settings).await.map_err(setting)?;
    Ok(client)
}

/// The timeline comes from the WAL's file name: `pg_control_checkpoint()` lags a promotion (B1).
const ASK: &str = "SELECT pg_is_in_recovery(), \
     (SELECT system_identifier FROM pg_control_system()), \
     CASE WHEN pg_is_in_recovery() THEN 0::bigint ELSE \
     ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END, \
     current_setting('wal_block_size')::bigint, \
     (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size')::bigint";

async fn ask(client: &Client) -> Result<Server, ReadError> {
    let asking = |it| classify(it, At::Frame("asking the server for its timeline"));
    let row = client.query_one(ASK, &[]).await.map_err(asking)?;
    if row.try_get::<_, bool>(0).map_err(asking)? {
        return Err(ReadError::InRecovery);
    }
    let number = |nth: usize| row.try_get::<_, i64>(nth).map_err(asking);
    let (timeline, page, segment) = (number(2)?, number(3)?, number(4)?);
    let server = || {
        let (page_bytes, segment_bytes) = (u64::try_from(page).ok()?, u64::try_from(segment).ok()?);
        let wal = (page_bytes > 0 && segment_bytes > 0)
            .then_some(WalLayout { page_bytes, segment_bytes })?;
        Some((u32::try_from(timeline).ok()?, wal))
    };
    let (timeline, wal) = server().ok_or_else(|| ReadError::Inconsistent {
        what: format!("timeline {timeline}, WAL pages of {page} and segments of {segment} bytes"),
    })?;
    // The identifier is an unsigned number in a signed type.
    Ok(Server { system_id: number(1)?.cast_unsigned(), timeline, wal })
}
