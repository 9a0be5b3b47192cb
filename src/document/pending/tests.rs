//! Laws of [`Pending`], against a model that keeps a plain list of demands.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn key(of: u8) -> DocumentKey {
    DocumentKey(of.to_string())
}

fn cause(xid: u64) -> Cause {
    Cause { timeline: 1, xid }
}

fn keys(batch: &[Taken]) -> Vec<String> {
    batch.iter().map(|it| it.key.0.clone()).collect()
}

#[test]
fn demands_of_a_key_in_flight_come_up_again() {
    let now = Instant::now();
    let mut pending = Pending::default();
    pending.demand(0, key(1), Some(cause(7)), Some(100));
    pending.demand(0, key(1), Some(cause(5)), Some(101));
    let taken = pending.take_batch(0, Lane::Fresh, 9, now);
    assert_eq!(taken, [Taken { key: key(1), causes: vec![cause(5), cause(7)] }]);
    pending.demand(0, key(1), Some(cause(9)), Some(102));
    assert_eq!(pending.take_batch(0, Lane::Fresh, 9, now), [], "one read of a key is in flight");
    assert_eq!(pending.finish(0, &key(1)), [100, 101]);
    let taken = pending.take_batch(0, Lane::Fresh, 9, now);
    assert_eq!(taken, [Taken { key: key(1), causes: vec![cause(9)] }]);
    assert_eq!(pending.finish(0, &key(1)), [102]);
    assert_eq!((pending.len(), pending.load()), (0, 0));
}

#[test]
fn a_ticket_is_released_by_the_last_of_its_keys() {
    let now = Instant::now();
    let mut pending = Pending::default();
    pending.open(100);
    pending.demand(0, key(1), None, Some(100));
    pending.take_batch(0, Lane::Fresh, 9, now);
    assert_eq!(pending.finish(0, &key(1)), [0u64; 0], "more demands may come");
    pending.demand(1, key(1), None, Some(100));
    assert!(!pending.close(100));
    pending.take_batch(1, Lane::Fresh, 9, now);
    assert_eq!(pending.finish(1, &key(1)), [100]);
    pending.open(101);
    assert!(pending.close(101), "a record that touches no key");
}

#[test]
fn parked_keys_come_back_at_their_time_and_the_oldest_collection_is_next() {
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    let mut pending = Pending::default();
    pending.demand(0, key(1), Some(cause(7)), None);
    pending.demand(1, key(2), None, None);
    pending.demand(0, key(3), None, None);
    assert_eq!(pending.next(Lane::Fresh, now), Some(0));
    assert_eq!(keys(&pending.take_batch(0, Lane::Fresh, 1, now)), ["1"]);
    assert_eq!(pending.next(Lane::Fresh, now), Some(1));
    pending.park(0, &key(1), later);
    pending.demand(0, key(1), Some(cause(8)), None);
    assert_eq!((pending.parked(), pending.next_wake()), (1, Some(later)));
    assert_eq!(pending.next(Lane::Fresh, now), Some(1), "parked keys are not ready");
    assert_eq!(pending.next(Lane::Fresh, later), Some(0), "but keep their age");
    let both = pending.take_batch(0, Lane::Fresh, 9, later);
    assert_eq!(keys(&both), ["1", "3"]);
    assert_eq!(both[0].causes, [cause(7), cause(8)]);
}

#[test]
fn a_removed_collection_releases_its_tickets() {
    let now = Instant::now();
    let mut pending = Pending::default();
    pending.demand(0, key(1), Some(cause(1)), Some(100));
    pending.take_batch(0, Lane::Fresh, 9, now);
    pending.demand(0, key(1), None, Some(101));
    pending.demand(1, key(1), None, Some(101));
    assert_eq!(pending.remove(0), [100]);
    assert_eq!(pending.finish(0, &key(1)), [0u64; 0]);
    pending.take_batch(1, Lane::Fresh, 9, now);
    assert_eq!(pending.finish(1, &key(1)), [101]);
    assert_eq!(pending.load(), 0);
}

#[test]
fn a_key_waits_once_and_in_the_faster_lane() {
    let now = Instant::now();
    let mut pending = Pending::default();
    for of in 0..3 {
        pending.demand_low(0, key(of), 100);
    }
    assert_eq!((pending.low(), pending.next(Lane::Fresh, now)), (3, None));
    pending.demand(0, key(2), Some(cause(7)), Some(101));
    pending.demand_low(0, key(2), 102);
    assert_eq!((pending.low(), pending.len()), (2, 3));
    let fresh = pending.take_batch(0, Lane::Fresh, 9, now);
    assert_eq!(fresh, [Taken { key: key(2), causes: vec![cause(7)] }]);
    pending.park_slow(0, &key(2), now);
    pending.demand(0, key(2), None, Some(103));
    assert_eq!(pending.next(Lane::Fresh, now), None, "what is slow is read alone");
    assert_eq!(keys(&pending.take_batch(0, Lane::Low, 9, now)), ["0", "1"]);
    assert_eq!(keys(&pending.take_batch(0, Lane::Slow, 9, now)), ["2"]);
    assert_eq!(pending.finish(0, &key(2)), [101, 102, 103]);
    assert_eq!(pending.finish(0, &key(0)), [0u64; 0]);
    assert_eq!(pending.finish(0, &key(1)), [100]);
}

#[derive(Debug, Clone)]
enum Act {
    Demand { build: usize, key: u8, xid: u64, ticket: u64 },
    DemandLow { build: usize, key: u8, ticket: u64 },
    Take { build: usize, lane: Lane, max: usize },
    Finish { which: usize },
    Park { which: usize, slow: bool, for_ms: u64 },
    Wait { ms: u64 },
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (0usize..2, 0u8..4, 1u64..9, 0u64..12)
            .prop_map(|(build, key, xid, ticket)| Act::Demand { build, key, xid, ticket }),
        2 => (0usize..2, 0u8..4, 0u64..12)
            .prop_map(|(build, key, ticket)| Act::DemandLow { build, key, ticket }),
        3 => (0usize..2, 0usize..3, 1usize..4)
            .prop_map(|(build, lane, max)| Act::Take { build, lane: LANES[lane], max }),
        3 => (0usize..64).prop_map(|which| Act::Finish { which }),
        2 => (0usize..64, any::<bool>(), 0u64..9)
            .prop_map(|(which, slow, for_ms)| Act::Park { which, slow, for_ms }),
        1 => (1u64..9).prop_map(|ms| Act::Wait { ms }),
    ];
    proptest::collection::vec(act, 0..120)
}

/// One demand of the model, and whether a read that may serve it is in flight.
#[derive(Debug, Clone, PartialEq)]
struct Asked {
    build: usize,
    key: DocumentKey,
    /// None: in the low lane.
    cause: Option<Cause>,
    ticket: u64,
    taken: bool,
}

const LANES: [Lane; 3] = [Lane::Fresh, Lane::Low, Lane::Slow];

#[derive(Default)]
struct Model {
    asked: Vec<Asked>,
    in_flight: Vec<(usize, DocumentKey)>,
}

impl Model {
    /// What a batch took: each key once, none of them in flight, with every cause it waits for,
    /// and in the low lane only if nobody wants it sooner.
    fn take(&mut self, build: usize, lane: Lane, batch: &[Taken]) {
        for taken in batch {
            let id = (build, taken.key.clone());
            assert!(!self.in_flight.contains(&id), "in flight twice: {id:?}");
            self.in_flight.push(id);
            let mut causes = BTreeSet::new();
            let mut asking = 0;
            let of = |it: &&mut Asked| it.build == build && it.key == taken.key;
            for asked in self.asked.iter_mut().filter(of) {
                causes.extend(asked.cause);
                asked.taken = true;
                asking += 1;
            }
            assert!(asking > 0, "taken for nobody");
            assert!(lane != Lane::Low || causes.is_empty(), "a fresh demand waits in the low lane");
            assert_eq!(taken.causes, causes.into_iter().collect::<Vec<_>>());
        }
    }

    /// The tickets that finishing releases: those that no other demand has.
    fn finish(&mut self, which: usize) -> (usize, DocumentKey, Vec<u64>) {
        let (build, key) = self.in_flight.remove(which % self.in_flight.len());
        let (served, rest): (Vec<Asked>, Vec<Asked>) = std::mem::take(&mut self.asked)
            .into_iter()
            .partition(|it| it.build == build && it.key == key && it.taken);
        self.asked = rest;
        let mut released: Vec<u64> = served.iter().map(|it| it.ticket).collect();
        released.sort_unstable();
        released.dedup();
        released.retain(|it| self.asked.iter().all(|asked| asked.ticket != *it));
        (build, key, released)
    }

    fn park(&mut self, which: usize) -> (usize, DocumentKey) {
        let (build, key) = self.in_flight.remove(which % self.in_flight.len());
        for asked in self.asked.iter_mut().filter(|it| it.build == build && it.key == key) {
            asked.taken = false;
        }
        (build, key)
    }
}

proptest! {
    #[test]
    fn no_demand_is_lost_and_no_ticket_released_early(acts in acts()) {
        let mut now = Instant::now();
        let mut pending = Pending::default();
        let mut model = Model::default();
        for act in acts {
            match act {
                Act::Demand { build, key: of, xid, ticket } => {
                    let (key, cause) = (key(of), cause(xid));
                    pending.demand(build, key.clone(), Some(cause), Some(ticket));
                    model.asked.push(Asked { build, key, cause: Some(cause), ticket, taken: false });
                }
                Act::DemandLow { build, key: of, ticket } => {
                    let key = key(of);
                    pending.demand_low(build, key.clone(), ticket);
                    model.asked.push(Asked { build, key, cause: None, ticket, taken: false });
                }
                Act::Take { build, lane, max } => {
                    let batch = pending.take_batch(build, lane, max, now);
                    prop_assert!(batch.len() <= max);
                    model.take(build, lane, &batch);
                }
                Act::Finish { which } if !model.in_flight.is_empty() => {
                    let (build, key, released) = model.finish(which);
                    prop_assert_eq!(pending.finish(build, &key), released);
                }
                Act::Park { which, slow, for_ms } if !model.in_flight.is_empty() => {
                    let (build, key) = model.park(which);
                    let until = now + Duration::from_millis(for_ms);
                    match slow {
                        true => pending.park_slow(build, &key, until),
                        false => pending.park(build, &key, until),
                    }
                }
                Act::Wait { ms } => now += Duration::from_millis(ms),
                Act::Finish { .. } | Act::Park { .. } => {}
            }
            let waiting: BTreeSet<_> = model.asked.iter().map(|it| (it.build, &it.key)).collect();
            prop_assert_eq!(pending.len(), waiting.len());
        }
        // Whatever state it was left in, all that is asked comes up and is released.
        now += Duration::from_secs(1);
        while !model.asked.is_empty() {
            while !model.in_flight.is_empty() {
                let (build, key, released) = model.finish(0);
                prop_assert_eq!(pending.finish(build, &key), released);
            }
            let ready = LANES.iter().find_map(|it| Some((*it, pending.next(*it, now)?)));
            if let Some((lane, build)) = ready {
                let batch = pending.take_batch(build, lane, 3, now);
                prop_assert!(!batch.is_empty());
                model.take(build, lane, &batch);
            } else {
                prop_assert!(model.asked.is_empty(), "lost: {:?}", model.asked);
            }
        }
        prop_assert_eq!((pending.len(), pending.load(), pending.low()), (0, 0, 0));
        prop_assert!(LANES.iter().all(|it| pending.next(*it, now).is_none()));
    }
}
