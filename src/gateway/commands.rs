//! The write point: a command from a browser goes to Kafka, once, and only then is it accepted.
//!
//! A request is checked as a whole before anything is written. Then its claim goes to the
//! backplane ([`crate::gateway::claims`]); the one that wins produces the command, and answers
//! when all replicas have it. A command is followed to its end also when its client hangs up:
//! what is in Kafka is told on the backplane, whoever listens.
//!
//! What a failure means is always said: `outcome` is `not_accepted` if no command was handed to
//! Kafka and none will be, and `unknown` if it was handed over and not acknowledged in time.
//!
//! **Invariant:** 202 is answered only after Kafka's acknowledgement (acks=all) of the command
//! with the ids of the answer.

pub mod answer;
pub mod body;
pub mod headers;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Extension, Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::causes::with_causes;
use crate::config::KafkaConfig;
use crate::config::gateway::{CommandTopic, GatewayConfig};
use crate::gateway::Gateway;
use crate::gateway::backplane::Backplane;
use crate::gateway::claims::{Claim, Ids, Sameness, Verdict};
use crate::gateway::command_schemas::CurrentSchemas;
use crate::gateway::commands::answer::{Outcome, Refusal, accepted};
use crate::gateway::commands::body::CommandBody;
use crate::gateway::commands::headers::Given;
use crate::gateway::principal::Principal;
use crate::gateway::problem::{self, Problem};
use crate::kafka::command_producer::{CommandProducer, CommandRecord, SendError};
use crate::kafka::delivery::now_ms;
use crate::kafka::feedback::{Accepted, Claimed, Feedback};
use crate::metrics::Metrics;

/// The claim and the command have this share each of the time that the answer may take: what is
/// left is for librdkafka, which looks once a second at what has timed out.
const SHARE_PERCENT: u32 = 40;

/// What the write point keeps between requests.
pub struct WritePoint {
    pub schemas: CurrentSchemas,
    backplane: Arc<Backplane>,
    producer: CommandProducer,
    timeout: Duration,
    metrics: Metrics,
    /// Commands on their way, with or without a client that waits.
    under_way: TaskTracker,
}

/// A command that keeps every rule and is not claimed yet.
struct Wanted {
    topic: CommandTopic,
    principal: String,
    bytes: Bytes,
    /// Whether the body lacks them, so that they are put in.
    lacks_document_id: bool,
    lacks_session_id: bool,
    kind: Option<String>,
    traceparent: Option<String>,
    /// The client sent an `Idempotency-Key`.
    has_key: bool,
    claim: Claim,
}

impl WritePoint {
    /// # Errors
    /// The operator's properties of Kafka are none.
    pub fn new(
        (kafka, gateway): (&KafkaConfig, &GatewayConfig),
        backplane: Arc<Backplane>,
        metrics: Metrics,
    ) -> Result<Self, rdkafka::error::KafkaError> {
        let timeout = gateway.command_timeout;
        Ok(Self {
            schemas: CurrentSchemas::default(),
            backplane,
            producer: CommandProducer::new(kafka, share(timeout))?,
            timeout,
            metrics,
            under_way: TaskTracker::new(),
        })
    }

    /// Waits until every command under way has its end, which the time-outs bound.
    pub async fn drain(&self) {
        self.under_way.close();
        self.under_way.wait().await;
    }
}

fn share(of: Duration) -> Duration {
    of * SHARE_PERCENT / 100
}

/// `POST /v1/commands/{topic}`.
pub async fn post(
    State(gateway): State<Arc<Gateway>>,
    Extension(principal): Extension<Principal>,
    topic: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let deadline = Instant::now() + gateway.config.command_timeout;
    let point = Arc::clone(&gateway.write_point);
    let Path(topic) = topic.map_err(|_| problem::not_found())?;
    let found = gateway.config.commands.iter().find(|it| it.topic == topic);
    let topic = found.cloned().ok_or_else(problem::not_found)?;
    let wanted = wanted(&point, (&principal, topic), &headers, body);
    let wanted = wanted.inspect_err(|_| point.count(Outcome::Refused))?;
    if !*gateway.is_ready.borrow() {
        point.count(Outcome::NotAccepted);
        let reason = "this gateway does not read Kafka now";
        return Err(Refusal::Away { reason }.problem(&wanted.claim.ids));
    }
    let (answer, answered) = oneshot::channel();
    point.under_way.spawn(Arc::clone(&point).carry_out(wanted, deadline, answer));
    // The task answers before it ends, unless it panics.
    answered.await.unwrap_or_else(|_| Err(problem::internal()))
}

/// Checks a request as a whole.
fn wanted(
    point: &WritePoint,
    (principal, topic): (&Principal, CommandTopic),
    headers: &HeaderMap,
    bytes: Bytes,
) -> Result<Wanted, Problem> {
    if !principal.may_command(&topic.topic) {
        return Err(problem::forbidden("this key may not send commands to this topic"));
    }
    let given = Given::parse(headers).map_err(|it| answer::bad_header(&it))?;
    let body = CommandBody::parse(&bytes).map_err(|it| answer::bad_body(&it))?;
    let session_id = match (&principal.session, &body.session_id) {
        (Some(own), Some(said)) if **own != **said => {
            return Err(problem::forbidden("session_id is not the session of your token"));
        }
        (Some(own), _) => Some(own.to_string()),
        (None, said) => said.clone(),
    };
    let made = || Uuid::now_v7().to_string();
    let ids = Ids {
        command: Uuid::now_v7(),
        document_id: body.document_id.clone().unwrap_or_else(made),
        session_id,
        correlation_id: given.correlation_id.clone().unwrap_or_else(made),
    };
    let lacks_document_id = body.document_id.is_none();
    let lacks_session_id = body.session_id.is_none() && ids.session_id.is_some();
    let full = full_text(&body, (lacks_document_id, lacks_session_id), &ids);
    let Some(schemas) = point.schemas.get() else {
        return Err(Refusal::Away { reason: "the JSON Schemas are not read" }.problem(&ids));
    };
    let violations = schemas.violations(&topic.topic, body.kind.as_deref(), &full);
    if !violations.is_empty() {
        return Err(answer::violations(&violations));
    }
    let (kind, traceparent) = (body.kind.clone(), given.traceparent.clone());
    let claim = claim(principal, &topic, (&given, &body), ids);
    let principal = principal.name.to_string();
    Ok(Wanted {
        topic,
        principal,
        bytes: bytes.clone(),
        lacks_document_id,
        lacks_session_id,
        kind,
        traceparent,
        has_key: given.idempotency_key.is_some(),
        claim,
    })
}

/// What makes this command the same as another (see [`crate::gateway::claims`]).
fn claim(
    principal: &Principal,
    topic: &CommandTopic,
    (given, body): (&Given, &CommandBody<'_>),
    ids: Ids,
) -> Claim {
    // A token's subject may have the name of a key.
    let family = if principal.session.is_some() { "token" } else { "key" };
    let of = |what: &str, more: &[&str]| {
        let all = [what, family, &principal.name, &topic.topic];
        Sameness::of(&[&all, more].concat())
    };
    let by_ids = || of("ids", &[&ids.document_id, &ids.correlation_id]);
    let identity = match (&given.idempotency_key, &body.document_id, &given.correlation_id) {
        (Some(key), _, _) => Some(of("key", &[key])),
        (None, Some(_), None) => None,
        // The ids that we make are told in every answer, so that a repeat can have them.
        (None, Some(_), Some(_)) | (None, None, _) => Some(by_ids()),
    };
    let target = of("document", &[&ids.document_id]);
    let essence = body.essence();
    let request = Sameness::of(&essence.iter().map(String::as_str).collect::<Vec<_>>());
    Claim { identity, target, request, ids }
}

/// The body as Kafka is to have it: the client's text, with the ids that it lacks.
fn full_text(body: &CommandBody<'_>, (document, session): (bool, bool), ids: &Ids) -> String {
    let mut missing = Vec::new();
    if document {
        missing.push(("document_id", ids.document_id.as_str()));
    }
    if let (true, Some(session_id)) = (session, &ids.session_id) {
        missing.push(("session_id", session_id.as_str()));
    }
    body.with(&missing)
}

impl WritePoint {
    fn count(&self, outcome: Outcome) {
        self.metrics.gateway_commands_total.with_label_values(&[outcome.name()]).inc();
    }

    /// Claims, produces, answers, and tells the others.
    async fn carry_out(
        self: Arc<Self>,
        wanted: Wanted,
        deadline: Instant,
        answer: oneshot::Sender<Result<Response, Problem>>,
    ) {
        let proposed = wanted.claim.ids.clone();
        let (outcome, told) = match self.decided(&wanted, deadline).await {
            Ok(Verdict::Produce(ids)) => match self.produced(&wanted, &ids, deadline).await {
                Ok(()) => (Outcome::Accepted, Ok((ids, now_ms()))),
                Err(refusal) => (refusal.outcome(), Err(refusal.problem(&ids))),
            },
            Ok(Verdict::Repeat(ids, at_ms)) => (Outcome::Duplicate, Ok((ids, at_ms))),
            Ok(Verdict::Wait(ids, until_ms)) => {
                let refusal = Refusal::Pending { seconds: seconds_until(until_ms) };
                (refusal.outcome(), Err(refusal.problem(&ids)))
            }
            Ok(Verdict::Conflict) => (Outcome::Refused, Err(answer::conflict(wanted.has_key))),
            Err(refusal) => (refusal.outcome(), Err(refusal.problem(&proposed))),
        };
        self.count(outcome);
        let duplicate = outcome == Outcome::Duplicate;
        let response = told.map(|(ids, at_ms)| {
            let response = accepted(&wanted.topic, &ids, duplicate, at_ms);
            ((ids, at_ms), response)
        });
        let (told, response) = match response {
            Ok((told, response)) => (Some(told), Ok(response)),
            Err(problem) => (None, Err(problem)),
        };
        // Whoever asked may have hung up.
        drop(answer.send(response));
        if let (Some((ids, at_ms)), false) = (told, duplicate) {
            self.tell(&wanted, ids, at_ms).await;
        }
    }

    /// The log's verdict on the claim; it is never `Wait` for what is accepted in time.
    async fn decided(&self, wanted: &Wanted, deadline: Instant) -> Result<Verdict, Refusal> {
        let (desk, claim) = (&self.backplane.claims, &wanted.claim);
        if let Some(known) = claim.identity.and_then(|it| desk.known(it, claim.request)) {
            return Ok(known);
        }
        let mut asked = desk.ask(claim.ids.command);
        let record = Feedback::Claimed(Claimed {
            identity: claim.identity.map(|it| it.to_string()),
            target: claim.target.to_string(),
            request: claim.request.to_string(),
            command: claim.ids.command.to_string(),
            document_id: claim.ids.document_id.clone(),
            session_id: claim.ids.session_id.clone(),
            correlation_id: claim.ids.correlation_id.clone(),
            ts_ms: now_ms(),
        });
        let claimed = self.claimed(&record, &mut asked);
        let by = (Instant::now() + share(self.timeout)).min(deadline);
        let verdict = timeout_at(by, claimed).await;
        match verdict.unwrap_or(Err(Refusal::Away { reason: "Kafka does not answer" }))? {
            Verdict::Wait(ids, until_ms) => {
                let waited = timeout_at(deadline, desk.acceptance(ids.command)).await;
                Ok(match waited.ok().flatten() {
                    Some(at_ms) => Verdict::Repeat(ids, at_ms),
                    None => Verdict::Wait(ids, until_ms),
                })
            }
            verdict => Ok(verdict),
        }
    }

    /// Puts the claim on the backplane and reads it there.
    async fn claimed(
        &self,
        record: &Feedback,
        asked: &mut crate::gateway::claims::desk::Asked<'_>,
    ) -> Result<Verdict, Refusal> {
        let away = Refusal::Away { reason: "Kafka takes no claim" };
        let mut publish = std::pin::pin!(self.backplane.publish(record));
        let mut is_published = false;
        loop {
            tokio::select! {
                biased;

                // 1. It was read, so it is in the log, whatever the producer still waits for.
                verdict = asked.verdict() => return verdict.ok_or(away),

                // 2. The producer's word: a failure ends the wait.
                published = &mut publish, if !is_published => match published {
                    Ok(_) => is_published = true,
                    Err(error) => {
                        tracing::debug!(error = %with_causes(&error), "a command is not claimed");
                        return Err(away);
                    }
                },
            }
        }
    }

    /// Produces the command, with the ids of its claim.
    async fn produced(&self, wanted: &Wanted, ids: &Ids, by: Instant) -> Result<(), Refusal> {
        let body = CommandBody::parse(&wanted.bytes).map_err(|_| Refusal::Unknown)?;
        let text = full_text(&body, (wanted.lacks_document_id, wanted.lacks_session_id), ids);
        let command = ids.command.to_string();
        let mut headers = vec![("id", command.as_str())];
        let more = [
            ("type", wanted.kind.as_deref()),
            ("correlation-id", Some(&ids.correlation_id)),
            ("session-id", ids.session_id.as_deref()),
            ("document-id", Some(&ids.document_id)),
            ("traceparent", wanted.traceparent.as_deref()),
            ("principal", Some(&wanted.principal)),
        ];
        headers.extend(more.into_iter().filter_map(|(name, value)| Some((name, value?))));
        let topic = &wanted.topic.topic;
        let record =
            CommandRecord { topic, key: &ids.document_id, value: &text, headers: &headers };
        let sent = timeout_at(by, self.producer.send(record)).await;
        let Ok(sent) = sent else { return Err(Refusal::Unknown) };
        sent.map_err(|error| {
            let refusal = match &error {
                SendError::QueueFull => Refusal::Away { reason: "Kafka's queue is full" },
                SendError::TooLarge => Refusal::TooLarge,
                SendError::Refused(_) => Refusal::Away { reason: "Kafka refuses the command" },
                SendError::Unknown(_) => Refusal::Unknown,
            };
            tracing::warn!(topic, error = %with_causes(&error), "a command was not accepted");
            refusal
        })
    }

    /// Tells all gateways that the command is in Kafka.
    async fn tell(&self, wanted: &Wanted, ids: Ids, at_ms: i64) {
        let record = Feedback::Accepted(Accepted {
            command: ids.command.to_string(),
            identity: wanted.claim.identity.map(|it| it.to_string()),
            topic: wanted.topic.topic.clone(),
            message_type: wanted.kind.clone(),
            document_id: ids.document_id,
            session_id: ids.session_id,
            correlation_id: ids.correlation_id,
            ts_ms: at_ms,
        });
        if let Err(error) = self.backplane.publish(&record).await {
            // A repeat takes the command over then, under the same id.
            let error = with_causes(&error);
            tracing::warn!(%error, "that a command was accepted is not told to other gateways");
        }
    }
}

/// How long until a time of the log, by our clock.
fn seconds_until(until_ms: i64) -> u64 {
    u64::try_from((until_ms - now_ms()).max(0) / 1000).unwrap_or(0) + 1
}
