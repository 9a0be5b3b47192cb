//! The gateway as a client sees it: requests go out as they are written, so that a hostile path is
//! not made harmless by a library on its way.

use std::io::Write as _;
use std::time::Duration;

use onelog::kafka::feedback::{Accepted, Feedback};
use onelog::kafka::feedback_sender::FeedbackSender;
use onelog::metrics::Metrics;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::eventually;
use super::world::{PATIENCE, World, free_address};

/// Longer than the gateway itself ever takes.
const ANSWER_MAX: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    /// The body, if it is JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|it| panic!("{it}: {self:?}"))
    }
}

/// As the config has an API key.
pub fn sha256(key: &str) -> String {
    Sha256::digest(key).iter().map(|it| format!("{it:02x}")).collect()
}

/// A way to this world's backplane.
pub fn backplane(world: &World) -> FeedbackSender {
    let config = onelog::config::file::load(&world.config).expect("a config");
    FeedbackSender::new(&config.kafka, PATIENCE, Metrics::new()).expect("a producer")
}

/// What a gateway says of a command.
pub fn accepted(document: &str, correlation: &str, session: Option<&str>) -> Feedback {
    Feedback::Accepted(Accepted {
        command: "c".to_owned(),
        identity: None,
        topic: "t".to_owned(),
        message_type: None,
        document_id: document.to_owned(),
        session_id: session.map(str::to_owned),
        correlation_id: correlation.to_owned(),
        ts_ms: 1,
    })
}

/// Adds `[gateway]` to the world's config; its address.
pub fn configure(world: &World, lines: &str) -> String {
    let address = free_address();
    let mut file =
        std::fs::OpenOptions::new().append(true).open(&world.config).expect("the world's config");
    write!(file, "[gateway]\nlisten = \"{address}\"\n{lines}\n").expect("the config is written");
    address
}

/// Waits until the gateway answers.
pub async fn listening(address: &str) {
    eventually("the gateway listens", PATIENCE, || async {
        let answer = try_ask(address, "GET /healthz", &[], "").await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// `line`: method and path, as in `GET /v1/openapi.json`.
pub async fn ask(address: &str, line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    try_ask(address, line, headers, body).await.unwrap_or_else(|it| panic!("{line}: {it}"))
}

pub async fn try_ask(
    address: &str,
    line: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<Answer> {
    let mut request = format!("{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        std::io::Result::Ok(bytes)
    };
    let bytes = tokio::time::timeout(ANSWER_MAX, exchange).await.expect("an answer in time")?;
    read_answer(&String::from_utf8_lossy(&bytes))
        .ok_or_else(|| std::io::Error::other("the answer is no HTTP"))
}

fn read_answer(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|it| it.split_once(": "));
    let headers: Vec<(String, String)> =
        headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    let chunked =
        headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    assert!(!chunked, "an answer with a known length: {head}");
    Some(Answer { status, headers, body: body.to_owned() })
}
