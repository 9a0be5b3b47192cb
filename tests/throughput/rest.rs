//! A keep-alive connection to Elasticsearch that does as little as can be, because whoever
//! measures milliseconds on the same two cores must not be what costs them.

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::server;

pub struct Rest {
    stream: BufReader<TcpStream>,
    host: String,
    body: Vec<u8>,
}

impl Rest {
    pub async fn connect() -> Self {
        let host = server("ONELOG_TEST_ELASTICSEARCH").trim_start_matches("http://").to_owned();
        let stream = TcpStream::connect(host.trim_end_matches('/')).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream), host, body: Vec::new() }
    }

    /// Status and body of the answer.
    pub async fn send(&mut self, method: &str, path: &str, body: &[u8]) -> (u16, &[u8]) {
        let kind = if path.ends_with("_bulk") { "x-ndjson" } else { "json" };
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/{kind}\r\n\
             content-length: {}\r\n\r\n",
            self.host,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.stream.write_all(&request).await.unwrap();
        let status = self.line().await[9..12].parse().unwrap();
        let mut length = Some(0);
        loop {
            let line = self.line().await.to_ascii_lowercase();
            if line.is_empty() {
                break;
            } else if let Some(value) = line.strip_prefix("content-length:") {
                length = Some(value.trim().parse().unwrap());
            } else if line.starts_with("transfer-encoding:") {
                length = None;
            }
        }
        self.body.clear();
        match length {
            Some(length) => self.take(length).await,
            None => self.chunks().await,
        }
        (status, &self.body)
    }

    /// As [`Self::send`]; the answer must be a good one, in JSON.
    pub async fn json(&mut self, method: &str, path: &str, body: &str) -> serde_json::Value {
        let (status, answer) = self.send(method, path, body.as_bytes()).await;
        let text = String::from_utf8_lossy(answer);
        assert!((200..300).contains(&status), "{method} {path}: {status} {text}");
        serde_json::from_slice(answer).unwrap()
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        line.truncate(line.trim_end().len());
        line
    }

    async fn take(&mut self, length: usize) {
        let before = self.body.len();
        self.body.resize(before + length, 0);
        self.stream.read_exact(&mut self.body[before..]).await.unwrap();
    }

    async fn chunks(&mut self) {
        loop {
            let length = usize::from_str_radix(&self.line().await, 16).unwrap();
            self.take(length).await;
            self.line().await;
            if length == 0 {
                return;
            }
        }
    }
}
