//! Kafka goes away while commands come: what each answer said stays true.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use tokio::sync::oneshot;

use super::KAFKA;
use super::gate::{Answer, Gate};
use super::support::eventually;
use super::support::servers::Away;
use super::support::world::PATIENCE;

fn body(id: &str) -> String {
    format!("{{\"document_id\":\"{id}\"}}")
}

/// Sends commands one after the other until told to stop; each with its answer.
async fn sender(gate: &Gate, name: &str, mut stop: oneshot::Receiver<()>) -> Vec<(String, Answer)> {
    let mut all = Vec::new();
    while stop.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
        let id = format!("{name}-{}", all.len());
        let answer = gate.post(&body(&id)).await;
        all.push((id, answer));
    }
    all
}

/// Told if the test fails: a wait that ends in vain says nothing of why.
struct Story<'g> {
    gate: &'g Gate,
    last: RefCell<String>,
}

impl<'g> Story<'g> {
    fn of(gate: &'g Gate) -> Self {
        Self { gate, last: RefCell::default() }
    }

    /// Whether it was accepted; else what the answer was is kept for a failure.
    fn is_accepted(&self, answer: &Answer) -> Option<()> {
        self.last.replace(format!("{answer:?}"));
        (answer.status == 202).then_some(())
    }
}

impl Drop for Story<'_> {
    #[allow(clippy::print_stderr, reason = "of a test that has failed already")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the last answer: {}\n{}", self.last.borrow(), self.gate.logs());
        }
    }
}

#[tokio::test]
async fn what_was_not_accepted_never_comes_and_what_is_unknown_comes_once() {
    let _alone = KAFKA.write().await;
    let gate = Gate::started("outage", "command_timeout = \"3s\"", 2).await;
    let told = Story::of(&gate);
    let (mut stops, mut senders) = (Vec::new(), Vec::new());
    for name in ["a", "b", "c", "d"] {
        let (stop, stopped) = oneshot::channel();
        stops.push(stop);
        senders.push(sender(&gate, name, stopped));
    }
    let story = async {
        let seen = eventually("commands are accepted", PATIENCE, || async {
            Some(gate.commands().await.len()).filter(|it| *it > 20)
        });
        seen.await;
        let away = Away::stop("kafka").await;
        let answer = gate.post(&body("while-away")).await;
        answer.is_problem(503);
        assert!(answer.header("retry-after").parse::<u32>().expect("seconds") >= 1);
        away.bring_back().await;
        for stop in stops {
            let _gone = stop.send(());
        }
        answer
    };
    let (answered, away) = tokio::join!(join_all(senders), story);
    let mut answers: Vec<(String, Answer)> = answered.into_iter().flatten().collect();
    answers.push(("while-away".to_owned(), away));

    let mut by_outcome: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (id, answer) in &answers {
        let outcome = if answer.status == 202 { "accepted" } else { answer.text("outcome") };
        by_outcome.entry(outcome).or_default().insert(id);
    }
    let known = ["accepted", "not_accepted", "unknown"];
    assert!(by_outcome.keys().all(|it| known.contains(it)), "{answers:?}");
    let of = |outcome: &str| by_outcome.get(outcome).cloned().unwrap_or_default();
    // It comes back: and what is sent then comes after everything that was in flight.
    eventually("commands are accepted again", PATIENCE, || async {
        told.is_accepted(&gate.post(&body("after")).await)
    })
    .await;
    for id in of("unknown") {
        eventually("a repeat has its answer", PATIENCE, || async {
            told.is_accepted(&gate.post_with(1, &body(id), &[]).await)
        })
        .await;
    }
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let commands = gate.commands().await;
    for command in &commands {
        let (key, id) = (command.key.clone(), command.header("id").map(str::to_owned));
        found.entry(key.expect("a key")).or_default().insert(id.expect("an id"));
    }
    for id in of("accepted").union(&of("unknown")) {
        assert_eq!(found.get(*id).map_or(0, BTreeSet::len), 1, "{id} is one command");
    }
    for id in of("not_accepted") {
        assert!(!found.contains_key(id), "{id} was said not to be accepted");
    }
    assert!(of("not_accepted").contains("while-away") && of("accepted").len() > 20);
}
