//! The records' form, which other versions of onelog and browsers rely on.

use super::*;

fn accepted() -> Accepted {
    Accepted {
        command: "c-1".to_owned(),
        identity: Some("ab".to_owned()),
        topic: "commands.profile".to_owned(),
        message_type: Some("CreateProfile".to_owned()),
        document_id: "d-1".to_owned(),
        session_id: None,
        correlation_id: "k-1".to_owned(),
        ts_ms: 5,
    }
}

fn document() -> DocumentNews {
    DocumentNews {
        collection: "profile_page".to_owned(),
        id: "d-1".to_owned(),
        version: 17_592_186_044_425,
        correlation_ids: vec!["k-1".to_owned()],
        txids: vec![u64::MAX],
        xmin: 9,
        timeline: 1,
        lsn: Lsn(0x16_B374_D848),
        commit_ts_ms: Some(1),
        log_ts_ms: Some(2),
        read_ts_ms: 3,
        ts_ms: 4,
        ..DocumentNews::default()
    }
}

fn response(body: &str) -> Response {
    Response {
        event: Some("e".to_owned()),
        topic: "outbox.event.response".to_owned(),
        message_type: None,
        status: Some(Status::Failure),
        correlation_id: Some("k-1".to_owned()),
        session_id: None,
        document_id: None,
        body: Some(RawValue::from_string(body.to_owned()).unwrap()),
        ts_ms: 6,
    }
}

#[test]
fn records_have_the_form_that_readers_rely_on() {
    let hop = Hop {
        role: Role::Capture,
        instance: "a".to_owned(),
        state: State::Running,
        lag_seconds: Some(0.5),
        lag_records: None,
        lag_bytes: Some(7),
        lsn: Some(Lsn(1)),
        ts_ms: 8,
    };
    let cases = [
        (
            Feedback::Accepted(accepted()),
            r#"{"kind":"accepted","command":"c-1","identity":"ab","topic":"commands.profile","type":"CreateProfile","document_id":"d-1","session_id":null,"correlation_id":"k-1","ts_ms":5}"#,
        ),
        (
            Feedback::Document(document()),
            r#"{"kind":"document","collection":"profile_page","id":"d-1","deleted":false,"version":17592186044425,"correlation_ids":["k-1"],"txids":["18446744073709551615"],"xmin":"9","timeline":1,"lsn":"16/B374D848","commit_ts_ms":1,"log_ts_ms":2,"read_ts_ms":3,"ts_ms":4}"#,
        ),
        (
            Feedback::Response(response(r#"{"n": 1.00}"#)),
            r#"{"kind":"response","event":"e","topic":"outbox.event.response","type":null,"status":"failure","correlation_id":"k-1","session_id":null,"document_id":null,"body":{"n": 1.00},"ts_ms":6}"#,
        ),
        (
            Feedback::Hop(hop),
            r#"{"kind":"hop","role":"capture","instance":"a","state":"running","lag_seconds":0.5,"lag_bytes":7,"lsn":"0/1","ts_ms":8}"#,
        ),
    ];
    for (record, expected) in cases {
        assert_eq!(record.to_json(), expected);
        let read = Feedback::from_json(expected.as_bytes()).unwrap().unwrap();
        assert_eq!(read.to_json(), expected, "what is read is what was written");
    }
}

#[test]
fn what_a_newer_version_says_is_ignored_and_what_is_broken_is_told() {
    assert!(Feedback::from_json(br#"{"kind":"rumour","x":1}"#).unwrap().is_none());
    let more =
        Feedback::Accepted(accepted()).to_json().replace("\"ts_ms\"", "\"new\":{},\"ts_ms\"");
    assert!(matches!(Feedback::from_json(more.as_bytes()), Ok(Some(Feedback::Accepted(_)))));
    for broken in ["", "[]", "{}", r#"{"kind":1}"#, r#"{"kind":"accepted"}"#, "\u{0}"] {
        assert!(Feedback::from_json(broken.as_bytes()).is_err(), "{broken}");
    }
    let bad = Feedback::Document(document()).to_json().replace("16/B374D848", "x");
    assert!(Feedback::from_json(bad.as_bytes()).is_err());
}

#[test]
fn clients_see_neither_identities_nor_our_own_words() {
    let (kind, text) = Feedback::Accepted(accepted()).shown().unwrap();
    assert_eq!(kind, "accepted");
    assert!(!text.contains("identity") && text.contains("\"k-1\""), "{text}");
    let claimed = Claimed {
        identity: Some("ab".to_owned()),
        target: "ef".to_owned(),
        request: "cd".to_owned(),
        command: "c".to_owned(),
        document_id: "d".to_owned(),
        session_id: None,
        correlation_id: "k".to_owned(),
        ts_ms: 1,
    };
    assert!(Feedback::Claimed(claimed).shown().is_none());
    let (_, text) = Feedback::Response(response("{\r\n\"n\":\n1.00}")).shown().unwrap();
    assert!(text.contains(r#""body":{  "n": 1.00}"#), "one line, and the same JSON: {text}");
}
