//! What decides on the next read besides what is pending: which lane has what in flight, and how
//! much of the servers a large fan-out may have. Pure.
//!
//! Lanes have connections of their own, but meet again in the servers: Elasticsearch, say, holds up
//! all writes of an index while it makes the last second's searchable, for the longer the more they
//! are. How much of a fan-out is too much depends on the servers, so it is measured: the low lane
//! rests after each batch, so long that about one of a hundred fresh batches is much slower than
//! those without a fan-out were.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::document::DocumentKey;
use crate::document::pending::{BuildId, Lane};

/// How often a key is read alone, and takes too long, before it goes to the dead letters: a busy
/// moment of the server passes meanwhile.
pub const SLOW_TRIES: u32 = 3;
/// Reads of single keys of one build that took too long, with none between that did not: that is
/// the mapping's fault and no key's. It stops the offsets for some minutes at most.
const SLOW_IN_A_ROW_MAX: u32 = 8 * SLOW_TRIES;

/// Batches of fresh keys that start as soon as there is a key: one is read while one is written.
const AT_ONCE: usize = 2;
/// Fresh keys that must wait for each further batch: each read and each bulk request costs the
/// servers as much as a dozen keys do, so under load fewer and larger batches are sooner done.
const KEYS_EACH: usize = 8;
/// Longest that fresh keys are held back to gather, when what is in flight takes longer.
const GATHER_MAX: Duration = Duration::from_millis(5);

/// More fresh keys are to be expected for so long after some.
const FRESH_LATELY: Duration = Duration::from_secs(1);
/// Keys of a batch of the low lane meanwhile: some ten milliseconds' work for a server.
const LOW_KEYS_BESIDE: usize = 100;

#[derive(Debug, Default)]
pub struct Paces {
    /// Batches being read or written, beside those of the fresh lane.
    low: usize,
    slow: usize,
    /// The lane whose batch was started last.
    last: Option<Lane>,
    /// When the last fresh batch was started.
    fresh: Option<Instant>,
    /// Since when fresh keys are held back to gather.
    gathering: Option<Instant>,
    restraint: Restraint,
    /// A page of a walk is being read.
    pub walking: bool,
    /// How often a key was read alone and took too long.
    slow_tries: HashMap<(BuildId, DocumentKey), u32>,
    /// The same of a whole build, in a row.
    slow_in_a_row: HashMap<BuildId, u32>,
    /// Keys that one read of a build may ask for, after larger ones took too long.
    batch_max: HashMap<BuildId, usize>,
}

impl Paces {
    pub fn forget(&mut self, build: BuildId) {
        self.slow_tries.retain(|(id, _), _| *id != build);
        self.slow_in_a_row.remove(&build);
        self.batch_max.remove(&build);
    }

    pub fn started(&mut self, lane: Lane, now: Instant) {
        self.last = Some(lane);
        match lane {
            Lane::Fresh => self.fresh = Some(now),
            Lane::Low => self.low += 1,
            Lane::Slow => self.slow += 1,
        }
    }

    pub fn ended(&mut self, lane: Lane, took: Duration, now: Instant) {
        match lane {
            Lane::Fresh if self.low > 0 => self.restraint.fresh_beside(took),
            Lane::Fresh => self.restraint.fresh(took, now),
            Lane::Low => {
                self.low -= 1;
                let beside = self.is_beside_fresh(now);
                self.restraint.low_ended(beside.then_some(took), now);
            }
            Lane::Slow => self.slow -= 1,
        }
    }

    /// The lanes to take a batch from, the first that has one.
    ///
    /// A lane that has nothing in flight comes first, unless it was the last one: so each gets on,
    /// also when there is one place in all, and fresh keys have all the other places. The low lane
    /// may take half of the connections, so that a fresh key finds one that is free, and one while
    /// there are fresh keys.
    pub fn order(
        &mut self,
        connections: usize,
        now: Instant,
    ) -> impl Iterator<Item = Lane> + use<> {
        let first = |lane, count| (count == 0 && self.last != Some(lane)).then_some(lane);
        let low_max = if self.is_beside_fresh(now) { 1 } else { (connections / 2).max(1) };
        let low = (self.low < low_max).then_some(Lane::Low);
        let slow = (self.slow == 0).then_some(Lane::Slow);
        let order = [
            first(Lane::Low, self.low),
            first(Lane::Slow, self.slow),
            Some(Lane::Fresh),
            low,
            slow,
        ];
        let rests = self.restraint.rests(now);
        order.into_iter().flatten().filter(move |it| *it != Lane::Low || !rests)
    }

    fn is_beside_fresh(&self, now: Instant) -> bool {
        self.fresh.is_some_and(|it| now < it + FRESH_LATELY)
    }

    /// Keys of the next batch. `ceiling`: what one read may ask for.
    pub fn batch_max(&self, build: BuildId, (lane, ceiling): (Lane, usize), now: Instant) -> usize {
        let max = self.batch_max.get(&build).map_or(ceiling, |it| ceiling.min(*it));
        match lane {
            Lane::Slow => 1,
            Lane::Low if self.is_beside_fresh(now) => max.min(LOW_KEYS_BESIDE),
            Lane::Low | Lane::Fresh => max,
        }
    }

    /// Whether fresh keys wait a little for more of them to come. `refreshing`: batches of all
    /// lanes. `ready` says whether there are so many fresh keys.
    pub fn gathers(
        &mut self,
        refreshing: usize,
        now: Instant,
        ready: impl Fn(usize) -> bool,
    ) -> bool {
        let in_flight = refreshing - self.low - self.slow;
        let wanted = KEYS_EACH * (in_flight + 1).saturating_sub(AT_ONCE);
        if !ready(1) || ready(wanted) {
            self.gathering = None;
            return false;
        }
        let since = *self.gathering.get_or_insert(now);
        let gathers = now < since + GATHER_MAX;
        if !gathers {
            self.gathering = None;
        }
        gathers
    }

    /// When fresh keys have gathered long enough, or the low lane, if it has any keys, has rested.
    pub fn next_wake(&self, has_low: bool) -> Option<Instant> {
        let gathered = self.gathering.map(|it| it + GATHER_MAX);
        let rested = self.restraint.until.filter(|_| has_low);
        [gathered, rested].into_iter().flatten().min()
    }

    pub fn slow_tries(&self, place: &(BuildId, DocumentKey)) -> u32 {
        self.slow_tries.get(place).copied().unwrap_or(0)
    }

    /// A key was read alone, and it took too long.
    pub fn too_slow(&mut self, place: (BuildId, DocumentKey)) {
        *self.slow_tries.entry(place).or_insert(0) += 1;
    }

    pub fn answered(&mut self, place: &(BuildId, DocumentKey)) {
        self.slow_tries.remove(place);
    }

    /// A read of so many keys was too slow, or was not: the next one asks for fewer, or more.
    pub fn adapt(&mut self, build: BuildId, asked: usize, slow: bool) {
        if slow {
            self.batch_max.insert(build, (asked / 4).max(1));
        } else if let Some(max) = self.batch_max.get_mut(&build) {
            *max = max.saturating_mul(2);
        }
    }

    /// Whether no key of the build can be read in time, it seems.
    pub fn is_hopeless(&mut self, build: BuildId, asked: usize, slow: bool) -> bool {
        if !slow {
            self.slow_in_a_row.remove(&build);
        } else if asked == 1 {
            let count = self.slow_in_a_row.entry(build).or_insert(0);
            *count += 1;
            return *count == SLOW_IN_A_ROW_MAX;
        }
        false
    }
}

/// A fresh batch that takes less is never too slow: what somebody waits for takes some ten
/// milliseconds more anyway, in capture and Kafka.
const HELD_UP_MIN: Duration = Duration::from_millis(50);
/// One that takes so many times as long as without a fan-out is.
const HELD_UP_TIMES: u32 = 4;
/// What the share grows by with each fresh batch that was held up: it doubles with four.
const GROWS: f64 = 1.19;
/// What it shrinks by with each that was not: a hundredth part of that.
const SHRINKS: f64 = 0.99826;
/// What a fan-out begins with: carefully, since what is held up at first was held up.
const SHARE_FIRST: f64 = 4.0;
/// Some time is always left to others.
const SHARE_MIN: f64 = 0.25;
/// At most so many times as long as its batches take the low lane rests, or a fan-out would take
/// for ever where something else is what holds up all.
const SHARE_MAX: f64 = 8.0;
/// Longest rest: a batch may have met an outage.
const REST_MAX: Duration = Duration::from_secs(1);

/// How long the low lane rests between two batches.
#[derive(Debug)]
struct Restraint {
    /// How long a fresh batch takes without a fan-out, smoothed.
    usual: Option<Duration>,
    /// The rest after a batch, in times of what the batch took.
    share: f64,
    /// When the last batch of the low lane ended.
    low: Option<Instant>,
    until: Option<Instant>,
}

impl Default for Restraint {
    fn default() -> Self {
        Self { usual: None, share: SHARE_FIRST, low: None, until: None }
    }
}

impl Restraint {
    /// A fresh batch has ended, and no batch of the low lane is in flight.
    fn fresh(&mut self, took: Duration, now: Instant) {
        if self.low.is_some_and(|it| now < it + FRESH_LATELY) {
            return self.fresh_beside(took);
        }
        self.usual = Some(self.usual.map_or(took, |it| (it * 15 + took) / 16));
    }

    /// The same beside a batch of the low lane.
    fn fresh_beside(&mut self, took: Duration) {
        let usual = self.usual.unwrap_or_default();
        let held_up = (usual * HELD_UP_TIMES).max(HELD_UP_MIN) < took;
        self.share *= if held_up { GROWS } else { SHRINKS };
        self.share = self.share.clamp(SHARE_MIN, SHARE_MAX);
    }

    /// A batch of the low lane has ended; `took`: if there are fresh keys besides.
    fn low_ended(&mut self, took: Option<Duration>, now: Instant) {
        self.low = Some(now);
        self.until = took.map(|it| now + it.mul_f64(self.share).min(REST_MAX));
    }

    fn rests(&mut self, now: Instant) -> bool {
        // Forgotten once it is over, for what has passed must wake nobody.
        self.until = self.until.filter(|it| now < *it);
        self.until.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_key_is_read_at_once_until_batches_are_in_flight_and_then_keys_gather() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        let with = |have: usize| move |count: usize| have >= count;
        for (in_flight, ready, gathers) in
            [(0, 1, false), (1, 1, false), (2, 1, true), (2, 7, true), (2, 8, false), (3, 8, true)]
        {
            paces.gathering = None;
            assert_eq!(paces.gathers(in_flight, now, with(ready)), gathers, "{in_flight} {ready}");
        }
    }

    #[test]
    fn keys_gather_for_a_bounded_time() {
        let (mut paces, start) = (Paces::default(), Instant::now());
        let one = |count: usize| count <= 1;
        assert!(paces.gathers(5, start, one));
        assert!(paces.gathers(5, start + GATHER_MAX / 2, one));
        assert!(!paces.gathers(5, start + GATHER_MAX, one), "what is in flight hangs");
        assert!(paces.gathers(6, start + GATHER_MAX, one), "and the next one waits anew");
        assert!(!paces.gathers(5, start + GATHER_MAX, |_| false), "nothing is ready");
        assert!(paces.gathering.is_none());
    }

    fn has_low(paces: &mut Paces, now: Instant) -> bool {
        paces.order(8, now).any(|it| it == Lane::Low)
    }

    #[test]
    fn a_large_fan_out_has_one_batch_at_a_time_while_fresh_keys_come() {
        let (mut paces, start) = (Paces::default(), Instant::now());
        paces.started(Lane::Low, start);
        assert!(has_low(&mut paces, start), "nobody else wants anything");
        paces.started(Lane::Fresh, start);
        assert!(!has_low(&mut paces, start));
        assert!(has_low(&mut paces, start + FRESH_LATELY), "none has come for a while");
        paces.ended(Lane::Low, MS, start);
        assert!(has_low(&mut paces, start + 5 * MS), "it is never starved");
    }

    #[test]
    fn a_fan_out_that_holds_up_fresh_keys_rests_between_its_batches_and_recovers() {
        let (mut paces, mut now) = (Paces::default(), Instant::now());
        // Rests after a batch of 10 ms beside fresh ones that took as long as given.
        let mut rest = |times, fresh: Duration| {
            now += 100 * MS;
            paces.started(Lane::Low, now);
            paces.started(Lane::Fresh, now);
            (0..times).for_each(|_| paces.ended(Lane::Fresh, fresh, now));
            paces.ended(Lane::Low, 10 * MS, now);
            assert_eq!(paces.next_wake(false), None, "nobody waits for it");
            let until = paces.next_wake(true).expect("it rests");
            assert!(!has_low(&mut paces, now) && has_low(&mut paces, until));
            assert_eq!(paces.next_wake(true), None);
            (until - now).as_secs_f64() * 1e3
        };
        for (times, fresh, wanted) in [
            (0, HELD_UP_MIN, 40.0),
            (400, HELD_UP_MIN, 20.0),
            (400, HELD_UP_MIN, 10.0),
            (4, HELD_UP_MIN + MS, 20.0),
            (100, HELD_UP_MIN + MS, 80.0),
            (400, HELD_UP_MIN, 40.0),
            (9_000, HELD_UP_MIN, 2.5),
        ] {
            let found = rest(times, fresh);
            assert!((found / wanted - 1.0).abs() < 0.01, "{times} of {fresh:?}: {found} ms");
        }
    }

    #[test]
    fn no_rest_is_longer_than_its_limit() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        paces.started(Lane::Low, now);
        paces.started(Lane::Fresh, now);
        paces.ended(Lane::Low, 5_000 * MS, now);
        assert_eq!(paces.next_wake(true), Some(now + REST_MAX));
    }

    #[test]
    fn where_fresh_keys_are_slow_anyway_no_fan_out_is_blamed() {
        let (mut paces, start) = (Paces::default(), Instant::now());
        let quiet = start + FRESH_LATELY;
        paces.ended(Lane::Fresh, 200 * MS, start);
        paces.started(Lane::Low, start);
        paces.ended(Lane::Fresh, 800 * MS, start);
        assert!(paces.restraint.share < SHARE_FIRST);
        paces.ended(Lane::Low, 10 * MS, start);
        paces.ended(Lane::Fresh, 4_000 * MS, quiet);
        assert!(paces.restraint.share < SHARE_FIRST, "no fan-out was near");
    }
}
