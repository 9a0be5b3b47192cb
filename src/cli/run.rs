//! `onelog run`: the daemon.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cli::{CommandError, Role};
use crate::config::Config;
use crate::supervisor::{self, Roles};

/// Runs until SIGTERM or SIGINT, which drain, or until a role halts.
pub async fn run(config: Config, only: &[Role]) -> Result<u8, CommandError> {
    let wanted = |role| only.is_empty() || only.contains(&role);
    if config.gateway.is_none() && only.contains(&Role::Gateway) {
        return Err(CommandError::NoGateway);
    }
    let roles = Roles {
        capture: wanted(Role::Capture),
        translate: wanted(Role::Translate),
        gateway: config.gateway.is_some() && wanted(Role::Gateway),
    };
    let shutdown = CancellationToken::new();
    // One waiting request is enough: a reload reads everything.
    let (reload, reload_requests) = mpsc::channel(1);
    let mut signals = JoinSet::new();
    signals.spawn(handle_signals(shutdown.clone(), reload));

    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?roles, "starting");
    supervisor::run(config, roles, shutdown, reload_requests)
        .await
        .map_err(|error| CommandError::failed("the daemon stopped", error))?;
    tracing::info!("stopped cleanly");
    Ok(0)
}

async fn handle_signals(shutdown: CancellationToken, reload: mpsc::Sender<()>) {
    let listen = |kind| match signal(kind) {
        Ok(signal) => Some(signal),
        Err(error) => {
            tracing::error!(%error, "cannot listen for a signal");
            None
        }
    };
    let (Some(mut terminate), Some(mut interrupt), Some(mut hangup)) = (
        listen(SignalKind::terminate()),
        listen(SignalKind::interrupt()),
        listen(SignalKind::hangup()),
    ) else {
        return;
    };
    loop {
        tokio::select! {
            biased;

            // 1. Stop: the drain begins, and a second signal changes nothing about it.
            _ = terminate.recv() => break,
            // 2. Ctrl-C in a terminal means the same.
            _ = interrupt.recv() => break,
            // 3. Reread the mappings. A request that already waits covers this one too.
            _ = hangup.recv() => {
                let _already_waiting = reload.try_send(());
            }
        }
    }
    tracing::info!("signal received, draining");
    shutdown.cancel();
}
