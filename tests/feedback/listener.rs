//! A client of feedback, as a browser is one.

use std::io::Write as _;
use std::net::TcpStream;

use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::time::timeout;
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::world::PATIENCE;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    pub id: Option<String>,
    pub event: String,
    pub data: Value,
    /// The data as it was sent.
    pub text: String,
}

impl Heard {
    pub fn number(&self) -> i64 {
        let id = self.id.as_ref().expect("an event with an id");
        id.parse().expect("an id of ours is a number")
    }
}

type Socket = tokio_tungstenite::WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

pub enum Listener {
    Events { response: reqwest::Response, buffer: String },
    Socket(Box<Socket>),
}

impl Listener {
    /// `EventSource`.
    pub async fn open(address: &str, query: &str, last: Option<&str>) -> Self {
        let url = format!("http://{address}/v1/feedback?{query}");
        let mut request = reqwest::Client::new().get(url);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.expect("the gateway answers");
        assert_eq!(response.status().as_u16(), 200);
        let kind = response.headers()["content-type"].to_str().expect("text").to_owned();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        Self::Events { response, buffer: String::new() }
    }

    pub async fn connect(address: &str, query: &str) -> Self {
        let url = format!("ws://{address}/v1/feedback?{query}");
        let (socket, _) = tokio_tungstenite::connect_async(url).await.expect("a handshake");
        Self::Socket(Box::new(socket))
    }

    /// A connection that asks, and whose socket takes in little.
    pub fn deaf(address: &str, query: &str) -> TcpStream {
        let kind = socket2::Type::STREAM;
        let socket = socket2::Socket::new(socket2::Domain::IPV4, kind, None).expect("a socket");
        socket.set_recv_buffer_size(4096).expect("a small buffer");
        let address: std::net::SocketAddr = address.parse().expect("an address");
        socket.connect(&address.into()).expect("the gateway is there");
        let mut stream = TcpStream::from(socket);
        let request = format!(
            "GET /v1/feedback?{query} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("the request is sent");
        stream
    }

    /// The next event; heartbeats don't count.
    pub async fn next(&mut self) -> Heard {
        let next = async {
            loop {
                let Self::Events { response, buffer } = self else { panic!("a socket has frames") };
                if let Some((block, rest)) = buffer.split_once("\n\n") {
                    let (block, rest) = (block.to_owned(), rest.to_owned());
                    *buffer = rest;
                    if let Some(heard) = parse(&block) {
                        return heard;
                    }
                    continue;
                }
                let chunk = response.chunk().await.expect("the stream goes on");
                let chunk = chunk.expect("the stream has not ended");
                buffer.push_str(std::str::from_utf8(&chunk).expect("ASCII in these tests"));
            }
        };
        timeout(PATIENCE, next).await.expect("an event in time")
    }

    /// The next frame of a socket.
    pub async fn next_frame(&mut self) -> Heard {
        let Self::Socket(socket) = self else { panic!("events are no frames") };
        loop {
            let next = timeout(PATIENCE, socket.next()).await.expect("a frame in time");
            match next.expect("the socket is open").expect("a frame") {
                Message::Text(text) => {
                    let frame: Value = serde_json::from_str(&text).expect("JSON");
                    let data = frame["data"].clone();
                    return Heard {
                        id: frame["id"].as_str().map(str::to_owned),
                        event: frame["event"].as_str().expect("a name").to_owned(),
                        text: data.to_string(),
                        data,
                    };
                }
                _ => continue,
            }
        }
    }

    /// Whether the stream ends now, with nothing said before.
    pub async fn ended(&mut self) -> bool {
        let Self::Events { response, .. } = self else { panic!("events only") };
        let ended = async {
            loop {
                match response.chunk().await {
                    Ok(Some(chunk)) if chunk.starts_with(b":") => {}
                    Ok(Some(_)) => return false,
                    Ok(None) | Err(_) => return true,
                }
            }
        };
        timeout(PATIENCE, ended).await.expect("an end in time")
    }
}

/// None: a comment alone.
fn parse(block: &str) -> Option<Heard> {
    let field = |name: &str| {
        let mut lines = block.lines().filter_map(|it| it.split_once(": "));
        lines.find(|(it, _)| *it == name).map(|(_, value)| value.to_owned())
    };
    let text = field("data")?;
    let data = serde_json::from_str(&text).expect("data is JSON");
    Some(Heard { id: field("id"), event: field("event").expect("a name"), data, text })
}
