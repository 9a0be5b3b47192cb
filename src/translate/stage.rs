//! STAGE of the translate role: one task that owns what is pending, which offsets are done and
//! which builds there are; everything that takes time runs as a task of its own.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use rdkafka::consumer::CommitMode;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::document::DocumentKey;
use crate::document::pending::{BuildId, Pending};
use crate::elasticsearch::client::{ElasticError, Elasticsearch};
use crate::kafka::consumer::{Log, LogError, Partition};
use crate::kafka::feedback_sender;
use crate::kafka::offsets::{self, Offsets};
use crate::kafka::side::SideProducer;
use crate::mapping::watch;
use crate::translate::builds::Builds;
use crate::translate::claims::Claims;
use crate::translate::commits::{self, Commits};
use crate::translate::load::Loaded;
use crate::translate::lookups::Lookups;
use crate::translate::news::{Provenance, Telling};
use crate::translate::paces::Paces;
use crate::translate::readers::Readers;
use crate::translate::refresh::Trouble;
use crate::translate::route::Router;
use crate::translate::sweep::Demanded;
use crate::translate::sweep::pace::LoadMeter;
use crate::translate::{
    Context, Tools, TranslateError, epoch, fingerprint, lookup, news, read_limits, refresh, sweep,
    tend,
};

/// Messages taken in before other things get their turn: a few milliseconds of work.
const INTAKE_MAX: usize = 500;
/// Records behind a parked one whose offsets can't be committed yet: some 50 MB. A day's wait for
/// a standby holds up the others only once they are so many.
const OFFSETS_MAX: usize = 1_000_000;
/// How long an assignment may take to follow a revocation: twice the session timeout, which the
/// broker waits for members that died.
pub const REJOIN_MAX: Duration = Duration::from_secs(12);
/// How often an outage of the log is said while it lasts.
const LOG_ERROR_SAID_EVERY: Duration = Duration::from_secs(10);
/// How often offsets are committed while work goes on. What is not committed is done again after
/// a crash, which costs reads and changes nothing.
const COMMIT_EVERY: Duration = Duration::from_millis(200);
/// How often the highest N is noted (B4).
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// Who waits behind a ticket.
pub enum Origin {
    Record {
        place: offsets::Ticket,
        /// Microseconds since the Unix epoch.
        commit_us: i64,
        provenance: Option<Box<Provenance>>,
    },
    /// The tickets of the records whose images were looked up together.
    Lookup(Vec<u64>),
    /// A sweep that has asked for keys to be refreshed.
    Sweep(oneshot::Sender<()>),
}

/// A finished task.
pub enum Done {
    /// And how long it took.
    Refresh(refresh::Refreshed, Duration),
    Lookup(lookup::Report),
    Sweep(BuildId, Result<(), sweep::SweepError>),
    Catalog(Box<Result<Loaded, TranslateError>>),
    /// The sweep of a build that was forgotten meanwhile.
    GivenUp,
    /// The build's index says now that a sweep is owed to it.
    Suspended(BuildId),
    Buried(offsets::Ticket),
    Fingerprint(fingerprint::Taken),
    /// How far the database is, if it could be asked, and how far it was known to be before.
    Noted {
        before: epoch::Moment,
        now: Option<epoch::Moment>,
    },
    /// What is left of the build's index says now that a sweep is owed to it.
    Missing(BuildId),
    Tended(Result<tend::Look, ElasticError>),
    NotesRead(Result<commits::Read, LogError>),
    /// Partitions in which the group has no position any more.
    Forgotten(Result<Vec<Partition>, LogError>),
}

pub struct Stage {
    pub context: Context,
    pub tools: Arc<Tools>,
    pub log: Arc<Log>,
    pub router: Router,
    pub builds: Builds,
    pub pending: Pending,
    pub lookups: Lookups,
    pub offsets: Offsets<Partition>,
    pub tickets: HashMap<u64, Origin>,
    pub next_ticket: u64,
    pub tasks: JoinSet<Done>,
    pub refreshing: usize,
    /// Lookups that run, pages of walks aside.
    pub looking_up: usize,
    pub paces: Paces,
    /// How often in a row a key was read in vain.
    pub attempts: HashMap<(BuildId, DocumentKey), u32>,
    pub trouble: Option<Trouble>,
    /// How often in a row a build's SQL could not be run although its tables are there.
    pub outdated: HashMap<BuildId, u32>,
    /// The log has said an error since it was last seen to come back.
    pub log_failed: bool,
    pub log_error_said: Option<Instant>,
    /// No broker of the log answers.
    pub log_away: bool,
    /// Since when partitions were revoked and no assignment has followed.
    pub rejoining: Option<Instant>,
    /// How far the database was when it was last asked.
    pub noted: epoch::Moment,
    pub commits: Commits,
    pub paused: bool,
    /// The topics that the log is read from.
    pub followed: Vec<String>,
    /// What the catalog said when it was last asked.
    pub seen: fingerprint::Seen,
    /// Builds whose index is about to be made anew.
    pub recreating: HashSet<BuildId>,
    /// A look at the indices is under way.
    pub tending: bool,
    /// Why an index takes no writes, as of the last look.
    pub blocked: Option<String>,
    /// What has been said of aliases that are not as they should be, and of whom.
    pub said: BTreeSet<String>,
    pub orphaned: Vec<String>,
    pub telling: Telling,
    /// Sweeps send keys here that a refresh must look at.
    pub demands: mpsc::Sender<Demanded>,
}

async fn make_tools(
    context: &Context,
    readers: Readers,
    identity: epoch::Identity,
    log: &Arc<Log>,
) -> Result<Tools, TranslateError> {
    let config = &context.config;
    let elastic = Elasticsearch::new(&config.elasticsearch)?;
    let feedback = feedback_sender::of_role(config, context.metrics.clone()).await?;
    Ok(Tools {
        feedback,
        readers,
        distribution: elastic.info().await?.distribution,
        elastic,
        side: SideProducer::new(&config.kafka, context.metrics.clone())?,
        metrics: context.metrics.clone(),
        claims: Claims::default(),
        identity,
        config: config.clone(),
        log: Arc::downgrade(log),
        load: LoadMeter::default(),
        refresh_round_keys: config.translate.keys_per_read * config.translate.connections,
    })
}

/// Runs one session: from the first read to shutdown (Ok) or to what ends it.
pub async fn run_session(
    context: &Context,
    reload: &mut mpsc::Receiver<()>,
) -> Result<(), TranslateError> {
    let config = &context.config;
    let readers = Readers::new(
        config.postgres.url.clone(),
        read_limits(config),
        config.translate.connections,
    );
    let before = epoch::load(&config.kafka).await?;
    let now = epoch::moment(&readers).await?;
    let (identity, sweep_all) = epoch::decide(before.as_ref(), &now);
    if sweep_all {
        tracing::warn!(
            epoch = identity.epoch,
            timeline = identity.timeline,
            "the database is not a continuation of what was read before: sweeping everything"
        );
    }
    let log = Arc::new(Log::new(&config.kafka)?);
    let tools = Arc::new(make_tools(context, readers, identity, &log).await?);
    // A session before this one may have ended in the middle of sweeps.
    tools.metrics.sweeps_pending.reset();
    // A few slices of demands: a sweep waits when the stage is busy.
    let (demands, demanded) = mpsc::channel(8);
    let mut stage = Stage {
        context: context.clone(),
        tools,
        log,
        router: Router::default(),
        builds: Builds::new(sweep_all),
        pending: Pending::default(),
        lookups: Lookups::default(),
        offsets: Offsets::default(),
        tickets: HashMap::new(),
        next_ticket: 0,
        tasks: JoinSet::new(),
        refreshing: 0,
        looking_up: 0,
        paces: Paces::default(),
        attempts: HashMap::new(),
        trouble: None,
        outdated: HashMap::new(),
        log_failed: false,
        log_error_said: None,
        log_away: false,
        rejoining: None,
        noted: now,
        commits: Commits::default(),
        paused: false,
        followed: Vec::new(),
        seen: fingerprint::Seen::default(),
        recreating: HashSet::new(),
        tending: false,
        blocked: None,
        said: BTreeSet::new(),
        orphaned: Vec::new(),
        telling: Telling::default(),
        demands,
    };
    stage.load_catalog();
    let ended = stage.run(demanded, reload).await;
    stage.tasks.shutdown().await;
    news::say_goodbye(&stage.tools, ended.is_ok()).await;
    let log = Arc::clone(&stage.log);
    drop(stage);
    Log::close(log).await;
    ended
}

/// What was not asked for while a load took its time is not asked for many times at once after it.
fn delayed_interval(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    interval
}

impl Stage {
    async fn run(
        &mut self,
        mut demanded: mpsc::Receiver<Demanded>,
        reload: &mut mpsc::Receiver<()>,
    ) -> Result<(), TranslateError> {
        // One waiting signal says all: a load reads every file.
        let (changed, mut changes) = mpsc::channel(1);
        let mut watching = JoinSet::new();
        watching.spawn(watch::watch(self.context.config.translate.mappings.clone(), changed));
        let (log, shutdown) = (Arc::clone(&self.log), self.context.shutdown.clone());
        let [mut commit_timer, mut note_timer, mut tend_timer] =
            [COMMIT_EVERY, NOTE_EVERY, tend::TEND_EVERY].map(delayed_interval);
        loop {
            // Here, as no message comes any more once the log is paused.
            self.note_rebalances()?;
            self.pace_intake()?;
            self.schedule()?;
            let wake = self.next_wake();
            if shutdown.is_cancelled() && !self.is_working() {
                return self.drained();
            }
            tokio::select! {
                biased;

                // 1. Shutdown: take nothing more in; what is being read or written ends first.
                () = shutdown.cancelled(), if !self.builds.closed => self.builds.closed = true,

                // 2. A task ended: results free connections and offsets, so they come before
                //    new work.
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.on_done(done)?,
                    Err(panic) => std::panic::resume_unwind(panic.into_panic()),
                },

                // 3. A sweep asks for keys. Ahead of the log, as the sweep waits for the answer.
                Some(it) = demanded.recv() => self.on_demanded(it),

                // 4. Offsets: seldom, and nothing else may postpone them for ever.
                _ = commit_timer.tick() => self.commit(CommitMode::Async)?,

                // 5. The highest N, for the time after a restore.
                //    Not before a load has taken the marks away that a new epoch makes void: a
                //    record of this epoch says that they are.
                _ = note_timer.tick(), if self.builds.is_loaded() => self.note_progress(),

                // 6. Aliases and indices; what a command waits for.
                _ = tend_timer.tick(), if !self.builds.closed => self.start_tending(),

                // 7. A mapping file changed, or SIGHUP.
                Some(()) = changes.recv(), if !self.builds.closed => self.load_for_a_person(),
                Some(()) = reload.recv(), if !self.builds.closed => self.load_for_a_person(),

                // 8. A parked key, an owed sweep, a poll or a look at the catalog is due.
                () = tokio::time::sleep_until(wake.into()) => {}

                // 9. The log, last: what is already here goes first.
                message = log.consumer().recv(), if !self.builds.closed => {
                    match message {
                        Ok(message) => {
                            // What happened to the partitions before the message came.
                            self.note_rebalances()?;
                            self.take_in(&message);
                        }
                        Err(error) => self.on_log_error(error)?,
                    }
                    self.take_more()?;
                }
            }
        }
    }

    /// Takes in what librdkafka has already fetched, up to a bound.
    fn take_more(&mut self) -> Result<(), TranslateError> {
        let log = Arc::clone(&self.log);
        for _ in 1..INTAKE_MAX {
            match log.consumer().recv().now_or_never() {
                None => break,
                Some(Ok(message)) => {
                    self.note_rebalances()?;
                    self.take_in(&message);
                }
                Some(Err(error)) => self.on_log_error(error)?,
            }
        }
        Ok(())
    }

    /// To be called before a message is taken in: a partition that was revoked and came back
    /// must be forgotten before its first message counts, not after.
    fn note_rebalances(&mut self) -> Result<(), TranslateError> {
        let events = self.log.take_rebalanced();
        if events.is_empty() {
            return Ok(());
        }
        for event in events {
            self.on_rebalanced(event);
        }
        // New partitions start unpaused, and those that stay remain as they were.
        self.log.pause(self.paused)?;
        Ok(())
    }

    /// Pauses the log when too much is pending; poll() goes on, so that no rebalance comes of it.
    fn pace_intake(&mut self) -> Result<(), TranslateError> {
        let load = self.pending.load() + self.lookups.len() + self.tasks.len();
        let limit = self.context.config.translate.pending_keys_max;
        let limit = if self.paused { limit / 2 } else { limit };
        // The low lane is bounded by itself. Each of its keys has the ticket of its fan-out.
        let limit = limit + 2 * self.pending.low();
        let pause = load > limit || self.offsets.len() > OFFSETS_MAX;
        if pause != self.paused {
            self.log.pause(pause)?;
            self.paused = pause;
        }
        Ok(())
    }

    fn on_log_error(&mut self, error: rdkafka::error::KafkaError) -> Result<(), TranslateError> {
        use rdkafka::error::{KafkaError, RDKafkaErrorCode};
        match error {
            // Positions are gone (retention, a re-created topic): a new session finds out which.
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::FencedInstanceId,
            )
            | KafkaError::MessageConsumptionFatal(_) => {
                Err(LogError { doing: "reading the log", source: error }.into())
            }
            other => {
                // librdkafka reconnects by itself; `follow_log` says when it has. Meanwhile it
                // says the same a dozen times a second.
                self.log_failed = true;
                if self.log_error_said.is_none_or(|it| it.elapsed() > LOG_ERROR_SAID_EVERY) {
                    self.log_error_said = Some(Instant::now());
                    tracing::warn!(error = %other, "the log does not answer");
                }
                Ok(())
            }
        }
    }

    /// Commits what may be, and updates the metrics that follow from it.
    fn commit(&mut self, mode: CommitMode) -> Result<(), TranslateError> {
        self.follow_log();
        self.check_rejoined()?;
        self.update_metrics();
        self.commit_positions(mode);
        self.look_for_forgotten();
        Ok(())
    }

    /// For `/readyz`: whether the log can be read. It comes and goes apart from the outages that
    /// reads and writes meet, of which `trouble` has the last.
    fn follow_log(&mut self) {
        self.log.find_cluster(&self.context.config.kafka);
        // An idle connection may be closed by either side: only after an error is it an outage.
        let away = self.log_failed && self.log.is_away();
        if away == self.log_away {
            return;
        }
        self.log_away = away;
        self.log_failed = away;
        self.tell_health();
    }

    /// Whether we wait for somebody.
    pub fn is_ill(&self) -> bool {
        let outage = matches!(self.trouble, Some(Trouble::Outage(_)));
        self.log_away || self.blocked.is_some() || outage
    }

    /// For `/readyz`: what we wait for, the reason that explains the others first.
    pub fn tell_health(&self) {
        let health = &self.context.health;
        match (&self.blocked, &self.trouble) {
            _ if self.log_away => health.waits("translate", "Kafka: no broker answers"),
            (Some(reason), _) | (None, Some(Trouble::Outage(reason))) => {
                health.waits("translate", reason.as_str());
            }
            (None, Some(_) | None) => health.ready("translate"),
        }
    }

    fn update_metrics(&mut self) {
        let metrics = &self.tools.metrics;
        let behind: i64 = self
            .offsets
            .all_committable()
            .filter_map(|(partition, at)| Some(self.log.high_offset(partition)? - at))
            .map(|it| it.max(0))
            .sum();
        let count = |it: usize| i64::try_from(it).unwrap_or(i64::MAX);
        self.context.health.set_collections(self.builds.states());
        for (collection, sweeps) in self.builds.sweeps_pending() {
            metrics.sweeps_pending.with_label_values(&[&collection]).set(count(sweeps));
        }
        metrics.translate_lag_records.set(behind);
        metrics.translate_pending_keys.set(count(self.pending.len() + self.lookups.len()));
        metrics.translate_low_keys.set(count(self.pending.low()));
        metrics.translate_parked_keys.set(count(self.pending.parked() + self.lookups.parked()));
        self.tell_hop(behind);
    }

    fn drained(&mut self) -> Result<(), TranslateError> {
        self.commit(CommitMode::Sync)?;
        tracing::info!(pending = self.pending.len(), "translate drained");
        Ok(())
    }

    /// Whether anything is being read or written, sweeps aside.
    fn is_working(&self) -> bool {
        self.refreshing + self.looking_up > 0 || self.paces.walking
    }

    /// When something is due by itself; far away when nothing is.
    fn next_wake(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3_600);
        if self.builds.closed {
            return far;
        }
        // While every place is taken, the end of a task is what to wait for: a time that has
        // passed would keep the log from being polled.
        let wakes = [self.pending.next_wake(), self.paces.next_wake(self.pending.low() > 0)];
        let pending = wakes.into_iter().flatten().min();
        let pending = pending.filter(|_| self.refreshing < self.refresh_places());
        let lookups = self.lookups.next_wake().filter(|_| self.may_look_up());
        let pages = self.lookups.next_page().filter(|_| self.may_walk());
        let times = [pending, lookups, pages, self.builds.next_due(), self.seen.next_look()];
        times.into_iter().flatten().min().unwrap_or(far)
    }
}
