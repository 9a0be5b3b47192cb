//! Records against a model made with serde_json, the rules for keys one by one, and the speed.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::change::{Change, Datum, LogicalMessage, OldRow, Tuple};
use crate::lsn::Lsn;
use crate::postgres::text::TypeKinds;
use crate::relation::{Column, Relation, RelationId, ReplicaIdentity};

const NOW: ChangeAt = ChangeAt { lsn: Lsn(0x1_0000_0010), now_us: 1_700_000_000_123_456 };

fn source() -> SourceContext {
    SourceContext {
        name: "app".to_owned(),
        db: "d\"b".to_owned(),
        timeline: 3,
        system_id: u64::MAX,
    }
}

fn transaction() -> TransactionContext {
    TransactionContext {
        final_lsn: Lsn(0x1_0000_0100),
        last_commit_lsn: Some(Lsn(77)),
        commit_time_us: 753_315_200_123_456,
        xid: 4_000_000_000,
        xid_wide: (5 << 32) + 4_000_000_000,
        correlation: vec![("correlation-id".to_owned(), "c-1".to_owned())],
    }
}

/// `(id bigint primary key, k int, v text, ts timestamptz)`, load a of the benchmarks.
fn shape(identity: ReplicaIdentity, primary_key: &[&str]) -> TableShape {
    let column = |name: &str, type_oid| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        in_identity: match identity {
            ReplicaIdentity::Default => primary_key.contains(&name),
            ReplicaIdentity::Index => name == "k",
            ReplicaIdentity::Full => true,
            ReplicaIdentity::Nothing => false,
        },
    };
    let relation = Relation {
        id: RelationId(16_400),
        namespace: "pub\"lic".to_owned(),
        name: "t".to_owned(),
        replica_identity: identity,
        columns: vec![column("id", 20), column("k", 23), column("v", 25), column("ts", 1184)],
    };
    let key: Vec<String> = primary_key.iter().map(|&it| it.to_owned()).collect();
    TableShape::new(Arc::new(relation), "app.t".into(), &key, &TypeKinds::new()).unwrap()
}

fn full_row(id: i64, v: Option<Datum<'_>>) -> Tuple {
    let id = id.to_string();
    Tuple::from_datums([
        Datum::Text(id.as_bytes()),
        Datum::Null,
        v.unwrap_or(Datum::Null),
        Datum::Text(b"2024-02-29 12:00:00.5+00"),
    ])
}

fn insert(shape: &TableShape, new: Tuple) -> Change {
    Change::Insert { relation: Arc::clone(&shape.relation), new }
}

fn update(shape: &TableShape, old: Option<OldRow>, new: Tuple) -> Change {
    Change::Update { relation: Arc::clone(&shape.relation), old, new }
}

fn delete(shape: &TableShape, old: OldRow) -> Change {
    Change::Delete { relation: Arc::clone(&shape.relation), old }
}

/// A record, parsed: key, value, its own header.
type Parsed = (Value, Value, Option<(&'static str, Value)>);

fn parse(record: OutRecord<'_>) -> Parsed {
    let json = |it: &[u8]| -> Value {
        serde_json::from_slice(it).unwrap_or_else(|err| {
            panic!("{err}: {}", String::from_utf8_lossy(it));
        })
    };
    let optional = |it: Option<&[u8]>| it.map_or(json!("absent"), json);
    let header = record.header.map(|(name, value)| (name, json(value)));
    (optional(record.key), optional(record.value), header)
}

fn records(shape: &TableShape, change: &Change) -> Vec<Parsed> {
    let mut writer = EnvelopeWriter::new(&source());
    writer.begin(&transaction());
    writer.write(shape, change, NOW).unwrap().map(parse).collect()
}

fn envelope(op: &str, before: Value, after: Value) -> Value {
    json!({
        "before": before, "after": after,
        "source": {
            "version": env!("CARGO_PKG_VERSION"), "connector": "onelog", "name": "app",
            "ts_ms": 1_700_000_000_123i64, "snapshot": "false", "db": "d\"b",
            "sequence": "[\"77\",\"4294967312\"]",
            "ts_us": 1_700_000_000_123_456i64, "ts_ns": 1_700_000_000_123_456_000i64,
            "schema": "pub\"lic", "table": "t", "txId": 4_000_000_000u32,
            "lsn": 4_294_967_312u64, "xmin": null,
        },
        "transaction": null, "op": op,
        "ts_ms": 1_700_000_000_123i64, "ts_us": 1_700_000_000_123_456i64,
        "ts_ns": 1_700_000_000_123_456_000i64,
    })
}

fn model(id: i64, v: Value) -> Value {
    json!({"id": id, "k": null, "v": v, "ts": "2024-02-29T12:00:00.5+00:00"})
}

#[test]
fn the_order_of_fields_is_debeziums() {
    let shape = shape(ReplicaIdentity::Default, &["id"]);
    let change = insert(&shape, full_row(1, None));
    let [(key, value, None)] = &records(&shape, &change)[..] else { panic!() };
    assert_eq!(*key, json!({"id": 1}));
    // serde_json keeps the order here, so equal texts are of equal order.
    assert_eq!(value.to_string(), envelope("c", Value::Null, model(1, Value::Null)).to_string());
}

#[test]
fn a_changed_key_moves_the_row() {
    let shape = shape(ReplicaIdentity::Default, &["id"]);
    let key_row = |id: &'static [u8]| {
        OldRow::Identity(Tuple::from_datums([
            Datum::Text(id),
            Datum::Null,
            Datum::Null,
            Datum::Null,
        ]))
    };
    let change = update(&shape, Some(key_row(b"1")), full_row(2, None));
    let before = json!({"id": 1, "k": null, "v": null, "ts": null});
    let gone = Some((NEW_KEY_HEADER, json!({"id": 2})));
    let expected = [
        (json!({"id": 1}), envelope("d", before.clone(), Value::Null), gone.clone()),
        (json!({"id": 1}), json!("absent"), gone),
        (
            json!({"id": 2}),
            envelope("c", Value::Null, model(2, Value::Null)),
            Some((OLD_KEY_HEADER, json!({"id": 1}))),
        ),
    ];
    assert_eq!(records(&shape, &change), expected);
    // An old key that is sent and is the same is no move.
    let change = update(&shape, Some(key_row(b"1")), full_row(1, None));
    let expected = (json!({"id": 1}), envelope("u", before, model(1, Value::Null)), None);
    assert_eq!(records(&shape, &change), [expected]);
}

#[test]
fn toasted_values_come_from_the_old_row_or_are_said_to_be_missing() {
    let toast = || full_row(1, Some(Datum::UnchangedToast));
    let shape_full = shape(ReplicaIdentity::Full, &["id"]);
    let old = OldRow::Full(full_row(1, Some(Datum::Text(b"long"))));
    let [(_, value, _)] = &records(&shape_full, &update(&shape_full, Some(old), toast()))[..]
    else {
        panic!()
    };
    assert_eq!(*value, envelope("u", model(1, json!("long")), model(1, json!("long"))));
    let shape_default = shape(ReplicaIdentity::Default, &["id"]);
    let [(_, value, _)] = &records(&shape_default, &update(&shape_default, None, toast()))[..]
    else {
        panic!()
    };
    assert_eq!(*value, envelope("u", Value::Null, model(1, json!(UNAVAILABLE_VALUE))));
    // A key in a TOASTed value is in the old row; without one there is no record.
    let shape_text = shape(ReplicaIdentity::Default, &["v"]);
    let old = OldRow::Identity(Tuple::from_datums([
        Datum::Null,
        Datum::Null,
        Datum::Text(b"long"),
        Datum::Null,
    ]));
    let [(key, _, None)] = &records(&shape_text, &update(&shape_text, Some(old), toast()))[..]
    else {
        panic!()
    };
    assert_eq!(*key, json!({"v": "long"}));
    let mut writer = EnvelopeWriter::new(&source());
    writer.begin(&transaction());
    let missing = writer.write(&shape_text, &update(&shape_text, None, toast()), NOW).err();
    let (relation, column) = ("pub\"lic.t".to_owned(), "v".to_owned());
    assert_eq!(missing, Some(EnvelopeError::KeyNotSent { relation, column }));
}

/// What SQL tells apart and JSON does not: a reader of the images alone would see no change.
#[test]
fn a_change_that_the_images_do_not_show_is_said() {
    let types = [("id", 20), ("j", 3802), ("t", 114), ("f", 701), ("a", 1007), ("n", 1700)];
    let columns = types.map(|(name, type_oid)| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        in_identity: true,
    });
    let relation = Relation {
        replica_identity: ReplicaIdentity::Full,
        columns: columns.into(),
        ..(*shape(ReplicaIdentity::Full, &["id"]).relation).clone()
    };
    let key = ["id".to_owned()];
    let shape =
        TableShape::new(Arc::new(relation), "app.t".into(), &key, &TypeKinds::new()).unwrap();
    let row = |nth: usize, value: Option<&str>| {
        let mut row = [Datum::Null; 6];
        row[0] = Datum::Text(b"1");
        row[nth] = value.map_or(Datum::Null, |it| Datum::Text(it.as_bytes()));
        Tuple::from_datums(row)
    };
    let cases = [
        (1, None, Some("null"), true),
        (1, Some("null"), None, true),
        (1, None, None, false),
        (1, Some("null"), Some("null"), false),
        (1, Some("null"), Some("1"), false),
        (1, Some(r#"{"a": null}"#), Some(r#"{"a": null}"#), false),
        (2, Some(" null"), None, true),
        (2, Some("{}"), Some("{}\n"), true),
        (2, Some("{}"), Some("{ }"), false),
        (3, Some("0"), Some("-0"), true),
        (3, Some("0"), Some("1"), false),
        (4, Some("{1,2}"), Some("[0:1]={1,2}"), true),
        (4, Some("{1,2}"), Some("{1,3}"), false),
        (5, Some("1.0"), Some("1.00"), false),
    ];
    for (nth, before, after, unseen) in cases {
        let old = OldRow::Full(row(nth, before));
        let found = records(&shape, &update(&shape, Some(old), row(nth, after)));
        let said = unseen.then(|| (UNSEEN_HEADER, json!(true)));
        assert_eq!(found[0].2, said, "{nth}: {before:?} {after:?}");
        assert!(!unseen || found[0].1["before"] == found[0].1["after"], "it can be seen");
    }
}

#[test]
fn keys_are_the_primary_key_or_the_identity_index_or_none() {
    use ReplicaIdentity::*;
    let cases: &[(ReplicaIdentity, &[&str], &[usize])] = &[
        (Default, &["id"], &[0]),
        (Default, &["v", "id"], &[2, 0]),
        (Default, &[], &[]),
        (Index, &[], &[1]),
        (Index, &["k"], &[1]),
        // An old row would not have the primary key, so that no delete could name it.
        (Index, &["id"], &[1]),
        (Full, &["id"], &[0]),
        (Full, &[], &[]),
        (Nothing, &["id"], &[0]),
        (Nothing, &[], &[]),
        (Full, &["id", "not published"], &[]),
    ];
    for &(identity, primary_key, expected) in cases {
        let shape = shape(identity, primary_key);
        assert_eq!(shape.key_columns, expected, "{identity:?} {primary_key:?}");
    }
}

#[test]
fn without_a_key_there_are_no_tombstones() {
    let shape = shape(ReplicaIdentity::Full, &[]);
    let change = delete(&shape, OldRow::Full(full_row(1, None)));
    let value = envelope("d", model(1, Value::Null), Value::Null);
    assert_eq!(records(&shape, &change), [(json!("absent"), value, None)]);
}

#[test]
fn a_truncation_has_a_key_where_rows_have_one() {
    let truncate = |shape: &TableShape| Change::Truncate {
        relations: vec![Arc::clone(&shape.relation)],
        cascade: false,
        restart_identity: false,
    };
    let value = envelope("t", Value::Null, Value::Null);
    let keyed = shape(ReplicaIdentity::Default, &["id"]);
    let key = json!({"__onelog": {"op": "t"}});
    assert_eq!(records(&keyed, &truncate(&keyed)), [(key, value.clone(), None)]);
    let unkeyed = shape(ReplicaIdentity::Full, &[]);
    assert_eq!(records(&unkeyed, &truncate(&unkeyed)), [(json!("absent"), value, None)]);
}

#[test]
fn a_change_of_another_shape_is_refused() {
    let (one, other) = (shape(ReplicaIdentity::Full, &[]), shape(ReplicaIdentity::Index, &[]));
    let mut writer = EnvelopeWriter::new(&source());
    writer.begin(&transaction());
    let stale = Some(EnvelopeError::StaleShape { id: RelationId(16_400) });
    assert_eq!(writer.write(&one, &insert(&other, full_row(1, None)), NOW).err(), stale);
    let short = insert(&one, Tuple::from_datums([Datum::Null]));
    assert_eq!(writer.write(&one, &short, NOW).err(), stale);
    let bad = insert(&one, full_row(1, Some(Datum::Text(b"\xFF"))));
    assert!(matches!(writer.write(&one, &bad, NOW).err(), Some(EnvelopeError::Value { .. })));
    assert_eq!(writer.write(&one, &insert(&one, full_row(1, None)), NOW).unwrap().count(), 1);
}

#[test]
fn messages_and_copied_rows() {
    let mut writer = EnvelopeWriter::new(&source());
    let it = LogicalMessage {
        transactional: false,
        lsn: Lsn(1),
        prefix: "p\"".to_owned(),
        content: Bytes::from_static(b"foo"),
    };
    let (key, value, None) = parse(writer.write_message("app.message", &it, NOW)) else { panic!() };
    assert_eq!(key, json!({"prefix": "p\""}));
    assert_eq!(value["message"], json!({"prefix": "p\"", "content": "Zm9v"}));
    let source = &value["source"];
    assert_eq!(
        [&value["op"], &source["txId"], &source["table"]],
        [&json!("m"), &json!(null), &json!("")]
    );
    assert_eq!(source["sequence"], json!("[null,\"4294967312\"]"));

    let shape = shape(ReplicaIdentity::Default, &["id"]);
    writer.begin_copy(&transaction());
    let copied: Vec<_> =
        writer.write_read(&shape, &full_row(1, None), NOW).unwrap().map(parse).collect();
    let mut expected = envelope("r", Value::Null, model(1, Value::Null));
    expected["source"]["snapshot"] = json!("incremental");
    assert_eq!(copied, [(json!({"id": 1}), expected, None)]);
}

#[test]
fn headers_are_text() {
    let headers = transaction_headers(&source(), &transaction());
    let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let expected = [
        "source-lsn=1/100",
        "source-txid=25474836480",
        "source-timeline=3",
        "source-system=18446744073709551615",
        "correlation-id=c-1",
    ];
    assert_eq!(headers, expected);
}

/// A change of one row, and the records it is.
fn case(shape: &TableShape, op: u8, ids: (i64, i64), texts: [&Option<String>; 2]) -> Case {
    let full = shape.relation.replica_identity == ReplicaIdentity::Full;
    let row =
        |id, v: &Option<String>| full_row(id, v.as_deref().map(|it| Datum::Text(it.as_bytes())));
    let (old, before) = if full {
        (OldRow::Full(row(ids.0, texts[0])), model(ids.0, json!(texts[0])))
    } else {
        let id = ids.0.to_string();
        let key = [Datum::Text(id.as_bytes()), Datum::Null, Datum::Null, Datum::Null];
        let before = json!({"id": ids.0, "k": null, "v": null, "ts": null});
        (OldRow::Identity(Tuple::from_datums(key)), before)
    };
    let (new, after) = (row(ids.1, texts[1]), model(ids.1, json!(texts[1])));
    let (old_key, new_key) = (json!({"id": ids.0}), json!({"id": ids.1}));
    let tombstone = json!("absent");
    match op {
        0 => (insert(shape, new), vec![(new_key, envelope("c", Value::Null, after))]),
        1 => {
            let gone = envelope("d", before, Value::Null);
            (delete(shape, old), vec![(old_key.clone(), gone), (old_key, tombstone)])
        }
        _ if ids.0 == ids.1 => {
            (update(shape, Some(old), new), vec![(new_key, envelope("u", before, after))])
        }
        _ => {
            let gone = envelope("d", before, Value::Null);
            let come = envelope("c", Value::Null, after);
            let records = vec![(old_key.clone(), gone), (old_key, tombstone), (new_key, come)];
            (update(shape, Some(old), new), records)
        }
    }
}

type Case = (Change, Vec<(Value, Value)>);

proptest! {
    #[test]
    fn rows_are_what_the_model_says(
        ids: (i64, i64), same: bool, images: (Option<String>, Option<String>), full: bool,
        op in 0u8..3,
    ) {
        let identity = if full { ReplicaIdentity::Full } else { ReplicaIdentity::Default };
        let shape = shape(identity, &["id"]);
        let ids = if same { (ids.0, ids.0) } else { ids };
        let (change, expected) = case(&shape, op, ids, [&images.0, &images.1]);
        let found: Vec<_> =
            records(&shape, &change).into_iter().map(|it| (it.0, it.1)).collect();
        prop_assert_eq!(found, expected);
    }
}

/// `CARGO_PROFILE_DEV_OPT_LEVEL=3 cargo test --lib envelope -- --ignored --nocapture`
#[test]
#[ignore = "measures; goal: less than 1 µs for each row"]
fn speed() {
    let shape = shape(ReplicaIdentity::Default, &["id"]);
    let body = b"I\0\0@\x10N\0\x04t\0\0\0\x06123456t\0\0\0\x03789\
        t\0\0\0\x26value-0123456789abcdef0123456789abcdef\
        t\0\0\0\x1D2026-01-02 03:04:05.678901+00";
    let body = bytes::Bytes::from_static(body);
    let mut writer = EnvelopeWriter::new(&source());
    writer.begin(&transaction());
    let rows = 1_000_000u32;
    let (mut bytes, mut best) = (0, f64::MAX);
    for _ in 0..5 {
        let start = std::time::Instant::now();
        for _ in 0..rows {
            let decoded = crate::postgres::pgoutput::decode(body.clone()).unwrap();
            let crate::postgres::pgoutput::Message::Insert { new, .. } = decoded else { panic!() };
            let change = Change::Insert { relation: Arc::clone(&shape.relation), new };
            for record in writer.write(&shape, &change, NOW).unwrap() {
                bytes += record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len);
            }
        }
        best = best.min(start.elapsed().as_secs_f64() * 1e6 / f64::from(rows));
    }
    println!("{best:.3} µs per row, decoding included; {} bytes per row", bytes / 5_000_000);
}
