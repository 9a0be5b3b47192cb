//! Writes documents until each has its outcome or the deadline has passed.
//!
//! Only what may still succeed is sent again. After the deadline nothing is sent: a document read
//! long ago must be read again, as Elasticsearch forgets the versions of deleted documents after
//! `index.gc_deletes` (rule 3).
//!
//! **Invariant:** one write of an `_id` is in flight in a call; the caller sees to that between calls.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use elasticsearch::http::Method;
use tokio::time::{Instant, sleep};

use crate::elasticsearch::bulk::{self, Outcome, Write};
use crate::elasticsearch::client::{ElasticError, Elasticsearch, Request};
use crate::elasticsearch::conflict::{self, Torn};
use crate::metrics::Metrics;

/// A busy server needs about this long to drain a queue.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longer would only lengthen the wait after an outage.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Fields that are given a wider type in one call: as many as a document of some size may bring.
/// Beyond it the document is refused, with the reason that names the next field.
const WIDENED_MAX: usize = 100;

const DOING: &str = "writing documents";

impl Elasticsearch {
    /// Writes all, and answers with one outcome for each write, in order. What still has
    /// [`Outcome::Retry`] ran into the deadline: read it again. So does an error's caller with all
    /// of the writes; those that were done stay done, and writing them again does no harm.
    ///
    /// `deadline`: 30 s after the snapshot that read the oldest of them.
    ///
    /// # Errors
    /// Requests failed as a whole: for good, or still at the deadline.
    ///
    /// # Panics
    /// If two writes are of the same document, which is our own mistake.
    pub async fn write_all(
        &self,
        writes: Vec<Write>,
        deadline: Instant,
        metrics: &Metrics,
    ) -> Result<Vec<Outcome>, ElasticError> {
        let mut ids = HashSet::new();
        let distinct = writes.iter().all(|it| ids.insert((&it.index, &it.key)));
        assert!(distinct, "one write per document in a call");
        let mut round = Round::new(&writes);
        let mut backoff = BACKOFF_MIN;
        while let Some(batch) = round.queue.pop_front() {
            if Instant::now() >= deadline {
                round.queue.push_front(batch);
                break;
            }
            let answered = self.write_batch(&writes, &batch, metrics).await;
            let smooth = round.take(batch, answered)?;
            let smooth = self.widen_torn(&writes, &mut round).await? && smooth;
            if smooth {
                backoff = BACKOFF_MIN;
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            sleep(backoff.min(left)).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        round.finish(&writes, metrics)
    }

    /// Mends what was refused for a new field that a document brings with two types, and has those
    /// documents written again. Each field once: a second refusal has another cause. False: wait
    /// before the next request.
    async fn widen_torn(&self, writes: &[Write], round: &mut Round) -> Result<bool, ElasticError> {
        let (mut smooth, mut again) = (true, Vec::new());
        for at in std::mem::take(&mut round.refused) {
            let Some(Outcome::Refused { reason, .. }) = &round.outcomes[at] else { continue };
            let Some(torn) = conflict::torn(reason) else { continue };
            let place = (Arc::clone(&writes[at].index), torn);
            if !round.widened.contains(&place) {
                if round.widened.len() >= WIDENED_MAX {
                    continue;
                }
                match self.widen(&place.0, &place.1).await {
                    // Refused: another document has settled the type meanwhile.
                    // Gone: the next write says so.
                    Ok(()) | Err(ElasticError::Refused { .. } | ElasticError::NotFound { .. }) => {}
                    Err(error) if error.is_transient() => {
                        round.failure = Some(error);
                        smooth = false;
                    }
                    Err(error) => return Err(error),
                }
            } else if round.written_again.contains(&(at, place.1.clone())) {
                continue;
            }
            if smooth {
                round.written_again.insert((at, place.1.clone()));
                round.widened.insert(place);
            }
            round.outcomes[at] = None;
            again.push(at);
        }
        if !again.is_empty() {
            round.queue.push_back(again);
        }
        Ok(smooth)
    }

    async fn write_batch(
        &self,
        writes: &[Write],
        batch: &[usize],
        metrics: &Metrics,
    ) -> Result<Vec<Outcome>, ElasticError> {
        let batch: Vec<&Write> = batch.iter().map(|&at| &writes[at]).collect();
        let body = bulk::encode(batch.iter().copied());
        let path = "/_bulk?require_alias=true";
        let started = Instant::now();
        let answer = self.send(Request::new(DOING, Method::Post, path).ndjson(body)).await?;
        metrics.elasticsearch_bulk_seconds.observe(started.elapsed().as_secs_f64());
        bulk::outcomes(&batch, &answer)
            .map_err(|source| ElasticError::Malformed { doing: DOING, source: source.into() })
    }
}

/// A call's state: what is to be sent, and what is known.
struct Round {
    /// Batches, each a list of places in `writes`.
    queue: VecDeque<Vec<usize>>,
    outcomes: Vec<Option<Outcome>>,
    /// Why the newest request failed that failed as a whole.
    failure: Option<ElasticError>,
    /// Refused by the newest answer.
    refused: Vec<usize>,
    /// Fields that were given a wider type.
    widened: HashSet<(Arc<str>, Torn)>,
    /// Writes that were tried again because of such a field.
    written_again: HashSet<(usize, Torn)>,
}

impl Round {
    fn new(writes: &[Write]) -> Self {
        let outcomes: Vec<Option<Outcome>> = writes.iter().map(bulk::refused_unsent).collect();
        let sent: Vec<usize> = (0..writes.len()).filter(|&at| outcomes[at].is_none()).collect();
        let each: Vec<&Write> = sent.iter().map(|&at| &writes[at]).collect();
        let queue = bulk::split(&each).into_iter().map(|it| sent[it].to_vec()).collect();
        Self {
            queue,
            outcomes,
            failure: None,
            refused: Vec::new(),
            widened: HashSet::new(),
            written_again: HashSet::new(),
        }
    }

    /// Takes a batch's answer in. False: wait before the next request.
    fn take(
        &mut self,
        batch: Vec<usize>,
        answered: Result<Vec<Outcome>, ElasticError>,
    ) -> Result<bool, ElasticError> {
        match answered {
            Ok(outcomes) => {
                let mut again = Vec::new();
                for (at, outcome) in batch.into_iter().zip(outcomes) {
                    match outcome {
                        Outcome::Retry { .. } => again.push(at),
                        Outcome::Refused { .. } => self.refused.push(at),
                        _ => {}
                    }
                    self.outcomes[at] = Some(outcome);
                }
                let smooth = again.is_empty();
                if !smooth {
                    self.queue.push_back(again);
                }
                Ok(smooth)
            }
            // Too much at once: smaller requests, later.
            Err(error @ ElasticError::Throttled { .. }) => {
                self.failure = Some(error);
                self.halve(batch);
                Ok(false)
            }
            // One write spoils the request: find it, so that it does not hold up the others.
            Err(ElasticError::Refused { status, reason, .. }) => {
                match batch.as_slice() {
                    [only] => self.outcomes[*only] = Some(Outcome::Refused { status, reason }),
                    _ => self.halve(batch),
                }
                Ok(true)
            }
            Err(error) if error.is_transient() => {
                self.failure = Some(error);
                self.queue.push_front(batch);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn halve(&mut self, mut batch: Vec<usize>) {
        let second = batch.split_off(batch.len().div_ceil(2));
        for half in [second, batch].into_iter().filter(|it| !it.is_empty()) {
            self.queue.push_front(half);
        }
    }

    fn finish(self, writes: &[Write], metrics: &Metrics) -> Result<Vec<Outcome>, ElasticError> {
        for (write, outcome) in writes.iter().zip(&self.outcomes) {
            if let Some(outcome) = outcome {
                let labels = [&*write.collection, outcome.label()];
                metrics.elasticsearch_items_total.with_label_values(&labels).inc();
            }
        }
        match self.outcomes.into_iter().collect::<Option<Vec<_>>>() {
            Some(outcomes) => Ok(outcomes),
            None => Err(self.failure.unwrap_or_else(|| ElasticError::Unavailable {
                doing: DOING,
                source: "the documents were read too long ago to begin".into(),
            })),
        }
    }
}
