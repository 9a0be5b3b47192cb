//! Topics as a consumer reads them.

use std::collections::BTreeMap;
use std::time::Instant;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
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

/// Deletes topics, as somebody may who takes them for another's.
pub async fn delete(topics: &[String]) {
    let brokers = server("ONELOG_TEST_KAFKA");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &brokers).create().expect("a client");
    let names: Vec<&str> = topics.iter().map(String::as_str).collect();
    let options = AdminOptions::new().operation_timeout(Some(PATIENCE));
    for deleted in admin.delete_topics(&names, &options).await.expect("an answer") {
        deleted.expect("deleted");
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
    // What is there now: where somebody writes all the time, no end would ever be seen.
    let mut open: BTreeMap<i32, i64> = topic
        .partitions()
        .iter()
        .map(|it| {
            let ends = consumer.fetch_watermarks(topic.name(), it.id(), PATIENCE);
            (it.id(), ends.expect("a partition's ends").1)
        })
        .collect();
    let (begun, mut records) = (Instant::now(), Vec::new());
    while !open.is_empty() {
        let message = match consumer.poll(PATIENCE).expect("a record or an end") {
            Ok(message) => message,
            Err(KafkaError::PartitionEOF(number)) => {
                open.remove(&number);
                continue;
            }
            // A connection that broke is made anew.
            Err(error) => {
                assert!(begun.elapsed() < PATIENCE, "{error}");
                continue;
            }
        };
        let Some(end) = open.get(&message.partition()) else { continue };
        if message.offset() + 1 >= *end {
            open.remove(&message.partition());
        }
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
