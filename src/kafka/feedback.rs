//! What is said on the backplane, the topic by which translators, capture and all gateways tell
//! each other what became of a command. JSON objects, `kind` first.
//!
//! It is a conversation of now, kept for an hour, and no source of truth: a record that is lost
//! delays a push or ends a wait late, and never a document. So a reader ignores kinds that it does
//! not know, which lets versions of onelog run side by side.
//!
//! Ids are strings, as numbers of 64 bits don't survive JavaScript; times are milliseconds since
//! the Unix epoch.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::lsn::Lsn;

/// Correlation ids in one record: a key that more changes wait for gets several records.
pub const CORRELATION_IDS_MAX: usize = 16;

/// Transaction ids in one record, as above.
pub const TXIDS_MAX: usize = 64;

/// Largest body of a robot's answer that is passed on. A window holds very many of them, and an
/// answer is a word for a page, not its content.
pub const BODY_BYTES_MAX: usize = 65_536;

/// One record.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Feedback {
    Claimed(Claimed),
    Accepted(Accepted),
    Document(DocumentNews),
    Response(Response),
    Hop(Hop),
}

/// Somebody is about to produce a command: the first claim of an identity in the log wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// What makes two requests one command: a hash, in hex. None: only the latest command of the
    /// target can be the same.
    #[serde(default)]
    pub identity: Option<String>,
    /// The document that it is for: a hash, in hex.
    pub target: String,
    /// Hash of what is in the body, in hex: the same identity with another body is a mistake.
    pub request: String,
    /// The command's own id.
    pub command: String,
    pub document_id: String,
    #[serde(default)]
    pub session_id: Option<String>,
    pub correlation_id: String,
    pub ts_ms: i64,
}

/// A command is in Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    pub command: String,
    /// Not shown to clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    pub topic: String,
    #[serde(rename = "type", default)]
    pub message_type: Option<String>,
    pub document_id: String,
    #[serde(default)]
    pub session_id: Option<String>,
    pub correlation_id: String,
    pub ts_ms: i64,
}

/// A translator has written a document, or found a newer one there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DocumentNews {
    pub collection: String,
    pub id: String,
    pub deleted: bool,
    /// At least this one is there.
    pub version: u64,
    pub correlation_ids: Vec<String>,
    /// Of the transactions that led to it: 64 bits each.
    #[serde(with = "numbers_as_text")]
    pub txids: Vec<u64>,
    /// Every transaction below it is in the document.
    #[serde(with = "number_as_text")]
    pub xmin: u64,
    pub timeline: u32,
    /// The newest of those transactions' commits; `0/0` without one.
    #[serde(with = "lsn_as_text")]
    pub lsn: Lsn,
    pub commit_ts_ms: Option<i64>,
    /// When Kafka had the newest change.
    pub log_ts_ms: Option<i64>,
    pub read_ts_ms: i64,
    pub ts_ms: i64,
}

/// How a command ended, as its robot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Success,
    Failure,
}

/// A robot's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Response {
    /// The message's own id, by which a repeat is known.
    #[serde(default)]
    pub event: Option<String>,
    pub topic: String,
    #[serde(rename = "type", default)]
    pub message_type: Option<String>,
    #[serde(default)]
    pub status: Option<Status>,
    #[serde(default)]
    pub correlation_id: Option<String>,
    #[serde(default)]
    pub session_id: Option<String>,
    #[serde(default)]
    pub document_id: Option<String>,
    /// As it was; None: it was no JSON, or too large.
    #[serde(default)]
    pub body: Option<Box<RawValue>>,
    pub ts_ms: i64,
}

/// Who says how far behind it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Capture,
    Translate,
}

impl Hop {
    /// Without anything that is known of its lag.
    pub fn new((role, instance): (Role, &str), state: State, ts_ms: i64) -> Self {
        Self {
            role,
            instance: instance.to_owned(),
            state,
            lag_seconds: None,
            lag_records: None,
            lag_bytes: None,
            lsn: None,
            ts_ms,
        }
    }
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Translate => "translate",
        }
    }
}

/// Whether a role gets on with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    /// Something does not answer; `/readyz` of that process says what.
    Waiting,
    /// It has said goodbye.
    Stopped,
}

/// How far behind a role is, said once a second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hop {
    pub role: Role,
    pub instance: String,
    pub state: State,
    /// None: not known.
    pub lag_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_records: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<i64>,
    /// Capture: all that was committed before it is in Kafka.
    #[serde(default, with = "optional_lsn", skip_serializing_if = "Option::is_none")]
    pub lsn: Option<Lsn>,
    pub ts_ms: i64,
}

/// The record is none of the backplane: somebody else writes to our topic.
#[derive(Debug, thiserror::Error)]
#[error("a record of the feedback topic is not understood")]
pub struct FeedbackError(#[from] serde_json::Error);

impl Feedback {
    /// The record's value.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("text, numbers and valid JSON make JSON")
    }

    /// None: of a kind that this version does not know.
    ///
    /// # Errors
    /// It is of a kind that we know, and not of its form; or no JSON object at all.
    pub fn from_json(value: &[u8]) -> Result<Option<Self>, FeedbackError> {
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(borrow)]
            kind: Cow<'a, str>,
        }
        let Kind { kind } = serde_json::from_slice(value)?;
        Ok(Some(match &*kind {
            "claimed" => Self::Claimed(serde_json::from_slice(value)?),
            "accepted" => Self::Accepted(serde_json::from_slice(value)?),
            "document" => Self::Document(serde_json::from_slice(value)?),
            "response" => Self::Response(serde_json::from_slice(value)?),
            "hop" => Self::Hop(serde_json::from_slice(value)?),
            _ => return Ok(None),
        }))
    }

    /// As a client may see it. None: it is not for clients.
    pub fn shown(&self) -> Option<(&'static str, String)> {
        // A body may have line breaks between its parts, never within a text; where it is shown, a
        // line may be the end of something.
        let json = |it: &Self| it.to_json().replace(['\r', '\n'], " ");
        match self {
            Self::Claimed(_) | Self::Hop(_) => None,
            Self::Accepted(it) => {
                let shown = Self::Accepted(Accepted { identity: None, ..it.clone() });
                Some(("accepted", json(&shown)))
            }
            Self::Document(_) => Some(("document", json(self))),
            Self::Response(_) => Some(("response", json(self))),
        }
    }
}

mod numbers_as_text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(it: &[u64], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(it.iter().map(u64::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u64>, D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        texts.iter().map(|it| it.parse().map_err(D::Error::custom)).collect()
    }
}

mod number_as_text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(it: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(it)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

mod lsn_as_text {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::lsn::Lsn;

    pub(super) fn serialize<S: Serializer>(it: &Lsn, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(it)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Lsn, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

mod optional_lsn {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use crate::lsn::Lsn;

    pub(super) fn serialize<S: Serializer>(it: &Option<Lsn>, to: S) -> Result<S::Ok, S::Error> {
        it.map(|it| it.to_string()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Lsn>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|it| it.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests;
