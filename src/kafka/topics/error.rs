//! Why topics could not be looked at or created, and who can do something about it.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::kafka::settings;

/// Why topics could not be looked at or created.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    #[error("can't {doing} at Kafka's brokers {brokers}{}", settings::cure(.source))]
    Kafka {
        doing: &'static str,
        brokers: String,
        #[source]
        source: KafkaError,
    },
    #[error("Kafka does not create topic {topic}: {code}{}", settings::cure_of_code(*.code))]
    NotCreated { topic: String, code: RDKafkaErrorCode },
    #[error(
        "topic {topic} has {found} partitions, but progress records need exactly one to be in \
         order; delete the topic if it holds nothing of yours, and run `onelog prepare`"
    )]
    ProgressPartitions { topic: String, found: usize },
}

impl TopicError {
    /// Whether trying again may help without a person's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Kafka { source, .. } => settings::is_transient(source),
            Self::NotCreated { code, .. } => settings::is_transient_code(*code),
            Self::ProgressPartitions { .. } => false,
        }
    }

    /// Whether Kafka refuses what a person can give.
    pub fn is_curable(&self) -> bool {
        match self {
            Self::Kafka { source, .. } => settings::is_right(source),
            Self::NotCreated { code, .. } => settings::is_right_code(*code),
            Self::ProgressPartitions { .. } => false,
        }
    }
}
