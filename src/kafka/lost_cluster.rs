//! A client that has lost its cluster, and how it finds it again.
//!
//! librdkafka (2.10 and later; its issue 5301) lets go of every broker that is not in an answer
//! about the cluster. The last broker of a cluster that shuts down answers with none, and a client
//! that has asked just then knows nobody any more. It does not connect anew when the cluster is
//! back, and says nothing of it, for as long as it lives: a producer's records time out, a consumer
//! gets none. Told of the brokers again it goes on, with all that it has.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rdkafka::Statistics;
use rdkafka::bindings::rd_kafka_brokers_add;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;

use crate::config::KafkaConfig;
use crate::kafka::settings;

/// How often a consumer that has a [`Watched`] context looks whether it has lost its cluster.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The setting that a [`Watched`] context needs.
pub fn watch() -> (&'static str, String) {
    ("statistics.interval.ms", LOOK_EVERY.as_millis().to_string())
}

/// Whether the client knows no broker at all.
pub fn is_lost(statistics: &Statistics) -> bool {
    let mut sources = statistics.brokers.values().map(|it| it.source.as_str());
    !sources.any(|it| it == "learned" || it == "configured")
}

/// Tells the client of the brokers. One that knows them already loses nothing by it.
#[expect(unsafe_code, reason = "the crate does not have this call")]
pub fn tell_brokers<C: ClientContext>(client: &Client<C>, config: &KafkaConfig) {
    let settings = settings::client_config(config, &[]);
    let brokers = settings.get("bootstrap.servers").unwrap_or_default();
    // A text with a zero byte in it made no client.
    let Ok(brokers) = CString::new(brokers) else { return };
    // SAFETY: the pointer is that of a client which lives as long as `client`, librdkafka's
    // functions may be called from any thread, and it copies the text.
    let added = unsafe { rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
    tracing::debug!(added, "kafka's client was told of the brokers again");
}

/// The context of a consumer that is to find its cluster again; [`settings::Quiet`] otherwise.
#[derive(Debug, Default)]
pub struct Watched(AtomicBool);

impl Watched {
    /// Whether the cluster was lost since the last call.
    pub fn take_lost(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl ClientContext for Watched {
    fn error(&self, error: KafkaError, reason: &str) {
        settings::hush(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.0.fetch_or(is_lost(&statistics), Ordering::Relaxed);
    }
}

impl ConsumerContext for Watched {}
