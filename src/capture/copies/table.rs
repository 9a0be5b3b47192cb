//! The copy of one table: chunk after chunk, from where it was, to its end.
//!
//! ```text
//! low watermark │ wait until older transactions are seen │ chunk · high watermark │ chunk · …
//! ```
//!
//! The wait is what makes the first chunk safe (A9). Of the transactions that the stream delivered
//! before the low watermark nothing is noted, here or, after a restart, anywhere: some may wait for
//! a standby, and some may be older than the slot and in no stream at all. So a chunk is used only
//! if its snapshot sees every transaction that began before the low watermark. From there on
//! `kafka::overlap` knows better.
//!
//! A chunk's high watermark is emitted after it was read. What the stream brings is flushed, so
//! with the watermark everything that the chunk saw is: no row is published that a crash takes back
//! (A1).
//!
//! **Invariant:** a position is noted only once all rows before it are durable in Kafka.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};

use super::Session;
use super::server::{CopyError, connect, emit, expected_rows};
use crate::causes::with_causes;
use crate::kafka::chunk::{Chunk, CopyWord, Mark, Outcome};
use crate::kafka::copy_record::{After, CopyRecord, CopyState, LeafPosition};
use crate::kafka::envelope::TableShape;
use crate::lsn::Lsn;
use crate::postgres::client::{self, Client};
use crate::postgres::copy::{
    ChunkRead, Chunked, CopyReadError, CopyTable, Wanted, describe, read_chunk,
};
use crate::postgres::publication::{self, TableInfo};
use crate::postgres::query_error::QueryError;
use crate::postgres::source::Shapes;

/// Pauses between tries, doubled from the first to the second.
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];

/// Most bytes of a chunk: with some tables at once it stays far below the daemon's 60 MB.
const CHUNK_BYTES_MAX: usize = 2 << 20;

/// Live changes that wait are given way to: some 50 ms of them at full speed.
const LAG_BYTES_MAX: i64 = 8 << 20;

/// A copy gives way for this long a chunk at most, or it would never end behind a stream that is
/// always late.
const GIVE_WAY_MAX: Duration = Duration::from_secs(2);

/// How often it is looked whether older transactions are over, or live changes are through.
const LOOK: Duration = Duration::from_millis(50);

/// After this long a wait is worth telling.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// How often a position is noted. After a crash this much is repeated.
const NOTE_INTERVAL: Duration = Duration::from_millis(500);

/// How often a copy says in the log how far it is.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Most chunks that are published and not yet durable. More would only be repeated after a crash.
const UNCONFIRMED_MAX: usize = 64;

/// How a copy ended.
pub(super) enum Ended {
    Done,
    /// Its table is gone from the publication.
    NotPublished,
    /// By the session's end, or because somebody wished so.
    Stopped,
}

/// The name by which a table is copied: its root's, as `namespace.name`.
pub(super) fn name_of(info: &TableInfo) -> String {
    format!("{}.{}", info.root_namespace, info.root_name)
}

/// The copy of a table.
pub(super) struct TableCopy {
    session: Arc<Session>,
    table: String,
}

impl TableCopy {
    pub(super) fn new(session: Arc<Session>, table: String) -> Self {
        Self { session, table }
    }

    /// Tries for ever, from the last noted position.
    pub(super) async fn run(self) -> Ended {
        let mut pause = BACKOFF[0];
        loop {
            let Some(record) = self.session.record(&self.table) else { return Ended::Stopped };
            let before = record.rows;
            let copy = self.session.next_copy.fetch_add(1, Ordering::Relaxed);
            let error = match Try::new(&self, copy, record).copy().await {
                Ok(()) => return Ended::Done,
                Err(CopyError::NotPublished) => return Ended::NotPublished,
                Err(CopyError::SessionOver) => return Ended::Stopped,
                Err(error) => with_causes(&error),
            };
            // A full channel has a word of ours in it that will be found meaningless as well.
            self.session.words.try_send(CopyWord::Over { copy }).unwrap_or_default();
            if self.session.record(&self.table).is_some_and(|it| before < it.rows) {
                pause = BACKOFF[0];
            }
            let table = &self.table;
            tracing::warn!(table, error, retry_after = ?pause, "the copy of a table is held up");
            self.session.desk.say(table, |it| it.waits_for = Some(error));
            sleep(pause).await;
            pause = BACKOFF[1].min(pause * 2);
        }
    }
}

/// Where in an ordinary table the next chunk begins, and how the table is.
struct Place {
    info: TableInfo,
    described: Option<(CopyTable, Arc<TableShape>)>,
    after: Option<After>,
}

/// What came of a look at the table.
enum Step {
    Read(ChunkRead, Arc<TableShape>),
    Again,
    /// It is none of the copied tables any more.
    Gone,
}

/// One try: a connection, a low watermark, and as many chunks as go well.
struct Try<'a> {
    session: &'a Session,
    table: &'a str,
    copy: u64,
    chunks: u64,
    record: CopyRecord,
    /// Every transaction up to this one must be over before a snapshot is used.
    gate: u64,
    /// Positions that are published, by where they end.
    published: VecDeque<(Lsn, CopyRecord)>,
    noted: Instant,
    begun: (Instant, u64),
    logged: Instant,
    expected: u64,
}

impl<'a> Try<'a> {
    fn new(of: &'a TableCopy, copy: u64, record: CopyRecord) -> Self {
        let now = Instant::now();
        Self {
            session: &of.session,
            table: &of.table,
            copy,
            chunks: 0,
            gate: u64::MAX,
            published: VecDeque::new(),
            noted: now,
            begun: (now, record.rows),
            logged: now,
            expected: 0,
            record,
        }
    }

    async fn copy(mut self) -> Result<(), CopyError> {
        let config = &self.session.config;
        let mut client = connect(self.session).await?;
        let shapes = client::connect(&config.postgres.url, "onelog copy").await?;
        let publication = &config.postgres.publication_name;
        let mut shapes = Shapes::new(shapes, &config.kafka, publication).await?;
        let leaves = self.leaves(&client).await?;
        self.expected = expected_rows(&client, &leaves).await?;
        let (table, rows) = (self.table, self.record.rows);
        tracing::info!(table, rows, expected = self.expected, "copying");
        self.low_watermark(&client).await?;
        for leaf in &leaves {
            if !self.record.done_leaves.contains(&leaf.oid.0) {
                self.leaf(&mut client, &mut shapes, leaf).await?;
            }
        }
        while !self.published.is_empty() {
            self.wait_for_durable().await?;
        }
        self.record.state = CopyState::Done;
        self.session.note(self.table, self.record).await?;
        self.session.words.try_send(CopyWord::Over { copy: self.copy }).unwrap_or_default();
        Ok(())
    }

    /// The ordinary tables that are copied under this name.
    async fn leaves(&self, client: &Client) -> Result<Vec<TableInfo>, CopyError> {
        let publication = &self.session.config.postgres.publication_name;
        let mut leaves = publication::published_tables(client, publication).await?;
        leaves.retain(|it| name_of(it) == self.table);
        if leaves.is_empty() { Err(CopyError::NotPublished) } else { Ok(leaves) }
    }

    async fn low_watermark(&mut self, client: &Client) -> Result<(), CopyError> {
        let (namespace, name) = self.table.split_once('.').unwrap_or(("", self.table));
        let topic = self.session.config.kafka.entity_topic(namespace, name);
        let session = self.session.name.clone();
        emit(client, &Mark::Low { session, copy: self.copy, topic }).await?;
        // Begun after the watermark's commit: whatever was delivered before that is older.
        let sql = "SELECT pg_catalog.pg_current_xact_id()::text";
        let failed = QueryError::while_doing("have a transaction id assigned");
        let xid: String = client.query_one(sql, &[]).await.map_err(failed)?.get(0);
        let malformed = |_| CopyReadError::Malformed("a transaction id");
        self.gate = xid.parse().map_err(malformed)?;
        self.wait_for_gate(client).await
    }

    /// Waits until new snapshots see every transaction that is older than the low watermark.
    async fn wait_for_gate(&self, client: &Client) -> Result<(), CopyError> {
        const OLDEST: &str = "SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())\
             ::text, (SELECT pid FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL \
             ORDER BY pg_catalog.age(backend_xid) DESC LIMIT 1)";
        let began = Instant::now();
        let mut told = false;
        loop {
            let failed = QueryError::while_doing("look for older transactions");
            let row = client.query_one(OLDEST, &[]).await.map_err(failed)?;
            let xmin: Option<u64> = row.get::<_, String>(0).parse().ok();
            if xmin.is_some_and(|it| self.gate < it) {
                self.session.desk.say(self.table, |it| it.waits_for = None);
                return Ok(());
            }
            if TELL_AFTER < began.elapsed() && !told {
                told = true;
                let pid: Option<i32> = row.get(1);
                let who = pid.map(|it| format!(" (the oldest is of pid {it})")).unwrap_or_default();
                let reason = format!("transactions that began before the copy{who}");
                tracing::warn!(table = self.table, reason, "a copy waits");
                self.session.desk.say(self.table, |it| it.waits_for = Some(reason));
            }
            sleep(LOOK).await;
        }
    }

    async fn leaf(
        &mut self,
        client: &mut Client,
        shapes: &mut Shapes,
        leaf: &TableInfo,
    ) -> Result<(), CopyError> {
        let begun = self.record.leaf.take().filter(|it| it.oid == leaf.oid.0);
        let after = begun.map(|it| it.after);
        let mut place = Place { info: leaf.clone(), described: None, after };
        loop {
            self.give_way().await;
            let (read, shape) = match self.read(client, shapes, &mut place).await? {
                Step::Read(read, shape) => (read, shape),
                Step::Again => continue,
                Step::Gone => return Ok(()),
            };
            let next = read.next.clone();
            let Some((end, rows)) = self.publish(client, shape, read).await? else { continue };
            self.advance(leaf.oid.0, next.clone(), (end, rows));
            self.pace(rows).await;
            self.note_what_is_durable().await?;
            while UNCONFIRMED_MAX <= self.published.len() {
                self.wait_for_durable().await?;
            }
            if next.is_none() {
                return Ok(());
            }
            place.after = next;
        }
    }

    /// Reads the chunk at this place, if the table is still as it was described.
    async fn read(
        &mut self,
        client: &mut Client,
        shapes: &mut Shapes,
        place: &mut Place,
    ) -> Result<Step, CopyError> {
        if place.described.is_none() {
            let table = describe(client, &place.info).await?;
            let shape = shapes.shape(Arc::clone(&table.relation), None).await?;
            place.described = Some((table, shape));
        }
        let Some((table, shape)) = &place.described else { return Ok(Step::Again) };
        let wanted = Wanted {
            after: place.after.as_ref(),
            condition: self.record.condition.as_deref(),
            rows: self.session.config.copy.chunk_rows,
            bytes_max: CHUNK_BYTES_MAX,
        };
        let (chunked, usable) = read_chunk(client, table, &wanted).await?;
        if !usable {
            *client = connect(self.session).await?;
        }
        match chunked {
            // Snapshots only grow, so this holds; it is what everything rests on.
            Chunked::Rows(read) if self.gate < read.snapshot.xmin => {
                Ok(Step::Read(read, Arc::clone(shape)))
            }
            Chunked::Rows(_) => {
                self.wait_for_gate(client).await?;
                Ok(Step::Again)
            }
            Chunked::Moved => {
                let table = self.table;
                tracing::info!(table, "its key or its file changed: it is copied from the start");
                place.after = None;
                Ok(Step::Again)
            }
            Chunked::Redefined => {
                let leaves = self.leaves(client).await?;
                let now = leaves.into_iter().find(|it| it.oid == place.info.oid);
                // Detached or dropped: what is gone is not of this table.
                let Some(info) = now else { return Ok(Step::Gone) };
                (place.info, place.described) = (info, None);
                Ok(Step::Again)
            }
        }
    }

    /// A chunk is published, and ends at `end`.
    fn advance(&mut self, oid: u32, next: Option<After>, (end, rows): (Lsn, u64)) {
        self.record.rows += rows;
        match next {
            Some(after) => self.record.leaf = Some(LeafPosition { oid, after }),
            None => {
                self.record.done_leaves.push(oid);
                self.record.leaf = None;
            }
        }
        self.published.push_back((end, self.record.clone()));
        self.tell();
    }

    /// Hands a chunk over and emits its high watermark. None: it must be read again.
    async fn publish(
        &mut self,
        client: &Client,
        shape: Arc<TableShape>,
        read: ChunkRead,
    ) -> Result<Option<(Lsn, u64)>, CopyError> {
        if read.rows.is_empty() {
            // As durable as what was published before.
            let last = self.published.back().map_or(Lsn(0), |it| it.0);
            return Ok(Some((last, 0)));
        }
        let ChunkRead { snapshot, rows, .. } = read;
        self.chunks += 1;
        // Unique in the session: no copy has four billion chunks in one try.
        let number = self.copy << 32 | self.chunks;
        let (reply, answer) = oneshot::channel();
        let chunk = Chunk { copy: self.copy, number, shape, snapshot, rows, reply };
        let over = |_| CopyError::SessionOver;
        self.session.words.send(CopyWord::Chunk(chunk)).await.map_err(over)?;
        emit(client, &Mark::High { session: self.session.name.clone(), number }).await?;
        match answer.await.map_err(|_| CopyError::SessionOver)? {
            Outcome::Published { end, published, overtaken } => {
                self.session.metrics.copy_rows_total.inc_by(published);
                self.session.metrics.copy_overtaken_rows_total.inc_by(overtaken);
                Ok(Some((end, published)))
            }
            Outcome::NoLowWatermark => {
                self.low_watermark(client).await?;
                Ok(None)
            }
            Outcome::Refused(reason) => Err(CopyError::Refused(reason)),
        }
    }

    /// Live changes go first.
    async fn give_way(&self) {
        let until = Instant::now() + GIVE_WAY_MAX;
        while LAG_BYTES_MAX < self.session.metrics.capture_lag_bytes.get() && Instant::now() < until
        {
            sleep(LOOK).await;
        }
    }

    /// Not faster than the operator wants.
    async fn pace(&self, rows: u64) {
        let most = self.session.config.copy.rows_per_second_max;
        if let (Ok(rows), true) = (u32::try_from(rows), 0 < most) {
            let due = Duration::from_secs(1) * rows / most;
            sleep_until(Instant::now() + due).await;
        }
    }

    /// Notes the newest position that is durable, if it is time.
    async fn note_what_is_durable(&mut self) -> Result<(), CopyError> {
        if self.noted.elapsed() < NOTE_INTERVAL {
            return Ok(());
        }
        let confirmed = *self.session.confirmed.borrow();
        let mut durable = None;
        while self.published.front().is_some_and(|it| it.0 <= confirmed) {
            durable = self.published.pop_front().map(|it| it.1);
        }
        if let Some(record) = durable {
            self.session.note(self.table, record).await?;
            self.noted = Instant::now();
        }
        Ok(())
    }

    /// Waits until one more position is durable.
    async fn wait_for_durable(&mut self) -> Result<(), CopyError> {
        let Some((end, _)) = self.published.front() else { return Ok(()) };
        let mut confirmed = self.session.confirmed.clone();
        let reached = confirmed.wait_for(|it| end <= it).await;
        drop(reached.map_err(|_| CopyError::SessionOver)?);
        if let Some((_, record)) = self.published.pop_front() {
            // The last one is noted as done.
            if !self.published.is_empty() && NOTE_INTERVAL <= self.noted.elapsed() {
                self.session.note(self.table, record).await?;
                self.noted = Instant::now();
            }
        }
        Ok(())
    }

    /// Says how far the copy is, at `/v1/status` and now and then in the log.
    fn tell(&mut self) {
        let (since, rows_before) = self.begun;
        let (rows, expected) = (self.record.rows, self.expected.max(self.record.rows));
        let millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = (rows - rows_before).saturating_mul(1000) / millis;
        // With a condition nobody knows how many rows there are.
        let known = self.record.condition.is_none();
        let left = (expected - rows).checked_div(rate).filter(|_| known);
        self.session.desk.say(self.table, |it| {
            (it.rows, it.expected_rows, it.rows_per_second) = (rows, expected, rate);
            (it.seconds_left, it.waits_for) = (left, None);
        });
        if LOG_INTERVAL <= self.logged.elapsed() {
            self.logged = Instant::now();
            let table = self.table;
            let seconds_left = left;
            tracing::info!(table, rows, expected, rows_per_second = rate, seconds_left, "copying");
        }
    }
}
