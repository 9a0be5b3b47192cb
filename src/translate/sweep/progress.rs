//! How far a sweep is, for people: documents, an estimate of all of them, rate and time left.

use std::time::Duration;

use tokio::time::Instant;

use super::Purpose;
use crate::metrics::Metrics;

/// How often progress is said.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Of one sweep. Its gauges are zero again once it is dropped, however the sweep ended.
#[derive(Debug)]
pub(super) struct Progress {
    metrics: Metrics,
    collection: String,
    purpose: Purpose,
    started: Instant,
}

/// Documents of a sweep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    /// Those of an earlier part of the sweep, by another process or before an outage.
    pub before: u64,
    /// All so far.
    pub documents: u64,
    /// An estimate; zero: there is none.
    pub expected: u64,
}

impl Progress {
    pub(super) fn new(metrics: &Metrics, collection: &str, purpose: Purpose) -> Self {
        let collection = collection.to_owned();
        Self { metrics: metrics.clone(), collection, purpose, started: Instant::now() }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Updates the metrics; says it if it was `said` long ago.
    pub(super) fn tell(&self, done: Done, said: &mut Instant) {
        let (rate, left) = rate_and_left(done, self.elapsed());
        let gauge = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
        let label = [self.collection.as_str()];
        let metrics = &self.metrics;
        metrics.sweep_done_documents.with_label_values(&label).set(gauge(done.documents));
        metrics.sweep_expected_documents.with_label_values(&label).set(gauge(done.expected));
        metrics.sweep_left_seconds.with_label_values(&label).set(gauge(left.as_secs()));
        if said.elapsed() < SAID_EVERY {
            return;
        }
        *said = Instant::now();
        tracing::info!(
            collection = self.collection,
            purpose = self.purpose.name(),
            documents = done.documents,
            expected = done.expected,
            documents_per_second = rate,
            seconds_left = left.as_secs(),
            "sweeping"
        );
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let label = [self.collection.as_str()];
        self.metrics.sweep_done_documents.with_label_values(&label).set(0);
        self.metrics.sweep_expected_documents.with_label_values(&label).set(0);
        self.metrics.sweep_left_seconds.with_label_values(&label).set(0);
    }
}

/// Documents a second, and how long the rest takes at that rate.
fn rate_and_left(done: Done, elapsed: Duration) -> (u64, Duration) {
    let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let own = done.documents.saturating_sub(done.before);
    let rate = own.saturating_mul(1_000) / milliseconds;
    let left = done.expected.saturating_sub(done.documents);
    (rate, Duration::from_secs(left.div_ceil(rate.max(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_sweeps_own_rate() {
        let second = Duration::from_secs(1);
        let done = |before, documents, expected| Done { before, documents, expected };
        let cases = [
            (done(0, 2_000, 10_000), 2 * second, 1_000, 8 * second),
            (done(9_000, 9_500, 10_000), second, 500, second),
            (done(0, 12_000, 10_000), 2 * second, 6_000, Duration::ZERO),
            (done(0, 0, 90), Duration::ZERO, 0, 90 * second),
        ];
        for (done, elapsed, rate, left) in cases {
            assert_eq!(rate_and_left(done, elapsed), (rate, left), "{done:?}");
        }
    }
}
