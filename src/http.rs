//! STAGE: `/metrics` for Prometheus, `/healthz` (alive) and `/readyz` (making progress).

use std::fmt::Write as _;
use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::metrics::Metrics;

/// The HTTP server could not start or broke down.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("cannot listen on {address}; change [http] listen, or stop who uses the port")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("the HTTP server broke down")]
    Serve(#[source] std::io::Error),
}

/// Binds the address, so that a port in use is said at start.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address).await.map_err(|source| HttpError::Listen { address, source })
}

/// Serves until `shutdown`.
pub async fn run_http(
    listener: TcpListener,
    metrics: Metrics,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), HttpError> {
    let router = Router::new()
        .route("/metrics", get(render_metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readiness))
        .with_state((metrics, health));
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .map_err(HttpError::Serve)
}

async fn render_metrics(State((metrics, _)): State<(Metrics, Health)>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

async fn readiness(State((_, health)): State<(Metrics, Health)>) -> (StatusCode, String) {
    let waiting = health.waiting();
    if waiting.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let mut body = String::new();
    for (role, reason) in waiting {
        // Writing to a String does not fail.
        writeln!(body, "{role}: {reason}").unwrap_or_default();
    }
    (StatusCode::SERVICE_UNAVAILABLE, body)
}
