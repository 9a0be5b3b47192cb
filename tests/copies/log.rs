//! What a consumer of a topic knows: the last value of each key, and which records there were.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;
use tokio_postgres::Client;

use super::support::server;
use super::support::world::World;

const ANSWER_MAX: Duration = Duration::from_secs(30);

/// A topic, read to its end.
#[derive(Debug, Default)]
pub struct Log {
    /// Of keys that are not deleted: the row.
    pub rows: BTreeMap<String, Value>,
    /// Records by their op; tombstones are not counted.
    pub ops: BTreeMap<String, usize>,
    /// Every row of a record without a key.
    pub keyless: Vec<Value>,
}

/// Reads all of a table's topic.
pub async fn read(world: &World, table: &str) -> Log {
    let topic = format!("{}.public.{table}", world.name);
    let brokers = server("ONELOG_TEST_KAFKA");
    tokio::task::spawn_blocking(move || read_blocking(&brokers, &topic)).await.expect("no panic")
}

fn read_blocking(brokers: &str, topic: &str) -> Log {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_MAX).expect("metadata");
    let partitions = metadata.topics()[0].partitions();
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("a partition");
    }
    consumer.assign(&list).expect("assigned");
    let (mut log, mut ends) = (Log::default(), 0);
    while ends < partitions.len() {
        match consumer.poll(ANSWER_MAX).expect("a record or an end") {
            Ok(message) => log.take(message.key(), message.payload()),
            Err(_end) => ends += 1,
        }
    }
    log
}

impl Log {
    fn take(&mut self, key: Option<&[u8]>, value: Option<&[u8]>) {
        let key = key.map(|it| canonical(std::str::from_utf8(it).expect("UTF-8")));
        let Some(value) = value else {
            self.rows.remove(&key.expect("a tombstone has a key"));
            return;
        };
        let mut value: Value = serde_json::from_slice(value).expect("JSON");
        let op = value["op"].as_str().expect("an op").to_owned();
        let row = value["after"].take();
        *self.ops.entry(op).or_default() += 1;
        match key {
            None => self.keyless.push(row),
            Some(key) if row.is_null() => drop(self.rows.remove(&key)),
            Some(key) => drop(self.rows.insert(key, row)),
        }
    }

    pub fn reads(&self) -> usize {
        self.ops.get("r").copied().unwrap_or(0)
    }
}

/// A key with its columns in the order of their names.
fn canonical(json: &str) -> String {
    let value: BTreeMap<String, Value> = serde_json::from_str(json).expect("a key is an object");
    serde_json::to_string(&value).expect("JSON")
}

/// The table as Postgres has it, by key.
pub async fn table(client: &Client, table: &str, key: &[&str]) -> BTreeMap<String, Value> {
    let pairs: Vec<String> = key.iter().map(|it| format!("'{it}', \"{it}\"")).collect();
    let sql = format!(
        "SELECT jsonb_build_object({})::text, to_jsonb(the_row)::text FROM \"{table}\" the_row",
        pairs.join(",")
    );
    client.batch_execute("SET TimeZone = 'UTC'").await.expect("a setting");
    let rows = client.query(&sql, &[]).await.expect("the table's rows");
    rows.iter()
        .map(|row| {
            let (key, value): (String, String) = (row.get(0), row.get(1));
            (canonical(&key), serde_json::from_str(&value).expect("JSON"))
        })
        .collect()
}

/// The law of every copy: the log's last value of each key is the table's row.
#[track_caller]
pub fn check(log: &Log, table: &BTreeMap<String, Value>) {
    let faults: Vec<String> = table
        .keys()
        .chain(log.rows.keys())
        .filter(|key| table.get(*key) != log.rows.get(*key))
        .take(3)
        .map(|key| {
            format!("{key}: {:?} in the log, {:?} in the table", log.rows.get(key), table.get(key))
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
