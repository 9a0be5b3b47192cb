//! STAGE: old rows of outbox tables -> nothing, once they are published. Off unless asked for.
//!
//! How a row is known to be published: the old rows are read first, then the WAL's end, then it is
//! waited until the slot is confirmed past that. A row that a snapshot sees has committed before
//! that end, and what is confirmed is durable in Kafka. Only then are exactly these rows deleted,
//! by place and id, so that a row that took a freed place meanwhile stays.
//!
//! It never updates a row, never deletes one that a reader could still publish, and never stands in
//! the application's way for long: small batches, short waits for locks, a pause between rounds.
//!
//! **Invariant:** a row is deleted only after its event was confirmed to Postgres as durable.

use std::time::Duration;

use postgres_protocol::escape::escape_identifier;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;

use crate::causes::with_causes;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::postgres::client;
use crate::postgres::connection_error::ConnectionError;
use crate::postgres::query_error::QueryError;

/// Most rows deleted by one statement: some milliseconds of work and of locks.
const BATCH_ROWS: u64 = 500;

/// Between rounds. A round goes on as long as it finds full batches.
const ROUND_PAUSE: Duration = Duration::from_secs(5);

/// How often the slot is looked at while a batch waits for it.
const CONFIRMED_POLL: Duration = Duration::from_millis(200);

/// Longest that a batch waits to be confirmed; then the next round starts over.
const CONFIRMED_WAIT: Duration = Duration::from_secs(30);

/// The application goes first.
const LIMITS: &str = "SET lock_timeout = '500ms'; SET statement_timeout = '10s'";

/// Column of a row's age if the config names none.
pub const AGE_COLUMN: &str = "created_at";

/// Why a round ended early. The next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("can't connect to Postgres")]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("the slot was not confirmed to {lsn} within {}s", CONFIRMED_WAIT.as_secs())]
    NotConfirmed { lsn: String },
}

impl CleanupError {
    /// All are tried again: at worst an outbox grows, which loses nothing.
    pub fn is_transient(&self) -> bool {
        true
    }
}

/// Cleans the outbox tables from time to time, until it is dropped. What fails is told and tried
/// again.
pub async fn run_cleanup(config: &Config, metrics: &Metrics) {
    loop {
        sleep(ROUND_PAUSE.min(config.outbox.cleanup_after)).await;
        if let Err(error) = round(config, metrics).await {
            tracing::warn!(error = with_causes(&error), "old rows of the outbox stay for now");
        }
    }
}

async fn round(config: &Config, metrics: &Metrics) -> Result<(), CleanupError> {
    let client = client::connect(&config.postgres.url, "onelog cleanup").await?;
    let limited = client.batch_execute(LIMITS).await;
    limited.map_err(QueryError::while_doing("set the limits of a clean-up"))?;
    for table in &config.outbox.tables {
        loop {
            let found = clean_batch(&client, config, table, CONFIRMED_WAIT).await?;
            metrics.outbox_cleaned_rows_total.inc_by(found);
            if found < BATCH_ROWS {
                break;
            }
        }
    }
    Ok(())
}

/// Deletes at most one batch of a table's old and published rows: how many.
///
/// # Errors
/// If a statement fails, or the rows are not published within `wait`; then none is deleted.
pub async fn clean_batch(
    client: &Client,
    config: &Config,
    table: &str,
    wait: Duration,
) -> Result<u64, CleanupError> {
    let outbox = &config.outbox;
    let quoted = |name: &str| escape_identifier(name).trim().to_owned();
    let table: Vec<String> = table.split('.').map(quoted).collect();
    let table = table.join(".");
    let age = quoted(outbox.columns.timestamp.as_deref().unwrap_or(AGE_COLUMN));
    // An outbox whose id has another name has it named in the config.
    let id = quoted(outbox.columns.id.first().map_or("id", String::as_str));
    let seconds = outbox.cleanup_after.as_secs_f64();
    let old = format!(
        "SELECT ctid::text, {id}::text FROM {table} \
         WHERE {age} < pg_catalog.now() - pg_catalog.make_interval(secs => $1) \
         ORDER BY {age} LIMIT {BATCH_ROWS}"
    );
    let rows = client.query(&old, &[&seconds]).await;
    let rows = rows.map_err(QueryError::while_doing("look for old rows of an outbox"))?;
    if rows.is_empty() {
        return Ok(0);
    }
    let column = |nth: usize| rows.iter().map(|it| it.get::<_, String>(nth)).collect::<Vec<_>>();
    let (places, ids) = (column(0), column(1));
    confirmed(client, config, wait).await?;
    let delete = format!(
        "DELETE FROM {table} WHERE ctid = ANY ($1::text[]::tid[]) AND {id}::text = ANY ($2::text[])"
    );
    let deleted = client.execute(&delete, &[&places, &ids]).await;
    Ok(deleted.map_err(QueryError::while_doing("delete old rows of an outbox"))?)
}

/// Waits until everything that is committed and visible now is durable in Kafka.
async fn confirmed(client: &Client, config: &Config, wait: Duration) -> Result<(), CleanupError> {
    let asked = QueryError::while_doing("ask how far the slot is confirmed");
    let end = "SELECT pg_catalog.pg_current_wal_insert_lsn()::text";
    let lsn: String = client.query_one(end, &[]).await.map_err(&asked)?.get(0);
    let reached = "SELECT confirmed_flush_lsn >= $1::text::pg_catalog.pg_lsn \
                   FROM pg_catalog.pg_replication_slots WHERE slot_name = $2";
    let give_up = Instant::now() + wait;
    loop {
        let slot = &config.postgres.slot_name;
        let row = client.query_opt(reached, &[&lsn, slot]).await.map_err(&asked)?;
        if row.is_some_and(|it| it.get::<_, Option<bool>>(0) == Some(true)) {
            return Ok(());
        }
        if give_up < Instant::now() {
            return Err(CleanupError::NotConfirmed { lsn });
        }
        sleep(CONFIRMED_POLL).await;
    }
}
