//! The idempotent producer of capture, and what becomes of the records handed to it.
//!
//! One producer lives through all sessions of a process: what an old session still has in flight
//! and what its successor replays then go the same way, in order, and no stale record can land
//! behind a newer one (A14). Only a fatal error of librdkafka, or the process' end, ends it.
//!
//! Delivery reports arrive on librdkafka's own polling thread, and each names its transaction;
//! [`Progress`] stands behind a mutex that nobody holds longer than one count takes.
//!
//! **Invariant:** a failed delivery is never forgotten: it stays the session's failure until the
//! next session resumes from what was confirmed.

mod error;
mod flusher;
mod in_flight;
mod own_settings;
mod transaction;

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header as KafkaHeader, OwnedHeaders};
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer,
};
use tokio::sync::Notify;

pub use error::ProduceError;
use error::{failure, refused};
use flusher::Flusher;
use in_flight::InFlight;
pub use in_flight::TOPICS_IN_FLIGHT;
pub(super) use own_settings::own_settings;
use transaction::Transactions;
pub use transaction::{dismiss, fence};

use crate::config::KafkaConfig;
use crate::kafka::envelope::{Header, OutRecord};
use crate::kafka::lost_cluster;
use crate::kafka::settings;
use crate::lsn::Lsn;
use crate::metrics::Metrics;
use crate::progress::{Progress, TransactionSeq};

/// Marks the delivery report of a progress record, which belongs to no transaction.
const PROGRESS_RECORD: usize = usize::MAX;

/// Microseconds from 1970-01-01 to 2000-01-01, the Postgres epoch.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// How often a full queue is looked at again if no delivery report says that there is room.
const ROOM_CHECK: Duration = Duration::from_millis(50);

/// Whoever waits for room is woken when no more than half of the queue is in flight: woken for
/// each report, it would send one record and wait again, at the price of a context switch.
const ROOM_RECORDS: u64 = 3_750;

/// What delivery reports have said so far.
struct State {
    progress: Progress,
    /// Commit times of transactions that wait for acknowledgements, by number.
    commit_times: VecDeque<(TransactionSeq, i64)>,
    /// Records handed over without a report yet; progress records too.
    outstanding: u64,
    topics: InFlight,
    /// The LSN of the progress record in flight.
    record_in_flight: Option<Lsn>,
    /// The LSN of the newest progress record that is durable.
    recorded: Lsn,
    failure: Option<ProduceError>,
}

struct Deliveries {
    state: Mutex<State>,
    /// `confirmed` moved, a progress record was acknowledged, all is quiet, or something failed.
    moved: Notify,
    /// Reports arrived, and half of the queue is free.
    room: Notify,
    fatal: AtomicBool,
    /// An acknowledged record is durable only with its Kafka transaction.
    transactional: bool,
    metrics: Metrics,
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while it was held is a broken invariant of ours; the panic itself ends us.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`InFlight::admits`].
    fn admit(&self, topic: &str) -> bool {
        let mut state = self.lock();
        let outstanding = state.outstanding;
        state.topics.admits(topic, outstanding)
    }
}

struct Context(Arc<Deliveries>);

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
            self.0.fatal.store(true, Ordering::Release);
            self.0.lock().failure = Some(ProduceError::Fatal(error));
            self.0.moved.notify_one();
        } else {
            tracing::debug!(%error, reason, "kafka client");
        }
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        let all = &self.0;
        let mut state = all.lock();
        state.outstanding -= 1;
        all.metrics.kafka_in_flight_records.dec();
        let mut notify = state.outstanding == 0;
        match result {
            Ok(_) if opaque == PROGRESS_RECORD => {
                let lsn = state.record_in_flight.take().filter(|_| !all.transactional);
                state.recorded = state.recorded.max(lsn.unwrap_or_default());
                notify = true;
            }
            Ok(_) => {
                all.metrics.kafka_records_total.inc();
                let seq = u64::try_from(opaque).expect("a word fits 64 bits");
                if state.progress.acknowledged(seq) && !all.transactional {
                    settle(&mut state, &all.metrics);
                    notify = true;
                }
            }
            Err((error, message)) => {
                all.metrics.kafka_errors_total.inc();
                if opaque == PROGRESS_RECORD {
                    state.record_in_flight = None;
                }
                state.failure.get_or_insert_with(|| failure(error, message));
                notify = true;
            }
        }
        let room = state.outstanding <= ROOM_RECORDS;
        drop(state);
        if notify {
            all.moved.notify_one();
        }
        if room {
            all.room.notify_one();
        }
    }
}

/// Observes the transactions that were confirmed.
fn settle(state: &mut State, metrics: &Metrics) {
    let first = state.progress.first_in_flight();
    let now = now_us();
    while let Some(&(_, committed)) = state.commit_times.front().filter(|it| it.0 < first) {
        state.commit_times.pop_front();
        let age = u64::try_from(now.saturating_sub(committed)).unwrap_or(0);
        let seconds = Duration::from_micros(age).as_secs_f64();
        metrics.capture_commit_to_kafka_seconds.observe(seconds);
        metrics.capture_lag_seconds.set(seconds);
    }
}

/// Microseconds since the Postgres epoch, by our clock.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX) - POSTGRES_EPOCH_US
}

/// Milliseconds since the Unix epoch, by our clock.
pub(crate) fn now_ms() -> i64 {
    now_us().saturating_add(POSTGRES_EPOCH_US) / 1000
}

/// The producer of a process.
pub struct LogProducer {
    producer: Arc<ThreadedProducer<Context>>,
    flusher: Flusher,
    deliveries: Arc<Deliveries>,
    config: KafkaConfig,
    run_id: String,
    /// Nothing stays outstanding for longer.
    delivery_max: Duration,
    /// None: records are plain ones.
    transactions: Option<Transactions>,
}

impl LogProducer {
    /// Makes a producer of plain records. It connects by itself, and waits for brokers that are
    /// not there yet.
    ///
    /// # Errors
    /// If librdkafka refuses the settings.
    pub fn new(config: &KafkaConfig, metrics: &Metrics) -> Result<Self, ProduceError> {
        Self::make(config, metrics, None)
    }

    fn make(
        config: &KafkaConfig,
        metrics: &Metrics,
        transactions: Option<Transactions>,
    ) -> Result<Self, ProduceError> {
        let deliveries = Arc::new(Deliveries {
            state: Mutex::new(State {
                progress: Progress::resume(Lsn(0), 0),
                commit_times: VecDeque::new(),
                outstanding: 0,
                topics: InFlight::default(),
                record_in_flight: None,
                recorded: Lsn(0),
                failure: None,
            }),
            moved: Notify::new(),
            room: Notify::new(),
            fatal: AtomicBool::new(false),
            transactional: transactions.is_some(),
            metrics: metrics.clone(),
        });
        let mut own = own_settings(config);
        own.extend(transactions.iter().flat_map(Transactions::settings));
        let producer: ThreadedProducer<Context> = settings::client_config(config, &own)
            .create_with_context(Context(Arc::clone(&deliveries)))
            .map_err(ProduceError::Client)?;
        let producer = Arc::new(producer);
        let flusher = Flusher::start(Arc::clone(&producer));
        let flusher = flusher.map_err(|error| ProduceError::Thread(Arc::new(error)))?;
        // RandomState is seeded by the system: a name that no other process has.
        let run_id = format!("{:016x}", RandomState::new().build_hasher().finish());
        // librdkafka looks for timed-out records once a second.
        let delivery_max = config.delivery_timeout + Duration::from_secs(2);
        let config = config.clone();
        Ok(Self { producer, flusher, deliveries, config, run_id, delivery_max, transactions })
    }

    /// Names this producer in progress records.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Whether a new producer is needed.
    pub fn is_fatal(&self) -> bool {
        self.deliveries.fatal.load(Ordering::Acquire)
    }

    /// A session starts over at `lsn`. Reports for records of earlier sessions count no more.
    pub fn resume(&self, lsn: Lsn) {
        let mut state = self.deliveries.lock();
        let next = state.progress.next();
        state.progress = Progress::resume(lsn, next);
        state.commit_times.clear();
        state.recorded = lsn;
        let failure = state.failure.take();
        drop(state);
        // Kafka may have been away, and librdkafka may have lost it.
        if matches!(failure, Some(ProduceError::Delivery { .. })) {
            lost_cluster::tell_brokers(self.producer.client(), &self.config);
        }
    }

    /// Waits until something was acknowledged, failed, or became quiet. Cancel-safe.
    pub async fn moved(&self) {
        self.deliveries.moved.notified().await;
    }

    /// Waits until nothing is in flight, of earlier sessions either.
    ///
    /// # Errors
    /// If that takes longer than `limit`.
    pub async fn quiet(&self, limit: Duration) -> Result<(), ProduceError> {
        let waiting = async {
            while 0 < self.deliveries.lock().outstanding {
                self.moved().await;
            }
        };
        let done = tokio::time::timeout(limit, waiting).await;
        done.map_err(|_| ProduceError::DrainTimedOut { waited: limit })
    }

    /// See [`Progress::begin`].
    pub fn begin(&self) -> TransactionSeq {
        self.deliveries.lock().progress.begin()
    }

    /// See [`Progress::commit`].
    ///
    /// # Errors
    /// If the commit goes back.
    pub fn commit(
        &self,
        seq: TransactionSeq,
        end: Lsn,
        commit_time_us: i64,
    ) -> Result<(), ProduceError> {
        let mut state = self.deliveries.lock();
        state.progress.commit(end)?;
        if seq < state.progress.next() {
            state.commit_times.push_back((seq, commit_time_us));
        }
        if !self.deliveries.transactional {
            settle(&mut state, &self.deliveries.metrics);
        }
        Ok(())
    }

    /// See [`Progress::keepalive`].
    pub fn keepalive(&self, wal_end: Lsn) {
        self.deliveries.lock().progress.keepalive(wal_end);
    }

    /// The session's failure, if any; else how far everything is.
    ///
    /// # Errors
    /// The first failed delivery of the session.
    pub fn standing(&self) -> Result<Standing, ProduceError> {
        let state = self.deliveries.lock();
        match &state.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(Standing {
                confirmed: state.progress.confirmed(),
                handed_over: state.progress.newest(),
                recorded: state.recorded,
                record_in_flight: state.record_in_flight.is_some(),
                outstanding: state.outstanding,
            }),
        }
    }

    /// Hands one record of the open transaction to Kafka, waiting while the queue is full, and
    /// while too many other topics have records in flight.
    ///
    /// # Errors
    /// If the record is too large or the session has failed.
    pub async fn send(
        &self,
        seq: TransactionSeq,
        record: OutRecord<'_>,
        headers: &[Header],
    ) -> Result<(), ProduceError> {
        self.send_at(seq, record, headers, Place::default()).await
    }

    /// As [`LogProducer::send`], with a time and a place of the record's own.
    ///
    /// # Errors
    /// If the record is too large or the session has failed.
    pub async fn send_at(
        &self,
        seq: TransactionSeq,
        record: OutRecord<'_>,
        headers: &[Header],
        place: Place,
    ) -> Result<(), ProduceError> {
        while !self.deliveries.admit(record.topic) {
            self.quiet(self.delivery_max).await?;
            self.standing()?;
        }
        self.deliveries.lock().progress.sent();
        let opaque = usize::try_from(seq).expect("a number of transactions fits a word");
        loop {
            match self.try_send(record, headers, opaque, place) {
                Ok(()) => return Ok(()),
                Err(KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) => {}
                Err(error) => {
                    self.deliveries.lock().progress.not_sent();
                    return Err(refused(error, record));
                }
            }
            // Back-pressure: the channel fills, then the socket, then the slot waits.
            let room = tokio::time::timeout(ROOM_CHECK, self.deliveries.room.notified()).await;
            drop(room);
            self.standing()?;
        }
    }

    /// Hands the progress record over; at most one is in flight. False: no room, try again.
    ///
    /// # Errors
    /// If Kafka's client refuses it.
    pub fn send_progress(&self, record: OutRecord<'_>, lsn: Lsn) -> Result<bool, ProduceError> {
        {
            let mut state = self.deliveries.lock();
            assert!(state.record_in_flight.is_none(), "one progress record at a time");
            state.record_in_flight = Some(lsn);
        }
        match self.try_send(record, &[], PROGRESS_RECORD, Place::default()) {
            Ok(()) => Ok(true),
            Err(error) => {
                self.deliveries.lock().record_in_flight = None;
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) {
                    return Ok(false);
                }
                Err(refused(error, record))
            }
        }
    }

    fn try_send(
        &self,
        record: OutRecord<'_>,
        headers: &[Header],
        opaque: usize,
        place: Place,
    ) -> Result<(), KafkaError> {
        if let Some(transactions) = &self.transactions {
            transactions.begin(&self.producer)?;
        }
        let mut out = BaseRecord::with_opaque_to(record.topic, opaque);
        out.timestamp = place.timestamp_ms;
        out.partition = place.partition;
        out.key = record.key;
        out.payload = record.value;
        if !headers.is_empty() || record.header.is_some() {
            let mut all = OwnedHeaders::new_with_capacity(headers.len() + 1);
            for (key, value) in headers {
                all = all.insert(KafkaHeader { key, value: Some(value.as_bytes()) });
            }
            if let Some((key, value)) = record.header {
                all = all.insert(KafkaHeader { key, value: Some(value) });
            }
            out.headers = Some(all);
        }
        // Counted first: the report may come before the call returns.
        self.deliveries.lock().outstanding += 1;
        self.deliveries.metrics.kafka_in_flight_records.inc();
        let sent = self.producer.send::<[u8], [u8]>(out).map_err(|(error, _)| {
            self.deliveries.lock().outstanding -= 1;
            self.deliveries.metrics.kafka_in_flight_records.dec();
            error
        });
        self.flusher.handed();
        sent
    }
}

/// When a record is said to have happened and where it goes; else now, and by its key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// Since 1970. A topic with LogAppendTime ignores it.
    pub timestamp_ms: Option<i64>,
    /// One that the topic has.
    pub partition: Option<i32>,
}

/// How far records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Everything before it is acknowledged.
    pub confirmed: Lsn,
    /// Everything that ends at or before it was handed to Kafka's client.
    pub handed_over: Lsn,
    /// And a progress record that says so: this may be told to Postgres.
    pub recorded: Lsn,
    pub record_in_flight: bool,
    /// Records without a delivery report.
    pub outstanding: u64,
}
