//! Whether what was read is on disk (correctness.md A1), and how to make it so.
//!
//! A snapshot sees commits whose WAL is not flushed yet; after a crash they never happened, and
//! documents read from them would be newer than all truth to come. So a read counts only once the
//! flush LSN has reached the insert LSN taken after its snapshot. On a quiet server nobody flushes
//! the last partial page for a while, so one [`Flusher`] for the whole process gives it a nudge.

use std::time::Duration;

use tokio::sync::Mutex;

use super::session;
use crate::lsn::Lsn;
use crate::postgres::client::Client;
use crate::postgres::url::PostgresUrl;

/// How long to wait for the server's own flush before the nudge: commits beside us flush within
/// a few milliseconds, and each nudge costs the server a transaction.
pub const NUDGE_AFTER: Duration = Duration::from_millis(5);

/// How long to wait in all: a flush is one write to disk. A disk this slow is an outage.
pub const FLUSH_WAIT_MAX: Duration = Duration::from_secs(10);

/// Where in the WAL's pages a position lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalLayout {
    /// `wal_block_size`, 8 KiB unless compiled otherwise.
    pub page_bytes: u64,
    /// `wal_segment_size`, 16 MiB unless initdb was told otherwise.
    pub segment_bytes: u64,
}

/// `SizeOfXLogShortPHD`: what a page of WAL begins with.
const PAGE_HEADER_BYTES: u64 = 24;
/// `SizeOfXLogLongPHD`: what a segment's first page begins with.
const SEGMENT_HEADER_BYTES: u64 = 40;

impl WalLayout {
    /// How far the WAL must be flushed for all inserted before `insert` to be on disk.
    ///
    /// `pg_current_wal_insert_lsn()` answers where the next record begins. After an exactly full
    /// page or a segment switch that is behind the next page's header, where no WAL is yet, and
    /// the flush LSN would not get there until somebody writes.
    pub fn end_of_wal(&self, insert: Lsn) -> Lsn {
        let header = match insert.0 % self.segment_bytes < self.page_bytes {
            true => SEGMENT_HEADER_BYTES,
            false => PAGE_HEADER_BYTES,
        };
        let into_page = insert.0 % self.page_bytes;
        if into_page <= header { Lsn(insert.0 - into_page) } else { insert }
    }
}

/// One connection that makes the server flush, shared by all readers of a server.
///
/// Invariant: one nudge is in flight at a time, and whoever waited for it sends none if it went
/// far enough.
pub struct Flusher {
    url: PostgresUrl,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    client: Option<Client>,
    /// How far this connection's server has flushed, as its last nudge saw it.
    flushed: Lsn,
    nudges: u64,
}

impl std::fmt::Debug for Flusher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flusher").field("url", &self.url).finish_non_exhaustive()
    }
}

/// The message is transactional: its commit is what flushes.
const NUDGE: &str = "SELECT pg_logical_emit_message(true, 'onelog.flush', '')";

impl Flusher {
    /// Connects when first needed.
    pub fn new(url: &PostgresUrl) -> Self {
        Self { url: url.clone(), state: Mutex::new(State::default()) }
    }

    /// Makes the server flush its WAL, unless a nudge that was waited for got to `target`.
    ///
    /// A failed nudge is not an error: the reader's wait goes on without it, and the next one
    /// connects anew.
    pub async fn nudge(&self, target: Lsn) {
        let mut state = self.state.lock().await;
        if state.flushed >= target {
            return;
        }
        // Put back only after success: a nudge that fails or is dropped drops its connection,
        // and what a server of before a failover had flushed is forgotten with it.
        let client = state.client.take().filter(|it| !it.is_closed());
        state.flushed = Lsn::default();
        let client = match client {
            Some(client) => client,
            None => match session::connect_flusher(&self.url).await {
                Ok(client) => client,
                Err(_) => return,
            },
        };
        if let Some(flushed) = nudge(&client).await {
            state.flushed = flushed;
            state.client = Some(client);
            state.nudges += 1;
        }
    }

    /// How many nudges went through: on a busy server few or none.
    pub async fn nudges(&self) -> u64 {
        self.state.lock().await.nudges
    }
}

async fn nudge(client: &Client) -> Option<Lsn> {
    client.simple_query(NUDGE).await.ok()?;
    let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.ok()?;
    row.try_get::<_, &str>(0).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_within_a_page_header_is_the_page() {
        let layout = WalLayout { page_bytes: 8192, segment_bytes: 16 << 20 };
        let cases = [
            ("0/3000000", "0/3000000"),
            ("0/3000028", "0/3000000"),
            ("0/3000029", "0/3000029"),
            ("0/3000030", "0/3000030"),
            ("0/3002000", "0/3002000"),
            ("0/3002018", "0/3002000"),
            ("0/3002019", "0/3002019"),
            ("0/3002028", "0/3002028"),
            ("0/3001FF8", "0/3001FF8"),
            ("1/28", "1/0"),
            ("0/0", "0/0"),
        ];
        for (insert, expected) in cases {
            let end = layout.end_of_wal(insert.parse().unwrap());
            assert_eq!(end.to_string(), expected, "{insert}");
        }
        let small = WalLayout { page_bytes: 8192, segment_bytes: 1 << 20 };
        assert_eq!(small.end_of_wal(Lsn(0x30_0028)), Lsn(0x30_0000));
    }
}
