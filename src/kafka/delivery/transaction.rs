//! Kafka transactions of the producer of capture: what `delivery = "exactly-once"` adds.
//!
//! A transaction is begun by its first record and ended by its progress record, which says up to
//! where it has everything: both are seen together or not at all by who reads committed records.
//! Whoever takes a slot takes its transactional id too ([`LogProducer::take_over`]): the broker
//! then aborts what the last holder has left open, and refuses everything more of it. So nothing
//! of a predecessor has to be waited out, and a twin that was only asleep can do no harm (A14).
//!
//! librdkafka's calls block for a broker's answer. They are made in short turns on a thread for
//! that, so that the end of the process is not held up by one.
//!
//! **Invariant:** an LSN counts as recorded only after its transaction's end was acknowledged.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::producer::{Producer, ThreadedProducer};
use tokio::time::{Instant, sleep};

use super::{Context, LogProducer, ProduceError, ROOM_CHECK, settle};
use crate::config::{KafkaConfig, TransactionConfig};
use crate::kafka::envelope::OutRecord;
use crate::lsn::Lsn;
use crate::metrics::Metrics;

/// Longest that one call to librdkafka may block; then it is asked again.
const TURN: Duration = Duration::from_millis(500);

/// Between two turns that ended at once.
const PAUSE: Duration = Duration::from_millis(10);

/// Longest that taking over may take. The coordinator first ends what the predecessor left open;
/// a cluster that has lost a broker elects another coordinator within seconds.
const TAKE_OVER_MAX: Duration = Duration::from_secs(30);

/// Longest that giving a transaction up may take; who takes over next does it otherwise.
const ABORT_MAX: Duration = Duration::from_secs(5);

/// Of a producer that only takes over: it never begins a transaction.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct Transactions {
    id: String,
    config: TransactionConfig,
    /// Longest that the end of one may take: the last records' delivery, and the request itself.
    end_max: Duration,
    /// Since when one is open.
    open: Mutex<Option<Instant>>,
}

impl Transactions {
    fn new(config: &KafkaConfig, slot: &str) -> Self {
        let timeout = IDLE_TIMEOUT.max(config.delivery_timeout * 2).max(config.socket_timeout * 2);
        let idle = TransactionConfig { interval: Duration::ZERO, timeout };
        Self {
            id: config.transactional_id(slot),
            config: config.transactions().unwrap_or(idle),
            end_max: 2 * config.delivery_timeout + config.socket_timeout,
            open: Mutex::new(None),
        }
    }

    pub fn settings(&self) -> [(&'static str, String); 2] {
        let timeout_ms = self.config.timeout.as_millis().to_string();
        [("transactional.id", self.id.clone()), ("transaction.timeout.ms", timeout_ms)]
    }

    /// Begins a transaction if none is open.
    pub fn begin(&self, producer: &ThreadedProducer<Context>) -> KafkaResult<()> {
        let mut open = self.lock();
        if open.is_none() {
            producer.begin_transaction()?;
            *open = Some(Instant::now());
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        // Nothing that is done under it can panic halfway.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the broker says to one whose transactional id is another's by now.
fn is_fenced(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

impl LogProducer {
    /// Makes the producer of a session of this slot, as [`KafkaConfig::delivery`] says: one of
    /// plain records may serve several sessions, one with transactions serves one.
    ///
    /// # Errors
    /// If librdkafka refuses the settings.
    pub fn of_slot(
        config: &KafkaConfig,
        slot: &str,
        metrics: &Metrics,
    ) -> Result<Self, ProduceError> {
        let transactions = config.transactions().map(|_| Transactions::new(config, slot));
        Self::make(config, metrics, transactions)
    }

    /// How records are collected into transactions; None: they are not.
    pub fn transactions(&self) -> Option<TransactionConfig> {
        self.transactions.as_ref().map(|it| it.config)
    }

    /// Makes the transactional id ours: ends what its last holder has left open, and fences it.
    /// Without one nothing is done. Needed once, before the first record.
    ///
    /// # Errors
    /// If the brokers don't let us, or don't answer.
    pub async fn take_over(self: &Arc<Self>) -> Result<(), ProduceError> {
        let Some(transactions) = &self.transactions else { return Ok(()) };
        let taken = self.in_turns(TAKE_OVER_MAX, |it| it.init_transactions(TURN)).await;
        taken.map_err(|source| match source.rdkafka_error_code() {
            Some(RDKafkaErrorCode::InvalidTransactionTimeout) => {
                ProduceError::TransactionTimeout { wanted: transactions.config.timeout }
            }
            _ => ProduceError::TakeOver { id: transactions.id.clone(), source },
        })
    }

    /// Ends the transaction with its progress record. Nothing else may be sent meanwhile.
    ///
    /// # Errors
    /// If a record was not delivered or the end is not acknowledged; whether it ended is then
    /// known to who takes over.
    pub async fn end_transaction(
        self: &Arc<Self>,
        record: OutRecord<'_>,
        lsn: Lsn,
    ) -> Result<(), ProduceError> {
        let transactions = self.transactions.as_ref().expect("the producer is transactional");
        while !self.send_progress(record, lsn)? {
            let room = tokio::time::timeout(ROOM_CHECK, self.deliveries.room.notified()).await;
            drop(room);
            self.standing()?;
        }
        let ended = self.in_turns(transactions.end_max, |it| it.commit_transaction(TURN)).await;
        ended.map_err(|source| ProduceError::Transaction { source })?;
        *transactions.lock() = None;
        let metrics = &self.deliveries.metrics;
        metrics.kafka_transactions_total.with_label_values(&["committed"]).inc();
        let mut state = self.deliveries.lock();
        state.recorded = state.recorded.max(lsn);
        settle(&mut state, metrics);
        Ok(())
    }

    /// Gives up the open transaction, if there is one: its records are nobody's, and are sent
    /// again after the last progress record.
    ///
    /// # Errors
    /// If it could not be given up; who takes over does it then.
    pub async fn abort_transaction(self: &Arc<Self>) -> Result<(), ProduceError> {
        let Some(transactions) = &self.transactions else { return Ok(()) };
        if transactions.lock().is_none() {
            return Ok(());
        }
        let failure = self.deliveries.lock().failure.clone();
        let ended = self.in_turns(ABORT_MAX, |it| it.abort_transaction(TURN)).await;
        ended.map_err(|source| ProduceError::Transaction { source })?;
        *transactions.lock() = None;
        // The reports of records that were given up are no failures.
        self.deliveries.lock().failure = failure;
        let metrics = &self.deliveries.metrics;
        metrics.kafka_transactions_total.with_label_values(&["aborted"]).inc();
        Ok(())
    }

    /// The reason behind an error: a producer that was fenced says so in many ways.
    pub fn explain(&self, error: ProduceError) -> ProduceError {
        let Some(transactions) = &self.transactions else { return error };
        let said = match &error {
            ProduceError::Delivery { source, .. } | ProduceError::Transaction { source } => {
                source.rdkafka_error_code()
            }
            _ => None,
        };
        let fatal = self.producer.client().fatal_error().map(|it| it.0);
        if !said.is_some_and(is_fenced) && !fatal.is_some_and(is_fenced) {
            return error;
        }
        let limit = transactions.config.timeout;
        // The broker fences also who lets a transaction time out, in the same words.
        if transactions.lock().is_some_and(|since| limit <= since.elapsed()) {
            return ProduceError::TransactionTooLong { limit };
        }
        self.deliveries.metrics.capture_fenced_total.inc();
        ProduceError::Fenced { id: transactions.id.clone() }
    }

    async fn in_turns(
        self: &Arc<Self>,
        limit: Duration,
        call: fn(&ThreadedProducer<Context>) -> KafkaResult<()>,
    ) -> KafkaResult<()> {
        let deadline = Instant::now() + limit;
        loop {
            let this = Arc::clone(self);
            let called = tokio::task::spawn_blocking(move || call(&this.producer)).await;
            match called.unwrap_or(Err(KafkaError::Canceled)) {
                Err(KafkaError::Transaction(error))
                    if error.is_retriable() && Instant::now() < deadline =>
                {
                    tracing::debug!(%error, "a transaction's request goes on");
                }
                ended => return ended,
            }
            sleep(PAUSE).await;
        }
    }
}

/// Ends what a predecessor with transactions has left open, and fences it, for a session that has
/// none of its own.
///
/// # Errors
/// As [`LogProducer::take_over`].
pub async fn fence(config: &KafkaConfig, slot: &str) -> Result<(), ProduceError> {
    let transactions = Some(Transactions::new(config, slot));
    let producer = Arc::new(LogProducer::make(config, &Metrics::new(), transactions)?);
    let taken = producer.take_over().await;
    dismiss(producer);
    taken
}

/// Drops a producer where its end, which waits for reports, holds nobody up.
pub fn dismiss(producer: Arc<LogProducer>) {
    drop(tokio::task::spawn_blocking(move || drop(producer)));
}
