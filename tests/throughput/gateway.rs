//! From a browser's POST to its readable document, with a robot in between; and what browsers cost
//! that only listen.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::bed::{Bed, Names, binary, finished};
use crate::report::{Aim, Report, histogram, record};
use crate::scaled;
use crate::support::log;
use crate::support::robot::{Kind, Robot};
use crate::support::world::free_address;
use crate::support::{eventually, world::PATIENCE};

const RATES: [u64; 2] = [100, 200];
const SECONDS: u64 = 60;
/// At the first rate: Elasticsearch compiles its own code as it runs.
const WARM_UP_SECONDS: u64 = 60;
/// One carries out its commands one by one, with a commit for each.
const ROBOTS: usize = 4;
const LISTENERS: u64 = 5000;
const SESSION: &str = "bench";

pub async fn measure() {
    let bed = Bed::new("gateway").await;
    let topic = format!("commands.{}", bed.name);
    let gateway = free_address();
    let config = prepared(&bed, &topic, &gateway);
    let daemon = bed.start(&config, &["--only", "capture,translate"]);
    let serving = bed.start(&gateway_alone(&bed, &config), &["--only", "gateway"]);
    let robot = || Robot::start_on(Kind::Plain, &bed.url, &topic, bed.folder.path());
    let robots: Vec<Robot> = (0..ROBOTS).map(|_| robot()).collect();
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60));
    let client = client.build().unwrap();
    let write = Write { client, gateway: gateway.clone(), topic: topic.clone() };
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
    load(&write, 0, (RATES[0], scaled(WARM_UP_SECONDS))).await;
    let mut first = RATES[0] * scaled(WARM_UP_SECONDS);
    for rate in RATES {
        let started = Instant::now();
        let latencies = load(&write, first, (rate, scaled(SECONDS))).await;
        let commands = first..first + latencies.len();
        let each_second = latencies.len() as f64 / started.elapsed().as_secs_f64();
        let aims = [(500.0, 100.0), (1000.0, 300.0), (2000.0, 500.0)];
        report.latencies(&format!("{rate} commands/s"), &latencies, None, &aims);
        report.note(&format!("{} commands at {each_second:.0} a second.", latencies.len()));
        let feedback = log::read(&format!("{}.onelog.feedback", bed.name));
        for (hop, latencies) in hops(&feedback, commands.clone()) {
            report.latencies(&format!("{rate} commands/s, {hop}"), &latencies, None, &[]);
        }
        first = commands.end;
    }
    report.note(&format!("{ROBOTS} robots, after {WARM_UP_SECONDS} s at {} a second.", RATES[0]));

    let quiet = resident_megabytes(&serving);
    let listeners = listen(&gateway).await;
    let busy = resident_megabytes(&serving);
    report.row("memory of the gateway at rest", before, "MB", Aim::None);
    report.row("memory with 5,000 idle SSE clients", busy, "MB", Aim::None);
    let each = (busy - quiet) * 1e3 / listeners.len() as f64;
    report.row("memory of each of them", each, "kB", Aim::None);
    report.publish();
    drop((listeners, robots));
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
    let names = Names { own: &own, publication: &own, tables: "\"public.profile*\"", more: "" };
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

/// How long each hop took, as the timeline of a command's ids has it.
fn hops(feedback: &[log::Found], commands: Range<u64>) -> Vec<(&'static str, Histogram<u64>)> {
    const HOPS: [&str; 5] = [
        "claimed → in Kafka",
        "in Kafka → committed by the robot",
        "committed → change in Kafka",
        "change in Kafka → read from Postgres",
        "read → written to Elasticsearch",
    ];
    let mut times: HashMap<String, [Option<i64>; 6]> = HashMap::new();
    for said in feedback.iter().map(log::Found::json) {
        let (ids, found): (Vec<&Value>, &[(usize, &str)]) = match said["kind"].as_str() {
            Some("claimed") => (vec![&said["correlation_id"]], &[(0, "ts_ms")]),
            Some("accepted") => (vec![&said["correlation_id"]], &[(1, "ts_ms")]),
            Some("document") => (
                said["correlation_ids"].as_array().unwrap().iter().collect(),
                &[(2, "commit_ts_ms"), (3, "log_ts_ms"), (4, "read_ts_ms"), (5, "ts_ms")],
            ),
            _ => continue,
        };
        for id in ids.into_iter().filter_map(Value::as_str) {
            let times = times.entry(id.to_owned()).or_default();
            for (at, field) in found {
                times[*at] = times[*at].or(said[field].as_i64());
            }
        }
    }
    let mut hops = HOPS.map(|it| (it, histogram()));
    for times in commands.filter_map(|nth| times.get(&format!("c{nth}"))) {
        for (nth, (_, latencies)) in hops.iter_mut().enumerate() {
            let (Some(from), Some(to)) = (times[nth], times[nth + 1]) else { continue };
            record(latencies, Duration::from_millis(u64::try_from(to - from).unwrap_or(0)));
        }
    }
    hops.into()
}

/// So many commands a second for so long, from the `first`; how long each took.
async fn load(write: &Write, first: u64, (rate, seconds): (u64, u64)) -> Histogram<u64> {
    let started = Instant::now();
    let mut running = JoinSet::new();
    for nth in 0..rate * seconds {
        let due = started + Duration::from_nanos(nth * 1_000_000_000 / rate);
        tokio::time::sleep_until(due.into()).await;
        let write = write.clone();
        // From when it was due: a late start is part of what a browser sees.
        running.spawn(async move { (nth, write.once(first + nth).await.map(|()| due.elapsed())) });
    }
    let mut latencies = histogram();
    for (nth, latency) in running.join_all().await {
        record(&mut latencies, latency.unwrap_or_else(|fault| panic!("command {nth}: {fault}")));
    }
    latencies
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

/// Whoever is told to come back later does, as a browser's script would.
async fn good(request: reqwest::RequestBuilder) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let again = request.try_clone().unwrap();
        let answer = again.send().await.map_err(|it| it.to_string())?;
        let status = answer.status();
        let later = status == reqwest::StatusCode::SERVICE_UNAVAILABLE && Instant::now() < deadline;
        let body = answer.text().await.map_err(|it| it.to_string())?;
        match () {
            () if status.is_success() => return Ok(()),
            () if later => tokio::time::sleep(Duration::from_secs(1)).await,
            () => return Err(format!("{status}: {body}")),
        }
    }
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
