//! Records that Kafka would refuse, found out before they are sent: a delivery that failed takes
//! the whole session with it, and would fail again in the next.
//!
//! *Too large* for the topic (`max.message.bytes`), or for our own queue. Whoever reads the topic
//! must learn that the row has changed all the same, or its documents would stay as they were. So
//! the record is sent with Debezium's placeholder in place of its largest values, its key, its
//! other columns and its place in order as they are: the translator reads the row from Postgres,
//! and where a key path needs a value that was left out, it sweeps. A dead letter names the key,
//! the size, the table and the position.
//!
//! *Without a key* on a compacted topic, as of a table that has lost its primary key: the whole row
//! is the key then.
//!
//! **Invariant:** each change has its records under its key, at their place.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Encoder, ProducerSession};
use crate::change::{Change, Tuple};
use crate::config::KafkaConfig;
use crate::copies::MadeTopics;
use crate::kafka::batch::Item;
use crate::kafka::delivery::{self, LogProducer, ProduceError};
use crate::kafka::envelope::{ChangeAt, EnvelopeWriter, Header, OutRecord, Records, TableShape};
use crate::kafka::settings::{self, BATCH_BYTES};
use crate::kafka::topics::{self, TopicFacts, WantedTopic};
use crate::metrics::Metrics;
use crate::outbox::record_size;
use crate::progress::TransactionSeq;

/// Key and value of a record that every topic takes: it fits into the batches of many records that
/// are sent anyway, with room for its headers, which have some 5 KB at most.
const SURE_BYTES: usize = BATCH_BYTES - 16 * 1024;

/// The longest value that stays, tried in turn until the record fits: first only what is large by
/// itself is left out, then what is many. The last is about the placeholder's own length.
const VALUE_BYTES_MAX: [usize; 3] = [64 * 1024, 1024, 40];

/// On a record that lacks its largest values: the bytes that it would have had.
const OVERSIZE_HEADER: &str = "oversize-bytes";

/// What records are written of.
#[derive(Clone, Copy)]
pub(super) enum Written<'a> {
    Change(&'a Change),
    /// A row of a copy.
    Read(&'a Tuple),
}

impl Written<'_> {
    pub(super) fn records<'a>(
        self,
        writer: &'a mut EnvelopeWriter,
        shape: &'a TableShape,
        at: ChangeAt,
    ) -> Result<Records<'a>, ProduceError> {
        Ok(match self {
            Self::Change(change) => writer.write_formatted(shape, change, at)?,
            Self::Read(row) => writer.write_read_formatted(shape, row, at)?,
        })
    }
}

/// Whether the topic has to be asked for what it takes.
pub(super) fn may_be_too_large(record: OutRecord<'_>) -> bool {
    SURE_BYTES < length(record)
}

fn length(record: OutRecord<'_>) -> usize {
    let of = |it: Option<&[u8]>| it.map_or(0, <[u8]>::len);
    of(record.key) + of(record.value) + record.header.map_or(0, |it| it.1.len())
}

/// Largest record that the producer sends, by our own settings or the operator's: it must also fit
/// into the queue, where it would wait for room for ever.
pub(in crate::kafka) fn record_bytes_max(config: &KafkaConfig) -> usize {
    let all = settings::client_config(config, &delivery::own_settings(config));
    let number = |name| all.get(name).and_then(|it: &str| it.parse::<usize>().ok());
    let queue = number("queue.buffering.max.kbytes").map(|it| it.saturating_mul(1024));
    let message = number("message.max.bytes");
    queue.into_iter().chain(message).min().unwrap_or(BATCH_BYTES)
}

/// A session's knowledge of what topics take.
pub(super) struct Refused {
    config: KafkaConfig,
    made: MadeTopics,
    metrics: Metrics,
    facts: HashMap<Arc<str>, TopicFacts>,
    buried: u64,
}

/// A record that was too large.
struct TooLarge<'a> {
    record: OutRecord<'a>,
    table: String,
    at: ChangeAt,
    size: usize,
    limit: usize,
}

impl Refused {
    pub fn new(session: &ProducerSession) -> Self {
        let ProducerSession { config, made, metrics, .. } = session;
        let (config, made, metrics) = (config.clone(), made.clone(), metrics.clone());
        Self { config, made, metrics, facts: HashMap::new(), buried: 0 }
    }

    /// What a topic takes that is there, asked for once in a session.
    async fn facts(&mut self, topic: &Arc<str>) -> Result<TopicFacts, ProduceError> {
        if let Some(facts) = self.facts.get(topic) {
            return Ok(*facts);
        }
        let failed = |error| ProduceError::Topic(Arc::new(error));
        let mut facts = topics::facts(&self.config, topic).await.map_err(failed)?;
        facts.max_message_bytes = facts.max_message_bytes.min(record_bytes_max(&self.config));
        self.facts.insert(Arc::clone(topic), facts);
        Ok(facts)
    }

    /// The dead letter: the row itself is still in its table, so key and place are enough.
    async fn bury(
        &mut self,
        (producer, seq): (&LogProducer, TransactionSeq),
        it: TooLarge<'_>,
        headers: &[Header],
    ) -> Result<(), ProduceError> {
        let TooLarge { record, table, at, size, limit } = it;
        let reason = format!(
            "its record has {size} bytes, and topic {} takes {limit}; raise max.message.bytes of the \
             topic (beyond 8 MB also message.max.bytes and queue.buffering.max.kbytes in [kafka] \
             properties), and change the row or copy the table",
            record.topic
        );
        let key = String::from_utf8_lossy(record.key.unwrap_or_default());
        self.buried += 1;
        // Each, at first; then ever fewer of what may be a million.
        if self.buried <= 10 || self.buried.is_power_of_two() {
            let buried = self.buried;
            tracing::error!(table, %key, reason, buried, "a record goes without its largest values");
        }
        let name: Arc<str> = self.config.dead_letter_topic().into();
        if !self.facts.contains_key(&name) {
            let wanted = WantedTopic::of_the_daemon(&self.config);
            let seen = topics::see_to((&self.config, &self.made), &wanted).await;
            seen.map_err(|error| ProduceError::Topic(Arc::new(error)))?;
        }
        let limit = self.facts(&name).await?.max_message_bytes;
        let mut headers = headers.to_vec();
        let mut say = |name: &str, value: String| headers.push((name.to_owned(), value));
        say("kind", "change".to_owned());
        say("topic", record.topic.to_owned());
        say("table", table);
        say("position", at.lsn.to_string());
        say("size", size.to_string());
        say("reason", reason);
        let key = record.key.filter(|it| record_size(it.len(), &headers) <= limit);
        let letter = OutRecord { topic: &name, key, value: None, header: None };
        producer.send(seq, letter, &headers).await?;
        self.metrics.dead_letters_total.with_label_values(&["change"]).inc();
        Ok(())
    }
}

impl Encoder {
    /// Sends the records of which one may be too large.
    pub(super) async fn send_large(
        &mut self,
        shape: &Arc<TableShape>,
        written: Written<'_>,
        at: ChangeAt,
    ) -> Result<(), ProduceError> {
        let seq = self.open.expect("records are of a transaction");
        let limit = self.refused.facts(&shape.topic).await?.max_message_bytes;
        let size = |it: OutRecord<'_>| record_size(length(it), &self.headers);
        let whole: Vec<usize> = written.records(&mut self.writer, shape, at)?.map(size).collect();
        let limits = [usize::MAX].into_iter().chain(VALUE_BYTES_MAX);
        for value_bytes_max in limits {
            let mut shape = (**shape).clone();
            shape.value_bytes_max = value_bytes_max;
            let records = written.records(&mut self.writer, &shape, at)?;
            let headers = |whole: usize| {
                let own = (limit < whole).then(|| (OVERSIZE_HEADER.to_owned(), whole.to_string()));
                self.headers.iter().cloned().chain(own).collect::<Vec<_>>()
            };
            let sized = records.clone().zip(&whole);
            let fits = |it: OutRecord<'_>, whole| record_size(length(it), &headers(whole)) <= limit;
            if !sized.clone().all(|(it, whole)| fits(it, *whole)) {
                continue;
            }
            let producer = &self.session.producer;
            for (record, &size) in sized {
                if let (Written::Change(_), Some(context)) = (written, &self.context) {
                    self.session.copies.note(record.topic, record.key, context.xid_wide);
                }
                producer.send(seq, record, &headers(size)).await?;
                if limit < size {
                    let table = shape.relation.qualified_name();
                    let letter = TooLarge { record, table, at, size, limit };
                    self.refused.bury((producer, seq), letter, &self.headers).await?;
                }
            }
            return Ok(());
        }
        let mut records = written.records(&mut self.writer, shape, at)?;
        let key = records.next().and_then(|it| it.key).unwrap_or_default();
        let key = String::from_utf8_lossy(key).into_owned();
        let size = whole.into_iter().max().unwrap_or(0);
        Err(ProduceError::TooLarge { topic: shape.topic.to_string(), key, size })
    }

    /// Sees to the topics of all tables that a batch describes at once: one transaction may be the
    /// first change of thousands, and one by one would take minutes.
    pub(super) async fn see_to_topics(&mut self, items: &[Item]) -> Result<(), ProduceError> {
        let config = &self.session.config;
        let shapes = items.iter().filter_map(|it| match it {
            Item::Shape(shape) => Some(shape),
            _ => None,
        });
        let unknown = shapes.filter(|it| {
            let is_outbox = self.session.outbox.has_topic(config, &it.topic);
            !is_outbox && !self.topics.contains(&it.topic)
        });
        let unknown: BTreeMap<&Arc<str>, bool> =
            unknown.map(|it| (&it.topic, !it.key_columns.is_empty())).collect();
        if unknown.len() < 2 {
            return Ok(());
        }
        let wanted: Vec<WantedTopic> = unknown
            .iter()
            .map(|(topic, keyed)| WantedTopic::of_table(config, topic, *keyed))
            .collect();
        let seen = topics::see_to((config, &self.session.made), &wanted).await;
        seen.map_err(|error| ProduceError::Topic(Arc::new(error)))?;
        self.topics.extend(unknown.into_keys().cloned());
        Ok(())
    }

    /// Sees to the table's topic, and that the shape's records have the keys that it asks for.
    pub(super) async fn with_topic(
        &mut self,
        shape: Arc<TableShape>,
    ) -> Result<Arc<TableShape>, ProduceError> {
        self.topic(&shape).await?;
        if !shape.key_columns.is_empty() || !self.refused.facts(&shape.topic).await?.is_compacted {
            return Ok(shape);
        }
        let table = shape.relation.qualified_name();
        tracing::error!(
            table,
            topic = &*shape.topic,
            "the table has no key any more, which its compacted topic asks for: the whole row is the \
             key of its records until it has one again; add a primary key, or delete the topic and \
             copy the table"
        );
        let mut keyed = (*shape).clone();
        keyed.key_columns = (0..shape.relation.columns.len()).collect();
        Ok(Arc::new(keyed))
    }
}
