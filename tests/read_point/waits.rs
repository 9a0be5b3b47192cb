//! Read your writes, as a client sees it.

use onelog::kafka::feedback::Feedback;
use serde_json::json;

use super::Client;
use super::support::gateway::{accepted, ask, backplane};
use super::support::token::Issuer;
use super::support::world::World;

/// A document is answered once it reflects what its reader has written, and not before.
pub async fn waits(world: &World, client: &Client) {
    let path = "/v1/collections/profile_page/documents/p2";
    let (postgres, _connection) = world.client().await;
    // The wait has begun when the command's transaction commits, or has not: both are fine.
    let write = async {
        let sql = "BEGIN; SELECT pg_logical_emit_message(true, 'onelog.context', \
                   '{\"correlation_id\": \"c-1\"}'); \
                   UPDATE profile SET name = 'Dee One' WHERE key = 'p2'; COMMIT";
        postgres.batch_execute(sql).await.unwrap();
    };
    let query = format!("{path}?wait=30s&correlation_id=c-1&searchable=true");
    let (answer, ()) = tokio::join!(client.get(&query), write);
    assert_eq!((answer.status, &answer.json()["name"]), (200, &json!("Dee One")), "{answer:?}");
    let found = client.get("/v1/collections/profile_page/_search/by_name?q=dee").await;
    assert_eq!(found.json()["hits"][0]["document"]["name"], "Dee One", "searchable");

    let sql = "WITH changed AS (UPDATE profile SET name = 'Dee Two' WHERE key = 'p2' RETURNING 1) \
               SELECT pg_current_xact_id()::text FROM changed";
    let txid: String = postgres.query_one(sql, &[]).await.unwrap().get(0);
    let answer = client.get(&format!("{path}?wait=30s&txid={txid}&fields=name")).await;
    assert_eq!((answer.status, &*answer.body), (200, "{\"name\":\"Dee Two\"}"));

    // Everything that was committed before a place of the WAL; of a document that was not concerned
    // too.
    postgres.batch_execute("UPDATE profile SET name = 'Dee Three' WHERE key = 'p2'").await.unwrap();
    let row = postgres.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await.unwrap();
    let place: String = row.get(0);
    let answer = client.get(&format!("{path}?wait=30s&min_lsn={place}&fields=name")).await;
    assert_eq!((answer.status, &*answer.body), (200, "{\"name\":\"Dee Three\"}"));
    let other = path.replace("p2", "p1");
    let answer = client.get(&format!("{other}?wait=30s&min_lsn={place}&fields=key")).await;
    assert_eq!((answer.status, &*answer.body), (200, "{\"key\":\"p1\"}"));
    let answer = client.get(&format!("{path}?wait=100ms&min_lsn=FFFFFFFF/0")).await;
    assert_eq!(answer.status, 504, "{answer:?}");

    let late = client.get(&format!("{path}?wait=100ms&correlation_id=never")).await;
    assert_eq!(late.status, 504, "{late:?}");
    assert!(late.json()["hops"].is_array(), "{late:?}");
    for collection in ["secret_page", "nothing_page"] {
        let path = format!("/v1/collections/{collection}/documents/p2?wait=30s&correlation_id=c-1");
        let answer = client.get(&path).await;
        assert_eq!(answer.json()["type"], "urn:onelog:problem:not-found");
    }
    for query in [
        "wait=2s",
        "correlation_id=c-1",
        "wait=31s&correlation_id=c-1",
        "wait=soon&correlation_id=c-1",
        "wait=2s&correlation_id=c-1&txid=1",
        "wait=2s&txid=x",
        "wait=2s&min_lsn=x",
        "wait=2s&txid=1&searchable=maybe",
        "searchable=true",
    ] {
        assert_eq!(client.get(&format!("{path}?{query}")).await.status, 400, "{query}");
    }
}

/// A robot's refusal ends the wait, in its own words, but for whom it was not meant.
pub async fn refusals(world: &World, client: &Client, issuer: &Issuer) {
    let sender = backplane(world);
    let accepted = accepted("p2", "paid", Some("s-ann"));
    // As robots do: one names the session, the other only the command.
    let mut answers = vec![accepted];
    for (correlation, more) in [("paid", ""), ("named", r#","session_id":"s-ann""#)] {
        let text = format!(
            r#"{{"kind":"response","topic":"t","status":"failure","correlation_id":"{correlation}",
                "body":{{"reason":"no money","digits":1.00}},"ts_ms":1{more}}}"#
        );
        answers.push(Feedback::from_json(text.as_bytes()).unwrap().unwrap());
    }
    for it in &answers {
        sender.publish(it).await.unwrap();
    }
    let path = "/v1/collections/profile_page/documents/p2?wait=30s&correlation_id";
    let (ann, bob) = (issuer.of_session("s-ann"), issuer.of_session("s-bob"));
    for correlation in ["paid", "named"] {
        let line = format!("GET {path}={correlation}");
        let of = async |token: &str| {
            let bearer = format!("Bearer {token}");
            ask(&client.address, &line, &[("authorization", &*bearer)], "").await
        };
        for answer in [client.get(&format!("{path}={correlation}")).await, of(&ann).await] {
            assert_eq!(answer.status, 409, "{correlation}: {answer:?}");
            let problem = answer.json();
            assert_eq!(problem["type"], "urn:onelog:problem:command-failed");
            assert_eq!(problem["response"]["body"]["reason"], "no money", "{answer:?}");
        }
        let answer = of(&bob).await;
        assert_eq!(answer.status, 403, "{correlation}: {answer:?}");
        assert!(!answer.body.contains("money"), "{answer:?}");
    }
}
