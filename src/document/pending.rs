//! Keys that wait to be read again, and what each read must see. Pure: time is passed in.
//!
//! A *demand* says: read this key again, in a snapshot that sees this cause, and release this
//! ticket once the result is written. Demands for one key are merged, so that a hot key costs one
//! read however often it changes. At most one read of a key is in flight: Elasticsearch forgets a
//! deleted document's version at a restart, so two writes of one `_id` must not race within a
//! process (B16).
//!
//! A collection's keys wait in three lanes, so that a change that touches a million documents does
//! not delay one that touches a single one. A key waits once: wanted in two lanes, it is in the
//! faster one. Which lane is next is the caller's decision.
//!
//! Nothing here limits itself: whoever demands looks at [`Pending::load`] and pauses. Each ticket
//! and each cause stands for a record that was received and is not done, so that pausing the
//! consumer bounds them. Causes are never collapsed: to see the highest transaction id is not to
//! see the others.
//!
//! Invariants: every demand is handed out by a `take_batch` after it; a ticket is released only by
//! a `finish` of every key it was demanded for, each taken after its demand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use crate::document::DocumentKey;
use crate::snapshot::Cause;

/// Which collection's build: a number that the stage gives out.
pub type BuildId = usize;

/// A key taken for a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub key: DocumentKey,
    /// All of these the read's snapshot must see; no repeats.
    pub causes: Vec<Cause>,
}

/// Which of the waiting keys are read together, and before others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Changes that touch few documents.
    Fresh,
    /// Keys of a large fan-out.
    Low,
    /// Keys whose read took too long beside others: read alone, so as to harm no others.
    Slow,
}

/// What must be seen and released, of one read.
#[derive(Debug, Default)]
struct Demand {
    causes: BTreeSet<Cause>,
    /// Without repeats: a ticket counts once for each key that waits.
    tickets: BTreeSet<u64>,
}

impl Demand {
    fn len(&self) -> usize {
        self.causes.len() + self.tickets.len()
    }
}

/// Where a key stands.
#[derive(Debug)]
enum Place {
    Ready,
    Parked,
    InFlight { taken: Demand, lane: Lane, again: bool },
}

#[derive(Debug)]
struct Waiting {
    /// When it was first demanded, as a count: the age that fairness goes by.
    since: u64,
    /// Where it waits, or will wait when it is in flight or parked.
    lane: Lane,
    place: Place,
    /// What is not yet in flight.
    demand: Demand,
}

/// One collection's keys.
#[derive(Debug, Default)]
struct Keys {
    keys: HashMap<DocumentKey, Waiting>,
    ready: BTreeMap<(Lane, u64), DocumentKey>,
    parked: BTreeMap<(Instant, u64), DocumentKey>,
    /// How many of the ready keys are in the low lane.
    low: usize,
}

impl Keys {
    /// Parked keys whose time has come are ready again, at their old age.
    fn wake(&mut self, now: Instant) {
        while let Some(first) = self.parked.first_entry() {
            if first.key().0 > now {
                return;
            }
            let ((_, since), key) = first.remove_entry();
            let waiting = self.keys.get_mut(&key).expect("a parked key waits");
            waiting.place = Place::Ready;
            let lane = waiting.lane;
            self.enqueue((lane, since), key);
        }
    }

    fn enqueue(&mut self, at: (Lane, u64), key: DocumentKey) {
        self.low += usize::from(at.0 == Lane::Low);
        self.ready.insert(at, key);
    }

    fn dequeue(&mut self, at: (Lane, u64)) -> DocumentKey {
        self.low -= usize::from(at.0 == Lane::Low);
        self.ready.remove(&at).expect("a ready key is queued")
    }

    /// The age of the lane's oldest ready key.
    fn oldest(&self, lane: Lane) -> Option<u64> {
        self.ready.range((lane, 0)..=(lane, u64::MAX)).next().map(|((_, since), _)| *since)
    }

    /// A key is wanted, in this lane or a faster one.
    fn want(&mut self, key: DocumentKey, lane: Lane, since: u64) -> &mut Waiting {
        if !self.keys.contains_key(&key) {
            let demand = Demand::default();
            self.keys.insert(key.clone(), Waiting { since, lane, place: Place::Ready, demand });
            self.enqueue((lane, since), key.clone());
        }
        let waiting = self.keys.get_mut(&key).expect("it is there now");
        let (was, age) = (waiting.lane, waiting.since);
        match &mut waiting.place {
            Place::InFlight { again, .. } if !*again => {
                *again = true;
                waiting.since = since;
                waiting.lane = lane;
            }
            // A key that is slow stays so until it has been read.
            _ if was == Lane::Slow => {}
            Place::Ready if lane < was => {
                waiting.lane = lane;
                let key = self.dequeue((was, age));
                self.enqueue((lane, age), key);
            }
            _ => waiting.lane = was.min(lane),
        }
        self.keys.get_mut(&key).expect("it is there")
    }
}

/// A key that was in flight.
struct Landed {
    taken: Demand,
    lane: Lane,
    again: bool,
}

/// The keys of all collections.
#[derive(Debug, Default)]
pub struct Pending {
    collections: BTreeMap<BuildId, Keys>,
    /// For how many keys, and holders of [`Pending::open`], a ticket is still needed.
    tickets: HashMap<u64, usize>,
    next_since: u64,
    load: usize,
}

impl Pending {
    /// Keeps a ticket from being released while its demands are still being found.
    pub fn open(&mut self, ticket: u64) {
        *self.tickets.entry(ticket).or_default() += 1;
    }

    /// Ends an `open`. True: nobody waits for the ticket, it is released.
    pub fn close(&mut self, ticket: u64) -> bool {
        let Some(count) = self.tickets.get_mut(&ticket) else { return false };
        *count -= 1;
        let released = *count == 0;
        if released {
            self.tickets.remove(&ticket);
        }
        released
    }

    /// Asks for the key to be read in a snapshot that sees `cause`, and then for `ticket`.
    pub fn demand(
        &mut self,
        build: BuildId,
        key: DocumentKey,
        cause: Option<Cause>,
        ticket: Option<u64>,
    ) {
        self.want((build, Lane::Fresh), key, cause, ticket);
    }

    /// As [`Pending::demand`], for one of very many keys: fresh ones are read before. In a later
    /// snapshot than the one that found it, so that there is no cause to be seen.
    pub fn demand_low(&mut self, build: BuildId, key: DocumentKey, ticket: u64) {
        self.want((build, Lane::Low), key, None, Some(ticket));
    }

    fn want(
        &mut self,
        (build, lane): (BuildId, Lane),
        key: DocumentKey,
        cause: Option<Cause>,
        ticket: Option<u64>,
    ) {
        let since = self.next_since;
        self.next_since += 1;
        let waiting = self.collections.entry(build).or_default().want(key, lane, since);
        self.load -= waiting.demand.len();
        waiting.demand.causes.extend(cause);
        if let Some(ticket) = ticket
            && waiting.demand.tickets.insert(ticket)
        {
            *self.tickets.entry(ticket).or_default() += 1;
        }
        self.load += waiting.demand.len();
    }

    /// The collection whose oldest ready key in the lane is the oldest of all. None: nothing is
    /// ready there.
    pub fn next(&mut self, lane: Lane, now: Instant) -> Option<BuildId> {
        let oldest = |(build, keys): (&BuildId, &mut Keys)| {
            keys.wake(now);
            keys.oldest(lane).map(|since| (since, *build))
        };
        self.collections.iter_mut().filter_map(oldest).min().map(|(_, build)| build)
    }

    /// Takes up to `max` of the collection's ready keys in the lane, oldest first. They are in
    /// flight until [`Pending::finish`] or [`Pending::park`].
    pub fn take_batch(
        &mut self,
        build: BuildId,
        lane: Lane,
        max: usize,
        now: Instant,
    ) -> Vec<Taken> {
        let Some(keys) = self.collections.get_mut(&build) else { return Vec::new() };
        keys.wake(now);
        let mut batch = Vec::new();
        while batch.len() < max
            && let Some(since) = keys.oldest(lane)
        {
            let key = keys.dequeue((lane, since));
            let waiting = keys.keys.get_mut(&key).expect("a ready key waits");
            let taken = std::mem::take(&mut waiting.demand);
            let causes = taken.causes.iter().copied().collect();
            waiting.place = Place::InFlight { taken, lane, again: false };
            batch.push(Taken { key, causes });
        }
        batch
    }

    /// The key's result is written, or in the dead letters: returns the tickets that nobody waits
    /// for any more. What was demanded since the key was taken is ready now.
    ///
    /// A key that is not in flight (its collection was removed) is nobody's.
    pub fn finish(&mut self, build: BuildId, key: &DocumentKey) -> Vec<u64> {
        let Some(Landed { taken, again, .. }) = self.land(build, key) else { return Vec::new() };
        self.load -= taken.len();
        let keys = self.collections.get_mut(&build).expect("it was in flight there");
        if again {
            let waiting = keys.keys.get_mut(key).expect("it was in flight");
            waiting.place = Place::Ready;
            let at = (waiting.lane, waiting.since);
            keys.enqueue(at, key.clone());
        } else {
            keys.keys.remove(key);
        }
        self.close_all(taken.tickets)
    }

    /// The tickets of what a key in flight was taken for, ascending.
    pub fn tickets_in_flight(
        &self,
        build: BuildId,
        key: &DocumentKey,
    ) -> impl DoubleEndedIterator<Item = u64> {
        let waiting = self.collections.get(&build).and_then(|it| it.keys.get(key));
        let taken = waiting.and_then(|it| match &it.place {
            Place::InFlight { taken, .. } => Some(&taken.tickets),
            Place::Ready | Place::Parked => None,
        });
        taken.into_iter().flatten().copied()
    }

    /// The read did not serve: the key is to be read again once `until` has passed, for what it
    /// was taken for and what was demanded since.
    pub fn park(&mut self, build: BuildId, key: &DocumentKey, until: Instant) {
        self.put_back(build, key, until, None);
    }

    /// As [`Pending::park`], and then the key is to be read alone: its read took too long.
    pub fn park_slow(&mut self, build: BuildId, key: &DocumentKey, until: Instant) {
        self.put_back(build, key, until, Some(Lane::Slow));
    }

    fn put_back(&mut self, build: BuildId, key: &DocumentKey, until: Instant, to: Option<Lane>) {
        let Some(Landed { taken, lane, again }) = self.land(build, key) else { return };
        let keys = self.collections.get_mut(&build).expect("it was in flight there");
        let waiting = keys.keys.get_mut(key).expect("it was in flight");
        waiting.lane = match to {
            Some(to) => to,
            None if again && lane != Lane::Slow => lane.min(waiting.lane),
            None => lane,
        };
        self.load -= taken.len() + waiting.demand.len();
        // A ticket that both want counted twice: one key waits for it now.
        for ticket in taken.tickets.intersection(&waiting.demand.tickets) {
            *self.tickets.get_mut(ticket).expect("it is waited for") -= 1;
        }
        waiting.demand.causes.extend(taken.causes);
        waiting.demand.tickets.extend(taken.tickets);
        self.load += waiting.demand.len();
        waiting.place = Place::Parked;
        keys.parked.insert((until, waiting.since), key.clone());
    }

    /// Forgets a collection: it is gone. Returns the tickets that nobody waits for any more.
    pub fn remove(&mut self, build: BuildId) -> Vec<u64> {
        let Some(keys) = self.collections.remove(&build) else { return Vec::new() };
        let mut released = Vec::new();
        for waiting in keys.keys.into_values() {
            self.load -= waiting.demand.len();
            released.extend(self.close_all(waiting.demand.tickets));
            if let Place::InFlight { taken, .. } = waiting.place {
                self.load -= taken.len();
                released.extend(self.close_all(taken.tickets));
            }
        }
        released
    }

    /// Keys that wait or are in flight.
    pub fn len(&self) -> usize {
        self.collections.values().map(|it| it.keys.len()).sum()
    }

    /// Whether this many fresh keys are ready.
    pub fn has_fresh(&self, count: usize) -> bool {
        let fresh = (Lane::Fresh, 0)..=(Lane::Fresh, u64::MAX);
        let ready = self.collections.values().flat_map(|it| it.ready.range(fresh.clone()));
        ready.take(count).count() == count
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys of large fan-outs that are ready to be read.
    pub fn low(&self) -> usize {
        self.collections.values().map(|it| it.low).sum()
    }

    /// Keys that wait for a time.
    pub fn parked(&self) -> usize {
        self.collections.values().map(|it| it.parked.len()).sum()
    }

    /// The earliest time at which a parked key is ready.
    pub fn next_wake(&self) -> Option<Instant> {
        let first = self.collections.values().filter_map(|it| it.parked.first_key_value());
        first.map(|((until, _), _)| *until).min()
    }

    /// Keys, causes and tickets held: what memory depends on.
    pub fn load(&self) -> usize {
        self.len() + self.load
    }

    /// Takes the key out of flight, leaving its place to be set. None: it is not in flight.
    fn land(&mut self, build: BuildId, key: &DocumentKey) -> Option<Landed> {
        let waiting = self.collections.get_mut(&build)?.keys.get_mut(key)?;
        let Place::InFlight { taken, lane, again } = &mut waiting.place else { return None };
        Some(Landed { taken: std::mem::take(taken), lane: *lane, again: *again })
    }

    fn close_all(&mut self, tickets: BTreeSet<u64>) -> Vec<u64> {
        tickets.into_iter().filter(|&it| self.close(it)).collect()
    }
}

#[cfg(test)]
mod tests;
