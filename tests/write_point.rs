//! The write point with the real Kafka: what is accepted is there, once, and nothing else is.

#[path = "write_point/gate.rs"]
mod gate;
#[path = "write_point/hostile.rs"]
mod hostile;
#[path = "write_point/outage.rs"]
mod outage;
mod support;
#[path = "write_point/tokens.rs"]
mod tokens;

use std::collections::BTreeSet;

use gate::{Answer, Gate};
use serde_json::Value;
use support::eventually;
use support::world::PATIENCE;
use tokio::sync::RwLock;

/// One test stops Kafka: alone.
static KAFKA: RwLock<()> = RwLock::const_new(());

/// Longer than a busy machine makes anybody wait: none of these tests is about time.
const PATIENT: &str = "command_timeout = \"60s\"";

fn is_new(answer: &Answer) -> bool {
    assert_eq!(answer.status, 202, "{answer:?}");
    !answer.body["duplicate"].as_bool().expect("duplicate")
}

#[tokio::test]
async fn what_is_accepted_is_in_kafka_as_the_client_wrote_it() {
    let _there = KAFKA.read().await;
    let gate = Gate::started("accepted", PATIENT, 1).await;
    let body = r#" {"type":"CreateProfile","document_id":"d:1", "n":1.100,
        "big":123456789012345678901234567890.10,"session_id":"s-1","text":"\u00e9"} "#;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = [("correlation-id", "c:1"), ("traceparent", trace)];
    let answer = gate.post_with(0, body, &headers).await;
    let commands = gate.commands().await;
    assert!(is_new(&answer));
    let [command] = &commands[..] else { panic!("{commands:?}") };
    assert_eq!(command.key.as_deref(), Some("d:1"));
    assert_eq!(command.value.as_deref(), Some(body));
    let found: Vec<(&str, &str)> =
        command.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    let expected = [
        ("correlation-id", "c:1"),
        ("document-id", "d:1"),
        ("id", answer.text("command")),
        ("principal", "web"),
        ("session-id", "s-1"),
        ("traceparent", trace),
        ("type", "CreateProfile"),
    ];
    assert_eq!(found, expected);
    for (field, expected) in
        [("document_id", "d:1"), ("session_id", "s-1"), ("correlation_id", "c:1")]
    {
        assert_eq!(answer.text(field), expected);
    }
    assert_eq!(answer.text("topic"), gate.topic);
    assert!(answer.body["accepted_ts_ms"].as_i64() > Some(1_700_000_000_000));
    let link =
        "/v1/collections/profile%20page/documents/d%3A1?wait=2s&correlation_id=c%3A1".to_owned();
    assert_eq!(answer.header("location"), link);
    assert_eq!(answer.body["links"]["documents"][0], link);
    assert_eq!(answer.body["links"]["feedback"], "/v1/feedback?correlation_id=c%3A1");
}

#[tokio::test]
async fn ids_that_are_absent_are_made_but_never_a_session() {
    let _there = KAFKA.read().await;
    let gate = Gate::started("absent", PATIENT, 1).await;
    let answer = gate.post("{\"a\":1.0}").await;
    assert!(is_new(&answer));
    assert_eq!(answer.body["session_id"], Value::Null);
    let id = answer.text("document_id");
    let commands = gate.commands().await;
    let expected = format!("{{\"document_id\":\"{id}\",\"a\":1.0}}");
    assert_eq!(commands[0].value.as_deref(), Some(&*expected));
    assert_eq!(commands[0].key.as_deref(), Some(id));
    assert_eq!(commands[0].header("correlation-id"), Some(answer.text("correlation_id")));
    assert_eq!((commands[0].header("session-id"), commands[0].header("type")), (None, None));
    // The same again is another document.
    assert!(is_new(&gate.post("{\"a\":1.0}").await));
    // With the ids of the answer it is the same command, and so is what is told of it.
    let again = [("correlation-id", answer.text("correlation_id"))];
    let repeat = gate.post_with(0, &expected, &again).await;
    assert!(!is_new(&repeat));
    assert_eq!(repeat.text("command"), answer.text("command"));
    let other = expected.replace("1.0", "2.0");
    gate.post_with(0, &other, &again).await.is_problem(422);
    assert_eq!(gate.commands().await.len(), 2);
}

#[tokio::test]
async fn one_key_sent_fifty_times_to_two_gateways_is_one_command() {
    let _there = KAFKA.read().await;
    let gate = Gate::started("fifty", PATIENT, 2).await;
    let headers = [("idempotency-key", "\"k-1\"")];
    let body = r#"{"type":"Pay","amount":1.50}"#;
    let all = (0..50).map(|nth| gate.post_with(nth % 2, body, &headers));
    let answers = futures_util::future::join_all(all).await;
    assert_eq!(answers.iter().filter(|it| is_new(it)).count(), 1);
    let told = |field: &str| answers.iter().map(|it| it.text(field)).collect::<BTreeSet<_>>();
    for field in ["command", "document_id", "correlation_id"] {
        assert_eq!(told(field).len(), 1, "{field}: {answers:?}");
    }
    let commands = gate.commands().await;
    assert_eq!(commands.len(), 1, "{commands:?}");
    assert_eq!(commands[0].header("id"), Some(answers[0].text("command")));
    let other = gate.post_with(1, r#"{"type":"Pay","amount":2.50}"#, &headers).await;
    other.is_problem(422);
    assert_eq!(other.text("type"), "urn:onelog:problem:identity-reused");
    assert_eq!(gate.commands().await.len(), 1);
}

#[tokio::test]
async fn an_edit_and_its_undoing_are_commands_and_a_repeat_is_none() {
    let _there = KAFKA.read().await;
    let gate = Gate::started("edits", PATIENT, 2).await;
    let (a, b) = (r#"{"document_id":"d","v":"A"}"#, r#"{"document_id":"d","v":"B"}"#);
    // Each goes to the other gateway than the one before.
    let mut new = Vec::new();
    for (nth, body) in [a, b, a, a, a].iter().enumerate() {
        new.push(is_new(&gate.post_with(nth % 2, body, &[]).await));
    }
    assert_eq!(new, [true, true, true, false, false]);
    // With a key it is the latest too.
    assert!(is_new(&gate.post_with(0, b, &[("idempotency-key", "k")]).await));
    assert!(!is_new(&gate.post_with(1, b, &[("idempotency-key", "k")]).await));
    assert!(!is_new(&gate.post_with(1, b, &[]).await));
    assert!(is_new(&gate.post_with(1, a, &[]).await));
    // Both ids are the client's: the same command, whatever came between.
    assert!(is_new(&gate.post_with(0, b, &[("correlation-id", "c")]).await));
    assert!(is_new(&gate.post_with(1, a, &[]).await));
    assert!(!is_new(&gate.post_with(1, b, &[("correlation-id", "c")]).await));
    let found = gate.commands().await;
    let values: Vec<Value> = found.iter().map(|it| it.json()["v"].clone()).collect();
    assert_eq!(values, ["A", "B", "A", "B", "A", "B", "A"]);
    let ids: BTreeSet<_> = found.iter().map(|it| it.header("id")).collect();
    assert_eq!(ids.len(), found.len());
}

#[tokio::test]
async fn a_command_that_kafka_does_not_take_is_never_accepted() {
    let _there = KAFKA.read().await;
    let gate = Gate::started("unacknowledged", PATIENT, 1).await;
    // Larger than the topic takes: its claim is in the log, and the command is refused.
    let large = format!("{{\"document_id\":\"d\",\"text\":\"{}\"}}", "x".repeat(1_100_000));
    let body_limit = gate.post(&large).await;
    body_limit.is_problem(413);
    drop(gate);
    let more = format!("{PATIENT}\nbody_bytes_max = 5000000");
    let gate = Gate::started("unacknowledged", &more, 1).await;
    let answer = gate.post(&large).await;
    answer.is_problem(413);
    assert!(gate.commands().await.is_empty());
    assert!(is_new(&gate.post(r#"{"document_id":"d"}"#).await));
    assert_eq!(gate.commands().await.len(), 1);
}

#[tokio::test]
async fn a_schema_says_what_commands_look_like_and_may_change() {
    let _there = KAFKA.read().await;
    let mut gate = Gate::new("schemas", PATIENT);
    let file = gate.file(&format!("commands/{}/Create.schema.json", gate.topic));
    std::fs::write(&file, "{").expect("written");
    let http = gate.launch();
    let told = eventually("the broken file is told", PATIENCE, || async {
        gate.get(&http, "/readyz").await.filter(|it| it.1.contains("Create.schema.json:1:1: "))
    })
    .await;
    assert_eq!(told.0, 503);
    let body = r#"{"type":"Create","lines":[{"n":1},{"n":"x"}]}"#;
    gate.post(body).await.is_problem(503);
    let schema = r#"{"required":["document_id","name"],
        "properties":{"lines":{"items":{"properties":{"n":{"type":"integer"}}}}}}"#;
    std::fs::write(&file, schema).expect("written");
    eventually("the mended file counts", PATIENCE, || async {
        gate.get(&http, "/readyz").await.filter(|it| it.0 == 200)
    })
    .await;
    let answer = gate.post(body).await;
    answer.is_problem(422);
    let violations = answer.body["violations"].as_array().expect("violations");
    let pointers: Vec<_> = violations.iter().map(|it| it["pointer"].as_str()).collect();
    // The document id is made before, so that it is not missing.
    assert_eq!(pointers, [Some(""), Some("/lines/1/n")]);
    assert!(is_new(&gate.post(r#"{"type":"Create","name":"Ann"}"#).await));
    assert!(is_new(&gate.post(r#"{"type":"Other"}"#).await));

    std::fs::write(&file, r#"{"type": "no-type"}"#).expect("written");
    eventually("the mistake is told", PATIENCE, || async {
        gate.logs().contains("Create.schema.json:1:10: it is no JSON Schema here").then_some(())
    })
    .await;
    gate.post(body).await.is_problem(422);
    assert_eq!(gate.commands().await.len(), 2);
}

#[tokio::test]
async fn who_comes_too_often_is_told_when_to_come_again() {
    let _there = KAFKA.read().await;
    let more = format!("{PATIENT}\nrate_limit = 1\nrate_burst = 1");
    let gate = Gate::started("often", &more, 1).await;
    let mut accepted = 0;
    let refused = loop {
        let answer = gate.post("{}").await;
        if answer.status == 429 {
            break answer;
        }
        assert!(is_new(&answer));
        accepted += 1;
        assert!(accepted < 300, "nobody is slowed down");
    };
    refused.is_problem(429);
    assert!(refused.header("retry-after").parse::<u32>().expect("seconds") >= 1);
    assert_eq!(gate.commands().await.len(), accepted);
}

#[tokio::test]
async fn only_pages_that_are_allowed_may_speak_to_it() {
    let _there = KAFKA.read().await;
    let more = format!("{PATIENT}\nallowed_origins = [\"https://app.example\"]");
    let gate = Gate::started("pages", &more, 1).await;
    let allowed = gate.preflight("https://app.example").await;
    assert_eq!(allowed["access-control-allow-origin"], "https://app.example");
    let names = allowed["access-control-allow-headers"].to_str().expect("names").to_lowercase();
    for name in ["idempotency-key", "correlation-id", "x-api-key", "content-type"] {
        assert!(names.contains(name), "{names}");
    }
    let stranger = gate.preflight("https://evil.example").await;
    assert!(!stranger.contains_key("access-control-allow-origin"));
    let answer = gate.post_with(0, "{}", &[("origin", "https://app.example")]).await;
    assert_eq!(answer.header("access-control-allow-origin"), "https://app.example");
    assert!(answer.header("access-control-expose-headers").contains("location"));
}
