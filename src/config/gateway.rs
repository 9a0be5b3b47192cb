//! `[gateway]` as relied on: what browsers and API clients may ask for, and how much of it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::search_template::SearchTemplate;

#[derive(Debug, Clone, PartialEq)]
pub struct GatewayConfig {
    /// Another address than `[http]`'s: what operators see is none of the browsers' business.
    pub listen: SocketAddr,
    /// Whether who says nothing about themselves may do everything.
    pub anonymous: bool,
    pub api_keys: Vec<ApiKey>,
    /// None: tokens are not taken.
    pub jwt: Option<JwtConfig>,
    /// Origins whose pages may speak to the gateway: `https://app.example.com`, or `*`.
    pub allowed_origins: Vec<String>,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpAddr>,
    pub commands: Vec<CommandTopic>,
    /// Globs of the collections that may be read.
    pub collections: Vec<String>,
    pub searches: Vec<Search>,
    /// Topics with the answers of robots, which become feedback.
    pub response_topics: Vec<String>,
    pub body_bytes_max: usize,
    /// Longest that a command waits for Kafka; then the client is told to try again.
    pub command_timeout: Duration,
    /// Longest that a client may wait for a document.
    pub wait_max: Duration,
    /// Requests a second of one client, and how many it may have saved up.
    pub rate_limit: u32,
    pub rate_burst: u32,
    pub connections_max: usize,
    pub subscribers_max: usize,
    /// How long the topic of feedback keeps it.
    pub feedback_retention: Duration,
    /// How much of it each gateway has at hand.
    pub feedback_window: Duration,
    pub feedback_window_records: usize,
    /// A folder whose files are served to browsers besides.
    pub page: Option<PathBuf>,
}

/// Who may come in with a key. The key itself is nowhere: only its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// As logs and the header `principal` of commands have it.
    pub name: String,
    pub sha256: [u8; 32],
    /// Globs of topics.
    pub commands: Vec<String>,
    /// Globs of collections, within those of the gateway.
    pub collections: Vec<String>,
}

/// 32 bytes of 64 hexadecimal digits.
pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// A topic that takes commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandTopic {
    pub topic: String,
    /// Where the documents appear that its commands make: for the links of the answer.
    pub collections: Vec<String>,
}

/// A search that clients may run.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    pub collection: String,
    pub name: String,
    pub template: SearchTemplate,
}

/// Whose tokens are taken, and what they open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtConfig {
    /// The issuer's public keys, as a JSON Web Key Set.
    pub jwks_file: PathBuf,
    pub issuer: String,
    pub audience: String,
    /// The claim with the only session that a token speaks for.
    pub session_claim: String,
    /// Globs of topics.
    pub commands: Vec<String>,
    /// Globs of collections, within those of the gateway.
    pub collections: Vec<String>,
}
