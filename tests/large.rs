//! Rows that are too large for their topic, and tables whose rows have no key any more: the stream
//! goes on, the documents are right, and a person is told what to do.

#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

mod support;

use std::collections::BTreeMap;

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::world::{PATIENCE, Wishes, World};
use support::{eventually, server};
use tokio::task::JoinSet;
use tokio_postgres::Client;

const TABLES: &str = "
CREATE TABLE owner (id int PRIMARY KEY, name text);
CREATE TABLE page (id int PRIMARY KEY, owner_id int, title text, body text);
ALTER TABLE page REPLICA IDENTITY FULL;
ALTER TABLE page ALTER body SET STORAGE EXTERNAL;
INSERT INTO owner VALUES (1, 'one'), (2, 'two');
";

const MAPPING: &str = r#"
[[denormalization]]
collection = "owner_page"
key = "id"
sql = "SELECT id, name FROM owner"

[[denormalization]]
collection = "owner_page"
key = "id"
nest_as = "pages"
optional = true
sql = "SELECT owner_id AS id, id AS page, title, length(body) AS length FROM page ORDER BY page"
"#;

const UNAVAILABLE: &str = "__debezium_unavailable_value";

struct Bed {
    world: World,
    daemon: Daemon,
    client: Client,
    _connection: JoinSet<()>,
}

impl Bed {
    async fn new(name: &str) -> Self {
        let wishes = Wishes { instead: Some(TABLES), ..Wishes::default() };
        let world = World::new(name, wishes).await;
        std::fs::write(world.mappings.join("owner_page.toml"), MAPPING).unwrap();
        world.onelog(&["prepare"]);
        let daemon = world.start();
        world.built().await;
        let (client, connection) = world.client().await;
        Self { world, daemon, client, _connection: connection }
    }

    /// Runs the statement, and waits until the documents are what they are to be then.
    async fn step(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|it| panic!("{sql}: {it:?}"));
        self.world.quiet().await;
        self.world.check_documents().await;
    }

    fn topic(&self, table: &str) -> String {
        format!("{}.public.{table}", self.world.name)
    }

    fn dead_letters(&self) -> Vec<Record> {
        read(&format!("{}.onelog.dead-letter", self.world.name))
    }

    /// How often capture had to begin anew.
    async fn restarts(&self) -> Option<f64> {
        self.world.metric_where("onelog_stage_restarts_total", "stage=\"capture\"").await
    }

    async fn buried(&self) -> Option<f64> {
        self.world.metric_where("onelog_dead_letters_total", "reason=\"change\"").await
    }
}

#[derive(Debug)]
struct Record {
    key: Value,
    /// Null: a tombstone.
    value: Value,
    headers: BTreeMap<String, String>,
}

impl Record {
    /// `op key before.title before.body`, then the same of `after`; long values by their length.
    fn short(&self) -> String {
        let column = |image: &str, name: &str| match &self.value[image][name] {
            Value::String(text) if text == UNAVAILABLE => "-".to_owned(),
            Value::String(text) if text.len() > 20 => text.len().to_string(),
            other => other.to_string(),
        };
        let images = ["before", "after"]
            .map(|it| [column(it, "owner_id"), column(it, "title"), column(it, "body")].join(" "));
        let oversize = self.headers.contains_key("oversize-bytes");
        let key = &self.key;
        match &self.value {
            Value::Null => format!("tombstone {key}"),
            value => {
                let op = value["op"].as_str().unwrap();
                format!(
                    "{op} {key} {} / {}{}",
                    images[0],
                    images[1],
                    if oversize { " !" } else { "" }
                )
            }
        }
    }
}

/// All records of a topic of one partition.
fn read(topic: &str) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", server("ONELOG_TEST_KAFKA"))
        .set("group.id", "test")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let mut records = Vec::new();
    // An error is the partition's end.
    while let Ok(message) = consumer.poll(PATIENCE).expect("a record or the end") {
        let json =
            |it: Option<&[u8]>| it.map_or(Value::Null, |it| serde_json::from_slice(it).unwrap());
        let text = |it: &[u8]| String::from_utf8(it.to_vec()).unwrap();
        let headers = message.headers().into_iter().flat_map(|it| it.iter());
        let headers = headers.map(|it| (it.key.to_owned(), text(it.value.unwrap()))).collect();
        let (key, value) = (json(message.key()), json(message.payload()));
        records.push(Record { key, value, headers });
    }
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_beyond_the_limit_goes_without_its_largest_values_and_documents_are_right() {
    let bed = Bed::new("oversize").await;
    bed.step("INSERT INTO page VALUES (1, 1, 'small', repeat('x', 900))").await;
    // 12 MB are more than the topic takes, and more than any default of the broker.
    bed.step("UPDATE page SET body = repeat('x', 12000000), title = 'large'").await;
    // The old image leads to the document that it leaves, the new one to where it goes.
    bed.step("UPDATE page SET owner_id = 2").await;
    bed.step("UPDATE page SET id = 5, body = repeat('y', 11000000)").await;
    bed.step("DELETE FROM page").await;
    bed.step("INSERT INTO page VALUES (6, 1, 'next', 'small')").await;

    let log: Vec<String> = read(&bed.topic("page")).iter().map(Record::short).collect();
    let expected = [
        r#"c {"id":1} null null null / 1 "small" 900"#,
        r#"u {"id":1} 1 "small" 900 / 1 "large" - !"#,
        r#"u {"id":1} 1 "large" - / 2 "large" - !"#,
        r#"d {"id":1} 2 "large" - / null null null !"#,
        r#"tombstone {"id":1}"#,
        r#"c {"id":5} null null null / 2 "large" - !"#,
        r#"d {"id":5} 2 "large" - / null null null !"#,
        r#"tombstone {"id":5}"#,
        r#"c {"id":6} null null null / 1 "next" "small""#,
    ];
    assert_eq!(log, expected);

    let letters = bed.dead_letters();
    let keys: Vec<String> = letters.iter().map(|it| it.key["id"].to_string()).collect();
    assert_eq!(keys, ["1", "1", "1", "5", "5"], "one for each record that was too large");
    let headers = &letters[1].headers;
    let of = |name: &str| headers[name].as_str();
    assert_eq!((of("kind"), of("table")), ("change", "public.page"));
    assert_eq!(of("topic"), bed.topic("page"));
    assert!(of("size").parse::<u64>().unwrap() > 24_000_000, "both images: {}", of("size"));
    assert!(of("position").contains('/') && of("reason").contains("max.message.bytes"));
    assert!(letters.iter().all(|it| it.value == Value::Null));
    assert_eq!((bed.buried().await, bed.restarts().await), (Some(5.0), Some(0.0)));
    let said = bed.daemon.log_text();
    assert!(said.contains("a record goes without its largest values"), "{said}");
    assert!(bed.daemon.stop().await.success());
}

/// Lets a topic take 20 MB.
async fn raise_limit(topic: &str) {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", server("ONELOG_TEST_KAFKA")).create().unwrap();
    let config = AlterConfig::new(ResourceSpecifier::Topic(topic))
        .set("cleanup.policy", "compact")
        .set("message.timestamp.type", "LogAppendTime")
        .set("min.compaction.lag.ms", "604800000")
        .set("max.message.bytes", "20000000");
    for altered in admin.alter_configs([&config], &AdminOptions::new()).await.unwrap() {
        altered.unwrap();
    }
}

/// Between our queue's 8 MB and a message's 10 MB a record would wait for room for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_beyond_our_own_queue_is_not_waited_for() {
    let mut bed = Bed::new("queue").await;
    raise_limit(&bed.topic("page")).await;
    bed.step("INSERT INTO page VALUES (1, 1, 'fits', repeat('x', 8000000))").await;
    bed.step("INSERT INTO page VALUES (2, 1, 'large', repeat('x', 9000000))").await;
    assert_eq!(bed.buried().await, Some(1.0));

    // What the dead letter says is what helps.
    assert!(bed.daemon.stop().await.success());
    let text = std::fs::read_to_string(&bed.world.config).unwrap();
    let raised = "properties = { \"queue.buffering.max.kbytes\" = \"20000\", \
                  \"message.max.bytes\" = \"20000000\",";
    std::fs::write(&bed.world.config, text.replace("properties = {", raised)).unwrap();
    bed.daemon = bed.world.start();
    bed.step("INSERT INTO page VALUES (3, 1, 'raised', repeat('x', 9000000))").await;
    let log: Vec<String> = read(&bed.topic("page")).iter().map(Record::short).collect();
    let expected = [
        r#"c {"id":1} null null null / 1 "fits" 8000000"#,
        r#"c {"id":2} null null null / 1 "large" - !"#,
        r#"c {"id":3} null null null / 1 "raised" 9000000"#,
    ];
    assert_eq!(log, expected);
    assert!(bed.daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_loses_its_key_goes_on_under_whole_rows() {
    let bed = Bed::new("keyless").await;
    bed.step("INSERT INTO page VALUES (1, 1, 'a', 'b')").await;
    bed.step("ALTER TABLE page DROP CONSTRAINT page_pkey").await;
    bed.step("UPDATE page SET owner_id = 2").await;
    bed.step("INSERT INTO page VALUES (1, 1, 'twin', 'b')").await;
    bed.step("DELETE FROM page WHERE owner_id = 2").await;
    let said = "the table has no key any more";
    eventually("it is said", PATIENCE, || async {
        bed.daemon.log_text().contains(said).then_some(())
    })
    .await;
    bed.step("ALTER TABLE page ADD PRIMARY KEY (id)").await;
    bed.step("UPDATE page SET title = 'keyed'").await;

    let row =
        |owner: u32, title: &str| json!({"id": 1, "owner_id": owner, "title": title, "body": "b"});
    let log: Vec<(Value, String)> = read(&bed.topic("page"))
        .into_iter()
        .map(|it| (it.key, it.value["op"].as_str().unwrap_or("tombstone").to_owned()))
        .collect();
    let (one, two, twin) = (row(1, "a"), row(2, "a"), row(1, "twin"));
    let expected = [
        (json!({"id": 1}), "c"),
        (one.clone(), "d"),
        (one, "tombstone"),
        (two.clone(), "c"),
        (twin, "c"),
        (two.clone(), "d"),
        (two, "tombstone"),
        (json!({"id": 1}), "u"),
    ];
    assert_eq!(log, expected.map(|(key, op)| (key, op.to_owned())));
    assert_eq!(bed.restarts().await, Some(0.0));
    assert!(bed.daemon.stop().await.success());
}
