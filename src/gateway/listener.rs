//! Connections of browsers: many, some of them slow on purpose.
//!
//! axum's own server has no limit of connections and waits for a request's head for ever; so this
//! is hyper's, with both.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
#[cfg(target_os = "linux")]
use nix::sys::socket::sockopt::TcpUserTimeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::metrics::Metrics;

/// Longest that a request's head may take; also how long a connection may idle between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of a head: cookies of other applications on the same host come along.
const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Before the next try when the process has no more file descriptors, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a client may leave what was sent to it unread: then the connection is closed, and what
/// is kept for it goes. Streams have no other end.
#[cfg(target_os = "linux")]
const UNREAD_MAX_MS: u32 = 60_000;
/// How long answers that are under way have when the daemon stops; streams end at once.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Who is at the other end of the connection. In every request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// Serves until `shutdown`; the answers that are under way are finished.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    (connections_max, metrics): (usize, Metrics),
    shutdown: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(connections_max));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;

            // 1. The end: no new connections.
            () = shutdown.cancelled() => break,

            // 2. One has ended, so that the set stays small.
            Some(_) = connections.join_next() => {}

            // 3. A new one, if there is place; else it is closed at once, as a browser tries again.
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        metrics.gateway_connections_refused_total.inc();
                        continue;
                    };
                    let (router, metrics) = (router.clone(), metrics.clone());
                    let ended = shutdown.clone();
                    connections.spawn(async move {
                        metrics.gateway_connections.inc();
                        connection(stream, peer, router, ended).await;
                        metrics.gateway_connections.dec();
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    let _in_time = tokio::time::timeout(DRAIN_MAX, drained).await;
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    shutdown: CancellationToken,
) {
    // Answers are small, and each is awaited by a person.
    let _as_it_is = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    let _kept_longer = nix::sys::socket::setsockopt(&stream, TcpUserTimeout, &UNREAD_MAX_MS);
    let peer = Peer(peer.ip().to_canonical());
    let service = tower::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let answer = router.clone().oneshot(request.map(Body::new));
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        biased;

        // 1. The connection's own end.
        ended = connection.as_mut() => ended,

        // 2. Ours: the answer that is under way is finished, no further request is read.
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection of the gateway broke off");
    }
}
