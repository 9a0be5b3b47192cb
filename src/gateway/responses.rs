//! STAGE: puts the answers of robots on the backplane, where every gateway hears them.
//!
//! One consumer group of all gateways shares the topics. A position is committed only once Kafka
//! has what was read before it on the backplane, so that an answer is told at least once; repeats
//! are known by the message's id, and told once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::causes::with_causes;
use crate::config::KafkaConfig;
use crate::config::gateway::GatewayConfig;
use crate::gateway::backplane::{Backplane, BackplaneError};
use crate::json::Object;
use crate::kafka::delivery::now_ms;
use crate::kafka::feedback::{BODY_BYTES_MAX, Feedback, Response, Status};
use crate::kafka::reader::Reader;
use crate::kafka::settings;
use crate::kafka::topics::{self, WantedTopic};

/// Answers told together before their positions are committed.
const BATCH_MAX: usize = 200;
/// After an outage.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// Longest id that is passed on: ours have 128 bytes at most.
const ID_BYTES_MAX: usize = 512;

/// Tells until `shutdown`; outages are waited out.
pub async fn run_responses(
    backplane: Arc<Backplane>,
    (kafka, gateway): (KafkaConfig, GatewayConfig),
    shutdown: CancellationToken,
) -> Result<(), BackplaneError> {
    if gateway.response_topics.is_empty() {
        return Ok(());
    }
    loop {
        let session = read(&backplane, &kafka, &gateway);
        let ended = tokio::select! {
            biased;

            // 1. The end.
            () = shutdown.cancelled() => return Ok(()),
            // 2. An outage.
            ended = session => ended,
        };
        match ended {
            Err(error) if !error.is_transient() => return Err(error),
            Err(error) => {
                tracing::warn!(error = with_causes(&error), "robots' answers wait");
            }
            Ok(()) => {}
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

async fn read(
    backplane: &Backplane,
    kafka: &KafkaConfig,
    gateway: &GatewayConfig,
) -> Result<(), BackplaneError> {
    let wanted = gateway.response_topics.iter().map(|it| WantedTopic::of_events(kafka, it));
    topics::ensure_topics(kafka, &wanted.collect::<Vec<_>>(), false).await?;
    let own = [
        ("group.id", format!("{}.gateway", kafka.group_id)),
        ("enable.auto.commit", "false".to_owned()),
        ("enable.auto.offset.store", "false".to_owned()),
        // From the beginning, so that an answer to the first command is heard; what is older than
        // the window is passed over.
        ("auto.offset.reset", "earliest".to_owned()),
        ("session.timeout.ms", "6000".to_owned()),
        ("heartbeat.interval.ms", "1500".to_owned()),
        ("partition.assignment.strategy", "cooperative-sticky".to_owned()),
        ("topic.metadata.refresh.interval.ms", "5000".to_owned()),
        ("fetch.wait.max.ms", "100".to_owned()),
        ("fetch.queue.backoff.ms", "5".to_owned()),
        ("queued.max.messages.kbytes", "8192".to_owned()),
    ];
    let reader = Reader::new(kafka, &own)?;
    let names: Vec<&str> = gateway.response_topics.iter().map(String::as_str).collect();
    reader.consumer().subscribe(&names)?;
    let age_max = i64::try_from(gateway.feedback_window.as_millis()).unwrap_or(i64::MAX);
    loop {
        let mut batch = Batch::default();
        let mut next = Some(reader.recv().await);
        while let Some(received) = next {
            match received {
                Ok(message) => batch.add(&message, now_ms().saturating_sub(age_max))?,
                Err(error) if settings::is_transient(&error) => {
                    tracing::debug!(%error, "the topics of answers do not answer");
                }
                Err(error) => return Err(error.into()),
            }
            let full = batch.told.len() >= BATCH_MAX;
            next = if full { None } else { reader.recv().now_or_never() };
        }
        batch.tell(backplane, &reader).await?;
    }
}

#[derive(Default)]
struct Batch {
    told: VecDeque<Feedback>,
    positions: TopicPartitionList,
}

impl Batch {
    fn add(&mut self, message: &BorrowedMessage<'_>, oldest_ms: i64) -> Result<(), KafkaError> {
        let (topic, number) = (message.topic(), message.partition());
        let position = Offset::Offset(message.offset() + 1);
        match self.positions.find_partition(topic, number) {
            Some(mut place) => place.set_offset(position)?,
            None => self.positions.add_partition_offset(topic, number, position)?,
        }
        let at_ms = message.timestamp().to_millis().unwrap_or_else(now_ms);
        if at_ms < oldest_ms {
            return Ok(());
        }
        let headers = message.headers().into_iter().flat_map(|it| it.iter());
        let headers = headers.filter_map(|it| Some((it.key, std::str::from_utf8(it.value?).ok()?)));
        let headers: Vec<(&str, &str)> = headers.collect();
        // A tombstone says nothing.
        if let Some(value) = message.payload() {
            self.told.push_back(Feedback::Response(response(topic, &headers, value, at_ms)));
        }
        Ok(())
    }

    /// All of it, in order: the first that Kafka does not take ends the session, and what follows
    /// is read again.
    async fn tell(self, backplane: &Backplane, reader: &Reader) -> Result<(), BackplaneError> {
        let all = self.told.iter().map(|it| backplane.publish(it));
        futures_util::future::try_join_all(all).await?;
        if self.positions.count() > 0 {
            reader.consumer().commit(&self.positions, CommitMode::Async)?;
        }
        Ok(())
    }
}

/// What a robot's message says. Headers count more than the body: they are what onelog's outbox
/// and Kafka's own tools write.
fn response(topic: &str, headers: &[(&str, &str)], value: &[u8], ts_ms: i64) -> Response {
    let text = std::str::from_utf8(value).ok();
    let raw: Option<&RawValue> = text.and_then(|it| serde_json::from_str(it).ok());
    let fields = text.and_then(|it| serde_json::from_str::<Object<'_>>(it).ok());
    let header = |name: &str| {
        let found = headers.iter().find(|(it, _)| *it == name).map(|(_, it)| (*it).to_owned());
        found.filter(|it| (1..=ID_BYTES_MAX).contains(&it.len()))
    };
    let field = |name: &str| {
        let raw = fields.as_ref()?.get(name)?;
        let text = serde_json::from_str::<String>(raw).ok();
        text.filter(|it| (1..=ID_BYTES_MAX).contains(&it.len()))
    };
    let message_type = header("type").or_else(|| field("type"));
    let status = field("status").and_then(|it| status_of(&it));
    let by_type = message_type.as_deref().and_then(status_of_type);
    Response {
        event: header("id"),
        topic: topic.to_owned(),
        status: status.or(by_type),
        message_type,
        correlation_id: header("correlation-id").or_else(|| field("correlation_id")),
        session_id: header("session-id").or_else(|| field("session_id")),
        document_id: header("document-id").or_else(|| field("document_id")),
        body: raw.filter(|it| it.get().len() <= BODY_BYTES_MAX).map(ToOwned::to_owned),
        ts_ms,
    }
}

fn status_of(text: &str) -> Option<Status> {
    match text.to_ascii_lowercase().as_str() {
        "success" | "succeeded" | "ok" => Some(Status::Success),
        "failure" | "failed" | "refused" | "rejected" | "error" => Some(Status::Failure),
        _ => None,
    }
}

fn status_of_type(name: &str) -> Option<Status> {
    let ends = ["Failed", "Refused", "Rejected"];
    ends.iter().any(|it| name.ends_with(it)).then_some(Status::Failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&str, &str)], value: &[u8]) -> Response {
        response("outbox.event.response", headers, value, 7)
    }

    #[test]
    fn headers_count_more_than_the_body() {
        let body = br#"{"correlation_id":"k2","session_id":"s2","status":"failure","n": 1.00}"#;
        let it = read(&[("correlation-id", "k1"), ("type", "PaymentMade"), ("id", "e")], body);
        assert_eq!(
            (it.correlation_id.as_deref(), it.session_id.as_deref()),
            (Some("k1"), Some("s2"))
        );
        assert_eq!((it.status, it.event.as_deref()), (Some(Status::Failure), Some("e")));
        assert!(it.body.unwrap().get().contains("1.00"), "digits stay");
    }

    #[test]
    fn a_status_is_said_or_follows_from_the_type() {
        let cases: &[(&str, &[u8], Option<Status>)] = &[
            ("PaymentRefused", b"{}", Some(Status::Failure)),
            ("PaymentFailed", br#"{"status":"success"}"#, Some(Status::Success)),
            ("PaymentMade", br#"{"status":"OK"}"#, Some(Status::Success)),
            ("PaymentMade", b"{}", None),
            ("FailedOver", br#"{"status":7}"#, None),
        ];
        for (name, body, expected) in cases {
            assert_eq!(read(&[("type", name)], body).status, *expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_json_or_too_large_has_no_body_and_harms_nobody() {
        let large = format!("\"{}\"", "x".repeat(BODY_BYTES_MAX));
        let long = format!(r#"{{"correlation_id":"{}"}}"#, "x".repeat(ID_BYTES_MAX + 1));
        assert!(read(&[], b"\xFF{").body.is_none() && read(&[], b"nonsense").body.is_none());
        assert!(read(&[], large.as_bytes()).body.is_none());
        assert!(read(&[], long.as_bytes()).correlation_id.is_none());
        assert!(read(&[], b"[1]").body.is_some());
    }
}
