//! Transactions whose every change can be told from every other, and the count of them in the log.
//!
//! Each writer counts its transactions in a row of its own, so that a change that is repeated,
//! lost or out of order shows in that row's records; and inserts rows under ids never used again.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::world::{PATIENCE, World, connect};
use crate::support::{eventually, server};

pub const TABLES: &str = "CREATE TABLE counter (writer int PRIMARY KEY, nth int NOT NULL); \
     CREATE TABLE event (id bigserial PRIMARY KEY, writer int NOT NULL, nth int NOT NULL)";

/// Transactions a second of each writer: enough for every Kafka transaction to hold some.
const PACE: Duration = Duration::from_millis(4);

/// Writers that go on until they are stopped.
pub struct Writers {
    stopped: CancellationToken,
    running: JoinSet<()>,
}

impl Writers {
    /// `first`: their numbers are unique in a test.
    pub fn start(url: &str, first: i32, writers: i32) -> Self {
        let stopped = CancellationToken::new();
        let mut running = JoinSet::new();
        for writer in first..first + writers {
            let (url, stopped) = (url.to_owned(), stopped.clone());
            running.spawn(async move {
                let (client, _connection) = connect(&url).await;
                let mut pace = tokio::time::interval(PACE);
                for nth in 1.. {
                    let sql = one_transaction(writer, nth);
                    client.batch_execute(&sql).await.expect("the transaction commits");
                    pace.tick().await;
                    if stopped.is_cancelled() {
                        return;
                    }
                }
            });
        }
        Self { stopped, running }
    }

    /// Lets each end its transaction.
    pub async fn stop(mut self) {
        self.stopped.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended.expect("every transaction commits");
        }
    }
}

fn one_transaction(writer: i32, nth: i32) -> String {
    // Some transactions are rolled back, some are of one row, some of many.
    let rows = 1 + nth % 5;
    let gone = format!("BEGIN; INSERT INTO event (writer, nth) VALUES ({writer}, -1); ROLLBACK;");
    format!(
        "{} BEGIN; \
         INSERT INTO counter VALUES ({writer}, {nth}) ON CONFLICT (writer) DO UPDATE SET nth = {nth}; \
         INSERT INTO event (writer, nth) SELECT {writer}, {nth} FROM generate_series(1, {rows}); \
         COMMIT",
        if nth % 10 == 0 { gone } else { String::new() }
    )
}

/// Who reads committed records has seen each change once, those of each key in order. No daemon
/// runs any more.
pub async fn check_log(world: &World) {
    let (client, _connection) = world.client().await;
    let rows = client.query("SELECT id FROM event ORDER BY id", &[]).await.expect("the events");
    let expected: Vec<i64> = rows.iter().map(|it| it.get(0)).collect();
    let records = committed(&format!("{}.public.event", world.name)).await;
    let mut found: Vec<i64> =
        records.iter().map(|it| it["after"]["id"].as_i64().expect("an id")).collect();
    found.sort_unstable();
    let times =
        |id: &i64| found.partition_point(|it| it <= id) - found.partition_point(|it| it < id);
    let wrong: Vec<(i64, usize)> =
        expected.iter().map(|id| (*id, times(id))).filter(|it| it.1 != 1).take(10).collect();
    assert!(wrong.is_empty(), "events not seen once, with how often they were: {wrong:?}");
    assert_eq!(found, expected, "and none that is not there");

    let rows = client.query("SELECT writer, nth FROM counter", &[]).await.expect("the counters");
    let expected: BTreeMap<i64, Vec<i64>> = rows
        .iter()
        .map(|it| (i64::from(it.get::<_, i32>(0)), (1..=i64::from(it.get::<_, i32>(1))).collect()))
        .collect();
    let mut counted: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for record in committed(&format!("{}.public.counter", world.name)).await {
        let number = |it: &str| record["after"][it].as_i64().expect("a number");
        counted.entry(number("writer")).or_default().push(number("nth"));
    }
    for (writer, expected) in expected {
        let found = counted.remove(&writer).unwrap_or_default();
        let at = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        let near = &found[at.saturating_sub(3)..found.len().min(at + 5)];
        assert!(found == expected, "the counts of writer {writer} from {at} on: {near:?}");
    }
    assert!(counted.is_empty(), "writers that are not there: {counted:?}");
}

fn reader(isolation: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", server("ONELOG_TEST_KAFKA"))
        .set("group.id", "once")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("isolation.level", isolation)
        .create()
        .expect("a consumer")
}

/// Whether a transaction is open that has records in this topic.
pub async fn has_open(topic: &str) -> bool {
    let (topic, brokers) = (topic.to_owned(), ["read_committed", "read_uncommitted"].map(reader));
    let asked = tokio::task::spawn_blocking(move || {
        let [committed, all] = brokers;
        let metadata = all.fetch_metadata(Some(&topic), PATIENCE).expect("the topic's metadata");
        let end = |it: &BaseConsumer, partition| {
            it.fetch_watermarks(&topic, partition, PATIENCE).expect("the partition's end").1
        };
        let partitions = metadata.topics()[0].partitions().iter().map(|it| it.id());
        let open = |partition| end(&committed, partition) < end(&all, partition);
        partitions.into_iter().any(open)
    });
    asked.await.expect("no panic")
}

/// The values of all records of a topic that are committed, those of a partition in order.
pub async fn committed(topic: &str) -> Vec<Value> {
    // Kafka says that a transaction has ended before every partition knows.
    eventually("every transaction has ended", PATIENCE, || async {
        (!has_open(topic).await).then_some(())
    })
    .await;
    let consumer = reader("read_committed");
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("the topic's metadata");
    let partitions = metadata.topics()[0].partitions();
    let mut all = TopicPartitionList::new();
    for partition in partitions {
        let added = all.add_partition_offset(topic, partition.id(), Offset::Beginning);
        added.expect("a position");
    }
    consumer.assign(&all).expect("an assignment");
    let (mut ends, mut values) = (0, Vec::new());
    while ends < partitions.len() {
        match consumer.poll(PATIENCE).expect("a record or an end") {
            Ok(message) => {
                let value = message.payload().expect("nothing is deleted");
                values.push(serde_json::from_slice(value).expect("JSON"));
            }
            Err(KafkaError::PartitionEOF(_)) => ends += 1,
            Err(error) => panic!("reading {topic}: {error}"),
        }
    }
    values
}
