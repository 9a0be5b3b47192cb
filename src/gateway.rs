//! The role *gateway*: where browsers write commands and read documents.
//!
//! It keeps nothing: commands go to Kafka before they are answered, documents are read from
//! Elasticsearch, and what has become of either travels on one topic that every gateway reads. So
//! any number of them may run behind a load balancer.
//!
//! **Invariant:** `202 Accepted` is said only of a command that Kafka has acknowledged.

pub mod limits;
pub mod listener;
pub mod principal;
pub mod problem;

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::from_fn_with_state;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

use crate::config::Config;
use crate::config::gateway::GatewayConfig;
use crate::gateway::limits::Limits;
use crate::gateway::principal::Doorkeeper;
use crate::health::Health;
use crate::metrics::Metrics;

const ROLE: &str = "gateway";

/// Why the role halted: a person must cure it.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("cannot listen on {address}; change [gateway] listen, or stop who uses the port")]
    Listen {
        address: std::net::SocketAddr,
        #[source]
        source: std::io::Error,
    },
}

/// What every request may use.
pub struct Gateway {
    /// The whole file: brokers, Elasticsearch, mappings.
    pub daemon: Arc<Config>,
    pub config: GatewayConfig,
    pub doorkeeper: Doorkeeper,
    pub limits: Limits,
    pub metrics: Metrics,
}

/// Serves until `shutdown`.
///
/// # Errors
/// The address is in use.
pub async fn run_gateway(
    (config, gateway): (Arc<Config>, GatewayConfig),
    metrics: Metrics,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), GatewayError> {
    raise_file_limit();
    let address = gateway.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| GatewayError::Listen { address, source })?;
    let connections_max = gateway.connections_max;
    let gateway = Arc::new(Gateway {
        daemon: config,
        doorkeeper: Doorkeeper::new(&gateway),
        limits: Limits::new(&gateway),
        metrics: metrics.clone(),
        config: gateway,
    });
    let router = router(gateway);
    let listening = listener.local_addr().unwrap_or(address);
    tracing::info!(address = %listening, "serving commands, documents and feedback");
    health.ready(ROLE);
    listener::serve(listener, router, (connections_max, metrics), shutdown).await;
    Ok(())
}

/// Every route, behind what each request passes.
fn router(gateway: Arc<Gateway>) -> Router {
    let guard = from_fn_with_state(Arc::clone(&gateway), limits::guard);
    let cors = cors(&gateway.config.allowed_origins);
    // `/healthz` is for load balancers, which have no key.
    Router::new()
        .fallback(async || problem::not_found())
        .method_not_allowed_fallback(async || problem::wrong_method())
        .layer(guard)
        .route("/healthz", axum::routing::get(|| async { "alive\n" }))
        .layer(cors)
        .with_state(gateway)
}

/// Which pages may speak to us. Credentials are headers that a page sets itself, never cookies, so
/// that no page can use those of another.
fn cors(origins: &[String]) -> CorsLayer {
    let origins = match origins.iter().any(|it| it == "*") {
        true => AllowOrigin::from(Any),
        false => {
            let valid = origins.iter().filter_map(|it| HeaderValue::from_str(it).ok());
            AllowOrigin::list(valid.collect::<Vec<_>>())
        }
    };
    let own = |it| HeaderName::from_static(it);
    let sent = [
        own("correlation-id"),
        own("idempotency-key"),
        own("last-event-id"),
        own("traceparent"),
        own("x-api-key"),
    ];
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(
            [header::AUTHORIZATION, header::CONTENT_TYPE, header::IF_NONE_MATCH]
                .into_iter()
                .chain(sent)
                .collect::<Vec<_>>(),
        )
        .expose_headers([header::ETAG, header::LOCATION, header::RETRY_AFTER])
        .max_age(std::time::Duration::from_secs(3600))
}

/// Each connection is a file descriptor, and many systems grant 1024 unless asked for more.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
