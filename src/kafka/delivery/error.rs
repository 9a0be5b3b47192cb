//! Why records can't be produced, and what librdkafka's many ways of saying so mean.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;

use crate::kafka::envelope::{EnvelopeError, OutRecord};
use crate::kafka::settings;
use crate::kafka::topics::TopicError;
use crate::progress::CommitOutOfOrder;

/// Why records can't be produced.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProduceError {
    #[error("can't make a producer; check [kafka] properties")]
    Client(#[source] KafkaError),
    #[error("can't start the producer's thread; check the system's limit of threads")]
    Thread(#[source] Arc<std::io::Error>),
    /// Not acknowledged in time or refused. What is not confirmed is sent again.
    #[error("Kafka did not take a record of topic {topic}{}", settings::cure(.source))]
    Delivery {
        topic: String,
        #[source]
        source: KafkaError,
    },
    /// librdkafka can't keep the order any more and needs a new producer.
    #[error("Kafka's idempotent producer failed for good")]
    Fatal(#[source] KafkaError),
    /// The topic's limit was lowered since it was asked for, or is lower than a batch; or the key
    /// alone is too large.
    #[error(
        "Kafka does not take the record with key {key} of topic {topic} ({size} bytes), or one sent \
         with it, for its size; raise max.message.bytes of the topic, to 1 MB at least"
    )]
    TooLarge { topic: String, key: String, size: usize },
    #[error("a batch waited {waited:?} before it could be sent: its slot may be another's by now")]
    Stale { waited: Duration },
    #[error("Kafka did not acknowledge what was in flight within {waited:?}")]
    DrainTimedOut { waited: Duration },
    #[error(
        "Kafka's coordinator did not give us transactional id {id}; delivery = \"exactly-once\" needs \
         the right to it, and the topic __transaction_state, whose replication factor \
         (transaction.state.log.replication.factor) must not exceed the number of brokers"
    )]
    TakeOver {
        id: String,
        #[source]
        source: KafkaError,
    },
    #[error(
        "Kafka refuses a transaction_timeout of {}: lower it, or raise transaction.max.timeout.ms of \
         the brokers", humantime::format_duration(*.wanted)
    )]
    TransactionTimeout { wanted: Duration },
    /// The next session knows from the progress topic whether it ended.
    #[error("Kafka did not end a transaction{}", settings::cure(.source))]
    Transaction {
        #[source]
        source: KafkaError,
    },
    #[error(
        "a Kafka transaction was open for longer than transaction_timeout ({}), and Kafka gave it \
         up; if a Postgres transaction takes so long to publish, raise it in [kafka], and \
         transaction.max.timeout.ms of the brokers", humantime::format_duration(*.limit)
    )]
    TransactionTooLong { limit: Duration },
    #[error(
        "fenced: another daemon has taken transactional id {id}, and Kafka takes nothing more from \
         this one; nothing is lost or repeated. If no successor was started for this slot, look for \
         a second daemon with the same topic_prefix and slot_name, also on a copy of the database"
    )]
    Fenced { id: String },
    #[error(transparent)]
    Order(#[from] CommitOutOfOrder),
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Topic(Arc<TopicError>),
}

impl ProduceError {
    /// Whether a new session may succeed without a person's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Delivery { source, .. }
            | Self::TakeOver { source, .. }
            | Self::Transaction { source } => settings::is_transient(source),
            // The next session asks for the limit anew, so that it is enough to raise it.
            Self::TooLarge { .. } => true,
            Self::Fatal(_)
            | Self::Stale { .. }
            | Self::DrainTimedOut { .. }
            | Self::TransactionTooLong { .. } => true,
            Self::Envelope(error) => error.is_transient(),
            Self::Topic(error) => error.is_transient(),
            Self::Client(_)
            | Self::Thread(_)
            | Self::TransactionTimeout { .. }
            | Self::Fenced { .. }
            | Self::Order(_) => false,
        }
    }
}

impl ProduceError {
    /// Whether Kafka refuses what a person can give: then a new session may succeed without a new
    /// process.
    pub fn is_curable(&self) -> bool {
        match self {
            Self::Delivery { source, .. }
            | Self::TakeOver { source, .. }
            | Self::Transaction { source } => settings::is_right(source),
            Self::Topic(error) => error.is_curable(),
            Self::Client(_)
            | Self::Thread(_)
            | Self::Fatal(_)
            | Self::TooLarge { .. }
            | Self::Stale { .. }
            | Self::DrainTimedOut { .. }
            | Self::TransactionTimeout { .. }
            | Self::TransactionTooLong { .. }
            | Self::Fenced { .. }
            | Self::Order(_)
            | Self::Envelope(_) => false,
        }
    }
}

/// What a delivery report of a failure says.
pub(super) fn failure(error: &KafkaError, message: &impl Message) -> ProduceError {
    let topic = message.topic().to_owned();
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
            let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
            ProduceError::TooLarge { topic, key, size: message.payload().map_or(0, <[u8]>::len) }
        }
        _ => ProduceError::Delivery { topic, source: error.clone() },
    }
}

/// Why librdkafka did not take a record.
pub(super) fn refused(error: KafkaError, record: OutRecord<'_>) -> ProduceError {
    let topic = record.topic.to_owned();
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => ProduceError::TooLarge {
            topic,
            key: String::from_utf8_lossy(record.key.unwrap_or_default()).into_owned(),
            size: record.value.map_or(0, <[u8]>::len),
        },
        Some(RDKafkaErrorCode::Fatal) => ProduceError::Fatal(error),
        _ => ProduceError::Delivery { topic, source: error },
    }
}
