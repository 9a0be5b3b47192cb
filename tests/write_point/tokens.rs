//! Tokens: each speaks for its own session, and only as long as its key is trusted.

use serde_json::json;

use super::gate::{Answer, Gate};
use super::support::eventually;
use super::support::token::{Issuer, SECTION};
use super::support::world::PATIENCE;
use super::{KAFKA, PATIENT, is_new};

async fn post(gate: &Gate, token: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    gate.send(0, &gate.path(), body.as_bytes(), &headers).await
}

#[tokio::test]
async fn a_token_speaks_for_its_own_session_and_ends() {
    let _there = KAFKA.read().await;
    let mut gate = Gate::new("tokens", &format!("{PATIENT}\n{SECTION}"));
    let first = Issuer::new();
    let file = gate.file("keys.json");
    std::fs::write(&file, first.set()).expect("written");
    gate.start().await;
    let same = ("sub", json!("ann"));
    let good = first.token("EdDSA", same.clone());
    assert!(is_new(&post(&gate, &good, r#"{"document_id":"d","v":1}"#).await));
    let named = post(&gate, &good, r#"{"document_id":"d","session_id":"s-ann"}"#).await;
    assert!(is_new(&named));
    post(&gate, &good, r#"{"session_id":"s-bob"}"#).await.is_problem(403);

    for (algorithm, change) in [
        ("EdDSA", ("exp", json!(1_000_000))),
        ("EdDSA", ("aud", json!("other"))),
        ("EdDSA", ("iss", json!("https://evil"))),
        ("EdDSA", ("sid", json!(null))),
        ("none", same.clone()),
        ("HS256", same.clone()),
        ("RS256", same.clone()),
    ] {
        let answer = post(&gate, &first.token(algorithm, change), "{}").await;
        answer.is_problem(401);
    }
    let next = Issuer::new();
    let other = next.token("EdDSA", same);
    post(&gate, &other, "{}").await.is_problem(401);
    let found = gate.commands().await;
    let values: Vec<_> = found.iter().map(|it| it.value.as_deref().unwrap_or("")).collect();
    let put_in = r#"{"session_id":"s-ann","document_id":"d","v":1}"#;
    assert_eq!(values, [put_in, r#"{"document_id":"d","session_id":"s-ann"}"#]);
    for command in &found {
        let header = |name| command.header(name);
        assert_eq!((header("principal"), header("session-id")), (Some("ann"), Some("s-ann")));
    }

    std::fs::write(&file, next.set()).expect("written");
    eventually("the new key counts", PATIENCE, || async {
        (post(&gate, &other, "{}").await.status == 202).then_some(())
    })
    .await;
    post(&gate, &good, "{}").await.is_problem(401);
    std::fs::write(&file, "{}").expect("written");
    eventually("the broken file is told", PATIENCE, || async {
        gate.logs().contains("JSON Web Key Set").then_some(())
    })
    .await;
    assert!(is_new(&post(&gate, &other, "{}").await));
    assert!(!gate.logs().contains(&good));
}
