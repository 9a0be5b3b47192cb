//! The role *gateway*: where browsers write commands and read documents.
//!
//! It keeps nothing: commands go to Kafka before they are answered, documents are read from
//! Elasticsearch, and what has become of either travels on one topic that every gateway reads. So
//! any number of them may run behind a load balancer.
//!
//! **Invariant:** `202 Accepted` is said only of a command that Kafka has acknowledged.

pub mod backplane;
pub mod claims;
pub mod command_schemas;
pub mod commands;
pub mod documents;
pub mod feedback;
pub mod fields;
pub mod files;
pub mod jwt;
pub mod limits;
pub mod listener;
pub mod page;
pub mod pipeline;
pub mod principal;
pub mod problem;
pub mod query;
pub mod reader;
pub mod refreshes;
pub mod responses;
pub mod routes;
pub mod search;
pub mod subscribers;
pub mod wait;
pub mod window;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tower_http::cors::{AllowOrigin, Any, CorsLayer};

use crate::config::gateway::GatewayConfig;
use crate::config::{Config, KafkaConfig};
use crate::elasticsearch::client::ElasticError;
use crate::gateway::backplane::{Backplane, BackplaneError, run_backplane};
use crate::gateway::commands::WritePoint;
use crate::gateway::files::{Files, look_once, run_files};
use crate::gateway::limits::Limits;
use crate::gateway::pipeline::Pipeline;
use crate::gateway::principal::Doorkeeper;
use crate::gateway::reader::Reader;
use crate::gateway::responses::run_responses;
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
    #[error("the gateways' backplane cannot be used")]
    Backplane(#[from] BackplaneError),
    #[error("the write point has no producer; look at [kafka] properties")]
    Producer(#[from] rdkafka::error::KafkaError),
    #[error("a part of the gateway panicked; this is a defect of onelog")]
    Panicked(#[from] JoinError),
    #[error("Elasticsearch can't be asked for documents")]
    Elasticsearch(#[from] ElasticError),
}

/// What every request may use.
pub struct Gateway {
    /// The whole file: brokers, Elasticsearch, mappings.
    pub daemon: Arc<Config>,
    pub config: GatewayConfig,
    pub doorkeeper: Doorkeeper,
    pub limits: Limits,
    pub backplane: Arc<Backplane>,
    pub reader: Reader,
    pub write_point: Arc<WritePoint>,
    /// What was on the backplane at start is read, and it can be read now.
    pub is_ready: watch::Receiver<bool>,
    pub pipeline: Pipeline,
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
    let parts = (&config.kafka, &gateway);
    let backplane = Backplane::new(parts, metrics.clone()).map_err(BackplaneError::from)?;
    let backplane = Arc::new(backplane);
    let write_point = WritePoint::new(parts, Arc::clone(&backplane), metrics.clone())?;
    let write_point = Arc::new(write_point);
    let doorkeeper = Doorkeeper::new(&gateway);
    let files = Files::new((&config, &gateway), Arc::clone(&write_point), doorkeeper.tokens());
    let (files, found) = look_once(files).await?;
    let (trouble, is_troubled) = watch::channel(found);
    let (mut stages, is_ready) = start_stages(parts, &backplane, &shutdown);
    let reader = Reader::new(&config.elasticsearch, &gateway)?;
    stages.spawn(run_files(files, trouble, shutdown.clone()));
    let gateway = Arc::new(Gateway {
        pipeline: Pipeline::new(&config.kafka),
        daemon: config,
        doorkeeper,
        limits: Limits::new(&gateway),
        backplane,
        reader,
        write_point: Arc::clone(&write_point),
        is_ready: is_ready.clone(),
        metrics: metrics.clone(),
        config: gateway,
    });
    let router = router(gateway);
    let listening = listener.local_addr().unwrap_or(address);
    tracing::info!(address = %listening, "serving commands, documents and feedback");
    let serving = listener::serve(listener, router, (connections_max, metrics), shutdown);
    tokio::select! {
        biased;

        // 1. A stage has failed for good: a person must cure it.
        Some(ended) = failed(&mut stages) => ended,
        // 2. For load balancers and those who start us: whether feedback can be relied on.
        () = tell_health(health, is_ready, is_troubled) => Ok(()),
        // 3. The end that was asked for; what Kafka has by then is told on the backplane.
        () = async { serving.await; write_point.drain().await } => Ok(()),
    }
}

/// What runs beside the requests; the receiver hears whether feedback can be relied on.
fn start_stages(
    (kafka, gateway): (&KafkaConfig, &GatewayConfig),
    backplane: &Arc<Backplane>,
    shutdown: &CancellationToken,
) -> (JoinSet<Result<(), BackplaneError>>, watch::Receiver<bool>) {
    let mut stages = JoinSet::new();
    let (ready, is_ready) = watch::channel(false);
    let ground = || (kafka.clone(), gateway.clone());
    let (of_gateways, of_robots) = (Arc::clone(backplane), Arc::clone(backplane));
    stages.spawn(run_backplane(of_gateways, ground(), ready, shutdown.clone()));
    stages.spawn(run_responses(of_robots, ground(), shutdown.clone()));
    (stages, is_ready)
}

/// The first stage that did not end by itself as it should.
async fn failed(
    stages: &mut JoinSet<Result<(), BackplaneError>>,
) -> Option<Result<(), GatewayError>> {
    while let Some(ended) = stages.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Some(Err(error.into())),
            Err(panicked) => return Some(Err(panicked.into())),
        }
    }
    None
}

/// Tells for ever.
async fn tell_health(
    health: Health,
    mut is_ready: watch::Receiver<bool>,
    mut is_troubled: watch::Receiver<Option<String>>,
) {
    loop {
        let trouble = is_troubled.borrow_and_update().clone();
        match (trouble, *is_ready.borrow_and_update()) {
            (Some(reason), _) => health.waits(ROLE, reason),
            (None, true) => health.ready(ROLE),
            (None, false) => health.waits(ROLE, "Kafka: the topic of feedback is not read yet"),
        }
        let changed = tokio::select! {
            biased;

            // 1. Feedback is there, or not any more.
            changed = is_ready.changed() => changed,
            // 2. Files are mended.
            changed = is_troubled.changed() => changed,
        };
        if changed.is_err() {
            // The stage has ended; what that means is told elsewhere.
            std::future::pending::<()>().await;
        }
    }
}

/// Every route, behind what each request passes.
fn router(gateway: Arc<Gateway>) -> Router {
    let guard = from_fn_with_state(Arc::clone(&gateway), limits::guard);
    let cors = cors(&gateway.config.allowed_origins);
    let page = gateway.config.page.clone();
    let mut routes = Router::new();
    for (path, _, handler) in routes::routes() {
        routes = routes.route(path, handler);
    }
    // `/healthz` is for load balancers, which have no key.
    let router = routes
        .fallback(async || problem::not_found())
        .method_not_allowed_fallback(async || problem::wrong_method())
        // The guard has the limit, and answers as everything here does.
        .layer(DefaultBodyLimit::disable())
        .layer(guard)
        .route("/healthz", get(|| async { "alive\n" }));
    let router = match page {
        Some(folder) => router.fallback_service(page::serve(&folder)),
        None => router,
    };
    router.layer(cors).with_state(gateway)
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
