//! What else is in the log: events, dead letters and copies; and what else can go wrong: the broker
//! crashes, or gives a transaction up.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::log::{committed, has_open};
use super::support::world::connect;
use super::*;

const OUTBOX: &str = "CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), \
     aggregatetype text NOT NULL, aggregateid text, type text, payload jsonb, headers jsonb)";

/// Events of both kinds and what is none, each under a number, until it is stopped; the last one.
struct Events {
    stopped: CancellationToken,
    running: JoinSet<i64>,
}

impl Events {
    fn start(url: &str) -> Self {
        let (url, stopped, mut running) =
            (url.to_owned(), CancellationToken::new(), JoinSet::new());
        let stop = stopped.clone();
        running.spawn(async move {
            let (client, _connection) = connect(&url).await;
            let mut pace = tokio::time::interval(std::time::Duration::from_millis(4));
            for n in 1.. {
                let sql = format!(
                    "BEGIN; INSERT INTO outbox (aggregatetype, aggregateid, type, payload) \
                     VALUES ('row', 'k', 'T', '{n}'); \
                     SELECT pg_logical_emit_message(true, 'onelog.outbox', \
                     '{{\"aggregatetype\":\"message\",\"aggregateid\":\"k\",\"payload\":{n}}}'); \
                     SELECT pg_logical_emit_message(true, 'onelog.outbox', '{n}'); COMMIT"
                );
                client.batch_execute(&sql).await.expect("the transaction commits");
                pace.tick().await;
                if stop.is_cancelled() {
                    return n;
                }
            }
            0
        });
        Self { stopped, running }
    }

    async fn stop(mut self) -> i64 {
        self.stopped.cancel();
        self.running.join_next().await.expect("one writer").expect("no panic")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_and_dead_letters_are_seen_once_through_kills() {
    let _turn = alone().await;
    let outbox = "[outbox]\ntables = [\"public.outbox\"]\n\
                  topic = \"{topic_prefix}.event.{aggregatetype}\"";
    let kafka = format!("{EXACTLY}\n{outbox}");
    let wishes = Wishes { instead: Some(OUTBOX), kafka: &kafka, ..Wishes::default() };
    let world = World::new("once_events", wishes).await;
    world.onelog(&["prepare"]);
    let events = Events::start(&world.database_url);
    let mut random = StdRng::seed_from_u64(8);
    for _ in 0..6 {
        let daemon = start(&world);
        acknowledged(&world.http, random.random_range(30..300)).await;
        daemon.kill();
    }
    let daemon = start(&world);
    let last = events.stop().await;
    world.confirmed_to(WAL_END).await;
    assert!(daemon.stop().await.success(), "a clean stop");
    let expected: Vec<Value> = (1..=last).map(|it| json!(it)).collect();
    for topic in ["event.row", "event.message", "onelog.dead-letter"] {
        let found = committed(&format!("{}.{topic}", world.name)).await;
        let at = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
        assert!(found == expected, "{topic}: other than 1 to {last} from {} on", at + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_crashes_makes_nothing_be_repeated() {
    let _turn = alone().await;
    let world = world("once_broker").await;
    let writers = Writers::start(&world.database_url, 1, 2);
    let daemon = start(&world);
    acknowledged(&world.http, 200).await;
    Away::kill("kafka").await.bring_back().await;
    let sent = metric_at(&world.http, "onelog_kafka_records_total", "").await.expect("a metric");
    eventually("it goes on", PATIENCE, || async {
        let now = metric_at(&world.http, "onelog_kafka_records_total", "").await?;
        (sent + 100.0 <= now).then_some(())
    })
    .await;
    writers.stop().await;
    ends_well(&world, daemon).await;
}

/// A daemon that is asleep for longer than `transaction_timeout` finds its transaction aborted.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_kafka_gave_up_is_published_again() {
    let _turn = alone().await;
    let kafka = format!("{EXACTLY}\ntransaction_timeout = \"4s\"");
    let wishes = Wishes { instead: Some(TABLES), kafka: &kafka, ..Wishes::default() };
    let world = World::new("once_given_up", wishes).await;
    world.onelog(&["prepare"]);
    let (client, _connection) = world.client().await;
    let rows = "INSERT INTO event (writer, nth) SELECT 1, g FROM generate_series(1, 60000) g";
    client.batch_execute(rows).await.expect("a large transaction");
    let daemon = start(&world);
    acknowledged(&world.http, 1_000).await;
    daemon.signal("STOP");
    let topic = format!("{}.public.event", world.name);
    assert!(has_open(&topic).await, "it sleeps within a transaction");
    eventually("Kafka gives the transaction up", PATIENCE, || async {
        (!has_open(&topic).await).then_some(())
    })
    .await;
    daemon.signal("CONT");
    world.confirmed_to(WAL_END).await;
    let restarts = world.metric_where("onelog_stage_restarts_total", "stage=\"capture\"").await;
    assert!(restarts > Some(0.0), "it has noticed");
    ends_well(&world, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_copy_are_seen_once_and_changes_beside_it_too() {
    let _turn = alone().await;
    let sql = format!(
        "{TABLES}; CREATE TABLE old (id int PRIMARY KEY, v int); \
         INSERT INTO old SELECT g, 0 FROM generate_series(1, 600) g"
    );
    let kafka = format!("{EXACTLY}\n[copy]\nchunk_rows = 20\nrows_per_second_max = 200");
    let wishes = Wishes { instead: Some(&sql), kafka: &kafka, ..Wishes::default() };
    let world = World::new("once_copy", wishes).await;
    world.onelog(&["prepare"]);
    let writers = Writers::start(&world.database_url, 1, 2);
    let (client, _connection) = world.client().await;
    let daemon = start(&world);
    acknowledged(&world.http, 20).await;
    world.onelog(&["copy", "public.old", "--no-wait"]);
    for n in 1..=40 {
        let update = format!("UPDATE old SET v = {n} WHERE id % 40 = {n} % 40");
        client.batch_execute(&update).await.expect("an update");
        acknowledged(&world.http, 20 + 4 * n).await;
    }
    eventually("the copy is done", PATIENCE, || async {
        let (_, text) = world.http("/v1/status").await?;
        let status: Value = serde_json::from_str(&text).ok()?;
        (status["copies"][0]["state"] == "done").then_some(())
    })
    .await;
    writers.stop().await;
    ends_well(&world, daemon).await;

    let (mut last, mut reads, mut updates) = (BTreeMap::new(), BTreeMap::new(), 0);
    for record in committed(&format!("{}.public.old", world.name)).await {
        let (id, v) = (record["after"]["id"].as_i64(), record["after"]["v"].as_i64());
        last.insert(id.expect("an id"), v.expect("a value"));
        match record["op"].as_str() {
            Some("r") => *reads.entry(id).or_insert(0) += 1,
            _ => updates += 1,
        }
    }
    assert_eq!(updates, 600, "each change once");
    assert!(reads.values().all(|it| *it == 1), "no row twice: {reads:?}");
    let rows = client.query("SELECT id::int8, v::int8 FROM old", &[]).await.expect("the rows");
    let rows: BTreeMap<i64, i64> = rows.iter().map(|it| (it.get(0), it.get(1))).collect();
    assert_eq!(last, rows);
}
