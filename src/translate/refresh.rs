//! One batch of keys: read them in one snapshot, pass the gate, write what was read.
//!
//! Every key of the batch is in the report with what became of it, so that nothing that waits for
//! a key is forgotten. A failing key is found by bisecting the batch, and stops nobody else.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::causes::with_causes;
use crate::document::build::{self, Built};
use crate::document::pending::{BuildId, Lane, Taken};
use crate::document::queries;
use crate::document::read::{Read, ReadError};
use crate::document::{Document, DocumentKey, DocumentVersion};
use crate::elasticsearch::bulk::{Done, Outcome, Write};
use crate::snapshot::{Cause, Gate, gate};
use crate::translate::news::{self, Seen, Written};
use crate::translate::{Build, Tools};

/// A document that was read longer ago is read again instead of written: within this time plus
/// Elasticsearch's own, its memory of deleted versions (`gc_deletes`, 1 h) is long enough (rule 3).
pub const READ_AGE_MAX: Duration = Duration::from_secs(30);

/// Longest that writes are tried before the outage is told to `/readyz` and what was read is given
/// up: a busy server answers sooner, and one that is away needs fresher reads anyway.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// What became of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyEnd {
    /// Written, or known to be newer there already, or in the dead letters.
    Finished,
    /// The change is not visible to new snapshots yet: read again.
    NotVisible,
    /// Another write of this key is in flight: read again at once.
    Busy,
    /// An outage: read again after a while.
    Again,
    /// The read took too long: read again alone, and after a while.
    Slow,
}

/// What the stage must know besides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// Somebody does not answer; the reason for `/readyz`.
    Outage(String),
    /// We read another database than before.
    Moved,
    /// The definition of a table changed under the plan, or we may not read it any more: resolve
    /// the mappings anew.
    PlanOutdated,
    /// Somebody deleted the index.
    IndexMissing(BuildId),
}

#[derive(Debug)]
pub struct Report {
    pub build: BuildId,
    pub keys: Vec<(DocumentKey, KeyEnd)>,
    /// Keys that were not asked for but came (A8), and could not be written.
    pub besides: Vec<DocumentKey>,
    pub trouble: Option<Trouble>,
    /// For the gateways, if there are any: documents that are in the index now.
    pub written: Vec<Written>,
}

impl Report {
    pub fn new(build: BuildId) -> Self {
        let (keys, besides, written) = (Vec::new(), Vec::new(), Vec::new());
        Self { build, keys, besides, trouble: None, written }
    }
}

/// What a batch is read for.
#[derive(Debug, Clone, Copy)]
pub struct How {
    pub lane: Lane,
    /// For keys that were not visible before: a cheap look at the snapshot comes first, so that a
    /// wait of hours does not re-run SQL all the time.
    pub probe: bool,
    /// A key that is too slow once more goes to the dead letters.
    pub last_try: bool,
}

/// A batch has ended.
#[derive(Debug)]
pub struct Refreshed {
    pub how: How,
    /// Keys in the batch.
    pub asked: usize,
    /// Whether the read took longer than statement_timeout.
    pub slow: bool,
    pub report: Report,
}

/// Refreshes the keys.
pub async fn refresh(
    tools: Arc<Tools>,
    build: Arc<Build>,
    batch: Vec<Taken>,
    how: How,
) -> Refreshed {
    let asked: HashSet<DocumentKey> = batch.iter().map(|it| it.key.clone()).collect();
    let report = Report::new(build.id);
    let mut refreshed = Refreshed { how, asked: asked.len(), slow: false, report };
    let report = &mut refreshed.report;
    let mut batches = vec![batch];
    if how.probe {
        let batch = batches.pop().unwrap_or_default();
        batches.push(visible_now(&tools, batch, report).await);
    }
    // Batches that fail by a key's own fault are halved until the key is alone.
    while let Some(mut batch) = batches.pop() {
        if batch.is_empty() {
            continue;
        }
        if report.trouble.is_some() {
            give_back(batch, KeyEnd::Again, report);
            continue;
        }
        match read(&tools, &build, &batch).await {
            Ok(read) => write(&tools, &build, batch, read, report).await,
            Err(ReadError::Query { .. }) if batch.len() > 1 => {
                let second = batch.split_off(batch.len() / 2);
                batches.extend([batch, second]);
            }
            Err(error @ ReadError::Query { .. }) => {
                bury_all(&tools, &build, batch, &with_causes(&error), report).await;
            }
            Err(error @ ReadError::StatementTimeout { .. }) => {
                refreshed.slow = true;
                if how.last_try {
                    bury_all(&tools, &build, batch, &with_causes(&error), report).await;
                } else {
                    give_back(batch, KeyEnd::Slow, report);
                }
            }
            Err(error) => {
                report.trouble = Some(trouble_of(&error));
                give_back(batch, KeyEnd::Again, report);
            }
        }
    }
    // What came besides may be in flight elsewhere for causes that this read does not see: its
    // end here is not that one's.
    let (keys, besides): (Vec<_>, Vec<_>) =
        std::mem::take(&mut report.keys).into_iter().partition(|(key, _)| asked.contains(key));
    report.keys = keys;
    let unfinished = besides.into_iter().filter(|(_, end)| *end != KeyEnd::Finished);
    report.besides = unfinished.map(|(key, _)| key).collect();
    report.written.retain(|it| asked.contains(&it.key));
    refreshed
}

async fn bury_all(
    tools: &Tools,
    build: &Build,
    batch: Vec<Taken>,
    reason: &str,
    report: &mut Report,
) {
    for taken in batch {
        bury(tools, build, taken.key, reason, report).await;
    }
}

fn give_back(batch: Vec<Taken>, end: KeyEnd, report: &mut Report) {
    report.keys.extend(batch.into_iter().map(|it| (it.key, end)));
}

/// What a read's error means for the stage.
pub fn trouble_of(error: &ReadError) -> Trouble {
    match error {
        ReadError::PlanChanged { .. } | ReadError::Denied { .. } => Trouble::PlanOutdated,
        other => Trouble::Outage(format!("Postgres: {}", with_causes(other))),
    }
}

async fn read(tools: &Tools, build: &Build, batch: &[Taken]) -> Result<Read, ReadError> {
    let keys: Vec<DocumentKey> = batch.iter().map(|it| it.key.clone()).collect();
    let queries = queries::refresh_queries(&build.plan, &keys);
    let timer = tools.metrics.translate_read_seconds.start_timer();
    let read = tools.readers.read(&build.tables, &queries).await;
    timer.observe_duration();
    let outcome = if read.is_ok() { "ok" } else { "error" };
    tools.metrics.translate_reads_total.with_label_values(&[outcome]).inc();
    read
}

/// Those keys of the batch whose causes a new snapshot sees; the others are reported.
async fn visible_now(tools: &Tools, batch: Vec<Taken>, report: &mut Report) -> Vec<Taken> {
    let stamp = match tools.readers.read(&[], &[]).await {
        Ok(read) => read.stamp,
        Err(error) => {
            report.trouble = Some(trouble_of(&error));
            give_back(batch, KeyEnd::Again, report);
            return Vec::new();
        }
    };
    let open = |it: &Taken| worst_gate(&it.causes, &stamp) != Gate::NotYet;
    let (visible, waiting) = batch.into_iter().partition(open);
    give_back(waiting, KeyEnd::NotVisible, report);
    visible
}

/// The gate's word on all causes of a key.
pub fn worst_gate(causes: &[Cause], stamp: &crate::document::read::ReadStamp) -> Gate {
    let mut worst = Gate::Open;
    for cause in causes {
        match gate(*cause, stamp.timeline, &stamp.snapshot) {
            Gate::Open => {}
            Gate::NotYet => worst = Gate::NotYet,
            Gate::OldPrimary => return Gate::OldPrimary,
        }
    }
    worst
}

/// Writes what the read found, for the keys whose causes it sees.
async fn write(tools: &Tools, build: &Build, batch: Vec<Taken>, read: Read, report: &mut Report) {
    if !tools.identity.is_of(&read.stamp) {
        report.trouble = Some(Trouble::Moved);
        return give_back(batch, KeyEnd::Again, report);
    }
    let mut passed = Vec::with_capacity(batch.len());
    let mut waiting = HashSet::new();
    for taken in batch {
        match worst_gate(&taken.causes, &read.stamp) {
            Gate::Open => passed.push(taken.key),
            Gate::NotYet => {
                report.keys.push((taken.key.clone(), KeyEnd::NotVisible));
                waiting.insert(taken.key);
            }
            Gate::OldPrimary => {
                report.trouble = Some(Trouble::Moved);
                report.keys.push((taken.key, KeyEnd::Again));
            }
        }
    }
    let version = read.stamp.version(tools.identity.epoch);
    let (Some(version), Ok(built)) = (version, build::documents(&build.plan, &passed, &read.rows))
    else {
        // Both are mistakes of our own or the end of the number space: a new session says so.
        report.trouble = Some(Trouble::Moved);
        report.keys.extend(passed.into_iter().map(|key| (key, KeyEnd::Again)));
        return;
    };
    let Built { documents, refused, .. } = built;
    for it in refused.into_iter().filter(|it| !waiting.contains(&it.key)) {
        bury(tools, build, it.key, &it.reason.to_string(), report).await;
    }
    let documents = documents.into_iter().filter(|it| !waiting.contains(&it.key)).collect();
    let versioned = Versioned { documents, version, read: &read, live: true };
    write_documents(tools, build, versioned, report).await;
}

/// Documents of one read.
pub struct Versioned<'a> {
    pub documents: Vec<Document>,
    pub version: DocumentVersion,
    pub read: &'a Read,
    /// Because of changes, and not of a sweep.
    pub live: bool,
}

/// Writes documents and reports each key, with a claim on every `_id` meanwhile.
pub async fn write_documents(
    tools: &Tools,
    build: &Build,
    versioned: Versioned<'_>,
    report: &mut Report,
) {
    let keys = versioned.documents.iter().map(|it| it.key.clone());
    let (_claimed, busy) = tools.claims.claim(&build.index, keys);
    let busy: HashSet<DocumentKey> = busy.into_iter().collect();
    let (skipped, documents): (Vec<_>, Vec<_>) =
        versioned.documents.into_iter().partition(|it| busy.contains(&it.key));
    report.keys.extend(skipped.into_iter().map(|it| (it.key, KeyEnd::Busy)));
    let seen = tools
        .feedback
        .as_ref()
        .map(|_| Arc::new(Seen::of(versioned.version, &versioned.read.stamp)));
    let keys: Vec<(DocumentKey, bool)> =
        documents.iter().map(|it| (it.key.clone(), it.body.is_none())).collect();
    let writes = documents
        .into_iter()
        .map(|it| Write {
            collection: Arc::clone(&build.collection),
            index: Arc::clone(&build.index),
            key: it.key,
            version: versioned.version,
            body: it.body,
        })
        .collect();
    let read_at = versioned.read.stamp.taken_at;
    let deadline = (read_at + READ_AGE_MAX).min(Instant::now() + WRITE_MAX);
    match tools.elastic.write_all(writes, deadline, &tools.metrics).await {
        Ok(outcomes) => {
            for ((key, deleted), outcome) in keys.into_iter().zip(outcomes) {
                if let Some(seen) = seen.as_ref().filter(|_| news::is_there(&outcome)) {
                    let (key, seen) = (key.clone(), Arc::clone(seen));
                    report.written.push(Written { key, deleted, seen });
                }
                if versioned.live
                    && let Outcome::Done(Done::Created | Done::Deleted) = outcome
                {
                    build.tally.moved();
                }
                finish(tools, build, key, outcome, report).await;
            }
        }
        Err(error) => {
            report.trouble =
                Some(Trouble::Outage(format!("Elasticsearch: {}", with_causes(&error))));
            report.keys.extend(keys.into_iter().map(|(key, _)| (key, KeyEnd::Again)));
        }
    }
}

async fn finish(
    tools: &Tools,
    build: &Build,
    key: DocumentKey,
    outcome: Outcome,
    report: &mut Report,
) {
    match outcome {
        Outcome::Done(_) | Outcome::Stale => report.keys.push((key, KeyEnd::Finished)),
        Outcome::Retry { reason, .. } => {
            report.trouble = Some(Trouble::Outage(format!("Elasticsearch: {reason}")));
            report.keys.push((key, KeyEnd::Again));
        }
        Outcome::IndexMissing => {
            report.trouble = Some(Trouble::IndexMissing(build.id));
            report.keys.push((key, KeyEnd::Again));
        }
        Outcome::Refused { reason, .. } => bury(tools, build, key, &reason, report).await,
    }
}

/// Sends a document that can't be made or written to the dead letters; it then counts as handled.
async fn bury(tools: &Tools, build: &Build, key: DocumentKey, reason: &str, report: &mut Report) {
    tracing::warn!(collection = build.plan.name, key = %key, reason, "document refused");
    build.tally.buried(&key, reason);
    match tools.side.bury_document(&build.plan.name, &key, reason).await {
        Ok(()) => report.keys.push((key, KeyEnd::Finished)),
        Err(error) => {
            report.trouble = Some(Trouble::Outage(format!("Kafka: {}", with_causes(&error))));
            report.keys.push((key, KeyEnd::Again));
        }
    }
}
