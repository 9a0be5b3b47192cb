//! Tables that change while they are captured: every record is what `to_jsonb` said of its row when
//! it was written, on the topic and the key that the table had then, whatever was added, renamed,
//! retyped, altered, truncated, attached or dropped before and after. No session is ended by it.
//!
//! The same migrations run while the daemon follows each of them, while it follows under traffic
//! as fast as it can, and while it is down, so that the catalog is far ahead of the stream; under
//! each kind of publication.

#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::world::{PATIENCE, Wishes, World, connect};
use support::{eventually, server};
use tokio::task::JoinSet;
use tokio_postgres::Client;

const ANSWER_MAX: Duration = Duration::from_secs(60);

const TABLES: &str = "
CREATE TYPE mood AS ENUM ('ok');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN price AS numeric(10, 2);
CREATE TABLE t (id int PRIMARY KEY, v text, n int, c varchar(3), m mood, p pair, pp pair[], d price);
ALTER TABLE t REPLICA IDENTITY FULL;
CREATE TABLE u (id int PRIMARY KEY, v text NOT NULL);
CREATE TABLE child (id int PRIMARY KEY, u_id int REFERENCES u, s serial);
CREATE TABLE part (id int, k int, v text, PRIMARY KEY (k, id)) PARTITION BY LIST (k);
CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
CREATE TABLE busy (id serial PRIMARY KEY, v text);
";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Publication {
    Tables,
    All,
    Namespace,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// The daemon has captured each step before the next.
    Followed,
    Racing,
    /// The daemon is down until all is done.
    Behind,
}

/// `op` and `after` (for a delete `before`), or null for a tombstone.
type Seen = Value;

/// What the log must have, by topic and key, in order.
type Log = BTreeMap<(String, String), Vec<Seen>>;

struct Migration {
    world: World,
    client: Client,
    _connection: JoinSet<()>,
    publication: Publication,
    pace: Pace,
    log: Log,
    version: i32,
    /// Sessions that a server before 15 needs, as its walsender does not notice partitions.
    renewed: usize,
}

impl Migration {
    async fn new(name: &str, publication: Publication, pace: Pace) -> Self {
        let wishes = Wishes { instead: Some(TABLES), ..Wishes::default() };
        let world = World::new(name, wishes).await;
        let (client, connection) = world.client().await;
        let version = "SELECT current_setting('server_version_num')::int";
        let version: i32 = client.query_one(version, &[]).await.unwrap().get(0);
        let what = match publication {
            Publication::Tables => None,
            Publication::All => Some("FOR ALL TABLES"),
            // Known since Postgres 15.
            Publication::Namespace if version < 150_000 => Some("FOR ALL TABLES"),
            Publication::Namespace => Some("FOR TABLES IN SCHEMA public"),
        };
        if let Some(what) = what {
            let sql = format!("CREATE PUBLICATION {} {what}", world.name);
            client.batch_execute(&sql).await.unwrap();
        }
        world.onelog(&["prepare"]);
        let log = Log::new();
        let (_connection, renewed) = (connection, 0);
        Self { world, client, _connection, publication, pace, log, version, renewed }
    }

    /// A partition came or went while the daemon followed: from the next session on at the latest
    /// it is known.
    async fn partitioned(&mut self) {
        if self.version < 150_000 && self.pace == Pace::Followed {
            self.renewed += 1;
            let log = self.world.folder.path().join("onelog.log");
            eventually("a new session begins", PATIENCE, || async {
                let said = std::fs::read_to_string(&log).unwrap();
                let begun = said.matches("a partition was attached or detached").count();
                let streams = self.world.metric("onelog_capture_streaming").await? == 1.0;
                let sessions = self.world.metric("onelog_capture_sessions_total").await?;
                let renewed = f64::from(u32::try_from(self.renewed).unwrap());
                (begun == self.renewed && streams && sessions > renewed).then_some(())
            })
            .await;
        }
    }

    async fn ddl(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|it| panic!("{sql}: {it:?}"));
    }

    /// What the daemon does not do by itself, as a list of tables is a list.
    async fn publish(&self, table: &str) {
        if self.publication == Publication::Tables {
            self.ddl(&format!("ALTER PUBLICATION {} ADD TABLE {table}", self.world.name)).await;
        }
    }

    /// One statement that writes one row of `table`, on the topic of `topic`, with `key` there.
    async fn write(&mut self, (topic, key): (&str, &[&str]), sql: &str) {
        let sql = format!("{sql} RETURNING to_jsonb(x.*)::text");
        let row = self.client.query_one(&sql, &[]).await;
        let row = row.unwrap_or_else(|it| panic!("{sql}: {it:?}"));
        self.expect((topic, key), &sql, &serde_json::from_str(row.get(0)).unwrap());
    }

    fn expect(&mut self, (topic, key): (&str, &[&str]), sql: &str, row: &Value) {
        let key: Vec<String> = key.iter().map(|it| format!("\"{it}\":{}", row[it])).collect();
        let key = format!("{{{}}}", key.join(","));
        let topic = format!("{}.public.{topic}", self.world.name);
        let seen = self.log.entry((topic, key)).or_default();
        match sql.split(' ').next().unwrap() {
            "INSERT" => seen.push(json!(["c", row])),
            "UPDATE" => seen.push(json!(["u", row])),
            "DELETE" => seen.extend([json!(["d", row]), Value::Null]),
            other => panic!("{other}"),
        }
    }

    async fn truncate(&mut self, sql: &str, tables: &[&str]) {
        self.ddl(sql).await;
        for table in tables {
            let topic = format!("{}.public.{table}", self.world.name);
            let key = (topic, "{\"__onelog\":{\"op\":\"t\"}}".to_owned());
            self.log.entry(key).or_default().push(json!(["t", null]));
        }
    }

    /// A step is done.
    async fn step(&self) {
        if self.pace == Pace::Followed {
            self.world.quiet().await;
        }
    }

    /// Runs the steps beside traffic, then compares the whole log.
    async fn run(mut self) {
        let mut daemon = (self.pace != Pace::Behind).then(|| self.world.start());
        let traffic = Traffic::start(&self.world);
        self.columns().await;
        self.types().await;
        self.tables().await;
        self.partitions().await;
        if self.pace == Pace::Behind {
            self.dropped_before_it_was_read().await;
        }
        for row in traffic.stop().await {
            self.expect(("busy", &["id"]), "INSERT", &row);
        }
        let daemon = daemon.take().unwrap_or_else(|| self.world.start());
        self.finish(daemon).await;
    }

    async fn finish(self, daemon: Daemon) {
        self.world.quiet().await;
        let restarts = self.world.metric("onelog_stage_restarts_total").await;
        let sessions = self.world.metric("onelog_capture_sessions_total").await;
        assert_eq!(restarts, Some(0.0), "{}", daemon.log_text());
        assert!(sessions == Some(1.0) || self.version < 150_000, "{}", daemon.log_text());
        assert!(daemon.stop().await.success(), "SIGTERM drains and exits 0");
        let prefix = format!("{}.public.", self.world.name);
        let mut found = tokio::task::spawn_blocking(move || read(&prefix)).await.unwrap();
        if self.version < 150_000 {
            // A session that ends within a transaction of the traffic sends that again.
            let busy = found.iter_mut().filter(|((topic, _), _)| topic.ends_with(".busy"));
            busy.for_each(|(_, seen)| seen.dedup());
        }
        for (at, expected) in &self.log {
            assert_eq!(found.get(at), Some(expected), "{at:?}");
        }
        let unexpected: Vec<_> = found.keys().filter(|it| !self.log.contains_key(*it)).collect();
        assert!(unexpected.is_empty(), "{unexpected:?}");
    }

    /// Columns added, renamed, retyped with and without a rewrite, and dropped; keys renamed.
    async fn columns(&mut self) {
        let t = ("t", &["id"][..]);
        let value = "INSERT INTO t AS x (id, v, n, c) VALUES";
        self.write(t, &format!("{value} (1, 'a', 7, 'abc')")).await;
        self.write(t, &format!("{value} (2, 'b', 8, NULL)")).await;
        self.step().await;
        self.ddl("ALTER TABLE t ADD x timestamptz DEFAULT '2020-01-01'").await;
        self.ddl("ALTER TABLE busy ADD x1 int DEFAULT 1").await;
        self.write(t, "INSERT INTO t AS x (id, x) VALUES (3, NULL)").await;
        self.write(t, "UPDATE t x SET v = 'a2' WHERE id = 1").await;
        self.step().await;
        self.ddl("ALTER TABLE t RENAME v TO w").await;
        self.write(t, "UPDATE t x SET w = 'a3' WHERE id = 1").await;
        self.step().await;
        self.ddl("ALTER TABLE t ALTER n TYPE text USING n || '!'").await;
        self.ddl("ALTER TABLE busy ADD x2 int[] DEFAULT '{1,2}'").await;
        self.write(t, "INSERT INTO t AS x (id, n) VALUES (4, 'many')").await;
        self.write(t, "UPDATE t x SET w = 'a4' WHERE id = 1").await;
        self.step().await;
        self.ddl("ALTER TABLE t ALTER c TYPE varchar(50)").await;
        self.write(t, "UPDATE t x SET c = 'longer than before' WHERE id = 2").await;
        self.step().await;
        self.ddl("ALTER TABLE t DROP x; ALTER TABLE busy DROP x1").await;
        self.write(t, "INSERT INTO t AS x (id) VALUES (5)").await;
        self.write(t, "DELETE FROM t x WHERE id = 2").await;
        self.step().await;
        self.ddl("BEGIN; ALTER TABLE t RENAME id TO ident; ALTER TABLE t ADD y int; COMMIT").await;
        let t = ("t", &["ident"][..]);
        self.write(t, "INSERT INTO t AS x (ident, y) VALUES (6, 1)").await;
        self.step().await;
        self.ddl("ALTER TABLE t DROP y").await;
        self.write(t, "UPDATE t x SET w = 'a5' WHERE ident = 1").await;
        self.write(t, "DELETE FROM t x WHERE ident = 3").await;
        self.ddl("ALTER TABLE t RENAME ident TO id").await;
        self.step().await;
    }

    /// Enums, domains and composites altered; a type dropped and made again.
    async fn types(&mut self) {
        let t = ("t", &["id"][..]);
        self.write(t, "INSERT INTO t AS x (id, m, p) VALUES (10, 'ok', '(1,one)')").await;
        self.ddl("ALTER TYPE mood ADD VALUE 'so so' BEFORE 'ok'").await;
        self.ddl("ALTER DOMAIN price ADD CHECK (value > 0)").await;
        self.write(t, "INSERT INTO t AS x (id, m, d) VALUES (11, 'so so', 1.50)").await;
        self.step().await;
        self.write(t, "INSERT INTO t AS x (id, pp) VALUES (12, '{\"(2,)\",NULL}')").await;
        self.ddl("ALTER TYPE pair ADD ATTRIBUTE c numeric").await;
        self.write(t, "INSERT INTO t AS x (id, p) VALUES (13, '(3,three,3.50)')").await;
        self.write(t, "UPDATE t x SET w = 'now with c' WHERE id = 10").await;
        self.write(t, "UPDATE t x SET w = 'now with c' WHERE id = 12").await;
        self.step().await;
        // What has the same number of attributes as before can't be told apart from behind.
        if self.pace == Pace::Followed {
            self.ddl("ALTER TYPE pair RENAME ATTRIBUTE b TO bb").await;
            self.write(t, "UPDATE t x SET w = 'now with bb' WHERE id = 13").await;
            self.step().await;
            self.ddl("ALTER TYPE pair DROP ATTRIBUTE a").await;
            self.write(t, "UPDATE t x SET w = 'now without a' WHERE id = 13").await;
            self.ddl("ALTER TYPE pair ADD ATTRIBUTE e mood").await;
            self.step().await;
            self.write(t, "INSERT INTO t AS x (id, p) VALUES (14, '(1,2,ok)')").await;
        }
        for nth in 0..3 {
            self.ddl(&format!("CREATE TYPE kind AS ENUM ('k{nth}'); ALTER TABLE t ADD k kind"))
                .await;
            let insert = format!("INSERT INTO t AS x (id, k) VALUES (2{nth}, 'k{nth}')");
            self.write(t, &insert).await;
            self.step().await;
            self.ddl("ALTER TABLE t DROP k; DROP TYPE kind").await;
        }
        self.step().await;
    }

    /// Tables truncated, made, dropped and made again, renamed; identities and keys changed.
    async fn tables(&mut self) {
        let (u, child) = (("u", &["id"][..]), ("child", &["id"][..]));
        self.write(u, "INSERT INTO u AS x VALUES (1, 'a')").await;
        self.write(child, "INSERT INTO child AS x VALUES (1, 1)").await;
        self.truncate("TRUNCATE u CASCADE", &["u", "child"]).await;
        self.step().await;
        self.truncate("TRUNCATE child, u RESTART IDENTITY", &["u", "child"]).await;
        self.write(u, "INSERT INTO u AS x VALUES (2, 'b')").await;
        self.write(child, "INSERT INTO child AS x VALUES (2, 2)").await;
        self.step().await;
        self.ddl("DROP TABLE child; CREATE TABLE child (id bigint PRIMARY KEY, other jsonb)").await;
        self.publish("child").await;
        self.write(child, "INSERT INTO child AS x VALUES (3, '{\"a\": [1.50]}')").await;
        self.step().await;
        self.ddl("CREATE TABLE fresh (b text, a int, v point, PRIMARY KEY (a, b))").await;
        self.publish("fresh").await;
        let fresh = ("fresh", &["a", "b"][..]);
        self.write(fresh, "INSERT INTO fresh AS x VALUES ('b', 1, '(1,2)')").await;
        self.write(fresh, "UPDATE fresh x SET v = '(3,4)'").await;
        self.step().await;
        self.ddl("ALTER TABLE fresh REPLICA IDENTITY FULL").await;
        self.write(fresh, "UPDATE fresh x SET v = '(5,6)'").await;
        self.ddl("ALTER TABLE fresh RENAME a TO aa; ALTER TABLE fresh REPLICA IDENTITY DEFAULT")
            .await;
        self.write(("fresh", &["aa", "b"]), "UPDATE fresh x SET v = '(7,8)'").await;
        self.step().await;
        self.ddl("ALTER TABLE u RENAME TO u2").await;
        self.write(("u2", &["id"]), "UPDATE u2 x SET v = 'c'").await;
        self.step().await;
        self.ddl("ALTER TABLE u2 DROP CONSTRAINT u_pkey, ADD PRIMARY KEY (v)").await;
        self.write(("u2", &["v"]), "UPDATE u2 x SET id = 3").await;
        self.step().await;
    }

    /// A table that is dropped before its rows are read under FULL: nobody knows its key any more,
    /// so all columns are the key, and nothing is lost.
    async fn dropped_before_it_was_read(&mut self) {
        self.ddl("CREATE TABLE gone (id int PRIMARY KEY, v text)").await;
        self.ddl("ALTER TABLE gone REPLICA IDENTITY FULL").await;
        self.publish("gone").await;
        let key = ("gone", &["id", "v"][..]);
        self.write(key, "INSERT INTO gone AS x VALUES (1, 'a')").await;
        self.ddl("UPDATE gone SET v = 'b'; DROP TABLE gone").await;
        self.expect(key, "DELETE", &json!({ "id": 1, "v": "a" }));
        self.expect(key, "INSERT", &json!({ "id": 1, "v": "b" }));
    }

    async fn partitions(&mut self) {
        let part = ("part", &["k", "id"][..]);
        self.write(part, "INSERT INTO part AS x VALUES (1, 1, 'a')").await;
        self.step().await;
        self.ddl("CREATE TABLE part_2 (v text, k int NOT NULL, id int NOT NULL)").await;
        // Not published yet, unless all are: the walsender remembers that, before 15.
        let alone = "INSERT INTO part_2 AS x (k, id) VALUES (2, 0)";
        if self.publication == Publication::Tables && self.pace == Pace::Followed {
            self.ddl(alone).await;
            self.step().await;
        }
        self.ddl("ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES IN (2)").await;
        self.partitioned().await;
        self.write(part, "INSERT INTO part AS x VALUES (1, 2, 'b')").await;
        self.write(part, "UPDATE part x SET v = 'b2' WHERE (k, id) = (2, 1)").await;
        self.step().await;
        self.truncate("TRUNCATE part_2", &["part"]).await;
        self.truncate("TRUNCATE part", &["part", "part"]).await;
        self.step().await;
        // Of a leaf that is no leaf any more the catalog does not tell whose it was.
        if self.pace == Pace::Followed {
            self.ddl("ALTER TABLE part DETACH PARTITION part_1").await;
            self.partitioned().await;
            let insert = "INSERT INTO part_1 AS x VALUES (9, 1, 'alone')";
            match self.publication {
                Publication::Tables => self.ddl(insert).await,
                _ => self.write(("part_1", &["k", "id"]), insert).await,
            }
            self.step().await;
            self.ddl("ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES IN (1)").await;
            self.partitioned().await;
            self.write(part, "INSERT INTO part AS x VALUES (2, 1, 'back')").await;
            self.step().await;
        }
    }
}

/// Inserts into `busy`, one row a transaction, while its columns come and go. A table's lock
/// stands between both, so that what `to_jsonb` says is what the stream says.
struct Traffic {
    stop: Arc<AtomicBool>,
    running: JoinSet<Vec<Value>>,
}

impl Traffic {
    fn start(world: &World) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, stopped) = (world.database_url.clone(), Arc::clone(&stop));
        let mut running = JoinSet::new();
        running.spawn(async move {
            let (client, _connection) = connect(&url).await;
            let mut rows = Vec::new();
            // Enough to be in the way of every statement, and few enough to be read again.
            let mut ticks = tokio::time::interval(Duration::from_millis(3));
            while !stopped.load(Ordering::Relaxed) {
                let sql = "INSERT INTO busy AS x (v) VALUES (repeat('v', 100))
                           RETURNING to_jsonb(x.*)::text";
                ticks.tick().await;
                let messages = client.simple_query(sql).await.unwrap();
                for message in messages {
                    if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                        rows.push(serde_json::from_str(row.get(0).unwrap()).unwrap());
                    }
                }
            }
            rows
        });
        Self { stop, running }
    }

    async fn stop(mut self) -> Vec<Value> {
        self.stop.store(true, Ordering::Relaxed);
        self.running.join_next().await.unwrap().unwrap()
    }
}

/// All topics with this prefix.
fn read(prefix: &str) -> Log {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", server("ONELOG_TEST_KAFKA"))
        .set("group.id", prefix)
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(None, ANSWER_MAX).unwrap();
    let mut list = TopicPartitionList::new();
    for topic in metadata.topics().iter().filter(|it| it.name().starts_with(prefix)) {
        for partition in topic.partitions() {
            list.add_partition_offset(topic.name(), partition.id(), Offset::Beginning).unwrap();
        }
    }
    consumer.assign(&list).unwrap();
    let (mut ends, mut log) = (0, Log::new());
    while ends < list.count() {
        let Ok(message) = consumer.poll(ANSWER_MAX).expect("a record or an end") else {
            ends += 1;
            continue;
        };
        let key = String::from_utf8(message.key().unwrap_or_default().to_vec()).unwrap();
        let seen = message.payload().map_or(Value::Null, |it| {
            let value: Value = serde_json::from_slice(it).unwrap();
            let row = if value["op"] == "d" { &value["before"] } else { &value["after"] };
            json!([value["op"], row])
        });
        log.entry((message.topic().to_owned(), key)).or_default().push(seen);
    }
    log
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_of_a_table_is_followed() {
    Migration::new("followed", Publication::Tables, Pace::Followed).await.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_change_of_a_table_is_followed_in_a_publication_of_its_namespace() {
    Migration::new("followed_all", Publication::Namespace, Pace::Followed).await.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_faster_than_the_stream_are_caught_up_with() {
    Migration::new("racing", Publication::Tables, Pace::Racing).await.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_while_the_daemon_was_down_are_caught_up_with() {
    Migration::new("behind", Publication::All, Pace::Behind).await.run().await;
}
