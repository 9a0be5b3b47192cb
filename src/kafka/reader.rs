//! A consumer that finds its cluster again, and whose end holds nobody up.

use std::time::Duration;

use rdkafka::Statistics;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::BorrowedMessage;

use crate::config::KafkaConfig;
use crate::kafka::lost_cluster::Lost;
use crate::kafka::settings;

/// How often a silent consumer looks whether it has lost its cluster.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What librdkafka says by callback.
#[derive(Debug, Default)]
pub struct Watched {
    lost: Lost,
}

impl ClientContext for Watched {
    fn error(&self, error: KafkaError, reason: &str) {
        settings::hush(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        self.lost.note(&statistics);
    }
}

impl ConsumerContext for Watched {}

/// See the module.
pub struct Reader {
    /// None only while it is being dropped.
    consumer: Option<StreamConsumer<Watched>>,
    config: KafkaConfig,
}

impl Reader {
    /// `own`: its settings besides those that all clients share.
    ///
    /// # Errors
    /// If librdkafka refuses the settings.
    pub fn new(config: &KafkaConfig, own: &[(&str, String)]) -> KafkaResult<Self> {
        let mut all = settings::client_config(config, own);
        all.set("statistics.interval.ms", LOOK_EVERY.as_millis().to_string());
        let consumer = Some(all.create_with_context(Watched::default())?);
        Ok(Self { consumer, config: config.clone() })
    }

    pub fn consumer(&self) -> &StreamConsumer<Watched> {
        self.consumer.as_ref().expect("it is taken by drop alone")
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// What librdkafka says. It goes on by itself after most.
    pub async fn recv(&self) -> KafkaResult<BorrowedMessage<'_>> {
        let consumer = self.consumer();
        loop {
            if let Ok(received) = tokio::time::timeout(LOOK_EVERY, consumer.recv()).await {
                return received;
            }
            consumer.context().lost.find(consumer.client(), &self.config);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            drop_aside(consumer, || {});
        }
    }
}

/// Drops a consumer on a thread of its own. librdkafka's close waits without a limit for its state
/// machine, which was seen to stand still after an outage; neither a worker of ours nor the end
/// of the process may wait with it, and the end of a runtime waits for its blocking threads.
pub(super) fn drop_aside<C: Send + 'static>(consumer: C, then: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        drop(consumer);
        then();
    });
}
