//! The byte stream to Postgres: a TCP connection, with or without TLS, or a Unix socket.
//!
//! Both kinds of connection open theirs here, so that `sslmode` means the same for both.
//! Invariant: nothing of the user's is sent before `sslmode` is satisfied.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;

use crate::postgres::connection_error::ConnectionError;
use crate::postgres::tls;
use crate::postgres::url::{PostgresUrl, SslMode};

/// For name, TCP and TLS together: longer than any healthy network needs, short enough that a
/// person who waits for `onelog check` gets an answer.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A dead peer is noticed after about a minute and a half, rather than after two hours.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// An open byte stream.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// Connects, and does TLS as the URL's `sslmode` asks. As libpq, a Unix socket has no TLS.
pub(crate) async fn open(url: &PostgresUrl) -> Result<Transport, ConnectionError> {
    let limit = OPEN_TIMEOUT;
    match tokio::time::timeout(limit, open_unlimited(url)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectionError::TimedOut { doing: "connecting", limit }),
    }
}

async fn open_unlimited(url: &PostgresUrl) -> Result<Transport, ConnectionError> {
    let unreachable =
        |address: String| move |source| ConnectionError::Unreachable { address, source };
    if let Some(path) = url.socket_path() {
        let address = path.display().to_string();
        return UnixStream::connect(&path).await.map(Transport::Unix).map_err(unreachable(address));
    }
    let address = format!("{}:{}", url.host, url.port);
    let config = match url.ssl_mode {
        SslMode::Disable => None,
        _ => Some(client_config(url).await?),
    };
    let stream = tcp(url).await.map_err(unreachable(address))?;
    match config {
        None => Ok(Transport::Tcp(stream)),
        Some(config) => secured(url, stream, config).await,
    }
}

/// Reads files, the system's certificates most of all, so not on a thread of the runtime.
async fn client_config(url: &PostgresUrl) -> Result<ClientConfig, ConnectionError> {
    let url = url.clone();
    match tokio::task::spawn_blocking(move || tls::client_config(&url)).await {
        Ok(config) => Ok(config?),
        Err(stopped) => Err(ConnectionError::Lost(io::Error::other(stopped))),
    }
}

async fn tcp(url: &PostgresUrl) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((url.host.as_str(), url.port)).await?;
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

/// Asks for TLS and does the handshake. Reads exactly one byte in the clear: anything that an
/// attacker sends ahead goes into the handshake and fails there.
async fn secured(
    url: &PostgresUrl,
    mut stream: TcpStream,
    config: ClientConfig,
) -> Result<Transport, ConnectionError> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(ConnectionError::Lost)?;
    match stream.read_u8().await.map_err(ConnectionError::Lost)? {
        b'S' => {}
        b'N' if url.ssl_mode == SslMode::Prefer => return Ok(Transport::Tcp(stream)),
        b'N' => return Err(ConnectionError::NoTls),
        // The postmaster could not fork. Its words come in the clear from anyone: not shown.
        b'E' => {
            return Err(ConnectionError::Lost(io::Error::other(
                "the server answered the request for TLS with an error",
            )));
        }
        other => {
            let what = format!("{other:#04x} as the answer to a request for TLS");
            return Err(ConnectionError::Protocol(what));
        }
    }
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::InvalidData => ConnectionError::Tls { host: url.host.clone(), source },
        _ => ConnectionError::Lost(source),
    };
    let name = tls::server_name(&url.host).map_err(failed)?;
    let connector = TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await.map_err(failed)?;
    Ok(Transport::Tls(Box::new(stream)))
}

impl Transport {
    /// What channel binding binds to: None without TLS, or if the certificate has no such hash.
    pub(crate) fn end_point_hash(&self) -> Option<Vec<u8>> {
        match self {
            Self::Tls(stream) => {
                let (_, session) = stream.get_ref();
                session.peer_certificates()?.first().and_then(|it| tls::end_point_hash(it))
            }
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    /// Wake us only once `bytes` wait to be read; 1 is every byte. Setting it lower wakes us at
    /// once if enough are there (`tcp_set_rcvlowat`). A Unix socket ignores it (`unix_poll`).
    pub(crate) fn set_wake_bytes(&self, bytes: usize) -> io::Result<()> {
        let stream = match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
            Self::Unix(_) => return Ok(()),
        };
        nix::sys::socket::setsockopt(stream, low_water::ReceiveLowWater, &bytes)?;
        Ok(())
    }
}

/// `SO_RCVLOWAT`, which no crate names; nix makes options with this macro.
mod low_water {
    use nix::{libc, setsockopt_impl, sockopt_impl};

    sockopt_impl!(ReceiveLowWater, SetOnly, libc::SOL_SOCKET, libc::SO_RCVLOWAT, usize);
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
