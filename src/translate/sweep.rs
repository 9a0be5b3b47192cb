//! A sweep walks a whole collection in key ranges and makes its index equal to its SQL: backfill,
//! poll, audit and rebuild are all this (rule 6).
//!
//! Each slice is a read of its own, short and with its own version, so that no long snapshot holds
//! back vacuum or DDL (A10). What differs from the index is written, or refreshed if somebody
//! else writes it. Afterwards the index's keys are paged through: those without a row are orphans,
//! and a refresh deletes them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::causes::with_causes;
use crate::document::build::{self, Built};
use crate::document::pending::BuildId;
use crate::document::queries::{self, Range};
use crate::document::read::{Read, ReadError};
use crate::document::{Document, DocumentKey, DocumentVersion};
use crate::elasticsearch::client::ElasticError;
use crate::elasticsearch::index::AliasState;
use crate::translate::refresh::{KeyEnd, Report, Trouble, Versioned, trouble_of, write_documents};
use crate::translate::{Build, Tools};

/// Keys of one slice: a read of some ten milliseconds, and one bulk request.
const SLICE_KEYS: i64 = 1_000;
/// Slices being compared and written while the next is read.
const WRITES_MAX: usize = 3;
/// Keys of the index looked up at once for orphans.
const PAGE_KEYS: usize = 1_000;
/// How often a wait for old transactions is said.
const SETTLE_SAID_EVERY: Duration = Duration::from_secs(10);
/// Between two looks at the oldest running transaction.
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

/// What kind of sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Order {
    /// Swap the alias to the build's index at the end.
    pub publish: bool,
}

/// Keys that a refresh must look at, and who waits for it.
pub struct Demanded {
    pub build: BuildId,
    pub keys: Vec<DocumentKey>,
    pub done: oneshot::Sender<()>,
}

/// Why a sweep ended early. It starts anew; what it has written stays.
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
}

struct Sweeper {
    tools: Arc<Tools>,
    build: Arc<Build>,
    demands: mpsc::Sender<Demanded>,
    /// The index had nothing when the sweep began: nothing to compare with, no orphans.
    fresh: bool,
}

/// Sweeps the build's collection; at the end the index is marked as built, and the alias points to
/// it if `order` says so.
pub async fn sweep(
    tools: Arc<Tools>,
    build: Arc<Build>,
    order: Order,
    demands: mpsc::Sender<Demanded>,
) -> Result<(), SweepError> {
    let gauge = tools.metrics.sweeps_pending.with_label_values(&[build.plan.name.as_str()]);
    gauge.set(1);
    let started = Instant::now();
    let mut sweeper = Sweeper { tools, build, demands, fresh: false };
    sweeper.fresh = sweeper.index_is_empty().await?;
    sweeper.settle().await?;
    let documents = sweeper.slices().await?;
    if !sweeper.fresh {
        sweeper.orphans().await?;
    }
    sweeper.publish(order).await?;
    gauge.set(0);
    tracing::info!(
        collection = sweeper.build.plan.name,
        documents,
        seconds = started.elapsed().as_secs_f64(),
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

    async fn index_is_empty(&self) -> Result<bool, SweepError> {
        let elastic = &self.tools.elastic;
        elastic.refresh(&self.build.index).await.map_err(|it| self.elastic(&it))?;
        let count = elastic.count(&self.build.index).await.map_err(|it| self.elastic(&it))?;
        Ok(count == 0)
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

    /// Walks all key ranges; returns how many documents there are.
    async fn slices(&self) -> Result<u64, SweepError> {
        let mut writes: JoinSet<Result<(), SweepError>> = JoinSet::new();
        let mut low: Option<DocumentKey> = None;
        let mut keys_max = SLICE_KEYS;
        let mut documents = 0u64;
        loop {
            let (read, high) = match self.read_slice(low.as_ref(), keys_max).await {
                Ok(slice) => slice,
                Err(ReadError::Query { .. } | ReadError::StatementTimeout { .. })
                    if keys_max > 1 =>
                {
                    // A row that fails: found by halving, then left to a refresh, which buries it.
                    keys_max /= 2;
                    continue;
                }
                Err(ReadError::Query { .. }) => {
                    let Some(failing) = self.next_key(low.as_ref()).await? else { break };
                    self.demand(vec![failing.clone()]).await?;
                    low = Some(failing);
                    keys_max = SLICE_KEYS;
                    continue;
                }
                Err(error) => return Err(self.read_error(&error)),
            };
            keys_max = SLICE_KEYS;
            tracing::debug!(collection = self.build.plan.name, took = ?read.stamp.taken_at.elapsed(), "slice read");
            if writes.len() >= WRITES_MAX
                && let Some(ended) = writes.join_next().await
            {
                ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
            }
            let slice = self.built(&read)?;
            let there = slice.documents.iter().filter(|it| it.body.is_some()).count();
            documents += u64::try_from(there).unwrap_or(u64::MAX);
            let part = Sweeper {
                tools: Arc::clone(&self.tools),
                build: Arc::clone(&self.build),
                demands: self.demands.clone(),
                fresh: self.fresh,
            };
            writes.spawn(async move { part.repair(slice, &read).await });
            match high {
                Some(high) => low = Some(high),
                None => break,
            }
        }
        while let Some(ended) = writes.join_next().await {
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        }
        Ok(documents)
    }

    async fn read_slice(
        &self,
        low: Option<&DocumentKey>,
        keys_max: i64,
    ) -> Result<(Read, Option<DocumentKey>), ReadError> {
        let plan = &self.build.plan;
        let mut high = None;
        let first = [queries::boundary_query(plan, low, keys_max)];
        let then = |rows: &[queries::Rows]| {
            high = rows.first().and_then(queries::boundary);
            queries::slice_queries(plan, &Range { low: low.cloned(), high: high.clone() })
        };
        let read = self.tools.readers.read_with(&self.build.tables, &first, then).await?;
        Ok((read, high))
    }

    /// The first key above `low`.
    async fn next_key(&self, low: Option<&DocumentKey>) -> Result<Option<DocumentKey>, SweepError> {
        let query = queries::boundary_query(&self.build.plan, low, 1);
        let read = self.tools.readers.read(&self.build.tables, &[query]).await;
        let read = read.map_err(|it| self.outage(with_causes(&it)))?;
        Ok(read.rows.first().and_then(queries::boundary))
    }

    fn built(&self, read: &Read) -> Result<Built, SweepError> {
        if !self.tools.identity.is_of(&read.stamp) {
            return Err(SweepError::Moved);
        }
        let rows = &read.rows[read.rows.len().saturating_sub(self.build.plan.entries.len())..];
        build::documents(&self.build.plan, &[], rows).map_err(|it| self.outage(it.to_string()))
    }

    /// Writes those documents of a slice that the index does not have in this form.
    async fn repair(&self, slice: Built, read: &Read) -> Result<(), SweepError> {
        let collection = [self.build.plan.name.as_str()];
        let metrics = &self.tools.metrics;
        let count = |it: usize| u64::try_from(it).unwrap_or(u64::MAX);
        metrics
            .sweep_documents_total
            .with_label_values(&collection)
            .inc_by(count(slice.documents.len()));
        let version = DocumentVersion::new(self.tools.identity.epoch, &read.stamp.snapshot);
        let version = version.ok_or(SweepError::Moved)?;
        let mut demanded: Vec<DocumentKey> = slice.refused.into_iter().map(|it| it.key).collect();
        demanded.retain(|it| !it.0.is_empty());
        let documents = self.differing(slice.documents).await?;
        if !self.fresh {
            metrics
                .sweep_repairs_total
                .with_label_values(&collection)
                .inc_by(count(documents.len()));
        }
        let mut report =
            Report { build: self.build.id, keys: Vec::new(), besides: Vec::new(), trouble: None };
        let versioned = Versioned { documents, version, read };
        let count = versioned.documents.len();
        let started = Instant::now();
        write_documents(&self.tools, &self.build, versioned, &mut report).await;
        tracing::debug!(collection = self.build.plan.name, count, took = ?started.elapsed(), "slice written");
        let left = report.keys.into_iter().filter(|(_, end)| *end != KeyEnd::Finished);
        demanded.extend(left.map(|(key, _)| key));
        // What an outage or another writer kept us from is a refresh's, which knows how to wait.
        self.demand(demanded).await
    }

    async fn differing(&self, documents: Vec<Document>) -> Result<Vec<Document>, SweepError> {
        if self.fresh || documents.is_empty() {
            // A key without a document (it has optional rows only) needs no deletion there.
            return Ok(documents.into_iter().filter(|it| it.body.is_some()).collect());
        }
        let keys: Vec<DocumentKey> = documents.iter().map(|it| it.key.clone()).collect();
        let found = self.tools.elastic.mget_sources(&self.build.index, &keys).await;
        let found = found.map_err(|it| self.elastic(&it))?;
        let known: HashMap<&DocumentKey, &str> = keys
            .iter()
            .zip(&found)
            .filter_map(|(key, it)| Some((key, it.as_ref()?.0.as_str())))
            .collect();
        let differs = |it: &Document| known.get(&it.key).copied() != it.body.as_deref();
        Ok(documents.iter().filter(|it| differs(it)).cloned().collect())
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
            return Err(self.outage("the stage stops".to_owned()));
        }
        Ok(())
    }

    /// Refreshes every key of the index that no row has: the refresh deletes it.
    async fn orphans(&self) -> Result<(), SweepError> {
        let elastic = &self.tools.elastic;
        elastic.refresh(&self.build.index).await.map_err(|it| self.elastic(&it))?;
        let distribution = self.tools.distribution;
        let opened = elastic.open_ids(&self.build.index, distribution).await;
        let mut walk = opened.map_err(|it| self.elastic(&it))?;
        loop {
            let page = elastic.ids_page(&mut walk, PAGE_KEYS).await;
            let page = page.map_err(|it| self.elastic(&it))?;
            if page.is_empty() {
                break;
            }
            let keys: Vec<DocumentKey> = page.into_iter().map(|(key, _)| key).collect();
            let queries = queries::existing_queries(&self.build.plan, &keys);
            let read = self.tools.readers.read(&self.build.tables, &queries).await;
            let orphans = match read {
                Ok(read) => {
                    let there: std::collections::HashSet<String> =
                        read.rows.into_iter().flatten().flatten().flatten().collect();
                    keys.into_iter().filter(|it| !there.contains(&it.0)).collect()
                }
                // An _id that is no value of the key's type is nobody's row; a refresh finds out.
                Err(ReadError::Query { .. }) => keys,
                Err(error) => return Err(self.read_error(&error)),
            };
            let count = u64::try_from(Vec::len(&orphans)).unwrap_or(u64::MAX);
            let collection = [self.build.plan.name.as_str()];
            self.tools.metrics.sweep_repairs_total.with_label_values(&collection).inc_by(count);
            self.demand(orphans).await?;
        }
        elastic.close_ids(walk).await.map_err(|it| self.elastic(&it))
    }

    /// Points the alias to the build's index, and deletes indices that are older than the one
    /// that served until now, which is kept for a way back.
    async fn swap(&self) -> Result<(), SweepError> {
        let elastic = &self.tools.elastic;
        let (index, alias) = (&self.build.index, &self.build.alias);
        let state = elastic.alias_state(alias).await.map_err(|it| self.elastic(&it))?;
        let served: Vec<String> = match state {
            AliasState::On(indices) => indices,
            AliasState::Missing => Vec::new(),
            AliasState::IsAnIndex => return Err(self.outage(format!("{alias} is an index"))),
        };
        let old = served.iter().find(|it| it.as_str() != &**index).map(String::as_str);
        elastic.swap_alias(alias, index, old).await.map_err(|it| self.elastic(&it))?;
        let all = elastic.list_indices(alias, &self.build.plan.name).await;
        for (other, _) in all.map_err(|it| self.elastic(&it))? {
            if other.as_str() != &**index && !served.contains(&other) {
                elastic.delete_index(&other).await.map_err(|it| self.elastic(&it))?;
            }
        }
        Ok(())
    }

    async fn publish(&self, order: Order) -> Result<(), SweepError> {
        let elastic = &self.tools.elastic;
        let index = &self.build.index;
        elastic.refresh(index).await.map_err(|it| self.elastic(&it))?;
        elastic.mark_built(index, true).await.map_err(|it| self.elastic(&it))?;
        if order.publish {
            self.swap().await?;
            tracing::info!(collection = self.build.plan.name, index = %index, "serving");
        }
        let label = [self.build.plan.name.as_str()];
        self.tools.metrics.collection_live.with_label_values(&label).set(1);
        Ok(())
    }
}
