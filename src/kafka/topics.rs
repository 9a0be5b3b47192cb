//! The kinds of topics: what each must be like, and making it so.
//!
//! Missing topics are created. One that exists is never altered: it may be shared, and a person
//! may have had a reason. A difference is told, with the command that cures it.
//!
//! **Invariant:** the number of partitions of a topic that exists is never changed, because the
//! order of a key's records rests on it (A14).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use tokio::time::Instant;

use crate::config::KafkaConfig;
use crate::kafka::settings;

/// How long a dead letter is kept: a person has to look at it, perhaps after a holiday.
const DEAD_LETTER_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// Small, so that compaction (which leaves the active segment alone) keeps the topic short.
const PROGRESS_SEGMENT: Duration = Duration::from_secs(600);

/// Topics seen to at a time, however many there are: the answer with the settings of each has some
/// 3 KB, and a controller takes no more than 10,000 partitions in one request.
const TOPICS_AT_ONCE: usize = 200;

/// What a topic is for, which decides its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicKind {
    /// A table's changes, by primary key.
    Entity { min_compaction_lag: Duration },
    /// Changes of a table without any key: compaction refuses null keys, so all are kept.
    EntityWithoutKey,
    /// Events of the outbox: kept for ever, by the time of their own.
    Event,
    /// Our progress records. Always one partition.
    Progress,
    /// What could not be handled.
    DeadLetter,
}

impl TopicKind {
    /// The settings that the kind rests on.
    pub fn settings(self) -> Vec<(&'static str, String)> {
        let own = |settings: &[(&'static str, &str)]| -> Vec<(&'static str, String)> {
            settings.iter().map(|&(name, value)| (name, value.to_owned())).collect()
        };
        match self {
            Self::Entity { min_compaction_lag } => {
                // By the broker's clock: the lag and the translator's age check go by it (B15).
                let mut all = own(&[
                    ("cleanup.policy", "compact"),
                    ("message.timestamp.type", "LogAppendTime"),
                ]);
                let lag = min_compaction_lag.as_millis().to_string();
                all.push(("min.compaction.lag.ms", lag));
                all
            }
            Self::EntityWithoutKey => own(&[
                ("cleanup.policy", "delete"),
                ("retention.ms", "-1"),
                ("retention.bytes", "-1"),
                ("message.timestamp.type", "LogAppendTime"),
            ]),
            Self::Event => own(&[
                ("cleanup.policy", "delete"),
                ("retention.ms", "-1"),
                ("retention.bytes", "-1"),
            ]),
            Self::Progress => vec![
                ("cleanup.policy", "compact".to_owned()),
                ("segment.ms", PROGRESS_SEGMENT.as_millis().to_string()),
            ],
            Self::DeadLetter => vec![
                ("cleanup.policy", "delete".to_owned()),
                ("retention.ms", DEAD_LETTER_RETENTION.as_millis().to_string()),
                // What is too large elsewhere is to have a place here: all that a producer of
                // ours can send.
                ("max.message.bytes", "10485760".to_owned()),
            ],
        }
    }
}

/// A topic that must exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedTopic {
    pub name: String,
    pub kind: TopicKind,
    /// Only for creation; an existing topic may have another number.
    pub partitions: i32,
}

impl WantedTopic {
    /// The progress topic and the dead-letter topic, which every deployment has.
    pub fn of_the_daemon(config: &KafkaConfig) -> [Self; 2] {
        let name = config.progress_topic();
        let dead = config.dead_letter_topic();
        [
            Self { name, kind: TopicKind::Progress, partitions: 1 },
            Self { name: dead, kind: TopicKind::DeadLetter, partitions: 1 },
        ]
    }
}

/// What was found or done about one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicAction {
    /// It exists and is as wanted.
    Fine { topic: String },
    /// It was missing, and was created (would be, in a dry run).
    Created { topic: String },
    /// It exists and differs: a warning, with the command that cures it.
    Drift { topic: String, warning: String },
}

/// Why topics could not be looked at or created.
#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    #[error("can't {doing} at Kafka's brokers {brokers}")]
    Kafka {
        doing: &'static str,
        brokers: String,
        #[source]
        source: KafkaError,
    },
    #[error("Kafka does not create topic {topic}: {code}")]
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
}

/// Creates what is missing of `wanted` and compares the rest; with `dry_run` creates nothing.
///
/// # Errors
/// See [`TopicError`]. Topics before the failed one may have been created.
pub async fn ensure_topics(
    config: &KafkaConfig,
    wanted: &[WantedTopic],
    dry_run: bool,
) -> Result<Vec<TopicAction>, TopicError> {
    let failed = |doing| {
        let brokers = config.brokers.clone();
        move |source| TopicError::Kafka { doing, brokers, source }
    };
    let admin: AdminClient<DefaultClientContext> = settings::client_config(config, &[])
        .create()
        .map_err(failed("make a client for topics"))?;
    let admin = Arc::new(admin);
    let partitions = partition_counts(&admin).await.map_err(failed("list the topics"))?;
    let mut actions = Vec::with_capacity(wanted.len());
    for some in wanted.chunks(TOPICS_AT_ONCE) {
        let (existing, missing): (Vec<_>, Vec<_>) =
            some.iter().partition(|it| partitions.contains_key(&it.name));
        if !dry_run {
            create(config, &admin, &missing).await?;
        }
        let created = missing.iter().map(|it| TopicAction::Created { topic: it.name.clone() });
        actions.extend(created);
        actions.extend(compare(config, &admin, (&existing, &partitions)).await?);
    }
    Ok(actions)
}

/// How topics that are there differ from what they should be.
async fn compare(
    config: &KafkaConfig,
    admin: &AdminClient<DefaultClientContext>,
    (existing, partitions): (&[&WantedTopic], &HashMap<String, usize>),
) -> Result<Vec<TopicAction>, TopicError> {
    let failed = |source| {
        let brokers = config.brokers.clone();
        TopicError::Kafka { doing: "read the settings of topics", brokers, source }
    };
    let mut actions = Vec::with_capacity(existing.len());
    let specifiers: Vec<_> = existing.iter().map(|it| ResourceSpecifier::Topic(&it.name)).collect();
    let described = match specifiers.is_empty() {
        true => Vec::new(),
        false => admin.describe_configs(&specifiers, &options()).await.map_err(failed)?,
    };
    for (topic, described) in existing.iter().zip(described) {
        let described = described.map_err(|code| failed(KafkaError::AdminOp(code)))?;
        let found: Vec<(&str, Option<&str>)> =
            described.entries.iter().map(|it| (it.name.as_str(), it.value.as_deref())).collect();
        let count = partitions.get(&topic.name).copied().unwrap_or(0);
        if topic.kind == TopicKind::Progress && count != 1 {
            return Err(TopicError::ProgressPartitions { topic: topic.name.clone(), found: count });
        }
        actions.push(match drift(&config.brokers, topic, &found) {
            None => TopicAction::Fine { topic: topic.name.clone() },
            Some(warning) => TopicAction::Drift { topic: topic.name.clone(), warning },
        });
    }
    Ok(actions)
}

/// What a topic takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicFacts {
    pub partitions: usize,
    /// Of a batch as it is stored, and so of a record.
    pub max_message_bytes: usize,
    /// It refuses records without a key.
    pub is_compacted: bool,
}

/// Kafka's default for `max.message.bytes`.
const MAX_MESSAGE_BYTES: usize = 1_048_588;

/// What every topic of ours must take: a full batch with its head.
const MAX_MESSAGE_BYTES_MIN: usize = settings::BATCH_BYTES + 1024;

/// How often a topic that was just created is asked for again.
const FACTS_POLL: Duration = Duration::from_millis(50);

/// Asks what a topic takes. One that was just created may be unknown to a broker for a moment,
/// which is waited for.
///
/// # Errors
/// If the brokers can't be asked, or don't know the topic in time.
pub async fn facts(config: &KafkaConfig, topic: &str) -> Result<TopicFacts, TopicError> {
    let failed = |source| {
        let brokers = config.brokers.clone();
        TopicError::Kafka { doing: "read the settings of a topic", brokers, source }
    };
    let admin: AdminClient<DefaultClientContext> =
        settings::client_config(config, &[]).create().map_err(failed)?;
    let admin = Arc::new(admin);
    let give_up = Instant::now() + settings::REQUEST_TIMEOUT;
    loop {
        let counts = partition_counts(&admin).await.map_err(failed)?;
        let specifier = ResourceSpecifier::Topic(topic);
        let described =
            admin.describe_configs([&specifier], &options()).await.map_err(failed)?.pop();
        let found = counts.get(topic).copied().filter(|it| 0 < *it);
        match (found, described) {
            (Some(partitions), Some(Ok(described))) => {
                let limit = described.get("max.message.bytes").and_then(|it| it.value.as_ref());
                let limit = limit.and_then(|it| it.parse().ok()).unwrap_or(MAX_MESSAGE_BYTES);
                let policy = described.get("cleanup.policy").and_then(|it| it.value.as_ref());
                let is_compacted = policy.is_some_and(|it| it.contains("compact"));
                return Ok(TopicFacts { partitions, max_message_bytes: limit, is_compacted });
            }
            (_, Some(Err(code))) if give_up < Instant::now() => {
                return Err(failed(KafkaError::AdminOp(code)));
            }
            _ if give_up < Instant::now() => {
                let code = RDKafkaErrorCode::UnknownTopicOrPartition;
                return Err(failed(KafkaError::AdminOp(code)));
            }
            _ => tokio::time::sleep(FACTS_POLL).await,
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(settings::REQUEST_TIMEOUT))
        .operation_timeout(Some(settings::REQUEST_TIMEOUT))
}

/// All topics with their numbers of partitions. Of all, as asking for one by name may create it.
async fn partition_counts(
    admin: &Arc<AdminClient<DefaultClientContext>>,
) -> Result<HashMap<String, usize>, KafkaError> {
    let admin = Arc::clone(admin);
    let fetched = tokio::task::spawn_blocking(move || {
        let metadata = admin.inner().fetch_metadata(None, settings::REQUEST_TIMEOUT)?;
        let topics = metadata.topics().iter();
        Ok(topics.map(|it| (it.name().to_owned(), it.partitions().len())).collect())
    });
    fetched.await.unwrap_or(Err(KafkaError::Canceled))
}

async fn create(
    config: &KafkaConfig,
    admin: &AdminClient<DefaultClientContext>,
    missing: &[&WantedTopic],
) -> Result<(), TopicError> {
    if missing.is_empty() {
        return Ok(());
    }
    let settings: Vec<_> = missing.iter().map(|it| it.kind.settings()).collect();
    let topics: Vec<NewTopic<'_>> = missing
        .iter()
        .zip(&settings)
        .map(|(wanted, settings)| {
            let replication = TopicReplication::Fixed(config.replication_factor);
            let topic = NewTopic::new(&wanted.name, wanted.partitions, replication);
            settings.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
        })
        .collect();
    let results = admin.create_topics(&topics, &options()).await.map_err(|source| {
        let brokers = config.brokers.clone();
        TopicError::Kafka { doing: "create topics", brokers, source }
    })?;
    for result in results {
        match result {
            // Another daemon or `prepare` may have been faster.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(TopicError::NotCreated { topic, code }),
        }
    }
    Ok(())
}

/// How `found` differs from what `topic` should be, and the command that cures it.
fn drift(brokers: &str, topic: &WantedTopic, found: &[(&str, Option<&str>)]) -> Option<String> {
    let mut differences = Vec::new();
    let mut cures = Vec::new();
    for (name, wanted) in topic.kind.settings() {
        let value = found.iter().find(|it| it.0 == name).and_then(|it| it.1).unwrap_or("");
        if value != wanted {
            differences.push(format!("{name} is \"{value}\", not \"{wanted}\""));
            cures.push(format!("{name}={wanted}"));
        }
    }
    let limit =
        found.iter().find(|it| it.0 == "max.message.bytes").and_then(|it| it.1?.parse().ok());
    if limit.is_some_and(|it: usize| it < MAX_MESSAGE_BYTES_MIN) {
        let limit = limit.unwrap_or(0);
        differences.push(format!("max.message.bytes is {limit}, too small for a batch of records"));
        cures.push(format!("max.message.bytes={MAX_MESSAGE_BYTES}"));
    }
    if differences.is_empty() {
        return None;
    }
    Some(format!(
        "topic {}: {}; cure: kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type \
         topics --entity-name {} --add-config {}",
        topic.name,
        differences.join(", "),
        topic.name,
        cures.join(","),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drift_names_every_difference_and_its_cure() {
        let kind = TopicKind::Entity { min_compaction_lag: Duration::from_secs(7) };
        let topic = WantedTopic { name: "app.public.t".to_owned(), kind, partitions: 3 };
        let lag = ("min.compaction.lag.ms", Some("7000"));
        let time = ("message.timestamp.type", Some("LogAppendTime"));
        let compact = ("cleanup.policy", Some("compact"));
        assert_eq!(drift("b:1", &topic, &[lag, time, compact]), None);
        let small =
            drift("b:1", &topic, &[lag, time, compact, ("max.message.bytes", Some("9000"))]);
        let small = small.unwrap();
        assert!(small.contains("is 9000, too small") && small.contains("bytes=1048588"), "{small}");

        let warning = drift("b:1", &topic, &[lag, ("cleanup.policy", Some("delete"))]).unwrap();
        assert_eq!(
            warning,
            "topic app.public.t: cleanup.policy is \"delete\", not \"compact\", \
             message.timestamp.type is \"\", not \"LogAppendTime\"; cure: kafka-configs.sh \
             --bootstrap-server b:1 --alter --entity-type topics --entity-name app.public.t \
             --add-config cleanup.policy=compact,message.timestamp.type=LogAppendTime"
        );
    }
}
