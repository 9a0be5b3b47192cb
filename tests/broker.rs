//! A broker that refuses, or leaves: rights are taken away, the disk is full, the last broker shuts
//! down. Capture waits, says why, and goes on by itself when it is mended; nothing is lost.

#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use onelog::config::{Delivery, KafkaConfig};
use onelog::kafka::delivery::LogProducer;
use onelog::kafka::envelope::OutRecord;
use onelog::kafka::reader::Reader;
use onelog::kafka::topics::{WantedTopic, ensure_topics};
use onelog::lsn::Lsn;
use onelog::metrics::Metrics;
use rdkafka::consumer::Consumer;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;
use support::broker::Broker;
use support::eventually;
use support::log::read_at;
use support::world::{PATIENCE, Wishes, World};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";
const EXACTLY: &str = "delivery = \"exactly-once\"\ntransaction_interval = \"40ms\"";
const WAL_END: &str = "pg_current_wal_insert_lsn()";

/// A world whose log is at this broker, prepared with all rights. `to`: what these are to.
async fn world(broker: &Broker, name: &str, kafka: &str) -> World {
    let wishes = Wishes { instead: Some(TABLES), kafka, ..Wishes::default() };
    let world = World::new(name, wishes).await;
    broker.serve(&world);
    let name = world.name.as_str();
    broker.rights("--add", &["--topic", name, "--group", name, "--transactional-id", name]);
    world.onelog(&["prepare"]);
    world
}

async fn run(world: &World, sql: &str) {
    let (client, _connection) = world.client().await;
    client.batch_execute(sql).await.unwrap();
}

async fn ready(world: &World) {
    eventually("/readyz answers 200", PATIENCE, || async {
        world.http("/readyz").await.filter(|(status, _)| *status == 200)
    })
    .await;
}

/// Waits until /readyz gives a reason with these words.
async fn red(world: &World, words: &str) {
    eventually(&format!("/readyz says {words:?}"), PATIENCE, || async {
        let (status, body) = world.http("/readyz").await?;
        (status == 503 && body.contains(words)).then_some(())
    })
    .await;
}

/// The log's last value of each key is the table's row; how many records there are.
async fn right(world: &World, broker: &Broker) -> usize {
    world.confirmed_to(WAL_END).await;
    let records = read_at(&broker.address, &format!("{}.public.t", world.name));
    let mut found: BTreeMap<i64, Value> = BTreeMap::new();
    for record in &records {
        let row = record.json()["after"].take();
        found.insert(row["id"].as_i64().unwrap(), row);
    }
    let (client, _connection) = world.client().await;
    let rows = client.query("SELECT to_jsonb(t)::text FROM t ORDER BY id", &[]).await.unwrap();
    let rows = rows.iter().map(|it| serde_json::from_str(it.get(0)).unwrap());
    assert!(found.into_values().eq(rows.collect::<Vec<Value>>()), "the log is not the table");
    records.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_taken_away_are_waited_for() {
    let broker = Broker::start("unlimited").await;
    for (name, kafka, kind) in
        [("rights", "", "--topic"), ("rights_once", EXACTLY, "--transactional-id")]
    {
        let world = world(&broker, name, kafka).await;
        let mut daemon = world.start_capture();
        run(&world, "INSERT INTO t VALUES (1, 'before')").await;
        ready(&world).await;
        world.confirmed_to(WAL_END).await;

        broker.rights("--remove", &[kind, &world.name]);
        run(&world, "INSERT INTO t VALUES (2, 'meanwhile'); UPDATE t SET v = 'u' WHERE id = 1")
            .await;
        red(&world, "Rights in Kafka").await;
        eventually("the metric says it too", PATIENCE, || async {
            world.metric("onelog_capture_refused").await.filter(|it| *it == 1.0)
        })
        .await;
        assert!(daemon.is_alive() && daemon.log_text().contains("capture waits for a person"));

        broker.rights("--add", &[kind, &world.name]);
        ready(&world).await;
        run(&world, "INSERT INTO t VALUES (3, 'after')").await;
        let records = right(&world, &broker).await;
        assert!(4 <= records && (kafka.is_empty() || records == 4), "{records} records");
        assert_eq!(world.metric("onelog_capture_refused").await, Some(0.0));
        assert!(daemon.stop().await.success());
    }
}

/// A broker whose only disk is full ends itself, as its log can't be written any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for() {
    // KiB. An index that Kafka makes has 10 MB.
    let mut broker = Broker::start("16384").await;
    let world = world(&broker, "full", "").await;
    let mut daemon = world.start_capture();
    run(&world, "INSERT INTO t VALUES (0, 'before')").await;
    ready(&world).await;
    // 20 MB that don't get smaller by compression.
    let rows = "INSERT INTO t SELECT g, string_agg(md5(g::text || n), '') \
                FROM generate_series(1, 40) g, generate_series(1, 16000) n GROUP BY g";
    run(&world, rows).await;
    broker.ended().await;
    assert!(broker.log_text().contains("File too large"), "{}", broker.log_text());
    red(&world, "Kafka").await;
    assert!(daemon.is_alive());
    // What was there stays, and there is room again.
    broker.up("unlimited").await;
    run(&world, "INSERT INTO t VALUES (41, 'after')").await;
    let records = right(&world, &broker).await;
    assert!(42 <= records, "{records} records");
    assert!(daemon.stop().await.success());
}

/// Many partitions are many questions while the broker leaves.
const TOPICS: usize = 12;

fn topic(nth: usize) -> String {
    format!("lost_cluster.public.t{nth}")
}

fn config(brokers: String) -> KafkaConfig {
    KafkaConfig {
        brokers,
        topic_prefix: "lost_cluster".to_owned(),
        delivery: Delivery::AtLeastOnce,
        delivery_timeout: Duration::from_secs(2),
        socket_timeout: Duration::from_secs(5),
        partitions: 1,
        replication_factor: 1,
        topics: Vec::new(),
        min_compaction_lag: Duration::from_secs(7 * 24 * 3600),
        group_id: "lost_cluster".to_owned(),
        properties: Vec::new(),
    }
}

/// Sends fifty times a second, session after session. `delivered`: how many records so far.
async fn send(config: KafkaConfig, delivered: watch::Sender<u64>) {
    let metrics = Metrics::new();
    let producer = LogProducer::new(&config, &metrics).unwrap();
    let topics: Vec<String> = (0..TOPICS).map(topic).collect();
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        producer.quiet(PATIENCE).await.unwrap();
        producer.resume(Lsn(0));
        let seq = producer.begin();
        while producer.standing().is_ok() {
            for topic in &topics {
                let (key, value) = (Some(&b"k"[..]), Some(&b"v"[..]));
                drop(producer.send(seq, OutRecord { topic, key, value, header: None }, &[]).await);
            }
            pace.tick().await;
            delivered.send_replace(metrics.kafka_records_total.get());
        }
    }
}

/// Reads on and on. `read`: how many records so far.
async fn receive(config: KafkaConfig, read: watch::Sender<u64>) {
    let reader = Reader::new(&config, &[("group.id", config.group_id.clone())]).unwrap();
    let mut from = TopicPartitionList::new();
    for nth in 0..TOPICS {
        from.add_partition_offset(&topic(nth), 0, Offset::End).unwrap();
    }
    reader.consumer().assign(&from).unwrap();
    loop {
        let received = u64::from(reader.recv().await.is_ok());
        read.send_modify(|it| *it += received);
        tokio::task::yield_now().await;
    }
}

/// Of many clients some ask the broker just while it shuts down, and lose it: librdkafka's issue
/// 5301. Chance decides: without the cure one of three runs with two restarts failed.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_lose_their_cluster_find_it_again() {
    let mut broker = Broker::start("unlimited").await;
    let config = config(broker.address.clone());
    let wanted = |nth| WantedTopic::of_table(&config, &topic(nth), true);
    let wanted: Vec<WantedTopic> = (0..TOPICS).map(wanted).collect();
    ensure_topics(&config, &wanted, false).await.unwrap();
    let (mut clients, mut counts) = (JoinSet::new(), Vec::new());
    for nth in 0..24 {
        let (count, counted) = watch::channel(0);
        counts.push(counted);
        match nth % 2 {
            0 => clients.spawn(send(config.clone(), count)),
            _ => clients.spawn(receive(config.clone(), count)),
        };
    }
    for _ in 0..4 {
        let seen: Vec<u64> = counts.iter().map(|it| *it.borrow()).collect();
        broker.stop().await;
        broker.up("unlimited").await;
        // Enough to be none that was on its way.
        for (counted, before) in counts.iter_mut().zip(seen) {
            let goes_on = counted.wait_for(|it| before + 200 < *it);
            tokio::time::timeout(PATIENCE, goes_on).await.expect("it goes on").unwrap();
        }
    }
}
