//! From a browser's POST to its readable document, with a robot in between; and what browsers cost
//! that only listen.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::bed::{Bed, Names, binary, finished};
use crate::report::{Aim, Report, histogram, record};
use crate::scaled;
use crate::support::robot::{Kind, Robot};
use crate::support::world::free_address;
use crate::support::{eventually, world::PATIENCE};

const PER_SECOND: u64 = 200;
const WARM_UP_SECONDS: u64 = 5;
const LISTENERS: u64 = 5000;
const SESSION: &str = "bench";

pub async fn measure() {
    let bed = Bed::new("gateway").await;
    let topic = format!("commands.{}", bed.name);
    let gateway = free_address();
    let config = prepared(&bed, &topic, &gateway);
    let daemon = bed.start(&config, &["--only", "capture,translate"]);
    let serving = bed.start(&gateway_alone(&bed, &config), &["--only", "gateway"]);
    let robot = Robot::start_on(Kind::Plain, &bed.url, &topic, bed.folder.path());
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60));
    let client = client.build().unwrap();
    let write = Write { client, gateway: gateway.clone(), topic };
    let mut nth = u64::MAX;
    eventually("the first document is readable", PATIENCE, || {
        nth -= 1;
        let write = write.clone();
        async move { write.once(nth).await.ok() }
    })
    .await;

    let mut report = Report::new(
        "gateway",
        "Gateway: POST of a command → its document is readable, a robot in between",
    );
    let before = resident_megabytes(&serving);
    let warm_up = PER_SECOND * WARM_UP_SECONDS;
    let commands = warm_up + PER_SECOND * scaled(60);
    let started = Instant::now();
    let mut running = JoinSet::new();
    for nth in 0..commands {
        let due = started + Duration::from_nanos(nth * 1_000_000_000 / PER_SECOND);
        tokio::time::sleep_until(due.into()).await;
        let write = write.clone();
        // From when it was due: a late start is part of what a browser sees.
        running.spawn(async move { (nth, write.once(nth).await.map(|()| due.elapsed())) });
    }
    let mut latencies = histogram();
    for (nth, latency) in running.join_all().await {
        let latency = latency.unwrap_or_else(|fault| panic!("command {nth}: {fault}"));
        if nth >= warm_up {
            record(&mut latencies, latency);
        }
    }
    let rate = commands as f64 / started.elapsed().as_secs_f64();
    let aims = [(500.0, 100.0), (1000.0, 300.0), (2000.0, 500.0)];
    report.latencies("200 commands/s", &latencies, None, &aims);
    report.note(&format!("{} commands at {rate:.0} a second.", latencies.len()));

    let quiet = resident_megabytes(&serving);
    let listeners = listen(&gateway).await;
    let busy = resident_megabytes(&serving);
    report.row("memory of the gateway at rest", before, "MB", Aim::None);
    report.row("memory with 5,000 idle SSE clients", busy, "MB", Aim::None);
    let each = (busy - quiet) * 1e3 / listeners.len() as f64;
    report.row("memory of each of them", each, "kB", Aim::None);
    report.publish();
    drop((listeners, robot));
    serving.stop().await;
    daemon.stop().await;
}

/// The sample application, prepared; its config has the gateway.
fn prepared(bed: &Bed, topic: &str, gateway: &str) -> std::path::PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut psql = Command::new(binary("psql"));
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1"]);
    for file in [
        "deploy/sample/schema.sql",
        "migrations/0003_onelog_functions.sql",
        "deploy/robots/robot.sql",
    ] {
        psql.arg("-f").arg(here.join(file));
    }
    let login = format!("INSERT INTO auth.session (id, username) VALUES ('{SESSION}', 'ada')");
    finished(psql.args(["-c", &login]).arg(&bed.url));
    let mapping = "profile_page.toml";
    std::fs::copy(here.join("connectors").join(mapping), bed.mappings().join(mapping)).unwrap();
    let own = bed.name.clone();
    let names = Names { own: &own, publication: &own, tables: "\"public.profile*\"" };
    let config = bed.config(&names);
    let mut text = std::fs::read_to_string(&config).unwrap();
    write!(
        text,
        "[outbox]\ntopic = \"{{topic_prefix}}.event.{{aggregatetype}}\"\n\
         [[topics]]\nname = \"{topic}\"\nkind = \"command\"\n\
         [[topics]]\nname = \"{own}.event.response\"\nkind = \"response\"\n\
         [gateway]\nlisten = \"{gateway}\"\nanonymous = true\n\
         response_topics = [\"{own}.event.response\"]\n\
         rate_limit = 100000\nrate_burst = 100000\n\
         [[gateway.commands]]\ntopic = \"{topic}\"\ncollections = [\"profile_page\"]\n"
    )
    .unwrap();
    std::fs::write(&config, text).unwrap();
    bed.prepare(&config, &[]);
    config
}

/// The same config with another address for `[http]`, as the gateway is a process of its own.
fn gateway_alone(bed: &Bed, config: &Path) -> std::path::PathBuf {
    let text = std::fs::read_to_string(config).unwrap();
    let (before, after) = text.split_once("[http]\nlisten = \"").unwrap();
    let rest = after.split_once('"').unwrap().1;
    let path = bed.folder.path().join("gateway.toml");
    let text = format!("{before}[http]\nlisten = \"{}\"{rest}", free_address());
    std::fs::write(&path, text).unwrap();
    path
}

/// What a browser does.
#[derive(Clone)]
struct Write {
    client: reqwest::Client,
    gateway: String,
    topic: String,
}

impl Write {
    /// A new profile, until its document has been read.
    async fn once(&self, nth: u64) -> Result<(), String> {
        let (document, correlation) = (format!("p{nth}"), format!("c{nth}"));
        let body = format!(
            r#"{{"type":"CreateProfile","document_id":"{document}","session_id":"{SESSION}","name":"n"}}"#
        );
        let url = format!("http://{}/v1/commands/{}", self.gateway, self.topic);
        let post = self.client.post(url).header("content-type", "application/json");
        good(post.header("correlation-id", &correlation).body(body)).await?;
        let url = format!(
            "http://{}/v1/collections/profile_page/documents/{document}?wait=30s&correlation_id={correlation}",
            self.gateway
        );
        good(self.client.get(url)).await
    }
}

async fn good(request: reqwest::RequestBuilder) -> Result<(), String> {
    let answer = request.send().await.map_err(|it| it.to_string())?;
    let status = answer.status();
    let body = answer.text().await.map_err(|it| it.to_string())?;
    if status.is_success() { Ok(()) } else { Err(format!("{status}: {body}")) }
}

/// Opens the streams; each has been answered.
async fn listen(gateway: &str) -> Vec<TcpStream> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mut streams = Vec::new();
    for nth in 0..scaled(LISTENERS) {
        let mut stream = TcpStream::connect(gateway).await.unwrap();
        let request = format!(
            "GET /v1/feedback?correlation_id=idle-{nth} HTTP/1.1\r\nHost: {gateway}\r\n\
             Accept: text/event-stream\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200", "listener {nth}");
        streams.push(stream);
    }
    streams
}

/// What the process has in memory now.
fn resident_megabytes(process: &crate::bed::Process) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0 / 1e6
}
