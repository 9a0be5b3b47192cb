//! Changes that have no event (A11): every few seconds the catalog is asked for the fingerprints
//! of all that the builds read; a difference has the mappings loaded anew.
//!
//! The load makes the rest: a plan whose fingerprint is not its build's takes the build's place
//! and is owed a sweep (`load`, `builds`). The order is what counts: the new plan follows the log
//! before its sweep begins, and the fingerprint that the index is marked with at the sweep's end
//! is the one that the plan was resolved in, so that a change during the sweep is one more
//! difference. A crash in between leaves an index without its mark.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::causes::with_causes;
use crate::document::queries::{Param, Query};
use crate::document::read::ReadError;
use crate::mapping::fingerprint::{FINGERPRINT_SQL, Fingerprint, FingerprintError};
use crate::translate::Tools;
use crate::translate::stage::{Done, Stage};

/// Why a look at the catalog told nothing. The next one is due soon anyway.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error("the catalog can't be read")]
    Read(#[from] ReadError),
    #[error(transparent)]
    Answer(#[from] FingerprintError),
    #[error("the catalog is that of another database")]
    Moved,
}

/// What a look at the catalog has found.
pub type Taken = Result<Fingerprint, LookError>;

/// The looks of a session.
#[derive(Debug, Default)]
pub struct Seen {
    looking: bool,
    /// When the next look is due; None: at once.
    due: Option<Instant>,
    last: Fingerprint,
    /// When a load was last asked for.
    answered: Option<Instant>,
}

/// A collection whose SQL does not fit any more keeps its old plan, and so its difference: a load
/// at every look would only say the same mistakes. What it waits for need not be among what we
/// look at, as a table that is dropped and made anew.
const SAME_AGAIN_AFTER: Duration = Duration::from_secs(30);

impl Seen {
    /// When the stage must wake up for a look; None: one is under way.
    pub fn next_look(&self) -> Option<Instant> {
        self.due.filter(|_| !self.looking)
    }
}

impl Stage {
    /// Asks the catalog for all that the builds read, if it is time to and nobody is asking.
    pub fn take_fingerprint(&mut self, now: Instant) {
        if self.seen.looking || self.seen.due.is_some_and(|it| now < it) {
            return;
        }
        self.seen.due = Some(now + self.context.config.translate.fingerprint_interval);
        let oids: BTreeSet<u32> =
            self.builds.all().flat_map(|it| it.plan.fingerprint.oids()).collect();
        if oids.is_empty() {
            return;
        }
        self.seen.looking = true;
        let tools = Arc::clone(&self.tools);
        let publication = self.context.config.postgres.publication_name.clone();
        self.tasks.spawn(async move { Done::Fingerprint(look(&tools, oids, publication).await) });
    }

    /// Loads the mappings anew if something differs from what a build was resolved against.
    pub fn on_fingerprint(&mut self, taken: Taken) {
        self.seen.looking = false;
        // From its end on, so that a slow answer does not make for the next question.
        let pause = self.context.config.translate.fingerprint_interval;
        self.seen.due = Some(Instant::now() + pause);
        let metric = &self.tools.metrics.fingerprint_looks_total;
        let now = match taken {
            Ok(now) => now,
            Err(error) => {
                metric.with_label_values(&["error"]).inc();
                tracing::warn!(error = %with_causes(&error), "changes without events are not seen");
                return;
            }
        };
        let mut changes = BTreeSet::new();
        for build in self.builds.all() {
            let plan = &build.plan.fingerprint;
            changes.extend(plan.differences(&now));
            changes.extend(self.seen.last.changed_back(&now, plan));
        }
        let moved = now != self.seen.last;
        self.seen.last = now;
        let waited = self.seen.answered.is_none_or(|it| it.elapsed() > SAME_AGAIN_AFTER);
        let news = !changes.is_empty() && (moved || waited);
        let outcome = match (changes.is_empty(), news) {
            (true, _) => "same",
            (false, true) => "changed",
            // The load is under way, or the mapping does not fit what there is now.
            (false, false) => "pending",
        };
        metric.with_label_values(&[outcome]).inc();
        if news {
            tracing::info!(
                changes = Vec::from_iter(changes).join(", "),
                "loading the mappings anew"
            );
            self.seen.answered = Some(Instant::now());
            self.load_catalog();
        }
    }
}

async fn look(tools: &Tools, oids: BTreeSet<u32>, publication: String) -> Taken {
    let oids = oids.into_iter().map(|it| Some(it.to_string())).collect();
    let query = Query {
        sql: FINGERPRINT_SQL.to_owned(),
        params: vec![Param::TextArray(oids), Param::Text(Some(publication))],
    };
    let read = tools.readers.read(&[], &[query]).await?;
    if !tools.identity.is_of(&read.stamp) {
        return Err(LookError::Moved);
    }
    let mut fingerprint = Fingerprint::default();
    for row in read.rows.iter().flatten() {
        let text = |nth: usize| row.get(nth).and_then(Option::as_deref).unwrap_or_default();
        fingerprint.add(text(0), text(1))?;
    }
    Ok(fingerprint)
}
