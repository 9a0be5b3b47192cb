//! A client that has lost its cluster, and how it finds it again.
//!
//! librdkafka (2.10 and later; its issue 5301) lets go of every broker that is not in an answer
//! about the cluster. The last broker of a cluster that shuts down answers with none, and a client
//! that has asked just then knows nobody any more. It does not connect anew when the cluster is
//! back, and says nothing of it, for as long as it lives: a producer's records time out, a consumer
//! gets none. Told of the brokers again it goes on, with all that it has.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};

use rdkafka::Statistics;
use rdkafka::bindings::rd_kafka_brokers_add;
use rdkafka::client::{Client, ClientContext};

use crate::config::KafkaConfig;
use crate::kafka::settings;

/// Whether a consumer's statistics have named no broker at all since it was last looked.
#[derive(Debug, Default)]
pub(super) struct Lost(AtomicBool);

impl Lost {
    pub(super) fn note(&self, statistics: &Statistics) {
        let mut sources = statistics.brokers.values().map(|it| it.source.as_str());
        let lost = !sources.any(|it| it == "learned" || it == "configured");
        self.0.fetch_or(lost, Ordering::Relaxed);
    }

    /// Finds the cluster again, if it is lost.
    pub(super) fn find<C: ClientContext>(&self, client: &Client<C>, config: &KafkaConfig) {
        if self.0.swap(false, Ordering::Relaxed) {
            tell_brokers(client, config);
        }
    }
}

/// Tells the client of the brokers. One that knows them already loses nothing by it.
#[expect(unsafe_code, reason = "the crate does not have this call")]
pub(super) fn tell_brokers<C: ClientContext>(client: &Client<C>, config: &KafkaConfig) {
    let settings = settings::client_config(config, &[]);
    let brokers = settings.get("bootstrap.servers").unwrap_or_default();
    // A text with a zero byte in it made no client.
    let Ok(brokers) = CString::new(brokers) else { return };
    // SAFETY: the pointer is that of a client which lives as long as `client`, librdkafka's
    // functions may be called from any thread, and it copies the text.
    let added = unsafe { rd_kafka_brokers_add(client.native_ptr(), brokers.as_ptr()) };
    tracing::debug!(added, "kafka's client was told of the brokers again");
}
