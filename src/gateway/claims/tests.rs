//! Verdicts, as tables of claims in their order in the log.

use super::*;

const MEMORY_MS: i64 = 1_000_000;
const PATIENCE_MS: i64 = 10_000;

fn machine() -> Claims {
    Claims::new(MEMORY_MS, PATIENCE_MS, 100)
}

/// The nth claim of an identity (or none) and a body for document `d`.
fn claim(nth: u128, identity: Option<&str>, body: &str) -> Claim {
    Claim {
        identity: identity.map(|it| Sameness::of(&[it])),
        target: Sameness::of(&["d"]),
        request: Sameness::of(&[body]),
        ids: ids(nth),
    }
}

fn ids(nth: u128) -> Ids {
    Ids {
        command: Uuid::from_u128(nth),
        document_id: "d".to_owned(),
        session_id: None,
        correlation_id: format!("c{nth}"),
    }
}

/// The nth claim wins and is accepted at once.
fn wins(claims: &mut Claims, claim: Claim, at_ms: i64) {
    let ids = claim.ids.clone();
    assert_eq!(claims.claimed(claim, at_ms), Verdict::Produce(ids.clone()));
    claims.accepted(ids.command, at_ms + 1);
}

#[test]
fn the_first_claim_of_an_identity_wins_for_all() {
    let mut claims = machine();
    let first = claims.claimed(claim(1, Some("k"), "A"), 100);
    assert_eq!(first, Verdict::Produce(ids(1)));
    for nth in 2..52 {
        let later = claims.claimed(claim(nth, Some("k"), "A"), 101);
        assert_eq!(later, Verdict::Wait(ids(1), 100 + PATIENCE_MS));
    }
    claims.accepted(ids(1).command, 105);
    claims.accepted(ids(1).command, 999);
    assert_eq!(claims.acceptance(ids(1).command), Some(105));
    assert_eq!(claims.claimed(claim(60, Some("k"), "A"), 110), Verdict::Repeat(ids(1), 105));
    assert_eq!(claims.claimed(claim(61, Some("k"), "B"), 111), Verdict::Conflict);
    assert_eq!(claims.claimed(claim(62, Some("other"), "A"), 112), Verdict::Produce(ids(62)));
}

#[test]
fn without_an_identity_only_the_latest_body_is_a_repeat() {
    let mut claims = machine();
    wins(&mut claims, claim(1, None, "A"), 100);
    assert_eq!(claims.claimed(claim(2, None, "A"), 110), Verdict::Repeat(ids(1), 101));
    wins(&mut claims, claim(3, None, "B"), 120);
    wins(&mut claims, claim(4, None, "A"), 130);
    let elsewhere = Claim { target: Sameness::of(&["other"]), ..claim(5, None, "A") };
    wins(&mut claims, elsewhere, 140);
}

#[test]
fn a_command_with_an_identity_is_the_latest_too() {
    let mut claims = machine();
    wins(&mut claims, claim(1, None, "A"), 100);
    wins(&mut claims, claim(2, Some("k"), "B"), 110);
    // Else the edit back to A would be taken for the first A, and lost.
    wins(&mut claims, claim(3, None, "A"), 120);
    wins(&mut claims, claim(4, Some("l"), "A"), 130);
    assert_eq!(claims.claimed(claim(5, None, "A"), 140), Verdict::Repeat(ids(4), 131));
}

#[test]
fn what_was_never_accepted_is_taken_over_as_the_same_command() {
    for identity in [Some("k"), None] {
        let mut claims = machine();
        assert_eq!(claims.claimed(claim(1, identity, "A"), 100), Verdict::Produce(ids(1)));
        let last = 100 + PATIENCE_MS;
        assert_eq!(claims.claimed(claim(2, identity, "A"), last), Verdict::Wait(ids(1), last));
        assert_eq!(claims.claimed(claim(3, identity, "A"), last + 1), Verdict::Produce(ids(1)));
        // Who takes over has as much time as the first had.
        let again = last + 1 + PATIENCE_MS;
        let fourth = claims.claimed(claim(4, identity, "A"), last + 2);
        assert_eq!(fourth, Verdict::Wait(ids(1), again));
        claims.accepted(ids(1).command, last + 3);
        let fifth = claims.claimed(claim(5, identity, "A"), last + 4);
        assert_eq!(fifth, Verdict::Repeat(ids(1), last + 3));
    }
}

#[test]
fn another_body_never_takes_over_an_identity() {
    let mut claims = machine();
    assert_eq!(claims.claimed(claim(1, Some("k"), "A"), 100), Verdict::Produce(ids(1)));
    let late = 100 + 5 * PATIENCE_MS;
    assert_eq!(claims.claimed(claim(2, Some("k"), "B"), late), Verdict::Conflict);
}

#[test]
fn memory_ends_by_age_and_by_number() {
    let mut claims = machine();
    wins(&mut claims, claim(1, Some("k"), "A"), 100);
    let last = 100 + MEMORY_MS;
    assert_eq!(claims.claimed(claim(2, Some("k"), "A"), last), Verdict::Repeat(ids(1), 101));
    wins(&mut claims, claim(3, Some("k"), "B"), last + 1);
    for nth in 10..200 {
        wins(&mut claims, claim(nth, Some(&nth.to_string()), "A"), last + 2);
    }
    assert_eq!(claims.held.len(), 100);
    let maps = [claims.by_identity.len(), claims.by_command.len(), claims.order.len()];
    assert_eq!(maps, [100; 3], "nothing is left behind");
    assert_eq!(claims.latest.len(), 1);
    wins(&mut claims, claim(300, Some("k"), "C"), last + 3);
}

#[test]
fn only_what_was_accepted_is_known_without_a_claim() {
    let mut claims = machine();
    let (k, a) = (Sameness::of(&["k"]), Sameness::of(&["A"]));
    assert_eq!(claims.known(k, a), None);
    let mut first = claim(1, Some("k"), "A");
    first.request = a;
    claims.claimed(first, 100);
    assert_eq!(claims.known(k, a), None);
    claims.accepted(ids(1).command, 101);
    assert_eq!(claims.known(k, a), Some(Verdict::Repeat(ids(1), 101)));
    assert_eq!(claims.known(k, Sameness::of(&["B"])), Some(Verdict::Conflict));
    claims.accepted(Uuid::from_u128(9), 102 + MEMORY_MS);
    assert_eq!(claims.known(k, a), None, "too old by the log's time");
}

#[test]
fn a_clock_that_goes_back_prolongs_nothing() {
    let mut claims = machine();
    assert_eq!(claims.claimed(claim(1, Some("k"), "A"), 50_000), Verdict::Produce(ids(1)));
    let given_up = 50_000 + PATIENCE_MS;
    assert_eq!(claims.claimed(claim(2, Some("k"), "A"), 10), Verdict::Wait(ids(1), given_up));
}

#[test]
fn sameness_is_written_and_read_and_has_no_seams() {
    let some = Sameness::of(&["a", "bc"]);
    assert_ne!(some, Sameness::of(&["ab", "c"]));
    assert_ne!(some, Sameness::of(&["abc"]));
    assert_eq!(Sameness::parse(&some.to_string()), Some(some));
    assert_eq!(some.to_string().len(), 64);
    for wrong in ["", "0", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65)] {
        assert_eq!(Sameness::parse(wrong), None, "{wrong}");
    }
}
