//! Keys that wait to be read again, and what each read must see. Pure: time is passed in.
//!
//! A *demand* says: read this key again, in a snapshot that sees this cause, and release this
//! ticket once the result is written. Demands for one key are merged, so that a hot key costs one
//! read however often it changes. At most one read of a key is in flight: Elasticsearch forgets a
//! deleted document's version at a restart, so two writes of one `_id` must not race within a
//! process (B16).
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
    InFlight { taken: Demand, again: bool },
}

#[derive(Debug)]
struct Waiting {
    /// When it was first demanded, as a count: the age that fairness goes by.
    since: u64,
    place: Place,
    /// What is not yet in flight.
    demand: Demand,
}

/// One collection's keys.
#[derive(Debug, Default)]
struct Lane {
    keys: HashMap<DocumentKey, Waiting>,
    ready: BTreeMap<u64, DocumentKey>,
    parked: BTreeMap<(Instant, u64), DocumentKey>,
}

impl Lane {
    /// Parked keys whose time has come are ready again, at their old age.
    fn wake(&mut self, now: Instant) {
        while let Some(first) = self.parked.first_entry() {
            if first.key().0 > now {
                return;
            }
            let ((_, since), key) = first.remove_entry();
            self.keys.get_mut(&key).expect("a parked key waits").place = Place::Ready;
            self.ready.insert(since, key);
        }
    }
}

/// The keys of all collections.
#[derive(Debug, Default)]
pub struct Pending {
    lanes: BTreeMap<BuildId, Lane>,
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
        let lane = self.lanes.entry(build).or_default();
        let since = self.next_since;
        self.next_since += 1;
        let waiting = lane.keys.entry(key).or_insert_with_key(|key| {
            lane.ready.insert(since, key.clone());
            Waiting { since, place: Place::Ready, demand: Demand::default() }
        });
        if let Place::InFlight { again, .. } = &mut waiting.place
            && !*again
        {
            *again = true;
            waiting.since = since;
        }
        self.load -= waiting.demand.len();
        waiting.demand.causes.extend(cause);
        if let Some(ticket) = ticket
            && waiting.demand.tickets.insert(ticket)
        {
            *self.tickets.entry(ticket).or_default() += 1;
        }
        self.load += waiting.demand.len();
    }

    /// The collection whose oldest ready key is the oldest of all. None: nothing is ready.
    pub fn next(&mut self, now: Instant) -> Option<BuildId> {
        let oldest = |(build, lane): (&BuildId, &mut Lane)| {
            lane.wake(now);
            lane.ready.first_key_value().map(|(since, _)| (*since, *build))
        };
        self.lanes.iter_mut().filter_map(oldest).min().map(|(_, build)| build)
    }

    /// Takes up to `max` of the collection's ready keys, oldest first. They are in flight until
    /// [`Pending::finish`] or [`Pending::park`].
    pub fn take_batch(&mut self, build: BuildId, max: usize, now: Instant) -> Vec<Taken> {
        let Some(lane) = self.lanes.get_mut(&build) else { return Vec::new() };
        lane.wake(now);
        let mut batch = Vec::new();
        while batch.len() < max
            && let Some((_, key)) = lane.ready.pop_first()
        {
            let waiting = lane.keys.get_mut(&key).expect("a ready key waits");
            let taken = std::mem::take(&mut waiting.demand);
            let causes = taken.causes.iter().copied().collect();
            waiting.place = Place::InFlight { taken, again: false };
            batch.push(Taken { key, causes });
        }
        batch
    }

    /// The key's result is written, or in the dead letters: returns the tickets that nobody waits
    /// for any more. What was demanded since the key was taken is ready now.
    ///
    /// A key that is not in flight (its collection was removed) is nobody's.
    pub fn finish(&mut self, build: BuildId, key: &DocumentKey) -> Vec<u64> {
        let Some((taken, again)) = self.land(build, key) else { return Vec::new() };
        self.load -= taken.len();
        let lane = self.lanes.get_mut(&build).expect("it was in flight there");
        if again {
            let waiting = lane.keys.get_mut(key).expect("it was in flight");
            waiting.place = Place::Ready;
            lane.ready.insert(waiting.since, key.clone());
        } else {
            lane.keys.remove(key);
        }
        self.close_all(taken.tickets)
    }

    /// The read did not serve: the key is to be read again once `until` has passed, for what it
    /// was taken for and what was demanded since.
    pub fn park(&mut self, build: BuildId, key: &DocumentKey, until: Instant) {
        let Some((taken, _)) = self.land(build, key) else { return };
        let lane = self.lanes.get_mut(&build).expect("it was in flight there");
        let waiting = lane.keys.get_mut(key).expect("it was in flight");
        self.load -= taken.len() + waiting.demand.len();
        // A ticket that both want counted twice: one key waits for it now.
        for ticket in taken.tickets.intersection(&waiting.demand.tickets) {
            *self.tickets.get_mut(ticket).expect("it is waited for") -= 1;
        }
        waiting.demand.causes.extend(taken.causes);
        waiting.demand.tickets.extend(taken.tickets);
        self.load += waiting.demand.len();
        waiting.place = Place::Parked;
        lane.parked.insert((until, waiting.since), key.clone());
    }

    /// Forgets a collection: it is gone. Returns the tickets that nobody waits for any more.
    pub fn remove(&mut self, build: BuildId) -> Vec<u64> {
        let Some(lane) = self.lanes.remove(&build) else { return Vec::new() };
        let mut released = Vec::new();
        for waiting in lane.keys.into_values() {
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
        self.lanes.values().map(|it| it.keys.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys that wait for a time.
    pub fn parked(&self) -> usize {
        self.lanes.values().map(|it| it.parked.len()).sum()
    }

    /// The earliest time at which a parked key is ready.
    pub fn next_wake(&self) -> Option<Instant> {
        self.lanes.values().filter_map(|it| it.parked.first_key_value()).map(|(k, _)| k.0).min()
    }

    /// Keys, causes and tickets held: what memory depends on.
    pub fn load(&self) -> usize {
        self.len() + self.load
    }

    /// Takes the key out of flight, leaving its place to be set. None: it is not in flight.
    fn land(&mut self, build: BuildId, key: &DocumentKey) -> Option<(Demand, bool)> {
        let waiting = self.lanes.get_mut(&build)?.keys.get_mut(key)?;
        let Place::InFlight { taken, again } = &mut waiting.place else { return None };
        Some((std::mem::take(taken), *again))
    }

    fn close_all(&mut self, tickets: BTreeSet<u64>) -> Vec<u64> {
        tickets.into_iter().filter(|&it| self.close(it)).collect()
    }
}

#[cfg(test)]
mod tests;
