//! Writes to the backplane: what must be there before we go on ([`FeedbackSender::publish`]), and
//! what is only worth telling ([`FeedbackSender::offer`]).
//!
//! What is offered never makes anybody wait: when the queue is full, it is dropped and counted. A
//! push comes late then, and no document does.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{
    BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer,
};
use tokio::sync::oneshot;

use crate::config::{Config, KafkaConfig};
use crate::kafka::feedback::{Feedback, Hop, Role, State};
use crate::kafka::renewed::{Current, GaveUp, Renewed};
use crate::kafka::settings;
use crate::kafka::topics::{self, TopicError, WantedTopic};
use crate::metrics::Metrics;

/// Most records that wait for Kafka: some ten milliseconds of a busy translator.
const QUEUE_RECORDS: &str = "10000";
/// The same in KiB: records of a few hundred bytes, and a few answers with a body.
const QUEUE_KBYTES: &str = "8192";
/// What is told at the end is waited for this long: others may rely on our goodbye.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// The record is not known to be in Kafka. It may be there all the same.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to topic {topic}")]
pub struct PublishError {
    pub topic: String,
    #[source]
    pub source: KafkaError,
}

/// A role can't tell the gateways anything.
#[derive(Debug, thiserror::Error)]
pub enum FeedbackError {
    #[error("the topic of feedback can't be made")]
    Topic(#[from] TopicError),
    #[error("the producer of feedback can't be made")]
    Producer(#[from] PublishError),
}

impl FeedbackError {
    /// Whether trying again may help without a person's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Topic(error) => error.is_transient(),
            Self::Producer(error) => settings::is_transient(&error.source),
        }
    }
}

/// For a role that tells gateways what it does, with the topic made; None: there are none.
pub async fn of_role(
    config: &Config,
    metrics: Metrics,
) -> Result<Option<FeedbackSender>, FeedbackError> {
    let Some(gateway) = &config.gateway else { return Ok(None) };
    let wanted = WantedTopic::of_feedback(&config.kafka, gateway.feedback_retention);
    topics::ensure_topics(&config.kafka, &[wanted], false).await?;
    let timeout = config.kafka.delivery_timeout;
    Ok(Some(FeedbackSender::new(&config.kafka, timeout, metrics)?))
}

/// Who waits for the record's offset, if anybody does.
type Waiter = Option<oneshot::Sender<Result<i64, KafkaError>>>;

struct Reports {
    metrics: Metrics,
    gave_up: GaveUp,
}

impl ClientContext for Reports {
    fn error(&self, error: KafkaError, reason: &str) {
        settings::hush(&error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Box<Waiter>;

    fn delivery(&self, result: &DeliveryResult<'_>, waiter: Box<Waiter>) {
        let (outcome, result) = match result {
            Ok(message) => ("sent", Ok(message.offset())),
            Err((error, _)) => {
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageTimedOut) {
                    self.gave_up.set();
                }
                ("failed", Err(error.clone()))
            }
        };
        self.metrics.feedback_records_total.with_label_values(&[outcome]).inc();
        if let Some(waiter) = *waiter {
            // Whoever waited may have lost patience.
            let _gone = waiter.send(result);
        }
    }
}

/// A way to the backplane.
pub struct FeedbackSender {
    producer: Renewed<ThreadedProducer<Reports>>,
    topic: String,
    /// Names this process among others of its role.
    instance: String,
    metrics: Metrics,
}

impl FeedbackSender {
    /// `timeout`: how long a record may wait for Kafka before it is given up.
    pub fn new(
        config: &KafkaConfig,
        timeout: Duration,
        metrics: Metrics,
    ) -> Result<Self, PublishError> {
        let topic = config.feedback_topic();
        let own = [
            ("enable.idempotence", "true".to_owned()),
            ("acks", "all".to_owned()),
            ("message.timeout.ms", timeout.as_millis().to_string()),
            // At once, as of changes (`delivery.rs`): a millisecond's wait would not be slept.
            ("queue.buffering.max.ms", "0".to_owned()),
            ("queue.buffering.max.messages", QUEUE_RECORDS.to_owned()),
            ("queue.buffering.max.kbytes", QUEUE_KBYTES.to_owned()),
        ];
        let client = settings::client_config(config, &own);
        let counted = metrics.clone();
        let producer = Renewed::new("feedback", move |gave_up| {
            client.create_with_context(Reports { metrics: counted.clone(), gave_up })
        })
        .map_err(|source| PublishError { topic: topic.clone(), source })?;
        // Keyed by the operating system, anew for each process and each of these.
        let instance = format!("{:016x}", RandomState::new().build_hasher().finish());
        Ok(Self { producer, topic, instance, metrics })
    }

    /// Writes the record, and returns its offset once Kafka has it for good.
    pub async fn publish(&self, feedback: &Feedback) -> Result<i64, PublishError> {
        let failed = |source| PublishError { topic: self.topic.clone(), source };
        let (delivered, report) = oneshot::channel();
        let producer = self.send(feedback, Some(delivered)).map_err(failed)?;
        // Each record handed over gets its report, the last ones when the producer is dropped: so
        // one that is replaced meanwhile stays until then.
        let reported = report.await;
        drop(producer);
        reported.unwrap_or(Err(KafkaError::Canceled)).map_err(failed)
    }

    /// Writes the record if there is room for it, and waits for nothing.
    pub fn offer(&self, feedback: &Feedback) {
        if let Err(error) = self.send(feedback, None) {
            self.metrics.feedback_records_total.with_label_values(&["dropped"]).inc();
            // A full queue is said by the metric: it comes by the thousand.
            if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                tracing::debug!(%error, "feedback not sent");
            }
        }
    }

    /// The producer that has the record now.
    fn send(
        &self,
        feedback: &Feedback,
        waiter: Waiter,
    ) -> Result<ThreadedProducer<Reports>, KafkaError> {
        let value = feedback.to_json();
        let record: BaseRecord<'_, [u8], [u8], Box<Waiter>> =
            BaseRecord::with_opaque_to(&self.topic, Box::new(waiter))
                .partition(0)
                .payload(value.as_bytes());
        let Current { producer, gave_up } = self.producer.current();
        let Err((error, record)) = producer.send(record) else { return Ok(producer) };
        if producer.client().fatal_error().is_none() {
            return Err(error);
        }
        gave_up.set();
        let producer = self.producer.current().producer;
        producer.send(record).map_err(|(error, _record)| error)?;
        Ok(producer)
    }

    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Says that a role stops here, and waits a little until that is there; blocks.
    pub fn say_goodbye(&self, role: Role, ts_ms: i64) {
        let hop = Hop::new((role, &self.instance), State::Stopped, ts_ms);
        self.offer(&Feedback::Hop(hop));
        if let Err(error) = self.producer.current().producer.flush(FLUSH_MAX) {
            tracing::debug!(%error, "feedback was left behind");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

    use super::*;
    use crate::config::file::parse;

    fn cluster(
        timeout: Duration,
    ) -> (MockCluster<'static, DefaultProducerContext>, FeedbackSender) {
        let cluster = MockCluster::new(1).unwrap();
        let text = format!(
            "[postgres]\nurl = \"postgres://onelog@localhost/app\"\ntables = [\"public.*\"]\n\
             [kafka]\nbrokers = \"{}\"\ntopic_prefix = \"app\"\n\
             [elasticsearch]\nurl = \"http://localhost:9200\"\n",
            cluster.bootstrap_servers()
        );
        let config = parse("config.toml".as_ref(), &text, &|_| None).unwrap().kafka;
        cluster.create_topic(&config.feedback_topic(), 1, 1).unwrap();
        let sender = FeedbackSender::new(&config, timeout, Metrics::new()).unwrap();
        (cluster, sender)
    }

    fn said() -> Feedback {
        Feedback::Hop(Hop::new((Role::Capture, "i"), State::Running, 0))
    }

    /// librdkafka's broker for tests: a real one has such an answer only for a mistake of its own.
    #[tokio::test]
    async fn a_producer_that_is_dead_is_replaced() {
        let (cluster, sender) = cluster(Duration::from_secs(60));
        let said = said();
        assert_eq!(sender.publish(&said).await.unwrap(), 0);
        let fatal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        for expected in 1..3 {
            cluster.request_errors(RDKafkaApiKey::Produce, &[fatal]);
            sender.publish(&said).await.unwrap_err();
            assert_eq!(sender.publish(&said).await.unwrap(), expected);
        }
    }

    /// As it may never send again: `kafka::renewed`.
    #[tokio::test]
    async fn a_producer_that_gave_a_record_up_is_replaced() {
        let (cluster, sender) = cluster(Duration::from_secs(1));
        let said = said();
        cluster.broker_down(1).unwrap();
        let first = sender.producer.current().producer;
        sender.publish(&said).await.unwrap_err();
        let now = sender.producer.current().producer;
        assert!(!Arc::ptr_eq(first.client().context(), now.client().context()), "another one");
        cluster.broker_up(1).unwrap();
        let mut failed = 0;
        while sender.publish(&said).await.is_err() {
            failed += 1;
            assert!(failed < 60, "it never sends again");
        }
    }
}
