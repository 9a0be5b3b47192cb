//! STAGE: `/metrics` for Prometheus, `/healthz` (alive), `/readyz` (making progress),
//! `/v1/status` (all that a person asks first, as JSON) and `/v1/copies`, where `onelog copy` asks.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::copies::{Refusal, Wish};
use crate::health::Health;
use crate::metrics::{IntGaugeVec, Metrics};

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
    let listening = listener.local_addr().map_err(HttpError::Serve)?.ip();
    let router = Router::new()
        .route("/metrics", get(render_metrics))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readiness))
        .route("/v1/status", get(status))
        .route("/v1/copies", post(copies).layer(from_fn_with_state(listening, only_neighbours)))
        .with_state((metrics, health))
        .into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
        .map_err(HttpError::Serve)
}

/// The port is often open to the network, for Prometheus, and knows no password. What makes the
/// daemon do something is for processes of its own machine (or container) only.
async fn only_neighbours(
    State(listening): State<IpAddr>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if is_neighbour(peer.ip(), listening) {
        return next.run(request).await;
    }
    let error = "only from the machine (or container) that the daemon runs on";
    (StatusCode::FORBIDDEN, Json(json!({ "error": error }))).into_response()
}

/// Who speaks to an address of the machine's own network from there has that very address.
fn is_neighbour(peer: IpAddr, listening: IpAddr) -> bool {
    let (peer, listening) = (peer.to_canonical(), listening.to_canonical());
    peer.is_loopback() || peer == listening
}

/// Longest that a wish waits for capture, which may be between two sessions.
const WISH_TIMEOUT: Duration = Duration::from_secs(20);

/// The body of a wish. That it has to be JSON, and so declared, keeps web pages from posting it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenWish {
    table: String,
    wish: String,
    #[serde(rename = "where")]
    condition: Option<String>,
}

/// 202: it is in the progress topic and will be done, whatever happens to this process.
async fn copies(
    State((_, health)): State<(Metrics, Health)>,
    Json(body): Json<WrittenWish>,
) -> (StatusCode, Json<Value>) {
    let WrittenWish { table, wish, condition } = body;
    let wish = match wish.as_str() {
        "start" => Ok(Wish::Start { condition }),
        "pause" => Ok(Wish::Pause),
        "resume" => Ok(Wish::Resume),
        "cancel" => Ok(Wish::Cancel),
        _ => Err(Refusal::Wrong("wish is start, pause, resume or cancel".to_owned())),
    };
    let no_capture = health.roles().iter().all(|(role, _)| *role != "capture");
    let answered = match wish {
        Err(refusal) => Err(refusal),
        Ok(_) if no_capture => Err(Refusal::Wrong("this process runs no capture".to_owned())),
        Ok(wish) => {
            let asking = health.desk().ask(table.clone(), wish);
            let waited = tokio::time::timeout(WISH_TIMEOUT, asking).await;
            let late = || Refusal::Unavailable("capture is not streaming".to_owned());
            waited.unwrap_or_else(|_| Err(late()))
        }
    };
    let (status, error) = match answered {
        Ok(()) => (StatusCode::ACCEPTED, None),
        Err(it @ Refusal::Wrong(_)) => (StatusCode::BAD_REQUEST, Some(it.to_string())),
        Err(it @ Refusal::NotNow(_)) => (StatusCode::CONFLICT, Some(it.to_string())),
        Err(it @ Refusal::Unavailable(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, Some(it.to_string()))
        }
    };
    (status, Json(json!({ "table": table, "error": error })))
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

async fn status(State((metrics, health)): State<(Metrics, Health)>) -> Json<Value> {
    let roles: Map<String, Value> = health
        .roles()
        .into_iter()
        .map(|(role, waits)| {
            (role.to_owned(), json!({ "ready": waits.is_none(), "waits_for": waits }))
        })
        .collect();
    let collections: Vec<Value> = health
        .collections()
        .into_iter()
        .map(|it| {
            let label = [it.name.as_str()];
            let gauge = |of: &IntGaugeVec| of.with_label_values(&label).get();
            let sweep = json!({
                "documents": gauge(&metrics.sweep_done_documents),
                "expected": gauge(&metrics.sweep_expected_documents),
                "seconds_left": gauge(&metrics.sweep_left_seconds),
            });
            let pending = gauge(&metrics.sweeps_pending);
            json!({
                "name": it.name,
                "state": it.state.name(),
                "sweeps_pending": pending,
                "sweep": if pending > 0 { sweep } else { Value::Null },
            })
        })
        .collect();
    let copies: Vec<Value> = health
        .desk()
        .statuses()
        .into_iter()
        .map(|(table, it)| {
            json!({
                "table": table,
                "state": it.state,
                "rows": it.rows,
                "expected_rows": it.expected_rows,
                "rows_per_second": it.rows_per_second,
                "seconds_left": it.seconds_left,
                "waits_for": it.waits_for,
            })
        })
        .collect();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "roles": roles,
        "capture": {
            "streaming": metrics.capture_streaming.get() > 0,
            "lag_bytes": metrics.capture_lag_bytes.get(),
            "lag_seconds": metrics.capture_lag_seconds.get(),
            "standby": metrics.capture_standby.get() > 0,
        },
        "slot": slot(&metrics),
        "translate": {
            "lag_records": metrics.translate_lag_records.get(),
            "pending_keys": metrics.translate_pending_keys.get(),
            "parked_keys": metrics.translate_parked_keys.get(),
        },
        "collections": collections,
        "copies": copies,
    }))
}

/// The slot as it was last looked at; null where this process has no capture, or could not yet.
fn slot(metrics: &Metrics) -> Value {
    let now = |it: &&str| metrics.slot_wal_status.with_label_values(&[*it]).get() > 0;
    let states = ["reserved", "extended", "unreserved", "lost", "missing"];
    let Some(status) = states.into_iter().find(now) else { return Value::Null };
    let safe = Some(metrics.slot_safe_bytes.get()).filter(|it| *it >= 0);
    json!({
        "wal_status": status,
        "retained_bytes": metrics.slot_retained_bytes.get(),
        "safe_bytes": safe,
        "over_budget": metrics.slot_over_budget.get() > 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_peer_of_the_same_machine_is_a_neighbour() {
        for (peer, listening, expected) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "0.0.0.0", true),
            ("::1", "::", true),
            ("::ffff:127.0.0.1", "::", true),
            ("10.0.0.5", "10.0.0.5", true),
            ("10.0.0.6", "10.0.0.5", false),
            ("10.0.0.6", "0.0.0.0", false),
            ("::ffff:10.0.0.6", "::", false),
        ] {
            let found = is_neighbour(peer.parse().unwrap(), listening.parse().unwrap());
            assert_eq!(found, expected, "{peer} at {listening}");
        }
    }
}
