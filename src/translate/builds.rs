//! Which builds there are: the mapping files as loaded, resolved and given indices, and what each
//! build is owed.
//!
//! A build that is not serving yet is swept, then its index is marked as built and the alias is
//! swapped to it. A mark that is missing means that a sweep is owed, also after a crash: it is
//! taken away *before* reading starts at a new position, and given only after the sweep.

mod aliases;
mod gaps;
mod states;
mod timer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use self::timer::Timer;
use crate::document::pending::BuildId;
use crate::elasticsearch::index::survey::Wishes;
use crate::kafka::consumer::Partition;
use crate::mapping::catalog;
use crate::mapping::plan::TableName;
use crate::translate::load::{Known, Loaded, Prepared, Request, published};
use crate::translate::sweep::{Order, Purpose, Reached};
use crate::translate::verify::Tally;
use crate::translate::{Build, TranslateError};

/// Sweeps at once: together they have half of the connections.
const SWEEPS_MAX: usize = 2;
/// Before a load of the mappings that met an outage is tried again.
const LOAD_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Before the mappings are loaded again for a collection that Postgres refuses: a person makes or
/// mends its table or its privileges, which no file tells.
const SUSPENDED_LOOK_AFTER: Duration = Duration::from_secs(10);

/// Before topics that were not there are looked for again: capture makes them when it starts.
const MISSING_LOOK_AFTER: Duration = Duration::from_secs(5);

/// Where a build stands with its sweep.
#[derive(Debug)]
enum Sweep {
    Idle,
    Owed { from: Instant, tickets: Vec<u64> },
    Running { tickets: Vec<u64>, again: Option<Vec<u64>> },
}

#[derive(Debug)]
struct Served {
    build: Arc<Build>,
    /// The alias points at the build's index.
    serving: bool,
    sweep: Sweep,
    /// Of polls or audits.
    timer: Timer,
    /// Some changes reach its documents by sweeps only.
    polls: bool,
    /// The index is whole, so that a sweep is a poll or an audit.
    built: bool,
    /// The sweep that is owed is a mere audit: nothing has said that the documents differ.
    audit: bool,
    /// How far the sweep that is owed or runs has come.
    reached: Reached,
}

/// All builds of a session.
#[derive(Debug)]
pub struct Builds {
    /// Nothing new is started any more.
    pub closed: bool,
    sweep_all: bool,
    next_id: BuildId,
    served: BTreeMap<BuildId, Served>,
    known: catalog::KnownFiles,
    loading: bool,
    load_again: bool,
    load_at: Option<Instant>,
    /// Collections whose SQL stopped working; looked at again and again.
    suspended: BTreeSet<String>,
    /// Collections whose mapping has a mistake.
    frozen: BTreeSet<String>,
    /// The mistakes of the last load: one that comes again has been said.
    told: BTreeSet<String>,
    /// Tables whose topic was not there at the last load.
    missing: BTreeSet<TableName>,
    loaded_once: bool,
    /// Collections whose pending sweeps were last counted.
    counted: BTreeMap<String, usize>,
    /// Collections that the mapping files speak of.
    named: BTreeSet<String>,
    wishes: Wishes,
}

/// What the stage must do about a load.
#[derive(Debug, Default)]
pub struct Change {
    pub added: Vec<Arc<Build>>,
    pub removed: Vec<BuildId>,
    /// Collections known before: whether their documents follow every change.
    pub live: BTreeMap<String, bool>,
    /// The topics to follow may be others than before, also if nothing was added.
    pub follow: bool,
    pub again: bool,
    /// Positions after which every index that their notes lack was told that a sweep is owed.
    pub seen_to: Vec<(Partition, i64)>,
}

/// A sweep ended well.
#[derive(Debug, Default)]
pub struct Finished {
    pub tickets: Vec<u64>,
    /// Builds of the same collection that the swept one has replaced.
    pub replaced: Vec<BuildId>,
}

impl Builds {
    pub fn new(sweep_all: bool) -> Self {
        Self {
            closed: false,
            sweep_all,
            next_id: 0,
            served: BTreeMap::new(),
            known: catalog::KnownFiles::default(),
            loading: false,
            load_again: false,
            load_at: None,
            suspended: BTreeSet::new(),
            frozen: BTreeSet::new(),
            told: BTreeSet::new(),
            missing: BTreeSet::new(),
            loaded_once: false,
            counted: BTreeMap::new(),
            named: BTreeSet::new(),
            wishes: Wishes::new(),
        }
    }

    pub fn get(&self, id: BuildId) -> Option<Arc<Build>> {
        self.served.get(&id).map(|it| Arc::clone(&it.build))
    }

    /// Whether some build of the same collection serves.
    pub fn serves(&self, id: BuildId) -> bool {
        let Some(build) = self.get(id) else { return false };
        self.served.values().any(|it| it.serving && it.build.plan.name == build.plan.name)
    }

    /// Whether the alias leads to this build's index.
    pub fn is_serving(&self, id: BuildId) -> bool {
        self.served.get(&id).is_some_and(|it| it.serving)
    }

    /// Whether the mappings have been loaded once in this session.
    pub fn is_loaded(&self) -> bool {
        self.loaded_once
    }

    /// Every table whose topic the builds follow.
    pub fn followed_tables(&self) -> BTreeSet<TableName> {
        let published = self.served.values().flat_map(|it| published(&it.build.plan));
        published.filter(|it| !self.missing.contains(it)).collect()
    }

    /// A person has done something, and wants to hear what is wrong still.
    pub fn tell_again(&mut self) {
        self.told.clear();
    }

    /// Starts a load, unless one is running; then another follows it.
    pub fn begin_load(&mut self) -> Option<Request> {
        // Also when it follows a running one: a time that has passed would wake the stage at once,
        // again and again.
        self.load_at = None;
        if self.loading {
            self.load_again = true;
            return None;
        }
        self.loading = true;
        let active = self
            .served
            .values()
            .map(|it| (it.build.index.as_ref().to_owned(), Arc::clone(&it.build)));
        Some(Request {
            known: self.known.clone(),
            active: active.collect(),
            followed: self.followed_tables(),
            first: !self.loaded_once,
            sweep_all: self.sweep_all && !self.loaded_once,
            wishes: self.wishes.clone(),
            told: self.told.clone(),
        })
    }

    /// Takes a load's result. An outage is tried again later; Err is for a person.
    pub fn end_load(
        &mut self,
        loaded: Result<Loaded, TranslateError>,
    ) -> Result<Change, TranslateError> {
        self.loading = false;
        let mut again = std::mem::take(&mut self.load_again);
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) if self.loaded_once && !matches!(error, TranslateError::Moved) => {
                let reason = crate::causes::with_causes(&error);
                tracing::warn!(reason, "the mappings can't be loaded now; the old ones serve on");
                self.load_at = Some(Instant::now() + LOAD_AGAIN_AFTER);
                return Ok(Change { again: false, ..Change::default() });
            }
            Err(error) => return Err(error),
        };
        let first = !std::mem::replace(&mut self.loaded_once, true);
        self.known = loaded.known;
        let wanted: BTreeSet<&str> = loaded.prepared.iter().map(|it| it.index.as_str()).collect();
        let valid: BTreeSet<&str> =
            loaded.prepared.iter().map(|it| it.plan.name.as_str()).collect();
        self.suspended.retain(|it| !valid.contains(it.as_str()));
        if loaded.waits || !self.suspended.is_empty() {
            self.load_at = Some(Instant::now() + SUSPENDED_LOOK_AFTER);
        }
        self.frozen = loaded.frozen.clone();
        // Who asked for a load while this one ran wants to hear it.
        self.told = if again { BTreeSet::new() } else { loaded.told };
        let found = self.missing.iter().any(|it| !loaded.missing.contains(it));
        self.note_missing(loaded.missing);
        let mut removed = self.outdated(&wanted, &valid, &loaded.frozen);
        removed.extend(self.replaced(&loaded.prepared));
        self.take_intervals(&loaded.prepared);
        let live = |it: &Served| {
            let name = it.build.plan.name.as_str();
            it.serving && valid.contains(name) && !loaded.frozen.contains(name)
        };
        let live: BTreeMap<String, bool> =
            self.served.values().map(|it| (it.build.plan.name.clone(), live(it))).collect();
        self.miss_all(&loaded.owed);
        self.named = valid.iter().map(|it| (*it).to_owned()).collect();
        self.named.extend(loaded.frozen.iter().cloned());
        self.wishes = loaded.wishes;
        self.follow_aliases(&loaded.prepared);
        again |= self.lacks(&loaded.prepared);
        let added = loaded.prepared.into_iter().filter(|it| it.known != Known::Same);
        let added = added.collect::<Vec<_>>();
        let added = added.into_iter().map(|it| self.add(it)).collect();
        let seen_to = loaded.seen_to;
        Ok(Change { added, removed, live, follow: first || found, again, seen_to })
    }

    /// Builds that nobody wants any more. A serving one stays until its successor serves.
    fn outdated(
        &self,
        wanted: &BTreeSet<&str>,
        valid: &BTreeSet<&str>,
        frozen: &BTreeSet<String>,
    ) -> Vec<BuildId> {
        let gone = |it: &&Served| {
            let name = it.build.plan.name.as_str();
            if frozen.contains(name) || wanted.contains(it.build.index.as_ref()) {
                return false;
            }
            !(it.serving && valid.contains(name))
        };
        self.served.values().filter(gone).map(|it| it.build.id).collect()
    }

    /// Builds whose plan is out of date: what is prepared takes their place on the same index, and
    /// is owed a sweep, so that nothing is lost with what they had pending.
    fn replaced(&self, prepared: &[Prepared]) -> Vec<BuildId> {
        let replaces = |index: &str| {
            prepared.iter().any(|it| it.known == Known::Replaces && it.index == index)
        };
        let builds = self.served.values().map(|it| &it.build);
        builds.filter(|it| replaces(&it.index)).map(|it| it.id).collect()
    }

    /// A file may ask for other intervals without anything else having changed.
    fn take_intervals(&mut self, prepared: &[Prepared]) {
        for it in prepared.iter().filter(|it| it.known == Known::Same) {
            let served = self.served.values_mut().filter(|old| *old.build.index == *it.index);
            served.for_each(|old| old.timer.change(it.interval, Instant::now()));
        }
    }

    /// Every build.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Build>> {
        self.served.values().map(|it| &it.build)
    }

    fn add(&mut self, prepared: Prepared) -> Arc<Build> {
        self.next_id += 1;
        let build = Arc::new(Build {
            id: self.next_id,
            tables: prepared.plan.tables(),
            collection: prepared.plan.name.as_str().into(),
            plan: prepared.plan,
            index: prepared.index.into(),
            alias: prepared.alias,
            gone: CancellationToken::new(),
            tally: Tally::default(),
        });
        let mut served = Served {
            build: Arc::clone(&build),
            serving: prepared.serving,
            sweep: Sweep::Idle,
            timer: Timer::new(prepared.interval, Instant::now()),
            polls: prepared.polls,
            built: prepared.built,
            audit: false,
            reached: Arc::new(Mutex::new(prepared.swept)),
        };
        if !prepared.built || !prepared.serving {
            // Not by `owe`, which would forget how far it was.
            served.sweep = Sweep::Owed { from: Instant::now(), tickets: Vec::new() };
        }
        for reason in build.plan.poll_reasons() {
            tracing::warn!(collection = build.plan.name, reason, "swept on a timer");
        }
        tracing::info!(
            collection = build.plan.name,
            index = %build.index,
            sweep = !matches!(served.sweep, Sweep::Idle),
            "collection loaded"
        );
        self.served.insert(build.id, served);
        build
    }

    /// Forgets a build; returns the tickets that waited for its sweep.
    pub fn remove(&mut self, id: BuildId) -> Vec<u64> {
        let served = self.served.remove(&id);
        if let Some(served) = &served {
            served.build.gone.cancel();
        }
        match served.map(|it| it.sweep) {
            Some(Sweep::Owed { tickets, .. }) => tickets,
            Some(Sweep::Running { mut tickets, again }) => {
                tickets.extend(again.into_iter().flatten());
                tickets
            }
            Some(Sweep::Idle) | None => Vec::new(),
        }
    }

    /// A sweep is owed. False: there is no such build.
    pub fn owe(&mut self, id: BuildId, ticket: Option<u64>) -> bool {
        let Some(served) = self.served.get_mut(&id) else { return false };
        served.owe(ticket);
        true
    }

    /// When the next sweep or load is due by itself.
    pub fn next_due(&self) -> Option<Instant> {
        let sweeps = self.served.values().filter_map(|it| match &it.sweep {
            // A sweep that only waits for a free place is started by the end of another one.
            Sweep::Owed { from, .. } if *from > Instant::now() => Some(*from),
            Sweep::Idle => it.timer.next(),
            Sweep::Owed { .. } | Sweep::Running { .. } => None,
        });
        sweeps.chain(self.load_at).min()
    }

    /// A topic that is missing is looked for again; its collections serve meanwhile.
    fn note_missing(&mut self, missing: BTreeSet<TableName>) {
        for table in missing.difference(&self.missing) {
            tracing::warn!(%table, "its topic is not there yet; capture makes it, or `onelog prepare`");
        }
        if !missing.is_empty() {
            let at = Instant::now() + MISSING_LOOK_AFTER;
            self.load_at = Some(self.load_at.map_or(at, |it| it.min(at)));
        }
        self.missing = missing;
    }

    /// Remembers a collection that was suspended, to look at it again.
    pub fn suspend(&mut self, name: String, now: Instant) {
        self.suspended.insert(name);
        self.load_at = Some(now + SUSPENDED_LOOK_AFTER);
    }

    /// Whether a load that met an outage is to be tried again now.
    pub fn load_due(&self, now: Instant) -> bool {
        self.load_at.is_some_and(|it| it <= now)
    }

    /// The sweeps that start now. `is_first`: no other translator polls and audits the build for us.
    pub fn take_due(
        &mut self,
        now: Instant,
        is_first: impl Fn(&Build) -> bool,
    ) -> Vec<(Arc<Build>, Order)> {
        let running = |it: &&Served| matches!(it.sweep, Sweep::Running { .. });
        let mut free = SWEEPS_MAX.saturating_sub(self.served.values().filter(running).count());
        let mut due = Vec::new();
        for served in self.served.values_mut() {
            let idle = matches!(served.sweep, Sweep::Idle);
            if idle && served.timer.is_due(now, || is_first(&served.build)) {
                served.owe(None);
                served.audit = !served.polls;
            }
            if free == 0 || !matches!(&served.sweep, Sweep::Owed { from, .. } if *from <= now) {
                continue;
            }
            if let Sweep::Owed { tickets, .. } = std::mem::replace(&mut served.sweep, Sweep::Idle) {
                free -= 1;
                served.sweep = Sweep::Running { tickets, again: None };
                due.push((Arc::clone(&served.build), served.order()));
            }
        }
        due
    }

    /// The sweep has ended well, and the build serves.
    pub fn sweep_finished(&mut self, id: BuildId) -> Finished {
        let Some(served) = self.served.get_mut(&id) else { return Finished::default() };
        served.serving = true;
        served.built = true;
        served.reached = Reached::default();
        served.timer.wind(Instant::now());
        let mut finished = Finished::default();
        if let Sweep::Running { tickets, again } = std::mem::replace(&mut served.sweep, Sweep::Idle)
        {
            finished.tickets = tickets;
            if let Some(tickets) = again {
                served.sweep = Sweep::Owed { from: Instant::now(), tickets };
            }
        }
        let name = served.build.plan.name.clone();
        let others = self.served.values().filter(|it| it.build.plan.name == name);
        finished.replaced = others.map(|it| it.build.id).filter(|it| *it < id).collect();
        finished
    }

    /// The sweep has to start anew at `from`.
    pub fn sweep_failed(&mut self, id: BuildId, from: Instant) {
        let Some(served) = self.served.get_mut(&id) else { return };
        if let Sweep::Running { mut tickets, again } =
            std::mem::replace(&mut served.sweep, Sweep::Idle)
        {
            if again.is_some() {
                served.reached = Reached::default();
            }
            tickets.extend(again.into_iter().flatten());
            served.sweep = Sweep::Owed { from, tickets };
        }
    }
}

impl Served {
    fn order(&self) -> Order {
        let purpose = match (self.built && self.serving, self.audit) {
            (false, _) => Purpose::Build,
            (true, false) => Purpose::Poll,
            (true, true) => Purpose::Audit,
        };
        Order { publish: !self.serving, purpose, reached: Arc::clone(&self.reached) }
    }

    fn owe(&mut self, ticket: Option<u64>) {
        self.audit = false;
        match &mut self.sweep {
            Sweep::Idle => {
                let tickets = ticket.into_iter().collect();
                self.sweep = Sweep::Owed { from: Instant::now(), tickets };
            }
            Sweep::Owed { tickets, .. } => {
                // Nor does a part count that was swept before this was owed.
                self.reached = Reached::default();
                tickets.extend(ticket);
            }
            // What is owed now may lie in a slice that the running sweep has behind it.
            Sweep::Running { again, .. } => again.get_or_insert_default().extend(ticket),
        }
    }
}
