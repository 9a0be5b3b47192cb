//! The daemon as a child process, to be stopped, killed and started again.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use super::eventually;

/// `onelog` with these arguments, to its end.
pub fn onelog(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_onelog"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("onelog starts")
}

/// A running `onelog run`; killed when dropped.
pub struct Daemon {
    child: Child,
    pub log: PathBuf,
}

impl Daemon {
    pub fn start(config: &Path, log: &Path) -> Self {
        Self::start_with(config, log, &[])
    }

    /// With more arguments for `run`.
    pub fn start_with(config: &Path, log: &Path, more: &[&str]) -> Self {
        let file: File =
            OpenOptions::new().create(true).append(true).open(log).expect("a log file");
        let child = Command::new(env!("CARGO_BIN_EXE_onelog"))
            .args(["run", "--config"])
            .arg(config)
            .args(more)
            .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("onelog starts");
        Self { child, log: log.to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, at whatever it is doing.
    pub fn kill(mut self) {
        self.child.kill().expect("the daemon is killed");
        self.child.wait().expect("the daemon is gone");
    }

    /// SIGTERM, and the wait for its end.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended(Duration::from_secs(40)).await
    }

    /// The exit of a daemon that ends by itself.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let child = std::cell::RefCell::new(&mut self.child);
        eventually("the daemon ends", limit, || async {
            child.borrow_mut().try_wait().expect("the daemon is our child")
        })
        .await
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status()
            .expect("kill runs");
        assert!(sent.success(), "the daemon has died; see {}", self.log.display());
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("the daemon is our child").is_none()
    }

    /// What it has logged so far.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Most memory that the process ever had resident, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("procfs");
        let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:")).expect("VmHWM");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_alive() {
            self.child.kill().expect("the daemon is killed");
            self.child.wait().expect("the daemon is gone");
        }
    }
}
