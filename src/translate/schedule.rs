//! The stage's decisions: which work starts next, and what follows from work that ended.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::document::pending::BuildId;
use crate::kafka::progress_record;
use crate::mapping::plan::TableName;
use crate::translate::load::topics_of;
use crate::translate::refresh::Trouble;
use crate::translate::stage::{Done, Origin, Stage};
use crate::translate::sweep::{Demanded, SweepError};
use crate::translate::{Build, Tools, TranslateError, epoch, load, sweep};

/// Before work that met an outage is tried again, and a sweep that failed.
const OUTAGE_MAX: Duration = Duration::from_secs(2);
/// Reads of a build that fail for good before it is suspended: enough for a load of the mappings
/// to come between.
const OUTDATED_MAX: u32 = 6;
/// Before an index that was not what its SQL says is swept again: what is wrong with it is seldom
/// mended by itself, and a sweep costs reads.
const VERIFY_AGAIN_AFTER: Duration = Duration::from_secs(15);

impl Stage {
    /// Starts all work that may start now.
    pub fn schedule(&mut self) -> Result<(), TranslateError> {
        if let Some(Trouble::Moved) = self.trouble {
            return Err(TranslateError::Moved);
        }
        if self.builds.closed {
            return Ok(());
        }
        let now = Instant::now();
        self.tools.load.waits(self.pending.len() + self.lookups.len());
        if self.builds.load_due(now) {
            self.load_catalog();
        }
        self.start_due_sweeps(now);
        self.take_fingerprint(now);
        self.start_lookups(now);
        self.start_refreshes(now);
        Ok(())
    }

    /// How many batches may be refreshed at once. Twice as many as connections: while one batch
    /// is being written, the next is read. During an outage one batch tries whether it is over,
    /// and spares the servers the others.
    pub fn refresh_places(&self) -> usize {
        match self.trouble {
            Some(Trouble::Outage(_)) => 1,
            _ => self.context.config.translate.connections * 2,
        }
    }

    /// What follows from a finished task.
    pub fn on_done(&mut self, done: Done) -> Result<(), TranslateError> {
        match done {
            Done::Refresh(refreshed, took) => self.on_refreshed(refreshed, took),
            Done::Lookup(report) => self.on_looked_up(report),
            Done::Sweep(build, ended) => self.on_swept(build, ended),
            Done::Catalog(loaded) => self.on_catalog(*loaded)?,
            Done::Buried(place) => {
                self.offsets.done(place);
            }
            Done::Noted { before, now: Some(now) } => {
                match epoch::newest(self.noted, &before, now) {
                    Some(newest) => self.noted = newest,
                    None => self.on_trouble(Some(Trouble::Moved)),
                }
            }
            Done::Noted { now: None, .. } | Done::GivenUp => {}
            Done::Fingerprint(taken) => self.on_fingerprint(taken),
            Done::Suspended(build) => self.suspended(build),
            Done::Missing(build) => {
                self.recreating.remove(&build);
                self.forget(build);
                self.load_catalog();
            }
            Done::Tended(look) => self.on_tended(look),
            Done::NotesRead(read) => self.on_notes_read(read)?,
            Done::Forgotten(found) => self.on_forgotten(found)?,
        }
        Ok(())
    }

    /// Remembers what went wrong last, for `/readyz`, and starts what mends it.
    pub fn on_trouble(&mut self, trouble: Option<Trouble>) {
        if trouble == self.trouble {
            return;
        }
        match &trouble {
            None => {}
            Some(Trouble::Outage(reason)) => {
                tracing::warn!(reason, "waiting for an outage to end");
            }
            Some(Trouble::PlanOutdated) => self.load_catalog(),
            Some(Trouble::IndexMissing(build)) => self.recreate(*build),
            Some(Trouble::Moved) => {}
        }
        self.trouble = trouble;
        self.tell_health();
    }

    /// A sweep wants keys refreshed and hears when they are.
    pub fn on_demanded(&mut self, demanded: Demanded) {
        let ticket = self.open_ticket(Origin::Sweep(demanded.done));
        for key in demanded.keys {
            self.pending.demand(demanded.build, key, None, Some(ticket));
        }
        self.close_ticket(ticket);
    }

    fn on_swept(&mut self, build: BuildId, ended: Result<(), SweepError>) {
        match ended {
            Ok(()) => {
                let finished = self.builds.sweep_finished(build);
                finished.tickets.into_iter().for_each(|it| self.close_ticket(it));
                for old in finished.replaced {
                    self.forget(old);
                }
                self.on_trouble(None);
            }
            // No outage: what served goes on serving, and another sweep compares and repairs.
            Err(error @ SweepError::Unverified { .. }) => {
                let reason = crate::causes::with_causes(&error);
                tracing::error!(reason, "not swapped; what served goes on, and it is swept again");
                if let Some(build) = self.builds.get(build) {
                    let label = [build.plan.name.as_str()];
                    self.tools.metrics.verification_failures_total.with_label_values(&label).inc();
                }
                self.builds.sweep_failed(build, Instant::now() + VERIFY_AGAIN_AFTER);
            }
            Err(error) => {
                let reason = crate::causes::with_causes(&error);
                tracing::warn!(reason, "a sweep ended early; it goes on shortly");
                self.builds.sweep_failed(build, Instant::now() + OUTAGE_MAX);
                let trouble = match error {
                    // What was swept before does not count, as its era says.
                    SweepError::Void => return,
                    SweepError::Moved => Trouble::Moved,
                    SweepError::PlanOutdated => Trouble::PlanOutdated,
                    SweepError::IndexMissing => Trouble::IndexMissing(build),
                    SweepError::Outage { .. } | SweepError::Unverified { .. } => {
                        Trouble::Outage(reason)
                    }
                };
                self.count_outdated(build, Some(&trouble));
                self.on_trouble(Some(trouble));
            }
        }
    }

    /// A build whose SQL fails again and again, also after the mappings were resolved anew, must
    /// not hold up the others: neither their keys nor the offsets. First its index is told that a
    /// sweep is owed to it, durably, and then it is forgotten, until a load finds that it works.
    pub fn count_outdated(&mut self, build: BuildId, trouble: Option<&Trouble>) {
        if trouble != Some(&Trouble::PlanOutdated) {
            self.outdated.remove(&build);
            return;
        }
        let count = self.outdated.entry(build).or_insert(0);
        *count += 1;
        if *count == OUTDATED_MAX {
            self.give_up(build);
        }
    }

    /// Suspends a build once its index says that a sweep is owed to it.
    pub fn give_up(&mut self, build: BuildId) {
        let Some(serving) = self.builds.get(build) else { return };
        let (tools, index) = (Arc::clone(&self.tools), Arc::clone(&serving.index));
        self.tasks.spawn(async move {
            owe_durably(&tools, &index).await;
            Done::Suspended(build)
        });
    }

    fn suspended(&mut self, build: BuildId) {
        let Some(suspended) = self.builds.get(build) else { return };
        let name = &suspended.plan.name;
        tracing::error!(
            collection = name,
            "the collection is suspended, as its SQL does not run (any more) or takes longer than \
             [translate] statement_timeout; `onelog check` says why"
        );
        self.tools.metrics.collection_live.with_label_values(&[name]).set(0);
        self.builds.suspend(name.clone(), Instant::now());
        self.outdated.remove(&build);
        self.forget(build);
    }

    /// Stops updating a build: another one took its place, or its mapping is gone.
    pub fn forget(&mut self, build: BuildId) {
        self.router.remove(build);
        for ticket in self.lookups.remove(build) {
            self.close_ticket(ticket);
        }
        for ticket in self.pending.remove(build) {
            self.ended(ticket);
        }
        for ticket in self.builds.remove(build) {
            self.close_ticket(ticket);
        }
        self.attempts.retain(|(id, _), _| *id != build);
        self.paces.forget(build);
    }

    fn start_due_sweeps(&mut self, now: Instant) {
        let kafka = &self.context.config.kafka;
        let is_first = |it: &Build| self.commits.is_first(&topics_of(kafka, &it.plan));
        for (build, order) in self.builds.take_due(now, is_first) {
            let tools = Arc::clone(&self.tools);
            let demands = self.demands.clone();
            let id = build.id;
            let gone = build.gone.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    biased;

                    // 1. Another build takes its place: what it has written is of no use.
                    () = gone.cancelled() => Done::GivenUp,
                    // 2. The sweep itself.
                    ended = sweep::sweep(tools, build, order, demands) => Done::Sweep(id, ended),
                }
            });
        }
    }

    /// The collection must be looked at as a whole; `ticket` hears when it was.
    pub fn owe_sweep(&mut self, build: BuildId, ticket: Option<u64>) {
        if !self.builds.owe(build, ticket)
            && let Some(ticket) = ticket
        {
            self.close_ticket(ticket);
        }
    }

    pub fn open_ticket(&mut self, origin: Origin) -> u64 {
        self.next_ticket += 1;
        self.tickets.insert(self.next_ticket, origin);
        self.pending.open(self.next_ticket);
        self.next_ticket
    }

    pub fn close_ticket(&mut self, ticket: u64) {
        if self.pending.close(ticket) {
            self.ended(ticket);
        }
    }

    /// Nobody waits for the ticket any more.
    pub fn ended(&mut self, ticket: u64) {
        match self.tickets.remove(&ticket) {
            Some(Origin::Record { place, commit_us, .. }) => {
                self.offsets.done(place);
                self.tools.metrics.document_freshness_seconds.observe(age_seconds(commit_us));
            }
            Some(Origin::Lookup(records)) => {
                records.into_iter().for_each(|it| self.close_ticket(it));
            }
            Some(Origin::Sweep(done)) => {
                // The sweep may have been given up meanwhile.
                let _sweep_gone = done.send(());
            }
            None => {}
        }
    }

    pub fn count_affected(&self, build: BuildId, keys: usize) {
        if let Some(build) = self.builds.get(build) {
            let labels = [build.plan.name.as_str()];
            let count = u64::try_from(keys).unwrap_or(u64::MAX);
            self.tools
                .metrics
                .translate_affected_keys_total
                .with_label_values(&labels)
                .inc_by(count);
        }
    }

    /// Writes the highest N down (B4), beside everything else.
    pub fn note_progress(&mut self) {
        let tools = Arc::clone(&self.tools);
        let group = self.context.config.kafka.group_id.clone();
        let before = self.noted;
        self.tasks.spawn(async move {
            let Ok(now) = epoch::moment(&tools.readers).await else {
                return Done::Noted { before, now: None };
            };
            let same = now.system_id == tools.identity.system_id
                && now.timeline == tools.identity.timeline;
            if same && !now.is_before(&before) {
                let record = epoch::record(&tools.identity, &now);
                let key = progress_record::translate_key(&group);
                if let Err(error) = tools.side.note_progress(&key, &record.to_json()).await {
                    tracing::warn!(error = %crate::causes::with_causes(&error), "not noted");
                }
            }
            Done::Noted { before, now: Some(now) }
        });
    }

    /// As [`Stage::load_catalog`], and what was wrong before is said again.
    pub fn load_for_a_person(&mut self) {
        self.builds.tell_again();
        self.load_catalog();
    }

    /// Reads the mapping files and resolves them, unless that is going on already.
    pub fn load_catalog(&mut self) {
        let Some(request) = self.builds.begin_load() else { return };
        let (context, tools) = (self.context.clone(), Arc::clone(&self.tools));
        let log = Arc::clone(&self.log);
        self.tasks.spawn(async move {
            let loaded = load::load(&context, &tools, &log, request).await;
            Done::Catalog(Box::new(loaded))
        });
    }

    fn on_catalog(
        &mut self,
        loaded: Result<load::Loaded, TranslateError>,
    ) -> Result<(), TranslateError> {
        let mut change = self.builds.end_load(loaded)?;
        self.commits.see_to(std::mem::take(&mut change.seen_to));
        let gauge = &self.tools.metrics.collection_live;
        for (name, live) in &change.live {
            gauge.with_label_values(&[name]).set(i64::from(*live));
        }
        for build in &change.added {
            // One that serves already stays live; a new one is when its sweep has ended.
            let live = self.builds.serves(build.id);
            gauge.with_label_values(&[build.plan.name.as_str()]).set(i64::from(live));
        }
        for id in change.removed {
            self.forget(id);
        }
        let topics = self.context.config.kafka.clone();
        for build in &change.added {
            let topic_of = |it: &TableName| topics.entity_topic(&it.namespace, &it.name);
            self.router.add(build.id, &build.plan, topic_of);
        }
        if !change.added.is_empty() || change.follow {
            let config = &self.context.config.kafka;
            let topics: Vec<String> = self
                .builds
                .followed_tables()
                .iter()
                .map(|it| config.entity_topic(&it.namespace, &it.name))
                .collect();
            // A rebalance costs a second of everybody's, so not for what is followed already.
            if topics != self.followed || change.follow {
                self.log.subscribe(&topics)?;
                self.followed = topics;
            }
        }
        if change.again {
            self.load_catalog();
        }
        self.trouble = None;
        self.tell_health();
        Ok(())
    }

    /// The index of a build is gone, or the alias that it is written through: made anew by loading
    /// the catalog, and swept. First whatever is left of it is told that a sweep is owed, as the
    /// keys that wait are forgotten with the build.
    pub fn recreate(&mut self, build: BuildId) {
        let Some(missing) = self.builds.get(build) else { return };
        if !self.recreating.insert(build) {
            return;
        }
        tracing::warn!(index = %missing.index, "an index is missing; it is made anew");
        let (tools, index) = (Arc::clone(&self.tools), Arc::clone(&missing.index));
        self.tasks.spawn(async move {
            owe_durably(&tools, &index).await;
            Done::Missing(build)
        });
    }
}

/// Tells an index that a sweep is owed to it, however long that takes.
pub(super) async fn owe_durably(tools: &Tools, index: &str) {
    let mut pause = tokio::time::interval(OUTAGE_MAX);
    loop {
        pause.tick().await;
        match tools.elastic.mark_built(index, false).await {
            Ok(()) => return,
            Err(error) if error.is_transient() => {}
            // The index is gone, and with it what could be stale.
            Err(_) => return,
        }
    }
}

/// Seconds since a moment given in microseconds since the Unix epoch.
fn age_seconds(commit_us: i64) -> f64 {
    let commit = Duration::from_micros(u64::try_from(commit_us).unwrap_or(0));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(commit).as_secs_f64()
}
