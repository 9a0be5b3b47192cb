//! A throwaway Kafka broker of a test's own, its own controller: for rights that are taken away and
//! a disk that is full, which can't be asked of the shared one.
//!
//! Us it knows as its super user, without a password; a daemon by user and password, with no more
//! rights than `grant` gives.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use super::world::{PATIENCE, World, free_address};
use super::{eventually, server};

/// Killed and deleted when we are gone, whichever way.
pub struct Broker {
    folder: PathBuf,
    /// For us.
    pub address: String,
    /// For daemons.
    pub guarded: String,
    controller: String,
    running: Option<Child>,
    /// When we are gone this pipe closes, and the janitor clears up.
    _janitor: Child,
}

/// Lines of `[kafka]` that make a daemon come as the user that has to have rights.
pub const AS_USER: &str = "\"security.protocol\" = \"SASL_PLAINTEXT\", \
     \"sasl.mechanism\" = \"PLAIN\", \"sasl.username\" = \"onelog\", \"sasl.password\" = \"secret\"";

impl Broker {
    /// A broker that runs. `file_max` as for `up`.
    pub async fn start(file_max: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("onelog-kafka").tempdir().unwrap().keep();
        let script = "cd /; read -r _; kill -9 $(cat $0/pid) 2>/dev/null; rm -rf $0";
        let mut janitor = Command::new("sh");
        janitor.args(["-c", script]).arg(&folder).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut broker = Self {
            address: free_address(),
            guarded: free_address(),
            controller: free_address(),
            running: None,
            _janitor: janitor.spawn().unwrap(),
            folder,
        };
        broker.configure();
        let properties = broker.folder.join("server.properties");
        let format = ["format", "-t", "AAAAAAAAAAAAAAAAAAAAAA", "-c", properties.to_str().unwrap()];
        broker.java("kafka.tools.StorageTool", &format);
        broker.up(file_max).await;
        broker
    }

    fn configure(&self) {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kafka/server.properties");
        let shared = std::fs::read_to_string(own).unwrap();
        let Self { address, guarded, controller, .. } = self;
        let data = self.folder.join("data").display().to_string();
        let login = "org.apache.kafka.common.security.plain.PlainLoginModule required \
                     user_onelog=\"secret\";";
        let text = format!(
            "{shared}\nprocess.roles=broker,controller\nnode.id=1\nlog.dirs={data}\n\
             controller.quorum.voters=1@{controller}\ncontroller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=INNER\n\
             listener.security.protocol.map=INNER:PLAINTEXT,GUARDED:SASL_PLAINTEXT,\
             CONTROLLER:PLAINTEXT\n\
             listeners=INNER://{address},GUARDED://{guarded},CONTROLLER://{controller}\n\
             advertised.listeners=INNER://{address},GUARDED://{guarded}\n\
             listener.name.guarded.sasl.enabled.mechanisms=PLAIN\n\
             listener.name.guarded.plain.sasl.jaas.config={login}\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS\n"
        );
        std::fs::write(self.folder.join("server.properties"), text).unwrap();
    }

    /// A Java program of Kafka's, run to its end.
    fn java(&self, class: &str, arguments: &[&str]) -> Output {
        let mut command = program("-XX:TieredStopAtLevel=1");
        let ran = command.arg(class).args(arguments).stdin(Stdio::null()).output().unwrap();
        assert!(ran.status.success(), "{class} {arguments:?}: {ran:?}");
        ran
    }

    /// Starts it. `file_max`: the largest file that it may write, in KiB, as `ulimit -f` takes it:
    /// an append beyond fails as it does on a full disk.
    pub async fn up(&mut self, file_max: &str) {
        let log = File::create(self.folder.join("server.log")).unwrap();
        let java = program("-XX:+UseSerialGC");
        let words = [java.get_program()].into_iter().chain(java.get_args());
        let mut shell = Command::new("bash");
        shell.args(["-c", "ulimit -f $0; echo $$ > $1/pid; shift; exec \"$@\"", file_max]);
        shell.arg(&self.folder).args(words).args(["-Xmx256m", "kafka.Kafka"]);
        shell.arg(self.folder.join("server.properties"));
        shell.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.running = Some(shell.spawn().unwrap());
        eventually("the broker serves", PATIENCE, || async {
            self.log_text().contains("Kafka Server started").then_some(())
        })
        .await;
    }

    pub fn log_text(&self) -> String {
        std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default()
    }

    /// Has it shut down, and waits for that.
    pub async fn stop(&mut self) {
        let pid = self.running.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.ended().await;
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) {
        let child = std::cell::RefCell::new(self.running.take().unwrap());
        eventually("the broker ends", PATIENCE, || async {
            child.borrow_mut().try_wait().unwrap()
        })
        .await;
    }

    /// Gives the daemon's user rights, or takes them away: `--add` or `--remove`, and what they
    /// are to.
    pub fn rights(&self, what: &str, to: &[&str]) {
        let principal = "--allow-principal=User:onelog";
        let mut arguments = vec!["--bootstrap-server", &self.address, what, principal];
        arguments.extend(["--operation", "All", "--resource-pattern-type", "prefixed"]);
        arguments.extend(to);
        if what == "--remove" {
            arguments.push("--force");
        }
        self.java("org.apache.kafka.tools.AclCommand", &arguments);
    }

    /// Has the world's daemon use this broker, as its user.
    pub fn serve(&self, world: &World) {
        let text = std::fs::read_to_string(&world.config).unwrap();
        let shared = format!("brokers = \"{}\"", server("ONELOG_TEST_KAFKA"));
        let text = text.replace(&shared, &format!("brokers = \"{}\"", self.guarded));
        let text = text.replace("properties = {", &format!("properties = {{ {AS_USER},"));
        std::fs::write(&world.config, text).unwrap();
    }
}

/// `java` with Kafka's classes.
fn program(option: &str) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let logging = root.join("deploy/kafka/log4j.properties");
    let mut command = Command::new(server("ONELOG_TEST_JAVA"));
    command.arg(option).arg(format!("-Dlog4j.configuration=file:{}", logging.display()));
    command.arg("-cp").arg(Path::new(&server("ONELOG_TEST_KAFKA_LIBS")).join("*"));
    command
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
