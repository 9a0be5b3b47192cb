//! Topics as a consumer reads them.

use std::collections::BTreeMap;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;

use super::server;
use super::world::PATIENCE;

/// A record as it is in Kafka.
#[derive(Debug)]
pub struct Found {
    pub key: Option<String>,
    pub value: Option<String>,
    pub headers: BTreeMap<String, String>,
}

impl Found {
    pub fn json(&self) -> Value {
        serde_json::from_str(self.value.as_deref().expect("a value")).expect("JSON")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// All records of a topic, each partition in its order; none if there is no such topic.
pub fn read(topic: &str) -> Vec<Found> {
    read_at(&server("ONELOG_TEST_KAFKA"), topic)
}

/// The same at other brokers. What is in a transaction counts once that is committed.
pub fn read_at(brokers: &str, topic: &str) -> Vec<Found> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("allow.auto.create.topics", "false")
        .create()
        .expect("a consumer");
    let metadata = consumer.fetch_metadata(None, PATIENCE).expect("metadata");
    let Some(topic) = metadata.topics().iter().find(|it| it.name() == topic) else {
        return Vec::new();
    };
    let mut list = TopicPartitionList::new();
    for partition in topic.partitions() {
        list.add_partition_offset(topic.name(), partition.id(), Offset::Beginning)
            .expect("a partition");
    }
    consumer.assign(&list).expect("assigned");
    let (mut ends, mut records) = (0, Vec::new());
    while ends < topic.partitions().len() {
        let Ok(message) = consumer.poll(PATIENCE).expect("a record or an end") else {
            ends += 1;
            continue;
        };
        let text = |it: &[u8]| String::from_utf8_lossy(it).into_owned();
        let headers = message.headers().map_or_else(BTreeMap::new, |all| {
            all.iter().map(|it| (it.key.to_owned(), text(it.value.unwrap_or(b"")))).collect()
        });
        records.push(Found {
            key: message.key().map(text),
            value: message.payload().map(text),
            headers,
        });
    }
    records
}
