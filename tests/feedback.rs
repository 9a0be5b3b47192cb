//! Feedback: what is written by any translator is heard at any gateway, who comes back misses
//! nothing, who is slow harms nobody, and a wait ends with the document.

mod support;

#[path = "feedback/listener.rs"]
mod listener;
#[path = "feedback/sessions.rs"]
mod sessions;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use listener::{Heard, Listener};
use onelog::gateway::backplane::{Backplane, run_backplane};
use onelog::gateway::pipeline::Pipeline;
use onelog::gateway::wait::{Document, Token, Waited, until_reflected};
use onelog::kafka::feedback::Feedback;
use onelog::metrics::Metrics;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use support::daemon::Daemon;
use support::gateway::accepted;
use support::world::{PATIENCE, Wishes, World, free_address, metric_at, psql_path};
use support::{eventually, server};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

const TABLE: &str = "CREATE TABLE shop (id text PRIMARY KEY, title text);
                     INSERT INTO shop VALUES ('s', 'first');
                     CREATE TABLE item (id text PRIMARY KEY, name text, shop text DEFAULT 's');
                     CREATE INDEX ON item (shop)";
const MAPPING: &str = "[[denormalization]]\ncollection = \"item\"\nkey = \"id\"\n\
                       sql = \"SELECT i.id, i.name, s.title FROM item i LEFT JOIN shop s ON s.id = i.shop\"";

async fn world(name: &str) -> World {
    let world = World::new(name, Wishes { instead: Some(TABLE), ..Wishes::default() }).await;
    std::fs::write(world.mappings.join("item.toml"), MAPPING).expect("a mapping file");
    let token = "migrations/0004_onelog_token.sql";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(token);
    // Twice: a migration may be run again.
    for _ in 0..2 {
        let mut psql = Command::new(psql_path());
        let ran = psql.args(["-X", "-q", "-f"]).arg(&path).arg(&world.database_url).status();
        assert!(ran.expect("psql runs").success());
    }
    let gateway = format!(
        "[gateway]\nlisten = \"{}\"\nanonymous = true\nresponse_topics = [\"{}.responses\"]\n\
         rate_limit = 100000\nrate_burst = 100000\n",
        free_address(),
        world.name
    );
    let text = std::fs::read_to_string(&world.config).expect("the config") + &gateway;
    std::fs::write(&world.config, text).expect("the config is written");
    world.onelog(&["prepare"]);
    world
}

/// A gateway as a process of its own, with ports and a name of its own.
struct Gateway {
    config: PathBuf,
    log: PathBuf,
    address: String,
    http: String,
}

impl Gateway {
    fn of(world: &World, nth: usize) -> Self {
        let (address, http) = (free_address(), free_address());
        let text = std::fs::read_to_string(&world.config).expect("the config");
        let begin = text.find("[gateway]\nlisten = \"").expect("the section");
        let listen = text[begin..].split('"').nth(1).expect("an address").to_owned();
        let text = text
            .replace(&listen, &address)
            .replace(&world.http, &http)
            .replace("group.instance.id\" = \"", &format!("group.instance.id\" = \"{nth}"));
        let config = world.folder.path().join(format!("gateway{nth}.toml"));
        std::fs::write(&config, text).expect("the config is written");
        let log = world.folder.path().join(format!("gateway{nth}.log"));
        Self { config, log, address, http }
    }

    async fn start(&self) -> Daemon {
        let daemon = Daemon::start_with(&self.config, &self.log, &["--only", "gateway"]);
        eventually("the gateway is ready", PATIENCE, || async {
            let answer = reqwest::get(format!("http://{}/readyz", self.http)).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        daemon
    }

    async fn listen(&self, query: &str, last: Option<&str>) -> Listener {
        Listener::open(&self.address, query, last).await
    }
}

/// Changes `item` in a transaction with this correlation id; returns its token.
async fn change(client: &Client, correlation: &str, sql: &str) -> String {
    let context = format!(
        "BEGIN; SELECT pg_logical_emit_message(true, 'onelog.context', \
         '{{\"correlation_id\":\"{correlation}\"}}'); {sql}; SELECT onelog.token(); COMMIT"
    );
    let answers = client.simple_query(&context).await.expect("the transaction commits");
    let rows = answers.iter().filter_map(|it| match it {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    rows.last().expect("a token").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_is_heard_of_at_every_gateway_and_who_comes_back_misses_nothing() {
    let world = world("feedback_push").await;
    let _daemon = world.start();
    let other = Gateway::of(&world, 1);
    let running = other.start().await;
    world.built().await;
    let (client, _connection) = world.client().await;
    let mut by_correlation = other.listen("correlation_id=k1", None).await;
    let mut by_document = other.listen("collection=item&id=a", None).await;
    let mut socket = Listener::connect(&other.address, "collection=item&id=a").await;

    let token = change(&client, "k1", "INSERT INTO item VALUES ('a', 'one'), ('b', 'x')").await;
    let mut first: Vec<Heard> = vec![by_correlation.next().await, by_correlation.next().await];
    first.sort_by(|x, y| x.data["id"].as_str().cmp(&y.data["id"].as_str()));
    let ids: Vec<&str> = first.iter().filter_map(|it| it.data["id"].as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
    for it in &first {
        assert_eq!(it.event, "document", "{it:?}");
        assert_eq!(it.data["correlation_ids"][0], "k1");
        assert_eq!(it.data["txids"][0], token.as_str());
        assert!(it.data["commit_ts_ms"].as_i64() <= it.data["ts_ms"].as_i64(), "{it:?}");
    }
    // Told once Elasticsearch has it.
    assert!(world.document("item", "a").await.is_some());
    let heard = by_document.next().await;
    assert_eq!((&heard.event, &heard.data["id"]), (&"document".to_owned(), &"a".into()));
    assert_eq!(socket.next_frame().await, heard, "a socket says the same");
    // A row that leads to the document by a lookup.
    let token = change(&client, "k3", "UPDATE shop SET title = 'new'").await;
    let looked_up = by_document.next().await;
    assert_eq!(looked_up.data["correlation_ids"], serde_json::json!(["k3"]), "{looked_up:?}");
    assert_eq!(looked_up.data["txids"], serde_json::json!([token]));
    assert_eq!(world.document("item", "a").await.expect("it is there")["title"], "new");
    change(&client, "k2", "DELETE FROM item WHERE id = 'a'").await;
    let deleted = by_document.next().await;
    assert_eq!(deleted.data["deleted"], true);

    // The gateway is away while something happens; the client comes back.
    assert!(running.stop().await.success());
    assert!(by_correlation.ended().await && by_document.ended().await, "streams end at once");
    change(&client, "k1", "UPDATE item SET name = 'y' WHERE id = 'b'").await;
    let _running = other.start().await;
    let last = first.iter().map(|it| it.number()).max().expect("some").to_string();
    let mut again = other.listen("correlation_id=k1", Some(&last)).await;
    change(&client, "k1", "UPDATE item SET name = 'z' WHERE id = 'b'").await;
    let rest = [again.next().await, again.next().await];
    assert!(rest.iter().all(|it| it.event == "document" && it.data["id"] == "b"), "{rest:?}");
    assert!(last.parse::<i64>().is_ok_and(|it| it < rest[0].number()), "nothing is heard twice");
    assert!(rest[0].number() < rest[1].number());
    // Who comes late hears the history; whose last event nobody knows reads everything anew.
    let mut late = other.listen("correlation_id=k1", None).await;
    let history = [late.next().await, late.next().await, late.next().await, late.next().await];
    assert_eq!(history.iter().map(Heard::number).collect::<Vec<_>>().len(), 4);
    assert_eq!(history[3].number(), rest[1].number());
    let mut lost = other.listen("correlation_id=k1", Some("999999999")).await;
    assert_eq!(lost.next().await.event, "reset");
    assert_eq!(lost.next().await, history[0]);
}

/// A robot's answer, as its message would be.
async fn answer(robot: &FutureProducer, topic: &str, id: &str, body: &str) {
    let header = |key, value| Header { key, value: Some(value) };
    let headers = OwnedHeaders::new().insert(header("id", id)).insert(header("session-id", "s1"));
    let headers = headers.insert(header("type", "PaymentRefused"));
    let record: FutureRecord<'_, str, str> = FutureRecord::to(topic).payload(body).headers(headers);
    robot.send(record, PATIENCE).await.expect("Kafka takes the answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_heard_once_and_who_is_slow_is_let_go_alone() {
    let world = world("feedback_answers").await;
    let gateways = [Gateway::of(&world, 1), Gateway::of(&world, 2)];
    let _running = join_all(gateways.iter().map(Gateway::start)).await;
    let robot: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", server("ONELOG_TEST_KAFKA"))
        .create()
        .expect("a producer");
    let topic = format!("{}.responses", world.name);
    let mut quick = gateways[0].listen("session_id=s1", None).await;
    let mut elsewhere = gateways[1].listen("session_id=s1", None).await;
    for (id, body) in [("e1", r#"{"n": 1.00}"#), ("e1", r#"{"n": 1.00}"#), ("e2", "{}")] {
        answer(&robot, &topic, id, body).await;
    }
    for it in [&mut quick, &mut elsewhere] {
        let (first, second) = (it.next().await, it.next().await);
        assert_eq!((first.event.as_str(), &first.data["status"]), ("response", &"failure".into()));
        assert_eq!((&first.data["event"], &second.data["event"]), (&"e1".into(), &"e2".into()));
        assert!(first.text.contains(r#""body":{"n": 1.00}"#), "{}", first.text);
    }

    // One that does not read, and takes little into its socket.
    let mut slow = Listener::deaf(&gateways[0].address, "session_id=s1");
    eventually("the slow one listens", PATIENCE, || async {
        let count = metric_at(&gateways[0].http, "onelog_gateway_subscribers", "").await?;
        (count == 2.0).then_some(())
    })
    .await;
    let body = format!("\"{}\"", "x".repeat(60_000));
    let mut heard = 0;
    let dropped = || metric_at(&gateways[0].http, "onelog_gateway_subscribers_dropped_total", "");
    while dropped().await != Some(1.0) {
        assert!(heard < 2_000, "the slow one is never let go");
        for nth in 0..50 {
            answer(&robot, &topic, &format!("x{}", heard + nth), &body).await;
        }
        for _ in 0..50 {
            let it = quick.next().await;
            assert_eq!(it.data["event"], format!("x{heard}"), "in order, without a gap");
            heard += 1;
        }
    }
    let rest = tokio::task::spawn_blocking(move || {
        let mut text = Vec::new();
        slow.read_to_end(&mut text).map(|_| text)
    });
    let text = rest.await.expect("no panic").expect("the connection ends");
    let text = String::from_utf8_lossy(&text);
    let (_, last) = text.rsplit_once("event: ").expect("events");
    assert!(last.starts_with("dropped\n"), "{last:.100}");
    let before = text.matches("event: response\n").count();
    assert!((256..heard + 2).contains(&before), "the first {before} are there");
    answer(&robot, &topic, "e3", "{}").await;
    assert_eq!(quick.next().await.data["event"], "e3");
}

/// A gateway's part that waits, in this process.
struct Waiting {
    backplane: Arc<Backplane>,
    pipeline: Pipeline,
    _stages: JoinSet<()>,
}

impl Waiting {
    async fn start(world: &World) -> Self {
        let config = onelog::config::file::load(&world.config).expect("a config");
        let gateway = config.gateway.clone().expect("the section");
        let backplane = Backplane::new((&config.kafka, &gateway), Metrics::new());
        let backplane = Arc::new(backplane.expect("a producer"));
        let (ready, mut is_ready) = watch::channel(false);
        let mut stages = JoinSet::new();
        let (kafka, own) = (config.kafka.clone(), Arc::clone(&backplane));
        stages.spawn(async move {
            let never = CancellationToken::new();
            let ended = run_backplane(own, (kafka, gateway), ready, never).await;
            ended.expect("the backplane can be read");
        });
        let ready = tokio::time::timeout(PATIENCE, is_ready.wait_for(|it| *it)).await;
        ready.expect("in time").expect("it runs");
        Self { backplane, pipeline: Pipeline::new(&config.kafka), _stages: stages }
    }

    async fn until(&self, id: &str, token: &Token, limit: Duration) -> Waited {
        let document = Document { collection: "item".to_owned(), id: id.to_owned() };
        until_reflected((&self.backplane, &self.pipeline), &document, token, limit).await
    }
}

async fn wal_end(client: &Client) -> Token {
    let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await;
    Token::MinLsn(row.expect("an LSN").get::<_, String>(0).parse().expect("an LSN"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_the_document_or_says_who_is_behind() {
    let world = world("feedback_wait").await;
    let capture = world.start_capture();
    let translator = Gateway::of(&world, 1);
    let only = ["--only", "translate"];
    let translate = Daemon::start_with(&translator.config, &translator.log, &only);
    world.built().await;
    let waiting = Waiting::start(&world).await;
    let (client, _connection) = world.client().await;

    let token = change(&client, "k1", "INSERT INTO item VALUES ('a', 'one')").await;
    let correlation = Token::Correlation("k1".to_owned());
    let txid = Token::Txid(token.parse().expect("a number"));
    for token in [&correlation, &txid] {
        let waited = waiting.until("a", token, PATIENCE).await;
        assert!(matches!(waited, Waited::Reflected), "{token:?}: {waited:?}");
        assert_eq!(world.document("item", "a").await.expect("it is there")["name"], "one");
    }
    // A document that nothing concerns: all that was committed before has been handled.
    let waited = waiting.until("never", &wal_end(&client).await, PATIENCE).await;
    assert!(matches!(waited, Waited::Reflected), "{waited:?}");
    let waited = waiting.until("never", &txid, Duration::from_millis(300)).await;
    assert!(matches!(waited, Waited::Late(_)), "{waited:?}");

    // The translator is away: the wait says so.
    assert!(translate.stop().await.success());
    change(&client, "k2", "UPDATE item SET name = 'two' WHERE id = 'a'").await;
    let k2 = Token::Correlation("k2".to_owned());
    eventually("the translator is known to stand", PATIENCE, || async {
        let waited = waiting.until("a", &k2, Duration::from_millis(300)).await;
        assert!(matches!(waited, Waited::Late(_)), "{waited:?}");
        let problem = format!("{:?}", waited.problem().expect("it is late"));
        problem.contains(r#""stands_at": String("translate")"#).then_some(())
    })
    .await;
    let now = wal_end(&client).await;
    let waited = waiting.until("never", &now, Duration::from_secs(1)).await;
    assert!(matches!(waited, Waited::Late(_)), "what is not handled has not passed: {waited:?}");
    let both = async {
        tokio::join!(waiting.until("a", &k2, PATIENCE), waiting.until("never", &now, PATIENCE))
    };
    let again = async { Daemon::start_with(&translator.config, &translator.log, &only) };
    let ((document, place), _translate) = tokio::join!(both, again);
    assert!(matches!(document, Waited::Reflected) && matches!(place, Waited::Reflected));
    assert_eq!(world.document("item", "a").await.expect("it is there")["name"], "two");
    assert!(capture.stop().await.success());
    refusal_ends_the_wait(&waiting).await;
}

async fn refusal_ends_the_wait(waiting: &Waiting) {
    let refused =
        r#"{"kind":"response","topic":"t","status":"failure","correlation_id":"k9","ts_ms":1}"#;
    let accepted = accepted("a", "k9", None);
    waiting.backplane.publish(&accepted).await.expect("Kafka takes it");
    let token = Token::Correlation("k9".to_owned());
    let wait = waiting.until("a", &token, PATIENCE);
    let refusal = async {
        let refused = Feedback::from_json(refused.as_bytes()).expect("a record").expect("known");
        let offset = waiting.backplane.publish(&refused).await.expect("Kafka takes it");
        waiting.backplane.reached(offset).await;
    };
    let (waited, ()) = tokio::join!(wait, refusal);
    let problem = waited.problem().expect("the command has failed");
    assert_eq!(problem.status().as_u16(), 409);
}
