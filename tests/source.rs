//! Capture against a real Postgres and a real Kafka: order, envelopes, resuming, refusals.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking")]

#[allow(dead_code, reason = "made for tests/connection.rs")]
#[path = "connection/proxy.rs"]
mod proxy;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use onelog::capture::{CaptureError, prepare_capture, run_capture, run_session};
use onelog::config::{
    BudgetAction, Config, Credentials, Delivery, ElasticsearchConfig, HttpConfig, KafkaConfig,
    LogConfig, LogFormat, OutboxConfig, PostgresConfig, TranslateConfig,
};
use onelog::kafka::delivery::LogProducer;
use onelog::kafka::progress_record;
use onelog::metrics::Metrics;
use onelog::postgres::client::{self, Client};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Headers;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(120);

fn server(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run make test"))
}

/// A config of its own for each test: slot, publication and topics carry the test's name.
fn config(test: &str) -> Config {
    let unique = format!("{test}_{}", std::process::id());
    Config {
        postgres: PostgresConfig {
            url: server("ONELOG_TEST_POSTGRES").parse().unwrap(),
            slot_name: unique.clone(),
            publication_name: unique.clone(),
            tables: vec![format!("{unique}.*")],
            slot_failover: true,
            wal_budget: None,
            wal_budget_action: BudgetAction::Warn,
        },
        kafka: KafkaConfig {
            brokers: server("ONELOG_TEST_KAFKA"),
            topic_prefix: unique.clone(),
            delivery: Delivery::AtLeastOnce,
            delivery_timeout: Duration::from_secs(2),
            socket_timeout: Duration::from_secs(1),
            partitions: 3,
            replication_factor: 1,
            topics: Vec::new(),
            min_compaction_lag: Duration::from_secs(7 * 24 * 3600),
            group_id: unique,
            properties: Vec::new(),
        },
        copy: onelog::config::CopyConfig::default(),
        outbox: OutboxConfig::default(),
        elasticsearch: ElasticsearchConfig {
            url: String::new(),
            credentials: Credentials::None,
            ca_file: None,
            index_prefix: String::new(),
            request_timeout: LIMIT,
            number_of_shards: 1,
            number_of_replicas: 0,
            rollback_window: Duration::from_secs(86_400),
        },
        translate: TranslateConfig {
            mappings: "connectors".into(),
            poll_interval: Duration::ZERO,
            audit_interval: Duration::ZERO,
            fingerprint_interval: Duration::from_secs(5),
            connections: 1,
            keys_per_read: 1,
            pending_keys_max: 1,
            statement_timeout: LIMIT,
            lock_timeout: LIMIT,
        },
        http: HttpConfig { listen: "127.0.0.1:0".parse().unwrap() },
        gateway: None,
        log: LogConfig { level: "info".to_owned(), format: LogFormat::Text },
    }
}

struct Bed {
    config: Arc<Config>,
    sql: Client,
    metrics: Metrics,
}

impl Bed {
    async fn new(test: &str) -> Self {
        Self::with(config(test)).await
    }

    async fn with(config: Config) -> Self {
        let config = Arc::new(config);
        let sql = client::connect(&config.postgres.url, "onelog test").await.unwrap();
        let space = &config.postgres.slot_name;
        sql.batch_execute(&format!(
            "DROP SCHEMA IF EXISTS {space} CASCADE; CREATE SCHEMA {space}; \
             CREATE TABLE {space}.t (id int PRIMARY KEY, v text)"
        ))
        .await
        .unwrap();
        prepare_capture(&config, false, false, &mut Vec::new()).await.unwrap();
        Self { config, sql, metrics: Metrics::new() }
    }

    async fn run(&self, statements: &str) {
        let statements = statements.replace("$s", &self.config.postgres.slot_name);
        self.sql.batch_execute(&statements).await.unwrap();
    }

    fn start(&self) -> (CancellationToken, JoinHandle<Result<(), CaptureError>>) {
        let token = CancellationToken::new();
        let run = run_capture(
            Arc::clone(&self.config),
            self.metrics.clone(),
            onelog::health::Health::default(),
            token.clone(),
        );
        let mut set = tokio::task::JoinSet::new();
        set.spawn(run);
        #[expect(clippy::disallowed_methods, reason = "a test needs to abort it like a kill -9")]
        let handle = tokio::spawn(async move { set.join_next().await.unwrap().unwrap() });
        (token, handle)
    }

    async fn confirmed(&self) -> String {
        self.one("SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name='$s'")
            .await
    }

    async fn one(&self, sql: &str) -> String {
        let sql = sql.replace("$s", &self.config.postgres.slot_name);
        self.sql.query_one(&sql, &[]).await.unwrap().get(0)
    }

    async fn streaming(&self) {
        eventually("streaming", || async { self.metrics.capture_streaming.get() == 1 }).await;
    }

    /// Waits until the slot has passed all that is committed now.
    async fn caught_up(&self) {
        let end = self.one("SELECT pg_current_wal_lsn()::text").await;
        let sql = format!(
            "SELECT (confirmed_flush_lsn >= '{end}')::text FROM pg_replication_slots \
             WHERE slot_name = '$s'"
        );
        eventually("the slot passes the end", || async { self.one(&sql).await == "true" }).await;
    }

    fn topic(&self) -> String {
        let kafka = &self.config.kafka;
        kafka.entity_topic(&self.config.postgres.slot_name, "t")
    }

    async fn drop_all(&self) {
        let name = &self.config.postgres.slot_name;
        self.run("DROP SCHEMA $s CASCADE; DROP PUBLICATION IF EXISTS $s").await;
        let drop = format!("SELECT pg_drop_replication_slot('{name}')");
        eventually("the slot is free", || async { self.sql.batch_execute(&drop).await.is_ok() })
            .await;
    }
}

async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let waiting = async {
        while !check().await {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// (key, value, headers) of every record, in the order of each partition.
type Record = (Option<Value>, Option<Value>, BTreeMap<String, String>);

fn read(brokers: &str, topic: &str) -> Vec<Record> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), LIMIT).unwrap();
    let mut list = TopicPartitionList::new();
    let partitions = metadata.topics()[0].partitions();
    for partition in partitions {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let (mut ends, mut records) = (0, Vec::new());
    while ends < partitions.len() {
        match consumer.poll(LIMIT).expect("a record or an end") {
            Ok(message) => {
                let json = |it: &[u8]| serde_json::from_slice(it).unwrap();
                let headers = message.headers().map_or_else(BTreeMap::new, |all| {
                    let text = |it: &[u8]| String::from_utf8(it.to_vec()).unwrap();
                    all.iter().map(|it| (it.key.to_owned(), text(it.value.unwrap()))).collect()
                });
                records.push((message.key().map(json), message.payload().map(json), headers));
            }
            Err(_) => ends += 1,
        }
    }
    records
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_arrive_in_order_with_their_envelopes() {
    let bed = Bed::new("order").await;
    let (token, running) = bed.start();
    bed.streaming().await;
    bed.run("INSERT INTO $s.t VALUES (1, 'a'), (2, 'b'); UPDATE $s.t SET v = 'c' WHERE id = 1")
        .await;
    bed.run("UPDATE $s.t SET id = 3 WHERE id = 1; DELETE FROM $s.t WHERE id = 2").await;
    bed.run("CREATE TYPE $s.mood AS ENUM ('ok'); ALTER TABLE $s.t ADD m $s.mood DEFAULT 'ok'")
        .await;
    bed.run("INSERT INTO $s.t VALUES (4, NULL, 'ok')").await;
    let xid = bed.one("SELECT xmin::text FROM $s.t WHERE id = 4").await;
    bed.caught_up().await;
    token.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();

    let records = read(&bed.config.kafka.brokers, &bed.topic());
    let of = |id: u64| -> Vec<String> {
        let wanted = serde_json::json!({ "id": id });
        records
            .iter()
            .filter(|it| it.0.as_ref() == Some(&wanted))
            .map(|it| match &it.1 {
                Some(value) => format!("{} {} {}", value["op"], value["before"], value["after"]),
                None => "tombstone".to_owned(),
            })
            .collect()
    };
    assert_eq!(
        of(1),
        [
            r#""c" null {"id":1,"v":"a"}"#,
            r#""u" null {"id":1,"v":"c"}"#,
            r#""d" {"id":1,"v":null} null"#,
            "tombstone",
        ]
    );
    assert_eq!(of(3), [r#""c" null {"id":3,"v":"c"}"#]);
    assert_eq!(of(2).last().unwrap(), "tombstone");
    assert_eq!(of(4), [r#""c" null {"id":4,"v":null,"m":"ok"}"#]);
    let last = records.iter().find(|it| it.0 == Some(serde_json::json!({ "id": 4 }))).unwrap();
    assert_eq!(last.2["source-txid"], xid);
    assert_eq!(last.2["source-timeline"], "1");

    let progress = progress_record::read_all(&bed.config.kafka).await.unwrap().unwrap();
    let record = &progress.slots[&bed.config.postgres.slot_name];
    assert!(record.clean, "a drain ends with a clean-stop record");
    assert_eq!(record.lsn.to_string(), bed.confirmed().await);
    let mut said = Vec::new();
    prepare_capture(&bed.config, false, false, &mut said).await.unwrap();
    assert!(said.iter().all(|it| !it.starts_with("Ran") && !it.starts_with("Created")), "{said:?}");
    bed.drop_all().await;
}

/// The first change of a table must not wait for its topic.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_there_before_the_first_change() {
    let bed = Bed::new("ahead").await;
    bed.run("CREATE TABLE $s.u (id int PRIMARY KEY); ALTER PUBLICATION $s ADD TABLE $s.u").await;
    let topic = bed.config.kafka.entity_topic(&bed.config.postgres.slot_name, "u");
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &bed.config.kafka.brokers).create().unwrap();
    let is_there = || {
        // All topics, as asking for one may create it.
        let metadata = consumer.fetch_metadata(None, LIMIT).unwrap();
        metadata.topics().iter().any(|it| it.name() == topic)
    };
    assert!(!is_there());
    let (token, running) = bed.start();
    eventually("the topic is there", || async { is_there() }).await;
    token.cancel();
    running.await.unwrap().unwrap();
    bed.drop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_others_are_counted_and_hold_nothing_up() {
    let bed = Bed::new("words").await;
    let (token, running) = bed.start();
    bed.streaming().await;
    let count = |kind| bed.metrics.capture_messages_total.with_label_values(&[kind]).get();
    bed.run("SELECT pg_logical_emit_message(false, 'someone', 'loose')").await;
    bed.run("SELECT pg_logical_emit_message(true, 'someone', repeat('x', 100000))").await;
    bed.run(
        "BEGIN; SELECT pg_logical_emit_message(true, 'someone', ''); \
         INSERT INTO $s.t VALUES (1, 'a'); \
         SELECT pg_logical_emit_message(true, 'onelog.of_a_later_version', '\\x00ff'::bytea); \
         SELECT pg_logical_emit_message(false, 'someone', 'loose'); COMMIT",
    )
    .await;
    let gone = "BEGIN; SELECT pg_logical_emit_message(true, 'someone', 'gone'); ROLLBACK";
    bed.run(gone).await;
    bed.caught_up().await;
    assert_eq!((count("foreign"), count("own")), (4, 1));
    token.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    assert_eq!(read(&bed.config.kafka.brokers, &bed.topic()).len(), 1, "no record of their own");
    bed.drop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_flight_at_an_abort_is_sent_again() {
    let bed = Bed::new("abort").await;
    let insert = |from: u32| {
        format!(
            "INSERT INTO $s.t SELECT g, repeat('x', 200) FROM generate_series({from}, {from} + 4999) g"
        )
    };
    for round in 0..4u32 {
        let (token, running) = bed.start();
        let sent = bed.metrics.kafka_records_total.get();
        bed.run(&insert(round * 5000)).await;
        // In the middle of things: some are acknowledged, or none, or all.
        let enough = sent + u64::from(round) * 900 + 1;
        eventually("some records", || async { enough <= bed.metrics.kafka_records_total.get() })
            .await;
        running.abort();
        drop(token);
        drop(running.await);
    }
    let (token, running) = bed.start();
    bed.caught_up().await;
    token.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    let records = read(&bed.config.kafka.brokers, &bed.topic());
    let mut ids: Vec<u64> =
        records.iter().map(|it| it.0.as_ref().unwrap()["id"].as_u64().unwrap()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids, (0..20_000).collect::<Vec<_>>(), "nothing is lost ({all} with duplicates)");
    bed.drop_all().await;
}

/// Wherever a connection is lost, in a login, an answer of the catalog or a row.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_cut_again_and_again_skips_nothing() {
    const CUTS: usize = 14;
    let mut bed = Bed::new("cut").await;
    // Also in the middle of what takes several reads.
    let lengths = (1..=CUTS).map(|nth| nth * nth * 977 % 31_000 + 100).collect();
    let direct = server("ONELOG_TEST_POSTGRES");
    let port = bed.config.postgres.url.port;
    let (address, left) = proxy::cut_in_turn(port, lengths).await;
    let through = direct.replace(&format!("127.0.0.1:{port}"), &address.to_string());
    assert_ne!(through, direct, "the servers of tests are on 127.0.0.1");
    let mut config = Config::clone(&bed.config);
    config.postgres.url = format!("{through}?sslmode=disable").parse().unwrap();
    bed.config = Arc::new(config);
    bed.run("INSERT INTO $s.t SELECT g, repeat('x', 300) FROM generate_series(1, 2000) g").await;
    let (token, running) = bed.start();
    eventually("all cuts", || async { left.lock().unwrap().is_empty() }).await;
    bed.run("INSERT INTO $s.t SELECT g, repeat('x', 300) FROM generate_series(2001, 2500) g").await;
    bed.caught_up().await;
    token.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    let records = read(&bed.config.kafka.brokers, &bed.topic());
    let ids = records.iter().map(|it| it.0.as_ref().unwrap()["id"].as_u64().unwrap());
    let ids: std::collections::BTreeSet<u64> = ids.collect();
    assert_eq!(ids.len(), 2500, "nothing is skipped, and nothing made up");
    assert!(0 < bed.metrics.stage_restarts_total.with_label_values(&["capture"]).get());
    bed.drop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_the_queue_is_held_back_and_arrives() {
    const ROWS: u64 = 100_000;
    let bed = Bed::new("large").await;
    bed.run(&format!(
        "INSERT INTO $s.t SELECT g, repeat('x', 300) FROM generate_series(1, {ROWS}) g"
    ))
    .await;
    let started = std::time::Instant::now();
    let (token, running) = bed.start();
    bed.caught_up().await;
    println!("{ROWS} rows in {:?}", started.elapsed());
    assert_eq!(bed.metrics.kafka_records_total.get(), ROWS, "no duplicates, no errors");
    assert_eq!(bed.metrics.stage_restarts_total.with_label_values(&["capture"]).get(), 0);
    assert_eq!(bed.metrics.kafka_in_flight_records.get(), 0);
    token.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    bed.drop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_dropped_and_created_again_is_refused_by_name() {
    let bed = Bed::new("refused").await;
    let name = bed.config.postgres.slot_name.clone();
    bed.run("SELECT pg_drop_replication_slot('$s')").await;
    let producer = Arc::new(LogProducer::new(&bed.config.kafka, &bed.metrics).unwrap());
    let token = CancellationToken::new();
    let health = onelog::health::Health::default();
    let session = || run_session(&bed.config, (&bed.metrics, &health), &token, &producer);
    let error = session().await.unwrap_err();
    assert!(
        error.to_string().contains(&format!("slot \"{name}\" does not exist any more")),
        "{error}"
    );

    bed.run("INSERT INTO $s.t VALUES (1, 'lost')").await;
    bed.run("SELECT pg_create_logical_replication_slot('$s', 'pgoutput')").await;
    let error = session().await.unwrap_err();
    assert!(!error.is_transient());
    let text = error.to_string();
    assert!(text.contains(&format!("slot \"{name}\" resumes at")), "{text}");
    let error = prepare_capture(&bed.config, false, false, &mut Vec::new()).await.unwrap_err();
    assert_eq!(error.to_string(), text, "prepare refuses it too");

    prepare_capture(&bed.config, false, true, &mut Vec::new()).await.unwrap();
    let (token, running) = bed.start();
    bed.run("INSERT INTO $s.t VALUES (2, 'new')").await;
    bed.caught_up().await;
    token.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();
    assert_eq!(read(&bed.config.kafka.brokers, &bed.topic()).len(), 1);
    bed.drop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_slot_advances_and_a_second_session_waits() {
    let bed = Bed::new("idle").await;
    let (token, running) = bed.start();
    bed.streaming().await;
    // WAL of tables that are not published.
    bed.run("CREATE SCHEMA other_$s; CREATE TABLE other_$s.u AS SELECT g FROM generate_series(1, 9000) g").await;
    bed.caught_up().await;

    let second = Bed {
        config: Arc::clone(&bed.config),
        sql: client::connect(&bed.config.postgres.url, "onelog test").await.unwrap(),
        metrics: Metrics::new(),
    };
    let (second_token, second_running) = second.start();
    eventually("the second has looked", || async {
        second.metrics.capture_sessions_total.get() == 1
    })
    .await;
    bed.run("INSERT INTO $s.t VALUES (1, 'first')").await;
    bed.caught_up().await;
    assert_eq!(second.metrics.capture_streaming.get(), 0, "the second waits");
    token.cancel();
    timeout(LIMIT, running).await.unwrap().unwrap().unwrap();

    second.streaming().await;
    bed.run("INSERT INTO $s.t VALUES (2, 'second')").await;
    bed.caught_up().await;
    second_token.cancel();
    timeout(LIMIT, second_running).await.unwrap().unwrap().unwrap();
    let records = read(&bed.config.kafka.brokers, &bed.topic());
    assert_eq!(records.len(), 2, "a clean hand-over repeats nothing");
    bed.run("DROP SCHEMA other_$s CASCADE").await;
    bed.drop_all().await;
}
