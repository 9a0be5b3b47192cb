//! The outbox: events that an application writes in the transaction of its changes.
//!
//! Two ways lead to the same [`Event`]: a row inserted into an outbox table ([`row`]), and a
//! message `onelog.outbox` without any table ([`message`]). Names and defaults are those of
//! Debezium's outbox event router, whose users need not change their tables. [`context`] is what a
//! transaction says about itself for all its records.
//!
//! Pure: whether an event can be published is decided here ([`Refusal`]), and nothing is sent.
//!
//! **Invariant:** an event is published as it was written, or refused with a reason; it is never
//! changed so that it fits.

pub mod context;
pub mod message;
pub mod row;
pub mod template;
mod timestamp;

use std::borrow::Cow;

use serde_json::value::RawValue;

use crate::config::OutboxConfig;
use crate::json::Object;
use crate::kafka::envelope::Header;

/// Whose messages these are, by their prefix.
pub const EVENT_PREFIX: &str = "onelog.outbox";
pub const CONTEXT_PREFIX: &str = "onelog.context";

/// Names the event; the same when it is published again.
pub const ID_HEADER: &str = "id";
/// The event's type.
pub const TYPE_HEADER: &str = "type";

/// Most headers that an event, or a context, may bring: a broker has no limit of its own, and each
/// is copied with every record.
const HEADERS_MAX: usize = 64;

/// Kafka's limit for a topic's name.
const TOPIC_MAX: usize = 249;

/// What an application wants to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    pub id: Cow<'a, str>,
    pub aggregate_type: Option<Cow<'a, str>>,
    /// The record's key: events of one aggregate stay in order.
    pub aggregate_id: Option<Cow<'a, str>>,
    /// The column or field `type`.
    pub kind: Option<Cow<'a, str>>,
    /// None: SQL NULL, or no payload at all.
    pub payload: Option<Cow<'a, [u8]>>,
    pub headers: Vec<Header>,
    pub timestamp_ms: Option<i64>,
    pub partition: Option<i32>,
}

/// Why an event can't be published. The reason goes with it to the dead letters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the table has no column {column}; name the right one as [outbox] {key}")]
    MissingColumn { column: String, key: &'static str },
    #[error("{field} is missing")]
    Missing { field: &'static str },
    #[error("{field} is missing, so that its events have no key and no order; {cure}")]
    NoKey { field: &'static str, cure: &'static str },
    #[error("{field} is not {expected}")]
    Malformed { field: String, expected: &'static str },
    #[error("the message is not a JSON object with payload and aggregatetype: {0}")]
    NotAnEvent(String),
    #[error("{0} is not a field of an event, and not one of [outbox] header_columns")]
    UnknownField(String),
    #[error("it brings more than {HEADERS_MAX} headers")]
    TooManyHeaders,
    #[error(
        "\"{0}\" is no name for a topic: 1 to 249 of a-z, A-Z, 0-9, \".\", \"_\" and \"-\"; mend \
         what is written as aggregatetype, or [outbox] topic"
    )]
    TopicName(String),
    #[error("topic {0} is onelog's own, and no place for events; mend [outbox] topic")]
    OwnTopic(String),
    #[error(
        "its topic {topic} would be one more than the {limit} that a daemon sends events to; \
         aggregatetype is a kind of thing, such as \"order\", not one thing"
    )]
    TooManyTopics { topic: String, limit: usize },
    #[error("topic {topic} has {found} partitions, and none with number {wanted}")]
    Partition { topic: String, wanted: i32, found: usize },
    #[error(
        "aggregateid is missing, and topic {topic} is compacted, which takes no record without a \
         key; declare another kind or cleanup_policy in [[topics]]"
    )]
    Compacted { topic: String },
    #[error(
        "it is too large for topic {topic}: {size} bytes, of at most {limit}; raise \
         max.message.bytes of the topic, or publish a reference instead"
    )]
    TooLarge { topic: String, size: usize, limit: usize },
    #[error(
        "the message is not transactional, so that it says nothing about what was committed; pass \
         true: pg_logical_emit_message(true, …)"
    )]
    NotTransactional,
}

/// An event as a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter<'a> {
    pub topic: String,
    pub key: Option<Cow<'a, str>>,
    /// None: a tombstone.
    pub value: Option<Cow<'a, [u8]>>,
    pub headers: Vec<Header>,
    pub timestamp_ms: Option<i64>,
    pub partition: Option<i32>,
}

impl Letter<'_> {
    /// What the record takes in a batch of its own, rounded up: Kafka counts that against
    /// `max.message.bytes`, before compression here.
    pub fn size(&self) -> usize {
        let key = self.key.as_ref().map_or(0, |it| it.len());
        record_size(key + self.value.as_ref().map_or(0, |it| it.len()), &self.headers)
    }
}

/// The size of a record with so many bytes in key and value, alone in its batch.
pub fn record_size(bytes: usize, headers: &[Header]) -> usize {
    /// A batch's head (61 bytes), and a record's own lengths and times as variable-length numbers.
    const AROUND: usize = 61 + 40;
    /// The lengths of a header's name and value.
    const PER_HEADER: usize = 10;
    let headers = headers.iter().map(|(name, value)| name.len() + value.len() + PER_HEADER);
    AROUND + bytes + headers.sum::<usize>()
}

impl<'a> Event<'a> {
    /// The event as the record that the config wants, with `transaction`'s headers before its own,
    /// which win. `now_ms` bounds its time, since brokers refuse what comes from the future.
    ///
    /// # Errors
    /// Why it can't be one.
    pub fn letter(
        self,
        config: &OutboxConfig,
        transaction: &[Header],
        now_ms: i64,
    ) -> Result<Letter<'a>, Refusal> {
        let topic = config.topic.topic(self.aggregate_type.as_deref(), self.kind.as_deref())?;
        let valid = |it: u8| it.is_ascii_alphanumeric() || b"._-".contains(&it);
        let dots = topic == "." || topic == "..";
        if dots || !(1..=TOPIC_MAX).contains(&topic.len()) || !topic.bytes().all(valid) {
            return Err(Refusal::TopicName(topic));
        }
        let value = match self.payload {
            Some(payload) => Some(payload),
            None if config.tombstones => None,
            None => Some(Cow::Borrowed(&b"null"[..])),
        };
        if self.aggregate_id.is_none() {
            let refused = |cure| Err(Refusal::NoKey { field: "aggregateid", cure });
            if value.is_none() {
                return refused("a tombstone without a key means nothing");
            }
            if !config.allow_null_key {
                return refused("if that is meant, set [outbox] allow_null_key = true");
            }
        }
        let mut headers = transaction.to_vec();
        for (name, value) in self.headers {
            set_header(&mut headers, &name, value);
        }
        headers.push((ID_HEADER.to_owned(), self.id.into_owned()));
        if let Some(kind) = self.kind {
            headers.push((TYPE_HEADER.to_owned(), kind.into_owned()));
        }
        let timestamp_ms = self.timestamp_ms.map(|it| it.clamp(1, now_ms.max(1)));
        let Self { aggregate_id: key, partition, .. } = self;
        Ok(Letter { topic, key, value, headers, timestamp_ms, partition })
    }
}

/// Replaces the header of this name, or adds it.
fn set_header(headers: &mut Vec<Header>, name: &str, value: String) {
    match headers.iter_mut().find(|it| it.0 == name) {
        Some(header) => header.1 = value,
        None => headers.push((name.to_owned(), value)),
    }
}

/// Names that say where a record comes from or which event it is: nobody else may write them.
fn is_reserved(name: &str) -> bool {
    name == ID_HEADER || name == TYPE_HEADER || name.starts_with("source-")
}

/// Adds the fields of a JSON object as headers: strings as their text, null not at all, whatever
/// else as JSON.
///
/// # Errors
/// If it is no object, or a name is empty or reserved, or there are too many.
fn add_headers(json: &str, field: &'static str, into: &mut Vec<Header>) -> Result<(), Refusal> {
    let malformed = |expected| Refusal::Malformed { field: field.to_owned(), expected };
    let object: Object<'_> =
        serde_json::from_str(json).map_err(|_| malformed("a JSON object of names and values"))?;
    for (name, value) in object.0 {
        if name.is_empty() || is_reserved(&name) {
            let expected = "free of the names \"\", \"id\", \"type\" and \"source-…\"";
            return Err(malformed(expected));
        }
        if let Some(text) = scalar_text(value)? {
            set_header(into, &name, text.into_owned());
        }
    }
    if HEADERS_MAX < into.len() { Err(Refusal::TooManyHeaders) } else { Ok(()) }
}

/// A JSON value as text: None for null, a string's own text, the JSON of whatever else.
fn scalar_text<'a>(value: &'a RawValue) -> Result<Option<Cow<'a, str>>, Refusal> {
    let raw = value.get();
    Ok(match raw.as_bytes().first() {
        Some(b'n') => None,
        Some(b'"') => match raw.strip_prefix('"').and_then(|it| it.strip_suffix('"')) {
            Some(plain) if !plain.contains('\\') => Some(Cow::Borrowed(plain)),
            _ => Some(Cow::Owned(serde_json::from_str(raw).map_err(|_| Refusal::Malformed {
                field: "a string".to_owned(),
                expected: "Unicode",
            })?)),
        },
        _ => Some(Cow::Borrowed(raw)),
    })
}

#[cfg(test)]
mod tests;
