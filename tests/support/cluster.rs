//! A throwaway Postgres of a test binary's own, with TLS and users for each method of
//! authentication: for what can't be asked of the shared one.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use onelog::postgres::client;
use onelog::postgres::url::PostgresUrl;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::sync::OnceCell;

pub struct Cluster {
    /// Data, certificates and the Unix socket.
    pub folder: PathBuf,
    pub port: u16,
    /// When we are gone, whichever way, this pipe closes, and the janitor clears up.
    _janitor: Child,
}

#[derive(Clone, Copy)]
pub enum Authority {
    Good,
    Wrong,
}

/// The cluster, started by whoever asks first.
pub async fn cluster() -> &'static Cluster {
    static CLUSTER: OnceCell<Cluster> = OnceCell::const_new();
    CLUSTER.get_or_init(|| Cluster::new("")).await
}

/// A program of the shared server's version.
fn program(name: &str) -> Command {
    let folder = std::env::var("ONELOG_TEST_POSTGRES_BIN")
        .unwrap_or_else(|_| "/usr/lib/postgresql/15/bin".to_owned());
    let path = Path::new(&folder).join(name);
    assert!(path.exists(), "no {}: set ONELOG_TEST_POSTGRES_BIN, or run make test", path.display());
    as_server(&path)
}

/// Postgres refuses root.
pub fn as_server(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    // Our own folder may be root's alone.
    command.current_dir("/");
    command
}

pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout == b"0\n"
}

/// A command as one word list for the shell; none of its words has spaces.
pub fn shell_words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|it| it.to_str().unwrap()).collect::<Vec<_>>().join(" ")
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

impl Cluster {
    /// A cluster with more lines in its postgresql.conf.
    pub async fn new(more: &'static str) -> Self {
        let started = tokio::task::spawn_blocking(move || Self::start(more)).await;
        let cluster = started.unwrap();
        cluster.prepare().await;
        cluster
    }

    fn start(more: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("onelog-pg").tempdir().unwrap().keep();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let janitor = Command::new("sh")
            .args(["-c", "cd /; read -r _; $1 -D $0 -m immediate stop >/dev/null 2>&1; rm -rf $0"])
            .arg(&folder)
            .arg(shell_words(&program("pg_ctl")))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let own = || {
            if is_root() {
                run(Command::new("chown").args(["-R", "postgres:postgres"]).arg(&folder));
            }
        };
        own();
        run(program("initdb").arg("-D").arg(&folder).args(["-U", "postgres", "-N", "-E", "UTF8"]));
        std::fs::write(folder.join("pg_hba.conf"), HBA).unwrap();
        let mut settings = std::fs::read_to_string(folder.join("postgresql.conf")).unwrap();
        write!(settings, "{SETTINGS}\n{more}\nport = {port}\n").unwrap();
        writeln!(settings, "unix_socket_directories = '{}'", folder.display()).unwrap();
        std::fs::write(folder.join("postgresql.conf"), settings).unwrap();
        certificates(&folder);
        own();
        let log = folder.join("server.log");
        // Its output would keep the pipe of a captured test open.
        run(program("pg_ctl").arg("-D").arg(&folder).arg("-l").arg(log).args(["-w", "start"]));
        Self { folder, port, _janitor: janitor }
    }

    async fn prepare(&self) {
        let url: PostgresUrl = self.url("postgres").parse().unwrap();
        let sql = client::connect(&url, "onelog test").await.unwrap();
        sql.batch_execute(
            "create role clear login superuser password 'right:';
             create role scrammed login superuser password 'right:';
             create role secured login superuser password 'right:';
             set password_encryption = 'md5';
             create role hashed login superuser password 'right:';
             create publication all_tables for all tables;",
        )
        .await
        .unwrap();
    }

    pub fn address(&self, host: &str) -> String {
        format!("{host}:{}", self.port)
    }

    /// A user that is trusted.
    pub fn url(&self, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/postgres?sslmode=disable", self.port)
    }

    pub fn root(&self, authority: Authority) -> PathBuf {
        self.folder.join(match authority {
            Authority::Good => "good.pem",
            Authority::Wrong => "wrong.pem",
        })
    }

    pub async fn slot(&self, name: &str) {
        let url: PostgresUrl = self.url("postgres").parse().unwrap();
        let sql = client::connect(&url, "onelog test").await.unwrap();
        let create = "select pg_create_logical_replication_slot($1::text, 'pgoutput')::text";
        sql.query_one(create, &[&name]).await.unwrap();
    }
}

const HBA: &str = "
local   all postgres trust
host    all postgres 127.0.0.1/32 trust
host    all clear    127.0.0.1/32 password
host    all hashed   127.0.0.1/32 md5
host    all scrammed 127.0.0.1/32 scram-sha-256
hostssl all secured  127.0.0.1/32 scram-sha-256
";

const SETTINGS: &str = "
listen_addresses = '127.0.0.1'
wal_level = logical
fsync = off
max_connections = 50
max_wal_senders = 30
max_replication_slots = 10
timezone = 'Asia/Tokyo'
intervalstyle = 'iso_8601'
extra_float_digits = 0
bytea_output = 'escape'
ssl = on
ssl_cert_file = 'server.pem'
ssl_key_file = 'server.key'
";

/// Two authorities; the good one signs a certificate for localhost.
fn certificates(folder: &Path) {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(folder.join(format!("{name}.pem")), pem).unwrap();
        Issuer::new(params, key)
    };
    authority("wrong");
    let good = authority("good");
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &good).unwrap();
    std::fs::write(folder.join("server.pem"), certificate.pem()).unwrap();
    let path = folder.join("server.key");
    std::fs::write(&path, key.serialize_pem()).unwrap();
    let secret = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, secret).unwrap();
}
