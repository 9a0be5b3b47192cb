//! The robots of deploy/robots as child processes, and what they need in a world.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::world::{World, psql_path};
use super::{eventually, server};

/// Who carries the commands out.
#[derive(Clone, Copy)]
pub enum Kind {
    Plain,
    Django,
}

/// A running robot; killed when dropped.
pub struct Robot {
    child: Child,
    log: PathBuf,
}

/// The lines of a world's config that its robots count on, to go below `[kafka]`.
pub fn config(world: &str) -> String {
    format!(
        "[outbox]\ntables = [\"public.outbox\"]\ntopic = \"{{topic_prefix}}.event.{{aggregatetype}}\"\n\
         [[topics]]\nname = \"{}\"\nkind = \"command\"\n\
         [[topics]]\nname = \"{}\"\nkind = \"response\"\n",
        commands(world),
        responses(world)
    )
}

pub fn commands(world: &str) -> String {
    format!("{world}.commands.profile")
}

pub fn responses(world: &str) -> String {
    format!("{world}.event.response")
}

/// Runs the migrations, and logs in two users: "ada" in session "ada-1" and "bob" in "bob-1".
pub fn migrate(world: &World) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut psql = Command::new(psql_path());
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]);
    for file in [
        "migrations/0002_onelog_outbox.sql",
        "migrations/0003_onelog_functions.sql",
        "deploy/robots/robot.sql",
    ] {
        psql.arg("-f").arg(here.join(file));
    }
    let login = "INSERT INTO auth.session (id, username) VALUES ('ada-1', 'ada'), ('bob-1', 'bob')";
    let output = psql.args(["-c", login]).arg(&world.database_url).output().expect("psql runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Robot {
    pub fn start(kind: Kind, world: &World) -> Self {
        let folder = world.folder.path();
        Self::start_on(kind, &world.database_url, &commands(&world.name), folder)
    }

    /// With any database and topic; it logs into that folder.
    pub fn start_on(kind: Kind, database: &str, topic: &str, folder: &Path) -> Self {
        let robots = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/robots");
        let log = folder.join("robot.log");
        let file = OpenOptions::new().create(true).append(true).open(&log).expect("a log file");
        let mut command = Command::new(server("ONELOG_TEST_DJANGO"));
        match kind {
            Kind::Plain => command.arg(robots.join("profile_robot.py")),
            Kind::Django => command.arg(robots.join("django/manage.py")).arg("profile_robot"),
        };
        // Whoever shares a topic with other worlds gets all of it.
        let group = format!("{topic}.{}", database.rsplit('/').next().unwrap_or_default());
        let child = command
            .args(["--brokers", &server("ONELOG_TEST_KAFKA"), "--topic", topic, "--group", &group])
            .env("DATABASE_URL", database)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            // Where it crashed, in its log.
            .env("PYTHONFAULTHANDLER", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .expect("Python starts: deploy/stack install");
        Self { child, log }
    }

    /// `kill -9`, at whatever it is doing.
    pub fn kill(mut self) {
        self.child.kill().expect("the robot is killed");
        self.child.wait().expect("the robot is gone");
    }

    /// SIGTERM, and the wait for its end: the status and its log.
    pub async fn stop(mut self) -> (ExitStatus, String) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success(), "the robot has died: {}", self.log_text());
        let child = std::cell::RefCell::new(&mut self.child);
        let ended = eventually("the robot ends", Duration::from_secs(40), || async {
            child.borrow_mut().try_wait().expect("the robot is our child")
        });
        (ended.await, self.log_text())
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Robot {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|it| it.is_none()) {
            self.child.kill().expect("the robot is killed");
            self.child.wait().expect("the robot is gone");
        }
    }
}
