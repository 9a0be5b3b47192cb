//! What disturbs the shared servers: stopped, killed, started again, set otherwise. Only a test
//! binary of its own may do so, and its tests one at a time.

use std::path::Path;
use std::process::{Command, Stdio};

use tokio::sync::{Mutex, MutexGuard};

use super::server;
use super::world::{connect, psql_path};

/// The servers for oneself. A test that failed has put back what it disturbed, so its panic does
/// not spoil the next one's turn.
pub async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// A server that is brought back when this is dropped, also by a failing test.
pub struct Away {
    service: &'static str,
    /// The command that undoes what was done to it.
    cure: &'static str,
}

impl Away {
    /// Stops it as an operator would.
    pub async fn stop(service: &'static str) -> Self {
        Self::put(service, "stop", "start").await
    }

    /// `kill -9`; Postgres is shut down with `-m immediate`.
    pub async fn kill(service: &'static str) -> Self {
        Self::put(service, "kill", "start").await
    }

    /// It hangs: it is up, takes connections, and says nothing.
    pub async fn freeze(service: &'static str) -> Self {
        Self::put(service, "freeze", "thaw").await
    }

    async fn put(service: &'static str, fault: &'static str, cure: &'static str) -> Self {
        stack(fault, service).await;
        Self { service, cure }
    }

    pub async fn bring_back(self) {
        let (cure, service) = (self.cure, self.service);
        std::mem::forget(self);
        stack(cure, service).await;
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let cured = run_stack(self.cure, self.service);
        if let (Err(fault), false) = (cured, std::thread::panicking()) {
            panic!("{fault}");
        }
    }
}

/// `deploy/stack COMMAND SERVICE` on the shared servers.
pub async fn stack(command: &'static str, service: &'static str) {
    let ran = tokio::task::spawn_blocking(move || run_stack(command, service)).await;
    ran.expect("no panic").unwrap_or_else(|fault| panic!("{fault}"));
}

fn run_stack(command: &str, service: &str) -> Result<(), String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/stack");
    let ran = Command::new(program)
        .args([command, service, "--name", &server("ONELOG_TEST_STACK")])
        .stdin(Stdio::null())
        .output()
        .map_err(|it| it.to_string())?;
    let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
    if ran.status.success() { Ok(()) } else { Err(format!("stack {command} {service}: {said}")) }
}

/// A setting of the whole Postgres server, put back when dropped, also by a failing test.
pub struct Setting {
    name: &'static str,
}

impl Setting {
    pub async fn set(name: &'static str, value: &str) -> Self {
        let (admin, _connection) = connect(&server("ONELOG_TEST_POSTGRES")).await;
        let setting = Self { name };
        let alter = format!("ALTER SYSTEM SET {name} = '{value}'");
        admin.batch_execute(&alter).await.expect("ALTER SYSTEM runs");
        admin.batch_execute("SELECT pg_reload_conf()").await.expect("a reload");
        let shown = format!("SELECT current_setting('{name}') = '{value}'");
        super::eventually("the setting holds", super::world::PATIENCE, || async {
            let row = admin.query_one(&shown, &[]).await.ok()?;
            row.get::<_, bool>(0).then_some(())
        })
        .await;
        if name == "synchronous_standby_names" {
            commits_wait(&admin).await;
        }
        setting
    }
}

/// Until commits wait for a standby: sessions know of the setting before the checkpointer does,
/// which says whether they wait, and which may be busy.
async fn commits_wait(admin: &tokio_postgres::Client) {
    let (writer, _connection) = connect(&server("ONELOG_TEST_POSTGRES")).await;
    writer.batch_execute("SET synchronous_commit = on").await.expect("a setting");
    let row = writer.query_one("SELECT pg_backend_pid()", &[]).await.expect("a number");
    let pid: i32 = row.get(0);
    let waits =
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep'";
    super::eventually("commits wait for a standby", super::world::PATIENCE, || async {
        let commit = writer.batch_execute("SELECT pg_logical_emit_message(true, 'test', '')");
        let waiting =
            super::eventually("a commit ends or waits", super::world::PATIENCE, || async {
                let row = admin.query_one(waits, &[&pid]).await.ok()?;
                row.get::<_, bool>(0).then_some(())
            });
        tokio::select! {
            biased;

            // 1. It has not waited.
            _ = commit => None,
            // 2. It waits.
            () = waiting => Some(()),
        }
    })
    .await;
    admin.query_one("SELECT pg_cancel_backend($1)", &[&pid]).await.expect("it is let go");
}

impl Drop for Setting {
    fn drop(&mut self) {
        let reset = format!("ALTER SYSTEM RESET {}", self.name);
        let ran = Command::new(psql_path())
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", &server("ONELOG_TEST_POSTGRES")])
            .args(["-c", &reset, "-c", "SELECT pg_reload_conf()"])
            .output();
        if !std::thread::panicking() {
            let ran = ran.expect("psql runs");
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        }
    }
}
