//! Bulk requests: writes -> NDJSON, and the answer's items -> one outcome for each write.
//!
//! Every write carries its version under `external_gte` (rule 3): a 409 then means that a newer
//! read is there already. Writes go through a hidden alias of the index, as Elasticsearch would
//! make a missing index by itself, with guessed field types.
//!
//! **Invariant:** there are exactly as many outcomes as writes, in their order; an answer that can't
//! be matched item by item is an error as a whole.

use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;

use crate::document::{DocumentKey, DocumentVersion};
use crate::elasticsearch::{block, conflict};

/// Most writes in one request; more gain nothing, as documents of a few KB fill the bytes first.
const REQUEST_WRITES_MAX: usize = 1_000;
/// Most bytes in one request, unless a single document is larger. Elasticsearch's guide names
/// 5 to 15 MB, and several requests are in flight at once in our small memory.
const REQUEST_BYTES_MAX: usize = 5 * 1024 * 1024;
/// Elasticsearch refuses a request as a whole, good writes and all, for one longer `_id`.
const ID_BYTES_MAX: usize = 512;

/// One document to be written or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// For metrics.
    pub collection: Arc<str>,
    /// The index itself, as made by `create`, not its alias.
    pub index: Arc<str>,
    pub key: DocumentKey,
    pub version: DocumentVersion,
    /// JSON text; None: delete.
    pub body: Option<String>,
}

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    Created,
    Updated,
    Deleted,
    /// There was nothing to delete; the version is remembered all the same.
    NotFound,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Done(Done),
    /// A newer read is there already: success.
    Stale,
    /// It may succeed later: the server was too busy or a shard was away.
    Retry {
        status: u16,
        reason: String,
    },
    /// The index is gone.
    IndexMissing,
    /// It will never succeed: a field's type conflicts, or the like.
    Refused {
        status: u16,
        reason: String,
    },
}

impl Outcome {
    /// The metrics' label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Done(Done::Created) => "created",
            Self::Done(Done::Updated) => "updated",
            Self::Done(Done::Deleted) => "deleted",
            Self::Done(Done::NotFound) => "not_found",
            Self::Stale => "stale",
            Self::Retry { .. } => "retry",
            Self::IndexMissing => "index_missing",
            Self::Refused { .. } => "refused",
        }
    }
}

/// The answer is not one to our request.
#[derive(Debug, thiserror::Error)]
pub enum BulkAnswerError {
    #[error("the answer to a bulk request is not JSON of the documented form")]
    Malformed(#[from] serde_json::Error),
    #[error("the answer to a bulk request of {writes} writes has {items} items")]
    Count { writes: usize, items: usize },
    #[error("item {at} of the answer to a bulk request is not about write {at}")]
    Mismatch { at: usize },
}

/// The alias that an index is written through.
///
/// `require_alias` keeps an index request from making a missing index, but not a delete with an
/// external version (seen on 9.5). Capitals do: an alias may have them and an index may not.
pub fn write_alias(index: &str) -> String {
    format!("{index}-WRITE")
}

/// Why a write must not be sent at all, as its outcome.
pub fn refused_unsent(write: &Write) -> Option<Outcome> {
    let reason = match write.key.0.len() {
        0 => "the key is empty, and a document's _id may not be",
        1..=ID_BYTES_MAX => return None,
        _ => "the key is longer than the 512 bytes that a document's _id may have",
    };
    Some(Outcome::Refused { status: 400, reason: reason.to_owned() })
}

/// Appends a write's lines to a request's body.
fn encode_write(write: &Write, into: &mut Vec<u8>) {
    let action = if write.body.is_some() { "index" } else { "delete" };
    let id = serde_json::Value::from(write.key.0.as_str());
    let index = serde_json::Value::from(write_alias(&write.index));
    let version = write.version.0;
    let line = format!(
        "{{\"{action}\":{{\"_index\":{index},\"_id\":{id},\"version\":{version},\
         \"version_type\":\"external_gte\"}}}}\n"
    );
    into.extend_from_slice(line.as_bytes());
    if let Some(body) = &write.body {
        // json_agg puts line breaks between elements. A raw one can't stand inside a JSON string,
        // so that to replace it changes white space only.
        into.extend(body.bytes().map(|it| if matches!(it, b'\n' | b'\r') { b' ' } else { it }));
        into.push(b'\n');
    }
}

/// A request's body.
pub fn encode<'w>(writes: impl IntoIterator<Item = &'w Write>) -> Vec<u8> {
    let mut body = Vec::new();
    for write in writes {
        encode_write(write, &mut body);
    }
    body
}

/// Ranges of writes that fit into one request each.
pub fn split(writes: &[&Write]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, write) in writes.iter().enumerate() {
        let size = write.body.as_ref().map_or(0, String::len) + write.key.0.len() + 150;
        if at > start && (at - start >= REQUEST_WRITES_MAX || bytes + size > REQUEST_BYTES_MAX) {
            ranges.push(start..at);
            (start, bytes) = (at, 0);
        }
        bytes += size;
    }
    if start < writes.len() {
        ranges.push(start..writes.len());
    }
    ranges
}

#[derive(Deserialize)]
struct Answer {
    items: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Item {
    Index(ItemResult),
    Delete(ItemResult),
}

#[derive(Deserialize)]
struct ItemResult {
    _index: String,
    _id: Option<String>,
    status: u16,
    result: Option<String>,
    error: Option<ItemError>,
}

#[derive(Deserialize)]
struct ItemError {
    #[serde(rename = "type")]
    kind: String,
    reason: Option<String>,
    caused_by: Option<Box<ItemError>>,
}

impl ItemError {
    fn sentence(&self) -> String {
        let reason = self.reason.as_deref().unwrap_or("no reason given");
        match &self.caused_by {
            None => format!("{}: {reason}", self.kind),
            Some(cause) => format!("{}: {reason}; {}", self.kind, cause.sentence()),
        }
    }
}

/// Matches the answer to a request with its writes, one to one.
///
/// # Errors
/// The answer has another form, another count, or other documents in it.
pub fn outcomes(writes: &[&Write], answer: &[u8]) -> Result<Vec<Outcome>, BulkAnswerError> {
    let Answer { items } = serde_json::from_slice(answer)?;
    if items.len() != writes.len() {
        return Err(BulkAnswerError::Count { writes: writes.len(), items: items.len() });
    }
    let matched = writes.iter().zip(items).enumerate();
    matched
        .map(|(at, (write, item))| outcome(write, item).ok_or(BulkAnswerError::Mismatch { at }))
        .collect()
}

/// None: the item is about something else.
fn outcome(write: &Write, item: Item) -> Option<Outcome> {
    let (is_index, item) = match item {
        Item::Index(item) => (true, item),
        Item::Delete(item) => (false, item),
    };
    let index = item._index == *write.index || item._index == write_alias(&write.index);
    let id = item._id.as_deref() == Some(write.key.0.as_str());
    if !index || !id || is_index != write.body.is_some() {
        return None;
    }
    let reason = || match &item.error {
        Some(error) => error.sentence(),
        None => "no error given".to_owned(),
    };
    let kind = item.error.as_ref().map(|it| it.kind.as_str());
    Some(match (item.status, kind, item.result.as_deref()) {
        (409, ..) => Outcome::Stale,
        (404, Some("index_not_found_exception"), _)
        | (400, Some("invalid_index_name_exception"), _) => Outcome::IndexMissing,
        (200..=299, None, Some("created")) => Outcome::Done(Done::Created),
        (200..=299, None, Some("updated")) => Outcome::Done(Done::Updated),
        (200..=299, None, Some("deleted")) => Outcome::Done(Done::Deleted),
        (404, None, Some("not_found")) if !is_index => Outcome::Done(Done::NotFound),
        // A block, a closed index or a missing privilege is the operator's to mend, and no
        // fault of the document's.
        (status @ (401 | 403 | 429 | 500..=599), ..)
        | (status, Some("cluster_block_exception" | "index_closed_exception"), _) => {
            Outcome::Retry { status, reason: block::with_cure(reason()) }
        }
        (status, ..) => Outcome::Refused { status, reason: conflict::with_cure(reason()) },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(key: &str, body: Option<&str>) -> Write {
        Write {
            collection: "c".into(),
            index: "c-1".into(),
            key: DocumentKey(key.to_owned()),
            version: DocumentVersion(7),
            body: body.map(str::to_owned),
        }
    }

    #[test]
    fn a_body_is_one_line_and_an_id_is_escaped() {
        let writes = [write("a\"\n", Some("[1,\n 2]")), write("b", None)];
        let head = |id: &str| {
            format!(
                r#"{{"_index":"c-1-WRITE","_id":{id},"version":7,"version_type":"external_gte"}}"#
            )
        };
        let expected = format!(
            "{{\"index\":{}}}\n[1,  2]\n{{\"delete\":{}}}\n",
            head(r#""a\"\n""#),
            head("\"b\"")
        );
        assert_eq!(String::from_utf8(encode(&writes)).unwrap(), expected);
    }

    #[test]
    fn each_answer_has_its_outcome() {
        let refused = |status| Outcome::Refused { status, reason: "t: r; u: s".to_owned() };
        let retry = |status| Outcome::Retry { status, reason: "t: r; u: s".to_owned() };
        let error = r#""error":{"type":"t","reason":"r","caused_by":{"type":"u","reason":"s"}}"#;
        let cases = [
            (201, "\"result\":\"created\"", Outcome::Done(Done::Created)),
            (200, "\"result\":\"updated\"", Outcome::Done(Done::Updated)),
            (409, error, Outcome::Stale),
            (429, error, retry(429)),
            (503, error, retry(503)),
            (400, error, refused(400)),
            (404, error, refused(404)),
            (404, r#""error":{"type":"index_not_found_exception"}"#, Outcome::IndexMissing),
        ];
        for (status, rest, expected) in cases {
            let answer = format!(
                r#"{{"items":[{{"index":{{"_index":"c-1","_id":"k","status":{status},{rest}}}}}]}}"#
            );
            let found = outcomes(&[&write("k", Some("{}"))], answer.as_bytes()).unwrap();
            assert_eq!(found, [expected]);
            let other = [&write("k", None), &write("j", Some("{}"))];
            for other in other {
                assert!(outcomes(&[other], answer.as_bytes()).is_err());
            }
            assert!(outcomes(&other, answer.as_bytes()).is_err());
        }
    }

    #[test]
    fn an_id_that_would_fail_the_whole_request_is_not_sent() {
        for (length, sent) in [(0, false), (1, true), (512, true), (513, false)] {
            assert_eq!(refused_unsent(&write(&"k".repeat(length), None)).is_none(), sent);
        }
    }

    proptest! {
        // Megabytes each.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn requests_are_small_and_hold_every_write_once(
            sizes in proptest::collection::vec(0usize..3_000_000, 0..6), many in 0usize..3_000,
        ) {
            let large = sizes.iter().map(|&size| write("k", Some(&"x".repeat(size))));
            let writes: Vec<Write> = large.chain((0..many).map(|_| write("k", None))).collect();
            let writes: Vec<&Write> = writes.iter().collect();
            let mut next = 0;
            for range in split(&writes) {
                prop_assert_eq!(range.start, next);
                prop_assert!((1..=REQUEST_WRITES_MAX).contains(&range.len()));
                let bytes = encode(writes[range.clone()].iter().copied()).len();
                prop_assert!(bytes <= REQUEST_BYTES_MAX || range.len() == 1);
                next = range.end;
            }
            prop_assert_eq!(next, writes.len());
        }
    }
}
