//! What the write point answers, and what each refusal means for the command.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use crate::config::gateway::CommandTopic;
use crate::gateway::claims::Ids;
use crate::gateway::command_schemas::Violation;
use crate::gateway::commands::body::BodyError;
use crate::gateway::commands::headers::HeaderError;
use crate::gateway::problem::Problem;

/// When a client may come again after Kafka was away: it takes a broker some seconds to be back.
const AWAY_RETRY_SECONDS: u64 = 2;

/// What stays as it is in a path: the characters of ids that need no escape there.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// How a request ended, for the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    Duplicate,
    /// The request is wrong.
    Refused,
    NotAccepted,
    Unknown,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Duplicate => "duplicate",
            Self::Refused => "refused",
            Self::NotAccepted => "not_accepted",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a good request has no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No command was handed to Kafka.
    Away { reason: &'static str },
    /// The topic takes no record of this size.
    TooLarge,
    /// The same command was claimed by another request, which has not ended yet.
    Pending { seconds: u64 },
    /// The command was handed over and not acknowledged in time.
    Unknown,
}

impl Refusal {
    pub fn outcome(self) -> Outcome {
        match self {
            Self::Away { .. } => Outcome::NotAccepted,
            Self::TooLarge => Outcome::Refused,
            Self::Pending { .. } | Self::Unknown => Outcome::Unknown,
        }
    }

    /// With the ids that a repeat should have, so that it is the same command.
    pub fn problem(self, ids: &Ids) -> Problem {
        let away = StatusCode::SERVICE_UNAVAILABLE;
        let (status, kind, detail, seconds) = match self {
            Self::Away { reason } => (
                away,
                "not-accepted",
                format!(
                    "the command was not accepted and will not be carried out ({reason}); \
                         repeat the request"
                ),
                Some(AWAY_RETRY_SECONDS),
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                "the topic takes no command of this size".to_owned(),
                None,
            ),
            Self::Pending { seconds } => (
                away,
                "outcome-unknown",
                "another request for this command has not ended; repeat this one to learn how it \
                 does"
                    .to_owned(),
                Some(seconds),
            ),
            Self::Unknown => (
                away,
                "outcome-unknown",
                "the command may be carried out or not; repeat the request with the same ids, and \
                 it will be once"
                    .to_owned(),
                Some(AWAY_RETRY_SECONDS),
            ),
        };
        let problem = Problem::new(status, kind, detail)
            .with("outcome", self.outcome().name().into())
            .with("document_id", ids.document_id.as_str().into())
            .with("correlation_id", ids.correlation_id.as_str().into());
        match seconds {
            Some(seconds) => problem.retry_after(seconds),
            None => problem,
        }
    }
}

/// 202, with where to wait for the command's document.
pub fn accepted(topic: &CommandTopic, ids: &Ids, duplicate: bool, at_ms: i64) -> Response {
    let encoded = |it: &str| utf8_percent_encode(it, PATH).to_string();
    let (document_id, correlation_id) = (encoded(&ids.document_id), encoded(&ids.correlation_id));
    let documents: Vec<String> = topic
        .collections
        .iter()
        .map(|it| {
            let collection = encoded(it);
            format!(
                "/v1/collections/{collection}/documents/{document_id}?wait=2s\
                 &correlation_id={correlation_id}"
            )
        })
        .collect();
    let body = json!({
        "document_id": ids.document_id,
        "session_id": ids.session_id,
        "correlation_id": ids.correlation_id,
        "command": ids.command.to_string(),
        "topic": topic.topic,
        "duplicate": duplicate,
        "accepted_ts_ms": at_ms,
        "links": {
            "feedback": format!("/v1/feedback?correlation_id={correlation_id}"),
            "documents": documents,
        },
    });
    let mut response = (StatusCode::ACCEPTED, Json(body)).into_response();
    let location = documents.first().and_then(|it| HeaderValue::from_str(it).ok());
    if let Some(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

pub fn bad_header(error: &HeaderError) -> Problem {
    let (status, kind) = match error {
        HeaderError::ContentType => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "not-json"),
        HeaderError::Twice(_) | HeaderError::CorrelationId | HeaderError::IdempotencyKey => {
            (StatusCode::BAD_REQUEST, "bad-header")
        }
    };
    Problem::new(status, kind, error.to_string())
}

pub fn bad_body(error: &BodyError) -> Problem {
    let (status, kind) = match error.is_about_content() {
        true => (StatusCode::UNPROCESSABLE_ENTITY, "bad-command"),
        false => (StatusCode::BAD_REQUEST, "not-json"),
    };
    Problem::new(status, kind, error.to_string())
}

/// Each violation with its JSON Pointer.
pub fn violations(found: &[Violation]) -> Problem {
    let listed: Vec<Value> = found.iter().map(Violation::to_json).collect();
    let detail = "the command breaks the JSON Schema of its topic or type";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-command", detail)
        .with("violations", listed.into())
}

pub fn conflict(by_key: bool) -> Problem {
    let detail = match by_key {
        true => "this Idempotency-Key was used for another body; make a new key for each command",
        false => {
            "this document_id was sent with this Correlation-Id and another body; make a new \
             Correlation-Id for each command"
        }
    };
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "identity-reused", detail)
}
