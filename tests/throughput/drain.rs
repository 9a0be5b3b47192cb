//! Capture drains a backlog: the three loads of deploy/sample/bench, each beside `pg_recvlogical`
//! on a copy of the same slot in the same run, alternating. One of them also with Kafka's
//! transactions.

use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio_postgres::Client;

use crate::bed::{Bed, Names, binary, finished, sample};
use crate::report::{Aim, Report, median};
use crate::support::server;
use crate::{scaled, support};

const ROUNDS: usize = 3;

/// Not counted: the broker's JVM compiles what it needs during the first million records or two.
const WARM_UP_ROUNDS: usize = 2;

const EXACTLY_ONCE: &str = "delivery = \"exactly-once\"";

/// A drain never takes longer than this, or it hangs.
const PATIENCE: Duration = Duration::from_secs(300);

struct Load {
    name: &'static str,
    table: &'static str,
    title: &'static str,
    rows: u64,
}

/// What one drain of ours cost.
struct Cost {
    seconds: f64,
    cpu_seconds: f64,
    peak_megabytes: f64,
}

pub async fn measure() {
    let bed = Bed::new("drain").await;
    bed.psql("capture.sql", &[]);
    let loads = [
        Load {
            name: "a",
            table: "bench_small",
            title: "a: small transactions",
            rows: scaled(1_000_000),
        },
        Load {
            name: "b",
            table: "bench_wide",
            title: "b: wide rows, single",
            rows: scaled(300_000) / 8 * 8,
        },
        Load {
            name: "c",
            table: "bench_big",
            title: "c: one transaction",
            rows: scaled(1_000_000),
        },
    ];
    let wanted = std::env::var("ONELOG_BENCH_LOADS").unwrap_or_else(|_| "abc".to_owned());
    let mut report = Report::new("capture_drain", "Capture: draining a backlog");
    for load in loads.iter().filter(|it| wanted.contains(it.name)) {
        drain(&bed, load, &mut report).await;
    }
    report.note(&format!(
        "The ratio is the median of {ROUNDS} rounds, each `pg_recvlogical -f /dev/null` and then \
         `onelog run --only capture` on copies of one slot, from process start to the last record \
         in Kafka, after {WARM_UP_ROUNDS} drains that are not counted. `exactly-once` is beside \
         at-least-once, and ends when the slot is confirmed: its offsets count the ends of \
         transactions too."
    ));
    report.publish();
}

async fn drain(bed: &Bed, load: &Load, report: &mut Report) {
    let (client, _connection) = bed.client().await;
    let base = format!("{}_base_{}", bed.name, load.name);
    let publication = format!("{}_{}", bed.name, load.name);
    let sql = format!("CREATE PUBLICATION {publication} FOR TABLE {}", load.table);
    client.batch_execute(&sql).await.unwrap();
    let sql = format!("SELECT pg_create_logical_replication_slot('{base}', 'pgoutput')");
    client.batch_execute(&sql).await.unwrap();
    fill(bed, load);
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    let end: String = row.get(0);
    // Also flushes what asynchronous commits have left.
    client.batch_execute("CHECKPOINT").await.unwrap();

    let of = |slot: &str| Backlog { slot: slot.to_owned(), publication: publication.clone(), load };
    for round in 0..WARM_UP_ROUNDS {
        let slot = format!("{base}_warm_{round}");
        copy_slot(&client, &base, &slot).await;
        capture(bed, &of(&slot), "").await;
        drop_slot(&client, &slot).await;
    }
    let (mut ratios, mut rates, mut their_rates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cpu, mut peak, mut once) = (Vec::new(), 0.0f64, Vec::new());
    let millions = load.rows as f64 / 1e6;
    for round in 1..=ROUNDS {
        let slot = format!("{base}_{round}");
        copy_slot(&client, &base, &slot).await;
        let theirs = recvlogical(bed, (&slot, &publication), &end);
        drop_slot(&client, &slot).await;
        copy_slot(&client, &base, &slot).await;
        let ours = capture(bed, &of(&slot), "").await;
        drop_slot(&client, &slot).await;
        println!(
            "load {} round {round}: pg_recvlogical {theirs:.2} s, onelog {:.2} s, {:.2} CPU-s, {:.1} MB",
            load.name, ours.seconds, ours.cpu_seconds, ours.peak_megabytes
        );
        ratios.push(theirs / ours.seconds);
        rates.push(load.rows as f64 / ours.seconds);
        their_rates.push(load.rows as f64 / theirs);
        cpu.push(ours.cpu_seconds / millions);
        peak = peak.max(ours.peak_megabytes);
        if load.name == "a" {
            let slot = format!("{base}_once_{round}");
            copy_slot(&client, &base, &slot).await;
            once.push(capture(bed, &of(&slot), EXACTLY_ONCE).await);
            drop_slot(&client, &slot).await;
        }
    }
    drop_slot(&client, &base).await;
    let title = load.title;
    // The medians of the rates, but the median of the ratios: each round has its own weather.
    let rate = (median(&rates), "rows/s");
    report.beside(title, rate, median(&their_rates), Aim::None);
    let ratio = median(&ratios);
    report.row(&format!("{title}, ratio"), ratio, "×", Aim::AtLeast(1.0, 1.8));
    // The aim is for small rows.
    let aim = if load.name == "b" { Aim::None } else { Aim::AtMost(6.0, 3.0) };
    report.row(&format!("{title}, CPU per million rows"), median(&cpu), "s", aim);
    report.row(&format!("{title}, peak memory"), peak, "MB", Aim::AtMost(60.0, 40.0));
    if !once.is_empty() {
        let of = |each: fn(&Cost) -> f64| median(&once.iter().map(each).collect::<Vec<_>>());
        let title = format!("{title}, exactly-once");
        let rate = (load.rows as f64 / of(|it| it.seconds), "rows/s");
        report.beside(&title, rate, median(&rates), Aim::None);
        let its_cpu = (of(|it| it.cpu_seconds) / millions, "s");
        report.beside(&format!("{title}, CPU per million rows"), its_cpu, median(&cpu), Aim::None);
    }
}

fn fill(bed: &Bed, load: &Load) {
    let rows = format!("rows={}", load.rows);
    match load.name {
        "a" => bed.psql("capture_a.sql", &[rows]),
        "c" => bed.psql("capture_c.sql", &[rows]),
        _ => {
            let each = (load.rows / 8).to_string();
            finished(
                Command::new(binary("pgbench"))
                    .env("PGOPTIONS", "-c synchronous_commit=off")
                    .args(["-n", "-c", "4", "-j", "2", "-t", &each, "-D", "row=0", "-f"])
                    .arg(sample("capture_b.pgbench"))
                    .arg(&bed.url),
            );
        }
    }
}

async fn copy_slot(client: &Client, base: &str, slot: &str) {
    let sql = format!("SELECT pg_copy_logical_replication_slot('{base}', '{slot}')");
    client.batch_execute(&sql).await.unwrap();
}

/// Waits until nobody holds the slot any more.
pub async fn drop_slot(client: &Client, slot: &str) {
    let sql = format!("SELECT pg_drop_replication_slot('{slot}')");
    support::eventually("the slot is free", Duration::from_secs(20), || async {
        client.batch_execute(&sql).await.ok()
    })
    .await;
}

/// Seconds that Postgres' own client takes, which writes nothing anywhere.
fn recvlogical(bed: &Bed, (slot, publication): (&str, &str), end: &str) -> f64 {
    let publication = format!("publication_names={publication}");
    let started = Instant::now();
    finished(Command::new(binary("pg_recvlogical")).args([
        "-d",
        &bed.url,
        "--slot",
        slot,
        "--start",
        "--no-loop",
        "--endpos",
        end,
        "-f",
        "/dev/null",
        "-o",
        "proto_version=1",
        "-o",
        &publication,
    ]));
    started.elapsed().as_secs_f64()
}

/// A slot with a load before it.
struct Backlog<'a> {
    slot: String,
    publication: String,
    load: &'a Load,
}

async fn capture(bed: &Bed, of: &Backlog<'_>, more: &str) -> Cost {
    let (slot, load) = (&of.slot, of.load);
    let tables = format!("\"public.{}\"", load.table);
    let names = Names { own: slot, publication: &of.publication, tables: &tables, more };
    let config = bed.config(&names);
    bed.prepare(&config, &["--adopt-slot"]);
    let topic = format!("{slot}.public.{}", load.table);
    let watcher: BaseConsumer = kafka().create().unwrap();
    // Connects, so that this is not part of the measurement.
    assert_eq!(end_offset(&watcher, &topic), 0);
    let started = Instant::now();
    let process = bed.start(&config, &["--only", "capture"]);
    support::eventually("all records are in Kafka", PATIENCE, || async {
        let end = tokio::task::block_in_place(|| end_offset(&watcher, &topic));
        (end >= load.rows).then_some(())
    })
    .await;
    if more == EXACTLY_ONCE {
        bed.confirmed(slot, PATIENCE).await;
    }
    let cost = Cost {
        seconds: started.elapsed().as_secs_f64(),
        cpu_seconds: process.cpu_seconds(),
        peak_megabytes: process.peak_megabytes(),
    };
    process.stop().await;
    if more != EXACTLY_ONCE {
        assert_eq!(end_offset(&watcher, &topic), load.rows, "each change is one record");
    }
    delete_topic(&topic).await;
    cost
}

pub async fn delete_topic(topic: &str) {
    let admin: AdminClient<DefaultClientContext> = kafka().create().unwrap();
    admin.delete_topics(&[topic], &AdminOptions::new()).await.unwrap();
}

pub fn kafka() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", server("ONELOG_TEST_KAFKA"));
    config.set("group.id", "bench");
    config
}

pub fn end_offset(watcher: &BaseConsumer, topic: &str) -> u64 {
    let (_, high) = watcher.fetch_watermarks(topic, 0, Duration::from_secs(10)).unwrap();
    u64::try_from(high).unwrap()
}
