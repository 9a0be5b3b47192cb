//! Since when it is not known any more whose the slot is.
//!
//! What a stream brings was sent while its walsender had the slot, but it may be read long after
//! that: from buffers, by a process that was stopped (SIGSTOP, a frozen virtual machine), or by one
//! whose Kafka was slow. Meanwhile the walsender may be gone and a successor may have published
//! newer changes, which nothing older may follow (A14). So each message's own time counts, as the
//! server's clock tells it, and not when we got to it.

use std::time::{Duration, Instant};

/// The server's clock, as far as it can be told from ours. Both run at the same speed, or nearly:
/// that it drifts, or is set, makes a message look older than it is, or rarely younger by less than
/// it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerClock {
    at: Instant,
    /// Microseconds since 2000, as in the protocol's messages.
    said_us: i64,
}

impl ServerClock {
    /// It said `said_us` at `at` or after it.
    pub fn new(at: Instant, said_us: i64) -> Self {
        Self { at, said_us }
    }

    /// When it said `sent_us`, or before that. Nothing is said later than `now`: then the clock was
    /// set forward, and counts as it is from here on.
    pub fn when(&mut self, sent_us: i64, now: Instant) -> Instant {
        let forward = sent_us.saturating_sub(self.said_us);
        let apart = Duration::from_micros(forward.unsigned_abs());
        let when =
            if forward < 0 { self.at.checked_sub(apart) } else { self.at.checked_add(apart) };
        match when {
            Some(when) if when <= now => when,
            None if forward < 0 => self.at,
            _ => {
                *self = Self::new(now, sent_us);
                now
            }
        }
    }
}

/// A walsender, as it is in `pg_replication_slots` while it has its slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    pub slot: String,
    /// Of the server's process.
    pub pid: i32,
    pub clock: ServerClock,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID_US: i64 = 800_000_000_000_000;

    #[test]
    fn a_message_is_as_old_as_the_servers_clock_says() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let us = |seconds: i64| SAID_US + seconds * 1_000_000;
        // Read at, sent at (seconds after the clock was asked), and when that was.
        let cases = [
            (at(0), us(0), at(0)),
            (at(5), us(5), at(5)),
            (at(60), us(5), at(5)),
            (at(3600), us(0), at(0)),
        ];
        for (now, sent_us, expected) in cases {
            let mut clock = ServerClock::new(start, SAID_US);
            assert_eq!(clock.when(sent_us, now), expected, "{sent_us}");
        }
    }

    #[test]
    fn a_clock_that_was_set_forward_counts_from_there() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let us = |seconds: i64| SAID_US + seconds * 1_000_000;
        let mut clock = ServerClock::new(start, SAID_US);
        assert_eq!(clock.when(us(3600), at(10)), at(10));
        assert_eq!(clock.when(us(3601), at(70)), at(11), "it has waited for 59 s");
    }

    #[test]
    fn a_clock_that_was_set_back_makes_everything_old() {
        let start = Instant::now() + Duration::from_secs(10_000);
        let mut clock = ServerClock::new(start, SAID_US);
        let when = clock.when(SAID_US - 3_600_000_000, start + Duration::from_secs(5));
        assert_eq!(when, start - Duration::from_secs(3600));
        assert!(clock.when(i64::MIN, start) < start, "as far back as an Instant reaches");
    }
}
