//! What the brokers allow: questions that `onelog check` asks them.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::KafkaError;

use crate::config::KafkaConfig;
use crate::kafka::settings;

/// The longest `transaction.timeout.ms` that a producer may ask for; None: the broker does not say.
///
/// # Errors
/// If no broker answers, or lets us read its settings.
pub async fn transaction_timeout_max(config: &KafkaConfig) -> Result<Option<Duration>, KafkaError> {
    let admin: AdminClient<DefaultClientContext> = settings::client_config(config, &[]).create()?;
    let asking = tokio::task::spawn_blocking(move || {
        let metadata = admin.inner().fetch_metadata(None, settings::REQUEST_TIMEOUT)?;
        Ok((metadata.brokers().first().map(|it| it.id()), admin))
    });
    let (broker, admin) = asking.await.unwrap_or(Err(KafkaError::Canceled))?;
    let Some(broker) = broker else { return Ok(None) };
    let options = AdminOptions::new().request_timeout(Some(settings::REQUEST_TIMEOUT));
    let described = admin.describe_configs([&ResourceSpecifier::Broker(broker)], &options).await?;
    let Some(described) = described.into_iter().next() else { return Ok(None) };
    let described = described.map_err(KafkaError::AdminOp)?;
    let value = described.get("transaction.max.timeout.ms").and_then(|it| it.value.as_ref());
    Ok(value.and_then(|it| it.parse().ok()).map(Duration::from_millis))
}
