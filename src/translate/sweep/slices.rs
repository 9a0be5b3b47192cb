//! The walk: ranges are cut ahead, several slices are in hand at once, and one that fails is
//! divided until the key at fault is alone.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::frontier::Frontier;
use super::pace::Pace;
use super::progress::Done;
use super::{Purpose, SweepError, Sweeper};
use crate::causes::with_causes;
use crate::document::build::{self, Built};
use crate::document::queries::{self, Query, Range};
use crate::document::read::{Read, ReadError};
use crate::document::{DocumentKey, build::BuildError};
use crate::elasticsearch::index::note::SweptTo;

/// Keys of one slice: a read of some ten milliseconds, and one bulk request.
const SLICE_KEYS: i64 = 1_000;
/// Slices cut at once: the cut costs Postgres a walk over that many keys.
const CUT_SLICES: i64 = 16;
/// How often the position is noted in the index: each note changes the cluster's state.
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// After it gave way, a slice leaves those who waited this long to get their lock.
const WAY_PAUSE: Duration = Duration::from_millis(500);
/// Times in a row that a slice waits for a lock in vain before `/readyz` says so.
const LOCKS_MAX: u32 = 10;
/// Reads of a single key that time out before it is given up: one may have met a busy server.
const LONE_READS_MAX: u32 = 2;

/// A slice, or what is left of one.
#[derive(Debug, Clone)]
struct Part {
    range: Range,
    /// About how many keys it has.
    keys: i64,
    /// It has this key alone.
    only: Option<DocumentKey>,
}

/// The ranges to come.
#[derive(Debug)]
struct Cut {
    parts: VecDeque<Part>,
    low: Option<DocumentKey>,
    /// The last of `parts` reaches to the collection's end.
    ended: bool,
}

impl Sweeper {
    /// Sweeps all key ranges behind `from`; returns how many documents there are.
    pub(super) async fn slices(self: Arc<Self>, from: Option<SweptTo>) -> Result<u64, SweepError> {
        let readers = self.tools.readers.for_sweeps();
        let mut pace = Pace::new(readers, self.tools.refresh_round_keys);
        let before = from.as_ref().map_or(0, |it| it.documents);
        let expected = self.estimate().await;
        let low = from.map(|it| DocumentKey(it.key));
        let mut frontier = Frontier::from(low.clone(), before);
        let mut cut = Cut { parts: VecDeque::new(), low, ended: false };
        let mut in_hand = JoinSet::new();
        let (mut noted, mut said) = (Instant::now(), Instant::now());
        loop {
            while in_hand.len() < pace.in_hand()
                && let Some(part) = self.next_part(&mut cut).await?
            {
                let number = frontier.begin(part.range.high.clone());
                let this = Arc::clone(&self);
                in_hand.spawn(async move {
                    let started = Instant::now();
                    (number, this.slice(part).await, started.elapsed())
                });
            }
            let Some(ended) = in_hand.join_next().await else { return Ok(frontier.documents()) };
            let ended = ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
            let (number, documents, took) = ended;
            if frontier.end(number, documents?) {
                self.note(&frontier, &mut noted).await?;
            }
            self.progress
                .tell(Done { before, documents: frontier.documents(), expected }, &mut said);
            self.judge(false).await?;
            pace.adapt(self.tools.load.load(Instant::now().into_std()));
            sleep(pace.rest(took)).await;
        }
    }

    /// Remembers how far all slices have come; in the index now and then.
    async fn note(&self, frontier: &Frontier, noted: &mut Instant) -> Result<(), SweepError> {
        let Some(key) = frontier.reached() else { return Ok(()) };
        let (fresh, era) = (self.fresh, self.era);
        let reached = SweptTo { key: key.0.clone(), fresh, documents: frontier.documents(), era };
        // An audit notes nothing in the index: it begins anew at its next hour.
        if self.order.purpose == Purpose::Build && noted.elapsed() >= NOTE_EVERY {
            *noted = Instant::now();
            let index = &self.build.index;
            let fingerprint = self.build.plan.fingerprint.to_text();
            let counts = self.tools.elastic.note_swept(index, &reached, fingerprint).await;
            if !counts.map_err(|it| self.elastic(&it))? {
                return Err(SweepError::Void);
            }
        }
        *self.order.reached.lock().unwrap_or_else(PoisonError::into_inner) = Some(reached);
        Ok(())
    }

    /// The planner's guess at how many documents there are; zero if it has none.
    async fn estimate(&self) -> u64 {
        let queries = queries::estimate_queries(&self.build.plan);
        match self.tools.readers.read_slice(&self.build.tables, &queries).await {
            Ok(read) => read.rows.iter().filter_map(queries::estimated_rows).max().unwrap_or(0),
            Err(error) => {
                let reason = with_causes(&error);
                tracing::debug!(collection = self.build.plan.name, reason, "no estimate");
                0
            }
        }
    }

    /// The next slice; None: the collection has ended.
    async fn next_part(&self, cut: &mut Cut) -> Result<Option<Part>, SweepError> {
        if cut.parts.is_empty() && !cut.ended {
            let range = Range { low: cut.low.clone(), high: None };
            let highs = self.bounds(&range, SLICE_KEYS, CUT_SLICES).await?;
            cut.ended = i64::try_from(highs.len()).unwrap_or(i64::MAX) < CUT_SLICES;
            for high in highs {
                let low = cut.low.replace(high.clone());
                cut.parts.push_back(Part::of(low, Some(high)));
            }
            if cut.ended {
                cut.parts.push_back(Part::of(cut.low.take(), None));
            }
        }
        Ok(cut.parts.pop_front())
    }

    /// Where to cut the range. Fewer cuts are asked for while Postgres takes too long.
    async fn bounds(
        &self,
        range: &Range,
        every: i64,
        mut count: i64,
    ) -> Result<Vec<DocumentKey>, SweepError> {
        loop {
            let query = queries::bounds_query(&self.build.plan, range, every, count);
            let found = self.read_patiently(&[query]).await;
            match found {
                Ok(read) => return Ok(read.rows.first().map(queries::bounds).unwrap_or_default()),
                Err(ReadError::StatementTimeout { .. } | ReadError::GaveWay) if count > 1 => {
                    count /= 2;
                }
                Err(ReadError::GaveWay) => {}
                Err(error) => return Err(self.read_error(&error)),
            }
        }
    }

    /// A read that waits out DDL, for a while.
    pub(super) async fn read_patiently(&self, queries: &[Query]) -> Result<Read, ReadError> {
        let mut locked = 0;
        loop {
            match self.tools.readers.read_slice(&self.build.tables, queries).await {
                Err(ReadError::LockTimeout(_)) if locked < LOCKS_MAX => locked += 1,
                Err(ReadError::GaveWay) => {
                    tracing::info!(collection = self.build.plan.name, "the sweep gives way");
                    sleep(WAY_PAUSE).await;
                    return Err(ReadError::GaveWay);
                }
                other => return other,
            }
            sleep(WAY_PAUSE).await;
        }
    }

    /// Sweeps a slice; returns how many documents it has.
    async fn slice(&self, whole: Part) -> Result<u64, SweepError> {
        let mut documents = 0;
        let mut parts = vec![whole];
        let mut lone_reads = 0;
        while let Some(part) = parts.pop() {
            let queries = queries::slice_queries(&self.build.plan, &part.range);
            let error = match self.read_patiently(&queries).await {
                Ok(read) => {
                    lone_reads = 0;
                    let built = self.built(&read)?;
                    let there = built.documents.iter().filter(|it| it.body.is_some()).count();
                    documents += u64::try_from(there).unwrap_or(u64::MAX);
                    self.repair(built, &read).await?;
                    continue;
                }
                Err(error) => error,
            };
            match (error, &part.only) {
                // A row that fails is left to a refresh, which buries it.
                (ReadError::Query { .. }, Some(key)) => self.demand(vec![key.clone()]).await?,
                (error @ ReadError::StatementTimeout { .. }, Some(key)) => {
                    lone_reads += 1;
                    if lone_reads < LONE_READS_MAX {
                        parts.push(part);
                        continue;
                    }
                    lone_reads = 0;
                    self.bury(key, &error).await?;
                }
                (ReadError::GaveWay, Some(_)) => parts.push(part),
                (
                    ReadError::Query { .. }
                    | ReadError::StatementTimeout { .. }
                    | ReadError::GaveWay,
                    None,
                ) => parts.extend(self.divide(part).await?),
                (error, _) => return Err(self.read_error(&error)),
            }
        }
        Ok(documents)
    }

    /// Two parts, the first of them last, as it is the next to be swept.
    async fn divide(&self, part: Part) -> Result<Vec<Part>, SweepError> {
        let Part { range, mut keys, .. } = part;
        loop {
            keys = (keys / 2).max(1);
            let cut = self.bounds(&range, keys, 1).await?.pop();
            let Some(middle) = cut else {
                if keys > 1 {
                    continue;
                }
                // No key lies in the range, and still the SQL fails there: nobody's fault but its.
                let reason = "its SQL fails for a range of keys that has none; `onelog check`";
                return Err(self.outage(reason.to_owned()));
            };
            let only = (keys == 1).then(|| middle.clone());
            let first = Range { low: range.low, high: Some(middle.clone()) };
            let second = Range { low: Some(middle), high: range.high };
            return Ok(vec![
                Part { range: second, keys, only: None },
                Part { range: first, keys, only },
            ]);
        }
    }

    fn built(&self, read: &Read) -> Result<Built, SweepError> {
        if !self.tools.identity.is_of(&read.stamp) {
            return Err(SweepError::Moved);
        }
        let built: Result<Built, BuildError> = build::documents(&self.build.plan, &[], &read.rows);
        built.map_err(|it| self.outage(it.to_string()))
    }

    /// A key whose SQL takes longer than statement_timeout all by itself: waiting helps nobody.
    async fn bury(&self, key: &DocumentKey, error: &ReadError) -> Result<(), SweepError> {
        let (collection, reason) = (&self.build.plan.name, with_causes(error));
        tracing::warn!(collection, key = %key, reason, "the key is given up");
        let buried = self.tools.side.bury_document(collection, key, &reason).await;
        buried.map_err(|it| self.outage(format!("Kafka: {}", with_causes(&it))))
    }
}

impl Part {
    fn of(low: Option<DocumentKey>, high: Option<DocumentKey>) -> Self {
        Self { range: Range { low, high }, keys: SLICE_KEYS, only: None }
    }
}
