//! Topics against a real broker: what is declared of them is what they become, and what differs is
//! told with its cure.
#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};
use support::log::{Found, read};
use support::server;
use support::world::{PATIENCE, Wishes, World};
use tokio_postgres::Client;

/// Also of what no COMMIT has flushed.
const WAL_END: &str = "pg_current_wal_insert_lsn()";

/// A world without mappings, with these tables and more lines in its config.
async fn world(name: &str, sql: &str, more: &str) -> World {
    let wishes = Wishes { instead: Some(sql), kafka: more, ..Wishes::default() };
    World::new(name, wishes).await
}

/// A topic's settings as the broker has them; None: there is no such topic.
async fn settings(topic: &str) -> Option<BTreeMap<String, String>> {
    let mut config = ClientConfig::new();
    let brokers = server("ONELOG_TEST_KAFKA");
    let admin: AdminClient<DefaultClientContext> =
        config.set("bootstrap.servers", brokers).create().unwrap();
    let options = AdminOptions::new().request_timeout(Some(PATIENCE));
    let described = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &options).await;
    let described = described.unwrap().pop().unwrap().ok()?;
    let entries = described.entries.into_iter();
    Some(entries.filter_map(|it| Some((it.name, it.value?))).collect())
}

/// `name=value`, of these settings.
async fn shown(topic: &str, names: &[&str]) -> String {
    let all = settings(topic).await.unwrap_or_default();
    let show = |name: &&str| format!("{name}={}", all.get(*name).map_or("?", |it| it));
    names.iter().map(show).collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_of_their_kinds_and_a_drift_is_told() {
    let tables = "CREATE TABLE item (id int PRIMARY KEY); CREATE TABLE fact (id int PRIMARY KEY)";
    let name = format!("topics_kinds_{}", std::process::id());
    let declared =
        |topic: &str, rest: &str| format!("[[topics]]\nname = \"{name}.{topic}\"\n{rest}\n");
    let more = [
        "[outbox]\nallow_null_key = true\ntopic = \"{topic_prefix}.event.{aggregatetype}\"\n"
            .to_owned(),
        declared("event.state-*", "kind = \"entity\""),
        declared("public.fact", "kind = \"event\"\npartitions = 2"),
        declared("remind", "kind = \"command\""),
        declared("ask", "kind = \"request\"\nretention = \"2h\"\npartitions = 3"),
    ];
    let world = world("topics_kinds", tables, &more.concat()).await;
    assert_eq!(world.name, name);
    let said = world.onelog(&["prepare"]);
    assert!(said.contains(&format!("Created topic {name}.remind.")), "{said}");

    let of = |topic: &str| format!("{name}.{topic}");
    let policy = ["cleanup.policy", "retention.ms", "message.timestamp.type"];
    let cases = [
        (
            "remind",
            "cleanup.policy=delete retention.ms=604800000 message.timestamp.type=CreateTime",
        ),
        ("ask", "cleanup.policy=delete retention.ms=7200000 message.timestamp.type=CreateTime"),
        (
            "public.fact",
            "cleanup.policy=delete retention.ms=-1 message.timestamp.type=LogAppendTime",
        ),
    ];
    for (topic, expected) in cases {
        assert_eq!(shown(&of(topic), &policy).await, expected, "{topic}");
    }
    let compacted = ["cleanup.policy", "min.compaction.lag.ms", "message.timestamp.type"];
    let entity = "cleanup.policy=compact min.compaction.lag.ms=604800000 \
                  message.timestamp.type=LogAppendTime";
    assert_eq!(shown(&of("public.item"), &compacted).await, entity);

    // One that a pattern declares is made when its first event comes; it takes none without a key.
    let daemon = world.start_capture();
    let (client, _connection) = world.client().await;
    let emit = |key: &str, payload: &str| {
        let json = format!(
            r#"{{"aggregatetype": "state-cart", "aggregateid": {key}, "payload": {payload}}}"#
        );
        format!("SELECT pg_logical_emit_message(true, 'onelog.outbox', '{json}')")
    };
    for sql in [emit("\"k\"", "1"), emit("null", "2"), emit("\"k\"", "3")] {
        client.batch_execute(&sql).await.unwrap();
    }
    world.confirmed_to(WAL_END).await;
    let state = of("event.state-cart");
    assert_eq!(shown(&state, &compacted).await, entity);
    let keys: Vec<_> = read(&state).into_iter().map(|it| (it.key, it.value)).collect();
    let record = |value: &str| (Some("k".to_owned()), Some(value.to_owned()));
    assert_eq!(keys, [record("1"), record("3")]);
    let dead = read(&of("onelog.dead-letter"));
    let reason = dead[0].header("reason").unwrap();
    assert!(dead.len() == 1 && reason.contains("is compacted, which takes no record"), "{dead:?}");
    assert!(daemon.stop().await.success());

    drift_is_told(&world, &of("ask")).await;
}

async fn drift_is_told(world: &World, ask: &str) {
    // What differs is told, and left alone.
    let text = std::fs::read_to_string(&world.config).unwrap();
    let text = text.replace("2h", "3h").replace("partitions = 3", "partitions = 4");
    std::fs::write(&world.config, text).unwrap();
    let said = world.onelog(&["check"]);
    let expected = format!(
        "warning  topic {0}: retention.ms is \"7200000\", not \"10800000\", it has 3 partitions, not \
         4; cure: kafka-configs.sh",
        ask
    );
    assert!(said.contains(&expected), "{said}");
    assert!(shown(ask, &["retention.ms"]).await.ends_with("=7200000"));
}

const ORDERS: &str = "\
    CREATE TYPE mood AS ENUM ('ok', 'bad'); \
    CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric(30, 2), flag bool, \
                         day date, feeling mood, secret text); \
    ALTER TABLE orders REPLICA IDENTITY FULL";

/// What a reader of a keyed topic of envelopes ends up with: the rows by their key's text.
fn rows(records: &[Found]) -> BTreeMap<String, Value> {
    let mut rows = BTreeMap::new();
    for record in records {
        let key = record.key.clone().expect("a key");
        match &record.value {
            None => rows.remove(&key),
            Some(_) if record.json()["after"].is_null() => rows.remove(&key),
            Some(_) => rows.insert(key, record.json()["after"].clone()),
        };
    }
    rows
}

/// Random changes of rows, some of them of keys, beside what Postgres itself says passes the
/// filter: the topic ends up with just these rows, and of them with just the listed columns.
#[tokio::test(flavor = "multi_thread")]
async fn an_extract_has_the_rows_that_postgres_says_pass() {
    let filter = "status IN ('open', 'paid') AND NOT (total < 10.5 OR feeling = 'bad') \
                  AND (day >= '2026-01-01' OR flag)";
    let name = format!("topics_extract_{}", std::process::id());
    let more = format!(
        "[[topics]]\nname = \"{name}.some\"\nkind = \"entity\"\ntable = \"public.orders\"\n\
         columns = [\"id\", \"status\", \"total\"]\nwhere = \"{filter}\"\n"
    );
    let world = world("topics_extract", ORDERS, &more).await;
    let (client, _connection) = world.client().await;

    refused_without_old_rows(&world, &client).await;
    world.onelog(&["prepare"]);
    let daemon = world.start_capture();

    let value = |list: &str| format!("(ARRAY[{list}])[1 + floor(random() * 4)::int]");
    let (status, total) = (value("'open', 'paid', 'shut', NULL"), value("10.5, 10.49, 99, NULL"));
    let (flag, feeling) = (value("true, false, NULL, true"), value("'ok', 'bad', NULL, 'ok'"));
    let day = value("'2025-12-31', '2026-01-01', NULL, '2027-01-01'");
    let row = format!("{status}, {total}, {flag}, {day}::date, {feeling}::mood, 's'");
    let rewrite = format!(
        "UPDATE orders SET (status, total, flag, day, feeling, secret) = (SELECT {row} WHERE id > 0) \
         WHERE random() < 0.3"
    );
    let insert = format!("INSERT INTO orders SELECT n, {row} FROM generate_series(1, 200) n");
    client.batch_execute(&insert).await.unwrap();
    for _ in 0..10 {
        client.batch_execute(&rewrite).await.unwrap();
        let others = "DELETE FROM orders WHERE random() < 0.02; \
                      UPDATE orders SET id = id + 1000 WHERE random() < 0.05 AND id < 1000";
        client.batch_execute(others).await.unwrap();
    }
    world.confirmed_to(WAL_END).await;

    let passing = format!(
        "SELECT jsonb_build_object('id', id)::text, jsonb_build_object('id', id, 'status', status, \
         'total', total)::text FROM orders WHERE {filter}"
    );
    let expected: BTreeMap<String, Value> = client
        .query(&passing, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get::<_, String>(0).replace(' ', ""), row.get::<_, String>(1)))
        .map(|(key, row)| (key, serde_json::from_str(&row).unwrap()))
        .collect();
    assert!(!expected.is_empty());
    let records = read(&format!("{name}.some"));
    assert_eq!(rows(&records), expected);
    let own = read(&format!("{name}.public.orders"));
    let everyone: i64 = client.query_one("SELECT count(*) FROM orders", &[]).await.unwrap().get(0);
    assert_eq!(rows(&own).len(), usize::try_from(everyone).unwrap(), "its own topic is whole");
    enters_and_leaves(&records);

    // A copy fills it too, with the rows that pass.
    let before = records.len();
    world.onelog(&["copy", "public.orders"]);
    world.confirmed_to(WAL_END).await;
    let records = read(&format!("{name}.some"));
    let copied = records[before..].iter().filter(|it| it.json()["op"] == "r").count();
    assert_eq!(copied, expected.len());
    assert_eq!(rows(&records), expected);
    assert!(daemon.stop().await.success());
}

fn enters_and_leaves(records: &[Found]) {
    // What enters is a c and what leaves is a d: nobody sees a u of a row that was not there.
    let mut there = std::collections::BTreeSet::new();
    for record in records.iter().filter(|it| it.value.is_some()) {
        let key = record.key.clone().unwrap();
        let was_there = match record.json()["op"].as_str().unwrap() {
            "c" => there.insert(key),
            "d" => there.remove(&key),
            _ => there.contains(&key),
        };
        assert!(was_there, "{record:?}");
        assert!(!record.value.as_deref().unwrap().contains("secret"), "{record:?}");
    }
}

async fn refused_without_old_rows(world: &World, client: &Client) {
    // The catalog is held against the filter before anything is published.
    client.batch_execute("ALTER TABLE orders REPLICA IDENTITY DEFAULT").await.unwrap();
    let output = support::daemon::onelog(&["prepare", "--config", &world.config.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let cure = "run: ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY FULL;";
    assert!(!output.status.success() && said.contains(cure), "{said}");
    client.batch_execute("ALTER TABLE orders REPLICA IDENTITY FULL").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flat_topic_has_rows_and_tombstones_and_cloud_events_their_attributes() {
    let name = format!("topics_flat_{}", std::process::id());
    let more = format!(
        "[outbox]\ntopic = \"{{topic_prefix}}.event.{{aggregatetype}}\"\n\
         [[topics]]\nname = \"{name}.flat\"\nkind = \"entity\"\ntable = \"public.item\"\n\
         format = \"flat\"\ncloudevents = true\n\
         [[topics]]\nname = \"{name}.public.own\"\nkind = \"entity\"\nformat = \"flat\"\n\
         [[topics]]\nname = \"{name}.event.*\"\nkind = \"event\"\ncloudevents = true\n"
    );
    let tables = "CREATE TABLE item (id int PRIMARY KEY, name text); \
                  CREATE TABLE own (id int PRIMARY KEY)";
    let world = world("topics_flat", tables, &more).await;
    world.onelog(&["prepare"]);
    let (client, _connection) = world.client().await;
    let daemon = world.start_capture();
    for sql in [
        "INSERT INTO item VALUES (1, 'a'), (2, 'b')",
        "UPDATE item SET name = 'A' WHERE id = 1",
        "UPDATE item SET id = 3 WHERE id = 2",
        "DELETE FROM item WHERE id = 3",
        "TRUNCATE item",
        "INSERT INTO own VALUES (7)",
        "SELECT pg_logical_emit_message(true, 'onelog.outbox', '{\"id\": \"e1\", \
         \"aggregatetype\": \"order\", \"aggregateid\": \"o7\", \"type\": \"Paid\", \"payload\": {}}')",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    world.confirmed_to(WAL_END).await;
    assert!(daemon.stop().await.success());

    let flat = read(&format!("{name}.flat"));
    let line = |it: &Found| {
        format!("{} {}", it.key.as_deref().unwrap(), it.value.as_deref().unwrap_or("-"))
    };
    let found: Vec<String> = flat.iter().map(line).collect();
    let expected = [
        r#"{"id":1} {"id":1,"name":"a"}"#,
        r#"{"id":2} {"id":2,"name":"b"}"#,
        r#"{"id":1} {"id":1,"name":"A"}"#,
        r#"{"id":2} -"#,
        r#"{"id":3} {"id":3,"name":"b"}"#,
        r#"{"id":3} -"#,
    ];
    assert_eq!(found, expected);
    let types: Vec<_> = flat.iter().map(|it| it.header("ce_type").unwrap()).collect();
    let (created, updated) = ("onelog.row.created", "onelog.row.updated");
    assert_eq!(types, [created, created, updated, updated, updated, "onelog.row.deleted"]);
    let ids: std::collections::BTreeSet<_> = flat.iter().map(|it| it.header("ce_id")).collect();
    assert_eq!(ids.len(), flat.len(), "each event has a name of its own");
    let first = |header| flat[0].header(header).unwrap().to_owned();
    assert_eq!(first("ce_source"), format!("/onelog/{name}/public.item"));
    assert_eq!(
        (first("ce_specversion"), first("ce_subject")),
        ("1.0".into(), r#"{"id":1}"#.into())
    );
    assert!(first("ce_time").ends_with('Z') && first("content-type") == "application/json");

    let own: Vec<String> = read(&format!("{name}.public.own")).iter().map(line).collect();
    assert_eq!(own, [r#"{"id":7} {"id":7}"#], "instead of the envelope");
    let event = &read(&format!("{name}.event.order"))[0];
    let said =
        ["ce_id", "ce_type", "ce_subject", "content-type"].map(|it| event.header(it).unwrap());
    assert_eq!(said, ["e1", "Paid", "o7", "application/json"]);

    a_mapping_of_it_is_refused(&world);
}

fn a_mapping_of_it_is_refused(world: &World) {
    // A mapping that reads a table whose own topic is no envelope is told so.
    let mapping =
        "[[denormalization]]\ncollection = \"c\"\nkey = \"id\"\nsql = \"SELECT id FROM own\"\n";
    std::fs::write(world.mappings.join("c.toml"), mapping).unwrap();
    let output = support::daemon::onelog(&["check", "--config", &world.config.to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("reads table public.own, whose topic is not written as \"json\""),
        "{said}"
    );
}

/// Every record through Kafka's own JsonConverter: what it makes of them is what Postgres has.
#[tokio::test(flavor = "multi_thread")]
async fn kafkas_json_converter_reads_what_has_a_schema() {
    let tables = "CREATE TABLE kinds (id bigint PRIMARY KEY, s smallint, i int, f real, d float8, \
                  n numeric, b bool, t text, u uuid, j jsonb, a int[], z timestamptz)";
    let name = format!("topics_schema_{}", std::process::id());
    let more = format!(
        "[[topics]]\nname = \"{name}.typed\"\nkind = \"entity\"\ntable = \"public.kinds\"\n\
         format = \"json-with-schema\"\n"
    );
    let world = world("topics_schema", tables, &more).await;
    world.onelog(&["prepare"]);
    let (client, _connection) = world.client().await;
    let daemon = world.start_capture();
    for sql in [
        "INSERT INTO kinds VALUES (9007199254740993, -7, 70000, 0.5, 1e20, 12345678901234567890.10, \
         true, 'a\"b', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{\"k\": [1, null]}', '{{1},{2}}', \
         '2026-01-02 03:04:05+00')",
        "INSERT INTO kinds (id, d, n) VALUES (2, 'NaN', 'NaN')",
        "DELETE FROM kinds WHERE id = 2",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    world.confirmed_to(WAL_END).await;
    assert!(daemon.stop().await.success());

    let records = read(&format!("{name}.typed"));
    let mut lines = String::new();
    for it in &records {
        let value = it.value.as_deref().unwrap_or("");
        lines.push_str(&format!("{}\t{value}\n", it.key.as_deref().unwrap()));
    }
    let found = converted(&world, &lines);
    let first = "Struct{id=9007199254740993}";
    let row = "Struct{id=INT64 9007199254740993, s=INT16 -7, i=INT32 70000, f=FLOAT32 0.5, \
               d=FLOAT64 1.0E20, n=STRING 12345678901234567890.10, b=BOOLEAN true, t=STRING a\"b, \
               u=STRING io.debezium.data.Uuid a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11, \
               j=STRING io.debezium.data.Json {\"k\": [1, null]}, \
               a=STRING io.debezium.data.Json [[1],[2]], \
               z=STRING io.debezium.time.ZonedTimestamp 2026-01-02T03:04:05+00:00}";
    assert_eq!(found[0], format!("{first} {name}.typed.Envelope c null {row}"));
    assert!(found[1].ends_with(" null Struct{id=INT64 2, n=STRING NaN}"), "{}", found[1]);
    assert!(found[2].ends_with(" d Struct{id=INT64 2} null"), "{}", found[2]);
    assert_eq!(found[3], "Struct{id=2} null");
    assert_eq!(json!(records[0].json()["payload"]["op"]), json!("c"));
}

/// What JsonConverter makes of lines of a key and a value, each shown as one line.
fn converted(world: &World, lines: &str) -> Vec<String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/topics/Convert.java");
    let input = world.folder.path().join("records.tsv");
    std::fs::write(&input, lines).unwrap();
    let libs = Path::new(&server("ONELOG_TEST_KAFKA_LIBS")).join("*");
    let output = Command::new(server("ONELOG_TEST_JAVA"))
        .arg("-cp")
        .arg(libs)
        .args([program, input])
        .output()
        .expect("java runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said.lines().map(str::to_owned).collect()
}
