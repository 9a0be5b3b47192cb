//! One test's world on the shared servers: a database with the sample application, topics, indices
//! and a slot of its own names, and a config file that says so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use elasticsearch::http::Method;
use elasticsearch::http::headers::HeaderMap;
use elasticsearch::http::transport::Transport;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use super::daemon::{Daemon, onelog};
use super::oracle::{self, Documents};
use super::{eventually, server};

/// Long enough for a restart of any server on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct World {
    pub name: String,
    pub folder: tempfile::TempDir,
    postgres: String,
    pub database_url: String,
    pub config: PathBuf,
    pub mappings: PathBuf,
    pub http: String,
    transport: Transport,
}

/// What a test may want otherwise.
pub struct Wishes<'a> {
    pub companies: usize,
    /// Lines added to `[translate]`.
    pub translate: &'a str,
    /// Lines added to `[elasticsearch]`.
    pub elasticsearch: &'a str,
    /// Lines added to `[kafka]`.
    pub kafka: &'a str,
    /// SQL instead of the sample application; then there are no mappings either.
    pub instead: Option<&'a str>,
    pub tables: &'a str,
    /// Lines added to `[postgres]`.
    pub postgres: &'a str,
    /// A Postgres of the test's own, `postgres://…/postgres`, instead of the shared one.
    pub server: Option<String>,
}

impl Default for Wishes<'_> {
    fn default() -> Self {
        Self {
            companies: 150,
            translate: "",
            elasticsearch: "",
            kafka: "",
            instead: None,
            tables: "public.*",
            postgres: "",
            server: None,
        }
    }
}

impl World {
    /// Makes the database, loads the sample application, copies its mappings, writes the config.
    pub async fn new(name: &str, wishes: Wishes<'_>) -> Self {
        let postgres = wishes.server.clone();
        let postgres = postgres.unwrap_or_else(|| server("ONELOG_TEST_POSTGRES"));
        let name = format!("{name}_{}", std::process::id());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (admin, _connection) = connect(&postgres).await;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("a new database");
        let base = postgres.rsplit_once('/').expect("a URL with a database").0;
        let database_url = format!("{base}/{name}");
        let mappings = folder.path().join("connectors");
        std::fs::create_dir(&mappings).expect("a folder");
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        match wishes.instead {
            Some(sql) => {
                let (client, _connection) = connect(&database_url).await;
                client.batch_execute(sql).await.expect("the test's SQL runs");
            }
            None => {
                let sample = here.join("deploy/sample");
                psql(&database_url, &["-f", &sample.join("schema.sql").to_string_lossy()]);
                let companies = format!("companies={}", wishes.companies);
                let data = sample.join("data.sql");
                psql(
                    &database_url,
                    &["-v", &companies, "-v", "seed=1", "-f", &data.to_string_lossy()],
                );
                copy_mappings(&here.join("connectors"), &mappings);
            }
        }
        let http = free_address();
        let config = folder.path().join("config.toml");
        let text = config_text(&name, &database_url, &http, &wishes);
        std::fs::write(&config, text).expect("the config is written");
        let transport =
            Transport::single_node(&server("ONELOG_TEST_ELASTICSEARCH")).expect("a URL");
        Self { name, folder, postgres, database_url, config, mappings, http, transport }
    }

    /// `onelog COMMAND --config …`; standard output, or a panic with everything it said.
    pub fn onelog(&self, arguments: &[&str]) -> String {
        let mut all = arguments.to_vec();
        let config = self.config.to_string_lossy().into_owned();
        all.extend(["--config", &config]);
        let output = onelog(&all);
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "onelog {arguments:?} failed:\n{said}\n{complained}");
        said.into_owned()
    }

    /// Leaves only these mapping files.
    pub fn keep_mappings(&self, files: &[&str]) {
        for entry in std::fs::read_dir(&self.mappings).expect("a folder") {
            let path = entry.expect("an entry").path();
            if !files.iter().any(|it| path.ends_with(it)) {
                std::fs::remove_file(path).expect("the file goes");
            }
        }
    }

    pub fn start(&self) -> Daemon {
        Daemon::start(&self.config, &self.folder.path().join("onelog.log"))
    }

    /// The capture role alone.
    pub fn start_capture(&self) -> Daemon {
        let log = self.folder.path().join("onelog.log");
        Daemon::start_with(&self.config, &log, &["--only", "capture"])
    }

    pub async fn client(&self) -> (Client, JoinSet<()>) {
        connect(&self.database_url).await
    }

    pub fn collections(&self) -> Vec<String> {
        oracle::collections(&self.mappings)
    }

    pub fn alias(&self, collection: &str) -> String {
        format!("{}-{collection}", self.name)
    }

    /// Waits until every collection's alias is there, which is when it was built.
    pub async fn built(&self) {
        for collection in self.collections() {
            let path = format!("/_alias/{}", self.alias(&collection));
            let what = format!("collection {collection} is built");
            eventually(&what, PATIENCE, || async {
                self.elastic(Method::Get, &path, None).await.ok().map(|_| ())
            })
            .await;
        }
    }

    /// Waits until the slot is confirmed to where `end` is now, a function of Postgres.
    pub async fn confirmed_to(&self, end: &str) {
        let (client, _connection) = self.client().await;
        let row = client.query_one(&format!("SELECT {end}::text"), &[]).await;
        let lsn: String = row.expect("the WAL's end").get(0);
        let confirmed = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn \
                         FROM pg_replication_slots WHERE slot_name = $2";
        eventually("the slot is confirmed to the WAL's end", PATIENCE, || async {
            let row = client.query_one(confirmed, &[&lsn, &self.name]).await.ok()?;
            row.get::<_, bool>(0).then_some(())
        })
        .await;
    }

    /// Waits until all that is committed now has reached Kafka and, from there, Elasticsearch:
    /// the slot is confirmed up to here, and the group's offsets are the topics' ends.
    pub async fn quiet(&self) {
        self.confirmed_to("pg_current_wal_flush_lsn()").await;
        eventually("the translator has handled the whole log", PATIENCE, || async {
            let (brokers, name) = (server("ONELOG_TEST_KAFKA"), self.name.clone());
            let behind = tokio::task::spawn_blocking(move || records_behind(&brokers, &name));
            (behind.await.expect("no panic") == Some(0)).then_some(())
        })
        .await;
    }

    /// Every document of the collection as Elasticsearch has it.
    pub async fn documents(&self, collection: &str) -> Documents {
        let alias = self.alias(collection);
        self.elastic(Method::Post, &format!("/{alias}/_refresh"), None).await.expect("a refresh");
        let query = r#"{"size":10000,"version":true,"query":{"match_all":{}}}"#;
        let path = format!("/{alias}/_search");
        let found = self.elastic(Method::Post, &path, Some(query)).await.expect("a search");
        let hits = found["hits"]["hits"].as_array().expect("hits");
        assert!(hits.len() < 10_000, "the test's world is larger than one search");
        hits.iter()
            .map(|it| (it["_id"].as_str().expect("_id").to_owned(), it["_source"].clone()))
            .collect()
    }

    /// The one check that every test of the path ends with.
    pub async fn check_documents(&self) {
        if let Some(fault) = self.wrong_documents().await {
            panic!("{fault}");
        }
    }

    /// What is wrong with the first collection that is not as its SQL says; None: nothing is.
    pub async fn wrong_documents(&self) -> Option<String> {
        let (client, _connection) = self.client().await;
        for collection in self.collections() {
            let expected = oracle::expected(&client, &self.mappings, &collection).await;
            let found = self.documents(&collection).await;
            if let Some(fault) = oracle::difference(&expected, &found) {
                return Some(format!("{collection}: {fault}"));
            }
        }
        None
    }

    /// Copies the daemons' logs to where they outlive the test.
    fn keep_logs(&self) -> String {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let found = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let logs = found.filter(|it| it.path().extension().is_some_and(|it| it == "log"));
        let copied = logs.map(|it| {
            let to = kept.join(format!("{}.{}", self.name, it.file_name().display()));
            match std::fs::copy(it.path(), &to) {
                Ok(_) => to.display().to_string(),
                Err(error) => format!("none: {error}"),
            }
        });
        copied.collect::<Vec<_>>().join(" ")
    }

    /// One document by its id, as a realtime GET sees it.
    pub async fn document(&self, collection: &str, key: &str) -> Option<Value> {
        let path = format!("/{}/_doc/{key}", self.alias(collection));
        let found = self.elastic(Method::Get, &path, None).await.ok()?;
        found.get("_source").cloned()
    }

    /// A request to Elasticsearch; Err has the status of an answer that is no success.
    pub async fn elastic(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
    ) -> Result<Value, String> {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/json".parse().expect("a header"));
        let none: Option<&()> = None;
        let body = body.map(str::to_owned);
        let sent = self.transport.send(method, path, headers, none, body, None).await;
        let response = sent.map_err(|it| it.to_string())?;
        let status = response.status_code();
        let value: Value = response.json().await.map_err(|it| it.to_string())?;
        if status.is_success() { Ok(value) } else { Err(format!("{status}: {value}")) }
    }

    /// A metric's value, summed over its labels; None while the daemon does not answer.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        self.metric_where(name, "").await
    }

    /// The same of the series with this label, written as in `outcome="deleted"`.
    pub async fn metric_where(&self, name: &str, label: &str) -> Option<f64> {
        metric_at(&self.http, name, label).await
    }

    /// What the daemon's own server answers; None while there is no daemon.
    pub async fn http(&self, path: &str) -> Option<(u16, String)> {
        http_at(&self.http, path).await
    }
}

/// As [`World::metric_where`], of the daemon that serves there.
pub async fn metric_at(address: &str, name: &str, label: &str) -> Option<f64> {
    let (_, text) = http_at(address, "/metrics").await?;
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name).filter(|it| it.contains(label))?;
        let rest = if rest.starts_with('{') { rest.split_once('}')?.1 } else { rest };
        rest.strip_prefix(' ')?.trim().parse::<f64>().ok()
    });
    Some(values.sum())
}

/// Status and body, if anybody answers there.
pub async fn http_at(address: &str, path: &str) -> Option<(u16, String)> {
    let transport = Transport::single_node(&format!("http://{address}")).ok()?;
    let (none, headers): (Option<&()>, _) = (None, HeaderMap::new());
    let sent = transport.send(Method::Get, path, headers, none, None::<String>, None);
    let response = sent.await.ok()?;
    let status = response.status_code().as_u16();
    Some((status, response.text().await.ok()?))
}

impl Drop for World {
    /// The next test needs the slots and the disk. What can't be dropped stays for `down --wipe`.
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "beside the panic, for whoever looks for it")]
            {
                eprintln!("the daemons' logs: {}", self.keep_logs());
            }
        }
        let postgres = &self.postgres;
        let sql = format!(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
             WHERE slot_name = '{0}' AND active",
            self.name
        );
        let drop_slot = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE slot_name = '{0}'",
            self.name
        );
        let drop_database = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let ended = Command::new(psql_path())
            .args(["-X", "-q", postgres, "-c", &sql, "-c", &drop_slot, "-c", &drop_database])
            .output();
        if !std::thread::panicking() {
            ended.expect("psql runs");
        }
    }
}

fn config_text(name: &str, database_url: &str, http: &str, wishes: &Wishes<'_>) -> String {
    let (kafka, elastic) = (server("ONELOG_TEST_KAFKA"), server("ONELOG_TEST_ELASTICSEARCH"));
    let more_elastic = wishes.elasticsearch;
    let (more_kafka, more_translate, tables) = (wishes.kafka, wishes.translate, wishes.tables);
    let more_postgres = wishes.postgres;
    format!(
        r#"
[postgres]
url = "{database_url}"
slot_name = "{name}"
publication_name = "{name}"
tables = ["{tables}"]
{more_postgres}
[kafka]
brokers = "{kafka}"
topic_prefix = "{name}"
delivery_timeout = "3s"
socket_timeout = "2s"
properties = {{ "group.instance.id" = "{name}" }}
{more_kafka}
[elasticsearch]
url = "{elastic}"
index_prefix = "{name}-"
number_of_replicas = 0
{more_elastic}
[translate]
poll_interval = "off"
audit_interval = "off"
fingerprint_interval = "500ms"
{more_translate}
[http]
listen = "{http}"
"#
    )
}

/// A connection and the task that drives it.
pub async fn connect(url: &str) -> (Client, JoinSet<()>) {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("Postgres answers");
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        // The server's restart is part of some tests; its client hears of it by its next query.
        drop(connection.await);
    });
    (client, driver)
}

/// The client that belongs to the shared Postgres; a build from Maven has none, then the system's.
pub fn psql_path() -> PathBuf {
    let own = Path::new(&server("ONELOG_TEST_POSTGRES_BIN")).join("psql");
    if own.exists() { own } else { "psql".into() }
}

fn psql(url: &str, arguments: &[&str]) {
    let output = Command::new(psql_path())
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1"])
        .args(arguments)
        .arg(url)
        .output()
        .expect("psql runs");
    assert!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
}

fn copy_mappings(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("connectors/") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|it| it == "toml") {
            std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("a copy");
        }
    }
}

/// A loopback address that was free a moment ago: below the ports that outgoing connections get, of
/// which tests have hundreds, and never the same twice, as nobody listens there yet.
pub fn free_address() -> String {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 10_000;
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let nth = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let address = format!("127.0.0.1:{}", FIRST + start.wrapping_add(nth) % COUNT);
        if std::net::TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
    panic!("no port is free");
}

/// How many records of this world's topics the group has not committed yet; None while unknown.
fn records_behind(brokers: &str, prefix: &str) -> Option<i64> {
    const ANSWER_MAX: Duration = Duration::from_secs(5);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", format!("{prefix}.onelog"))
        .create()
        .ok()?;
    let metadata = consumer.fetch_metadata(None, ANSWER_MAX).ok()?;
    let mut list = TopicPartitionList::new();
    let own = format!("{prefix}.public.");
    for topic in metadata.topics().iter().filter(|it| it.name().starts_with(&own)) {
        for partition in topic.partitions() {
            list.add_partition(topic.name(), partition.id());
        }
    }
    let committed = consumer.committed_offsets(list, ANSWER_MAX).ok()?;
    let mut behind = 0;
    for place in committed.elements() {
        // A topic that no mapping reads has no committed offset.
        if let Offset::Offset(offset) = place.offset() {
            let (_, high) =
                consumer.fetch_watermarks(place.topic(), place.partition(), ANSWER_MAX).ok()?;
            behind += high - offset;
        }
    }
    Some(behind)
}
