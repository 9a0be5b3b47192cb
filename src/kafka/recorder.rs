//! Writes the progress records of a session, and gives on what became durable by them.
//!
//! A plain one is written beside the stream and says what is acknowledged. With transactions it is
//! each transaction's last record and says what is in it, so a transaction ends only between
//! transactions of Postgres: how long one of those takes to publish bounds how long one of Kafka's
//! is open (`transaction_timeout`); memory does not grow with it.
//!
//! **Invariant:** what is sent to `confirmed` is durable in the progress topic.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::causes::with_causes;
use crate::kafka::delivery::{LogProducer, ProduceError, Standing, now_ms};
use crate::kafka::envelope::OutRecord;
use crate::kafka::producer::ProducerSession;
use crate::kafka::progress_record::{self, ProgressRecord};
use crate::lsn::Lsn;

/// How often progress is recorded while it moves, without transactions. Each record delays
/// nothing, but the slot holds WAL, and a crash repeats changes, for this long.
const RECORD_INTERVAL: Duration = Duration::from_millis(100);

/// Most transactions of Postgres in one of Kafka's: the time of each commit is remembered until
/// its end, 16 bytes.
const COMMITS_MAX: u32 = 50_000;

pub(super) struct Recorder {
    producer: Arc<LogProducer>,
    confirmed: watch::Sender<Lsn>,
    topic: String,
    key: Vec<u8>,
    /// With what stays the same.
    record: ProgressRecord,
    limit: Duration,
    interval: Duration,
    last: Instant,
    /// Since then.
    commits: u32,
}

impl Recorder {
    pub fn new(session: &ProducerSession, confirmed: watch::Sender<Lsn>) -> Self {
        let transactions = session.producer.transactions();
        Self {
            producer: Arc::clone(&session.producer),
            confirmed,
            topic: session.config.progress_topic(),
            key: progress_record::slot_key(&session.slot),
            record: ProgressRecord {
                system_id: session.source.system_id,
                timeline: session.source.timeline,
                lsn: session.resume,
                clean: false,
                exactly_once: transactions.is_some(),
                run_id: session.producer.run_id().to_owned(),
                at_ms: 0,
            },
            limit: session.config.delivery_timeout + Duration::from_secs(2),
            interval: transactions.map_or(RECORD_INTERVAL, |it| it.interval),
            last: Instant::now(),
            commits: 0,
        }
    }

    fn is_transactional(&self) -> bool {
        self.record.exactly_once
    }

    /// Gives on what became durable.
    pub fn publish(&self) -> Result<Standing, ProduceError> {
        let standing = self.producer.standing()?;
        self.confirmed.send_if_modified(|lsn| {
            let moved = *lsn < standing.recorded;
            *lsn = standing.recorded.max(*lsn);
            moved
        });
        Ok(standing)
    }

    /// When the next progress record is to be written, if there is something to say. `inside`: of
    /// a transaction of Postgres.
    pub fn due(&self, standing: Standing, inside: bool) -> Option<Instant> {
        let (reached, may) = match self.is_transactional() {
            true => (standing.handed_over, !inside),
            false => (standing.confirmed, !standing.record_in_flight),
        };
        (may && self.record.lsn < reached).then(|| self.last + self.interval)
    }

    /// Says how far we are. Without transactions, as soon as there is room for it.
    pub async fn record(&mut self, standing: Standing) -> Result<(), ProduceError> {
        match self.is_transactional() {
            true => self.end_transaction(standing.handed_over, false).await,
            false => self.send(standing.confirmed, false).map(|_sent| ()),
        }
    }

    /// A transaction of Postgres has been handed over. On a busy stream nothing else would ever
    /// find us between two of them.
    pub async fn committed(&mut self) -> Result<(), ProduceError> {
        if !self.is_transactional() {
            return Ok(());
        }
        self.commits += 1;
        if self.commits < COMMITS_MAX && self.last.elapsed() < self.interval {
            return Ok(());
        }
        let standing = self.publish()?;
        self.record(standing).await
    }

    /// Records where we are now and waits until that is durable. What was sent of a transaction
    /// that has not committed (`inside`) is given up, where that is possible.
    pub async fn record_and_wait(&mut self, clean: bool, inside: bool) -> Result<(), ProduceError> {
        if self.is_transactional() {
            let standing = self.publish()?;
            if !inside {
                self.end_transaction(standing.handed_over, clean).await?;
            } else if let Err(error) = self.producer.abort_transaction().await {
                // librdkafka's aborts fail when the broker knows of no record yet. Nobody needs to
                // read that we stopped cleanly: whoever comes next fences us.
                tracing::debug!(error = %with_causes(&error), "the last transaction was left open");
            } else {
                self.end_transaction(standing.recorded, clean).await?;
            }
        } else {
            let producer = Arc::clone(&self.producer);
            producer.quiet(self.limit).await?;
            let lsn = self.publish()?.confirmed;
            while !self.send(lsn, clean)? {
                producer.moved().await;
            }
            producer.quiet(self.limit).await?;
        }
        self.publish().map(|_| ())
    }

    /// Hands a record over. False: no room, try again.
    fn send(&mut self, lsn: Lsn, clean: bool) -> Result<bool, ProduceError> {
        let record = self.next(lsn, clean);
        let value = record.to_json();
        self.last = Instant::now();
        let sent = self.producer.send_progress(self.out(&value), lsn)?;
        if sent {
            self.record = record;
        }
        Ok(sent)
    }

    async fn end_transaction(&mut self, lsn: Lsn, clean: bool) -> Result<(), ProduceError> {
        let record = self.next(lsn, clean);
        let value = record.to_json();
        self.producer.end_transaction(self.out(&value), lsn).await?;
        self.record = record;
        self.last = Instant::now();
        self.commits = 0;
        Ok(())
    }

    fn next(&self, lsn: Lsn, clean: bool) -> ProgressRecord {
        let at_ms = now_ms();
        ProgressRecord { lsn, clean, at_ms, ..self.record.clone() }
    }

    fn out<'a>(&'a self, value: &'a [u8]) -> OutRecord<'a> {
        OutRecord { topic: &self.topic, key: Some(&self.key), value: Some(value), header: None }
    }
}
