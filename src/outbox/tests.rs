//! Rows and messages become the same events, and what is none is refused by name.

use proptest::prelude::*;

use super::*;
use crate::change::{Datum, Tuple};
use crate::config::{OutboxColumns, OutboxConfig};
use crate::lsn::Lsn;
use crate::relation::{Column, Relation, RelationId, ReplicaIdentity};
use template::TopicTemplate;

fn config() -> OutboxConfig {
    OutboxConfig::default()
}

fn relation(columns: &[(&str, u32)]) -> Relation {
    Relation {
        id: RelationId(1),
        namespace: "public".to_owned(),
        name: "outbox".to_owned(),
        replica_identity: ReplicaIdentity::Default,
        columns: columns
            .iter()
            .map(|&(name, type_oid)| Column {
                name: name.to_owned(),
                type_oid,
                type_modifier: -1,
                in_identity: name == "id",
            })
            .collect(),
    }
}

fn row(values: &[Option<&str>]) -> Tuple {
    Tuple::from_datums(
        values.iter().map(|it| it.map_or(Datum::Null, |it| Datum::Text(it.as_bytes()))),
    )
}

const COLUMNS: [(&str, u32); 6] = [
    ("id", 2950),
    ("aggregatetype", 25),
    ("aggregateid", 25),
    ("type", 25),
    ("payload", 3802),
    ("headers", 3802),
];

/// `topic key value headers`, or the refusal.
fn shown(event: Result<Event<'_>, Refusal>, config: &OutboxConfig) -> String {
    let transaction =
        [("source-txid".to_owned(), "7".to_owned()), ("correlation-id".to_owned(), "c".to_owned())];
    match event.and_then(|it| it.letter(config, &transaction, 1_000)) {
        Err(refusal) => refusal.to_string(),
        Ok(it) => {
            let value = it.value.as_ref().map_or("-".into(), |it| String::from_utf8_lossy(it));
            let headers: Vec<String> = it.headers.iter().map(|(n, v)| format!("{n}={v}")).collect();
            let key = it.key.as_deref().unwrap_or("-");
            format!("{} {key} {value} {}", it.topic, headers.join(","))
        }
    }
}

fn of_row(columns: &[(&str, u32)], values: &[Option<&str>], config: &OutboxConfig) -> String {
    let row = row(values);
    let event = row::OutboxTable::new(&relation(columns), config).and_then(|it| it.event(&row));
    shown(event, config)
}

fn of_message(json: &str, config: &OutboxConfig) -> String {
    shown(message::parse(json.as_bytes(), Lsn(0x10), config), config)
}

#[test]
fn a_row_and_a_message_are_the_same_event() {
    let expected = r#"outbox.event.order 5 {"n": 1.00} source-txid=7,correlation-id=c,tenant=x,deep=[1],id=e1,type=Placed"#;
    let headers = r#"{"tenant": "x", "none": null, "deep": [1]}"#;
    let values = [
        Some("e1"),
        Some("order"),
        Some("5"),
        Some("Placed"),
        Some(r#"{"n": 1.00}"#),
        Some(headers),
    ];
    assert_eq!(of_row(&COLUMNS, &values, &config()), expected);
    let renamed = [
        ("id", 2950),
        ("aggregate_type", 25),
        ("aggregate_id", 20),
        ("event_type", 25),
        ("payload", 114),
        ("headers", 114),
    ];
    assert_eq!(of_row(&renamed, &values, &config()), expected, "the aliases");
    let json = r#"{"id":"e1","aggregatetype":"order","aggregateid":5,"type":"Placed","payload":{"n": 1.00},"headers":{"tenant": "x", "none": null, "deep": [1]}}"#;
    assert_eq!(of_message(json, &config()), expected);
}

#[test]
fn the_row_wins_over_the_transaction_but_not_over_us() {
    let of = |headers: &str| {
        of_message(
            &format!(
                r#"{{"aggregatetype":"o","aggregateid":"k","payload":1,"headers":{headers}}}"#
            ),
            &config(),
        )
    };
    assert_eq!(
        of(r#"{"correlation-id":"mine"}"#),
        "outbox.event.o k 1 source-txid=7,correlation-id=mine,id=0/10"
    );
    for name in ["id", "type", "source-lsn", ""] {
        assert!(
            of(&format!("{{\"{name}\":1}}")).starts_with("headers is not free of the names"),
            "{name}"
        );
    }
    let many: Vec<String> = (0..65).map(|nth| format!("\"h{nth}\":1")).collect();
    assert_eq!(of(&format!("{{{}}}", many.join(","))), "it brings more than 64 headers");
}

#[test]
fn payloads_are_published_as_they_are() {
    let of = |oid, payload| {
        let columns = [("id", 25), ("aggregatetype", 25), ("aggregateid", 25), ("payload", oid)];
        let values = [Some("e"), Some("o"), Some("k"), payload];
        let shown = of_row(&columns, &values, &config());
        shown.split(' ').nth(2).unwrap_or_default().to_owned()
    };
    assert_eq!(of(25, Some("<xml/>")), "<xml/>");
    assert_eq!(of(114, Some(r#"{"a":"\"b\""}"#)), r#"{"a":"\"b\""}"#);
    assert_eq!(of(17, Some("\\x6869")), "hi");
    assert_eq!(of(3802, None), "null", "no tombstone unless one is wanted");
    let columns = [("id", 25), ("aggregatetype", 25), ("aggregateid", 25), ("payload", 17)];
    let broken = [Some("e"), Some("o"), Some("k"), Some("\\x6")];
    assert_eq!(of_row(&columns, &broken, &config()), "payload is not bytea in hex");
}

#[test]
fn null_keys_and_tombstones_by_choice() {
    let json = r#"{"aggregatetype":"o","payload":null}"#;
    assert!(of_message(json, &config()).contains("set [outbox] allow_null_key = true"));
    let allowed = OutboxConfig { allow_null_key: true, ..config() };
    assert_eq!(
        of_message(json, &allowed),
        "outbox.event.o - null source-txid=7,correlation-id=c,id=0/10"
    );
    let tombstones = OutboxConfig { tombstones: true, ..allowed };
    assert!(of_message(json, &tombstones).contains("a tombstone without a key means nothing"));
    let keyed = r#"{"aggregatetype":"o","aggregateid":"k"}"#;
    assert_eq!(
        of_message(keyed, &tombstones),
        "outbox.event.o k - source-txid=7,correlation-id=c,id=0/10"
    );
}

#[test]
fn what_is_no_event_is_refused_by_name() {
    let cases = [
        ("[]", "the message is not a JSON object"),
        ("\u{0}", "the message is not a JSON object"),
        (r#"{"aggregateid":"k","payload":1}"#, "aggregatetype is missing"),
        (r#"{"agregatetype":"o"}"#, "agregatetype is not a field"),
        (
            r#"{"aggregatetype":"a b","aggregateid":"k"}"#,
            "\"outbox.event.a b\" is no name for a topic",
        ),
        (
            r#"{"aggregatetype":"o","aggregateid":"k","timestamp":"soon"}"#,
            "timestamp is not a time",
        ),
        (
            r#"{"aggregatetype":"o","aggregateid":"k","partition":-1}"#,
            "partition is not a partition's number",
        ),
        (r#"{"aggregatetype":"o","aggregateid":"k","headers":[]}"#, "headers is not a JSON object"),
        (r#"{"aggregatetype":"o","aggregateid":"\ud800"}"#, "a string is not Unicode"),
    ];
    for (json, expected) in cases {
        let shown = of_message(json, &config());
        assert!(shown.starts_with(expected), "{json}: {shown}");
    }
    let without: Vec<_> = COLUMNS.iter().copied().filter(|it| it.0 != "payload").collect();
    let values = [Some("e1"), Some("order"), Some("5"), None, None];
    assert_eq!(
        of_row(&without, &values, &config()),
        "the table has no column payload; name the right one as [outbox] payload_column"
    );
    let values = [None, Some("order"), Some("5"), None, Some("1"), None];
    assert_eq!(of_row(&COLUMNS, &values, &config()), "id is missing");
}

#[test]
fn columns_that_are_named_are_used_and_must_be_there() {
    let columns = OutboxColumns {
        kind: vec!["what".to_owned()],
        timestamp: Some("at".to_owned()),
        partition: Some("slot".to_owned()),
        ..OutboxColumns::default()
    };
    let topic = TopicTemplate::parse("{topic_prefix}.{type}", "app").unwrap();
    let header_columns = vec![("tenant".to_owned(), "x-tenant".to_owned())];
    let config = OutboxConfig { columns, topic, header_columns, ..config() };
    let all = [
        ("id", 25),
        ("aggregateid", 25),
        ("payload", 25),
        ("what", 25),
        ("at", 1184),
        ("slot", 23),
        ("tenant", 25),
    ];
    let values = [
        Some("e"),
        Some("k"),
        Some("p"),
        Some("t"),
        Some("1970-01-01 00:00:00.7+00"),
        Some("3"),
        Some("x"),
    ];
    assert_eq!(
        of_row(&all, &values, &config),
        "app.t k p source-txid=7,correlation-id=c,x-tenant=x,id=e,type=t"
    );
    let row = row(&values);
    let event = row::OutboxTable::new(&relation(&all), &config).unwrap().event(&row).unwrap();
    assert_eq!((event.timestamp_ms, event.partition), (Some(700), Some(3)));
    let late = Event { timestamp_ms: Some(5_000), ..event }.letter(&config, &[], 1_000).unwrap();
    assert_eq!(late.timestamp_ms, Some(1_000), "not from the future");
    for (name, key) in [
        ("what", "type_column"),
        ("at", "timestamp_column"),
        ("slot", "partition_column"),
        ("tenant", "header_columns"),
    ] {
        let fewer: Vec<_> = all.iter().copied().filter(|it| it.0 != name).collect();
        let refusal = row::OutboxTable::new(&relation(&fewer), &config).unwrap_err();
        assert_eq!(refusal, Refusal::MissingColumn { column: name.to_owned(), key });
    }
}

#[test]
fn templates_say_what_is_wrong_with_them() {
    let parse = |text| TopicTemplate::parse(text, "app").map(|_| ());
    assert_eq!(parse("events"), Ok(()));
    for (text, expected) in [
        ("", "must not be empty"),
        ("a.{b}", "not {b}"),
        ("a.{type", "closing brace"),
        ("a b.{type}", "not \"a b.\""),
        ("a}", "not \"a}\""),
    ] {
        assert!(parse(text).unwrap_err().contains(expected), "{text}");
    }
}

#[test]
fn a_context_changes_the_headers_that_it_names() {
    let mut headers = vec![("source-txid".to_owned(), "7".to_owned())];
    let mut apply = |json: &str| {
        let applied = context::apply(json.as_bytes(), &mut headers).map_err(|it| it.to_string());
        let shown: Vec<String> = headers.iter().map(|(n, v)| format!("{n}={v}")).collect();
        applied.map(|()| shown.join(","))
    };
    let first =
        apply(r#"{"correlation_id":"c1","traceparent":"00-a-b-01","headers":{"tenant":5}}"#);
    assert_eq!(first.unwrap(), "source-txid=7,correlation-id=c1,traceparent=00-a-b-01,tenant=5");
    let second = apply(r#"{"correlation-id":"c2","traceparent":null}"#);
    assert_eq!(second.unwrap(), "source-txid=7,correlation-id=c2,tenant=5");
    for (json, expected) in [
        ("", "a JSON object"),
        ("7", "a JSON object"),
        (r#"{"correlation":"x"}"#, "no field \"correlation\""),
        (r#"{"correlation_id":{}}"#, "correlation-id is not a string"),
        (r#"{"headers":{"source-lsn":"0/0"}}"#, "must not be named"),
        (r#"{"headers":7}"#, "a JSON object"),
    ] {
        assert!(apply(json).unwrap_err().contains(expected), "{json}");
    }
    let large = format!(r#"{{"correlation_id":"{}"}}"#, "x".repeat(5000));
    assert!(apply(&large).unwrap_err().contains("of at most 4096"));
    assert_eq!(
        apply("{}").unwrap(),
        "source-txid=7,correlation-id=c2,tenant=5",
        "errors change nothing"
    );
}

proptest! {
    #[test]
    fn nothing_panics(content in prop::collection::vec(any::<u8>(), 0..60), json in r#"[{}\[\]":,a-z0-9\\ ]{0,40}"#) {
        for bytes in [content.as_slice(), json.as_bytes()] {
            let mut headers = Vec::new();
            drop(message::parse(bytes, Lsn(1), &config()));
            drop(context::apply(bytes, &mut headers));
        }
    }
}
