//! What the world does to the daemon: servers restarted, away, crashed; tables rewritten under its
//! reads; a commit that nobody can see yet; a transaction of a million rows; a twin; a slot that is
//! not where it was left. Each ends in the oracle's check.
//!
//! These tests disturb the shared servers, so they take turns.
#![allow(clippy::print_stdout, reason = "a figure that the test measures anyway")]

mod support;

use elasticsearch::http::Method;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use support::daemon::Daemon;
use support::eventually;
use support::servers::{Away, Setting, alone, stack};
use support::traffic::Load;
use support::world::{PATIENCE, Wishes, World, free_address};
use tokio::task::JoinSet;
use tokio_postgres::Client;

const SERVICES: [&str; 3] = ["postgres", "kafka", "elasticsearch"];

/// A world whose collections are built, and its daemon.
async fn built(name: &str, wishes: Wishes<'_>) -> (World, Daemon) {
    let world = World::new(name, wishes).await;
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    (world, daemon)
}

/// The end that all of them share.
async fn right_and_stopped(world: &World, daemon: Daemon) {
    flush(world).await;
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success(), "SIGTERM drains and exits 0");
}

/// Flushes asynchronous commits, by a synchronous one: what is not flushed is not sent either.
async fn flush(world: &World) {
    let (client, _connection) = world.client().await;
    let emit = "SELECT pg_logical_emit_message(true, 'onelog.test', '')";
    client.batch_execute(emit).await.expect("a synchronous commit");
}

/// Waits until so many more records have gone through the translator.
async fn translated(world: &World, more: u32) {
    let now = eventually("the daemon answers", PATIENCE, || async {
        world.metric("onelog_translate_records_total").await
    })
    .await;
    eventually("the daemon works", PATIENCE, || async {
        let records = world.metric("onelog_translate_records_total").await?;
        (records >= now + f64::from(more)).then_some(())
    })
    .await;
}

async fn ready(world: &World) {
    eventually("/readyz answers 200", PATIENCE, || async {
        world.http("/readyz").await.filter(|(status, _)| *status == 200)
    })
    .await;
}

/// The reason that /readyz gives, once it does.
async fn not_ready(world: &World) -> String {
    eventually("/readyz answers 503", PATIENCE, || async {
        let (status, body) = world.http("/readyz").await?;
        (status == 503).then_some(body)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_server_may_restart_under_load() {
    let _turn = alone().await;
    let wishes = Wishes { companies: 60, ..Wishes::default() };
    let (world, daemon) = built("restarts", wishes).await;
    for (seed, service) in (1..).zip(SERVICES) {
        let load = Load::start(&world.database_url, seed, 3);
        translated(&world, 30).await;
        stack("restart", service).await;
        translated(&world, 30).await;
        load.stop().await;
        world.quiet().await;
        world.check_documents().await;
    }
    ready(&world).await;
    right_and_stopped(&world, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_is_waited_for() {
    let _turn = alone().await;
    let wishes = Wishes { companies: 40, ..Wishes::default() };
    let (world, daemon) = built("away", wishes).await;
    for service in SERVICES {
        ready(&world).await;
        let away = Away::stop(service).await;
        if service != "postgres" {
            support::traffic::run_all(&world.database_url, 77, 2, 10).await;
        }
        let reason = not_ready(&world).await;
        assert!(reason.contains(": "), "{service}: a role and its reason, not {reason:?}");
        away.bring_back().await;
        ready(&world).await;
        flush(&world).await;
        world.quiet().await;
        world.check_documents().await;
    }
    right_and_stopped(&world, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_costs_a_session_and_nothing_else() {
    let _turn = alone().await;
    let wishes = Wishes { companies: 40, ..Wishes::default() };
    let (world, daemon) = built("hangs", wishes).await;
    let restarts = async || {
        let stage = "stage=\"translate\"";
        world.metric_where("onelog_stage_restarts_total", stage).await
    };
    let before = restarts().await.expect("the metric");
    let frozen = Away::freeze("kafka").await;
    support::traffic::run_all(&world.database_url, 78, 2, 10).await;
    // Longer than librdkafka waits for its partitions, so the group is joined by a new member.
    eventually("a new session is tried", PATIENCE, || async {
        restarts().await.filter(|it| *it > before).map(|_| ())
    })
    .await;
    assert!(not_ready(&world).await.contains("translate: "));
    frozen.bring_back().await;
    ready(&world).await;
    right_and_stopped(&world, daemon).await;
}

/// One company's name, in the database's own words.
async fn a_company(client: &Client) -> String {
    let sql = "SELECT id::text FROM company_profile WHERE name <> '' ORDER BY id LIMIT 1";
    client.query_one(sql, &[]).await.expect("a company").get(0)
}

async fn name_of(world: &World, company: &str) -> Option<Value> {
    let mut document = world.document("company_details_page", company).await?;
    Some(document["profile_name"].take())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_nobody_sees_yet_is_waited_for() {
    let _turn = alone().await;
    let wishes = Wishes { companies: 20, ..Wishes::default() };
    let (world, daemon) = built("visibility", wishes).await;
    let (client, _connection) = world.client().await;
    let company = a_company(&client).await;
    for end in ["the standby is not waited for any more", "the wait is cancelled"] {
        let old = name_of(&world, &company).await.expect("a document");
        let setting = Setting::set("synchronous_standby_names", "absent").await;
        let mut writing = JoinSet::new();
        let (url, sql) = (
            world.database_url.clone(),
            format!("UPDATE company_profile SET name = '{end}' WHERE id = '{company}'"),
        );
        writing.spawn(async move { support::traffic::execute(&url, &sql).await });
        // It reached Kafka, and the translator; no snapshot sees it.
        eventually("the key is parked", PATIENCE, || async {
            let parked = world.metric("onelog_translate_parked_keys").await?;
            (parked > 0.0).then_some(())
        })
        .await;
        for _ in 0..50 {
            assert_eq!(name_of(&world, &company).await.as_ref(), Some(&old), "not committed yet");
        }
        assert!(writing.try_join_next().is_none(), "the UPDATE waits for its standby");
        let setting = if end.contains("cancelled") {
            let cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
                          WHERE wait_event = 'SyncRep' AND datname = current_database()";
            // Its commit is in the log a moment before it waits.
            eventually("the wait is cancelled", PATIENCE, || async {
                let cancelled = client.query(cancel, &[]).await.expect("the wait is cancelled");
                (!cancelled.is_empty()).then_some(())
            })
            .await;
            Some(setting)
        } else {
            drop(setting);
            None
        };
        let returned = tokio::time::timeout(PATIENCE, writing.join_next()).await;
        returned.expect("in time").expect("it runs").expect("the UPDATE returns");
        eventually("the document is right", PATIENCE, || async {
            name_of(&world, &company).await.filter(|it| it == end)
        })
        .await;
        // Or the next round would take this one's key for its own.
        eventually("no key is parked", PATIENCE, || async {
            let parked = world.metric("onelog_translate_parked_keys").await?;
            (parked == 0.0).then_some(())
        })
        .await;
        drop(setting);
    }
    right_and_stopped(&world, daemon).await;
}

const NAMES: &str = "[[denormalization]]\ncollection = \"names_page\"\nkey = \"id\"\n\
                     sql = \"SELECT id, name FROM company_profile\"\n";

/// A new collection takes the log from now on, so that its sweep must see all that went before.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_waits_for_a_commit_that_nobody_sees_yet() {
    let _turn = alone().await;
    let wishes = Wishes { companies: 20, ..Wishes::default() };
    let (world, daemon) = built("settled", wishes).await;
    let (client, _connection) = world.client().await;
    let company = a_company(&client).await;
    let setting = Setting::set("synchronous_standby_names", "absent").await;
    let mut writing = JoinSet::new();
    let (url, sql) = (
        world.database_url.clone(),
        format!("UPDATE company_profile SET name = 'late' WHERE id = '{company}'"),
    );
    writing.spawn(async move { support::traffic::execute(&url, &sql).await });
    eventually("its record has come", PATIENCE, || async {
        let parked = world.metric("onelog_translate_parked_keys").await?;
        (parked > 0.0).then_some(())
    })
    .await;
    std::fs::write(world.mappings.join("names_page.toml"), NAMES).expect("a mapping");
    let alias = format!("/_alias/{}", world.alias("names_page"));
    eventually("the sweep waits, or is over", PATIENCE, || async {
        let waits = daemon.log_text().contains("the sweep waits for an old transaction to end");
        let over = world.elastic(Method::Get, &alias, None).await.is_ok();
        (waits || over).then_some(())
    })
    .await;
    drop(setting);
    writing.join_next().await.expect("it runs").expect("the UPDATE returns");
    eventually("the collection is built", PATIENCE, || async {
        world.elastic(Method::Get, &alias, None).await.ok().map(drop)
    })
    .await;
    right_and_stopped(&world, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_takes_back_is_in_no_document() {
    let _turn = alone().await;
    let wishes = Wishes { companies: 60, ..Wishes::default() };
    let (world, daemon) = built("crash", wishes).await;
    let _lazy = Setting::set("wal_writer_delay", "10s").await;
    let asynchronous = format!("{}?options=-c%20synchronous_commit%3Doff", world.database_url);
    let mut random = StdRng::seed_from_u64(17);
    for round in 0..6 {
        let load = Load::start(&asynchronous, 500 + round, 3);
        translated(&world, random.random_range(1..80)).await;
        Away::kill("postgres").await.bring_back().await;
        translated(&world, random.random_range(1..40)).await;
        load.stop().await;
        flush(&world).await;
        world.quiet().await;
        world.check_documents().await;
    }
    right_and_stopped(&world, daemon).await;
}

/// A page that exists only while its company has websites.
const SITES: &str = "[[denormalization]]\ncollection = \"sites_page\"\nkey = \"profile_id\"\n\
                     nest_as = \"sites\"\nsql = \"SELECT profile_id, id, url, title \
                     FROM company_websites\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_rewritten_loses_no_document() {
    let _turn = alone().await;
    let wishes = Wishes { companies: 60, ..Wishes::default() };
    let world = World::new("rewrite", wishes).await;
    std::fs::write(world.mappings.join("sites_page.toml"), SITES).expect("a mapping");
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    let (client, _connection) = world.client().await;
    let mut writing = JoinSet::new();
    let running = tokio_util::sync::CancellationToken::new();
    for nth in 0..3 {
        let ((writer, driver), running) = (world.client().await, running.clone());
        writing.spawn(async move {
            let _driver = driver;
            let sql = format!(
                "UPDATE company_websites SET title = md5(random()::text) \
                 WHERE id = (SELECT id FROM company_websites WHERE hashtext(id::text) % 3 = {nth} \
                 ORDER BY random() LIMIT 1)"
            );
            while !running.is_cancelled() {
                writer.batch_execute(&sql).await.expect("the UPDATE runs");
            }
        });
    }
    let rewrite = "ALTER TABLE company_websites ALTER url TYPE text USING url || ''";
    for _ in 0..20 {
        translated(&world, 5).await;
        client.batch_execute(rewrite).await.expect("the table is rewritten");
    }
    running.cancel();
    while let Some(ended) = writing.join_next().await {
        ended.expect("the writer does not panic");
    }
    world.quiet().await;
    world.check_documents().await;
    let deleted =
        world.metric_where("onelog_elasticsearch_items_total", "outcome=\"deleted\"").await;
    assert_eq!(deleted, Some(0.0), "nobody deleted a row");
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_flat_under_a_transaction_of_a_million_rows() {
    // The floor of the design, for the whole daemon.
    const PEAK_MAX: u64 = 150_000_000;
    let _turn = alone().await;
    let sql = "CREATE TABLE big (id bigint PRIMARY KEY, k int, v text)";
    let wishes = Wishes { instead: Some(sql), tables: "public.big", ..Wishes::default() };
    let world = World::new("million", wishes).await;
    world.onelog(&["prepare"]);
    let daemon = world.start();
    ready(&world).await;
    let (client, _connection) = world.client().await;
    let insert = "INSERT INTO big SELECT g, g % 1000, md5(g::text) FROM \
                  generate_series(1, 1000000) g";
    client.batch_execute(insert).await.expect("a million rows");
    world.quiet().await;
    let (records, peak) = (world.metric("onelog_kafka_records_total").await, daemon.peak_memory());
    println!("a million rows in one transaction: {} MB resident at most", peak / 1_000_000);
    assert!(records >= Some(1_000_000.0), "{records:?}");
    assert!(peak < PEAK_MAX, "{peak} bytes");
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_waits_and_takes_over() {
    let _turn = alone().await;
    let wishes = Wishes { companies: 30, ..Wishes::default() };
    let (world, first) = built("twin", wishes).await;
    let text = std::fs::read_to_string(&world.config).expect("the config");
    let instance = format!("\"group.instance.id\" = \"{}", world.name);
    let text = text
        .replace(&world.http, &free_address())
        .replace(&instance, &format!("{instance}-second"));
    let config = world.folder.path().join("second.toml");
    std::fs::write(&config, text).expect("written");
    let (client, _connection) = world.client().await;
    let holder = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
    let holder: i32 = client.query_one(holder, &[&world.name]).await.expect("a slot").get(0);

    let mut second = Daemon::start(&config, &world.folder.path().join("second.log"));
    eventually("the second says that it waits, and for whom", PATIENCE, || async {
        let said = second.log_text();
        let line = said.lines().find(|it| it.contains("waiting for slot"))?;
        line.contains(&format!("pid={holder}")).then_some(())
    })
    .await;
    let load = Load::start(&world.database_url, 9, 2);
    translated(&world, 20).await;
    assert!(second.is_alive());
    assert!(first.stop().await.success());
    eventually("the second has the slot", PATIENCE, || async {
        second.log_text().contains("streaming").then_some(())
    })
    .await;
    load.stop().await;
    right_and_stopped(&world, second).await;
}

/// `run` must refuse the slot: exit code 1, the slot's name and the cure.
async fn refused(world: &World) {
    let mut daemon = world.start();
    let status = daemon.ended(PATIENCE).await;
    let said = daemon.log_text();
    let last: Vec<&str> = said.lines().rev().take(3).collect();
    assert_eq!(status.code(), Some(1), "{last:?}");
    let named = format!("slot \"{}\"", world.name);
    let fault = last.iter().find(|it| it.contains(&named) && it.contains("--adopt-slot"));
    assert!(fault.is_some(), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_not_where_we_left_it_is_refused() {
    let _turn = alone().await;
    let wishes = Wishes { companies: 5, ..Wishes::default() };
    let (world, daemon) = built("moved_slot", wishes).await;
    assert!(daemon.stop().await.success());
    let (client, _connection) = world.client().await;
    let change = "UPDATE company_profile SET name = name || '!'";
    client.batch_execute(change).await.expect("a change that the slot has");

    let advance = "SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())::text";
    client.query_one(advance, &[&world.name]).await.expect("the slot is moved");
    refused(&world).await;

    client
        .query_one("SELECT pg_drop_replication_slot($1)::text", &[&world.name])
        .await
        .expect("dropped");
    refused(&world).await;

    client.batch_execute(change).await.expect("a change that no slot has");
    let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')::text";
    client.query_one(create, &[&world.name]).await.expect("created anew");
    refused(&world).await;

    // The cure that was named is one.
    world.onelog(&["prepare", "--adopt-slot"]);
    let daemon = world.start();
    ready(&world).await;
    client.batch_execute(change).await.expect("a change that the new slot has");
    right_and_stopped(&world, daemon).await;
}
