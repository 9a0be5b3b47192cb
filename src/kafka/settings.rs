//! What every client of Kafka is told, and which of Kafka's errors pass by themselves.
//!
//! librdkafka's defaults are for bulk transfer with gigabytes of memory, so each stage names the
//! values that it relies on; here are those which all share. The operator's own properties come
//! last everywhere, because security settings can't be known here.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::config::KafkaConfig;

/// Longest that a question to the cluster (metadata, topic configs, watermarks) may take. Twice
/// what a broker's restart usually takes to elect new leaders.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a batch of several records; a larger record has one of its own.
pub const BATCH_BYTES: usize = 524_288;

/// A client's settings: ours, then `own` of the stage, then the operator's.
pub fn client_config(config: &KafkaConfig, own: &[(&str, String)]) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &config.brokers);
    client.set("client.id", "onelog");
    client.set("socket.timeout.ms", config.socket_timeout.as_millis().to_string());
    // Small requests follow each other closely: Nagle's algorithm would hold them back by 40 ms.
    client.set("socket.nagle.disable", "true");
    // A broker that restarts is there again within seconds; the default backs off to 10 s.
    client.set("reconnect.backoff.ms", "50");
    client.set("reconnect.backoff.max.ms", "1000");
    for (name, value) in own {
        client.set(*name, value);
    }
    for (name, value) in &config.properties {
        client.set(name, value);
    }
    // Connection failures are told by the stage that they hold up; librdkafka repeats them.
    client.set_log_level(RDKafkaLogLevel::Critical);
    client
}

/// A context that repeats librdkafka's own complaints at debug only: whoever waits for the client
/// tells the outage, once, in its own words.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

/// What a [`Quiet`] client makes of a complaint.
pub fn hush(error: &KafkaError, reason: &str) {
    tracing::debug!(%error, reason, "librdkafka");
}

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        hush(&error, reason);
    }
}

impl ConsumerContext for Quiet {}

/// Whether the same request may succeed later with nothing changed by a person.
///
/// An unknown code counts as transient: waiting loses nothing, and what waits is seen in the
/// metrics, while halting needs a person.
pub fn is_transient_code(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    let is_wrong = matches!(
        code,
        Code::UnsupportedSASLMechanism
            | Code::SecurityDisabled
            | Code::InvalidTopic
            | Code::InvalidPartitions
            | Code::InvalidReplicationFactor
            | Code::InvalidConfig
            | Code::InvalidRecord
            | Code::InvalidArgument
            | Code::PolicyViolation
            | Code::UnsupportedVersion
            | Code::UnsupportedForMessageFormat
            | Code::UnsupportedFeature
            | Code::MessageSizeTooLarge
            | Code::InvalidMessageSize
            | Code::NotImplemented
    );
    !is_wrong && !is_right_code(code)
}

/// Whether Kafka refuses what a person can give at any time: a right, or a password.
pub fn is_right_code(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::Authentication
            | Code::SaslAuthenticationFailed
    )
}

/// As [`is_right_code`], for an error of the client library.
pub fn is_right(error: &KafkaError) -> bool {
    error.rdkafka_error_code().is_some_and(is_right_code)
}

/// What is said behind an error if it is a right that is missing; else nothing.
pub fn cure_of_code(code: RDKafkaErrorCode) -> &'static str {
    use RDKafkaErrorCode as Code;
    match code {
        Code::Authentication | Code::SaslAuthenticationFailed => {
            "; check the user and the password in [kafka] properties"
        }
        code if is_right_code(code) => {
            "; give our user what README.md lists under \"Rights in Kafka\" (kafka-acls.sh --add)"
        }
        _ => "",
    }
}

/// As [`cure_of_code`], for an error of the client library.
pub fn cure(error: &KafkaError) -> &'static str {
    error.rdkafka_error_code().map_or("", cure_of_code)
}

/// As [`is_transient_code`], for an error of the client library. One without a code is a mistake
/// in the settings.
pub fn is_transient(error: &KafkaError) -> bool {
    match error {
        KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) | KafkaError::Nul(_) => false,
        other => other.rdkafka_error_code().is_none_or(is_transient_code),
    }
}
