//! Whether what was read is on disk (correctness.md A1), and how to make it so.
//!
//! A snapshot sees commits whose WAL is not flushed yet; after a crash they never happened, and
//! documents read from them would be newer than all truth to come. So a read counts only once the
//! flush LSN has reached the insert LSN taken after its snapshot. On a quiet server nobody flushes
//! the last partial page for a while, so one [`Flusher`] for the whole process gives it a nudge.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_postgres::Statement;

use super::error::{At, ReadError, classify};
use super::session::{self, Server};
use crate::lsn::Lsn;
use crate::postgres::client::Client;
use crate::postgres::url::PostgresUrl;

/// How long to wait for the server's own flush before the nudge: commits beside us flush within
/// a few milliseconds, and each nudge costs the server a transaction.
pub const NUDGE_AFTER: Duration = Duration::from_millis(5);

/// How long to wait in all: a flush is one write to disk. A disk this slow is an outage.
pub const FLUSH_WAIT_MAX: Duration = Duration::from_secs(10);

/// Between two questions: a flush takes about this long. The timer rounds it up to 1.5 ms at most.
const ASK_EVERY: Duration = Duration::from_micros(500);

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

/// One connection that watches how far the server has flushed, and makes it flush, shared by all
/// readers of a server: whoever waits here holds none of the connections that read.
///
/// Invariant: one question or nudge is in flight at a time, and whoever waited for it asks nothing
/// if it went far enough. What is said of one server never counts for another, nor for another
/// timeline: that one's WAL may lack what was read.
pub struct Flusher {
    url: PostgresUrl,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    watch: Option<Watch>,
    nudges: u64,
}

/// The connection, and what it has learned.
struct Watch {
    client: Client,
    server: Server,
    asking: Statement,
    flushed: Lsn,
}

impl std::fmt::Debug for Flusher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flusher").field("url", &self.url).finish_non_exhaustive()
    }
}

const FLUSHED: &str = "SELECT pg_current_wal_flush_lsn()::text";
/// The message is transactional: its commit is what flushes.
const NUDGE: &str = "SELECT pg_logical_emit_message(true, 'onelog.flush', '')";

impl Flusher {
    /// Connects when first needed.
    pub fn new(url: &PostgresUrl) -> Self {
        Self { url: url.clone(), state: Mutex::new(State::default()) }
    }

    /// Returns once `server` has flushed all WAL before `target`.
    pub(super) async fn wait(&self, server: Server, target: Lsn) -> Result<(), ReadError> {
        let mut flushed = Lsn::default();
        match tokio::time::timeout(FLUSH_WAIT_MAX, self.watch(server, target, &mut flushed)).await {
            Ok(result) => result,
            Err(_) => Err(ReadError::NotFlushed { insert: target, flushed }),
        }
    }

    async fn watch(&self, server: Server, target: Lsn, flushed: &mut Lsn) -> Result<(), ReadError> {
        let started = Instant::now();
        let mut nudged = false;
        loop {
            let mut state = self.state.lock().await;
            if let Some(watch) = state.watch.as_ref().filter(|it| it.server == server) {
                *flushed = watch.flushed;
            }
            if *flushed >= target {
                return Ok(());
            }
            // Put back only after success: a question that fails or is dropped drops its
            // connection, and what a server of before a failover had flushed goes with it.
            let kept = state.watch.take().filter(|it| it.server == server && it.is_usable());
            let mut watch = match kept {
                Some(watch) => watch,
                None => Watch::new(&self.url, server).await?,
            };
            if started.elapsed() >= NUDGE_AFTER && !nudged {
                // Once for each wait; another one would not help where this one did not.
                watch.nudge().await?;
                state.nudges += 1;
                nudged = true;
            }
            watch.ask().await?;
            *flushed = watch.flushed;
            state.watch = Some(watch);
            if *flushed >= target {
                return Ok(());
            }
            // Whoever else waits goes on waiting, for this very flush.
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// How many nudges went through: on a busy server few or none.
    pub async fn nudges(&self) -> u64 {
        self.state.lock().await.nudges
    }
}

impl Watch {
    async fn new(url: &PostgresUrl, expected: Server) -> Result<Self, ReadError> {
        let (client, server) = session::connect_flusher(url).await?;
        if server != expected {
            // A failover: what was read may be gone.
            return Err(ReadError::Lost {
                doing: "waiting for the WAL to be flushed",
                source: None,
            });
        }
        let asking = client.prepare(FLUSHED).await.map_err(failed)?;
        Ok(Self { client, server, asking, flushed: Lsn::default() })
    }

    fn is_usable(&self) -> bool {
        !self.client.is_closed()
    }

    async fn nudge(&self) -> Result<(), ReadError> {
        self.client.simple_query(NUDGE).await.map(drop).map_err(failed)
    }

    async fn ask(&mut self) -> Result<(), ReadError> {
        let row = self.client.query_one(&self.asking, &[]).await.map_err(failed)?;
        let text: &str = row.try_get(0).map_err(failed)?;
        self.flushed = text.parse().map_err(|_| ReadError::Inconsistent {
            what: "pg_current_wal_flush_lsn() gave no LSN".to_owned(),
        })?;
        Ok(())
    }
}

fn failed(error: tokio_postgres::Error) -> ReadError {
    classify(error, At::Frame("waiting for the WAL to be flushed"))
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
