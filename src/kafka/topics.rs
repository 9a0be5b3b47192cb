//! The kinds of topics: what each must be like, and making it so.
//!
//! Missing topics are created. One that exists is never altered: it may be shared, and a person
//! may have had a reason. A difference is told, with the command that cures it.
//!
//! **Invariant:** the number of partitions of a topic that exists is never changed, because the
//! order of a key's records rests on it (A14).

mod error;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use tokio::time::Instant;

pub use error::TopicError;

use crate::config::KafkaConfig;
use crate::config::topics::{Declaration, TableTopic, TopicSettings};
use crate::copies::MadeTopics;
use crate::kafka::settings;

/// How long a dead letter is kept: a person has to look at it, perhaps after a holiday.
const DEAD_LETTER_RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// Small, so that compaction (which leaves the active segment alone) keeps the topic short.
const PROGRESS_SEGMENT: Duration = Duration::from_secs(600);

/// A sixth of an hour, for which feedback is kept.
const FEEDBACK_SEGMENT: Duration = Duration::from_secs(600);

/// Topics seen to at a time, however many there are: the answer with the settings of each has some
/// 3 KB, and a broker takes 5 to 10 ms to make the files of each new one (see [`known`]).
const TOPICS_AT_ONCE: usize = 100;

/// What a topic is for, which decides its settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicKind {
    /// What an application or its tables say, as `[[topics]]` and the kind have it.
    Declared(TopicSettings),
    /// Our progress records. Always one partition.
    Progress,
    /// What could not be handled.
    DeadLetter,
    /// What gateways and translators tell each other. Always one partition.
    Feedback { retention: Duration },
}

impl TopicKind {
    /// The settings that the kind rests on.
    pub fn settings(self) -> Vec<(&'static str, String)> {
        match self {
            Self::Declared(settings) => settings.named(),
            Self::Progress => vec![
                ("cleanup.policy", "compact".to_owned()),
                ("segment.ms", PROGRESS_SEGMENT.as_millis().to_string()),
            ],
            // The log's time, as windows and retention go by it; small segments, as only whole ones
            // are deleted.
            Self::Feedback { retention } => vec![
                ("cleanup.policy", "delete".to_owned()),
                ("retention.ms", retention.as_millis().to_string()),
                ("segment.ms", FEEDBACK_SEGMENT.as_millis().to_string()),
                ("message.timestamp.type", "LogAppendTime".to_owned()),
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
    pub replication_factor: i32,
    /// Somebody has declared how many partitions it has: another number is a drift.
    pub partitions_declared: bool,
    pub replication_declared: bool,
}

impl WantedTopic {
    /// The progress topic and the dead-letter topic, which every deployment has.
    pub fn of_the_daemon(config: &KafkaConfig) -> [Self; 2] {
        let own = |name, kind| Self::new(config, name, (kind, 1), None);
        [
            own(config.progress_topic(), TopicKind::Progress),
            own(config.dead_letter_topic(), TopicKind::DeadLetter),
        ]
    }

    /// The gateways' backplane.
    pub fn of_feedback(config: &KafkaConfig, retention: Duration) -> Self {
        let kind = TopicKind::Feedback { retention };
        Self::new(config, config.feedback_topic(), (kind, 1), None)
    }

    /// The topic of a table, with or without a key.
    pub fn of_table(config: &KafkaConfig, name: &str, keyed: bool) -> Self {
        let declared = config.table_declaration(name);
        let kind = TopicKind::Declared(config.table_settings(declared, keyed));
        Self::new(config, name.to_owned(), (kind, config.partitions), declared)
    }

    /// A topic besides the own one of a table with or without a key.
    pub fn of_extract(config: &KafkaConfig, declared: &Declaration, keyed: bool) -> Self {
        let kind = TopicKind::Declared(config.table_settings(Some(declared), keyed));
        Self::new(config, declared.name.clone(), (kind, config.partitions), Some(declared))
    }

    /// All topics that a table's changes go to besides its own.
    pub fn extracts_of(config: &KafkaConfig, topic: &str, keyed: bool) -> Vec<Self> {
        let is_of_it = |it: &TableTopic| config.table_topic(&it.table) == topic;
        let all = config.topics.iter();
        let of_it = all.filter(|it| it.extract.as_ref().is_some_and(is_of_it));
        of_it.map(|it| Self::of_extract(config, it, keyed)).collect()
    }

    /// A topic that events go to.
    pub fn of_events(config: &KafkaConfig, name: &str) -> Self {
        let kind = TopicKind::Declared(config.event_settings(name));
        let declared = config.declaration(name);
        Self::new(config, name.to_owned(), (kind, config.partitions), declared)
    }

    /// Those that are declared by name, but for what is a table's: `has_table` says which are.
    pub fn declared(config: &KafkaConfig, has_table: impl Fn(&str) -> bool) -> Vec<Self> {
        let exact = config.topics.iter().filter(|it| it.is_exact() && it.extract.is_none());
        let exact = exact.filter(|it| !has_table(&it.name));
        exact.map(|it| Self::of_events(config, &it.name)).collect()
    }

    fn new(
        config: &KafkaConfig,
        name: String,
        (kind, partitions): (TopicKind, i32),
        declared: Option<&Declaration>,
    ) -> Self {
        let said = declared.and_then(|it| it.partitions);
        let copies = declared.and_then(|it| it.replication_factor);
        Self {
            name,
            kind,
            partitions: said.unwrap_or(partitions),
            replication_factor: copies.unwrap_or(config.replication_factor),
            partitions_declared: said.is_some(),
            replication_declared: copies.is_some(),
        }
    }
}

/// What was found or done about one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicAction {
    /// It exists and is as wanted, as far as is known.
    Fine { topic: String },
    /// It was missing, and was created (would be, in a dry run).
    Created { topic: String },
    /// It exists and differs: a warning, with the command that cures it.
    Drift { topic: String, warning: String },
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
    let there = all_topics(&admin).await.map_err(failed("list the topics"))?;
    let mut actions = Vec::with_capacity(wanted.len());
    for some in wanted.chunks(TOPICS_AT_ONCE) {
        let (existing, missing): (Vec<_>, Vec<_>) =
            some.iter().partition(|it| there.contains_key(&it.name));
        let mut overtaken = HashSet::new();
        if !dry_run {
            overtaken = create(config, &admin, &missing).await?;
            if let Some(last) = missing.last() {
                known(&admin, &last.name).await;
            }
        }
        actions.extend(missing.iter().map(|it| {
            match (it.name.clone(), overtaken.contains(&it.name)) {
                (topic, true) => TopicAction::Fine { topic },
                (topic, false) => TopicAction::Created { topic },
            }
        }));
        actions.extend(compare(config, &admin, (&existing, &there)).await?);
    }
    Ok(actions)
}

/// Sees to it that the topics are there, tells what was done or differs, and notes what was made.
///
/// # Errors
/// See [`ensure_topics`].
pub async fn see_to(
    (config, made): (&KafkaConfig, &MadeTopics),
    wanted: &[WantedTopic],
) -> Result<(), TopicError> {
    for action in ensure_topics(config, wanted, false).await? {
        match action {
            TopicAction::Fine { topic } => made.note_there(&topic),
            TopicAction::Created { topic } if made.note_made(&topic) => {
                tracing::error!(topic, "topic was deleted; made anew, without what was in it");
            }
            TopicAction::Created { topic } => tracing::info!(topic, "topic created"),
            TopicAction::Drift { topic, warning } => {
                tracing::warn!(warning, "topic differs");
                made.note_there(&topic);
            }
        }
    }
    Ok(())
}

/// How topics that are there differ from what they should be.
async fn compare(
    config: &KafkaConfig,
    admin: &AdminClient<DefaultClientContext>,
    (existing, there): (&[&WantedTopic], &HashMap<String, Found>),
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
        let Some(there) = there.get(&topic.name) else { continue };
        if topic.kind == TopicKind::Progress && there.partitions != 1 {
            let (topic, found) = (topic.name.clone(), there.partitions);
            return Err(TopicError::ProgressPartitions { topic, found });
        }
        actions.push(match drift(&config.brokers, topic, (there, &found)) {
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
const CREATED_POLL: Duration = Duration::from_millis(50);

/// Waits until a broker tells of a topic that was just created, and so has made the files of those
/// that were created before. The controller answers long before that, and the first records of
/// a thousand topics that it has created at once would time out. One that takes too long is left
/// to those who wait for its records: nothing else rests on it.
async fn known(admin: &Arc<AdminClient<DefaultClientContext>>, topic: &str) {
    let give_up = Instant::now() + settings::REQUEST_TIMEOUT;
    while Instant::now() < give_up {
        // By its name: it is there, so that asking can't create it.
        let (admin, name) = (Arc::clone(admin), topic.to_owned());
        let asked = tokio::task::spawn_blocking(move || {
            let found = admin.inner().fetch_metadata(Some(&name), settings::REQUEST_TIMEOUT);
            found.is_ok_and(|it| it.topics().iter().any(|it| !it.partitions().is_empty()))
        });
        if asked.await.unwrap_or(true) {
            return;
        }
        tokio::time::sleep(CREATED_POLL).await;
    }
}

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
        let there = all_topics(&admin).await.map_err(failed)?;
        let specifier = ResourceSpecifier::Topic(topic);
        let described =
            admin.describe_configs([&specifier], &options()).await.map_err(failed)?.pop();
        let found = there.get(topic).filter(|it| 0 < it.partitions);
        match (found, described) {
            (Some(&Found { partitions, .. }), Some(Ok(described))) => {
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
            _ => tokio::time::sleep(CREATED_POLL).await,
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(settings::REQUEST_TIMEOUT))
        .operation_timeout(Some(settings::REQUEST_TIMEOUT))
}

/// A topic that there is.
struct Found {
    partitions: usize,
    replicas: usize,
}

/// All topics. Of all, as asking for one by name may create it.
async fn all_topics(
    admin: &Arc<AdminClient<DefaultClientContext>>,
) -> Result<HashMap<String, Found>, KafkaError> {
    let admin = Arc::clone(admin);
    let fetched = tokio::task::spawn_blocking(move || {
        let metadata = admin.inner().fetch_metadata(None, settings::REQUEST_TIMEOUT)?;
        let topics = metadata.topics().iter();
        let found = topics.map(|it| {
            let replicas = it.partitions().first().map_or(0, |it| it.replicas().len());
            (it.name().to_owned(), Found { partitions: it.partitions().len(), replicas })
        });
        Ok(found.collect())
    });
    fetched.await.unwrap_or(Err(KafkaError::Canceled))
}

/// Those that somebody else has created meanwhile: another stage, another daemon or `prepare`.
async fn create(
    config: &KafkaConfig,
    admin: &AdminClient<DefaultClientContext>,
    missing: &[&WantedTopic],
) -> Result<HashSet<String>, TopicError> {
    let mut overtaken = HashSet::new();
    if missing.is_empty() {
        return Ok(overtaken);
    }
    let settings: Vec<_> = missing.iter().map(|it| it.kind.settings()).collect();
    let topics: Vec<NewTopic<'_>> = missing
        .iter()
        .zip(&settings)
        .map(|(wanted, settings)| {
            let replication = TopicReplication::Fixed(wanted.replication_factor);
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
            Ok(_) => {}
            Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => drop(overtaken.insert(topic)),
            Err((topic, code)) => return Err(TopicError::NotCreated { topic, code }),
        }
    }
    Ok(overtaken)
}

/// How a topic, as it is there with its settings, differs from what it should be, and the commands
/// that cure it.
fn drift(
    brokers: &str,
    topic: &WantedTopic,
    (there, settings): (&Found, &[(&str, Option<&str>)]),
) -> Option<String> {
    let name = &topic.name;
    let (mut differences, mut cures, mut adds) = (Vec::new(), Vec::new(), Vec::new());
    for (setting, wanted) in topic.kind.settings() {
        let value = settings.iter().find(|it| it.0 == setting).and_then(|it| it.1).unwrap_or("");
        // The order of a list says nothing.
        let sorted = |text: &str| text.split(',').map(str::to_owned).collect::<BTreeSet<_>>();
        if sorted(value) != sorted(&wanted) {
            differences.push(format!("{setting} is \"{value}\", not \"{wanted}\""));
            let list = wanted.contains(',');
            adds.push(if list {
                format!("{setting}=[{wanted}]")
            } else {
                format!("{setting}={wanted}")
            });
        }
    }
    let limit = settings.iter().find(|it| it.0 == "max.message.bytes");
    let limit: Option<usize> = limit.and_then(|it| it.1?.parse().ok());
    if let Some(limit) = limit.filter(|it| *it < MAX_MESSAGE_BYTES_MIN) {
        differences.push(format!("max.message.bytes is {limit}, too small for a batch of records"));
        adds.push(format!("max.message.bytes={MAX_MESSAGE_BYTES}"));
    }
    if !adds.is_empty() {
        cures.push(format!(
            "kafka-configs.sh --bootstrap-server {brokers} --alter --entity-type topics \
             --entity-name {name} --add-config {}",
            adds.join(",")
        ));
    }
    let is = |wanted: i32, found: usize| usize::try_from(wanted) == Ok(found);
    let (wanted, found) = (topic.partitions, there.partitions);
    if topic.partitions_declared && !is(wanted, found) {
        differences.push(format!("it has {found} partitions, not {wanted}"));
        cures.push(format!(
            "declare partitions = {found}, as the order of a key's records rests on the number, or \
             delete the topic if nobody needs what is in it"
        ));
    }
    let (wanted, found) = (topic.replication_factor, there.replicas);
    if topic.replication_declared && !is(wanted, found) {
        differences.push(format!("it has {found} replicas, not {wanted}"));
        cures.push(format!(
            "kafka-reassign-partitions.sh --bootstrap-server {brokers}, with {wanted} replicas for \
             each partition of {name}"
        ));
    }
    let (differences, cures) = (differences.join(", "), cures.join("; "));
    (!differences.is_empty()).then(|| format!("topic {name}: {differences}; cure: {cures}"))
}

#[cfg(test)]
mod tests;
