//! Partitions that come and go, before Postgres 15: its walsender remembers of each table whether
//! it is published, and does not notice that a table was attached or detached. What is then written
//! to one that it has seen before is left out of the stream, until another walsender looks anew.
//! (15 and later look at each change of a table's definition: `rel_sync_cache_relation_cb`.)
//!
//! So the session ends, as at a stop and with nothing lost, and the next one has a new walsender.
//! What was written in between is in no log; a person is told which table to copy.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::causes::with_causes;
use crate::config::PostgresConfig;
use crate::postgres::client::{self, Client};
use crate::postgres::query_error::QueryError;

/// How often it is looked: what is written to a new partition until then may have to be copied.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Since this version the walsender notices by itself.
const NOTICED_SINCE: i32 = 150_000;

/// Ends once the published partitions are others than at first; never, where that does not matter.
pub(super) async fn run_partition_watch(config: PostgresConfig) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut client, mut first): (Option<Client>, Option<String>) = (None, None);
    loop {
        ticks.tick().await;
        if client.is_none() {
            let connected = client::connect(&config.url, "onelog partitions").await;
            client = connected.map_err(|error| told(&error)).ok();
        }
        let Some(connected) = &client else { continue };
        match look(connected, &config.publication_name).await {
            Ok(None) => return std::future::pending().await,
            Ok(Some(now)) if first.as_ref().is_none_or(|it| *it == now) => first = Some(now),
            Ok(Some(_)) => {
                tracing::warn!(
                    "a partition was attached or detached: a new session begins, as this server's \
                     walsender does not notice; if one that had been written to before was attached, \
                     run `onelog copy` of its table"
                );
                return;
            }
            Err(error) => {
                told(&error);
                client = None;
            }
        }
    }
}

/// The stream meets the same fault, and tells it loudly.
fn told(error: &dyn std::error::Error) {
    tracing::debug!(error = %with_causes(error), "can't look for partitions");
}

/// The published partitions. None: the server needs no watching.
async fn look(client: &Client, publication: &str) -> Result<Option<String>, QueryError> {
    let failed = QueryError::while_doing("look for partitions");
    let version = "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4";
    let version: i32 = client.query_one(version, &[]).await.map_err(&failed)?.get(0);
    if NOTICED_SINCE <= version {
        return Ok(None);
    }
    let sql = "SELECT coalesce(pg_catalog.string_agg(c.oid::text, ' ' ORDER BY c.oid), '') \
               FROM pg_catalog.pg_get_publication_tables($1) t \
               JOIN pg_catalog.pg_class c ON c.oid = t.relid WHERE c.relispartition";
    let row = client.query_one(sql, &[&publication]).await.map_err(&failed)?;
    Ok(Some(row.get(0)))
}
