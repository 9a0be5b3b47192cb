//! STAGE: copies of tables into the log, beside the live stream.
//!
//! Here it is decided which tables are copied when: what the progress topic says is unfinished, what
//! is asked for at the desk, what lost its topic, and with `mode = "initial"` every published table
//! that was never copied. A table's copy itself is in `table.rs`.
//!
//! A copy never ends the session: what it can't do it tells, and tries again.
//!
//! **Invariant:** one copy at most of a table, and every change of a copy's state is in the progress
//! topic before it is answered.

mod server;
mod table;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use self::table::{Ended, TableCopy};
use crate::causes::with_causes;
use crate::config::{Config, CopyMode};
use crate::copies::{Asked, Desk, Refusal, Wish};
use crate::kafka::chunk::CopyWord;
use crate::kafka::copy_record::{CopyRecord, CopyState};
use crate::kafka::delivery::now_ms;
use crate::kafka::progress_record;
use crate::kafka::side::{SideError, SideProducer};
use crate::lsn::Lsn;
use crate::metrics::Metrics;
use crate::postgres::client;
use crate::postgres::connection::IdentifySystem;
use crate::postgres::copy::check_condition;
use crate::postgres::publication;

/// How often the publication is looked at for tables that were never copied.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How often the numbers of all copies are summed up.
const SUM_INTERVAL: Duration = Duration::from_secs(1);

/// What all copies of a session share.
pub(super) struct Session {
    pub config: Config,
    pub system: IdentifySystem,
    /// What our watermarks name.
    pub name: String,
    pub words: mpsc::Sender<CopyWord>,
    /// What is durable in Kafka.
    pub confirmed: watch::Receiver<Lsn>,
    pub desk: Desk,
    pub metrics: Metrics,
    /// The number of the next low watermark.
    pub next_copy: AtomicU64,
    records: Mutex<BTreeMap<String, CopyRecord>>,
    /// Made for the first copy: most sessions have none.
    side: Mutex<Option<SideProducer>>,
}

/// What a session of capture has for its copies.
pub(super) struct Ground {
    pub config: Config,
    pub system: IdentifySystem,
    pub name: String,
    pub words: mpsc::Sender<CopyWord>,
    pub confirmed: watch::Receiver<Lsn>,
    pub desk: Desk,
    pub metrics: Metrics,
    /// By table, as the progress topic has them.
    pub records: BTreeMap<String, CopyRecord>,
}

impl Session {
    fn new(ground: Ground) -> Self {
        let Ground { config, system, name, words, confirmed, desk, metrics, records } = ground;
        let (next_copy, records, side) = (AtomicU64::new(1), Mutex::new(records), Mutex::new(None));
        Self { config, system, name, words, confirmed, desk, metrics, next_copy, records, side }
    }

    fn side(&self) -> Result<SideProducer, SideError> {
        let mut side = self.side.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(side) = &*side {
            return Ok(side.clone());
        }
        let made = SideProducer::new(&self.config.kafka, self.metrics.clone())?;
        *side = Some(made.clone());
        Ok(made)
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<String, CopyRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, table: &str) -> Option<CopyRecord> {
        self.records().get(table).cloned()
    }

    /// Writes a copy's record to the progress topic, and remembers it once it is there.
    async fn note(&self, table: &str, record: CopyRecord) -> Result<(), SideError> {
        let key = progress_record::copy_key(&self.config.postgres.slot_name, table);
        self.side()?.note_progress(&key, &record.to_json()).await?;
        self.desk.say(table, |it| {
            it.state = record.state.name();
            // While it runs, it is further than what is noted.
            if record.state != CopyState::Running {
                (it.rows, it.waits_for, it.seconds_left) = (record.rows, None, None);
            }
        });
        self.records().insert(table.to_owned(), record);
        Ok(())
    }

    /// The table is not published any more.
    async fn forget(&self, table: &str) -> Result<(), SideError> {
        let key = progress_record::copy_key(&self.config.postgres.slot_name, table);
        self.side()?.remove_progress(&key).await?;
        self.desk.forget(table);
        self.records().remove(table);
        Ok(())
    }
}

/// Runs until `shutdown`, or until the session's other stages have ended.
pub(super) async fn run_copies(ground: Ground, shutdown: CancellationToken) {
    let session = Arc::new(Session::new(ground));
    for (table, record) in session.records().iter() {
        session.desk.say(table, |it| (it.state, it.rows) = (record.state.name(), record.rows));
    }
    let waiting = session.desk.waiting();
    let mut wishes = waiting.lock().await;
    let mut copies = Copies { session, running: JoinSet::new(), tokens: HashMap::new(), shutdown };
    let (mut look, mut sum) = (interval(LOOK_INTERVAL), interval(SUM_INTERVAL));
    for ticks in [&mut look, &mut sum] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let initial = copies.session.config.copy.mode == CopyMode::Initial;
    let shutdown = copies.shutdown.clone();
    loop {
        copies.start();
        tokio::select! {
            biased;
            // 1. The end, before anything that would begin.
            () = shutdown.cancelled() => break,
            // 2. A copy ended: there is room for another one.
            Some(ended) = copies.running.join_next() => copies.ended(ended).await,
            // 3. What people ask for, before what we find to do by ourselves.
            Some(asked) = wishes.recv() => {
                shutdown.run_until_cancelled(copies.answer(asked)).await;
            }
            // 4. Tables that were never copied.
            _ = look.tick(), if initial => {
                // A server that is away must not hold up the drain.
                shutdown.run_until_cancelled(copies.look_for_tables()).await;
            }
            // 5. Tables whose topics were deleted, and numbers for those who watch.
            _ = sum.tick() => {
                shutdown.run_until_cancelled(copies.look_for_lost_topics()).await;
                copies.sum_up();
            }
        }
    }
    // Each ends at its next wait.
    while copies.running.join_next().await.is_some() {}
    copies.sum_up();
}

struct Copies {
    session: Arc<Session>,
    running: JoinSet<(String, Ended)>,
    /// Of the running ones.
    tokens: HashMap<String, CancellationToken>,
    shutdown: CancellationToken,
}

impl Copies {
    /// Starts what is to run, as far as there is room.
    fn start(&mut self) {
        let wanted: Vec<String> = {
            let records = self.session.records();
            let to_run = records.iter().filter(|(_, it)| it.state == CopyState::Running);
            let idle = to_run.filter(|(table, _)| !self.tokens.contains_key(*table));
            idle.map(|(table, _)| table.clone()).collect()
        };
        for table in wanted {
            if self.session.config.copy.tables_at_once <= self.tokens.len() {
                return;
            }
            let token = self.shutdown.child_token();
            self.tokens.insert(table.clone(), token.clone());
            let copy = TableCopy::new(Arc::clone(&self.session), table.clone());
            self.running.spawn(async move {
                let ended = token.run_until_cancelled(copy.run()).await;
                (table, ended.unwrap_or(Ended::Stopped))
            });
        }
    }

    async fn ended(&mut self, ended: Result<(String, Ended), tokio::task::JoinError>) {
        let (table, ended) = match ended {
            Ok(it) => it,
            // A defect of ours, in one table's copy. The stream and the others go on; this one
            // stays in `tokens`, so that it is not tried again before the next session.
            Err(error) => {
                tracing::error!(%error, "a copy panicked; this is a defect of onelog");
                return;
            }
        };
        self.tokens.remove(&table);
        match ended {
            Ended::Stopped => {}
            Ended::Done => tracing::info!(table, "copied"),
            Ended::NotPublished => {
                tracing::warn!(table, "the table is not published any more; its copy ends");
                if let Err(error) = self.session.forget(&table).await {
                    tracing::warn!(error = with_causes(&error), table, "that can't be noted");
                }
            }
        }
    }

    /// Has the table's copy end, between two of its waits.
    async fn stop(&mut self, table: &str) {
        if let Some(token) = self.tokens.get(table) {
            token.cancel();
        }
        while self.tokens.contains_key(table)
            && let Some(ended) = self.running.join_next().await
        {
            self.ended(ended).await;
        }
    }

    async fn answer(&mut self, asked: Asked) {
        let Asked { table, wish, reply } = asked;
        let answer = self.grant(&table, wish.clone()).await;
        match &answer {
            Ok(()) => tracing::info!(table, ?wish, "asked for"),
            Err(reason) => tracing::info!(table, ?wish, %reason, "refused"),
        }
        // Who asked may have gone; the progress topic has it.
        reply.send(answer).unwrap_or_default();
    }

    async fn grant(&mut self, table: &str, wish: Wish) -> Result<(), Refusal> {
        let known = self.session.record(table);
        let state = known.as_ref().map(|it| it.state);
        let record = match (wish, known) {
            (Wish::Start { .. }, Some(it)) if it.is_open() => {
                let state = it.state.name();
                let reason =
                    format!("{table} is being copied already ({state}); cancel that first");
                return Err(Refusal::NotNow(reason));
            }
            (Wish::Start { condition }, _) => {
                self.check(table, condition.as_deref()).await?;
                CopyRecord::new(condition, now_ms())
            }
            (_, None) => return Err(Refusal::NotNow(format!("{table} is not being copied"))),
            (wish, Some(it)) => {
                let to = match (&wish, it.state) {
                    (Wish::Pause, CopyState::Running) => CopyState::Paused,
                    (Wish::Resume, CopyState::Paused) => CopyState::Running,
                    (Wish::Cancel, CopyState::Running | CopyState::Paused) => CopyState::Cancelled,
                    _ => {
                        let state = it.state.name();
                        return Err(Refusal::NotNow(format!("the copy of {table} is {state}")));
                    }
                };
                self.stop(table).await;
                // It may have moved on, and even have ended.
                let last = self.session.record(table).unwrap_or(it);
                if !last.is_open() {
                    return Err(Refusal::NotNow(format!("the copy of {table} has just ended")));
                }
                CopyRecord { state: to, ..last }
            }
        };
        let starts = record.state == CopyState::Running;
        self.session.note(table, record).await.map_err(|it| unavailable(&it))?;
        if starts && state != Some(CopyState::Paused) {
            self.session.desk.say(table, |it| (it.rows, it.expected_rows) = (0, 0));
        }
        Ok(())
    }

    /// Whether the table can be copied.
    async fn check(&self, table: &str, condition: Option<&str>) -> Result<(), Refusal> {
        if self.session.config.outbox.tables.iter().any(|it| it == table) {
            return Err(Refusal::Wrong(format!(
                "{table} is an outbox: its rows are events, published when they are inserted"
            )));
        }
        let config = &self.session.config.postgres;
        let client = client::connect(&config.url, "onelog copy").await;
        let client = client.map_err(|it| unavailable(&it))?;
        let tables = publication::published_tables(&client, &config.publication_name).await;
        let tables = tables.map_err(|it| unavailable(&it))?;
        let found = tables.iter().find(|it| table::name_of(it) == table);
        let Some(found) = found else {
            return Err(Refusal::Wrong(format!(
                "{table} is not published; name it as schema.table (a partitioned one by its root), \
                 or add it to [postgres] tables and run `onelog prepare`"
            )));
        };
        let Some(condition) = condition else { return Ok(()) };
        let one = format!("SELECT FROM t WHERE (\n{condition}\n)");
        let parsed = pg_query::parse(&one, pg_query::ParserOptions::default())
            .is_ok_and(|it| it.protobuf.stmts.len() == 1);
        if !parsed {
            let reason = format!("the condition is not one SQL expression: {condition}");
            return Err(Refusal::Wrong(reason));
        }
        let root = (found.root_namespace.as_str(), found.root_name.as_str());
        let checked = check_condition(&client, root, condition).await;
        checked.map_err(|error| match error.is_transient() {
            true => unavailable(&error),
            false => Refusal::Wrong(with_causes(&error)),
        })
    }

    /// Every published table that was never copied is to be.
    async fn look_for_tables(&mut self) {
        let config = &self.session.config.postgres;
        let looked = async {
            let client =
                client::connect(&config.url, "onelog copy").await.map_err(|it| told(&it))?;
            let tables = publication::published_tables(&client, &config.publication_name).await;
            for found in tables.map_err(|it| told(&it))? {
                let table = table::name_of(&found);
                let is_outbox = self.session.config.outbox.tables.contains(&table);
                if !is_outbox && self.session.record(&table).is_none() {
                    tracing::info!(table, "never copied: its copy begins");
                    let record = CopyRecord::new(None, now_ms());
                    self.session.note(&table, record).await.map_err(|it| told(&it))?;
                }
            }
            Ok::<(), String>(())
        };
        if let Err(error) = looked.await {
            tracing::warn!(error, "can't look for tables to copy");
        }
    }

    /// A table that was copied, and whose topic had to be made since, is copied again: somebody
    /// has deleted the topic. What is asked for meanwhile waits.
    async fn look_for_lost_topics(&mut self) {
        let desk = self.session.desk.clone();
        for (topic, was_there) in desk.topics().unsettled() {
            if let Err(error) = self.copy_again(&topic, was_there).await {
                tracing::warn!(error = with_causes(&error), topic, "can't note a copy yet");
                return;
            }
            desk.topics().settle(&topic);
        }
    }

    async fn copy_again(&mut self, topic: &str, was_there: bool) -> Result<(), SideError> {
        let session = Arc::clone(&self.session);
        let is_of_it = |table: &&String| session.config.kafka.table_topic(table) == topic;
        let Some(table) = session.records().keys().find(is_of_it).cloned() else { return Ok(()) };
        self.stop(&table).await;
        // A table whose copy has published nothing may have had no topic until now.
        let known = session.record(&table).filter(|it| was_there || 0 < it.rows);
        let Some(known) = known else { return Ok(()) };
        if known.state == CopyState::Cancelled {
            tracing::warn!(table, "its topic was deleted, and its copy called off: none begins");
            return Ok(());
        }
        let is_paused = known.state == CopyState::Paused;
        let state = if is_paused { CopyState::Paused } else { CopyState::Running };
        let whole = session.config.copy.mode == CopyMode::Initial;
        let condition = known.condition.filter(|_| !whole);
        tracing::warn!(table, topic, "the table's topic was deleted: the table is copied again");
        let record = CopyRecord { state, ..CopyRecord::new(condition, now_ms()) };
        session.note(&table, record).await?;
        session.desk.say(&table, |it| (it.rows, it.expected_rows) = (0, 0));
        Ok(())
    }

    fn sum_up(&self) {
        let statuses = self.session.desk.statuses();
        let running = || statuses.iter().filter(|(table, _)| self.tokens.contains_key(*table));
        let records = self.session.records();
        let to_run = records.values().filter(|it| it.state == CopyState::Running).count();
        let stuck = running().filter(|(_, it)| it.waits_for.is_some()).count();
        let waiting = to_run.saturating_sub(self.tokens.len()) + stuck;
        let left = running().filter_map(|(_, it)| it.seconds_left).max().unwrap_or(0);
        let metrics = &self.session.metrics;
        let gauge = |it: usize| i64::try_from(it).unwrap_or(i64::MAX);
        metrics.copies_running.set(gauge(self.running.len()));
        metrics.copies_waiting.set(gauge(waiting));
        metrics.copy_left_seconds.set(i64::try_from(left).unwrap_or(i64::MAX));
    }
}

fn told(error: &dyn std::error::Error) -> String {
    with_causes(error)
}

fn unavailable(error: &dyn std::error::Error) -> Refusal {
    Refusal::Unavailable(with_causes(error))
}
