//! What Postgres' own pgoutput sends, decoded, assembled and written as records.
//!
//! The messages are taken by SQL from a temporary slot, so that nothing but the pure code is
//! tested: `pgoutput::decode`, `Assembler`, `EnvelopeWriter`.

#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

use std::sync::Arc;

use bytes::Bytes;
use onelog::change::{Change, Step};
use onelog::kafka::envelope::{
    ChangeAt, EnvelopeWriter, SourceContext, TableShape, TransactionContext,
};
use onelog::lsn::Lsn;
use onelog::postgres::assemble::Assembler;
use onelog::postgres::pgoutput::decode;
use onelog::postgres::text::{TYPE_ROWS_SQL, TypeKinds, TypeRow};
use onelog::relation::Relation;
use serde_json::{Value, json};
use tokio_postgres::{Client, NoTls};

const SETUP: &str = r#"
SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET extra_float_digits = 1;
DROP SCHEMA IF EXISTS decode_test CASCADE; CREATE SCHEMA decode_test;
SET search_path = decode_test;
DROP PUBLICATION IF EXISTS decode_test;
CREATE TYPE mood AS ENUM ('fine', 'bad');
CREATE TABLE by_key (id bigint PRIMARY KEY, mood mood, note text, at timestamptz, list int[]);
ALTER TABLE by_key ALTER note SET STORAGE EXTERNAL;
CREATE TABLE by_row (id int PRIMARY KEY, note text);
ALTER TABLE by_row REPLICA IDENTITY FULL;
ALTER TABLE by_row ALTER note SET STORAGE EXTERNAL;
CREATE PUBLICATION decode_test FOR TABLE by_key, by_row;
"#;

const CHANGES: &str = r#"
INSERT INTO by_key VALUES (1, 'fine', repeat('x', 9000), '2024-02-29 12:00:00', '{1,NULL}');
BEGIN; UPDATE by_key SET mood = 'bad'; UPDATE by_key SET id = 2, note = 'short'; COMMIT;
DELETE FROM by_key;
SELECT pg_logical_emit_message(true, 'onelog.context', '{}');
SELECT pg_logical_emit_message(false, 'loose', 'foo');
INSERT INTO by_row VALUES (1, repeat('y', 9000));
ALTER TABLE by_row ADD COLUMN flag bool DEFAULT true;
UPDATE by_row SET flag = false;
TRUNCATE by_key, by_row;
"#;

async fn shape(client: &Client, relation: &Arc<Relation>) -> TableShape {
    let oids: Vec<String> = relation.columns.iter().map(|it| it.type_oid.to_string()).collect();
    let rows = client.query(TYPE_ROWS_SQL, &[&format!("{{{}}}", oids.join(","))]).await.unwrap();
    let rows: Vec<TypeRow> = rows
        .iter()
        .map(|row| {
            let columns: Vec<Option<&str>> = (0..row.len()).map(|nth| row.get(nth)).collect();
            TypeRow::from_columns(&columns).unwrap()
        })
        .collect();
    let mut kinds = TypeKinds::new();
    kinds.add_rows(&rows).unwrap();
    let topic = format!("app.{}", relation.qualified_name());
    TableShape::new(Arc::clone(relation), topic.into(), &["id".to_owned()], &kinds).unwrap()
}

fn short(value: &Value) -> String {
    value.to_string().replace(&"x".repeat(9000), "XX").replace(&"y".repeat(9000), "YY")
}

/// `table op key before after`, one line for each record.
async fn lines(client: &Client, writer: &mut EnvelopeWriter, change: &Change) -> Vec<String> {
    let at = ChangeAt { lsn: Lsn(1), now_us: 1 };
    let parse = |it: Option<&[u8]>| it.map_or(json!(""), |it| serde_json::from_slice(it).unwrap());
    let relations = match change {
        Change::Insert { relation, .. }
        | Change::Update { relation, .. }
        | Change::Delete { relation, .. } => std::slice::from_ref(relation),
        Change::Truncate { relations, .. } => relations,
    };
    let mut lines = Vec::new();
    for relation in relations {
        let shape = shape(client, relation).await;
        for record in writer.write(&shape, change, at).unwrap() {
            let (key, value) = (parse(record.key), parse(record.value));
            let parts = ["op", "before", "after"].map(|it| short(&value[it]));
            let line = format!("{} {key} {}", relation.name, parts.join(" "));
            lines.push(if value == json!("") { format!("{} {key}", relation.name) } else { line });
        }
    }
    lines
}

#[tokio::test]
async fn real_messages_become_records() {
    let url = std::env::var("ONELOG_TEST_POSTGRES")
        .expect("ONELOG_TEST_POSTGRES is not set: run make test");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(async move { connection.await.unwrap() });
    client.batch_execute(SETUP).await.unwrap();
    let slot = "SELECT pg_create_logical_replication_slot('decode_test', 'pgoutput', true)";
    client.batch_execute(slot).await.unwrap();
    for statement in CHANGES.split('\n') {
        client.batch_execute(statement).await.unwrap();
    }
    let sql = "SELECT data FROM pg_logical_slot_get_binary_changes('decode_test', NULL, NULL,
        'proto_version', '1', 'publication_names', 'decode_test', 'messages', 'true')";
    let messages = client.query(sql, &[]).await.unwrap();
    let (name, db) = ("app".to_owned(), "postgres".to_owned());
    let mut writer = EnvelopeWriter::new(&SourceContext { name, db, timeline: 1, system_id: 1 });
    let (mut assembler, mut found) = (Assembler::new(), Vec::new());
    for message in messages {
        let message = decode(Bytes::copy_from_slice(message.get(0))).unwrap();
        match assembler.push(message).unwrap() {
            Some(Step::Begin(begin)) => writer.begin(&TransactionContext {
                final_lsn: begin.final_lsn,
                last_commit_lsn: None,
                commit_time_us: begin.commit_time_us,
                xid: begin.xid,
                xid_wide: u64::from(begin.xid),
                correlation: Vec::new(),
            }),
            Some(Step::Change(change)) => found.extend(lines(&client, &mut writer, &change).await),
            Some(Step::Message(it)) => {
                let record = writer.write_message("m", &it, ChangeAt { lsn: Lsn(1), now_us: 1 });
                let value: Value = serde_json::from_slice(record.value.unwrap()).unwrap();
                found.push(format!("m {}", short(&value["message"])));
            }
            Some(Step::Commit(_)) | None => {}
            Some(Step::Keepalive { .. }) => panic!("pgoutput has no keepalives"),
        }
    }
    let expected = r#"
by_key {"id":1} "c" null {"id":1,"mood":"fine","note":"XX","at":"2024-02-29T12:00:00+00:00","list":[1,null]}
by_key {"id":1} "u" null {"id":1,"mood":"bad","note":"__debezium_unavailable_value","at":"2024-02-29T12:00:00+00:00","list":[1,null]}
by_key {"id":1} "d" {"id":1,"mood":null,"note":null,"at":null,"list":null} null
by_key {"id":1}
by_key {"id":2} "c" null {"id":2,"mood":"bad","note":"short","at":"2024-02-29T12:00:00+00:00","list":[1,null]}
by_key {"id":2} "d" {"id":2,"mood":null,"note":null,"at":null,"list":null} null
by_key {"id":2}
m {"prefix":"onelog.context","content":"e30="}
m {"prefix":"loose","content":"Zm9v"}
by_row {"id":1} "c" null {"id":1,"note":"YY"}
by_row {"id":1} "u" {"id":1,"note":"YY","flag":true} {"id":1,"note":"YY","flag":false}
by_key {"__onelog":{"op":"t"}} "t" null null
by_row {"__onelog":{"op":"t"}} "t" null null"#;
    assert_eq!(format!("\n{}", found.join("\n")), expected);
    client
        .batch_execute("DROP SCHEMA decode_test CASCADE; DROP PUBLICATION decode_test")
        .await
        .unwrap();
}
