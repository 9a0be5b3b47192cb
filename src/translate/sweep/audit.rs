//! What an audit finds is not yet drift: the change may be on its way.
//!
//! A document that differs from a slice is a *suspect*, by the version that it has. Then the audit
//! waits until everything that Postgres had committed by then is in the log and handled: the
//! slot's confirmed position has passed the WAL's end of after the slice, and the group's offsets
//! the topics' ends of after that. A suspect whose version has moved was on its way. One whose
//! version has not was missed: a refresh rewrites it, and what it changes was *drift*.
//!
//! A refresh that writes the very same text shows SQL whose result depends on the plan (an
//! unordered `array_agg`, a sum of floats: B17). That is counted apart.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{STOPS, SweepError, Sweeper};
use crate::causes::with_causes;
use crate::document::queries::{Param, Query};
use crate::document::{DocumentKey, DocumentVersion};
use crate::translate::load::published;

/// Suspects looked at together: one request to Elasticsearch.
const SUSPECTS_MAX: usize = 1_000;
/// How long to wait for the log to be handled. An outage or a backlog lasts longer: then suspects
/// are refreshed all the same, and nothing is said of drift.
const CAUGHT_UP_MAX: Duration = Duration::from_secs(60);
/// Offsets are committed five times a second.
const CAUGHT_UP_PAUSE: Duration = Duration::from_millis(200);
/// Drift of so many documents is logged key by key; the rest is counted.
const KEYS_SAID_MAX: usize = 20;
/// Transactions of our own that are spent to get past a version that somebody else wrote.
const OVERTAKE_MAX: u64 = 1_000;

/// A document that differs from its row, and the version that it had.
#[derive(Debug)]
pub(super) struct Suspect {
    pub key: DocumentKey,
    /// None: the index lacks it.
    pub version: Option<DocumentVersion>,
}

/// A document's version and a hash of its text; None: there is none.
type Seen = Option<(DocumentVersion, u64)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It was wrong, and is right now.
    Drift,
    /// The refresh has written what was there already.
    Undetermined,
    /// The refresh has written nothing.
    Refused,
}

/// What a suspect was, from before and after its refresh.
fn verdict(before: Seen, after: Seen) -> Verdict {
    let text = |it: Seen| it.map(|(_, hash)| hash);
    match (text(before) == text(after), before == after) {
        (false, _) => Verdict::Drift,
        (true, false) => Verdict::Undetermined,
        (true, true) => Verdict::Refused,
    }
}

impl Sweeper {
    pub(super) fn suspect(&self, suspects: Vec<Suspect>) {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner).extend(suspects);
    }

    /// Decides about suspects once there are many, or at the end about all.
    pub(super) async fn judge(&self, at_end: bool) -> Result<(), SweepError> {
        let mut suspects = {
            let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
            if suspects.is_empty() || (suspects.len() < SUSPECTS_MAX && !at_end) {
                return Ok(());
            }
            std::mem::take(&mut *suspects)
        };
        let caught_up = self.caught_up().await?;
        while !suspects.is_empty() {
            let rest = suspects.split_off(suspects.len().min(SUSPECTS_MAX));
            self.judge_some(suspects, caught_up).await?;
            suspects = rest;
        }
        Ok(())
    }

    async fn judge_some(&self, suspects: Vec<Suspect>, caught_up: bool) -> Result<(), SweepError> {
        let versions: HashMap<DocumentKey, Option<DocumentVersion>> =
            suspects.into_iter().map(|it| (it.key, it.version)).collect();
        let mut before = self.seen(versions.keys().cloned().collect()).await?;
        before.retain(|key, seen| versions.get(key) == Some(&seen.map(|(version, _)| version)));
        if before.is_empty() {
            return Ok(());
        }
        self.overtake(before.values().flatten().map(|(version, _)| *version).max()).await?;
        let keys: Vec<DocumentKey> = before.keys().cloned().collect();
        self.demand(keys.clone()).await?;
        let after = self.seen(keys).await?;
        let (mut drift, mut undetermined) = (Vec::new(), 0u64);
        for (key, before) in &before {
            match verdict(*before, after.get(key).copied().flatten()) {
                Verdict::Drift => drift.push(key),
                Verdict::Undetermined => undetermined += 1,
                Verdict::Refused => tracing::warn!(
                    collection = self.build.plan.name,
                    key = %key,
                    "the document differs from its row and can't be mended; see the dead letters"
                ),
            }
        }
        self.tell(&drift, undetermined, caught_up);
        Ok(())
    }

    fn tell(&self, drift: &[&DocumentKey], undetermined: u64, caught_up: bool) {
        let metrics = &self.tools.metrics;
        let label = [self.build.plan.name.as_str()];
        let count = u64::try_from(drift.len()).unwrap_or(u64::MAX);
        metrics.sweep_repairs_total.with_label_values(&label).inc_by(count);
        if undetermined > 0 {
            metrics.audit_undetermined_total.with_label_values(&label).inc_by(undetermined);
            tracing::warn!(
                collection = self.build.plan.name,
                documents = undetermined,
                "the SQL gives other text for the same rows, as an array_agg or a sum of floats \
                 without ORDER BY does"
            );
        }
        if !caught_up {
            return;
        }
        metrics.audit_drift_total.with_label_values(&label).inc_by(count);
        for key in drift.iter().take(KEYS_SAID_MAX) {
            tracing::warn!(collection = self.build.plan.name, key = %key, "drift, repaired");
        }
        if drift.len() > KEYS_SAID_MAX {
            tracing::warn!(collection = self.build.plan.name, documents = count, "drift, repaired");
        }
    }

    async fn seen(&self, keys: Vec<DocumentKey>) -> Result<HashMap<DocumentKey, Seen>, SweepError> {
        let found = self.tools.elastic.mget_sources(&self.build.index, &keys).await;
        let found = found.map_err(|it| self.elastic(&it))?;
        let seen = found.into_iter().map(|it| {
            it.map(|(text, version)| {
                let mut hasher = DefaultHasher::new();
                text.hash(&mut hasher);
                (version, hasher.finish())
            })
        });
        Ok(keys.into_iter().zip(seen).collect())
    }

    /// The version of what is read now.
    pub(super) async fn newest(&self) -> Result<DocumentVersion, SweepError> {
        let read = self.tools.readers.read(&[], &[]).await;
        let stamp = read.map_err(|it| self.read_error(&it))?.stamp;
        if !self.tools.identity.is_of(&stamp) {
            return Err(SweepError::Moved);
        }
        stamp.version(self.tools.identity.epoch).ok_or(SweepError::Moved)
    }

    /// Who writes to the index by hand raises a document's version by one, and on a quiet database
    /// so beyond what we read: our own writes would be refused as stale. Transactions of our own
    /// bring the reads past it.
    async fn overtake(&self, highest: Option<DocumentVersion>) -> Result<(), SweepError> {
        let Some(highest) = highest else { return Ok(()) };
        let behind = highest.0.saturating_sub(self.newest().await?.0);
        if behind > OVERTAKE_MAX {
            let collection = &self.build.plan.name;
            tracing::error!(
                collection,
                "a document's version is not one of ours; delete it: it is made again by an audit"
            );
            return Ok(());
        }
        for _ in 0..behind {
            self.tools.readers.spend_transaction().await;
        }
        Ok(())
    }

    /// Whether all that was committed before now has been handled, waiting for it.
    async fn caught_up(&self) -> Result<bool, SweepError> {
        let deadline = Instant::now() + CAUGHT_UP_MAX;
        let sql = "SELECT pg_current_wal_flush_lsn()::text".to_owned();
        let end = self.answer(Query { sql, params: Vec::new() }).await?;
        let slot = self.tools.config.postgres.slot_name.clone();
        let confirmed = Query {
            sql: "SELECT (confirmed_flush_lsn >= $1::text::pg_lsn)::text \
                  FROM pg_replication_slots WHERE slot_name = $2::text"
                .to_owned(),
            params: vec![Param::Text(end), Param::Text(Some(slot))],
        };
        while self.answer(confirmed.clone()).await?.as_deref() != Some("true") {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(CAUGHT_UP_PAUSE).await;
        }
        let failed = |it: &_| self.outage(format!("Kafka: {}", with_causes(it)));
        let log = || self.tools.log.upgrade().ok_or_else(|| self.outage(STOPS.to_owned()));
        let kafka = &self.tools.config.kafka;
        let tables = published(&self.build.plan);
        let topics = tables.iter().map(|it| kafka.entity_topic(&it.namespace, &it.name)).collect();
        let ends = log()?.ends(topics).await.map_err(|it| failed(&it))?;
        while !log()?.is_committed(ends.clone()).await.map_err(|it| failed(&it))? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(CAUGHT_UP_PAUSE).await;
        }
        Ok(true)
    }

    async fn answer(&self, query: Query) -> Result<Option<String>, SweepError> {
        let read = self.tools.readers.read(&[], &[query]).await;
        let rows = read.map_err(|it| self.read_error(&it))?.rows;
        Ok(rows.into_iter().flatten().flatten().flatten().next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_tells_what_a_suspect_was() {
        let seen = |version, hash| Some((DocumentVersion(version), hash));
        let cases = [
            ("another text", seen(1, 7), seen(2, 8), Verdict::Drift),
            ("missing", None, seen(2, 8), Verdict::Drift),
            ("an orphan", seen(1, 7), None, Verdict::Drift),
            ("the same text", seen(1, 7), seen(2, 7), Verdict::Undetermined),
            ("a dead letter", seen(1, 7), seen(1, 7), Verdict::Refused),
            ("never there", None, None, Verdict::Refused),
        ];
        for (what, before, after, expected) in cases {
            assert_eq!(verdict(before, after), expected, "{what}");
        }
    }
}
