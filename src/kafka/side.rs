//! What is written to the log besides changes: dead letters, and the progress records of
//! translators and copies.
//!
//! A dead letter says in its headers where it comes from and why; its value is the record as it
//! was, or nothing for a document (the document can be made again by its key at any time).

use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};

use crate::config::KafkaConfig;
use crate::document::DocumentKey;
use crate::kafka::consumer::Partition;
use crate::kafka::lost_cluster;
use crate::kafka::settings::{self, Quiet};
use crate::metrics::Metrics;

/// How long a full local queue is waited for; then the caller hears of an outage and tries again.
const QUEUE_WAIT_MAX: Duration = Duration::from_secs(1);

/// Kafka did not take a record. Always an outage: the caller tries again.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to topic {topic}")]
pub struct SideError {
    pub topic: String,
    #[source]
    pub source: KafkaError,
}

impl SideError {
    fn is_too_large(&self) -> bool {
        let code = self.source.rdkafka_error_code();
        code.is_some_and(|it| {
            matches!(
                it,
                RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize
            )
        })
    }
}

/// A record that can't be handled.
pub struct BadRecord<'a> {
    pub partition: &'a Partition,
    pub offset: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub reason: &'a str,
}

#[derive(Clone)]
pub struct SideProducer {
    producer: FutureProducer<Quiet>,
    config: KafkaConfig,
    dead_letter_topic: String,
    progress_topic: String,
    metrics: Metrics,
}

fn text_header<'a>(name: &'a str, value: &'a str) -> Header<'a, &'a str> {
    Header { key: name, value: Some(value) }
}

impl SideProducer {
    pub fn new(config: &KafkaConfig, metrics: Metrics) -> Result<Self, SideError> {
        let dead_letter_topic = config.dead_letter_topic();
        let timeout = config.delivery_timeout.as_millis().to_string();
        let own = [
            ("enable.idempotence", "true".to_owned()),
            ("partitioner", "murmur2_random".to_owned()),
            ("message.timeout.ms", timeout),
            ("queue.buffering.max.ms", "1".to_owned()),
            // As the producer of records: what it could send must also be buried.
            ("message.max.bytes", "10485760".to_owned()),
            ("queue.buffering.max.kbytes", "16384".to_owned()),
        ];
        let producer = settings::client_config(config, &own)
            .create_with_context(Quiet)
            .map_err(|source| SideError { topic: dead_letter_topic.clone(), source })?;
        let progress_topic = config.progress_topic();
        let config = config.clone();
        Ok(Self { producer, config, dead_letter_topic, progress_topic, metrics })
    }

    /// Buries a document: its SQL fails for this key, or Elasticsearch refuses it for good.
    pub async fn bury_document(
        &self,
        collection: &str,
        key: &DocumentKey,
        reason: &str,
    ) -> Result<(), SideError> {
        let headers = OwnedHeaders::new()
            .insert(text_header("kind", "document"))
            .insert(text_header("collection", collection))
            .insert(text_header("reason", reason));
        self.send(&self.dead_letter_topic, Some(key.0.as_bytes()), None, headers).await?;
        // Counted once it is there: what is tried again is one dead letter all the same.
        self.metrics.dead_letters_total.with_label_values(&["document"]).inc();
        Ok(())
    }

    /// Buries a record that is no change record.
    pub async fn bury_record(&self, record: BadRecord<'_>) -> Result<(), SideError> {
        let (number, offset) = (record.partition.number.to_string(), record.offset.to_string());
        let headers = OwnedHeaders::new()
            .insert(text_header("kind", "record"))
            .insert(text_header("topic", &record.partition.topic))
            .insert(text_header("partition", &number))
            .insert(text_header("offset", &offset))
            .insert(text_header("reason", record.reason));
        let topic = &self.dead_letter_topic;
        match self.send(topic, record.key, record.value, headers.clone()).await {
            // The topic takes less than the one that the record is of, where it can be found.
            Err(error) if error.is_too_large() => {
                self.send(topic, record.key, None, headers).await?;
            }
            sent => sent?,
        }
        self.metrics.dead_letters_total.with_label_values(&["record"]).inc();
        Ok(())
    }

    /// Writes a progress record.
    pub async fn note_progress(&self, key: &[u8], value: &[u8]) -> Result<(), SideError> {
        self.send(&self.progress_topic, Some(key), Some(value), OwnedHeaders::new()).await
    }

    /// Removes a progress record.
    pub async fn remove_progress(&self, key: &[u8]) -> Result<(), SideError> {
        self.send(&self.progress_topic, Some(key), None, OwnedHeaders::new()).await
    }

    async fn send(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: OwnedHeaders,
    ) -> Result<(), SideError> {
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic).headers(headers);
        record.key = key;
        record.payload = value;
        match self.producer.send(record, QUEUE_WAIT_MAX).await {
            Ok(_delivered) => Ok(()),
            Err((source, _record)) => {
                // It may have lost its cluster; the caller tries again.
                lost_cluster::tell_brokers(self.producer.client(), &self.config);
                Err(SideError { topic: topic.to_owned(), source })
            }
        }
    }
}
