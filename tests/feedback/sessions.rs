//! Tokens at the stream of events: each session hears its own, all of it, and nothing else.

use std::io::Write as _;

use onelog::kafka::feedback::{DocumentNews, Feedback};

use super::listener::{Heard, Listener};
use super::support::gateway;
use super::support::token::{Issuer, SECTION};
use super::{Gateway, world};

fn accepted(correlation: &str, session: &str) -> Feedback {
    gateway::accepted("d", correlation, Some(session))
}

fn document(correlation: &str) -> Feedback {
    Feedback::Document(DocumentNews {
        collection: "item".to_owned(),
        id: "d".to_owned(),
        correlation_ids: vec![correlation.to_owned()],
        ..DocumentNews::default()
    })
}

fn refused(correlation: &str) -> Feedback {
    let text = format!(
        r#"{{"kind":"response","topic":"t","status":"failure","correlation_id":"{correlation}","ts_ms":1}}"#
    );
    Feedback::from_json(text.as_bytes()).expect("a record").expect("known")
}

async fn heard(listener: &mut Listener, count: usize) -> Vec<Heard> {
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(listener.next().await);
    }
    all
}

/// What was heard: each event with its id, if it has one.
fn told(all: &[Heard]) -> Vec<(&str, Option<i64>)> {
    all.iter().map(|it| (it.event.as_str(), it.id.as_ref().map(|_| it.number()))).collect()
}

/// A document may be written, and told, before the log has that its command was accepted.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_hears_its_own_also_what_has_overtaken_the_acceptance() {
    let world = world("feedback_sessions").await;
    let issuer = Issuer::new();
    std::fs::write(world.folder.path().join("keys.json"), issuer.set()).expect("the keys");
    let config = std::fs::OpenOptions::new().append(true).open(&world.config);
    config.expect("the config").write_all(SECTION.as_bytes()).expect("it is written");
    let gateway = Gateway::of(&world, 1);
    let running = gateway.start().await;
    let by =
        |session: &str, query: &str| format!("{query}&access_token={}", issuer.of_session(session));
    let (ann, bob) = ("s-ann", "s-bob");
    let mut live = gateway.listen(&by(ann, "session_id=s-ann"), None).await;
    let mut by_command = gateway.listen(&by(ann, "correlation_id=k1"), None).await;
    let mut stranger = gateway.listen(&by(bob, "correlation_id=k1"), None).await;
    let mut other = gateway.listen(&by(bob, "session_id=s-bob"), None).await;
    refuses(&gateway, &by(bob, "session_id=s-ann")).await;

    let sender = gateway::backplane(&world);
    let said = [
        document("k1"),
        accepted("k2", ann),
        refused("k1"),
        accepted("k1", ann),
        // Under the same id, which it may have seen somewhere.
        accepted("k1", bob),
        document("k1"),
        accepted("k3", bob),
    ];
    let mut at = Vec::new();
    for it in &said {
        at.push(sender.publish(it).await.expect("Kafka takes it"));
    }
    let (first, expected) = (
        heard(&mut live, 6).await,
        [
            ("accepted", Some(at[1])),
            ("document", None),
            ("response", None),
            ("accepted", Some(at[3])),
            ("accepted", Some(at[4])),
            ("document", Some(at[5])),
        ],
    );
    assert_eq!(told(&first), expected);
    // Who comes late hears the same; who comes back, what they may have missed.
    let last = |nth: usize| at[nth].to_string();
    for (last, missed) in [(None, 0), (Some(last(1)), 1), (Some(last(3)), 4), (Some(last(5)), 6)] {
        let mut again = gateway.listen(&by(ann, "session_id=s-ann"), last.as_deref()).await;
        assert_eq!(heard(&mut again, 6 - missed).await, first[missed..], "{last:?}");
    }
    let mine = heard(&mut by_command, 5).await;
    let in_order = ["document", "response", "accepted", "accepted", "document"];
    let in_order: Vec<_> =
        in_order.into_iter().zip([0, 2, 3, 4, 5].map(|nth| Some(at[nth]))).collect();
    assert_eq!(told(&mine), in_order);
    let theirs = [("accepted", Some(at[4])), ("accepted", Some(at[6]))];
    assert_eq!(told(&heard(&mut other, 2).await), theirs);
    refuses(&gateway, &by(bob, "correlation_id=k1")).await;
    assert!(running.stop().await.success());
    assert!(stranger.ended().await && other.ended().await && live.ended().await, "nothing else");
}

/// 403, in words that tell nothing of the session.
async fn refuses(gateway: &Gateway, query: &str) {
    let url = format!("http://{}/v1/feedback?{query}", gateway.address);
    let answer = reqwest::get(url).await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 403);
    let problem = answer.text().await.expect("a body");
    assert!(problem.contains("not your") && !problem.contains("s-ann"), "{problem}");
}
