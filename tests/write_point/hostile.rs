//! What bad input gets: the right status as a problem document, nothing in Kafka, nothing in logs,
//! and the others undisturbed.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::gate::{Gate, KEY, OTHER_KEY};
use super::support::world::PATIENCE;
use super::{KAFKA, PATIENT, is_new};

/// Stands for what a body may hold that no log may show.
const SECRET: &str = "s3cr3t-b0dy";

/// Path, headers, and the status that it gets.
type Request<'r> = (&'r str, Vec<(&'r str, &'r str)>, u16);

const JSON: (&str, &str) = ("content-type", "application/json");
const WEB: (&str, &str) = ("x-api-key", KEY);

#[tokio::test]
async fn bad_bodies_are_refused_and_nothing_is_produced() {
    let _there = KAFKA.read().await;
    let gate = Gate::started("bodies", PATIENT, 1).await;
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(1_000_001));
    let long = format!("{{\"document_id\":\"{}\"}}", "x".repeat(129));
    let cases: Vec<(&[u8], u16)> = vec![
        (b"", 400),
        (b"{", 400),
        (b"{\"a\":1} x", 400),
        (b"{\"a\":1e999}", 400),
        (b"{\"a\":\"\xff\"}", 400),
        (b"[]", 422),
        (b"\"s3cr3t-b0dy\"", 422),
        (b"{\"a\":1,\"a\":\"s3cr3t-b0dy\"}", 422),
        (b"{\"a\":{\"b\":1,\"\\u0062\":2}}", 422),
        (b"{\"document_id\":7}", 422),
        (b"{\"document_id\":null}", 422),
        (b"{\"document_id\":\"\"}", 422),
        (b"{\"document_id\":\"../../s3cr3t-b0dy\"}", 422),
        (b"{\"document_id\":\"a\\r\\nX-Evil: 1\"}", 422),
        (b"{\"session_id\":\"<script>\"}", 422),
        (b"{\"type\":\"a b\"}", 422),
        (deep.as_bytes(), 422),
        (long.as_bytes(), 422),
        (large.as_bytes(), 413),
    ];
    for (body, status) in cases {
        let answer = gate.send(0, &gate.path(), body, &[JSON, WEB]).await;
        answer.is_problem(status);
        assert!(!answer.body.to_string().contains(SECRET), "{answer:?}");
    }
    assert!(gate.commands().await.is_empty());
    assert!(!gate.logs().contains(SECRET));
}

#[tokio::test]
async fn who_may_not_is_told_so_and_nothing_is_produced() {
    let _there = KAFKA.read().await;
    let gate = Gate::started("whos", PATIENT, 1).await;
    let path = gate.path();
    let long = "k".repeat(256);
    let cases: Vec<Request<'_>> = vec![
        (&path, vec![JSON], 401),
        (&path, vec![JSON, ("x-api-key", "wr0ng-s3cr3t-b0dy")], 401),
        (&path, vec![JSON, ("authorization", "Basic s3cr3t-b0dy")], 401),
        (&path, vec![JSON, ("x-api-key", OTHER_KEY)], 403),
        ("/v1/commands/unknown", vec![JSON, WEB], 404),
        ("/v1/commands/%ff", vec![JSON, WEB], 404),
        ("/v1/commands/..%2f..%2fx", vec![JSON, WEB], 404),
        (&path, vec![WEB], 415),
        (&path, vec![("content-type", "text/plain"), WEB], 415),
        (&path, vec![("content-type", "application/x-www-form-urlencoded"), WEB], 415),
        (&path, vec![JSON, WEB, ("correlation-id", "a b")], 400),
        (&path, vec![JSON, WEB, ("correlation-id", "a"), ("correlation-id", "b")], 400),
        (&path, vec![JSON, WEB, ("idempotency-key", &long)], 400),
        (&path, vec![JSON, WEB, ("idempotency-key", "a b")], 400),
    ];
    for (path, headers, status) in cases {
        let answer = gate.send(0, path, b"{}", &headers).await;
        answer.is_problem(status);
        if status == 401 {
            assert!(answer.header("www-authenticate").starts_with("Bearer"), "{answer:?}");
        }
    }
    assert!(gate.commands().await.is_empty());
    assert!(!gate.logs().contains(SECRET));
}

/// A request as it is on the wire, and the answer's first line.
async fn raw(gate: &Gate, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(&gate.daemons[0].1).await.expect("connected");
    // The server may close before it has read everything.
    let _sent = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    let _reset = read.expect("the connection ends");
    String::from_utf8_lossy(&answer).lines().next().unwrap_or("").to_owned()
}

#[tokio::test]
async fn headers_that_are_none_never_arrive() {
    let _there = KAFKA.read().await;
    let gate = Gate::started("headers", PATIENT, 1).await;
    let path = gate.path();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: {KEY}\r\n\
                        content-type: application/json\r\n"
    );
    for lines in [
        "correlation-id: a\rx-evil: 1\r\ncontent-length: 2\r\n",
        "correlation-id: a\0b\r\ncontent-length: 2\r\n",
        "correlation-id: \u{e9}\r\ncontent-length: 2\r\n",
        "idempotency-key: \u{e9}\r\ncontent-length: 2\r\n",
        "content-length: 2\r\ncontent-length: 3\r\n",
        "content-length: -1\r\n",
    ] {
        let first = raw(&gate, format!("{head}{lines}\r\n{{}}").as_bytes()).await;
        assert!(first.starts_with("HTTP/1.1 400"), "{lines:?}: {first}");
    }
    let huge = format!("{head}correlation-id: {}\r\n\r\n", "x".repeat(100_000));
    let first = raw(&gate, huge.as_bytes()).await;
    assert!(first.starts_with("HTTP/1.1 431"), "{first}");
    assert!(gate.commands().await.is_empty());
    // A trace that is none is ignored.
    let lines = "traceparent: \u{e9}\r\ncontent-length: 2\r\n";
    let first = raw(&gate, format!("{head}{lines}\r\n{{}}").as_bytes()).await;
    assert!(first.starts_with("HTTP/1.1 202"), "{first}");
    let commands = gate.commands().await;
    assert_eq!((commands.len(), commands[0].header("traceparent")), (1, None));
    gate.logs();
}

#[tokio::test]
async fn slow_and_many_connections_disturb_nobody_and_end() {
    let _there = KAFKA.read().await;
    let gate = Gate::started("slow", &format!("{PATIENT}\nconnections_max = 120"), 1).await;
    // The client's own connection is there before the crowd.
    assert!(is_new(&gate.post("{}").await));
    let path = gate.path();
    let mut slow = Vec::new();
    for nth in 0..100 {
        let mut stream = TcpStream::connect(&gate.daemons[0].1).await.expect("connected");
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n");
        let rest = "content-type: application/json\r\ncontent-length: 99\r\n\r\n{\"a\"";
        let sent = if nth % 2 == 0 { head } else { format!("{head}{rest}") };
        stream.write_all(sent.as_bytes()).await.expect("sent");
        slow.push(stream);
    }
    for _ in 0..20 {
        assert!(is_new(&gate.post("{}").await));
    }
    // More than there is place for are closed at once, without a word.
    let mut crowd = Vec::new();
    for _ in 0..60 {
        crowd.push(TcpStream::connect(&gate.daemons[0].1).await.expect("connected"));
    }
    let mut closed = 0;
    for mut stream in crowd {
        let mut byte = [0];
        // Those who have a place are let go after the time that a head may take.
        if let Ok(Ok(0) | Err(_)) = timeout(PATIENCE, stream.read(&mut byte)).await {
            closed += 1;
        }
    }
    assert_eq!(closed, 60);
    assert!(is_new(&gate.post("{}").await));
    for mut stream in slow {
        let mut answer = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let _reset = ended.expect("a slow client is let go");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    assert_eq!(gate.commands().await.len(), 22);
}
