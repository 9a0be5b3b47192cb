//! Sweeps: they go on where a killed process was, find a key that never ends, stand in nobody's
//! way, and leave nothing behind when they are given up.

mod support;

use elasticsearch::http::Method;
use support::daemon::Daemon;
use support::eventually;
use support::world::{PATIENCE, Wishes, World};

/// SQL that takes so many milliseconds for each row.
fn mapping(milliseconds: &str) -> String {
    format!(
        "[[denormalization]]\ncollection = \"item\"\nkey = \"id\"\n\
         sql = \"SELECT id, name, slowly(id, {milliseconds}) AS slept FROM item\"\n"
    )
}

const PLAIN: &str = "[[denormalization]]\ncollection = \"item\"\nkey = \"id\"\nsql = \"SELECT id, name FROM item\"\n";

fn items(count: u32) -> String {
    format!(
        "CREATE TABLE item (id bigint PRIMARY KEY, name text NOT NULL);
         INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, {count}) n; ANALYZE item;
         -- Said to be immutable, as Postgres computes a volatile column also where nobody asks.
         CREATE FUNCTION slowly(bigint, integer) RETURNS text IMMUTABLE LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_sleep($2 / 1000.0); RETURN ''; END $$"
    )
}

async fn world(name: &str, items: &str, translate: &str, mapping: &str) -> World {
    let wishes = Wishes { instead: Some(items), translate, ..Wishes::default() };
    let world = World::new(name, wishes).await;
    std::fs::write(world.mappings.join("item.toml"), mapping).expect("a mapping file");
    world.onelog(&["prepare"]);
    world
}

/// The number behind `field=` in the first log line that has all of `words`.
fn logged(daemon: &Daemon, words: &[&str], field: &str) -> Option<u64> {
    let text = daemon.log_text();
    let line = text.lines().find(|line| words.iter().all(|it| line.contains(it)))?;
    line.split_once(&format!(" {field}="))?.1.split(' ').next()?.parse().ok()
}

/// How far the note in the collection's index says that its sweep has come.
async fn noted(world: &World) -> Option<u64> {
    let path = format!("/{}-*/_mapping", world.alias("item"));
    let found = world.elastic(Method::Get, &path, None).await.ok()?;
    let index = found.as_object()?.values().next()?;
    index["mappings"]["_meta"]["onelog"]["swept"]["documents"].as_u64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_backfill_goes_on_where_it_was() {
    // 20 slices of 2 s on two connections: 20 s in all, and a note every 5.
    let world = world("resumed", &items(20_000), "", &mapping("2")).await;
    let daemon = world.start();
    let before = eventually("the sweep is noted", PATIENCE, || noted(&world)).await;
    assert!(before >= 1_000, "{before}");
    // Rows behind the note change while nobody sweeps: the log has them.
    daemon.kill();
    let (client, _connection) = world.client().await;
    let changes = "UPDATE item SET name = 'changed' WHERE id = 1; DELETE FROM item WHERE id = 2;
                   INSERT INTO item VALUES (0, 'before all')";
    client.batch_execute(changes).await.expect("changes");
    let daemon = world.start();
    world.built().await;
    let resumed = logged(&daemon, &["the sweep goes on where it was"], "documents");
    assert!(resumed >= Some(before), "{resumed:?} {before}");
    let swept = world.metric("onelog_sweep_documents_total").await.expect("the daemon answers");
    let most = f64::from(20_000 - u32::try_from(before).expect("a small number"));
    assert!(swept <= most, "{swept} of {most}");
    world.quiet().await;
    let path = format!("/{}/_count", world.alias("item"));
    eventually("the documents are those of the rows", PATIENCE, || async {
        let count = world.elastic(Method::Get, &path, None).await.ok()?["count"].as_u64()?;
        let changed = world.document("item", "1").await?["name"] == "changed";
        (count == 20_000 && changed && world.document("item", "0").await.is_some()).then_some(())
    })
    .await;
    assert_eq!(world.document("item", "2").await, None);
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_missed_changes_begins_anew() {
    let world = world("anew", &items(20_000), "", &mapping("2")).await;
    let daemon = world.start();
    let before = eventually("the sweep is noted", PATIENCE, || noted(&world)).await;
    daemon.kill();
    // While the mapping is away, a daemon reads the log on behalf of no collection.
    let file = world.mappings.join("item.toml");
    std::fs::rename(&file, world.mappings.join("item.away")).expect("renamed");
    let daemon = world.start();
    eventually("the note is void", PATIENCE, || async {
        noted(&world).await.is_none().then_some(())
    })
    .await;
    assert!(daemon.stop().await.success());
    std::fs::write(&file, mapping("2")).expect("written");
    let daemon = world.start();
    eventually("the sweep is noted again", PATIENCE, || async {
        noted(&world).await.filter(|it| *it >= 1_000)
    })
    .await;
    assert_eq!(logged(&daemon, &["the sweep goes on where it was"], "documents"), None, "{before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_never_ends_is_given_up_alone() {
    // One row in 3,000 takes longer than statement_timeout.
    let slow = mapping("CASE id WHEN 1234 THEN 60000 ELSE 0 END");
    let limits = "statement_timeout = \"500ms\"";
    let world = world("slow_key", &items(3_000), limits, &slow).await;
    let daemon = world.start();
    world.built().await;
    assert_eq!(world.metric_where("onelog_dead_letters_total", "document").await, Some(1.0));
    let path = format!("/{}/_count", world.alias("item"));
    let count = world.elastic(Method::Get, &path, None).await.expect("a count")["count"].clone();
    assert_eq!((count.as_u64(), world.document("item", "1234").await), (Some(2_999), None));
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_gives_way_to_ddl() {
    // Each slice reads for 10 s, unless somebody waits for it.
    let world = world("gives_way", &items(3_000), "lock_timeout = \"5s\"", &mapping("10")).await;
    let daemon = world.start();
    let (client, _connection) = world.client().await;
    eventually("a slice is read", PATIENCE, || async {
        let reading = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                       AND query LIKE '%slowly%' AND wait_event = 'PgSleep'";
        let row = client.query_one(reading, &[]).await.ok()?;
        (row.get::<_, i64>(0) > 0).then_some(())
    })
    .await;
    // Without giving way it would wait for up to 10 s, and the application behind it.
    let ddl = "SET lock_timeout = '4s'; ALTER TABLE item ADD COLUMN note text";
    client.batch_execute(ddl).await.expect("the DDL gets its lock in time");
    eventually("it is said", PATIENCE, || async {
        daemon.log_text().contains("the sweep gives way").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_given_up_is_not_pending() {
    let world = world("given_up", &items(20_000), "", &mapping("5")).await;
    let daemon = world.start();
    let pending = || async { world.metric("onelog_sweeps_pending").await };
    eventually("the sweep runs", PATIENCE, || async {
        let done = world.metric("onelog_sweep_expected_documents").await? > 0.0;
        (done && pending().await? == 1.0).then_some(())
    })
    .await;
    // Another definition takes its place …
    std::fs::write(world.mappings.join("item.toml"), PLAIN).expect("written");
    world.built().await;
    eventually("the new collection's sweep is over", PATIENCE, || async {
        (pending().await? == 0.0).then_some(())
    })
    .await;
    assert_eq!(world.metric("onelog_sweep_expected_documents").await, Some(0.0));
    // … or none.
    std::fs::write(world.mappings.join("item.toml"), mapping("5")).expect("written");
    eventually("a sweep runs again", PATIENCE, || async {
        (pending().await? == 1.0).then_some(())
    })
    .await;
    std::fs::remove_file(world.mappings.join("item.toml")).expect("removed");
    eventually("nothing is pending", PATIENCE, || async {
        (pending().await? == 0.0).then_some(())
    })
    .await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_what_is_live() {
    let world = world("status", &items(20_000), "", &mapping("2")).await;
    let config = world.config.to_string_lossy().into_owned();
    let status = |more: &[&str]| {
        let output = support::daemon::onelog(&[&["status", "--config", &config], more].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), said, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, _, complained) = status(&[]);
    assert!(code == Some(1) && complained.contains("is `onelog run` running"), "{complained}");
    let daemon = world.start();
    eventually("the sweep's progress is said", PATIENCE, || async {
        let (code, said, _) = status(&[]);
        let line = said.lines().find(|it| it.starts_with("item "))?.to_owned();
        let shown = line.contains(" building ") && line.contains(" of about 20000 documents, ");
        (shown && code == Some(1)).then_some(())
    })
    .await;
    std::fs::write(world.mappings.join("item.toml"), PLAIN).expect("written");
    eventually("the collection is live", PATIENCE, || async {
        let (code, said, _) = status(&["--json"]);
        let value: serde_json::Value = serde_json::from_str(&said).ok()?;
        let live = value["collections"][0]["state"] == "live"
            && value["roles"]["capture"]["ready"] == true;
        (live && code == Some(0)).then_some(())
    })
    .await;
    assert!(daemon.stop().await.success());
}
