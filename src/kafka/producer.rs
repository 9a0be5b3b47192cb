//! STAGE: changes -> envelopes -> Kafka, and back: how far the log is durable.
//!
//! It takes batches in the order of commits, hands every record to the idempotent producer, and
//! keeps the order of durability of rule 1: Kafka's acknowledgements, then the progress record,
//! and only when that one is acknowledged too is its LSN given to whoever tells Postgres.
//!
//! It never skips a change and never sends one that has waited too long: after
//! [`KafkaConfig::delivery_timeout`] a successor may own the slot (A14).
//!
//! **Invariant:** what is sent to `confirmed` is durable in the progress topic.

mod ahead;
mod extracts;
mod refused;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::causes::with_causes;
use crate::change::{Begin, Change, LogicalMessage};
use crate::config::{KafkaConfig, OutboxConfig};
use crate::copies::MadeTopics;
use crate::kafka::batch::{Batch, Item};
use crate::kafka::chunk::{Chunk, MARK_PREFIX, Outcome};
use crate::kafka::delivery::{LogProducer, ProduceError, now_us};
use crate::kafka::envelope::{
    ChangeAt, EnvelopeError, EnvelopeWriter, Header, SourceContext, TableShape, TransactionContext,
    transaction_headers,
};
use crate::kafka::merge::Merge;
use crate::kafka::outbox::{Of, Outbox};
pub use crate::kafka::producer::ahead::AHEAD_MAX;
use crate::kafka::producer::ahead::Ahead;
use crate::kafka::producer::extracts::{Extracts, is_plain};
pub(super) use crate::kafka::producer::refused::record_bytes_max;
use crate::kafka::producer::refused::{Refused, Written};
use crate::kafka::recorder::Recorder;
use crate::kafka::topics::{self, WantedTopic};
use crate::lsn::Lsn;
use crate::metrics::Metrics;
use crate::outbox::context::{self, ContextError};
use crate::outbox::{CONTEXT_PREFIX, EVENT_PREFIX};
use crate::progress::TransactionSeq;
use crate::relation::RelationId;

/// From the Unix epoch to the Postgres epoch, in microseconds.
pub(crate) const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// A session of the producing stage.
pub struct ProducerSession {
    pub config: KafkaConfig,
    pub outbox: OutboxConfig,
    pub metrics: Metrics,
    pub slot: String,
    pub source: SourceContext,
    pub producer: Arc<LogProducer>,
    /// The copies beside the stream.
    pub copies: Merge,
    /// Topics that this process has made.
    pub made: MadeTopics,
    /// Where the stream begins: durable in the progress topic.
    pub resume: Lsn,
    /// Topics of the tables that are published now: seen to before their first change, which
    /// would wait for that.
    pub expected: Vec<WantedTopic>,
    /// Cancelled when the end of the input is a drain, not a lost connection.
    pub shutdown: CancellationToken,
}

/// Runs until `input` is closed and everything is durable, or something fails. At the end of a
/// drain (`shutdown`) the progress record says `clean`.
///
/// # Errors
/// See [`ProduceError`]. What is not confirmed then is the next session's to send again.
pub async fn run_producer(
    session: ProducerSession,
    input: mpsc::Receiver<Batch>,
    confirmed: watch::Sender<Lsn>,
) -> Result<(), ProduceError> {
    let producer = Arc::clone(&session.producer);
    let produced = produce(session, input, confirmed).await;
    // Consumers of committed records wait behind what is open. Whoever takes over gives it up too.
    if let Err(error) = producer.abort_transaction().await {
        tracing::debug!(error = %with_causes(&error), "a transaction was left open");
    }
    produced.map_err(|error| producer.explain(error))
}

async fn produce(
    session: ProducerSession,
    mut input: mpsc::Receiver<Batch>,
    confirmed: watch::Sender<Lsn>,
) -> Result<(), ProduceError> {
    let producer = Arc::clone(&session.producer);
    let shutdown = session.shutdown.clone();
    let recorder = Recorder::new(&session, confirmed);
    let mut encoder = Encoder::new(session, recorder);
    let mut ahead = Ahead::new(&mut encoder.session);
    // Before the first record of ours, a successor must know that there may be some.
    encoder.recorder.record_and_wait(false, false).await?;
    loop {
        let standing = encoder.recorder.publish()?;
        let due = encoder.recorder.due(standing, encoder.open.is_some());
        if due.is_some_and(|due| due <= Instant::now()) {
            encoder.recorder.record(standing).await?;
            continue;
        }
        tokio::select! {
            biased;
            // 1. Acknowledgements and failures, as they let the slot move or end the session.
            () = producer.moved() => {}
            // 2. Progress is to be recorded: before input, or a busy stream would put it off.
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            // 3. Topics were seen to: the next change need not wait for its own.
            Some(topics) = ahead.next() => encoder.topics.extend(topics),
            // 4. More changes.
            batch = input.recv() => match batch {
                Some(batch) => encoder.send(batch).await?,
                None => break,
            },
        }
    }
    if producer.transactions().is_none() {
        producer.quiet(encoder.session.config.delivery_timeout + Duration::from_secs(2)).await?;
    }
    if !shutdown.is_cancelled() {
        // The connection was lost, and with it perhaps the slot: the record may be another's now.
        return Ok(());
    }
    encoder.recorder.record_and_wait(true, encoder.open.is_some()).await
}

/// Turns items into records and hands them over.
struct Encoder {
    session: ProducerSession,
    writer: EnvelopeWriter,
    shapes: HashMap<RelationId, Arc<TableShape>>,
    /// Topics that are known to exist.
    topics: HashSet<Arc<str>>,
    headers: Vec<Header>,
    /// Of the open transaction.
    context: Option<TransactionContext>,
    last_commit: Option<Lsn>,
    open: Option<TransactionSeq>,
    outbox: Outbox,
    refused: Refused,
    extracts: Extracts,
    recorder: Recorder,
    /// Between a Begin and its Commit. `open` may be so before: see [`Encoder::message`].
    inside: bool,
    /// When the transaction committed, in milliseconds since 1970.
    commit_ms: i64,
    /// The newest end of a commit, or of what keepalives said.
    newest: Lsn,
}

impl Encoder {
    fn new(session: ProducerSession, recorder: Recorder) -> Self {
        let writer = EnvelopeWriter::new(&session.source);
        let outbox = Outbox::new(&session);
        let refused = Refused::new(&session);
        let (newest, extracts) = (session.resume, Extracts::new(&session.config));
        Self {
            session,
            writer,
            shapes: HashMap::new(),
            topics: HashSet::new(),
            headers: Vec::new(),
            context: None,
            last_commit: None,
            open: None,
            outbox,
            refused,
            extracts,
            recorder,
            inside: false,
            commit_ms: 0,
            newest,
        }
    }

    async fn send(&mut self, batch: Batch) -> Result<(), ProduceError> {
        let now_us = now_us().saturating_add(POSTGRES_EPOCH_US);
        let waited = batch.ours.elapsed();
        // With transactions a successor has fenced us: nothing of ours lands behind its records.
        let transactional = self.session.producer.transactions().is_some();
        if !transactional && self.session.config.delivery_timeout < waited {
            return Err(ProduceError::Stale { waited });
        }
        self.session.copies.listen();
        self.see_to_topics(&batch.items).await?;
        for item in batch.items {
            match item {
                Item::Shape(shape) => self.shape(shape).await?,
                Item::Begin(begin, xid_wide) => self.begin(&begin, xid_wide),
                Item::Change(lsn, change) => {
                    self.change(&change, ChangeAt { lsn, now_us }).await?;
                }
                Item::Message { message, .. } => {
                    let lsn = message.lsn;
                    self.message(&message, ChangeAt { lsn, now_us }).await?;
                }
                Item::Commit(commit) => {
                    self.last_commit = Some(commit.commit_lsn);
                    self.newest = self.newest.max(commit.end_lsn);
                    self.inside = false;
                    let seq = self.open.take().expect("the assembler opened it");
                    self.session.producer.commit(seq, commit.end_lsn, commit.commit_time_us)?;
                    self.session.copies.commit(commit.end_lsn);
                    self.recorder.committed().await?;
                }
                Item::Keepalive { wal_end } => self.keepalive(wal_end)?,
            }
        }
        Ok(())
    }

    fn begin(&mut self, begin: &Begin, xid_wide: u64) {
        let context = TransactionContext {
            final_lsn: begin.final_lsn,
            last_commit_lsn: self.last_commit,
            commit_time_us: begin.commit_time_us,
            xid: begin.xid,
            xid_wide,
            correlation: Vec::new(),
        };
        self.writer.begin(&context);
        self.headers = transaction_headers(&self.session.source, &context);
        self.context = Some(context);
        self.inside = true;
        self.commit_ms = begin.commit_time_us.saturating_add(POSTGRES_EPOCH_US) / 1000;
        let producer = &self.session.producer;
        self.open.get_or_insert_with(|| producer.begin());
    }

    /// Everything before `wal_end` has been here.
    fn keepalive(&mut self, wal_end: Lsn) -> Result<(), ProduceError> {
        let producer = &self.session.producer;
        match self.open {
            // What stood between transactions ends here, if none has taken it in.
            Some(seq) if !self.inside && self.newest < wal_end => {
                self.open = None;
                producer.commit(seq, wal_end, now_us())?;
            }
            _ => producer.keepalive(wal_end),
        }
        self.newest = self.newest.max(wal_end);
        Ok(())
    }

    /// Others' words, and ours that nobody here waits for, such as a flush's nudge, pass by.
    async fn message(&mut self, it: &LogicalMessage, at: ChangeAt) -> Result<(), ProduceError> {
        match &*it.prefix {
            CONTEXT_PREFIX => {
                let applied = match it.transactional {
                    true => context::apply(&it.content, &mut self.headers),
                    false => Err(ContextError::NotTransactional),
                };
                if let Err(error) = applied {
                    self.session.metrics.capture_contexts_refused_total.inc();
                    tracing::warn!(lsn = %it.lsn, %error, "a transaction's context is ignored");
                }
                Ok(())
            }
            EVENT_PREFIX => {
                // One outside of transactions is buried with the next transaction, or by the next
                // keepalive: the slot must not move on before its record is acknowledged.
                let producer = &self.session.producer;
                let seq = *self.open.get_or_insert_with(|| producer.begin());
                let of = match it.transactional {
                    true => Of { seq, headers: &self.headers, commit_ms: self.commit_ms },
                    false => Of { seq, headers: &[], commit_ms: at.now_us / 1000 },
                };
                self.outbox.message(it, at, of).await
            }
            MARK_PREFIX if it.transactional => match self.session.copies.mark(&it.content) {
                Some(chunk) => self.copied(chunk, at).await,
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    async fn change(&mut self, change: &Change, at: ChangeAt) -> Result<(), ProduceError> {
        let one;
        let relations = match change {
            Change::Insert { relation, .. }
            | Change::Update { relation, .. }
            | Change::Delete { relation, .. } => {
                one = [Arc::clone(relation)];
                &one[..]
            }
            Change::Truncate { relations, .. } => relations,
        };
        let seq = self.open.expect("the assembler refuses changes outside of transactions");
        let xid = self.context.as_ref().map_or(0, |it| it.xid_wide);
        for relation in relations {
            let id = relation.id;
            let shape = self.shapes.get(&id).ok_or(EnvelopeError::StaleShape { id })?;
            if self.outbox.has(id) {
                let of = Of { seq, headers: &self.headers, commit_ms: self.commit_ms };
                self.outbox.row(&mut self.writer, (shape, change), at, of).await?;
                continue;
            }
            let ProducerSession { producer, copies, .. } = &mut self.session;
            if !copies.is_idle() && matches!(change, Change::Truncate { .. }) {
                copies.note_truncate(&shape.topic, xid);
            }
            let extracts = self.extracts.of(id);
            let own = is_plain(extracts.as_deref(), shape);
            let records = self.writer.write(shape, change, at)?;
            if own && records.clone().any(refused::may_be_too_large) {
                drop(records);
                let shape = Arc::clone(shape);
                self.send_large(&shape, Written::Change(change), at).await?;
            } else {
                for record in records {
                    if !copies.is_idle() {
                        copies.note(record.topic, record.key, xid);
                    }
                    if own {
                        producer.send(seq, record, &self.headers).await?;
                    }
                }
            }
            if let Some(extracts) = extracts {
                self.send_extracts(&extracts, Written::Change(change), at).await?;
            }
        }
        Ok(())
    }

    /// The rows of a chunk, at their place: all that the stream does not have newer already.
    async fn copied(&mut self, mut chunk: Chunk, at: ChangeAt) -> Result<(), ProduceError> {
        chunk.shape = self.with_topic(chunk.shape).await?;
        // The table as it is now: the stream's changes may still be those of another definition.
        let mut extracts = Extracts::new(&self.session.config);
        for wanted in extracts.describe(&chunk.shape) {
            self.see_to(wanted).await?;
        }
        let seq = self.open.expect("the assembler refuses transactional messages outside of one");
        let context = self.context.clone().expect("a transaction is open");
        self.writer.begin_copy(&context);
        let (mut published, mut overtaken, mut refused) = (0, 0, None);
        let id = chunk.shape.relation.id;
        let extracts = extracts.of(id);
        let own = is_plain(extracts.as_deref(), &chunk.shape);
        for row in &chunk.rows {
            let records = match self.writer.write_read(&chunk.shape, row, at) {
                Ok(records) => records,
                // Of this copy alone: the stream goes on.
                Err(error) => {
                    refused = Some(with_causes(&error));
                    break;
                }
            };
            // A row that was read is one record.
            let Some(record) = records.into_iter().next() else { continue };
            if !self.session.copies.admits(record.topic, record.key, &chunk.snapshot) {
                overtaken += 1;
                continue;
            }
            if own && refused::may_be_too_large(record) {
                self.send_large(&chunk.shape, Written::Read(row), at).await?;
            } else if own {
                self.session.producer.send(seq, record, &self.headers).await?;
            }
            if let Some(extracts) = &extracts {
                self.send_extracts(extracts, Written::Read(row), at).await?;
            }
            published += 1;
        }
        self.writer.begin(&context);
        match refused {
            // Whoever does not wait any more does not need to know.
            Some(reason) => chunk.reply.send(Outcome::Refused(reason)).unwrap_or_default(),
            None => self.session.copies.settle(chunk, published, overtaken),
        }
        Ok(())
    }

    async fn shape(&mut self, mut shape: Arc<TableShape>) -> Result<(), ProduceError> {
        // Rows of an outbox go where each says.
        if !self.outbox.describe(&shape) {
            shape = self.with_topic(shape).await?;
            for wanted in self.extracts.describe(&shape) {
                self.see_to(wanted).await?;
            }
        }
        self.shapes.insert(shape.relation.id, shape);
        Ok(())
    }

    /// Makes sure that a table's topic is there and of the right kind.
    async fn topic(&mut self, shape: &TableShape) -> Result<(), ProduceError> {
        let keyed = !shape.key_columns.is_empty();
        self.see_to(WantedTopic::of_table(&self.session.config, &shape.topic, keyed)).await
    }

    async fn see_to(&mut self, wanted: WantedTopic) -> Result<(), ProduceError> {
        let name: Arc<str> = wanted.name.as_str().into();
        if !self.topics.contains(&name) {
            let seen = topics::see_to((&self.session.config, &self.session.made), &[wanted]).await;
            seen.map_err(|error| ProduceError::Topic(Arc::new(error)))?;
            self.topics.insert(name);
        }
        Ok(())
    }
}
