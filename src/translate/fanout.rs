//! Which read is next: small changes before large ones, and nobody for ever behind anybody.
//!
//! Fresh keys have most of the places. A large fan-out is walked page by page while its keys are
//! read in the low lane: the next page is fetched once the last one is nearly done, so that memory
//! holds two pages, however many documents a change touches. The low lane has a place as soon as
//! any is free, so that it is never starved: one small batch at a time while fresh keys come. Keys
//! that are too slow are read alone, one at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::document::DocumentKey;
use crate::document::pending::{BuildId, Lane, Taken};
use crate::translate::lookups::{PageEnd, Wanted};
use crate::translate::paces::SLOW_TRIES;
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
/// Keys on one page of a large fan-out. Each page runs the whole path's query once more, and all
/// keys of a page are in memory: some 4 MB.
const PAGE_KEYS: usize = 20_000;

/// Doubles `first` with each attempt, up to `max`.
fn backoff(first: Duration, max: Duration, attempt: u32) -> Duration {
    first.saturating_mul(1 << attempt.min(16)).min(max)
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
            let lanes = self.paces.order(connections, now);
            let mut lanes = lanes.filter(|it| *it != Lane::Fresh || !gathers);
            let next = lanes.find_map(|lane| Some((lane, self.pending.next(lane, now)?)));
            let Some((lane, id)) = next else { return };
            let ceiling = self.context.config.translate.keys_per_read;
            let max = self.paces.batch_max(id, (lane, ceiling), now);
            let batch = self.pending.take_batch(id, lane, max, now);
            let Some(build) = self.builds.get(id) else {
                for ticket in self.pending.remove(id) {
                    self.ended(ticket);
                }
                continue;
            };
            self.paces.started(lane, now);
            self.start_refresh(build, lane, batch);
        }
    }

    fn gathers(&mut self, now: Instant) -> bool {
        self.paces.gathers(self.refreshing, now, |count| self.pending.has_fresh(count))
    }

    fn start_refresh(&mut self, build: Arc<Build>, lane: Lane, batch: Vec<Taken>) {
        let place = |it: &Taken| (build.id, it.key.clone());
        let tries = |it| self.paces.slow_tries(&place(it));
        let how = How {
            lane,
            probe: batch.iter().any(|it| self.attempts.contains_key(&place(it))),
            last_try: lane == Lane::Slow && batch.iter().all(|it| tries(it) + 1 >= SLOW_TRIES),
        };
        self.refreshing += 1;
        let tools = Arc::clone(&self.tools);
        self.tasks.spawn(async move {
            let started = Instant::now();
            let refreshed = refresh(Arc::clone(&tools), build, batch, how).await;
            let now = Instant::now();
            if lane == Lane::Fresh {
                tools.load.refreshed(now, now - started);
            }
            Done::Refresh(refreshed, now - started)
        });
    }

    /// What follows from a batch that was read and written, or not.
    pub fn on_refreshed(&mut self, refreshed: Refreshed, took: Duration) {
        let Refreshed { how, asked, slow, report } = refreshed;
        let (now, build) = (Instant::now(), report.build);
        self.refreshing -= 1;
        self.paces.ended(how.lane, took, now);
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
                    self.paces.answered(&place);
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
        let tries = self.paces.slow_tries(&place);
        self.pending.park_slow(place.0, &place.1, now + backoff(SLOW_FIRST, SLOW_MAX, tries));
        if known {
            self.paces.too_slow(place);
        }
    }

    /// A build of which no key can be read in time must not hold up the offsets.
    fn count_slow(&mut self, build: BuildId, asked: usize, slow: bool) {
        self.paces.adapt(build, asked, slow);
        if self.paces.is_hopeless(build, asked, slow) {
            self.give_up(build);
        }
    }
}

/// Before images whose causes are not visible yet are looked up again.
fn pause_of(waiting: &[Wanted]) -> Duration {
    let attempt = waiting.iter().map(|it| it.attempts).max().unwrap_or(0);
    backoff(NOT_VISIBLE_FIRST, NOT_VISIBLE_MAX, attempt)
}
