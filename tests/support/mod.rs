//! What the tests of the whole path share: a world of their own on the shared servers (database,
//! topics, indices, config), the daemon as a child process, and the one check that all of them end
//! with: every document equals its SQL, and there are no others.
//!
//! The servers are started by `make test` (`deploy/stack`); nothing here is a mock.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod broker;
pub mod browser;
pub mod cluster;
pub mod clusters;
pub mod daemon;
pub mod gateway;
pub mod log;
pub mod oracle;
pub mod robot;
pub mod servers;
pub mod token;
pub mod traffic;
pub mod world;

use std::future::Future;
use std::time::{Duration, Instant};

/// An address of the shared servers.
#[must_use]
pub fn server(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run the tests by `make test`, which starts the servers")
    })
}

/// Waits until `state` holds, looking again and again; fails with `what` after `limit`.
pub async fn eventually<F, T>(what: &str, limit: Duration, mut state: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + limit;
    // Looks often enough for a latency of milliseconds, seldom enough to leave the CPU to others.
    let mut pause = tokio::time::interval(Duration::from_millis(10));
    loop {
        if let Some(value) = state().await {
            return value;
        }
        assert!(Instant::now() < deadline, "after {limit:?} still not: {what}");
        pause.tick().await;
    }
}
