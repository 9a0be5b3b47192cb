//! Plain clusters of a test's own, of any version that `deploy/stack install` fetches: to be
//! filled with WAL, killed, copied to a standby and promoted.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::cluster::{as_server, is_root, shell_words};
use super::server;

/// A cluster, with its programs. Stopped and deleted when we are gone, whichever way.
pub struct Plain {
    bin: PathBuf,
    folder: PathBuf,
    pub port: u16,
    /// When we are gone this pipe closes, and the janitor clears up.
    _janitor: Child,
}

/// The programs of the shared server's version.
pub fn shared_bin() -> String {
    server("ONELOG_TEST_POSTGRES_BIN")
}

/// The programs of another version.
pub fn bin_of(version: u32) -> String {
    server(&format!("ONELOG_TEST_POSTGRES_{version}_BIN"))
}

impl Plain {
    /// A new cluster that runs, with more lines in its postgresql.conf.
    pub async fn start(bin: String, settings: &str) -> Self {
        let settings = settings.to_owned();
        let made = tokio::task::spawn_blocking(move || {
            let cluster = Self::empty(&bin);
            let data = cluster.data();
            let options = ["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"];
            cluster.run(cluster.program("initdb").arg("-D").arg(data).args(options));
            cluster.configure(&format!("{SETTINGS}\n{settings}"));
            cluster.control(&["-w", "start"]);
            cluster
        });
        made.await.unwrap()
    }

    /// A copy of this one, which is stopped: with `settings` and in standby mode; it is not started.
    pub fn copied(&self, settings: &str) -> Self {
        let copy = Self::empty(self.bin.to_str().unwrap());
        copy.run(Command::new("cp").arg("-a").arg(self.data()).arg(copy.data()));
        std::fs::write(copy.data().join("standby.signal"), "").unwrap();
        copy.own(&copy.data().join("standby.signal"));
        copy.configure(settings);
        copy
    }

    fn empty(bin: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("onelog-pg").tempdir().unwrap().keep();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let bin = PathBuf::from(bin);
        let control = shell_words(&as_server(&bin.join("pg_ctl")));
        let script = "cd /; read -r _; $1 -D $0/data -m immediate stop >/dev/null 2>&1; rm -rf $0";
        let mut janitor = Command::new("sh");
        janitor.args(["-c", script]).arg(&folder).arg(control).stdin(Stdio::piped());
        let janitor = janitor.spawn().unwrap();
        let cluster = Self { bin, folder, port, _janitor: janitor };
        cluster.own(&cluster.folder);
        cluster
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn program(&self, name: &str) -> Command {
        let path = self.bin.join(name);
        assert!(path.exists(), "no {}: run deploy/stack install", path.display());
        as_server(&path)
    }

    fn run(&self, command: &mut Command) {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        assert!(output.status.success(), "{command:?}: {output:?}\n{log}");
    }

    fn log(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    fn own(&self, path: &Path) {
        if is_root() {
            self.run(Command::new("chown").arg("postgres:postgres").arg(path));
        }
    }

    /// Adds lines to postgresql.conf: later ones win.
    fn configure(&self, lines: &str) {
        let path = self.data().join("postgresql.conf");
        let mut text = std::fs::read_to_string(&path).unwrap();
        let folder = self.folder.display();
        let address = format!("port = {}\nunix_socket_directories = '{folder}'", self.port);
        write!(text, "\n{lines}\n{address}\n").unwrap();
        std::fs::write(&path, text).unwrap();
    }

    /// `pg_ctl` with these words; its log would keep the pipe of a captured test open.
    fn control(&self, arguments: &[&str]) {
        let mut command = self.program("pg_ctl");
        command.arg("-D").arg(self.data()).args(["-s", "-t", "90"]).arg("-l").arg(self.log());
        self.run(command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()));
    }

    pub fn up(&self) {
        self.control(&["-w", "start"]);
    }

    pub fn stop(&self) {
        self.control(&["-w", "-m", "fast", "stop"]);
    }

    /// As a crash does it.
    pub fn kill(&self) {
        self.control(&["-w", "-m", "immediate", "stop"]);
    }

    pub fn promote(&self) {
        self.control(&["-w", "promote"]);
    }

    /// From the next start on it answers where the other did.
    pub fn take_port_of(&mut self, other: &Self) {
        self.port = other.port;
        self.configure("");
    }

    /// As everybody comes in who is on this machine.
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

/// The shortest waits and the least memory that a server can do with.
const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
wal_level = logical
fsync = off
shared_buffers = 32MB
max_connections = 60
max_wal_senders = 10
max_replication_slots = 10
";
