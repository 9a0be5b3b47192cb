//! `delivery = "exactly-once"`: who reads committed records sees each change once, whatever happens
//! to the daemon, its twin, or the servers.

#[path = "once/kinds.rs"]
mod kinds;
#[path = "once/log.rs"]
mod log;
mod support;

use std::path::PathBuf;

use log::{TABLES, Writers, check_log};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, Producer};
use support::daemon::Daemon;
use support::servers::{Away, alone};
use support::world::{PATIENCE, Wishes, World, free_address, metric_at};
use support::{eventually, server, traffic};

const EXACTLY: &str =
    "delivery = \"exactly-once\"\ntransaction_interval = \"40ms\"\npartitions = 3";
const ONLY: &[&str] = &["--only", "capture"];
const KILLS: usize = 20;
const WAL_END: &str = "pg_current_wal_flush_lsn()";

async fn world(name: &str) -> World {
    let wishes = Wishes { instead: Some(TABLES), kafka: EXACTLY, ..Wishes::default() };
    let world = World::new(name, wishes).await;
    world.onelog(&["prepare"]);
    world
}

fn start(world: &World) -> Daemon {
    Daemon::start_with(&world.config, &log_of(world, "first"), ONLY)
}

fn log_of(world: &World, name: &str) -> PathBuf {
    world.config.with_file_name(format!("{name}.log"))
}

/// Waits until this many records are acknowledged, which is in the middle of a Kafka transaction
/// more often than not.
async fn acknowledged(address: &str, records: u32) {
    eventually("records are acknowledged", PATIENCE, || async {
        let sent = metric_at(address, "onelog_kafka_records_total", "").await?;
        (f64::from(records) <= sent).then_some(())
    })
    .await;
}

/// All is published, a stop is clean, and the log has each change once.
async fn ends_well(world: &World, daemon: Daemon) {
    world.confirmed_to(WAL_END).await;
    assert!(daemon.stop().await.success(), "a clean stop");
    check_log(world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_seen_once_through_20_kills() {
    let _turn = alone().await;
    let world = world("once_kills").await;
    let writers = Writers::start(&world.database_url, 1, 3);
    let mut random = StdRng::seed_from_u64(4);
    for _ in 0..KILLS {
        let daemon = start(&world);
        acknowledged(&world.http, random.random_range(0..400)).await;
        daemon.kill();
    }
    let daemon = start(&world);
    writers.stop().await;
    ends_well(&world, daemon).await;
    let log = std::fs::read_to_string(log_of(&world, "first")).expect("the log");
    assert!(!log.contains("did not stop cleanly"), "a fenced predecessor is not waited out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_twin_that_was_asleep_does_no_harm() {
    let _turn = alone().await;
    let world = world("once_twin").await;
    let writers = Writers::start(&world.database_url, 1, 3);
    let (other, http) = (world.config.with_file_name("twin.toml"), free_address());
    let text = std::fs::read_to_string(&world.config).expect("the config");
    std::fs::write(&other, text.replace(&world.http, &http)).expect("the twin's config");
    let mut first = start(&world);
    acknowledged(&world.http, 200).await;
    first.signal("STOP");
    let (client, _connection) = world.client().await;
    let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
               WHERE slot_name = $1 AND active";
    client.execute(sql, &[&world.name]).await.expect("its walsender ends");
    let second = Daemon::start_with(&other, &log_of(&world, "second"), ONLY);
    acknowledged(&http, 200).await;
    first.signal("CONT");
    // It has lost both its connection and its transactional id: whichever it meets first.
    eventually("the twin has given way", PATIENCE, || async {
        let said = std::fs::read_to_string(log_of(&world, "first")).ok()?;
        let (waits, fenced) = ("waiting for slot, held by another", "fenced: another daemon");
        (said.contains(waits) || said.contains(fenced)).then_some(())
    })
    .await;
    let sent = metric_at(&http, "onelog_kafka_records_total", "").await.unwrap_or_default();
    eventually("the second goes on", PATIENCE, || async {
        let now = metric_at(&http, "onelog_kafka_records_total", "").await?;
        (sent + 200.0 <= now).then_some(())
    })
    .await;
    writers.stop().await;
    world.confirmed_to(WAL_END).await;
    if first.is_alive() {
        first.kill();
    }
    assert!(second.stop().await.success(), "a clean stop");
    check_log(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_fenced_halts_and_says_so() {
    let _turn = alone().await;
    let world = world("once_fenced").await;
    let writers = Writers::start(&world.database_url, 1, 1);
    let mut daemon = start(&world);
    acknowledged(&world.http, 20).await;
    // The slot stays its own: what a copy of the database would do.
    let (id, brokers) = (format!("{0}.onelog.{0}", world.name), server("ONELOG_TEST_KAFKA"));
    let other: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("transactional.id", id)
        .create()
        .expect("a producer");
    other.init_transactions(PATIENCE).expect("it takes the id");
    let status = daemon.ended(PATIENCE).await;
    assert_eq!(status.code(), Some(1), "it halts");
    let said = daemon.log_text();
    assert!(said.contains("fenced: another daemon has taken transactional id"), "{said}");
    writers.stop().await;

    let daemon = start(&world);
    ends_well(&world, daemon).await;
}

/// A stop in the middle of a large transaction gives up what was sent of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_within_a_transaction_of_postgres_repeats_nothing() {
    let _turn = alone().await;
    let world = world("once_stop").await;
    let (client, _connection) = world.client().await;
    let rows = "INSERT INTO event (writer, nth) SELECT 1, g FROM generate_series(1, 60000) g";
    client.batch_execute(rows).await.expect("a large transaction");
    for limit in [1_000, 20_000] {
        let daemon = start(&world);
        acknowledged(&world.http, limit).await;
        assert!(daemon.stop().await.success(), "a clean stop");
    }
    let daemon = start(&world);
    ends_well(&world, daemon).await;
}

/// Postgres keeps a slot's position at checkpoints only: after a crash the slot is where it was
/// long ago, and what was published since would be sent again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_crashed_postgres_would_send_again_is_not_published_again() {
    let _turn = alone().await;
    let world = world("once_crash").await;
    let writers = Writers::start(&world.database_url, 1, 2);
    let daemon = start(&world);
    acknowledged(&world.http, 300).await;
    writers.stop().await;
    world.confirmed_to(WAL_END).await;
    let (client, _connection) = world.client().await;
    let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
    let before: String = client.query_one(sql, &[&world.name]).await.expect("the slot").get(0);
    daemon.signal("STOP");
    Away::kill("postgres").await.bring_back().await;
    let (client, _connection) = world.client().await;
    let sql = "SELECT confirmed_flush_lsn < $2::text::pg_lsn FROM pg_replication_slots \
               WHERE slot_name = $1";
    let row = client.query_one(sql, &[&world.name, &before]).await.expect("the slot");
    assert!(row.get::<_, bool>(0), "the slot is where it was at the last checkpoint");
    daemon.signal("CONT");
    let writers = Writers::start(&world.database_url, 11, 2);
    world.confirmed_to(WAL_END).await;
    writers.stop().await;
    ends_well(&world, daemon).await;
}

/// From plain records to transactions and back, also after a crash.
#[tokio::test(flavor = "multi_thread")]
async fn the_delivery_may_be_changed_at_any_start() {
    let _turn = alone().await;
    let world = world("once_switch").await;
    let exactly = std::fs::read_to_string(&world.config).expect("the config");
    let plain = exactly.replace("delivery = \"exactly-once\"", "delivery = \"at-least-once\"");
    let periods = [(&plain, false), (&exactly, true), (&plain, false), (&exactly, true)];
    for ((text, crash), first) in periods.into_iter().zip([1, 11, 21, 31]) {
        std::fs::write(&world.config, text).expect("the config is written");
        let daemon = start(&world);
        let writers = Writers::start(&world.database_url, first, 2);
        acknowledged(&world.http, 100).await;
        if crash {
            daemon.kill();
            writers.stop().await;
        } else {
            writers.stop().await;
            world.confirmed_to(WAL_END).await;
            // Within a transaction even a clean stop of plain records repeats some.
            assert!(daemon.stop().await.success(), "a clean stop");
        }
    }
    std::fs::write(&world.config, plain).expect("the config is written");
    let daemon = start(&world);
    ends_well(&world, daemon).await;
    let log = std::fs::read_to_string(log_of(&world, "first")).expect("the log");
    assert!(!log.contains("did not stop cleanly"), "a fenced predecessor is not waited out");
}

/// Translators read past open transactions, and the marks of their ends are no records that they
/// are behind.
#[tokio::test(flavor = "multi_thread")]
async fn documents_follow_a_log_of_transactions() {
    let _turn = alone().await;
    let wishes = Wishes { companies: 20, kafka: EXACTLY, ..Wishes::default() };
    let world = World::new("once_documents", wishes).await;
    world.onelog(&["prepare"]);
    let said = world.onelog(&["check"]);
    assert!(said.contains("exactly-once: Kafka transactions of up to 15m"), "{said}");
    let daemon = world.start();
    world.built().await;
    traffic::run_all(&world.database_url, 7, 2, 30).await;
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success(), "a clean stop");
}
