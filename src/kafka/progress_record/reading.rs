//! The progress topic, read from its beginning to its end.
//!
//! A reader of committed records stops at the first transaction that is open, and what is behind
//! it may be newer than what it has seen. Who is about to publish must not take that for the end:
//! it would publish again what is already published.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Message, Offset, TopicPartitionList};

use super::{ProgressReadError, ProgressRecords};
use crate::config::KafkaConfig;
use crate::kafka::settings::{self, Quiet};

/// Longest that reading the topic may take: it is compacted and holds a few records, but its
/// uncompacted tail may hold an hour of ten records a second.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest that a transaction's end is waited for: its writer asks for it right after the record.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// Between two looks.
const SETTLE_PAUSE: Duration = Duration::from_millis(10);

/// What is committed in the progress topic.
#[derive(Debug, Default)]
pub struct Committed {
    pub records: ProgressRecords,
    /// That was all there is: no transaction was open that hides newer records.
    pub settled: bool,
}

/// Reads the progress topic from its beginning to its end, as it is at some moment during the
/// call, with what is not committed. None: there is no such topic.
///
/// # Errors
/// See [`ProgressReadError`].
pub async fn read_all(config: &KafkaConfig) -> Result<Option<ProgressRecords>, ProgressReadError> {
    let read = |config: &KafkaConfig| read_blocking(config, "read_uncommitted");
    in_background(config, read).await
}

/// As [`read_all`], but only what is committed.
///
/// # Errors
/// See [`ProgressReadError`].
pub async fn read_committed(config: &KafkaConfig) -> Result<Committed, ProgressReadError> {
    in_background(config, |config| {
        let settled = settle(config)?;
        let records = read_blocking(config, "read_committed")?.unwrap_or_default();
        Ok(Committed { records, settled })
    })
    .await
}

async fn in_background<T: Send + 'static>(
    config: &KafkaConfig,
    read: impl FnOnce(&KafkaConfig) -> Result<T, ProgressReadError> + Send + 'static,
) -> Result<T, ProgressReadError> {
    let config = config.clone();
    let topic = config.progress_topic();
    let read = tokio::task::spawn_blocking(move || read(&config));
    // The thread is ours and panics only by a mistake of ours; it may also be gone at shutdown.
    read.await.unwrap_or(Err(ProgressReadError::TimedOut { topic }))
}

fn reader(config: &KafkaConfig, isolation: &str) -> Result<BaseConsumer<Quiet>, KafkaError> {
    let mut own = reader_settings(config).to_vec();
    own.push(("isolation.level", isolation.to_owned()));
    settings::client_config(config, &own).create_with_context(Quiet)
}

/// Waits until all that is in the topic now is committed or aborted; false: it still is not.
fn settle(config: &KafkaConfig) -> Result<bool, ProgressReadError> {
    let topic = config.progress_topic();
    let failed = |source| ProgressReadError::Kafka { topic: topic.clone(), source };
    let consumer = reader(config, "read_uncommitted").map_err(failed)?;
    let Some(all) = end(&consumer, &topic).map_err(failed)? else { return Ok(true) };
    let consumer = reader(config, "read_committed").map_err(failed)?;
    let deadline = Instant::now() + SETTLE_MAX;
    while end(&consumer, &topic).map_err(failed)? < Some(all) {
        if deadline <= Instant::now() {
            return Ok(false);
        }
        pause(&consumer);
    }
    Ok(true)
}

/// Nothing is assigned yet, so that there is nothing to get but the pause.
fn pause(consumer: &BaseConsumer<Quiet>) {
    drop(consumer.poll(SETTLE_PAUSE));
}

/// The topic's end, as far as this consumer may read; None: there is no topic.
fn end(consumer: &BaseConsumer<Quiet>, topic: &str) -> Result<Option<i64>, KafkaError> {
    use RDKafkaErrorCode as Code;
    let deadline = Instant::now() + settings::REQUEST_TIMEOUT;
    loop {
        // One partition, always: `topics` sees to it.
        let error = match consumer.fetch_watermarks(topic, 0, settings::REQUEST_TIMEOUT) {
            Ok((_, high)) => return Ok(Some(high)),
            Err(error) => error,
        };
        match error.rdkafka_error_code() {
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
                return Ok(None);
            }
            // A topic that was created a moment ago has no leader yet.
            _ if settings::is_transient(&error) && Instant::now() < deadline => {
                pause(consumer);
            }
            _ => return Err(error),
        }
    }
}

fn read_blocking(
    config: &KafkaConfig,
    isolation: &str,
) -> Result<Option<ProgressRecords>, ProgressReadError> {
    let topic = config.progress_topic();
    let failed = |source| ProgressReadError::Kafka { topic: topic.clone(), source };
    let deadline = Instant::now() + READ_TIMEOUT;
    let consumer = reader(config, isolation).map_err(&failed)?;

    let metadata =
        consumer.fetch_metadata(Some(&topic), settings::REQUEST_TIMEOUT).map_err(&failed)?;
    let Some(found) = metadata.topics().iter().find(|it| it.name() == topic) else {
        return Ok(None);
    };
    match found.error().map(RDKafkaErrorCode::from) {
        None => {}
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
            return Ok(None);
        }
        Some(code) => return Err(failed(KafkaError::MetadataFetch(code))),
    }
    let mut assignment = TopicPartitionList::new();
    for partition in found.partitions() {
        assignment
            .add_partition_offset(&topic, partition.id(), Offset::Beginning)
            .map_err(&failed)?;
    }
    let mut unfinished = found.partitions().len();
    if unfinished == 0 {
        return Ok(None);
    }
    consumer.assign(&assignment).map_err(&failed)?;

    let mut records = ProgressRecords::default();
    while 0 < unfinished {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ProgressReadError::TimedOut { topic });
        }
        match consumer.poll(left.min(Duration::from_millis(100))) {
            None => {}
            Some(Err(KafkaError::PartitionEOF(_))) => unfinished -= 1,
            Some(Err(source)) if settings::is_transient(&source) => {}
            Some(Err(source)) => return Err(failed(source)),
            Some(Ok(message)) => {
                let key = message.key().unwrap_or_default();
                records.apply(key, message.payload()).map_err(|problem| {
                    ProgressReadError::NotUnderstood {
                        topic: topic.clone(),
                        offset: message.offset(),
                        problem,
                    }
                })?;
            }
        }
    }
    Ok(Some(records))
}

fn reader_settings(config: &KafkaConfig) -> [(&'static str, String); 7] {
    [
        // Never joined and never committed to: librdkafka asks for one, and access rights are
        // usually given by it.
        ("group.id", config.group_id.clone()),
        ("enable.auto.commit", "false".to_owned()),
        ("enable.auto.offset.store", "false".to_owned()),
        ("enable.partition.eof", "true".to_owned()),
        ("auto.offset.reset", "earliest".to_owned()),
        ("allow.auto.create.topics", "false".to_owned()),
        ("fetch.wait.max.ms", "20".to_owned()),
    ]
}
