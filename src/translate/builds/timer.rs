//! When a build is polled or audited: once for each interval by one translator of the group.
//!
//! All of them have the timer, and would do the same work. So the one that reads the first
//! partition of the collection's first topic does it, and the others leave it to that one. They
//! can't know that it does: it may have older files, without the collection, or be away for a
//! while. **Invariant:** whoever is not the first goes without for some intervals, never for good.
//! A sweep that two make is only work.

use std::time::{Duration, Instant};

/// A translator leaves a sweep to the first one for so many intervals.
const LEFT_TO_FIRST: u32 = 3;

/// Before a translator that leaves a sweep looks whether it is the first by now.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Timer {
    /// None: never.
    interval: Option<Duration>,
    due: Option<Instant>,
    look: Option<Instant>,
}

impl Timer {
    pub(super) fn new(interval: Option<Duration>, now: Instant) -> Self {
        let mut timer = Self { interval, due: None, look: None };
        timer.wind(now);
        timer
    }

    /// A sweep has ended: the next is an interval later.
    pub(super) fn wind(&mut self, now: Instant) {
        self.due = self.interval.map(|it| now + it);
        self.look = self.due;
    }

    /// With another interval from now on.
    pub(super) fn change(&mut self, interval: Option<Duration>, now: Instant) {
        if self.interval != interval {
            *self = Self::new(interval, now);
        }
    }

    /// When there may be something to do.
    pub(super) fn next(&self) -> Option<Instant> {
        self.look
    }

    /// Whether a sweep is to start now. `is_first`: this translator is the one to do it; asked
    /// for only where it matters.
    pub(super) fn is_due(&mut self, now: Instant, is_first: impl FnOnce() -> bool) -> bool {
        let (Some(due), Some(interval)) = (self.due, self.interval) else { return false };
        if self.look.is_none_or(|it| now < it) {
            return false;
        }
        let left_until = due + interval * LEFT_TO_FIRST;
        if left_until <= now || is_first() {
            return true;
        }
        self.look = Some(left_until.min(now + LOOK_AGAIN_AFTER));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn the_first_translator_sweeps_each_interval() {
        let start = Instant::now();
        let mut timer = Timer::new(Some(INTERVAL), start);
        assert_eq!(timer.next(), Some(start + INTERVAL));
        assert!(!timer.is_due(start + INTERVAL / 2, || panic!("not yet")));
        assert!(timer.is_due(start + INTERVAL, || true));
        timer.wind(start + INTERVAL * 2);
        assert!(!timer.is_due(start + INTERVAL * 2, || true));
        assert!(timer.is_due(start + INTERVAL * 3, || true));
    }

    #[test]
    fn another_one_leaves_it_to_the_first_and_not_for_good() {
        let start = Instant::now();
        let mut timer = Timer::new(Some(INTERVAL), start);
        let mut now = start + INTERVAL;
        let mut looks = 0;
        while !timer.is_due(now, || false) {
            let next = timer.next().expect("it looks again");
            assert!(next > now, "a look that is over would come again at once");
            now = next;
            looks += 1;
        }
        assert_eq!((now, looks), (start + INTERVAL * (1 + LEFT_TO_FIRST), 6));
    }

    #[test]
    fn who_becomes_the_first_makes_up_for_what_nobody_may_have_done() {
        let start = Instant::now();
        let mut timer = Timer::new(Some(INTERVAL), start);
        assert!(!timer.is_due(start + INTERVAL, || false));
        let look = start + INTERVAL + LOOK_AGAIN_AFTER;
        assert_eq!(timer.next(), Some(look));
        assert!(timer.is_due(look, || true));
    }

    #[test]
    fn an_interval_may_change_or_go() {
        let start = Instant::now();
        let mut timer = Timer::new(Some(INTERVAL), start);
        timer.change(Some(INTERVAL), start + INTERVAL / 2);
        assert_eq!(timer.next(), Some(start + INTERVAL), "the same changes nothing");
        timer.change(None, start);
        assert_eq!((timer.next(), timer.is_due(start + INTERVAL * 9, || true)), (None, false));
    }
}
