//! Wires the roles and the HTTP server; the only module that knows more than one of them.
//!
//! A role handles outages itself and for ever; what it returns is an error that a person must
//! cure. Then everything drains and the process exits non-zero, so that nobody mistakes half a
//! daemon for a whole one.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::{capture, gateway, http, translate};

/// How long the roles may drain after shutdown was asked for: Kafka's delivery timeout and a bulk
/// request's fit in, and it is within the 30 s that Kubernetes and systemd grant by default.
const DRAIN_MAX: Duration = Duration::from_secs(25);

/// Which roles this process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    pub capture: bool,
    pub translate: bool,
    pub gateway: bool,
}

/// Why the daemon ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{role} halted")]
    Halted {
        role: &'static str,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("{role} panicked; this is a defect of onelog")]
    Panicked { role: &'static str },
    #[error(transparent)]
    Http(#[from] http::HttpError),
    #[error("not everything drained within {DRAIN_MAX:?}; nothing is lost, the next start resumes")]
    DrainedTooSlowly,
}

type Ended = (&'static str, Result<(), Box<dyn Error + Send + Sync>>);

/// Runs the daemon until `shutdown`, or until a role halts.
pub async fn run(
    config: Config,
    roles: Roles,
    shutdown: CancellationToken,
    reload: tokio::sync::mpsc::Receiver<()>,
) -> Result<(), RunError> {
    let metrics = Metrics::new();
    let health = Health::default();
    let gateway = config.gateway.clone().filter(|_| roles.gateway);
    // Before anybody can ask: a daemon of which no role is known yet would pass for ready.
    let expected = [
        (roles.capture, "capture"),
        (gateway.is_some(), "gateway"),
        (roles.translate, "translate"),
    ];
    expected.into_iter().filter(|it| it.0).for_each(|it| health.expect(it.1));
    let listener = http::listen(config.http.listen).await?;
    tracing::info!(address = %config.http.listen, "serving /metrics, /healthz and /readyz");

    let mut tasks: JoinSet<Ended> = JoinSet::new();
    let served = http::run_http(listener, metrics.clone(), health.clone(), shutdown.child_token());
    tasks.spawn(async move { ("http", served.await.map_err(Into::into)) });
    if roles.capture {
        let role = capture::run_capture(
            Arc::new(config.clone()),
            metrics.clone(),
            health.clone(),
            shutdown.child_token(),
        );
        tasks.spawn(async move { ("capture", role.await.map_err(Into::into)) });
    }
    if let Some(section) = gateway {
        let role = gateway::run_gateway(
            (Arc::new(config.clone()), section),
            metrics.clone(),
            health.clone(),
            shutdown.child_token(),
        );
        tasks.spawn(async move { ("gateway", role.await.map_err(Into::into)) });
    }
    if roles.translate {
        let context = translate::Context {
            config,
            metrics: metrics.clone(),
            health: health.clone(),
            shutdown: shutdown.child_token(),
        };
        let role = translate::run_translate(context, reload);
        tasks.spawn(async move { ("translate", role.await.map_err(Into::into)) });
    }
    supervise(tasks, shutdown).await
}

/// Waits for the end of all tasks; the first failure, or the shutdown, asks the others to drain.
async fn supervise(mut tasks: JoinSet<Ended>, shutdown: CancellationToken) -> Result<(), RunError> {
    let mut failure = None;
    loop {
        let drain_limit = async {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN_MAX).await;
        };
        tokio::select! {
            biased;

            // 1. A task ended.
            joined = tasks.join_next_with_id() => match joined {
                None => return failure.map_or(Ok(()), Err),
                Some(Ok((_, (role, Ok(()))))) => {
                    tracing::info!(role, "stopped");
                }
                Some(Ok((_, (role, Err(source))))) => {
                    shutdown.cancel();
                    failure.get_or_insert(RunError::Halted { role, source });
                }
                Some(Err(_panic)) => {
                    shutdown.cancel();
                    failure.get_or_insert(RunError::Panicked { role: "a role" });
                }
            },

            // 2. The drain takes too long. The wait starts anew with each task that ends, so
            //    that at worst it lasts once for every task.
            () = drain_limit => return Err(failure.unwrap_or(RunError::DrainedTooSlowly)),
        }
    }
}
