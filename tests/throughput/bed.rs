//! Where a part is measured: a database of its own on the shared servers, config files, and the
//! daemon as a process whose CPU time and memory can be read.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::support::world::{connect, free_address};
use crate::support::{daemon, eventually, server};

/// Clock ticks a second in /proc: USER_HZ, which is 100 on every Linux.
const TICKS: f64 = 100.0;

pub struct Bed {
    pub name: String,
    pub url: String,
    pub folder: tempfile::TempDir,
}

/// What the config files of one bed differ in.
pub struct Names<'a> {
    /// Slot, topic prefix and index prefix.
    pub own: &'a str,
    pub publication: &'a str,
    pub tables: &'a str,
    /// More lines for [kafka] and what follows it.
    pub more: &'a str,
}

impl Bed {
    pub async fn new(what: &str) -> Self {
        let postgres = server("ONELOG_TEST_POSTGRES");
        let name = format!("bench_{what}_{}", std::process::id());
        let (admin, _connection) = connect(&postgres).await;
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        let url = format!("{}/{name}", postgres.rsplit_once('/').unwrap().0);
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("connectors")).unwrap();
        Self { name, url, folder }
    }

    pub async fn client(&self) -> (Client, JoinSet<()>) {
        connect(&self.url).await
    }

    /// Where the daemon reads mapping files.
    pub fn mappings(&self) -> PathBuf {
        self.folder.path().join("connectors")
    }

    /// Runs a file of deploy/sample/bench.
    pub fn psql(&self, file: &str, variables: &[String]) {
        let mut command = Command::new(binary("psql"));
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]);
        for variable in variables {
            command.args(["-v", variable]);
        }
        finished(command.arg("-f").arg(sample(file)).arg(&self.url));
    }

    /// A config with no more than what has no default, but for the address of HTTP.
    pub fn config(&self, names: &Names<'_>) -> PathBuf {
        let Names { own, publication, tables, more } = names;
        let (kafka, elastic) = (server("ONELOG_TEST_KAFKA"), server("ONELOG_TEST_ELASTICSEARCH"));
        let text = format!(
            r#"
[postgres]
url = "{}"
slot_name = "{own}"
publication_name = "{publication}"
tables = [{tables}]
[kafka]
brokers = "{kafka}"
topic_prefix = "{own}"
{more}
[elasticsearch]
url = "{elastic}"
index_prefix = "{own}-"
[translate]
mappings = "connectors"
[http]
listen = "{}"
"#,
            self.url,
            free_address()
        );
        let path = self.folder.path().join(format!("{own}.toml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn prepare(&self, config: &Path, more: &[&str]) {
        let config = config.to_string_lossy().into_owned();
        let output = daemon::onelog(&[&["prepare", "--config", &config], more].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "prepare: {said}");
    }

    /// Waits until the slot is confirmed up to now.
    pub async fn confirmed(&self, slot: &str, patience: Duration) {
        let (client, _connection) = self.client().await;
        let row = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
        let end: String = row.get(0);
        // Also flushes what asynchronous commits have left.
        client.batch_execute("SELECT pg_logical_emit_message(true, 'bench', '')").await.unwrap();
        let sql = "SELECT confirmed_flush_lsn >= $1::text::pg_lsn FROM pg_replication_slots \
                   WHERE slot_name = $2";
        eventually("the slot is confirmed", patience, || async {
            let row = client.query_one(sql, &[&end, &slot]).await.ok()?;
            row.get::<_, bool>(0).then_some(())
        })
        .await;
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("onelog.log")
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// `onelog run`, with more arguments.
    pub fn start(&self, config: &Path, more: &[&str]) -> Process {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_onelog"))
            .args(["run", "--config"])
            .arg(config)
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Process(child)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let slots = format!(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
             WHERE database = '{}' AND NOT active",
            self.name
        );
        let database = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let postgres = server("ONELOG_TEST_POSTGRES");
        let ended = Command::new(binary("psql"))
            .args(["-X", "-q", &postgres, "-c", &slots, "-c", &database])
            .output();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// A running daemon; killed when dropped.
pub struct Process(Child);

impl Process {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// User and system time so far, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.0.id()).unwrap()
    }

    /// Most memory that was ever resident, in MB.
    pub fn peak_megabytes(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0 / 1e6
    }

    /// SIGTERM, and the wait for its end.
    pub async fn stop(mut self) {
        finished(Command::new("kill").args(["-TERM", &self.0.id().to_string()]));
        let child = std::cell::RefCell::new(&mut self.0);
        eventually("the daemon ends", Duration::from_secs(60), || async {
            child.borrow_mut().try_wait().unwrap()
        })
        .await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|it| it.is_none()) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }
}

/// User and system time of a process so far, in seconds; None: there is no such process.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything but ends with the last parenthesis; utime is the 12th after.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks: f64 = fields[11..13].iter().map(|it| it.parse::<f64>().unwrap()).sum();
    Some(ticks / TICKS)
}

/// A program of the Postgres under test.
pub fn binary(name: &str) -> PathBuf {
    Path::new(&server("ONELOG_TEST_POSTGRES_BIN")).join(name)
}

pub fn sample(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/sample/bench").join(file)
}

/// Runs a command to its end, which must be a good one.
pub fn finished(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
