//! Whether all that was committed before a place of the WAL has reached the documents, for those
//! who wait for a document that the changes may not concern at all.
//!
//! Capture says how far the log has everything (`lsn` of its hop). What is in the topics then is
//! handled once the translators' group has committed it: offsets are committed only up to the first
//! record whose documents are not written.

use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::{Mutex, watch};

use crate::config::KafkaConfig;
use crate::gateway::backplane::Backplane;
use crate::kafka::feedback::Role;
use crate::kafka::settings::{self, Quiet};
use crate::lsn::Lsn;

/// Translators commit this often, so that to look more often finds nothing new.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Longest that the brokers may take for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Places that the group must have committed.
type Ends = Vec<(String, i32, i64)>;

/// Asks Kafka how far the translators are. One question at a time, whoever waits: each asks for
/// every partition.
pub struct Pipeline {
    kafka: KafkaConfig,
    /// Made with the first question, and kept: a client of its own for each would connect anew
    /// five times a second.
    asking: Mutex<Option<BaseConsumer<Quiet>>>,
}

impl Pipeline {
    pub fn new(kafka: &KafkaConfig) -> Self {
        Self { kafka: kafka.clone(), asking: Mutex::new(None) }
    }

    /// Returns once everything that was committed before `lsn` has been handled. The caller limits
    /// the wait; while Kafka does not answer, it does not end.
    pub async fn passed(&self, backplane: &Backplane, lsn: Lsn) {
        captured(backplane, lsn).await;
        let mut ends: Option<Ends> = None;
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            let mut asking = self.asking.lock().await;
            let (kafka, kept, known) = (self.kafka.clone(), asking.take(), ends.take());
            let asked = tokio::task::spawn_blocking(move || {
                let consumer = kept.map_or_else(|| consumer(&kafka), Ok)?;
                let left = left(&kafka, &consumer, known)?;
                Ok::<_, KafkaError>((consumer, left))
            });
            match asked.await {
                Ok(Ok((consumer, left))) => {
                    *asking = Some(consumer);
                    if left.is_empty() {
                        return;
                    }
                    ends = Some(left);
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "how far the translators are is not known")
                }
                Err(_panicked) => return std::future::pending().await,
            }
        }
    }
}

/// Returns once capture has said that the log has everything before `lsn`.
async fn captured(backplane: &Backplane, lsn: Lsn) {
    let mut reached: watch::Receiver<i64> = backplane.progress();
    loop {
        reached.borrow_and_update();
        let captured = backplane.look(|it| {
            it.hops().any(|it| it.role == Role::Capture && it.lsn.is_some_and(|it| lsn <= it))
        });
        if captured {
            return;
        }
        if reached.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Asks what the group has committed, and never joins it.
fn consumer(kafka: &KafkaConfig) -> Result<BaseConsumer<Quiet>, KafkaError> {
    let own = [("group.id", kafka.group_id.clone())];
    settings::client_config(kafka, &own).create_with_context(Quiet)
}

/// What of `ends` the group has not committed yet; without them, of the topics' ends as of now.
/// Blocks.
fn left(
    kafka: &KafkaConfig,
    consumer: &BaseConsumer<Quiet>,
    ends: Option<Ends>,
) -> Result<Ends, KafkaError> {
    let places: Vec<(String, i32)> = match &ends {
        Some(ends) => ends.iter().map(|(topic, number, _)| (topic.clone(), *number)).collect(),
        None => table_partitions(consumer, kafka)?,
    };
    let mut wanted = TopicPartitionList::with_capacity(places.len());
    for (topic, number) in &places {
        wanted.add_partition(topic, *number);
    }
    let committed = consumer.committed_offsets(wanted, ANSWER_MAX)?;
    let mut left = Ends::new();
    for place in committed.elements() {
        // Nobody reads what nobody has committed: no mapping is about that table.
        let Offset::Offset(at) = place.offset() else { continue };
        let (topic, number) = (place.topic().to_owned(), place.partition());
        let known = ends.iter().flatten().find(|(it, of, _)| *it == topic && *of == number);
        let end = match known {
            Some((_, _, end)) => *end,
            None => consumer.fetch_watermarks(&topic, number, ANSWER_MAX)?.1,
        };
        if at < end {
            left.push((topic, number, end));
        }
    }
    Ok(left)
}

fn table_partitions(
    consumer: &BaseConsumer<Quiet>,
    kafka: &KafkaConfig,
) -> Result<Vec<(String, i32)>, KafkaError> {
    let metadata = consumer.fetch_metadata(None, ANSWER_MAX)?;
    let prefix = format!("{}.", kafka.topic_prefix);
    let of_tables = metadata
        .topics()
        .iter()
        .filter(|it| it.name().starts_with(&prefix) && !kafka.is_own_topic(it.name()));
    let partitions = of_tables
        .flat_map(|topic| topic.partitions().iter().map(|it| (topic.name().to_owned(), it.id())));
    Ok(partitions.collect())
}
