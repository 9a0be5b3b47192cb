//! Copies beside the live stream: whatever happens meanwhile, the log's last value of each key is
//! the table's row. Rules A9, B9 and B10, each with its counterexample.
//!
//! Commits that wait for a standby need a setting of the whole server, so these tests take turns.

#[path = "copies/disturbed.rs"]
mod disturbed;
#[path = "copies/log.rs"]
mod log;
mod support;

use std::future::Future;
use std::process::Output;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use support::daemon::{Daemon, onelog};
use support::eventually;
use support::servers::{Setting, alone};
use support::world::{PATIENCE, Wishes, World};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const SMALL: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); \
                     INSERT INTO t SELECT g, 'old' FROM generate_series(1, 300) g";

/// A world with these tables, prepared. `copy` has the lines of `[copy]`.
async fn world(name: &str, sql: &str, copy: &str) -> World {
    let kafka = format!("[copy]\n{copy}");
    let wishes =
        Wishes { instead: Some(sql), tables: "public.*", kafka: &kafka, ..Wishes::default() };
    let world = World::new(name, wishes).await;
    world.onelog(&["prepare"]);
    world
}

/// A client that does not wait for standbys: the daemon must see to that by itself (B9).
async fn client(world: &World) -> (Client, JoinSet<()>) {
    let (client, driver) = world.client().await;
    client.batch_execute("SET synchronous_commit = local").await.expect("a setting");
    (client, driver)
}

fn start(world: &World) -> Daemon {
    let log = world.folder.path().join("onelog.log");
    Daemon::start_with(&world.config, &log, &["--only", "capture"])
}

/// `onelog copy …`, whatever its exit code.
fn copy(world: &World, arguments: &[&str]) -> Output {
    let config = world.config.to_string_lossy().into_owned();
    let mut all = vec!["copy"];
    all.extend(arguments);
    all.extend(["--config", &config]);
    onelog(&all)
}

#[track_caller]
fn said(output: &Output, code: i32, text: &str) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(said.contains(text), "{said}");
}

async fn ready(world: &World) {
    eventually("the daemon streams", PATIENCE, || async {
        world.http("/readyz").await.filter(|(status, _)| *status == 200)
    })
    .await;
}

/// What `/v1/status` says of the copy of `public.t`.
async fn status(world: &World) -> Option<Value> {
    status_of(world, "public.t").await
}

async fn status_of(world: &World, table: &str) -> Option<Value> {
    let (_, text) = world.http("/v1/status").await?;
    let status: Value = serde_json::from_str(&text).ok()?;
    status["copies"].as_array()?.iter().find(|it| it["table"] == table).cloned()
}

async fn copied(world: &World) {
    eventually("the copy is done", PATIENCE, || async {
        status(world).await.filter(|it| it["state"] == "done")
    })
    .await;
}

/// Waits until so many rows are copied, or all.
async fn rows_copied(world: &World, rows: u64) {
    eventually("rows are copied", PATIENCE, || async {
        let status = status(world).await?;
        (status["rows"].as_u64()? >= rows || status["state"] == "done").then_some(())
    })
    .await;
}

/// Waits until all that is committed now is in the log.
async fn published(world: &World, client: &Client) {
    let end: String = client
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
        .await
        .expect("the WAL's end")
        .get(0);
    let sql = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots \
               WHERE slot_name = $2";
    eventually("all is in the log", PATIENCE, || async {
        // An asynchronous commit is not sent before somebody flushes it.
        client.batch_execute("SELECT pg_logical_emit_message(true, 'test', '')").await.ok()?;
        let row = client.query_one(sql, &[&end, &world.name]).await.ok()?;
        row.get::<_, bool>(0).then_some(())
    })
    .await;
}

/// The check that all tests of `t` end with.
async fn right(world: &World, client: &Client, key: &[&str]) -> log::Log {
    published(world, client).await;
    let log = log::read(world, "t").await;
    log::check(&log, &log::table(client, "t", key).await);
    log
}

/// Somebody whose commits wait for a standby that is not there.
struct Waiting {
    writer: Client,
    watcher: Client,
    running: JoinSet<()>,
    setting: Setting,
}

impl Waiting {
    async fn new(world: &World) -> Self {
        let mut running = JoinSet::new();
        let (writer, mut driver) = world.client().await;
        running.spawn(async move { while driver.join_next().await.is_some() {} });
        let (watcher, mut driver) = world.client().await;
        running.spawn(async move { while driver.join_next().await.is_some() {} });
        writer.batch_execute("SET synchronous_commit = on").await.expect("a setting");
        let setting = Setting::set("synchronous_standby_names", "absent").await;
        Self { writer, watcher, running, setting }
    }

    /// Returns once the commit waits: it is in the WAL, and nobody sees it. What is returned has
    /// it be seen.
    async fn commit(self, sql: &str) -> impl Future<Output = ()> {
        let Self { writer, watcher, mut running, setting } = self;
        let sql = sql.to_owned();
        running.spawn(async move { writer.batch_execute(&sql).await.expect("it commits") });
        let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep' \
                     AND datname = current_database()";
        eventually("the commit waits", PATIENCE, || async {
            let row = watcher.query_one(waits, &[]).await.ok()?;
            row.get::<_, bool>(0).then_some(())
        })
        .await;
        async move {
            drop((setting, watcher));
            while let Some(ended) = running.join_next().await {
                ended.expect("no panic");
            }
        }
    }
}

/// Until the copy waits for what is older than itself; one that does not wait is found out later.
async fn waits_or_is_over(world: &World) {
    eventually("the copy says what it waits for, or did not wait", PATIENCE, || async {
        let status = status(world).await?;
        let tells = status["waits_for"].as_str().is_some_and(|it| it.contains("began before"));
        (tells || status["state"] == "done").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waited_before_the_copy_is_not_overtaken() {
    let _turn = alone().await;
    let world = world("gate", SMALL, "").await;
    let daemon = start(&world);
    ready(&world).await;
    let (client, _connection) = client(&world).await;
    let waiting = Waiting::new(&world).await;
    let be_seen = waiting.commit("UPDATE t SET v = 'new' WHERE id = 7").await;
    published(&world, &client).await;
    // It is in the log, and nobody sees it.
    said(&copy(&world, &["public.t", "--no-wait"]), 0, "start is noted");
    waits_or_is_over(&world).await;
    be_seen.await;
    copied(&world).await;
    let log = right(&world, &client, &["id"]).await;
    assert_eq!((log.reads(), log.ops["u"]), (300, 1));
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_no_stream_brings_is_in_the_copy() {
    let _turn = alone().await;
    let world = world("lost", SMALL, "mode = \"initial\"").await;
    let (client, _connection) = client(&world).await;
    let waiting = Waiting::new(&world).await;
    let be_seen = waiting.commit("UPDATE t SET v = 'new' WHERE id = 7").await;
    // The slot begins after it, as when it commits while the slot is made.
    let advance = "SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())::text";
    client.query_one(advance, &[&world.name]).await.expect("the slot is moved");
    world.onelog(&["prepare", "--adopt-slot"]);
    let daemon = start(&world);
    waits_or_is_over(&world).await;
    be_seen.await;
    copied(&world).await;
    let log = right(&world, &client, &["id"]).await;
    assert_eq!(log.ops.len(), 1, "nothing but the copy: {:?}", log.ops);
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_during_the_copy_is_not_overtaken_by_the_row_before_it() {
    let _turn = alone().await;
    let slow = "chunk_rows = 10\nrows_per_second_max = 40";
    let world = world("overlap", SMALL, slow).await;
    let daemon = start(&world);
    ready(&world).await;
    let (client, _connection) = client(&world).await;
    let waiting = Waiting::new(&world).await;
    said(&copy(&world, &["public.t", "--no-wait"]), 0, "start is noted");
    rows_copied(&world, 10).await;
    // Delivered long before the chunks that don't see it.
    let sql = "UPDATE t SET v = 'new' WHERE id = 299; DELETE FROM t WHERE id = 298; \
               UPDATE t SET id = 1299 WHERE id = 297";
    let be_seen = waiting.commit(sql).await;
    copied(&world).await;
    be_seen.await;
    let log = right(&world, &client, &["id"]).await;
    assert_eq!(log.reads(), 297, "all but the three that the stream has newer");
    let overtaken = world.metric("onelog_copy_overtaken_rows_total").await;
    assert_eq!(overtaken, Some(3.0));
    assert!(daemon.stop().await.success());
}

/// Random changes of `t`, as several applications at once make them, until it is stopped.
struct Load {
    stopped: CancellationToken,
    running: JoinSet<()>,
}

impl Load {
    fn start(world: &World, seed: u64) -> Self {
        let stopped = CancellationToken::new();
        let mut running = JoinSet::new();
        for nth in 0..3u64 {
            // The last one waits for a standby, until its wait is cancelled.
            let commit = if nth == 2 { "on" } else { "local" };
            let (url, stopped) = (world.database_url.clone(), stopped.clone());
            running.spawn(async move {
                let (client, _connection) = support::world::connect(&url).await;
                let set = format!("SET synchronous_commit = {commit}");
                client.batch_execute(&set).await.expect("a setting");
                let mut random = StdRng::seed_from_u64(seed + nth);
                while !stopped.is_cancelled() {
                    let (a, b) = (random.random_range(0..20_000), random.random_range(0..20_000));
                    let sql = match random.random_range(0..6) {
                        0 => format!("INSERT INTO t VALUES ({a} % 7, 'k{b}', 'inserted')"),
                        1 => format!("DELETE FROM t WHERE (b, a) = ({a} % 7, 'k{a}')"),
                        2 => format!("UPDATE t SET a = 'k{b}' WHERE (b, a) = ({a} % 7, 'k{a}')"),
                        3 => format!(
                            "BEGIN; UPDATE t SET v = 'twice' WHERE a = 'k{a}'; \
                             UPDATE t SET v = v || {b} WHERE a = 'k{a}'; COMMIT"
                        ),
                        4 => format!("BEGIN; DELETE FROM t WHERE a = 'k{a}'; ROLLBACK"),
                        _ => format!("UPDATE t SET v = '{b}' WHERE (b, a) = ({a} % 7, 'k{a}')"),
                    };
                    // Keys collide, and transactions block each other: as it goes.
                    if client.batch_execute(&sql).await.is_err() {
                        client.batch_execute("ROLLBACK").await.expect("a connection");
                    }
                }
            });
        }
        let (url, stop) = (world.database_url.clone(), stopped.clone());
        running.spawn(async move {
            let (client, _connection) = support::world::connect(&url).await;
            let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                          WHERE wait_event = 'SyncRep' AND datname = current_database()";
            let mut ticks = tokio::time::interval(Duration::from_millis(200));
            while !stop.is_cancelled() {
                ticks.tick().await;
                client.batch_execute(cancel).await.expect("waits are cancelled");
            }
        });
        Self { stopped, running }
    }

    async fn stop(mut self) {
        self.stopped.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended.expect("the load does not panic");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_random_load_and_kills_the_log_ends_as_the_table() {
    let _turn = alone().await;
    let sql = "CREATE TABLE t (a text, b int, v text, PRIMARY KEY (b, a)); CREATE INDEX ON t (a); \
               INSERT INTO t SELECT 'k' || g, g % 7, 'old' FROM generate_series(1, 20000) g";
    let slow = "mode = \"initial\"\nchunk_rows = 250\nrows_per_second_max = 3000";
    let world = world("proof", sql, slow).await;
    let (client, _connection) = client(&world).await;
    let setting = Setting::set("synchronous_standby_names", "absent").await;
    let load = Load::start(&world, 5);
    for rows in [2000, 9000] {
        let daemon = start(&world);
        rows_copied(&world, rows).await;
        daemon.kill();
    }
    let daemon = start(&world);
    copied(&world).await;
    load.stop().await;
    drop(setting);
    let log = right(&world, &client, &["b", "a"]).await;
    let reads = log.reads();
    assert!(9000 < reads && reads < 26_000, "resumed, not begun anew: {reads} rows copied");
    assert!(daemon.stop().await.success());
}

/// Tables of every kind of key, each with what its topic's keys are made of.
const KINDS: [(&str, &str, &[&str]); 5] = [
    (
        // Equal there is not equal here: chunks go by the index's own order.
        "fold",
        "CREATE COLLATION fold (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE fold (name text COLLATE fold NOT NULL, v numeric);
         CREATE UNIQUE INDEX fold_key ON fold (name COLLATE \"C\");
         ALTER TABLE fold REPLICA IDENTITY USING INDEX fold_key;
         INSERT INTO fold SELECT chr(97 + g % 26) || g / 26, g / 7.0 FROM generate_series(0, 99) g;
         INSERT INTO fold SELECT upper(name), v FROM fold",
        &["name"],
    ),
    (
        "parts",
        "CREATE TABLE parts (day date, id int, mood char(3), PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
         CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM ('2026-02-01') TO ('2027-01-01');
         INSERT INTO parts SELECT '2026-01-01'::date + g % 300, g, 'ok' FROM generate_series(1, 90) g",
        &["id", "day"],
    ),
    (
        // One chunk is less than ten of its rows.
        "wide",
        "CREATE TABLE wide (id uuid PRIMARY KEY, b bytea, doubled int GENERATED ALWAYS AS (2) STORED);
         ALTER TABLE wide REPLICA IDENTITY FULL; ALTER TABLE wide ALTER b SET STORAGE EXTERNAL;
         INSERT INTO wide SELECT md5(g::text)::uuid, decode(repeat(md5(g::text), 10000), 'hex')
         FROM generate_series(1, 40) g",
        &["id"],
    ),
    (
        "OddName",
        "CREATE TABLE \"OddName\" (\"the Key\" text PRIMARY KEY, gone int, t timestamptz);
         ALTER TABLE \"OddName\" DROP gone;
         INSERT INTO \"OddName\" SELECT 'it''s ' || chr(9) || g || E'\\n\\\\', now()
         FROM generate_series(1, 50) g",
        &["the Key"],
    ),
    (
        "empty",
        "CREATE TABLE empty (id bigint PRIMARY KEY)",
        &["id"],
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_key_is_copied_whole() {
    let _turn = alone().await;
    let mut sql: Vec<&str> = KINDS.iter().map(|it| it.1).collect();
    sql.push(
        "CREATE TABLE bag (v int, pad text); ALTER TABLE bag REPLICA IDENTITY FULL;
         INSERT INTO bag SELECT g, repeat('x', 500) FROM generate_series(1, 3000) g;
         DELETE FROM bag WHERE v % 3 = 0",
    );
    let chunks = "mode = \"initial\"\nchunk_rows = 7\ntables_at_once = 4";
    let world = world("kinds", &sql.join(";\n"), chunks).await;
    let daemon = start(&world);
    eventually("all are copied", PATIENCE, || async {
        let (_, text) = world.http("/v1/status").await?;
        let status: Value = serde_json::from_str(&text).ok()?;
        let copies = status["copies"].as_array()?;
        let done = copies.iter().filter(|it| it["state"] == "done").count();
        (done == KINDS.len() + 1).then_some(())
    })
    .await;
    let (client, _connection) = client(&world).await;
    published(&world, &client).await;
    for (table, _, key) in KINDS {
        let log = log::read(&world, table).await;
        let mut rows = log::table(&client, table, key).await;
        // The stream has no generated columns either.
        rows.values_mut()
            .filter_map(Value::as_object_mut)
            .for_each(|it| drop(it.remove("doubled")));
        log::check(&log, &rows);
        assert_eq!(log.reads(), rows.len(), "{table}: each row once");
    }
    let mut bag: Vec<i64> =
        log::read(&world, "bag").await.keyless.iter().filter_map(|it| it["v"].as_i64()).collect();
    bag.sort_unstable();
    assert_eq!(bag, (1..=3000).filter(|it| it % 3 != 0).collect::<Vec<_>>(), "by place");
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_can_be_asked_for_held_and_called_off() {
    let _turn = alone().await;
    let slow = "chunk_rows = 10\nrows_per_second_max = 30";
    let world = world("asked", SMALL, slow).await;
    let refused = copy(&world, &["public.t"]);
    assert_eq!(refused.status.code(), Some(1), "no daemon");
    let daemon = start(&world);
    ready(&world).await;
    said(&copy(&world, &["public.nobody"]), 1, "is not published");
    said(&copy(&world, &["public.t", "--where", "nothing = 1"]), 1, "\"nothing\" does not exist");
    said(&copy(&world, &["public.t", "--where", "id < 20) OR (id = 20"]), 0, "copied, 20 rows");
    said(&copy(&world, &["public.t", "--where", "true); SELECT (1"]), 1, "not one SQL expression");
    said(&copy(&world, &["public.t", "--pause"]), 1, "the copy of public.t is done");
    said(&copy(&world, &["public.t", "--where", "t.id % 100 = 0 -- few"]), 0, "copied, 3 rows");
    let usage = copy(&world, &["public.t", "--pause", "--resume"]);
    assert_eq!(usage.status.code(), Some(2));

    said(&copy(&world, &["public.t", "--no-wait"]), 0, "noted");
    // Enough for a position to be noted.
    rows_copied(&world, 40).await;
    said(&copy(&world, &["public.t"]), 1, "being copied already");
    said(&copy(&world, &["public.t", "--pause"]), 0, "noted");
    assert!(daemon.stop().await.success());
    let daemon = start(&world);
    ready(&world).await;
    let paused = eventually("the copy is known", PATIENCE, || status(&world)).await;
    assert_eq!(paused["state"], "paused", "also after a restart");
    let rows = paused["rows"].as_u64().expect("a count");
    assert!((1..300).contains(&rows), "{rows}");
    said(&copy(&world, &["public.t", "--resume", "--no-wait"]), 0, "noted");
    rows_copied(&world, rows + 10).await;
    said(&copy(&world, &["public.t", "--cancel"]), 0, "noted");
    assert_eq!(status(&world).await.expect("a status")["state"], "cancelled");
    said(&copy(&world, &["public.t", "--resume"]), 1, "cancelled");
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_is_made_anew_with_the_rows_of_its_table() {
    let _turn = alone().await;
    // One that was empty when it was copied has had its rows from the stream alone.
    let sql = format!("{SMALL}; CREATE TABLE late (id int PRIMARY KEY, v text)");
    let world = world("lost_topic", &sql, "mode = \"initial\"").await;
    let daemon = start(&world);
    copied(&world).await;
    let (client, _connection) = client(&world).await;
    client.batch_execute("INSERT INTO late SELECT * FROM t").await.expect("rows");
    right(&world, &client, &["id"]).await;

    let topics = ["t", "late"].map(|it| format!("{}.public.{it}", world.name));
    support::log::delete(&topics).await;
    client
        .batch_execute("UPDATE t SET v = 'new' WHERE id = 1; DELETE FROM late WHERE id = 1")
        .await
        .expect("changes");
    for table in ["t", "late"] {
        let line = format!("the table is copied again table=\"public.{table}\"");
        eventually("it is copied again", PATIENCE, || async {
            daemon.log_text().contains(&line).then_some(())
        })
        .await;
    }
    for (table, rows) in [("public.t", 300), ("public.late", 299)] {
        eventually("all rows are copied", PATIENCE, || async {
            status_of(&world, table).await.filter(|it| it["state"] == "done" && it["rows"] == rows)
        })
        .await;
    }
    published(&world, &client).await;
    for table in ["t", "late"] {
        log::check(&log::read(&world, table).await, &log::table(&client, table, &["id"]).await);
    }
    assert!(daemon.stop().await.success());
}
