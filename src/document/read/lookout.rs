//! Whether a long read stands in somebody's way (A10).
//!
//! A read holds ACCESS SHARE on its tables. DDL that wants more waits for it, and behind the DDL
//! waits the application. A refresh is short; the slice of a sweep may not be, and can be read
//! again at any time, so that it is the one to go.

use tokio::sync::Mutex;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::session;
use crate::postgres::client::Client;
use crate::postgres::url::PostgresUrl;

/// `pg_locks` and not `pg_stat_activity`: there another role's waiting shows to monitors only.
const IN_THE_WAY: &str = "SELECT EXISTS (SELECT FROM pg_locks AS l WHERE NOT l.granted \
     AND $1::integer = ANY (pg_blocking_pids(l.pid)))";

const NOTHING: &str = "SELECT pg_logical_emit_message(true, 'onelog.lookout', '')";

/// A connection of its own, since at such a moment all others may be busy.
pub struct Lookout {
    url: PostgresUrl,
    client: Mutex<Option<Client>>,
}

impl std::fmt::Debug for Lookout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookout").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Lookout {
    /// Connects when first needed.
    pub fn new(url: &PostgresUrl) -> Self {
        Self { url: url.clone(), client: Mutex::default() }
    }

    /// Whether somebody waits for a lock of this backend. Who can't be asked says no: the read's
    /// own time limit holds all the same.
    pub async fn is_in_the_way(&self, pid: i32) -> bool {
        let row = self.ask(IN_THE_WAY, &[&pid]).await;
        row.and_then(|it| it.try_get(0).ok()).unwrap_or(false)
    }

    /// Has the server commit a transaction that does nothing, so that N of all snapshots grows.
    pub async fn spend_transaction(&self) {
        let spent = self.ask(NOTHING, &[]).await;
        // Whoever wanted it looks at N again.
        drop(spent);
    }

    /// Ends a backend of ours whose connection nobody uses any more. Closing the connection is not
    /// enough: the server would notice when the query is done.
    pub async fn end(&self, pid: i32) {
        let ended = self.ask("SELECT pg_terminate_backend($1)", &[&pid]).await;
        // One that can't be ended ends by its statement_timeout.
        drop(ended);
    }

    async fn ask(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Option<Row> {
        let mut place = self.client.lock().await;
        let client = match place.take().filter(|it| !it.is_closed()) {
            Some(client) => client,
            None => session::connect_lookout(&self.url).await.ok()?,
        };
        // Put back only after success.
        let row = client.query_one(sql, values).await.ok()?;
        *place = Some(client);
        Some(row)
    }
}
