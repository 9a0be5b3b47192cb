//! What the gateways are told of the documents that were written: which, and because of which
//! changes. Only where there is a gateway.
//!
//! A change's record says where it comes from (*provenance*); that stays with the record's ticket,
//! so that a key finds the provenance of all it was read for by the tickets that wait behind it. A
//! fan-out of a million keys so shares one.
//!
//! Never holds anything up: what there is no room for is dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::document::pending::BuildId;
use crate::document::read::ReadStamp;
use crate::document::{DocumentKey, DocumentVersion};
use crate::elasticsearch::bulk::Outcome;
use crate::kafka::delivery::now_ms;
use crate::kafka::feedback::{
    CORRELATION_IDS_MAX, DocumentNews, Feedback, Hop, Role, State, TXIDS_MAX,
};
use crate::kafka::record::ChangeRecord;
use crate::lsn::Lsn;
use crate::translate::stage::{Origin, Stage};
use crate::translate::{Build, Tools};

/// Changes of one key that are told of, the newest: so many in one read come after an outage only,
/// and nobody waits for the oldest of them any more.
const PROVENANCES_MAX: usize = 256;
/// Longest correlation id that is passed on: one of ours has 128 bytes at most.
const CORRELATION_BYTES_MAX: usize = 128;
/// How often we say how far behind we are.
const HOP_EVERY: Duration = Duration::from_secs(1);

/// Where a change comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    correlation_id: Option<Box<str>>,
    /// None: of another cluster, whose ids mean nothing here.
    xid: Option<u64>,
    lsn: Lsn,
    commit_us: i64,
    log_ms: Option<i64>,
}

impl Provenance {
    pub fn of(record: &ChangeRecord<'_>, same_system: bool, log_ms: Option<i64>) -> Self {
        let id = record.correlation_id.as_ref();
        let id = id.filter(|it| (1..=CORRELATION_BYTES_MAX).contains(&it.len()));
        Self {
            correlation_id: id.map(|it| Box::from(&**it)),
            xid: same_system.then_some(record.cause.xid),
            lsn: record.lsn,
            commit_us: record.commit_us,
            log_ms,
        }
    }
}

/// What the stage remembers for the gateways.
#[derive(Debug, Default)]
pub struct Telling {
    /// When they were last told how far behind we are.
    hop_told: Option<Instant>,
    /// The commit time of the record that was taken in last.
    pub taken_us: Option<i64>,
}

/// What a document was written from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub version: u64,
    pub xmin: u64,
    pub timeline: u32,
    pub read_ms: i64,
}

/// A document that is in the index now, in this form or a newer one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub key: DocumentKey,
    pub deleted: bool,
    pub seen: Arc<Seen>,
}

impl Seen {
    pub fn of(version: DocumentVersion, stamp: &ReadStamp) -> Self {
        let age = i64::try_from(stamp.taken_at.elapsed().as_millis()).unwrap_or(0);
        Self {
            version: version.0,
            xmin: stamp.snapshot.xmin,
            timeline: stamp.timeline,
            read_ms: now_ms().saturating_sub(age),
        }
    }
}

/// Whether the outcome says that the index has the document as it was read, or newer.
pub fn is_there(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Done(_) | Outcome::Stale)
}

/// The records that tell of one document. More than one when very many changes led to it.
fn records(collection: &str, written: &Written, causes: &[&Provenance]) -> Vec<DocumentNews> {
    let mut correlations: Vec<&str> =
        causes.iter().filter_map(|it| it.correlation_id.as_deref()).collect();
    correlations.sort_unstable();
    correlations.dedup();
    let mut xids: Vec<u64> = causes.iter().filter_map(|it| it.xid).collect();
    xids.sort_unstable();
    xids.dedup();
    let newest = |of: fn(&Provenance) -> Option<i64>| causes.iter().filter_map(|it| of(it)).max();
    let (commit_ts_ms, log_ts_ms) =
        (newest(|it| Some(it.commit_us / 1000)), newest(|it| it.log_ms));
    let lsn = causes.iter().map(|it| it.lsn).max().unwrap_or_default();
    let count =
        correlations.len().div_ceil(CORRELATION_IDS_MAX).max(xids.len().div_ceil(TXIDS_MAX));
    (0..count.max(1))
        .map(|nth| DocumentNews {
            collection: collection.to_owned(),
            id: written.key.0.clone(),
            deleted: written.deleted,
            version: written.seen.version,
            correlation_ids: nth_chunk(&correlations, CORRELATION_IDS_MAX, nth)
                .iter()
                .map(|&it| it.to_owned())
                .collect(),
            txids: nth_chunk(&xids, TXIDS_MAX, nth).to_vec(),
            xmin: written.seen.xmin,
            timeline: written.seen.timeline,
            lsn,
            commit_ts_ms,
            log_ts_ms,
            read_ts_ms: written.seen.read_ms,
            ts_ms: now_ms(),
        })
        .collect()
}

fn nth_chunk<T>(all: &[T], size: usize, nth: usize) -> &[T] {
    all.chunks(size).nth(nth).unwrap_or_default()
}

/// Tells of documents that a sweep of a serving index has put right: no single change is known
/// for them.
pub fn tell_repaired(tools: &Tools, build: &Build, written: &[Written]) {
    let Some(feedback) = &tools.feedback else { return };
    for it in written {
        for news in records(&build.plan.name, it, &[]) {
            feedback.offer(&Feedback::Document(news));
        }
    }
}

impl Stage {
    /// Tells of a key's document, before the key is finished: its tickets know the changes.
    pub fn tell_written(&self, build: BuildId, written: &Written) {
        let Some(feedback) = &self.tools.feedback else { return };
        // Of two builds of a collection clients see the one that serves.
        if !self.builds.is_serving(build) {
            return;
        }
        let Some(build) = self.builds.get(build) else { return };
        let causes = self.provenances(build.id, &written.key);
        for news in records(&build.plan.name, written, &causes) {
            feedback.offer(&Feedback::Document(news));
        }
    }

    /// Where the changes come from that a key in flight is read for, the newest of them.
    fn provenances(&self, build: BuildId, key: &DocumentKey) -> Vec<&Provenance> {
        let of_record = |ticket: &u64| match self.tickets.get(ticket) {
            Some(Origin::Record { provenance, .. }) => provenance.as_deref(),
            _ => None,
        };
        let mut found = Vec::new();
        for ticket in self.pending.tickets_in_flight(build, key).rev() {
            let left = PROVENANCES_MAX.saturating_sub(found.len());
            match self.tickets.get(&ticket) {
                Some(Origin::Lookup(records)) => {
                    found.extend(records.iter().rev().filter_map(of_record).take(left));
                }
                _ => found.extend(of_record(&ticket).into_iter().take(left)),
            }
        }
        found
    }

    /// Says how far behind we are, once a second. Never what holds it up: `/readyz` does.
    pub fn tell_hop(&mut self, lag_records: i64) {
        let due = self.telling.hop_told.is_none_or(|it| it.elapsed() >= HOP_EVERY);
        let Some(feedback) = self.tools.feedback.as_ref().filter(|_| due) else { return };
        self.telling.hop_told = Some(Instant::now());
        let state = if self.is_ill() { State::Waiting } else { State::Running };
        // A record that is not taken in yet is younger than those that are, or about as old.
        let open = self.tickets.values().filter_map(|it| match it {
            Origin::Record { commit_us, .. } => Some(*commit_us),
            _ => None,
        });
        let oldest = open.min().or(self.telling.taken_us.filter(|_| lag_records > 0));
        let now = now_ms();
        let age_ms = oldest.map_or(0, |it| now.saturating_sub(it / 1000).max(0));
        let lag_seconds = i32::try_from(age_ms).map_or(f64::from(i32::MAX), f64::from) / 1000.0;
        feedback.offer(&Feedback::Hop(Hop {
            lag_seconds: Some(lag_seconds),
            lag_records: Some(lag_records),
            ..Hop::new((Role::Translate, feedback.instance()), state, now)
        }));
    }
}

/// Whoever waits need not wait for us: we stop because we were told to.
pub async fn say_goodbye(tools: &Arc<Tools>, stopped: bool) {
    if tools.feedback.is_none() || !stopped {
        return;
    }
    let tools = Arc::clone(tools);
    let said = tokio::task::spawn_blocking(move || {
        if let Some(feedback) = &tools.feedback {
            feedback.say_goodbye(Role::Translate, now_ms());
        }
    });
    // A thread of ours that panics has said so itself.
    let _said = said.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(ms: u64) -> i64 {
        i64::try_from(ms).unwrap()
    }

    fn provenance(nth: u64) -> Provenance {
        Provenance {
            correlation_id: Some(format!("k{nth:03}").into()),
            xid: Some(1_000 + nth),
            lsn: Lsn(nth),
            commit_us: signed(nth) * 1_000,
            log_ms: Some(signed(nth)),
        }
    }

    fn written() -> Written {
        let seen = Seen { version: 5, xmin: 7, timeline: 1, read_ms: 3 };
        Written { key: DocumentKey("d".to_owned()), deleted: false, seen: Arc::new(seen) }
    }

    #[test]
    fn every_change_is_named_however_many_there_are() {
        let all: Vec<Provenance> = (0..200).chain(0..200).map(provenance).collect();
        let told = records("page", &written(), &all.iter().collect::<Vec<_>>());
        assert!(told.iter().all(|it| it.correlation_ids.len() <= CORRELATION_IDS_MAX));
        assert!(told.iter().all(|it| it.txids.len() <= TXIDS_MAX));
        let correlations: Vec<&str> =
            told.iter().flat_map(|it| &it.correlation_ids).map(String::as_str).collect();
        let expected: Vec<String> = (0..200).map(|it| format!("k{it:03}")).collect();
        assert_eq!(correlations, expected);
        let xids: Vec<u64> = told.iter().flat_map(|it| it.txids.clone()).collect();
        assert_eq!(xids, (1_000..1_200).collect::<Vec<_>>());
        let newest = told.iter().all(|it| it.lsn == Lsn(199) && it.commit_ts_ms == Some(199));
        assert!(newest && told[0].id == "d" && told[0].version == 5);
    }

    #[test]
    fn a_repair_is_told_without_a_cause() {
        let told = records("page", &written(), &[]);
        assert_eq!(told.len(), 1);
        let it = &told[0];
        assert!(it.correlation_ids.is_empty() && it.txids.is_empty() && it.commit_ts_ms.is_none());
        assert_eq!((it.xmin, it.lsn), (7, Lsn(0)));
    }
}
