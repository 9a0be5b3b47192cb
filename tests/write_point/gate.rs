//! A gateway as a process, with topics of its own, and a client that speaks to it.

use std::path::PathBuf;

use reqwest::header::HeaderMap;
use serde_json::Value;

use super::support::daemon::Daemon;
use super::support::gateway::sha256;
use super::support::log::{self, Found};
use super::support::world::{PATIENCE, free_address};
use super::support::{eventually, server};

/// An API key, which no log may show.
pub const KEY: &str = "web-k3y-n0b0dy-may-see";
/// One that may send commands to no topic of the test's.
pub const OTHER_KEY: &str = "other-k3y-n0b0dy-may-see";

pub struct Gate {
    pub folder: tempfile::TempDir,
    pub topic: String,
    prefix: String,
    more: String,
    /// Each with its address.
    pub daemons: Vec<(Daemon, String)>,
    client: reqwest::Client,
}

/// An answer that was read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or("")
    }

    pub fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or("")
    }

    /// A refusal as RFC 9457 has it.
    #[track_caller]
    pub fn is_problem(&self, status: u16) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(self.body["status"], status, "{self:?}");
        assert!(self.text("type").starts_with("urn:onelog:problem:"), "{self:?}");
    }
}

impl Gate {
    /// One that is not started. `more`: lines of `[gateway]`, before its tables.
    pub fn new(name: &str, more: &str) -> Self {
        let prefix = format!("{name}_{}", std::process::id());
        Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            topic: format!("commands.{prefix}"),
            prefix,
            more: more.to_owned(),
            daemons: Vec::new(),
            client: reqwest::Client::new(),
        }
    }

    /// With as many gateways as asked for, all ready.
    pub async fn started(name: &str, more: &str, gateways: usize) -> Self {
        let mut gate = Self::new(name, more);
        for _ in 0..gateways {
            gate.start().await;
        }
        gate
    }

    /// One more gateway, when it is ready.
    pub async fn start(&mut self) {
        let http = self.launch();
        eventually("the gateway is ready", PATIENCE, || async {
            self.get(&http, "/readyz").await.filter(|it| it.0 == 200).map(|_| ())
        })
        .await;
    }

    /// One more gateway; where it says whether it is ready.
    pub fn launch(&mut self) -> String {
        let (http, listen, nth) = (free_address(), free_address(), self.daemons.len());
        let config = self.folder.path().join(format!("config{nth}.toml"));
        std::fs::write(&config, self.config(&http, &listen)).expect("the config is written");
        let log = self.folder.path().join(format!("gateway{nth}.log"));
        let daemon = Daemon::start_with(&config, &log, &["--only", "gateway"]);
        self.daemons.push((daemon, listen));
        http
    }

    fn config(&self, http: &str, listen: &str) -> String {
        let (web, other) = (sha256(KEY), sha256(OTHER_KEY));
        let (prefix, topic, more) = (&self.prefix, &self.topic, &self.more);
        let many = "rate_limit = 100000\nrate_burst = 100000";
        let rates = if more.contains("rate_limit") { "" } else { many };
        let (brokers, elastic) = (server("ONELOG_TEST_KAFKA"), server("ONELOG_TEST_ELASTICSEARCH"));
        format!(
            r#"
[postgres]
url = "postgres://nobody@localhost/none"
tables = ["public.*"]
[kafka]
brokers = "{brokers}"
topic_prefix = "{prefix}"
socket_timeout = "2s"
[elasticsearch]
url = "{elastic}"
[translate]
mappings = "."
[http]
listen = "{http}"
[gateway]
listen = "{listen}"
{rates}
{more}
[[gateway.api_keys]]
name = "web"
sha256 = "{web}"
[[gateway.api_keys]]
name = "other"
sha256 = "{other}"
commands = ["elsewhere.*"]
[[gateway.commands]]
topic = "{topic}"
collections = ["profile page"]
"#
        )
    }

    pub fn path(&self) -> String {
        format!("/v1/commands/{}", self.topic)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        path
    }

    /// A command to the first gateway, with the good key.
    pub async fn post(&self, body: &str) -> Answer {
        self.post_with(0, body, &[]).await
    }

    /// A command to the nth gateway, with the good key and more headers.
    pub async fn post_with(&self, nth: usize, body: &str, headers: &[(&str, &str)]) -> Answer {
        let json = ("content-type", "application/json");
        let key = ("x-api-key", KEY);
        let all: Vec<_> = [json, key].iter().chain(headers).copied().collect();
        self.send(nth, &self.path(), body.as_bytes(), &all).await
    }

    /// Exactly this request.
    pub async fn send(
        &self,
        nth: usize,
        path: &str,
        body: &[u8],
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = self.client.post(format!("http://{}{path}", self.daemons[nth].1));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.body(body.to_vec()).send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.expect("a body");
        Answer { status, headers, body: serde_json::from_slice(&body).unwrap_or_default() }
    }

    pub async fn preflight(&self, origin: &str) -> HeaderMap {
        let url = format!("http://{}{}", self.daemons[0].1, self.path());
        let asked = self.client.request(reqwest::Method::OPTIONS, url);
        let asked = asked.header("origin", origin).header("access-control-request-method", "POST");
        asked.send().await.expect("an answer").headers().clone()
    }

    pub async fn get(&self, address: &str, path: &str) -> Option<(u16, String)> {
        let asked = self.client.get(format!("http://{address}{path}")).send().await.ok()?;
        Some((asked.status().as_u16(), asked.text().await.ok()?))
    }

    /// Every command in Kafka.
    pub async fn commands(&self) -> Vec<Found> {
        let topic = self.topic.clone();
        tokio::task::spawn_blocking(move || log::read(&topic)).await.expect("no panic")
    }

    /// What the gateways have logged; it never has a key.
    pub fn logs(&self) -> String {
        let all: String = self.daemons.iter().map(|(it, _)| it.log_text()).collect();
        assert!(!all.contains(KEY) && !all.contains(OTHER_KEY), "a log shows a key:\n{all}");
        all
    }
}
