//! Events of the outbox -> their topics; what is none -> the dead letters.
//!
//! A part of the producing stage: events are records of their transaction like its changes, sent
//! at their place between them and acknowledged before the slot moves on. What can be known to be
//! refused by Kafka (a name, a size, a partition) is found out before it is sent, since a delivery
//! that failed takes the whole session with it.
//!
//! **Invariant:** every event is handed to Kafka, under its topic or as a dead letter with the
//! reason, or the session fails.

use std::collections::HashMap;
use std::sync::Arc;

use crate::change::{Change, LogicalMessage};
use crate::config::{KafkaConfig, OutboxConfig};
use crate::copies::MadeTopics;
use crate::kafka::cloud_events::CloudEvent;
use crate::kafka::delivery::{LogProducer, Place, ProduceError};
use crate::kafka::envelope::{ChangeAt, EnvelopeWriter, Header, OutRecord, TableShape};
use crate::kafka::producer::{ProducerSession, record_bytes_max};
use crate::kafka::topics::{self, TopicFacts, WantedTopic};
use crate::metrics::Metrics;
use crate::outbox::row::OutboxTable;
use crate::outbox::{
    EVENT_PREFIX, Event, ID_HEADER, Letter, Refusal, TYPE_HEADER, message, record_size,
};
use crate::progress::TransactionSeq;
use crate::relation::RelationId;

/// Most topics that a session sends events to. One for each kind of aggregate is dozens; thousands
/// come from an id in the aggregate's type, and would take the brokers down.
const TOPICS_MAX: usize = 1000;

/// The transaction that an event belongs to.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    pub seq: TransactionSeq,
    pub headers: &'a [Header],
    /// When it committed, in milliseconds since 1970.
    pub commit_ms: i64,
}

pub(super) struct Outbox {
    config: OutboxConfig,
    kafka: KafkaConfig,
    made: MadeTopics,
    producer: Arc<LogProducer>,
    metrics: Metrics,
    /// Outbox tables that the stream has described, or why none of their rows is an event.
    tables: HashMap<RelationId, Result<OutboxTable, Refusal>>,
    topics: HashMap<String, TopicFacts>,
    refused: u64,
    updated: u64,
}

/// What a dead letter is about.
struct Buried<'a> {
    /// The table, or the prefix of a message.
    from: &'a str,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
}

impl Outbox {
    pub fn new(session: &ProducerSession) -> Self {
        Self {
            config: session.outbox.clone(),
            kafka: session.config.clone(),
            made: session.made.clone(),
            producer: Arc::clone(&session.producer),
            metrics: session.metrics.clone(),
            tables: HashMap::new(),
            topics: HashMap::new(),
            refused: 0,
            updated: 0,
        }
    }

    /// Takes a table's shape; false: it is none of ours.
    pub fn describe(&mut self, shape: &TableShape) -> bool {
        if !self.config.has_topic(&self.kafka, &shape.topic) {
            return false;
        }
        let table = OutboxTable::new(&shape.relation, &self.config);
        if let Err(refusal) = &table {
            let table = shape.relation.qualified_name();
            tracing::error!(table, reason = %refusal, "every row goes to the dead letters");
        }
        self.tables.insert(shape.relation.id, table);
        true
    }

    pub fn has(&self, id: RelationId) -> bool {
        self.tables.contains_key(&id)
    }

    /// A change of an outbox table. Only an INSERT is an event.
    pub async fn row(
        &mut self,
        writer: &mut EnvelopeWriter,
        (shape, change): (&TableShape, &Change),
        at: ChangeAt,
        of: Of<'_>,
    ) -> Result<(), ProduceError> {
        let new = match change {
            Change::Insert { new, .. } => new,
            Change::Update { .. } => {
                self.note_update(shape);
                return Ok(());
            }
            // Rows are deleted once they are of no use, by the application or by us.
            Change::Delete { .. } | Change::Truncate { .. } => return Ok(()),
        };
        let event = match self.tables.get(&shape.relation.id) {
            Some(Ok(table)) => table.event(new),
            Some(Err(refusal)) => Err(refusal.clone()),
            None => return Ok(()),
        };
        if let Err(refusal) = self.publish(event, at, of).await? {
            let from = shape.relation.qualified_name();
            let record = writer.write(shape, change, at)?.next();
            let key = record.and_then(|it| it.key);
            let value = record.and_then(|it| it.value);
            self.bury(&refusal, Buried { from: &from, key, value }, of).await?;
        } else {
            self.metrics.outbox_events_total.with_label_values(&["table"]).inc();
        }
        Ok(())
    }

    /// A message `onelog.outbox`.
    pub async fn message(
        &mut self,
        it: &LogicalMessage,
        at: ChangeAt,
        of: Of<'_>,
    ) -> Result<(), ProduceError> {
        let event = if it.transactional {
            message::parse(&it.content, it.lsn, &self.config)
        } else {
            Err(Refusal::NotTransactional)
        };
        if let Err(refusal) = self.publish(event, at, of).await? {
            let value = Some(&it.content[..]);
            self.bury(&refusal, Buried { from: EVENT_PREFIX, key: None, value }, of).await?;
        } else {
            self.metrics.outbox_events_total.with_label_values(&["message"]).inc();
        }
        Ok(())
    }

    /// Sends an event, or says why it can't be.
    async fn publish(
        &mut self,
        event: Result<Event<'_>, Refusal>,
        at: ChangeAt,
        of: Of<'_>,
    ) -> Result<Result<(), Refusal>, ProduceError> {
        let now_ms = at.now_us / 1000;
        let mut letter = match event.and_then(|it| it.letter(&self.config, of.headers, now_ms)) {
            Ok(letter) => letter,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let topic = &letter.topic;
        if self.kafka.is_own_topic(topic) {
            return Ok(Err(Refusal::OwnTopic(letter.topic)));
        }
        if TOPICS_MAX <= self.topics.len() && !self.topics.contains_key(topic) {
            return Ok(Err(Refusal::TooManyTopics { topic: letter.topic, limit: TOPICS_MAX }));
        }
        let facts = self.facts(topic).await?;
        if let Some(refusal) = unfit(&letter, facts) {
            return Ok(Err(refusal));
        }
        if self.kafka.declaration(topic).is_some_and(|it| it.cloudevents) {
            let event_ms = letter.timestamp_ms.unwrap_or(of.commit_ms);
            add_cloud_event(&self.kafka, &mut letter, event_ms);
        }
        let topic = &letter.topic;
        let record = OutRecord {
            topic,
            key: letter.key.as_deref().map(str::as_bytes),
            value: letter.value.as_deref(),
            header: None,
        };
        let commit_ms = of.commit_ms.clamp(1, now_ms.max(1));
        let place = Place {
            timestamp_ms: Some(letter.timestamp_ms.unwrap_or(commit_ms)),
            partition: letter.partition,
        };
        match self.producer.send_at(of.seq, record, &letter.headers, place).await {
            // An operator has set our own limit lower than the topic's.
            Err(ProduceError::TooLarge { topic, size, .. }) => {
                Ok(Err(Refusal::TooLarge { topic, size, limit: facts.max_message_bytes }))
            }
            sent => sent.map(Ok),
        }
    }

    async fn bury(
        &mut self,
        refusal: &Refusal,
        it: Buried<'_>,
        of: Of<'_>,
    ) -> Result<(), ProduceError> {
        self.refused += 1;
        let reason = refusal.to_string();
        // Each, at first; then ever fewer of what may be a million.
        if self.refused <= 10 || self.refused.is_power_of_two() {
            let (from, refused) = (it.from, self.refused);
            tracing::error!(from, reason, refused, "an event went to the dead letters");
        }
        let topic = self.kafka.dead_letter_topic();
        let limit = self.facts(&topic).await?.max_message_bytes;
        let mut headers = of.headers.to_vec();
        let mut say = |name: &str, value: String| headers.push((name.to_owned(), value));
        say("kind", "outbox".to_owned());
        say("from", it.from.to_owned());
        say("reason", reason);
        let (mut key, mut value) = (it.key, it.value);
        let length = |it: Option<&[u8]>| it.map_or(0, <[u8]>::len);
        let bytes = length(key) + length(value);
        if limit < record_size(bytes, &headers) {
            // Who and where is in the headers; a row is still in its table.
            headers.push(("size".to_owned(), bytes.to_string()));
            value = None;
            key = key.filter(|it| record_size(it.len(), &headers) <= limit);
        }
        let record = OutRecord { topic: &topic, key, value, header: None };
        self.producer.send(of.seq, record, &headers).await?;
        self.metrics.dead_letters_total.with_label_values(&["outbox"]).inc();
        Ok(())
    }

    /// Sees to a topic, once in a session.
    async fn facts(&mut self, topic: &str) -> Result<TopicFacts, ProduceError> {
        if let Some(facts) = self.topics.get(topic) {
            return Ok(*facts);
        }
        let own = WantedTopic::of_the_daemon(&self.kafka).into_iter().find(|it| it.name == topic);
        let wanted = own.unwrap_or_else(|| WantedTopic::of_events(&self.kafka, topic));
        let failed = |error| ProduceError::Topic(Arc::new(error));
        topics::see_to((&self.kafka, &self.made), &[wanted]).await.map_err(failed)?;
        let mut facts = topics::facts(&self.kafka, topic).await.map_err(failed)?;
        facts.max_message_bytes = facts.max_message_bytes.min(record_bytes_max(&self.kafka));
        self.topics.insert(topic.to_owned(), facts);
        Ok(facts)
    }

    fn note_update(&mut self, shape: &TableShape) {
        self.updated += 1;
        self.metrics.outbox_updates_total.inc();
        if self.updated.is_power_of_two() {
            let (table, updates) = (shape.relation.qualified_name(), self.updated);
            tracing::warn!(
                table,
                updates,
                "rows of an outbox are only ever inserted and deleted: an UPDATE publishes nothing"
            );
        }
    }
}

/// The event's own id and type; its aggregate is the subject.
fn add_cloud_event(kafka: &KafkaConfig, letter: &mut Letter<'_>, time_ms: i64) {
    let of = |name: &str| letter.headers.iter().find(|it| it.0 == name).map(|it| it.1.clone());
    let (id, kind) = (of(ID_HEADER).unwrap_or_default(), of(TYPE_HEADER));
    let is_json = |it: &[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(it).is_ok();
    let content_type = letter.value.as_deref().map(|value| match is_json(value) {
        true => "application/json",
        false => "application/octet-stream",
    });
    let event = CloudEvent {
        id: &id,
        source: &format!("/onelog/{}/outbox", kafka.topic_prefix),
        kind: kind.as_deref().unwrap_or("onelog.outbox.event"),
        subject: letter.key.as_deref(),
        time_ms,
        content_type,
    };
    event.add_to(&mut letter.headers);
}

/// Why Kafka would not take the record.
fn unfit(letter: &Letter<'_>, facts: TopicFacts) -> Option<Refusal> {
    let topic = || letter.topic.clone();
    if let Some(wanted) = letter.partition {
        let found = facts.partitions;
        let there = usize::try_from(wanted).is_ok_and(|it| it < found);
        if !there {
            return Some(Refusal::Partition { topic: topic(), wanted, found });
        }
    }
    if facts.is_compacted && letter.key.is_none() {
        return Some(Refusal::Compacted { topic: topic() });
    }
    let (size, limit) = (letter.size(), facts.max_message_bytes);
    (limit < size).then(|| Refusal::TooLarge { topic: topic(), size, limit })
}
