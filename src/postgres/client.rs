//! Plain connections for everything that is not the WAL stream: tokio-postgres over our own
//! transport, so that URL, `sslmode`, time limits and pinned settings are those of the walsender.
//!
//! Never log tokio-postgres at debug: it writes parameters there.
//!
//! A cancel token of the client can't connect by itself, since tokio-postgres does not know where
//! we are connected to. Drop the client instead: the server ends the query when it next writes.

use std::error::Error;
use std::future::{Ready, ready};
use std::io;
use std::ops::Deref;

use tokio::task::JoinSet;
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};

pub use crate::postgres::connection_error::ConnectionError as ConnectError;
use crate::postgres::server_error::ServerError;
use crate::postgres::startup::{self, PINNED_OPTIONS};
use crate::postgres::transport::{self, OPEN_TIMEOUT, Transport};
use crate::postgres::url::PostgresUrl;

/// A client and the task that drives its connection; dropping it closes the connection.
pub struct Client {
    pub sql: tokio_postgres::Client,
    _driver: JoinSet<()>,
}

impl Deref for Client {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        &self.sql
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("closed", &self.sql.is_closed()).finish()
    }
}

/// Limits of a session that sets none of its own, so that no mistake of ours ever holds up the
/// application for long: questions to the catalog take milliseconds, and a lock that is not
/// granted in ten seconds is better asked for again. Reads of documents have narrower ones, from
/// the config.
const LIMITS: &str = "-c statement_timeout=60s -c lock_timeout=10s \
     -c idle_in_transaction_session_timeout=60s";

/// Connects and logs in, in at most 20 seconds. The session has UTC, ISO dates, Postgres'
/// intervals, shortest floats and hex bytea, and time limits; `search_path` stays the role's.
pub async fn connect(url: &PostgresUrl, application_name: &str) -> Result<Client, ConnectError> {
    let transport = transport::open(url).await?;
    let mut config = tokio_postgres::Config::new();
    config
        .user(&url.user)
        .dbname(&url.database)
        .application_name(application_name)
        .options(format!("{PINNED_OPTIONS} {LIMITS}"))
        // The transport has done TLS already. This makes tokio-postgres hand it to `Opened`
        // without asking the server, and so learn of the channel binding.
        .ssl_mode(SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct);
    if let Some(password) = &url.password {
        config.password(password);
    }
    let limit = OPEN_TIMEOUT;
    let (sql, connection) =
        match tokio::time::timeout(limit, config.connect_raw(transport, Opened)).await {
            Ok(result) => result.map_err(|it| refused(&it))?,
            Err(_) => return Err(ConnectError::TimedOut { doing: "logging in", limit }),
        };
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        if let Err(error) = connection.await {
            // Whoever uses the client gets an error as well, but only "connection closed".
            tracing::warn!(error = chain(&error), "a connection to postgres ended");
        }
    });
    Ok(Client { sql, _driver: driver })
}

/// tokio-postgres' kinds are private: its own words and the cause tell them apart.
fn refused(error: &tokio_postgres::Error) -> ConnectError {
    if let Some(db) = error.as_db_error() {
        return ConnectError::from_server(ServerError {
            severity: db.severity().to_owned(),
            code: db.code().code().to_owned(),
            message: db.message().to_owned(),
            detail: db.detail().map(str::to_owned),
            hint: db.hint().map(str::to_owned),
        });
    }
    let cause = error.source().and_then(|it| it.downcast_ref::<io::Error>());
    match (error.to_string().as_str(), cause) {
        // The only thing that connect_raw misses in a configuration.
        ("invalid configuration", _) => startup::no_password(),
        ("authentication error", _) => ConnectError::Authentication(chain(error)),
        // What its decoder refuses comes as an I/O error too.
        (_, Some(cause)) if cause.kind() != io::ErrorKind::InvalidInput => {
            ConnectError::Lost(io::Error::new(cause.kind(), chain(error)))
        }
        _ if error.is_closed() => ConnectError::cut(),
        _ => ConnectError::Protocol(chain(error)),
    }
}

/// The error and its causes, in one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// A TLS connector that has nothing left to do.
struct Opened;

impl TlsConnect<Transport> for Opened {
    type Stream = Transport;
    type Error = io::Error;
    type Future = Ready<Result<Transport, io::Error>>;

    fn connect(self, stream: Transport) -> Self::Future {
        ready(Ok(stream))
    }
}

impl TlsStream for Transport {
    fn channel_binding(&self) -> ChannelBinding {
        match self.end_point_hash() {
            Some(hash) => ChannelBinding::tls_server_end_point(hash),
            None => ChannelBinding::none(),
        }
    }
}
