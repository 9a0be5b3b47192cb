//! Tokens: each speaks for its own session, and only as long as its key is trusted.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde_json::{Value, json};

use super::gate::{Answer, Gate};
use super::support::eventually;
use super::support::world::PATIENCE;
use super::{KAFKA, PATIENT, is_new};

fn key() -> Ed25519KeyPair {
    let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("a key");
    Ed25519KeyPair::from_pkcs8(pair.as_ref()).expect("a key")
}

fn set(key: &Ed25519KeyPair) -> String {
    let x = BASE64.encode(key.public_key().as_ref());
    json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "kid": "a", "x": x }] }).to_string()
}

fn token(key: &Ed25519KeyPair, algorithm: &str, change: (&str, Value)) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    let mut claims = json!({
        "iss": "https://id", "aud": "onelog", "sub": "ann", "sid": "s-ann", "exp": now + 3600,
    });
    claims[change.0] = change.1;
    let header = json!({ "alg": algorithm, "kid": "a" });
    let message =
        format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
    let signed = if algorithm == "none" {
        Vec::new()
    } else {
        key.sign(message.as_bytes()).as_ref().to_vec()
    };
    format!("{message}.{}", BASE64.encode(signed))
}

async fn post(gate: &Gate, token: &str, body: &str) -> Answer {
    let bearer = format!("Bearer {token}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    gate.send(0, &gate.path(), body.as_bytes(), &headers).await
}

#[tokio::test]
async fn a_token_speaks_for_its_own_session_and_ends() {
    let _there = KAFKA.read().await;
    let section = "[gateway.jwt]\njwks_file = \"keys.json\"\nissuer = \"https://id\"\n\
                   audience = \"onelog\"";
    let mut gate = Gate::new("tokens", &format!("{PATIENT}\n{section}"));
    let first = key();
    let file = gate.file("keys.json");
    std::fs::write(&file, set(&first)).expect("written");
    gate.start().await;
    let same = ("sub", json!("ann"));
    let good = token(&first, "EdDSA", same.clone());
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
        let answer = post(&gate, &token(&first, algorithm, change), "{}").await;
        answer.is_problem(401);
    }
    let next = key();
    let other = token(&next, "EdDSA", same);
    post(&gate, &other, "{}").await.is_problem(401);
    let found = gate.commands().await;
    let values: Vec<_> = found.iter().map(|it| it.value.as_deref().unwrap_or("")).collect();
    let put_in = r#"{"session_id":"s-ann","document_id":"d","v":1}"#;
    assert_eq!(values, [put_in, r#"{"document_id":"d","session_id":"s-ann"}"#]);
    for command in &found {
        let header = |name| command.header(name);
        assert_eq!((header("principal"), header("session-id")), (Some("ann"), Some("s-ann")));
    }

    std::fs::write(&file, set(&next)).expect("written");
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
