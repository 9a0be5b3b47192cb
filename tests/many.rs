//! Thousands of tables: what is done for each of them takes a broker milliseconds, and is not to add
//! up to a delivery that takes too long. And thousands of records: however many come at once, none
//! waits for others to follow it.

#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

mod support;

use std::time::Duration;

use onelog::change::Change;
use onelog::config::{Delivery, KafkaConfig};
use onelog::kafka::batch::{Batch, Item};
use onelog::kafka::delivery::{LogProducer, ProduceError, TOPICS_IN_FLIGHT};
use onelog::kafka::envelope::OutRecord;
use onelog::kafka::topics::{WantedTopic, ensure_topics};
use onelog::lsn::Lsn;
use onelog::metrics::Metrics;
use onelog::postgres::client;
use onelog::postgres::connection::ReplicationConnection;
use onelog::postgres::source::{BATCHES_MAX, SHAPES_MAX, Shapes, Source, run_source};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use support::server;
use support::world::{PATIENCE, Wishes, World};

fn config(test: &str, brokers: String) -> KafkaConfig {
    let unique = format!("many_{test}_{}", std::process::id());
    KafkaConfig {
        brokers,
        topic_prefix: unique.clone(),
        delivery: Delivery::AtLeastOnce,
        delivery_timeout: Duration::from_secs(1),
        socket_timeout: Duration::from_secs(10),
        partitions: 2,
        replication_factor: 1,
        topics: Vec::new(),
        min_compaction_lag: Duration::from_secs(7 * 24 * 3600),
        group_id: unique,
        properties: Vec::new(),
    }
}

/// The controller answers before the brokers know: whoever then sends has records that wait for
/// all the other topics.
#[tokio::test(flavor = "multi_thread")]
async fn topics_that_were_made_are_there() {
    let config = config("made", server("ONELOG_TEST_KAFKA"));
    let wanted = |nth| WantedTopic::of_table(&config, &format!("{}.t{nth}", config.group_id), true);
    let wanted: Vec<WantedTopic> = (0..150).map(wanted).collect();
    ensure_topics(&config, &wanted, false).await.unwrap();
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &config.brokers).create().unwrap();
    let found = consumer.fetch_metadata(None, PATIENCE).unwrap();
    let ours = found.topics().iter().filter(|it| it.name().starts_with(&config.topic_prefix));
    assert_eq!(ours.filter(|it| it.partitions().len() == 2).count(), wanted.len());
}

/// At no broker nothing is ever acknowledged, so that what is handed over stays in flight.
#[tokio::test(flavor = "multi_thread")]
async fn few_topics_have_records_in_flight() {
    let config = config("flight", "127.0.0.1:1".to_owned());
    let producer = LogProducer::new(&config, &Metrics::new()).unwrap();
    let seq = producer.begin();
    let send = async |nth: usize| {
        let topic = format!("t{nth}");
        let record = OutRecord { topic: &topic, key: Some(b"k"), value: Some(b"v"), header: None };
        producer.send(seq, record, &[]).await
    };
    for nth in 0..TOPICS_IN_FLIGHT {
        send(nth).await.unwrap();
    }
    // Topics that have some already take more.
    send(0).await.unwrap();
    // One more waits until nothing is in flight, and that is since the others have failed.
    let refused = send(TOPICS_IN_FLIGHT).await.unwrap_err();
    assert!(matches!(refused, ProduceError::Delivery { .. }), "{refused:?}");
    assert!(producer.standing().is_err());
}

/// librdkafka alone would hold what fills no request until the linger is over, which is later than
/// anybody here waits.
#[tokio::test(flavor = "multi_thread")]
async fn no_record_waits_for_another() {
    let mut config = config("linger", server("ONELOG_TEST_KAFKA"));
    config.delivery_timeout = PATIENCE * 10;
    config.properties = vec![("queue.buffering.max.ms".to_owned(), "250000".to_owned())];
    let wanted = WantedTopic::of_table(&config, &format!("{}.t", config.group_id), true);
    ensure_topics(&config, std::slice::from_ref(&wanted), false).await.unwrap();
    let producer = LogProducer::new(&config, &Metrics::new()).unwrap();
    // One by one; a few; more than fill a request, and more than there is room for, with a rest.
    for (end, count) in (1..).zip([1, 1, 30, 5_003, 1, 25_001, 2]) {
        let seq = producer.begin();
        for _ in 0..count {
            let value = Some(&[b'v'; 300][..]);
            let record = OutRecord { topic: &wanted.name, key: Some(b"k"), value, header: None };
            producer.send(seq, record, &[]).await.unwrap();
        }
        producer.commit(seq, Lsn(end), 0).unwrap();
        producer.quiet(PATIENCE).await.unwrap();
        producer.standing().unwrap();
    }
}

/// However fast the stream comes: what is behind a batch must not wait for thousands of topics.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_describes_few_tables() {
    const TABLES: usize = 2 * SHAPES_MAX + 50;
    let tables: String =
        (0..TABLES).map(|n| format!("CREATE TABLE t{n} (id int PRIMARY KEY);")).collect();
    let world = World::new("many", Wishes { instead: Some(&tables), ..Wishes::default() }).await;
    let (client, _connection) = world.client().await;
    let (name, url) = (&world.name, world.database_url.parse().unwrap());
    let published = format!("CREATE PUBLICATION \"{name}\" FOR ALL TABLES");
    client.batch_execute(&published).await.unwrap();
    let made = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
    client.batch_execute(&made).await.unwrap();
    let rows: String =
        (0..TABLES).map(|nth| format!("INSERT INTO t{nth} VALUES ({nth});")).collect();
    client.batch_execute(&rows).await.unwrap();

    let kafka = config("tables", server("ONELOG_TEST_KAFKA"));
    let catalog = client::connect(&url, "test").await.unwrap();
    let shapes = Shapes::new(catalog, &kafka, name).await.unwrap();
    let publications = format!("\"{name}\"");
    let options = [("proto_version", "1"), ("publication_names", publications.as_str())];
    let connection = ReplicationConnection::connect(&url).await.unwrap();
    let stream = connection.start_replication(name, Lsn(0), &options).await.unwrap();
    let (output, mut input) = mpsc::channel::<Batch>(BATCHES_MAX);
    let (durable, confirmed) = watch::channel(Lsn(0));
    let metrics = Metrics::new();
    let source = Source { stream, shapes, xid_near: 1000, confirmed, trust: PATIENCE, metrics };
    let mut running = JoinSet::new();
    running.spawn(run_source(source, output, CancellationToken::new()));

    let (mut described, mut rows) = (0, Vec::new());
    while rows.len() < TABLES {
        let batch = tokio::time::timeout(PATIENCE, input.recv()).await.unwrap().unwrap();
        let shapes = batch.items.iter().filter(|it| matches!(it, Item::Shape(_))).count();
        assert!(shapes <= SHAPES_MAX, "{shapes} tables in one batch");
        described += shapes;
        rows.extend(batch.items.iter().filter_map(|it| match it {
            Item::Change(_, Change::Insert { relation, .. }) => Some(relation.name.to_string()),
            _ => None,
        }));
    }
    assert_eq!(described, TABLES);
    let expected: Vec<String> = (0..TABLES).map(|nth| format!("t{nth}")).collect();
    assert_eq!(rows, expected, "each is there once, in order");
    drop((input, durable));
    let ended = running.join_next().await.unwrap().unwrap();
    assert!(ended.is_ok(), "{ended:?}");
}
