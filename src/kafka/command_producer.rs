//! STAGE: commands -> Kafka, each with its own answer, for somebody who waits for it.
//!
//! Unlike capture's producer, which sends everything again for ever, this one gives up: a person
//! waits. What it must never do is to say "no" and deliver later. librdkafka can't take a record
//! back once a request with it is on its way, so a record that timed out may be in Kafka, or get
//! there within the time-out of its request: [`SendError::Unknown`], and never another error.

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use crate::config::KafkaConfig;
use crate::kafka::renewed::{Current, Renewed};
use crate::kafka::settings::{self, Quiet};

/// Most records that wait for Kafka: as many as clients that wait, which connections limit.
const QUEUE_RECORDS: &str = "10000";

/// Most bytes of them. Kafka away and commands at full size would fill it within the time-out;
/// then the next are refused at once.
const QUEUE_KILOBYTES: &str = "32768";

/// A command's record.
#[derive(Debug, Clone, Copy)]
pub struct CommandRecord<'a> {
    pub topic: &'a str,
    pub key: &'a str,
    pub value: &'a str,
    pub headers: &'a [(&'a str, &'a str)],
}

/// Why a record has no acknowledgement.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("Kafka's queue is full; it is away or too slow")]
    QueueFull,
    #[error("the topic takes no record of this size; raise its max.message.bytes")]
    TooLarge,
    /// It is in no topic, and will be in none.
    #[error("Kafka refuses the record")]
    Refused(#[source] KafkaError),
    /// It may be in Kafka, or get there soon.
    #[error("Kafka has not acknowledged the record in time")]
    Unknown(#[source] KafkaError),
}

/// See the module.
pub struct CommandProducer {
    producer: Renewed<FutureProducer<Quiet>>,
}

/// A record on its way. Whoever loses patience with it has learned nothing better of its producer
/// than a time-out would tell.
struct OnItsWay {
    current: Current<FutureProducer<Quiet>>,
    has_answer: bool,
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if !self.has_answer {
            self.current.gave_up.set();
        }
    }
}

impl CommandProducer {
    /// One whose records wait no longer than `timeout`, and at most a second more: librdkafka
    /// looks once a second at what has timed out.
    ///
    /// # Errors
    /// The operator's properties are no properties.
    pub fn new(config: &KafkaConfig, timeout: Duration) -> Result<Self, KafkaError> {
        let config = config.clone();
        let producer = Renewed::new("the write point", move |_| create(&config, timeout))?;
        Ok(Self { producer })
    }

    /// Sends a record and waits for its acknowledgement by all replicas in sync.
    ///
    /// # Errors
    /// See [`SendError`].
    pub async fn send(&self, record: CommandRecord<'_>) -> Result<(), SendError> {
        let mut on_its_way = OnItsWay { current: self.producer.current(), has_answer: false };
        let handed_over = hand_over(&on_its_way.current.producer, record);
        let is_queued = handed_over.is_ok();
        let error = match handed_over {
            Ok(delivery) => match delivery.await {
                Ok(Ok(_)) => {
                    on_its_way.has_answer = true;
                    return Ok(());
                }
                Ok(Err((error, _))) => error,
                Err(_) => return Err(SendError::Unknown(KafkaError::Canceled)),
            },
            Err(error) => error,
        };
        let code = error.rdkafka_error_code();
        let is_dead = on_its_way.current.producer.client().fatal_error().is_some();
        on_its_way.has_answer = !is_dead && code != Some(RDKafkaErrorCode::MessageTimedOut);
        Err(match code {
            Some(RDKafkaErrorCode::QueueFull) => SendError::QueueFull,
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => SendError::TooLarge,
            Some(code) if !is_queued || is_refusal(code) => SendError::Refused(error),
            _ => SendError::Unknown(error),
        })
    }
}

fn hand_over(
    producer: &FutureProducer<Quiet>,
    record: CommandRecord<'_>,
) -> Result<DeliveryFuture, KafkaError> {
    let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
    for (key, value) in record.headers {
        headers = headers.insert(Header { key, value: Some(value.as_bytes()) });
    }
    let out = FutureRecord::to(record.topic).key(record.key).payload(record.value);
    producer.send_result(out.headers(headers)).map_err(|(error, _)| error)
}

/// Whether no broker has appended the record, for sure. Whatever is not in this list may be.
fn is_refusal(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::UnknownTopic
            | Code::UnknownPartition
            | Code::UnknownTopicOrPartition
            | Code::InvalidTopic
            | Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::InvalidRecord
            | Code::PolicyViolation
            | Code::PurgeQueue
    )
}

fn create(config: &KafkaConfig, timeout: Duration) -> Result<FutureProducer<Quiet>, KafkaError> {
    let own = [
        ("acks", "all".to_owned()),
        // A retry of the client's own must not make two commands of one.
        ("enable.idempotence", "true".to_owned()),
        ("max.in.flight.requests.per.connection", "5".to_owned()),
        ("partitioner", "murmur2_random".to_owned()),
        // Somebody waits for each record.
        ("queue.buffering.max.ms", "0".to_owned()),
        ("queue.buffering.max.messages", QUEUE_RECORDS.to_owned()),
        ("queue.buffering.max.kbytes", QUEUE_KILOBYTES.to_owned()),
        // The topic's own limit decides.
        ("message.max.bytes", "10485760".to_owned()),
        ("message.timeout.ms", timeout.as_millis().to_string()),
        // A topic that is not there is said as that, before the time-out.
        ("topic.metadata.propagation.max.ms", "1000".to_owned()),
        ("allow.auto.create.topics", "false".to_owned()),
        ("retry.backoff.ms", "20".to_owned()),
    ];
    settings::client_config(config, &own).create_with_context(Quiet)
}
