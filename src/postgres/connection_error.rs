//! Why there is no connection to Postgres any more, or not yet; one variant for each reaction.
//! Shared by the walsender session and by plain connections.

use std::io;
use std::time::Duration;

use crate::postgres::server_error::ServerError;
use crate::postgres::tls::RootsError;

/// A connection that could not be made, or that ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Nobody answers there, now. Transient.
    #[error("can't reach Postgres at {address}")]
    Unreachable {
        address: String,
        #[source]
        source: io::Error,
    },
    /// The connection was there and broke. Transient.
    #[error("the connection to Postgres broke")]
    Lost(#[source] io::Error),
    /// Postgres did not answer in time. Transient.
    #[error("Postgres did not answer within {limit:?} while {doing}")]
    TimedOut { doing: &'static str, limit: Duration },
    /// The server ended the replication stream in an orderly way, as it does when it shuts down.
    /// Transient.
    #[error("the server ended the replication stream")]
    Ended,
    /// Who we say we are is not accepted, by either side.
    #[error("authentication failed: {0}")]
    Authentication(String),
    /// `sslmode` asks for TLS, and the server speaks none.
    #[error("the server has no TLS: switch it on there (ssl = on), or use sslmode=prefer")]
    NoTls,
    /// The handshake failed: the certificate is not what `sslmode` asks for.
    #[error("TLS with {host} failed: check sslmode, sslrootcert and the server's certificate")]
    Tls {
        host: String,
        #[source]
        source: io::Error,
    },
    /// What `sslmode` trusts can't be had.
    #[error("TLS can't be set up")]
    Roots(#[from] RootsError),
    /// The server refuses, in its own words. Transient for some SQLSTATEs.
    #[error("Postgres refuses")]
    Server(#[from] ServerError),
    /// What came is not the protocol: something else listens there, or a proxy broke it.
    #[error("what the server sent is not the Postgres protocol: {0}")]
    Protocol(String),
    /// What we were asked to send can't be: it holds a NUL.
    #[error("can't send this to Postgres")]
    Unsendable(#[source] io::Error),
}

impl ConnectionError {
    /// Whether the same attempt may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Lost(_) | Self::TimedOut { .. } | Self::Ended => true,
            Self::Server(error) => error.is_transient(),
            Self::Authentication(_)
            | Self::NoTls
            | Self::Tls { .. }
            | Self::Roots(_)
            | Self::Protocol(_)
            | Self::Unsendable(_) => false,
        }
    }

    /// An ErrorResponse, sorted: class 28 is about who we are.
    pub(crate) fn from_server(error: ServerError) -> Self {
        if error.is_authentication() {
            Self::Authentication(error.to_string())
        } else {
            Self::Server(error)
        }
    }

    /// The stream ended where a message should be.
    pub(crate) fn cut() -> Self {
        Self::Lost(io::ErrorKind::UnexpectedEof.into())
    }
}
