//! A sweep walks a whole collection in key ranges and makes its index equal to its SQL: backfill,
//! poll, audit and rebuild are all this (rule 6).
//!
//! Each slice is a read of its own, short and with its own version, so that no long snapshot holds
//! back vacuum or DDL (A10). Several are in hand at once, as many as refreshes leave room for
//! ([`pace`]). What differs from the index is written, or refreshed if somebody else writes it.
//! Afterwards the index's keys are paged through: those without a row are orphans, and a refresh
//! deletes them. Not slice by slice, as A10 has it: an `_id` can't be searched by range, and its
//! bytes are not in the order of the key's type (numbers, collations).
//!
//! # Why a sweep may go on where another process was killed
//! The index's note says up to which key it has come ([`frontier`]). A key below has been written
//! from a snapshot taken after the collection was live. What changed since is in the log, behind
//! offsets that are committed only once its documents are written, so that the next process does
//! again what the killed one had in flight. The note is void as soon as the log has a gap for the
//! index, under the very conditions that take away the mark of a built one: positions lost, a
//! mapping that was away or broken, another epoch. Each of these begins a new *era* of the index,
//! and a sweep of an earlier era notes nothing any more.

mod audit;
pub mod frontier;
mod orphans;
pub mod pace;
mod progress;
mod repair;
mod slices;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::causes::with_causes;
use crate::document::DocumentKey;
use crate::document::pending::BuildId;
use crate::document::read::ReadError;
use crate::elasticsearch::client::ElasticError;
use crate::elasticsearch::index::note::SweptTo;
use crate::translate::publish;
use crate::translate::refresh::{Trouble, trouble_of};
use crate::translate::sweep::audit::Suspect;
use crate::translate::sweep::progress::Progress;
use crate::translate::verify::Fault;
use crate::translate::{Build, Tools};

/// How often a wait for old transactions is said.
const SETTLE_SAID_EVERY: Duration = Duration::from_secs(10);
/// Between two looks at the oldest running transaction.
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

/// Why a sweep has nobody to answer it.
const STOPS: &str = "the stage stops";

/// How far a sweep has come, for the one that follows if it ends early.
pub type Reached = Arc<Mutex<Option<SweptTo>>>;

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The index is not whole: a new one, or one that has missed changes.
    Build,
    /// A whole one may differ: some changes reach the documents by sweeps only, such as those of a
    /// TRUNCATE, or of SQL without key paths.
    Poll,
    /// Nothing should differ.
    Audit,
}

impl Purpose {
    /// For logs and `/v1/status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Poll => "poll",
            Self::Audit => "audit",
        }
    }
}

/// What kind of sweep.
#[derive(Debug, Clone)]
pub struct Order {
    /// Swap the alias to the build's index at the end.
    pub publish: bool,
    pub purpose: Purpose,
    pub reached: Reached,
}

/// Keys that a refresh must look at, and who waits for it.
pub struct Demanded {
    pub build: BuildId,
    pub keys: Vec<DocumentKey>,
    pub done: oneshot::Sender<()>,
}

/// Why a sweep ended early. It goes on shortly where it was; what it has written stays.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    #[error("sweep of {collection} interrupted: {reason}")]
    Outage { collection: String, reason: String },
    #[error("the database we read is another one now")]
    Moved,
    #[error("the definition of a table changed")]
    PlanOutdated,
    #[error("the index is gone")]
    IndexMissing,
    /// From the beginning.
    #[error("the log has a gap for the collection since the sweep began")]
    Void,
    /// The alias stays where it is.
    #[error("collection {collection}: index {index} may not serve yet: {reason}")]
    Unverified { collection: String, index: String, reason: String },
}

struct Sweeper {
    tools: Arc<Tools>,
    build: Arc<Build>,
    demands: mpsc::Sender<Demanded>,
    order: Order,
    /// The index had nothing when the sweep began: nothing to compare with, no orphans.
    fresh: bool,
    /// Of the index, when the sweep began.
    era: u64,
    progress: Progress,
    /// Documents that an audit found to differ.
    suspects: Mutex<Vec<Suspect>>,
}

/// Sweeps the build's collection; at the end the index is marked as built, and the alias points to
/// it if `order` says so.
pub async fn sweep(
    tools: Arc<Tools>,
    build: Arc<Build>,
    order: Order,
    demands: mpsc::Sender<Demanded>,
) -> Result<(), SweepError> {
    let progress = Progress::new(&tools.metrics, &build.plan.name, order.purpose);
    let suspects = Mutex::default();
    let mut sweeper =
        Sweeper { tools, build, demands, order, fresh: false, era: 0, progress, suspects };
    sweeper.build.tally.begin();
    let from = sweeper.begin().await?;
    // What an earlier process has filled is not in this one's tally.
    let filled = sweeper.fresh && from.is_none();
    sweeper.settle().await?;
    let sweeper = Arc::new(sweeper);
    let documents = Arc::clone(&sweeper).slices(from).await?;
    if !sweeper.fresh {
        sweeper.orphans().await?;
    }
    sweeper.judge(true).await?;
    sweeper.publish(filled).await?;
    tracing::info!(
        collection = sweeper.build.plan.name,
        purpose = sweeper.order.purpose.name(),
        documents,
        seconds = sweeper.progress.elapsed().as_secs_f64(),
        "swept"
    );
    Ok(())
}

impl Sweeper {
    fn outage(&self, reason: String) -> SweepError {
        SweepError::Outage { collection: self.build.plan.name.clone(), reason }
    }

    fn elastic(&self, error: &ElasticError) -> SweepError {
        if let ElasticError::NotFound { .. } = error {
            return SweepError::IndexMissing;
        }
        self.outage(format!("Elasticsearch: {}", with_causes(error)))
    }

    fn trouble(&self, trouble: Trouble) -> SweepError {
        match trouble {
            Trouble::Moved => SweepError::Moved,
            Trouble::PlanOutdated => SweepError::PlanOutdated,
            Trouble::Outage(reason) => self.outage(reason),
            Trouble::IndexMissing(_) => SweepError::IndexMissing,
        }
    }

    fn read_error(&self, error: &ReadError) -> SweepError {
        self.trouble(trouble_of(error))
    }

    /// Finds out what the index is, and where to begin: behind what a sweep of this era has done.
    async fn begin(&mut self) -> Result<Option<SweptTo>, SweepError> {
        let (elastic, index) = (&self.tools.elastic, &self.build.index);
        let note = elastic.meta(index).await.map_err(|it| self.elastic(&it))?;
        self.era = note.ok_or(SweepError::IndexMissing)?.era;
        let reached = self.order.reached.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(from) = reached.filter(|it| it.era == self.era) {
            self.fresh = from.fresh;
            tracing::info!(
                collection = self.build.plan.name,
                documents = from.documents,
                behind = from.key,
                "the sweep goes on where it was"
            );
            return Ok(Some(from));
        }
        elastic.refresh(index).await.map_err(|it| self.elastic(&it))?;
        let count = elastic.count(index).await.map_err(|it| self.elastic(&it))?;
        self.fresh = count == 0;
        Ok(None)
    }

    /// Waits until every transaction that may have committed before the collection went live is
    /// visible to all snapshots, or gone: their changes are not read from the log any more.
    async fn settle(&self) -> Result<(), SweepError> {
        let started = Instant::now();
        let mut said = started;
        let mut pause = tokio::time::interval(SETTLE_PAUSE);
        let mut horizon = None;
        loop {
            pause.tick().await;
            let read = self.tools.readers.read(&[], &[]).await;
            let stamp = read.map_err(|it| self.read_error(&it))?.stamp;
            if !self.tools.identity.is_of(&stamp) {
                return Err(SweepError::Moved);
            }
            let horizon = *horizon.get_or_insert(stamp.snapshot.xmax);
            if stamp.snapshot.xmin >= horizon {
                return Ok(());
            }
            if said.elapsed() > SETTLE_SAID_EVERY {
                said = Instant::now();
                tracing::warn!(
                    collection = self.build.plan.name,
                    xid = stamp.snapshot.xmin,
                    waited = ?started.elapsed(),
                    "the sweep waits for an old transaction to end; find it in pg_stat_activity \
                     (backend_xid) or pg_prepared_xacts"
                );
            }
        }
    }

    /// Marks the index as whole, and leads the alias to it, verified, if the order says so.
    async fn publish(&self, filled: bool) -> Result<(), SweepError> {
        let elastic = &self.tools.elastic;
        let index = &self.build.index;
        elastic.refresh(index).await.map_err(|it| self.elastic(&it))?;
        if self.order.publish {
            match publish::serve(&self.tools, &self.build, (self.era, filled)).await {
                Ok(()) => {}
                Err(fault) => return Err(self.fault(fault).await),
            }
        } else {
            let fingerprint = self.build.plan.fingerprint.to_text();
            let finished = elastic.finish_sweep(index, self.era, fingerprint).await;
            if !finished.map_err(|it| self.elastic(&it))? {
                return Err(SweepError::Void);
            }
        }
        let label = [self.build.plan.name.as_str()];
        self.tools.metrics.collection_live.with_label_values(&label).set(1);
        Ok(())
    }

    async fn fault(&self, fault: Fault) -> SweepError {
        match fault {
            Fault::Differs(reason) => {
                let index = self.build.index.to_string();
                // The next sweep must look at everything, and not go on where this one ended.
                if let Err(error) = self.tools.elastic.mark_built(&index, false).await {
                    return self.elastic(&error);
                }
                let collection = self.build.plan.name.clone();
                SweepError::Unverified { collection, index, reason }
            }
            Fault::Elastic(error) => self.elastic(&error),
            Fault::Read(error) => self.read_error(&error),
            Fault::Moved => SweepError::Moved,
            Fault::Void => SweepError::Void,
        }
    }

    /// Has keys refreshed, and waits for it.
    async fn demand(&self, keys: Vec<DocumentKey>) -> Result<(), SweepError> {
        if keys.is_empty() {
            return Ok(());
        }
        let (done, refreshed) = oneshot::channel();
        let demanded = Demanded { build: self.build.id, keys, done };
        let sent = self.demands.send(demanded).await;
        if sent.is_err() || refreshed.await.is_err() {
            return Err(self.outage(STOPS.to_owned()));
        }
        Ok(())
    }
}
