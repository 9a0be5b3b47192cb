//! A record of an entity topic as the translator reads it: which table, which images, whose
//! transaction. Pure, and borrowed from the record: values stay the text they are.
//!
//! The parse is total: whatever is missing or of another form is a [`RecordError`] that names it,
//! for the dead letters. Never judges what a change means for documents.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::Deserialize;

use crate::json::Object;
use crate::lsn::Lsn;
use crate::relation::ReplicaIdentity;
use crate::snapshot::Cause;

/// Debezium's stand-in for a TOASTed value that an UPDATE did not touch.
pub const UNAVAILABLE: &str = "__debezium_unavailable_value";

pub const HEADER_LSN: &str = "source-lsn";
pub const HEADER_TXID: &str = "source-txid";
pub const HEADER_TIMELINE: &str = "source-timeline";
pub const HEADER_SYSTEM: &str = "source-system";
pub const HEADER_CORRELATION: &str = "correlation-id";
/// Of an update whose images do not show all that changed.
pub const HEADER_UNSEEN: &str = crate::kafka::envelope::UNSEEN_HEADER;

/// `op` of the envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Create,
    Update,
    Delete,
    /// `r`: read by a copy, not caused by a change.
    Read,
    Truncate,
}

/// One change of one row, or a truncation.
#[derive(Debug, Clone)]
pub struct ChangeRecord<'a> {
    pub op: Op,
    /// The table's Postgres schema.
    pub namespace: Cow<'a, str>,
    pub table: Cow<'a, str>,
    /// The old row, as far as the replica identity has it.
    pub before: Option<Image<'a>>,
    pub after: Option<Image<'a>>,
    /// A column's value changed though both images have the same JSON for it.
    pub unseen: bool,
    /// The transaction that whoever re-reads must see.
    pub cause: Cause,
    /// `system_identifier` of the cluster it comes from.
    pub system_id: u64,
    pub lsn: Lsn,
    /// When the transaction committed, in microseconds since the Unix epoch.
    pub commit_us: i64,
    /// What the transaction says that it belongs to.
    pub correlation_id: Option<Cow<'a, str>>,
}

/// A row image: columns in order.
#[derive(Debug, Clone)]
pub struct Image<'a>(Object<'a>);

/// What an image says of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// The image does not have the column.
    Missing,
    /// The column exists, but its value was not in the WAL (unchanged TOAST).
    Unavailable,
    Null,
    /// In the text form that Postgres' input functions accept.
    Text(Cow<'a, str>),
}

/// Why a record is no change that we can use.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error("the value is not an envelope (op, source.schema, source.table, before, after)")]
    NotAnEnvelope(#[source] serde_json::Error),
    #[error("op \"{0}\" is not c, u, d, r or t")]
    UnknownOp(String),
    #[error("a record of op {op:?} lacks its \"{image}\" image")]
    ImageMissing { op: Op, image: &'static str },
    #[error("header {0} is missing; was the record written by onelog?")]
    HeaderMissing(&'static str),
    #[error("header {name} is \"{text}\", which is not {expected}")]
    HeaderInvalid { name: &'static str, text: String, expected: &'static str },
}

impl RecordError {
    /// The record will not become another one.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotAnEnvelope(_)
            | Self::UnknownOp(_)
            | Self::ImageMissing { .. }
            | Self::HeaderMissing(_)
            | Self::HeaderInvalid { .. } => false,
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    op: Cow<'a, str>,
    #[serde(borrow)]
    source: Source<'a>,
    #[serde(borrow, default)]
    before: Option<Object<'a>>,
    #[serde(borrow, default)]
    after: Option<Object<'a>>,
}

#[derive(Deserialize)]
struct Source<'a> {
    #[serde(borrow)]
    schema: Cow<'a, str>,
    #[serde(borrow)]
    table: Cow<'a, str>,
    #[serde(default)]
    ts_us: i64,
}

/// Parses a record's value and headers. None: a tombstone, whose delete came before it.
pub fn parse<'a>(
    value: Option<&'a [u8]>,
    headers: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> Result<Option<ChangeRecord<'a>>, RecordError> {
    let Some(value) = value else { return Ok(None) };
    let envelope: Envelope<'a> =
        serde_json::from_slice(value).map_err(RecordError::NotAnEnvelope)?;
    let op = match &*envelope.op {
        "c" => Op::Create,
        "u" => Op::Update,
        "d" => Op::Delete,
        "r" => Op::Read,
        "t" => Op::Truncate,
        other => return Err(RecordError::UnknownOp(other.to_owned())),
    };
    match op {
        Op::Create | Op::Update | Op::Read if envelope.after.is_none() => {
            return Err(RecordError::ImageMissing { op, image: "after" });
        }
        Op::Delete if envelope.before.is_none() => {
            return Err(RecordError::ImageMissing { op, image: "before" });
        }
        Op::Create | Op::Update | Op::Read | Op::Delete | Op::Truncate => {}
    }
    let headers = Headers::collect(headers);
    Ok(Some(ChangeRecord {
        op,
        commit_us: envelope.source.ts_us,
        namespace: envelope.source.schema,
        table: envelope.source.table,
        before: envelope.before.map(Image),
        after: envelope.after.map(Image),
        unseen: headers.unseen.is_some(),
        cause: Cause {
            timeline: number(HEADER_TIMELINE, headers.timeline)?,
            xid: number(HEADER_TXID, headers.txid)?,
        },
        system_id: number(HEADER_SYSTEM, headers.system)?,
        lsn: header(HEADER_LSN, headers.lsn, "an LSN such as 16/B374D848")?,
        correlation_id: headers.correlation.map(String::from_utf8_lossy),
    }))
}

/// The headers that we need, the first of each name.
#[derive(Default)]
struct Headers<'a> {
    lsn: Option<&'a [u8]>,
    txid: Option<&'a [u8]>,
    timeline: Option<&'a [u8]>,
    system: Option<&'a [u8]>,
    unseen: Option<&'a [u8]>,
    correlation: Option<&'a [u8]>,
}

impl<'a> Headers<'a> {
    fn collect(all: impl IntoIterator<Item = (&'a str, Option<&'a [u8]>)>) -> Self {
        let mut headers = Self::default();
        for (name, value) in all {
            let place = match name {
                HEADER_LSN => &mut headers.lsn,
                HEADER_TXID => &mut headers.txid,
                HEADER_TIMELINE => &mut headers.timeline,
                HEADER_SYSTEM => &mut headers.system,
                HEADER_UNSEEN => &mut headers.unseen,
                HEADER_CORRELATION => &mut headers.correlation,
                _ => continue,
            };
            if place.is_none() {
                *place = value;
            }
        }
        headers
    }
}

fn number<T: std::str::FromStr>(
    name: &'static str,
    value: Option<&[u8]>,
) -> Result<T, RecordError> {
    header(name, value, "a whole number that fits")
}

fn header<T: std::str::FromStr>(
    name: &'static str,
    value: Option<&[u8]>,
    expected: &'static str,
) -> Result<T, RecordError> {
    let bytes = value.ok_or(RecordError::HeaderMissing(name))?;
    std::str::from_utf8(bytes).ok().and_then(|it| it.parse().ok()).ok_or_else(|| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        RecordError::HeaderInvalid { name, text, expected }
    })
}

impl<'a> Image<'a> {
    /// What the image says of the column.
    pub fn value(&self, column: &str) -> Value<'a> {
        let Some(raw) = self.0.get(column) else { return Value::Missing };
        match raw.as_bytes().first() {
            Some(b'n') => Value::Null,
            Some(b'"') => match text_of_string(raw) {
                text if text == UNAVAILABLE => Value::Unavailable,
                text => Value::Text(text),
            },
            _ => Value::Text(Cow::Borrowed(raw)),
        }
    }

    /// The column's value as the JSON that it is in the image: a string keeps its quotes. JSON's
    /// null is `Null`, like SQL's.
    pub fn json(&self, column: &str) -> Value<'a> {
        match self.value(column) {
            Value::Text(_) => {
                self.0.get(column).map_or(Value::Missing, |raw| Value::Text(Cow::Borrowed(raw)))
            }
            other => other,
        }
    }

    /// The column's value as text for a `text[]` parameter: strings unescaped, numbers and
    /// booleans as they are, objects and arrays as JSON. None: NULL, or the image has no value.
    pub fn text(&self, column: &str) -> Option<Cow<'a, str>> {
        match self.value(column) {
            Value::Text(text) => Some(text),
            Value::Missing | Value::Unavailable | Value::Null => None,
        }
    }

    /// The columns' names, in order.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.0.0.iter().map(|(name, _)| &**name)
    }
}

/// The text of a JSON string, without a copy when nothing in it is escaped.
fn text_of_string(raw: &str) -> Cow<'_, str> {
    let plain = raw.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
    match plain {
        Some(plain) if !plain.contains('\\') => Cow::Borrowed(plain),
        // A RawValue is valid JSON; were it not (a lone surrogate), the raw text harms nobody.
        _ => serde_json::from_str(raw).map_or(Cow::Borrowed(raw), Cow::Owned),
    }
}

impl ChangeRecord<'_> {
    /// Both images that there are, the old one first: where key paths start from.
    pub fn images(&self) -> impl Iterator<Item = &Image<'_>> {
        self.before.iter().chain(&self.after)
    }

    /// Whether a reader of these columns (None: of all) can see the change (A7), whatever the
    /// table's replica identity is.
    pub fn columns_changed(&self, read: Option<&BTreeSet<String>>) -> bool {
        self.columns_changed_under(ReplicaIdentity::Default, read)
    }

    /// The same under a replica identity that the caller knows, and whose change it would notice
    /// and answer with a sweep (A11).
    ///
    /// Only an update that has the old value of every column, the same text as the new one, does
    /// not count. A column that an image lacks, and a value that it could not have, counts as
    /// changed: to refresh too often is only work. So does what capture has seen and the images do
    /// not show. Under any identity but FULL an old NULL is what an old value looks like that was
    /// not in the WAL, as in Debezium's envelopes.
    pub fn columns_changed_under(
        &self,
        identity: ReplicaIdentity,
        read: Option<&BTreeSet<String>>,
    ) -> bool {
        let (Op::Update, Some(before), Some(after)) = (self.op, &self.before, &self.after) else {
            return true;
        };
        if self.unseen {
            return true;
        }
        let full = identity == ReplicaIdentity::Full;
        let unchanged =
            |old: &str, new: &str| old == new && (full || old != "null") && !is_unavailable(old);
        match read {
            Some(read) => read.iter().any(|name| match (before.0.get(name), after.0.get(name)) {
                (Some(old), Some(new)) => !unchanged(old, new),
                _ => true,
            }),
            // By place: one pass also over a wide row.
            None => {
                let mut pairs = before.0.0.iter().zip(&after.0.0);
                before.0.0.len() != after.0.0.len()
                    || !pairs
                        .all(|(old, new)| old.0 == new.0 && unchanged(old.1.get(), new.1.get()))
            }
        }
    }
}

fn is_unavailable(raw: &str) -> bool {
    raw.strip_prefix('"').and_then(|it| it.strip_suffix('"')) == Some(UNAVAILABLE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADERS: [(&str, Option<&[u8]>); 4] = [
        (HEADER_LSN, Some(b"16/B374D848")),
        (HEADER_TXID, Some(b"4294967301")),
        (HEADER_TIMELINE, Some(b"2")),
        (HEADER_SYSTEM, Some(b"18446744073709551615")),
    ];

    fn envelope(op: &str, before: &str, after: &str) -> String {
        format!(
            r#"{{"before":{before},"after":{after},"source":{{"version":"1","schema":"public",
            "table":"or\u0064ers","lsn":5}},"op":"{op}","ts_ms":1,"transaction":null}}"#
        )
    }

    #[test]
    fn a_value_is_text_or_the_json_that_it_is() {
        let after = r#"{"a":"x\"y","b":{"c":1.0},"d":null,"e":"__debezium_unavailable_value"}"#;
        let text = envelope("c", "null", after);
        let after = parse(Some(text.as_bytes()), HEADERS).unwrap().unwrap().after.unwrap();
        let of = |text: &'static str| Value::Text(text.into());
        assert_eq!((after.value("a"), after.json("a")), (of("x\"y"), of(r#""x\"y""#)));
        assert_eq!((after.value("b"), after.json("b")), (of(r#"{"c":1.0}"#), of(r#"{"c":1.0}"#)));
        let nothing = [after.json("d"), after.json("e"), after.json("f")];
        assert_eq!(nothing, [Value::Null, Value::Unavailable, Value::Missing]);
    }

    #[test]
    fn a_change_is_parsed_with_its_cause() {
        let text = envelope("u", "null", r#"{"id":1}"#);
        let record = parse(Some(text.as_bytes()), HEADERS).unwrap().unwrap();
        assert_eq!((&*record.namespace, &*record.table), ("public", "orders"));
        assert_eq!(record.cause, Cause { timeline: 2, xid: 4_294_967_301 });
        assert_eq!((record.op, record.system_id), (Op::Update, u64::MAX));
        assert_eq!(record.lsn.to_string(), "16/B374D848");
        assert_eq!((record.before.is_none(), record.images().count()), (true, 1));
        assert!(parse(None, HEADERS).unwrap().is_none(), "a tombstone");
    }

    #[test]
    fn what_is_missing_is_named() {
        let row = r#"{"id":1}"#;
        let cases = [
            (envelope("x", "null", row), "", "op \"x\""),
            (envelope("c", row, "null"), "", "\"after\" image"),
            (envelope("d", "null", row), "", "\"before\" image"),
            (envelope("u", "[]", row), "", "not an envelope"),
            ("{}".to_owned(), "", "not an envelope"),
            (envelope("c", "null", row), HEADER_TXID, "header source-txid is missing"),
            (envelope("c", "null", row), HEADER_SYSTEM, "header source-system is missing"),
        ];
        for (text, without, expected) in cases {
            let err =
                parse(Some(text.as_bytes()), HEADERS.into_iter().filter(|it| it.0 != without))
                    .unwrap_err();
            assert!(err.to_string().contains(expected), "{text}: {err}");
        }
        let wrong =
            HEADERS.map(|it| if it.0 == HEADER_TIMELINE { (it.0, Some(&b"x"[..])) } else { it });
        let text = envelope("c", "null", row);
        let err = parse(Some(text.as_bytes()), wrong).unwrap_err();
        assert!(err.to_string().contains("source-timeline is \"x\""), "{err}");
    }

    #[test]
    fn an_image_gives_the_text_that_postgres_accepts() {
        let row = r#"{"s":"a\"ü\n","p":"plain","n":1.00e5,"t":true,"z":null,"j":{"a": [1]},
            "u":"__debezium_unavailable_value"}"#;
        let image = Image(serde_json::from_str(row).unwrap());
        let cases = [
            ("s", Some("a\"ü\n")),
            ("p", Some("plain")),
            ("n", Some("1.00e5")),
            ("t", Some("true")),
            ("z", None),
            ("j", Some(r#"{"a": [1]}"#)),
            ("u", None),
            ("missing", None),
        ];
        for (column, expected) in cases {
            assert_eq!(image.text(column).as_deref(), expected, "{column}");
        }
        assert_eq!(image.value("u"), Value::Unavailable);
        assert_eq!(image.value("missing"), Value::Missing);
        assert!(matches!(image.value("p"), Value::Text(Cow::Borrowed(_))));
    }

    #[track_caller]
    fn check_changed(op: &str, before: &str, after: &str, read: Option<&[&str]>, expected: bool) {
        let text = envelope(op, before, after);
        let record = parse(Some(text.as_bytes()), HEADERS).unwrap().unwrap();
        let read: Option<BTreeSet<String>> =
            read.map(|it| it.iter().map(|it| (*it).to_owned()).collect());
        let changed = record.columns_changed(read.as_ref());
        assert_eq!(changed, expected, "{op} {before} {after} {read:?}");
    }

    #[test]
    fn only_an_update_of_other_columns_does_not_count() {
        let (old, new) = (r#"{"a":1,"b":"x"}"#, r#"{"a":1,"b":"y"}"#);
        check_changed("u", old, new, Some(&["a"]), false);
        check_changed("u", old, new, Some(&["a", "b"]), true);
        check_changed("u", old, new, Some(&[]), false);
        check_changed("u", old, new, None, true);
        check_changed("u", old, old, None, false);
        check_changed("u", "null", new, Some(&["a"]), true);
        check_changed("u", r#"{"a":1}"#, new, Some(&["b"]), true);
        check_changed("u", r#"{"a":1}"#, new, None, true);
        check_changed("u", r#"{"a":1.0}"#, r#"{"a":1.00}"#, Some(&["a"]), true);
        let toast = r#"{"a":"__debezium_unavailable_value"}"#;
        check_changed("u", toast, toast, Some(&["a"]), true);
        check_changed("u", toast, toast, None, true);
        for op in ["c", "r", "d"] {
            check_changed(op, old, old, Some(&["c"]), true);
        }
        check_changed("t", "null", "null", Some(&["a"]), true);
        // An identity's image has NULL for what it does not hold.
        let null = r#"{"a":null}"#;
        check_changed("u", null, null, Some(&["a"]), true);
        let text = envelope("u", null, null);
        let record = parse(Some(text.as_bytes()), HEADERS).unwrap().unwrap();
        assert!(!record.columns_changed_under(ReplicaIdentity::Full, None));
        // Capture has seen what the images do not show: JSON's null became SQL's.
        let headers = HEADERS.into_iter().chain([(HEADER_UNSEEN, Some(&b"true"[..]))]);
        let record = parse(Some(text.as_bytes()), headers).unwrap().unwrap();
        assert!(record.columns_changed_under(ReplicaIdentity::Full, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(
            value: Vec<u8>, name in "source-[a-z]{3,8}", header: Vec<u8>,
        ) {
            let headers = [(name.as_str(), Some(header.as_slice()))];
            drop(parse(Some(&value), headers));
            let text = envelope("u", "null", &String::from_utf8_lossy(&value));
            drop(parse(Some(text.as_bytes()), headers));
        }

        #[test]
        fn any_text_comes_back(text: String) {
            let mut row = String::from("{\"a\":");
            crate::json::push_string(&text, &mut row);
            row.push('}');
            let image = Image(serde_json::from_str(&row).unwrap());
            prop_assert_eq!(image.text("a"), Some(Cow::Borrowed(text.as_str())));
        }
    }
}
