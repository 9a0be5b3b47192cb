//! Which read is next: small changes before large ones, and nobody for ever behind anybody.
//!
//! Fresh keys have most of the places. A large fan-out is walked page by page while its keys are
//! read in the low lane: the next page is fetched once the last one is nearly done, so that memory
//! holds two pages, however many documents a change touches. The low lane has a place as soon as
//! any is free, so that it is never starved. Keys that are too slow are read alone, one at a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::document::DocumentKey;
use crate::document::pending::{BuildId, Lane, Taken};
use crate::translate::lookups::{PageEnd, Wanted};
use crate::translate::refresh::{How, KeyEnd, Refreshed, refresh};
use crate::translate::route::PathId;
use crate::translate::stage::{Done, Origin, Stage};
use crate::translate::{Build, lookup};

/// First pause before a key that was not visible is read again. The gap between WAL and
/// visibility is microseconds to a few milliseconds without a synchronous standby.
const NOT_VISIBLE_FIRST: Duration = Duration::from_millis(2);
/// Longest such pause: within a second of the end of any wait, the document is right.
const NOT_VISIBLE_MAX: Duration = Duration::from_millis(400);
/// First and longest pause before work that met an outage is tried again.
const OUTAGE_FIRST: Duration = Duration::from_millis(50);
const OUTAGE_MAX: Duration = Duration::from_secs(2);
/// Before images whose lookup met an outage are looked up again.
const LOOKUP_PAUSE: Duration = Duration::from_millis(200);
/// Another write of the same key takes about this long.
const BUSY_PAUSE: Duration = Duration::from_millis(3);
/// First and longest pause before a key that alone takes too long is tried again.
const SLOW_FIRST: Duration = Duration::from_secs(1);
const SLOW_MAX: Duration = Duration::from_secs(10);
/// How often a key is read alone, and takes too long, before it goes to the dead letters: a busy
/// moment of the server passes meanwhile.
const SLOW_TRIES: u32 = 3;
/// Reads of single keys of one build that took too long, with none between that did not: that is
/// the mapping's fault and no key's. It stops the offsets for some minutes at most.
const SLOW_IN_A_ROW_MAX: u32 = 8 * SLOW_TRIES;
/// Keys on one page of a large fan-out. Each page runs the whole path's query once more, and all
/// keys of a page are in memory: some 4 MB.
const PAGE_KEYS: usize = 20_000;

/// Batches of fresh keys that start as soon as there is a key: one is read while one is written.
const AT_ONCE: usize = 2;
/// Fresh keys that must wait for each further batch: each read and each bulk request costs the
/// servers as much as a dozen keys do, so under load fewer and larger batches are sooner done.
const KEYS_EACH: usize = 8;
/// Longest that fresh keys are held back to gather, when what is in flight takes longer.
const GATHER_MAX: Duration = Duration::from_millis(5);

/// Doubles `first` with each attempt, up to `max`.
fn backoff(first: Duration, max: Duration, attempt: u32) -> Duration {
    first.saturating_mul(1 << attempt.min(16)).min(max)
}

/// What decides on the next read, besides what is pending.
#[derive(Debug, Default)]
pub struct Paces {
    /// Batches being read or written, beside those of the fresh lane.
    low: usize,
    slow: usize,
    /// The lane whose batch was started last.
    last: Option<Lane>,
    /// Since when fresh keys are held back to gather.
    gathering: Option<Instant>,
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

    fn started(&mut self, lane: Lane) {
        self.last = Some(lane);
        match lane {
            Lane::Fresh => {}
            Lane::Low => self.low += 1,
            Lane::Slow => self.slow += 1,
        }
    }

    fn ended(&mut self, lane: Lane) {
        match lane {
            Lane::Fresh => {}
            Lane::Low => self.low -= 1,
            Lane::Slow => self.slow -= 1,
        }
    }

    /// The lanes to take a batch from, the first that has one.
    ///
    /// A lane that has nothing in flight comes first, unless it was the last one: so each gets on,
    /// also when there is one place in all, and fresh keys have all the other places. The low lane
    /// may take half of the connections, so that a fresh key finds one that is free.
    fn order(&self, connections: usize) -> impl Iterator<Item = Lane> + use<> {
        let first = |lane, count| (count == 0 && self.last != Some(lane)).then_some(lane);
        let low = (self.low < (connections / 2).max(1)).then_some(Lane::Low);
        let slow = (self.slow == 0).then_some(Lane::Slow);
        let order = [
            first(Lane::Low, self.low),
            first(Lane::Slow, self.slow),
            Some(Lane::Fresh),
            low,
            slow,
        ];
        order.into_iter().flatten()
    }

    /// Whether fresh keys wait a little for more of them to come. `ready` says whether there are so
    /// many.
    fn gathers(&mut self, in_flight: usize, now: Instant, ready: impl Fn(usize) -> bool) -> bool {
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

    /// A read of so many keys was too slow, or was not: the next one asks for fewer, or more.
    fn adapt(&mut self, build: BuildId, asked: usize, slow: bool) {
        if slow {
            self.batch_max.insert(build, (asked / 4).max(1));
        } else if let Some(max) = self.batch_max.get_mut(&build) {
            *max = max.saturating_mul(2);
        }
    }
}

impl Stage {
    /// Starts the lookups that may run now.
    pub fn start_lookups(&mut self, now: Instant) {
        while self.may_look_up()
            && let Some(ask) = self.lookups.take(now)
        {
            let Some(build) = self.builds.get(ask.path.build) else {
                self.close_all(ask.wanted);
                continue;
            };
            self.looking_up += 1;
            let tools = Arc::clone(&self.tools);
            self.tasks.spawn(async move { Done::Lookup(lookup::lookup(tools, build, ask).await) });
        }
        let page_keys = self.page_keys();
        if self.may_walk()
            && let Some(ask) = self.lookups.take_page(page_keys, now)
            && let Some(build) = self.builds.get(ask.path.build)
        {
            self.paces.walking = true;
            let tools = Arc::clone(&self.tools);
            self.tasks.spawn(async move { Done::Lookup(lookup::lookup(tools, build, ask).await) });
        }
    }

    /// Whether a lookup may start: there is a connection for it, and room for the keys it finds.
    pub fn may_look_up(&self) -> bool {
        let translate = &self.context.config.translate;
        let fresh = self.pending.len() - self.pending.low();
        self.looking_up < translate.connections && fresh < translate.pending_keys_max
    }

    /// Whether the next page of a large fan-out may be read: the last one is nearly done.
    pub fn may_walk(&self) -> bool {
        let low = i64::try_from(self.pending.low()).unwrap_or(i64::MAX);
        !self.paces.walking && low < self.page_keys()
    }

    fn page_keys(&self) -> i64 {
        let keys = PAGE_KEYS.min(self.context.config.translate.pending_keys_max);
        i64::try_from(keys).unwrap_or(i64::MAX)
    }

    /// What follows from a lookup.
    pub fn on_looked_up(&mut self, mut report: lookup::Report) {
        self.count_outdated(report.path.build, report.trouble.as_ref());
        let trouble = report.trouble.take();
        if report.walk {
            self.on_page(report);
        } else {
            self.looking_up -= 1;
            self.on_images(report);
        }
        self.on_trouble(trouble);
    }

    fn on_images(&mut self, report: lookup::Report) {
        let (now, path) = (Instant::now(), report.path);
        if self.builds.get(path.build).is_none() {
            let lookup::Report { found, waiting, again, rest, unanswerable, .. } = report;
            let all = [found, waiting, again, rest, unanswerable];
            self.close_all(all.into_iter().flatten());
            return;
        }
        self.lookups.served(path, report.found.len(), report.rest);
        self.lookups.park(path, report.waiting.iter().cloned(), now + pause_of(&report.waiting));
        self.lookups.park(path, report.again, now + LOOKUP_PAUSE);
        for wanted in report.unanswerable {
            wanted.tickets.into_iter().for_each(|it| self.owe_sweep(path.build, Some(it)));
        }
        // The keys wait for all records of the batch: which image led to which is not known.
        let records = report.found.iter().flat_map(|it| it.tickets.clone()).collect();
        if let Some(after) = report.more
            && let Some(large) = report.found.into_iter().next()
        {
            self.begin_walk(path, large, (report.keys, Some(after)));
            return;
        }
        self.count_affected(path.build, report.keys.len());
        let ticket = self.open_ticket(Origin::Lookup(records));
        for key in report.keys {
            self.pending.demand(path.build, key, None, Some(ticket));
        }
        self.close_ticket(ticket);
    }

    /// The image leads to more keys than a small change does; of these the first are known.
    fn begin_walk(
        &mut self,
        path: PathId,
        large: Wanted,
        (keys, after): (Vec<DocumentKey>, Option<String>),
    ) {
        if self.lookups.ticket_of(path, &large.values).is_some() {
            self.lookups.push(path, large);
            return;
        }
        let ticket = self.open_ticket(Origin::Lookup(large.tickets.clone()));
        self.tools.metrics.translate_fan_outs_total.inc();
        let collection = self.builds.get(path.build).map(|it| it.plan.name.clone());
        tracing::info!(
            collection,
            row = ?large.values,
            changes = large.tickets.len(),
            "a change touches very many documents; they follow behind those of small changes"
        );
        self.lookups.walk(path, large, ticket, after);
        self.demand_page(path.build, keys, ticket);
    }

    fn demand_page(&mut self, build: BuildId, keys: Vec<DocumentKey>, ticket: u64) {
        self.count_affected(build, keys.len());
        for key in keys {
            self.pending.demand_low(build, key, ticket);
        }
    }

    /// A page of a walk has been read, or not.
    fn on_page(&mut self, report: lookup::Report) {
        self.paces.walking = false;
        let (now, path) = (Instant::now(), report.path);
        let pause = pause_of(&report.waiting);
        let found = report.found.into_iter().next();
        let put_off = report.waiting.into_iter().map(|it| (now + pause, it));
        let put_off = put_off.chain(report.again.into_iter().map(|it| (now + LOOKUP_PAUSE, it)));
        let put_off = put_off.chain(report.rest.into_iter().map(|it| (now, it))).next();
        let failed = report.unanswerable.into_iter().next();
        let Some(values) = [found.as_ref(), put_off.as_ref().map(|(_, it)| it), failed.as_ref()]
            .into_iter()
            .flatten()
            .next()
            .map(|it| it.values.clone())
        else {
            return;
        };
        // None: the collection was forgotten meanwhile, and its tickets with it.
        let Some(ticket) = self.lookups.ticket_of(path, &values) else { return };
        if failed.is_some() {
            self.pending.open(ticket);
            self.owe_sweep(path.build, Some(ticket));
        }
        self.demand_page(path.build, report.keys, ticket);
        let end = match (put_off, report.more) {
            (Some((until, wanted)), _) => PageEnd::Again(until, Box::new(wanted)),
            (None, Some(after)) => PageEnd::More(after),
            (None, None) => PageEnd::Last,
        };
        let Some(walked) = self.lookups.page_ended(path, &values, end) else { return };
        self.close_ticket(walked.ticket);
        if let Some(again) = walked.again {
            self.begin_walk(path, again, (Vec::new(), None));
        }
    }

    fn close_all(&mut self, wanted: impl IntoIterator<Item = Wanted>) {
        let tickets = wanted.into_iter().flat_map(|it| it.tickets);
        tickets.for_each(|it| self.close_ticket(it));
    }

    /// Starts the refreshes that may run now.
    pub fn start_refreshes(&mut self, now: Instant) {
        let connections = self.context.config.translate.connections;
        while self.refreshing < self.refresh_places() {
            let gathers = self.gathers(now);
            let lanes = self.paces.order(connections);
            let mut lanes = lanes.filter(|it| *it != Lane::Fresh || !gathers);
            let next = lanes.find_map(|lane| Some((lane, self.pending.next(lane, now)?)));
            let Some((lane, id)) = next else { return };
            let max = self.batch_max(id, lane);
            let batch = self.pending.take_batch(id, lane, max, now);
            let Some(build) = self.builds.get(id) else {
                for ticket in self.pending.remove(id) {
                    self.ended(ticket);
                }
                continue;
            };
            self.start_refresh(build, lane, batch);
        }
    }

    fn gathers(&mut self, now: Instant) -> bool {
        let in_flight = self.refreshing - self.paces.low - self.paces.slow;
        self.paces.gathers(in_flight, now, |count| self.pending.has_fresh(count))
    }

    /// When fresh keys have gathered long enough.
    pub fn gathered(&self) -> Option<Instant> {
        self.paces.gathering.map(|it| it + GATHER_MAX)
    }

    fn batch_max(&self, build: BuildId, lane: Lane) -> usize {
        let max = self.context.config.translate.keys_per_read;
        match lane {
            Lane::Slow => 1,
            _ => self.paces.batch_max.get(&build).map_or(max, |it| max.min(*it)),
        }
    }

    fn start_refresh(&mut self, build: Arc<Build>, lane: Lane, batch: Vec<Taken>) {
        let place = |it: &Taken| (build.id, it.key.clone());
        let tries = |it| self.paces.slow_tries.get(&place(it)).copied().unwrap_or(0);
        let how = How {
            lane,
            probe: batch.iter().any(|it| self.attempts.contains_key(&place(it))),
            last_try: lane == Lane::Slow && batch.iter().all(|it| tries(it) + 1 >= SLOW_TRIES),
        };
        self.refreshing += 1;
        self.paces.started(lane);
        let tools = Arc::clone(&self.tools);
        self.tasks.spawn(async move {
            let started = Instant::now();
            let refreshed = refresh(Arc::clone(&tools), build, batch, how).await;
            let now = Instant::now();
            if lane == Lane::Fresh {
                tools.load.refreshed(now, now - started);
            }
            Done::Refresh(refreshed)
        });
    }

    /// What follows from a batch that was read and written, or not.
    pub fn on_refreshed(&mut self, refreshed: Refreshed) {
        let Refreshed { how, asked, slow, report } = refreshed;
        self.refreshing -= 1;
        self.paces.ended(how.lane);
        let (now, build) = (Instant::now(), report.build);
        report.written.iter().for_each(|it| self.tell_written(build, it));
        let known = self.builds.get(build).is_some();
        self.count_outdated(build, report.trouble.as_ref());
        if known {
            self.count_slow(build, asked, slow);
        }
        for (key, end) in report.keys {
            let place = (build, key);
            let (first, max) = match end {
                KeyEnd::Slow => {
                    self.put_off_slow(place, (how.lane, known));
                    continue;
                }
                KeyEnd::Finished => {
                    self.attempts.remove(&place);
                    self.paces.slow_tries.remove(&place);
                    for ticket in self.pending.finish(place.0, &place.1) {
                        self.ended(ticket);
                    }
                    continue;
                }
                KeyEnd::Busy => (BUSY_PAUSE, BUSY_PAUSE),
                KeyEnd::NotVisible => (NOT_VISIBLE_FIRST, NOT_VISIBLE_MAX),
                KeyEnd::Again => (OUTAGE_FIRST, OUTAGE_MAX),
            };
            let attempt = self.attempts.get(&place).copied().unwrap_or(0);
            self.pending.park(place.0, &place.1, now + backoff(first, max, attempt));
            if known && end != KeyEnd::Busy {
                self.attempts.insert(place, attempt.saturating_add(1));
            }
        }
        for key in report.besides {
            self.pending.demand(build, key, None, None);
        }
        self.on_trouble(report.trouble);
    }

    /// A key whose read took too long, alone or beside others, is read alone.
    fn put_off_slow(&mut self, place: (BuildId, DocumentKey), (lane, known): (Lane, bool)) {
        let now = Instant::now();
        if lane != Lane::Slow {
            self.pending.park_slow(place.0, &place.1, now);
            return;
        }
        let tries = self.paces.slow_tries.get(&place).copied().unwrap_or(0);
        self.pending.park_slow(place.0, &place.1, now + backoff(SLOW_FIRST, SLOW_MAX, tries));
        if known {
            self.paces.slow_tries.insert(place, tries + 1);
        }
    }

    /// A build of which no key can be read in time must not hold up the offsets.
    fn count_slow(&mut self, build: BuildId, asked: usize, slow: bool) {
        self.paces.adapt(build, asked, slow);
        if !slow {
            self.paces.slow_in_a_row.remove(&build);
        } else if asked == 1 {
            let count = self.paces.slow_in_a_row.entry(build).or_insert(0);
            *count += 1;
            if *count == SLOW_IN_A_ROW_MAX {
                self.give_up(build);
            }
        }
    }
}

/// Before images whose causes are not visible yet are looked up again.
fn pause_of(waiting: &[Wanted]) -> Duration {
    let attempt = waiting.iter().map(|it| it.attempts).max().unwrap_or(0);
    backoff(NOT_VISIBLE_FIRST, NOT_VISIBLE_MAX, attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
