//! The outbox against real servers: events of rows and of messages reach their topics in order,
//! with their transaction's headers, through kills; what is none is a dead letter; what was
//! published is cleaned up, and nothing else.
#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use onelog::config::file::load;
use onelog::postgres::cleanup::{CleanupError, clean_batch};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use support::log::{Found, read};
use support::world::{PATIENCE, Wishes, World, psql_path};
use support::{eventually, server};
use tokio::task::JoinSet;

/// Also of what no COMMIT has flushed.
const WAL_END: &str = "pg_current_wal_insert_lsn()";

/// A world with an outbox table, the functions, a table of the application, and no mappings.
async fn world(name: &str, more: &str) -> World {
    let outbox = format!(
        "[outbox]\ntables = [\"public.outbox\"]\ntopic = \"{{topic_prefix}}.event.{{aggregatetype}}\"\n{more}"
    );
    let setup = "CREATE TABLE item (id int PRIMARY KEY, tx text); \
                 CREATE TABLE shop_order (id text PRIMARY KEY, total numeric(12,2))";
    let wishes =
        Wishes { instead: Some(setup), tables: "public.*", kafka: &outbox, ..Wishes::default() };
    let world = World::new(name, wishes).await;
    // Twice: a migration may be run again.
    for file in ["0002_onelog_outbox.sql", "0003_onelog_functions.sql"].repeat(2) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(file);
        let mut psql = Command::new(psql_path());
        let output = psql.args(["-X", "-q", "-f"]).arg(path).arg(&world.database_url).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    world.onelog(&["prepare"]);
    world
}

/// `key value type correlation-id`, a line for each record of the event topic.
fn lines(topic: &str) -> Vec<String> {
    let show = |it: &Found| {
        let text = |it: Option<&str>| it.unwrap_or("-").to_owned();
        let parts = [
            text(it.key.as_deref()),
            text(it.value.as_deref()),
            text(it.header("type")),
            text(it.header("correlation-id")),
        ];
        parts.join(" ")
    };
    read(topic).iter().map(show).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_and_messages_reach_their_topics_with_their_headers() {
    let world = world("outbox_way", "header_columns = [\"created_at:made\"]\n").await;
    let (client, _connection) = world.client().await;
    let daemon = world.start_capture();
    for sql in [
        // The row is gone at once, the event is not; jsonb stays as it is.
        "BEGIN; SELECT onelog.context('c1', '00-a-b-01', headers => '{\"tenant\": 7}'); \
         INSERT INTO item VALUES (1, 'c1'); \
         INSERT INTO outbox (aggregatetype, aggregateid, type, payload, headers) \
         VALUES ('order', 'k', 'Placed', '{\"n\": 1.00, \"s\": \"\\\"x\\\"\"}', '{\"tenant\": \"row\"}'); \
         DELETE FROM outbox; COMMIT",
        "BEGIN; SELECT onelog.emit('order', 'k', 'Paid', '[2]'); ROLLBACK",
        // A context that comes late is of what follows it.
        "BEGIN; SELECT onelog.emit('order', 'k', 'Paid', '[3]'); SELECT onelog.context('c3'); \
         SELECT onelog.emit('order', 'k', 'Paid', '[4]'); \
         SELECT onelog.context(traceparent => 'tp'); \
         SELECT onelog.emit('order', 'k', 'Paid', '[5]'); COMMIT",
        // And of its own transaction alone.
        "SELECT onelog.emit('order', 'k', 'Shipped', NULL)",
        "INSERT INTO outbox (id, aggregatetype, aggregateid, type) \
         VALUES ('00000000-0000-0000-0000-000000000001', 'order', 'k', 'Late')",
        "UPDATE outbox SET payload = '0'",
        "SELECT pg_logical_emit_message(true, 'onelog.context', 'no json')",
    ] {
        client.batch_execute(sql).await.unwrap();
    }
    world.confirmed_to(WAL_END).await;
    let topic = format!("{}.event.order", world.name);
    assert_eq!(
        lines(&topic),
        [
            r#"k {"n": 1.00, "s": "\"x\""} Placed c1"#,
            "k [3] Paid -",
            "k [4] Paid c3",
            "k [5] Paid c3",
            "k null Shipped -",
            "k null Late -",
        ]
    );
    let records = read(&topic);
    assert_eq!(records[0].header("tenant"), Some("row"), "the row wins over its transaction");
    assert_eq!(records[0].header("traceparent"), Some("00-a-b-01"));
    assert_eq!(records[3].header("traceparent"), Some("tp"));
    assert_eq!(records[5].header("id"), Some("00000000-0000-0000-0000-000000000001"));
    assert!(records[5].header("made").unwrap().starts_with("20"), "a column by choice");
    assert!(records.iter().all(|it| it.header("source-txid").is_some()));
    let item = &read(&format!("{}.public.item", world.name))[0];
    assert_eq!((item.header("correlation-id"), item.header("tenant")), (Some("c1"), Some("7")));
    assert_eq!(read(&format!("{}.public.outbox", world.name)).len(), 0, "no entity topic");
    for (name, expected) in [
        ("onelog_outbox_events_total{way=\"table\"}", 2.0),
        ("onelog_outbox_events_total{way=\"message\"}", 4.0),
        ("onelog_outbox_updates_total", 1.0),
        ("onelog_capture_contexts_refused_total", 1.0),
        ("onelog_dead_letters_total", 0.0),
    ] {
        let (name, label) = name.split_once('{').unwrap_or((name, ""));
        let found = world.metric_where(name, label.trim_end_matches('}')).await;
        assert_eq!(found, Some(expected), "{name} {label}");
    }
    let said = world.onelog(&["check"]);
    assert!(said.contains("outbox public.outbox has its columns"), "{said}");
    assert!(daemon.stop().await.success(), "SIGTERM drains and exits 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_is_a_dead_letter_and_holds_nothing_up() {
    let world = world("outbox_bad", "").await;
    let (client, _connection) = world.client().await;
    client.batch_execute("ALTER TABLE outbox ALTER aggregateid DROP NOT NULL").await.unwrap();
    let daemon = world.start_capture();
    let emit =
        |json: &str| format!("SELECT pg_logical_emit_message(true, 'onelog.outbox', '{json}')");
    let fine =
        |n: u32| emit(&format!(r#"{{"aggregatetype":"a","aggregateid":"k","payload":{n}}}"#));
    for sql in [
        // Outside of transactions, and so first of all; and last of all, where only a keepalive
        // ends it.
        "SELECT pg_logical_emit_message(false, 'onelog.outbox', 'loose')".to_owned(),
        fine(1),
        "INSERT INTO outbox (aggregatetype, aggregateid, type) VALUES ('a', NULL, 'NoKey')"
            .to_owned(),
        "INSERT INTO outbox (aggregatetype, aggregateid, type) VALUES ('a b', 'k', 'Name')"
            .to_owned(),
        "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) \
         VALUES ('a', 'k', 'Large', to_jsonb(repeat('x', 2000000)))"
            .to_owned(),
        fine(2),
        emit(r#"{"aggregatetype":"a","aggregateid":"k","partition":5}"#),
        emit("no json"),
        "ALTER TABLE outbox DROP COLUMN payload".to_owned(),
        "INSERT INTO outbox (aggregatetype, aggregateid, type) VALUES ('a', 'k', 'Column')"
            .to_owned(),
        fine(3),
        "SELECT pg_logical_emit_message(false, 'onelog.outbox', 'loose')".to_owned(),
    ] {
        client.batch_execute(&sql).await.unwrap();
    }
    world.confirmed_to(WAL_END).await;
    let topic = format!("{}.event.a", world.name);
    assert_eq!(lines(&topic), ["k 1 - -", "k 2 - -", "k 3 - -"], "the others go on, in order");
    let dead = read(&format!("{}.onelog.dead-letter", world.name));
    let reasons: Vec<&str> = dead.iter().map(|it| it.header("reason").unwrap()).collect();
    let expected = [
        "the message is not transactional",
        "aggregateid is missing",
        "is no name for a topic",
        "it is too large for topic",
        "has 1 partitions, and none with number 5",
        "the message is not a JSON object",
        "the table has no column payload",
        "the message is not transactional",
    ];
    assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
    for (reason, expected) in reasons.iter().zip(expected) {
        assert!(reason.contains(expected), "{reason}");
    }
    assert_eq!(dead[0].value.as_deref(), Some("loose"), "a message as it was");
    assert_eq!(dead[1].json()["after"]["type"], "NoKey", "a row as it was");
    assert!(dead[3].value.as_ref().unwrap().len() > 2_000_000, "also a large one");
    assert!(dead.iter().all(|it| it.header("kind") == Some("outbox")));
    let log = std::fs::read_to_string(&daemon.log).unwrap();
    assert!(log.contains("an event went to the dead letters"), "said loudly");
    let found = world.metric_where("onelog_dead_letters_total", "reason=\"outbox\"").await;
    assert_eq!(found, Some(8.0));
    assert!(daemon.stop().await.success(), "SIGTERM drains and exits 0");
    let config = world.config.to_string_lossy().into_owned();
    let said = support::daemon::onelog(&["check", "--config", &config]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("outbox public.outbox: the table has no column payload"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_cleaned_up_only_after_they_are_published() {
    const EVENTS: usize = 1200;
    let world = world("outbox_clean", "cleanup_after = \"100ms\"\n").await;
    let (client, _connection) = world.client().await;
    let insert = format!(
        "INSERT INTO outbox (aggregatetype, aggregateid, type, payload, created_at) \
         SELECT 'a', 'k', 't', to_jsonb(n), now() - interval '1 hour' \
         FROM generate_series(1, {EVENTS}) n"
    );
    client.batch_execute(&insert).await.unwrap();
    let count = || async {
        let row = client.query_one("SELECT count(*) FROM outbox", &[]).await.unwrap();
        usize::try_from(row.get::<_, i64>(0)).unwrap()
    };
    // Nobody publishes yet.
    let config = load(&world.config).unwrap();
    let at_once = Duration::ZERO;
    let refused = clean_batch(&client, &config, "public.outbox", at_once).await.unwrap_err();
    assert!(matches!(refused, CleanupError::NotConfirmed { .. }), "{refused}");
    assert_eq!(count().await, EVENTS, "what is not published stays");
    let daemon = world.start_capture();
    eventually("the old rows are gone", PATIENCE, || async { (count().await == 0).then_some(()) })
        .await;
    let published = read(&format!("{}.event.a", world.name)).len();
    assert_eq!(published, EVENTS, "what is gone is published");
    eventually("the metric counts them", PATIENCE, || async {
        let found = world.metric("onelog_outbox_cleaned_rows_total").await?;
        (found == 1200.0).then_some(())
    })
    .await;
    assert!(daemon.stop().await.success(), "SIGTERM drains and exits 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn django_writes_rows_and_events_in_one_atomic_block() {
    let world = world("outbox_django", "").await;
    let daemon = world.start_capture();
    let shop = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/django_outbox/shop.py");
    let output = tokio::process::Command::new(server("ONELOG_TEST_DJANGO"))
        .arg(shop)
        .arg(&world.database_url)
        .output()
        .await
        .expect("Django's Python is there: deploy/stack install");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    world.confirmed_to(WAL_END).await;
    assert_eq!(
        lines(&format!("{}.event.order", world.name)),
        [
            r#"o1 {"id": "o1", "note": "Grüße", "total": 12.5} OrderPlaced request-1"#,
            r#"o1 {"id": "o1"} OrderShipped -"#,
        ],
        "what was rolled back is not there"
    );
    let orders = read(&format!("{}.public.shop_order", world.name));
    assert_eq!(orders.len(), 1);
    assert_eq!(orders[0].json()["after"]["id"], "o1");
    assert_eq!(orders[0].header("correlation-id"), Some("request-1"));
    assert!(daemon.stop().await.success(), "SIGTERM drains and exits 0");
}

/// Transactions of rows, messages and changes, some with a context, some rolled back. Events of a
/// key are numbered under a lock that is held until the commit, so that numbers are commit order.
async fn application(url: String, seed: u64, transactions: u32) {
    let (client, _connection) = support::world::connect(&url).await;
    let mut random = StdRng::seed_from_u64(seed);
    for nth in 0..transactions {
        let tx = format!("{seed}-{nth}");
        let with_context = random.random_bool(0.5);
        let mut sql = "BEGIN;".to_owned();
        if with_context {
            sql += &format!("SELECT onelog.context('{tx}');");
        }
        // In the order of the keys, or two transactions could wait for each other.
        for key in 0..4 {
            if random.random_bool(0.5) {
                continue;
            }
            let number = format!(
                "UPDATE number SET n = n + 1 WHERE key = 'k{key}' RETURNING key, \
                 jsonb_build_object('n', n, 'tx', '{tx}', 'context', {with_context}) AS payload"
            );
            sql += &match random.random_range(0..3) {
                0 => format!(
                    "WITH it AS ({number}) SELECT onelog.emit('thing', key, 't', payload) FROM it;"
                ),
                1 => format!(
                    "WITH it AS ({number}) INSERT INTO outbox (aggregatetype, aggregateid, type, \
                     payload) SELECT 'thing', key, 't', payload FROM it;"
                ),
                _ => format!(
                    "WITH it AS ({number}) INSERT INTO outbox (aggregatetype, aggregateid, type, \
                     payload) SELECT 'thing', key, 't', payload FROM it; DELETE FROM outbox \
                     WHERE payload->>'tx' = '{tx}';"
                ),
            };
        }
        let shown = if with_context { tx.as_str() } else { "" };
        sql += &format!("INSERT INTO item VALUES ({seed} * 100000 + {nth}, '{shown}');");
        sql += if random.random_bool(0.15) { "ROLLBACK" } else { "COMMIT" };
        client.batch_execute(&sql).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_nothing_and_keep_the_order_of_each_key() {
    let world = world("outbox_kill", "").await;
    let (client, _connection) = world.client().await;
    let numbers = "CREATE TABLE number (key text PRIMARY KEY, n int NOT NULL); \
                   INSERT INTO number SELECT 'k' || g, 0 FROM generate_series(0, 3) g";
    client.batch_execute(numbers).await.unwrap();
    let topic = format!("{}.event.thing", world.name);
    let mut writers = JoinSet::new();
    for seed in 1..=3 {
        writers.spawn(application(world.database_url.clone(), seed, 150));
    }
    for enough in [20.0, 60.0] {
        let daemon = world.start_capture();
        eventually("some events are sent", PATIENCE, || async {
            let sent = world.metric("onelog_outbox_events_total").await?;
            (enough <= sent).then_some(())
        })
        .await;
        daemon.kill();
    }
    let daemon = world.start_capture();
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    world.confirmed_to(WAL_END).await;
    let mut last: BTreeMap<String, i64> = BTreeMap::new();
    let mut most: BTreeMap<String, i64> = BTreeMap::new();
    for record in read(&topic) {
        let (key, event) = (record.key.clone().unwrap(), record.json());
        let n = event["n"].as_i64().unwrap();
        let before = last.insert(key.clone(), n).unwrap_or(0);
        // A replay starts over further back, and goes on without a gap.
        assert!(n <= before + 1, "{key}: {n} follows {before}");
        let most = most.entry(key).or_default();
        *most = n.max(*most);
        let expected = event["context"].as_bool().unwrap().then(|| event["tx"].as_str().unwrap());
        assert_eq!(record.header("correlation-id"), expected, "{record:?}");
        assert!(record.header("id").is_some() && record.header("type") == Some("t"), "{record:?}");
    }
    for row in client.query("SELECT key, n FROM number", &[]).await.unwrap() {
        let (key, n): (String, i32) = (row.get(0), row.get(1));
        assert_eq!(most.get(&key), Some(&i64::from(n)), "{key}: all that was committed");
        assert_eq!(last.get(&key), Some(&i64::from(n)), "{key}: a replay runs to the end");
    }
    let mut items = 0;
    for record in read(&format!("{}.public.item", world.name)) {
        let item = record.json()["after"]["tx"].as_str().unwrap().to_owned();
        let expected = Some(item.as_str()).filter(|it| !it.is_empty());
        assert_eq!(record.header("correlation-id"), expected, "changes have it too");
        items += 1;
    }
    let committed: i64 = client.query_one("SELECT count(*) FROM item", &[]).await.unwrap().get(0);
    assert!(committed <= items, "{items} records of {committed} rows");
    assert!(daemon.stop().await.success(), "SIGTERM drains and exits 0");
}
