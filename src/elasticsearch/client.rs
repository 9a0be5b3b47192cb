//! The HTTP client: raw bytes out, raw bytes in, and errors sorted by what is to be done.
//!
//! On the `elasticsearch` crate's transport, without its typed API: documents must stay the text
//! that Postgres wrote. Works with Elasticsearch 8 and 9 and OpenSearch 2 and 3. No retries here.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use elasticsearch::auth;
use elasticsearch::cert::{Certificate, CertificateValidation};
use elasticsearch::http::headers::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use elasticsearch::http::transport::{SingleNodeConnectionPool, Transport, TransportBuilder};
use elasticsearch::http::{Method, Url};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::config::{Credentials, ElasticsearchConfig};
use crate::elasticsearch::block;

/// Elasticsearch's error texts can hold a whole document; this much is enough to see which.
const REASON_CHARACTERS_MAX: usize = 1_000;

/// Why a request has no answer, sorted by what is to be done about it.
#[derive(Debug, thiserror::Error)]
pub enum ElasticError {
    /// The server or the way to it is down. Waited out.
    #[error("Elasticsearch did not answer while {doing}")]
    Unavailable {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server has too much to do. Send less, later.
    #[error("Elasticsearch is too busy (429) while {doing}")]
    Throttled { doing: &'static str },
    /// Somebody, or a disk that is nearly full, has closed an index or the cluster to writes.
    /// Waited out.
    #[error("Elasticsearch takes no writes now, while {doing}: {reason}")]
    Blocked { doing: &'static str, reason: String },
    #[error(
        "Elasticsearch refuses our credentials ({status}) while {doing}: {reason}; check username and password, or api_key, and their privileges"
    )]
    Unauthorized { doing: &'static str, status: u16, reason: String },
    #[error("Elasticsearch finds nothing (404) while {doing}: {reason}")]
    NotFound { doing: &'static str, reason: String },
    /// The same request would be refused again.
    #[error("Elasticsearch refuses ({status}) while {doing}: {reason}")]
    Refused { doing: &'static str, status: u16, reason: String },
    /// Something else than Elasticsearch may have answered, such as a proxy. Waited out.
    #[error("the answer is not what Elasticsearch documents while {doing}")]
    Malformed {
        doing: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "Elasticsearch {found} is not supported: use Elasticsearch 8 or 9, or OpenSearch 2 or 3"
    )]
    Unsupported { found: String },
    #[error("elasticsearch.url or elasticsearch.ca_file can't be used: {reason}")]
    Setup { reason: String },
}

impl ElasticError {
    /// Whether the same request may succeed later without anyone's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unavailable { .. }
            | Self::Throttled { .. }
            | Self::Blocked { .. }
            | Self::Malformed { .. } => true,
            Self::Unauthorized { .. }
            | Self::NotFound { .. }
            | Self::Refused { .. }
            | Self::Unsupported { .. }
            | Self::Setup { .. } => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distribution {
    Elasticsearch,
    OpenSearch,
}

/// What the server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub distribution: Distribution,
    /// `9.5.3`.
    pub version: String,
    pub cluster_uuid: String,
}

/// A pool of connections to one address. Clones share it.
#[derive(Debug, Clone)]
pub struct Elasticsearch {
    transport: Transport,
    /// Held while a note in an index is read and written back.
    pub(super) notes: Arc<Mutex<()>>,
}

impl Elasticsearch {
    /// Does not connect yet.
    ///
    /// # Errors
    /// [`ElasticError::Setup`]: the URL or the file of authorities is of no use.
    pub fn new(config: &ElasticsearchConfig) -> Result<Self, ElasticError> {
        let setup = |reason: String| ElasticError::Setup { reason };
        let url = Url::parse(&config.url).map_err(|error| setup(error.to_string()))?;
        let encrypted = url.scheme() == "https";
        let mut builder = TransportBuilder::new(SingleNodeConnectionPool::new(url))
            .timeout(config.request_timeout)
            // A proxy of the environment is for the way out, and Elasticsearch is near.
            .disable_proxy()
            .enable_meta_header(false)
            // Near, so CPU on both sides costs more than bytes do.
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        builder = match &config.credentials {
            Credentials::None => builder,
            Credentials::Basic { username, password } => {
                builder.auth(auth::Credentials::Basic(username.clone(), password.clone()))
            }
            Credentials::ApiKey(key) => builder.auth(auth::Credentials::EncodedApiKey(key.clone())),
        };
        let authorities = match encrypted {
            true => authorities(config.ca_file.as_ref()).map_err(setup)?,
            false => None,
        };
        if let Some(authorities) = authorities {
            builder = builder.cert_validation(CertificateValidation::Full(authorities));
        }
        let transport = builder.build().map_err(|error| setup(error.to_string()))?;
        Ok(Self { transport, notes: Arc::default() })
    }

    /// What the server is; an error if we do not know how to speak with it.
    ///
    /// # Errors
    /// As any request, and [`ElasticError::Unsupported`].
    pub async fn info(&self) -> Result<Info, ElasticError> {
        #[derive(Deserialize)]
        struct Answer {
            cluster_uuid: String,
            version: Version,
        }
        #[derive(Deserialize)]
        struct Version {
            number: String,
            distribution: Option<String>,
        }
        let doing = "asking for its version";
        let answer: Answer = self.json(Request::get(doing, "/")).await?;
        let distribution = match answer.version.distribution.as_deref() {
            Some("opensearch") => Distribution::OpenSearch,
            _ => Distribution::Elasticsearch,
        };
        let version = answer.version.number;
        let major = version.split('.').next().and_then(|it| it.parse().ok()).unwrap_or(0);
        let least = match distribution {
            Distribution::Elasticsearch => 8,
            Distribution::OpenSearch => 2,
        };
        if major < least {
            return Err(ElasticError::Unsupported { found: version });
        }
        Ok(Info { distribution, version, cluster_uuid: answer.cluster_uuid })
    }

    /// Sends a request and reads its answer as JSON.
    pub(super) async fn json<T>(&self, request: Request) -> Result<T, ElasticError>
    where
        T: serde::de::DeserializeOwned,
    {
        let doing = request.doing;
        let answer = self.send(request).await?;
        serde_json::from_slice(&answer)
            .map_err(|source| ElasticError::Malformed { doing, source: source.into() })
    }

    /// Sends a request and reads its answer.
    pub(super) async fn send(&self, request: Request) -> Result<Bytes, ElasticError> {
        let Request { doing, method, path, body, content_type } = request;
        let unavailable = |source: Box<dyn std::error::Error + Send + Sync>| {
            ElasticError::Unavailable { doing, source }
        };
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static(content_type));
        let sent = self.transport.send(method, &path, headers, None::<&()>, body, None).await;
        let response = sent.map_err(|error| unavailable(error.into()))?;
        let status = response.status_code().as_u16();
        let answer = response.bytes().await.map_err(|error| unavailable(error.into()))?;
        let reason = || reason(&answer);
        match status {
            200..=299 => Ok(answer),
            _ if block::is_block(&reason()) => {
                Err(ElasticError::Blocked { doing, reason: block::with_cure(reason()) })
            }
            429 => Err(ElasticError::Throttled { doing }),
            // 408: the server waited for our request in vain.
            408 | 500..=599 => Err(unavailable(format!("status {status}: {}", reason()).into())),
            401 | 403 => Err(ElasticError::Unauthorized { doing, status, reason: reason() }),
            404 => Err(ElasticError::NotFound { doing, reason: reason() }),
            _ => Err(ElasticError::Refused { doing, status, reason: reason() }),
        }
    }
}

/// A request before it is sent.
pub(super) struct Request {
    /// For messages: "writing documents".
    doing: &'static str,
    method: Method,
    /// With its query. Names in it must need no escapes.
    path: String,
    body: Option<Bytes>,
    content_type: &'static str,
}

impl Request {
    pub(super) fn new(doing: &'static str, method: Method, path: impl Into<String>) -> Self {
        let content_type = "application/json";
        Self { doing, method, path: path.into(), body: None, content_type }
    }

    pub(super) fn get(doing: &'static str, path: impl Into<String>) -> Self {
        Self::new(doing, Method::Get, path)
    }

    pub(super) fn body(self, json: &serde_json::Value) -> Self {
        Self { body: Some(json.to_string().into()), ..self }
    }

    pub(super) fn ndjson(self, lines: Vec<u8>) -> Self {
        Self { body: Some(lines.into()), content_type: "application/x-ndjson", ..self }
    }
}

/// The authorities to trust beside those built in; None: no more.
fn authorities(file: Option<&PathBuf>) -> Result<Option<Certificate>, String> {
    if let Some(path) = file {
        let pem = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let read = Certificate::from_pem(&pem);
        return read.map(Some).map_err(|error| format!("{}: {error}", path.display()));
    }
    let mut all: Option<Certificate> = None;
    for der in rustls_native_certs::load_native_certs().certs {
        // The system's store may hold one that we can't read, and need not.
        let Ok(one) = Certificate::from_der(&der) else { continue };
        match &mut all {
            None => all = Some(one),
            Some(all) => all.append(one),
        }
    }
    Ok(all)
}

/// An error answer's `type: reason`, or its beginning when it has another form.
fn reason(answer: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        error: Error,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Error {
        Sorted {
            #[serde(rename = "type")]
            kind: String,
            reason: Option<String>,
        },
        Text(String),
    }
    let text = match serde_json::from_slice::<Answer>(answer) {
        Ok(Answer { error: Error::Sorted { kind, reason } }) => {
            format!("{kind}: {}", reason.unwrap_or_default())
        }
        Ok(Answer { error: Error::Text(text) }) => text,
        Err(_) => String::from_utf8_lossy(answer).into_owned(),
    };
    text.chars().take(REASON_CHARACTERS_MAX).collect()
}
