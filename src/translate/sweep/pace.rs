//! How many slices a sweep has in hand at once: as many as refreshes leave room for. Pure.
//!
//! A refresh is a change that somebody waits to see; a sweep has time. So the sweep halves what it
//! has in hand whenever refreshes queue or slow down, and adds one for each slice that ended while
//! they did not. It never stops: at worst it reads one slice at a time and rests as long as that
//! took, since a backfill that waits for a quiet moment may wait for ever.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Refreshes that take longer than this are held up by somebody: alone, a batch takes some ten
/// milliseconds.
const REFRESH_SLOW: Duration = Duration::from_millis(100);

/// What was measured longer ago says nothing of now.
const MEASURE_AGE_MAX: Duration = Duration::from_secs(2);

/// Longest rest between two slices.
const REST_MAX: Duration = Duration::from_secs(1);

/// What refreshes need at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Keys that wait to be read.
    pub waiting_keys: usize,
    /// How long a refresh takes, smoothed; zero: none ran of late.
    pub refresh: Duration,
}

/// Measures [`Load`]: the stage tells, the sweeps ask.
#[derive(Debug, Default)]
pub struct LoadMeter {
    measured: Mutex<Measured>,
}

#[derive(Debug, Default)]
struct Measured {
    waiting_keys: usize,
    refresh: Option<(Instant, Duration)>,
}

impl LoadMeter {
    fn measured(&self) -> MutexGuard<'_, Measured> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn waits(&self, keys: usize) {
        self.measured().waiting_keys = keys;
    }

    /// A refresh ended at `now`. The newest counts for a quarter, so that one slow batch alone
    /// slows nothing down.
    pub fn refreshed(&self, now: Instant, took: Duration) {
        let mut measured = self.measured();
        let smooth = match measured.refresh {
            Some((at, before)) if now.saturating_duration_since(at) < MEASURE_AGE_MAX => {
                (before * 3 + took) / 4
            }
            _ => took,
        };
        measured.refresh = Some((now, smooth));
    }

    pub fn load(&self, now: Instant) -> Load {
        let measured = self.measured();
        let fresh = |(at, took): (Instant, Duration)| {
            (now.saturating_duration_since(at) < MEASURE_AGE_MAX).then_some(took)
        };
        let refresh = measured.refresh.and_then(fresh).unwrap_or_default();
        Load { waiting_keys: measured.waiting_keys, refresh }
    }
}

/// A sweep's pace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// Slices read at once; zero: one, with rests between.
    level: usize,
    level_max: usize,
    waiting_keys_max: usize,
}

impl Pace {
    /// `readers`: connections that sweeps may use. `waiting_keys_max`: what one round of refreshes
    /// takes; more than that is a queue.
    pub fn new(readers: usize, waiting_keys_max: usize) -> Self {
        Self { level: readers, level_max: readers, waiting_keys_max }
    }

    /// Slices in hand: while some are read, as many are compared and written.
    pub fn in_hand(&self) -> usize {
        (self.level * 2).max(1)
    }

    /// A slice has ended.
    pub fn adapt(&mut self, load: Load) {
        let held_up = load.waiting_keys > self.waiting_keys_max || load.refresh > REFRESH_SLOW;
        self.level = match held_up {
            true => self.level / 2,
            false => (self.level + 1).min(self.level_max),
        };
    }

    /// How long to do nothing after a slice that took this long.
    pub fn rest(&self, took: Duration) -> Duration {
        if self.level == 0 { took.min(REST_MAX) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Load = Load { waiting_keys: 10, refresh: Duration::from_millis(20) };
    const QUEUE: Load = Load { waiting_keys: 101, refresh: Duration::from_millis(20) };
    const SLOW: Load = Load { waiting_keys: 10, refresh: Duration::from_millis(101) };

    #[test]
    fn a_sweep_slows_down_while_refreshes_are_held_up_and_recovers() {
        let took = Duration::from_millis(50);
        for held_up in [QUEUE, SLOW] {
            let mut pace = Pace::new(4, 100);
            let mut seen = Vec::new();
            for load in [QUIET, held_up, held_up, held_up, held_up, QUIET, QUIET] {
                pace.adapt(load);
                seen.push((pace.in_hand(), pace.rest(took)));
            }
            let none = Duration::ZERO;
            let expected =
                [(8, none), (4, none), (2, none), (1, took), (1, took), (2, none), (4, none)];
            assert_eq!(seen, expected, "{held_up:?}");
            assert_eq!(pace.rest(took * 1_000), none);
        }
    }

    #[test]
    fn a_sweep_never_rests_longer_than_its_limit() {
        let mut pace = Pace::new(1, 100);
        pace.adapt(SLOW);
        assert_eq!(pace.rest(Duration::from_secs(20)), REST_MAX);
    }

    #[test]
    fn the_load_is_smoothed_and_forgotten() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let meter = LoadMeter::default();
        assert_eq!(meter.load(start), Load { waiting_keys: 0, refresh: ms(0) });
        meter.waits(7);
        meter.refreshed(start, ms(40));
        meter.refreshed(start + ms(10), ms(400));
        assert_eq!(meter.load(start + ms(10)), Load { waiting_keys: 7, refresh: ms(130) });
        assert_eq!(meter.load(start + ms(2_010)).refresh, ms(0), "an idle log holds up nobody");
        meter.refreshed(start + ms(9_000), ms(8));
        assert_eq!(meter.load(start + ms(9_000)).refresh, ms(8));
    }
}
