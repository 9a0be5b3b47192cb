//! STAGE: the walsender's stream -> batches of changes; and back: what is durable is confirmed.
//!
//! It reads, decodes and hands on, in the order of commits. It tells Postgres only the LSN that
//! comes back through `confirmed`, at least once a second, so that neither side takes the other
//! for dead, also while the log is slow and nothing is read.
//!
//! It never skips a message: one that can't be decoded ends the session.
//!
//! **Invariant:** what is flushed in a status update was durable in the progress topic before.

mod shapes;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant as ClockInstant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

pub use shapes::Shapes;

use crate::change::{Begin, Change, Step};
use crate::kafka::batch::{Batch, Item};
use crate::kafka::delivery::now_us;
use crate::kafka::envelope::EnvelopeError;
use crate::lsn::Lsn;
use crate::metrics::Metrics;
use crate::outbox::{CONTEXT_PREFIX, EVENT_PREFIX};
use crate::postgres::assemble::{AssembleError, Assembler};
use crate::postgres::connection::{ConnectionError, ReplicationStream};
use crate::postgres::decode::DecodeError;
use crate::postgres::holder::Holder;
use crate::postgres::pgoutput::{self, Message};
use crate::postgres::publication::PublicationError;
use crate::postgres::query_error::QueryError;
use crate::postgres::text::TypeError;
use crate::postgres::walsender::{self, StandbyStatusUpdate, WalMessage};
use crate::relation::RelationId;
use crate::snapshot::widen_xid;

/// Batches between source and producer. Each is at most about 256 KiB of stream, so this is what
/// keeps both busy without holding memory.
pub const BATCHES_MAX: usize = 2;

/// Most tables that a batch describes. The first change of each may ask for a topic to be made and
/// its first record to be written, some 10 ms each, and 40 ms were seen on a busy machine. Three
/// batches wait behind the one in work, and none must have waited for `delivery_timeout` when its
/// turn comes.
pub const SHAPES_MAX: usize = 25;

/// How often we give a sign of life. Well below `wal_sender_timeout`, also a short one.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// The server says something every `wal_sender_timeout / 2` (30 s by default) by itself. After
/// this long without a word we ask.
const ASK_AFTER: Duration = Duration::from_secs(20);

/// Silence after having asked means that the connection is dead though nobody closed it.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("the replication stream broke")]
    Connection(#[from] ConnectionError),
    #[error("Postgres has not said anything for {} s, though it was asked", SILENCE_MAX.as_secs())]
    Silent,
    #[error("slot \"{slot}\" is another process' now ({})", holder(*.now))]
    Taken { slot: String, now: Option<i32> },
    #[error("a message of the replication protocol can't be decoded")]
    Walsender(#[source] DecodeError),
    #[error("the change at {at} can't be decoded")]
    Decode {
        at: Lsn,
        #[source]
        source: DecodeError,
    },
    #[error("the stream is out of order at {at}")]
    Assemble {
        at: Lsn,
        #[source]
        source: AssembleError,
    },
    #[error(transparent)]
    Publication(#[from] PublicationError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Type(#[from] TypeError),
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
}

impl SourceError {
    /// Whether a new session may succeed without a person's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connection(error) => error.is_transient(),
            Self::Silent | Self::Taken { .. } => true,
            Self::Publication(error) => error.is_transient(),
            Self::Query(error) => error.is_transient(),
            Self::Type(error) => error.is_transient(),
            Self::Envelope(error) => error.is_transient(),
            Self::Walsender(_) | Self::Decode { .. } | Self::Assemble { .. } => false,
        }
    }

    /// Whether Postgres refuses what a person can give.
    pub fn is_curable(&self) -> bool {
        matches!(self, Self::Connection(_) | Self::Publication(_) | Self::Query(_))
    }
}

/// A session of the reading stage.
pub struct Source {
    pub stream: ReplicationStream,
    pub shapes: Shapes,
    /// A recent transaction id in 64 bits (`pg_snapshot_xmax`), to widen those of the stream by.
    pub xid_near: u64,
    /// What is durable in the progress topic. Ends when the producing stage does.
    pub confirmed: watch::Receiver<Lsn>,
    /// For how long after the walsender was last heard of the slot counts as ours. Then the server
    /// is asked.
    pub trust: Duration,
    pub metrics: Metrics,
}

fn holder(pid: Option<i32>) -> String {
    pid.map_or_else(|| "nobody has it".to_owned(), |pid| format!("process {pid} of the server"))
}

/// Runs until `shutdown`, until the producing stage ends, or until the stream breaks.
///
/// At shutdown it stops the intake, waits for the producing stage to drain, confirms what that has
/// made durable, and leaves the slot free.
///
/// # Errors
/// See [`SourceError`].
pub async fn run_source(
    source: Source,
    output: mpsc::Sender<Batch>,
    shutdown: CancellationToken,
) -> Result<(), SourceError> {
    let mut reader = Reader::new(source);
    let mut ticks = interval(STATUS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut waiting: Option<Batch> = None;
    loop {
        tokio::select! {
            biased;
            // 1. The end: before anything that would take in more.
            () = shutdown.cancelled() => break,
            // 2. What is durable: the slot lets WAL go. The producer limits how often.
            moved = reader.confirmed.changed() => match moved {
                Ok(()) => reader.status(false).await?,
                Err(_) => break,
            },
            // 3. Signs of life, in both directions.
            _ = ticks.tick() => reader.tick(waiting.is_some()).await?,
            // 4. A batch that waits goes first: while it can't, nothing more is read.
            permit = output.reserve(), if waiting.is_some() => match (permit, waiting.take()) {
                (Ok(permit), Some(batch)) => permit.send(batch),
                (Ok(_), None) | (Err(_), _) => break,
            },
            // 5. The stream. Only the wait is in the arm: what has arrived is decoded in its
            //    handler, which no other arm interrupts. What is left of the last time goes first.
            read = read(&mut reader.stream, (&mut reader.raw, &mut reader.decoded)), if waiting.is_none() => {
                read?;
                waiting = reader.decode().await?;
            }
        }
    }
    drop(output);
    loop {
        tokio::select! {
            biased;
            // 1. The producer is done once it has dropped its end.
            moved = reader.confirmed.changed() => if moved.is_err() { break },
            // 2. It may take as long as Kafka's delivery timeout.
            _ = ticks.tick() => reader.status(false).await?,
        }
    }
    reader.status(false).await?;
    reader.stream.stop().await?;
    Ok(())
}

/// Waits for what there is to decode: messages, of which some may be decoded. Cancel-safe.
async fn read(
    stream: &mut ReplicationStream,
    (raw, decoded): (&mut Vec<Bytes>, &mut usize),
) -> Result<(), ConnectionError> {
    if *decoded < raw.len() {
        return Ok(());
    }
    // The list keeps its memory, also because most batches are as long as the last.
    raw.clear();
    *decoded = 0;
    stream.next_batch(raw).await
}

struct Reader {
    stream: ReplicationStream,
    shapes: Shapes,
    xid_near: u64,
    /// The transaction that we are in.
    open: Option<u64>,
    confirmed: watch::Receiver<Lsn>,
    metrics: Metrics,
    assembler: Assembler,
    /// Tables whose types were found unaltered since the batch arrived.
    unaltered: HashSet<RelationId>,
    raw: Vec<Bytes>,
    /// So many of them are decoded.
    decoded: usize,
    received: Lsn,
    server_end: Lsn,
    last_word: Instant,
    asked: bool,
    holder: Holder,
    trust: Duration,
    /// When the slot was ours for certain.
    ours: ClockInstant,
}

impl Reader {
    fn new(source: Source) -> Self {
        let received = *source.confirmed.borrow();
        Self {
            holder: source.stream.holder().clone(),
            trust: source.trust,
            ours: ClockInstant::now(),
            stream: source.stream,
            shapes: source.shapes,
            xid_near: source.xid_near,
            open: None,
            confirmed: source.confirmed,
            metrics: source.metrics,
            assembler: Assembler::new(),
            unaltered: HashSet::new(),
            raw: Vec::new(),
            decoded: 0,
            received,
            server_end: received,
            last_word: Instant::now(),
            asked: false,
        }
    }

    /// Turns what has arrived into a batch; None: it only told us something. What is beyond
    /// [`SHAPES_MAX`] is left for the next one, as if it had not been read yet.
    async fn decode(&mut self) -> Result<Option<Batch>, SourceError> {
        self.last_word = Instant::now();
        self.asked = false;
        self.unaltered.clear();
        let mut items = Vec::with_capacity(self.raw.len() - self.decoded);
        let mut reply = false;
        let (mut shapes, mut bytes_read) = (0, 0);
        let mut sent_us = i64::MIN;
        while shapes < SHAPES_MAX && self.decoded < self.raw.len() {
            let bytes = std::mem::take(&mut self.raw[self.decoded]);
            self.decoded += 1;
            bytes_read += bytes.len();
            let before = items.len();
            match walsender::decode_walsender(bytes).map_err(SourceError::Walsender)? {
                WalMessage::XLogData { start, end, body, sent_us: at } => {
                    sent_us = at;
                    self.received = self.received.max(start);
                    self.server_end = self.server_end.max(end);
                    self.message(start, body, &mut items).await?;
                }
                WalMessage::Keepalive { wal_end, reply_requested, sent_us: at } => {
                    sent_us = at;
                    self.received = self.received.max(wal_end);
                    self.server_end = self.server_end.max(wal_end);
                    items.push(Item::Keepalive { wal_end });
                    reply |= reply_requested;
                }
            }
            shapes += items[before..].iter().filter(|it| matches!(it, Item::Shape(_))).count();
        }
        self.metrics.capture_received_bytes_total.inc_by(count(bytes_read));
        if reply {
            self.status(false).await?;
        }
        self.metrics.capture_received_lsn.set(gauge(self.received.0));
        if items.is_empty() {
            return Ok(None);
        }
        let ours = self.known_as_ours(sent_us).await?;
        Ok(Some(Batch { ours, items }))
    }

    /// When the slot was ours, for what was sent at `sent_us` and read now.
    async fn known_as_ours(&mut self, sent_us: i64) -> Result<ClockInstant, SourceError> {
        let now = ClockInstant::now();
        self.ours = self.ours.max(self.holder.clock.when(sent_us, now));
        if self.trust < now - self.ours {
            let slot = &self.holder.slot;
            let holder = self.shapes.holder_of(slot).await?;
            if holder != Some(self.holder.pid) {
                return Err(SourceError::Taken { slot: slot.clone(), now: holder });
            }
            self.ours = now;
        }
        Ok(self.ours)
    }

    async fn message(
        &mut self,
        at: Lsn,
        body: Bytes,
        items: &mut Vec<Item>,
    ) -> Result<(), SourceError> {
        let message =
            pgoutput::decode(body).map_err(|source| SourceError::Decode { at, source })?;
        let described = match &message {
            Message::Relation(relation) => Some(relation.id),
            _ => None,
        };
        let step = self.assembler.push(message);
        let step = step.map_err(|source| SourceError::Assemble { at, source })?;
        if let Some(id) = described
            && let Some(relation) = self.assembler.relation(id)
        {
            let shape = self.shapes.shape(Arc::clone(relation), self.open).await?;
            items.push(Item::Shape(shape));
        }
        match step {
            None => {}
            Some(Step::Begin(begin)) => items.push(self.begin(begin)),
            Some(Step::Change(change)) => {
                self.metrics.capture_changes_total.with_label_values(&[op(&change)]).inc();
                if self.shapes.any_may_be_altered() {
                    self.look_for_altered_types(&change, items).await?;
                }
                items.push(Item::Change(at, change));
            }
            Some(Step::Message(message)) => {
                let kind = message_kind(&message.prefix);
                self.metrics.capture_messages_total.with_label_values(&[kind]).inc();
                let xid = self.open.filter(|_| message.transactional);
                items.push(Item::Message { message, xid });
            }
            Some(Step::Commit(commit)) => {
                self.open = None;
                self.metrics.capture_transactions_total.inc();
                items.push(Item::Commit(commit));
            }
            Some(Step::Keepalive { wal_end }) => items.push(Item::Keepalive { wal_end }),
        }
        Ok(())
    }

    /// Once a batch for each table: what was altered after the batch arrived is in no row of it.
    async fn look_for_altered_types(
        &mut self,
        change: &Change,
        items: &mut Vec<Item>,
    ) -> Result<(), SourceError> {
        let (Change::Insert { relation, .. }
        | Change::Update { relation, .. }
        | Change::Delete { relation, .. }) = change
        else {
            return Ok(());
        };
        if self.unaltered.insert(relation.id)
            && let Some(shape) = self.shapes.altered(relation.id, self.open).await?
        {
            items.push(Item::Shape(shape));
        }
        Ok(())
    }

    fn begin(&mut self, begin: Begin) -> Item {
        let xid = widen_xid(begin.xid, self.xid_near);
        // Only forward: an old prepared transaction must not pull the reference back.
        self.xid_near = self.xid_near.max(xid);
        self.open = Some(xid);
        Item::Begin(begin, xid)
    }

    /// Once a second. While a batch waits nothing is read, so that silence says nothing.
    async fn tick(&mut self, waiting: bool) -> Result<(), SourceError> {
        let silent = if waiting { Duration::ZERO } else { self.last_word.elapsed() };
        if SILENCE_MAX < silent {
            return Err(SourceError::Silent);
        }
        let ask = ASK_AFTER < silent && !self.asked;
        self.asked |= ask;
        self.status(ask).await
    }

    /// Tells Postgres how far we are.
    async fn status(&mut self, reply_requested: bool) -> Result<(), SourceError> {
        let confirmed = *self.confirmed.borrow_and_update();
        let update = StandbyStatusUpdate {
            received: self.received.max(confirmed),
            flushed: confirmed,
            applied: confirmed,
            now_us: now_us(),
            reply_requested,
        };
        self.stream.send(&update).await?;
        self.metrics.capture_confirmed_lsn.set(gauge(confirmed.0));
        let lag = self.server_end.0.saturating_sub(confirmed.0);
        self.metrics.capture_lag_bytes.set(gauge(lag));
        Ok(())
    }
}

/// Debezium's letter.
fn op(change: &Change) -> &'static str {
    match change {
        Change::Insert { .. } => "c",
        Change::Update { .. } => "u",
        Change::Delete { .. } => "d",
        Change::Truncate { .. } => "t",
    }
}

/// Whose message it is, as far as a metric needs to know: a closed set, which prefixes are not.
fn message_kind(prefix: &str) -> &'static str {
    match prefix {
        CONTEXT_PREFIX => "context",
        EVENT_PREFIX => "outbox",
        _ if prefix.starts_with("onelog.") => "own",
        _ => "foreign",
    }
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn count(length: usize) -> u64 {
    u64::try_from(length).expect("a length fits 64 bits")
}
