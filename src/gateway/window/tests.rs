//! Laws of [`Window`], against a plain list of all that was said.

use proptest::prelude::*;

use super::*;
use crate::kafka::feedback::{Accepted, Claimed, DocumentNews, Response, State};

const LIMITS: Limits = Limits { records_max: 12, bytes_max: 200, age_max_ms: 40 };

fn accepted(correlation: u8, session: Option<u8>) -> Feedback {
    Feedback::Accepted(Accepted {
        command: "c".to_owned(),
        identity: Some(format!("i{correlation}")),
        topic: "t".to_owned(),
        message_type: None,
        document_id: "d".to_owned(),
        session_id: session.map(|it| format!("s{it}")),
        correlation_id: format!("k{correlation}"),
        ts_ms: 0,
    })
}

fn claimed(identity: u8) -> Feedback {
    Feedback::Claimed(Claimed {
        identity: Some(format!("i{identity}")),
        target: String::new(),
        request: "r".to_owned(),
        command: "c".to_owned(),
        document_id: "d".to_owned(),
        session_id: Some("s0".to_owned()),
        correlation_id: format!("k{identity}"),
        ts_ms: 0,
    })
}

fn document(id: u8, correlations: &[u8]) -> Feedback {
    Feedback::Document(DocumentNews {
        collection: "page".to_owned(),
        id: format!("d{id}"),
        correlation_ids: correlations.iter().map(|it| format!("k{it}")).collect(),
        ..DocumentNews::default()
    })
}

fn response(event: u8, correlation: u8, session: Option<u8>) -> Feedback {
    Feedback::Response(Response {
        event: Some(format!("e{event}")),
        topic: "t".to_owned(),
        message_type: None,
        status: None,
        correlation_id: Some(format!("k{correlation}")),
        session_id: session.map(|it| format!("s{it}")),
        document_id: None,
        body: None,
        ts_ms: 0,
    })
}

fn hop(instance: usize, ts_ms: i64) -> Feedback {
    Feedback::Hop(Hop::new((Role::Capture, &instance.to_string()), State::Running, ts_ms))
}

fn offsets(history: &History) -> Vec<i64> {
    history.events.iter().map(|it| it.offset).collect()
}

fn session(of: u8) -> Key {
    Key::Session(format!("s{of}"))
}

#[test]
fn a_session_sees_what_its_commands_lead_to_and_nobody_elses() {
    let mut window = Window::new(LIMITS, 10);
    let said = [
        document(1, &[1]),
        accepted(1, Some(1)),
        // Sent by another session under the same id, which it may have seen somewhere.
        accepted(1, Some(2)),
        document(1, &[1, 3]),
        response(1, 1, None),
        document(2, &[3]),
    ];
    for (offset, it) in (10..).zip(said) {
        window.push((offset, 0), it, 1);
    }
    assert_eq!(offsets(&window.history(&session(1), None)), [10, 11, 12, 13, 14]);
    assert_eq!(offsets(&window.history(&session(2), None)), [12]);
    assert_eq!(window.session_of("k1"), Some("s1"));
    assert_eq!(offsets(&window.history(&Key::Correlation("k3".to_owned()), None)), [13, 15]);
}

#[test]
fn who_resumes_hears_the_rest_or_that_something_is_missing() {
    let mut window = Window::new(LIMITS, 100);
    for offset in 100..110 {
        window.push((offset, offset), document(1, &[1]), 1);
    }
    let key = Key::Document { collection: "page".to_owned(), id: "d1".to_owned() };
    let resumed = |window: &Window, after| {
        let history = window.history(&key, Some(after));
        (offsets(&history), history.gap)
    };
    assert_eq!(resumed(&window, 107), (vec![108, 109], false));
    assert_eq!(resumed(&window, 109), (vec![], false));
    assert!(!resumed(&window, 99).1, "all that came after it is known");
    assert!(resumed(&window, 98).1, "what we have begun behind");
    window.trim(145);
    assert_eq!(resumed(&window, 104), ((105..110).collect(), false));
    assert_eq!(resumed(&window, 103), ((105..110).collect(), true));
    assert!(!window.history(&key, None).gap, "who asks for nothing misses nothing");
}

#[test]
fn a_repeated_answer_is_heard_once_and_lags_are_the_newest() {
    let mut window = Window::new(LIMITS, 0);
    assert!(window.push((0, 0), response(1, 1, None), 1).is_some());
    assert!(window.push((1, 0), response(1, 1, None), 1).is_none());
    assert!(window.push((1, 0), document(1, &[]), 1).is_none(), "an offset is taken in once");
    for ts_ms in 0..1_000 {
        assert!(window.push((2 + ts_ms, 0), hop(7, ts_ms), 1).is_none());
    }
    assert_eq!((window.len(), window.next()), (1, 1_002));
    assert_eq!(window.hops().map(|it| it.ts_ms).collect::<Vec<_>>(), [999]);
    for instance in 0..2_000 {
        window.push((2_000 + i64::try_from(instance).unwrap(), 0), hop(instance, 5_000), 1);
    }
    assert_eq!(window.hops().count(), HOPS_MAX);
}

fn said() -> impl Strategy<Value = Feedback> {
    let session = || proptest::option::of(0u8..3);
    prop_oneof![
        3 => (0u8..4, session()).prop_map(|(k, s)| accepted(k, s)),
        1 => (0u8..4).prop_map(claimed),
        4 => (0u8..3, proptest::collection::vec(0u8..4, 0..3)).prop_map(|(d, k)| document(d, &k)),
        2 => (0u8..9, 0u8..4, session()).prop_map(|(e, k, s)| response(e, k, s)),
        1 => (0usize..3, 0i64..9).prop_map(|(i, ts)| hop(i, ts)),
    ]
}

fn all_keys() -> Vec<Key> {
    let sessions = (0..3).map(session);
    let correlations = (0..4).map(|it| Key::Correlation(format!("k{it}")));
    let documents = (0..3).map(|it| format!("d{it}"));
    let documents = documents.map(|id| Key::Document { collection: "page".to_owned(), id });
    sessions.chain(correlations).chain(documents).collect()
}

proptest! {
    #[test]
    fn it_is_bounded_and_finds_what_looking_at_everything_finds(
        records in proptest::collection::vec((said(), 1usize..60, 0i64..12), 0..80),
        after in 0i64..80,
    ) {
        let mut window = Window::new(LIMITS, 0);
        let mut now = 0;
        for (offset, (it, bytes, passed)) in (0..).zip(records) {
            now += passed;
            window.push((offset, now), it, bytes);
            window.trim(now);
            prop_assert!(window.len() <= LIMITS.records_max && window.bytes <= LIMITS.bytes_max);
            prop_assert_eq!(window.bytes, window.events.iter().map(|it| it.bytes).sum::<usize>());
            prop_assert!(window.events.iter().all(|it| it.at_ms >= now - LIMITS.age_max_ms));
        }
        for key in all_keys() {
            let concerned = window.events.iter().filter(|it| window.keys(&it.feedback).contains(&key));
            let naive: BTreeSet<i64> = concerned.map(|it| it.offset).collect();
            let found = offsets(&window.history(&key, None));
            prop_assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), naive, "{:?}", &key);
            let rest: Vec<i64> = found.into_iter().filter(|it| *it > after).collect();
            let resumed = offsets(&window.history(&key, Some(after)));
            prop_assert!(rest.iter().all(|it| resumed.contains(it)), "{:?}", &key);
        }
        // Nothing is kept of what has fallen out.
        window.trim(i64::MAX);
        prop_assert!(window.is_empty() && window.by_key.is_empty());
        prop_assert!(window.owners.is_empty() && window.owned.is_empty());
        prop_assert!(window.answers.is_empty() && window.bytes == 0);
    }

    /// The listener of this test hears what a gateway tells, and what it has heard is compared with
    /// what became its own as one looks at everything after each record.
    #[test]
    fn who_listens_all_the_time_hears_the_history_and_who_comes_back_misses_nothing(
        records in proptest::collection::vec(said(), 0..60),
    ) {
        let mut window = Window::new(Limits { records_max: 99, bytes_max: 99, age_max_ms: 99 }, 0);
        for listener in all_keys() {
            window = Window::new(window.limits, 0);
            let (mut heard, mut due) = (Vec::new(), Vec::new());
            for (offset, it) in (0..).zip(&records) {
                let Some(event) = window.push((offset, 0), it.clone(), 1) else { continue };
                let (key, brought) = window.brought(&event).unzip();
                let own = brought.into_iter().flatten().filter(|_| key.as_ref() == Some(&listener));
                heard.extend(own.map(|it| it.offset));
                let concerns = |it: &&Arc<Event>| window.keys(&it.feedback).contains(&listener);
                heard.extend(Some(&event).filter(concerns).map(|it| it.offset));
                let now = window.events.iter().filter(concerns).map(|it| it.offset);
                let new: Vec<i64> = now.filter(|it| !due.contains(it)).collect();
                due.extend(new);
            }
            prop_assert_eq!(&heard, &due, "{:?}", &listener);
            prop_assert_eq!(&offsets(&window.history(&listener, None)), &due, "{:?}", &listener);
            // As SSE has it: the last id that was told, wherever the connection ends.
            let (mut last, mut certain) = (None, 0);
            for (nth, offset) in due.iter().enumerate() {
                let event = window.at(*offset).expect("it is there");
                let place = match &listener {
                    Key::Session(it) => window.place(&event, it).expect("it is its own"),
                    Key::Correlation(_) | Key::Document { .. } => *offset,
                };
                if place == *offset {
                    (last, certain) = (Some(*offset), nth + 1);
                }
                let rest = offsets(&window.history(&listener, last));
                prop_assert_eq!(rest, &due[certain..], "{:?} {:?}", &listener, last);
            }
        }
    }
}
