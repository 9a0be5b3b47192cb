//! When to let bytes pile up in the socket. Pure.
//!
//! A walsender with a backlog sends message by message, and each wakes a waiting reader: that
//! costs the walsender more system time than decoding. A reader that is only woken once 64 KiB
//! wait triples the rate (`SO_RCVLOWAT`). While there is no backlog each message must wake us at
//! once, or latency suffers. So the rule looks at the rate: bytes per time, because the size of a
//! single read says nothing as long as we are woken for every message.

use std::time::{Duration, Instant};

/// How long bytes may pile up while they stay below [`PILE_BYTES`]: what a backlog's last piece
/// waits at most (plus the timer's millisecond).
pub(crate) const PILE_TIME: Duration = Duration::from_millis(2);

/// How many bytes to wait for. Half of what a socket holds by default (128 KiB), so that the
/// walsender goes on sending while we decode.
pub(crate) const PILE_BYTES: usize = 64 * 1024;

/// One window of measurement: long enough to see more than one wake-up.
const WINDOW: Duration = Duration::from_millis(1);

/// 8 MB/s, a fifth of a walsender at full speed: bytes then come faster than anyone commits rows
/// by hand, and waiting 2 ms collects at least 16 KiB.
const BUSY_BYTES_PER_MS: u128 = 8 * 1024;

/// The rate of the last window.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    window: Option<(Instant, usize)>,
    busy: bool,
}

impl Pace {
    /// Whether to let bytes pile up from now on, after a read of `bytes` at `now`.
    pub(crate) fn after_read(&mut self, now: Instant, bytes: usize) -> bool {
        let (start, before) = self.window.unwrap_or((now, 0));
        let (elapsed, sum) = (now.saturating_duration_since(start), before.saturating_add(bytes));
        if elapsed < WINDOW {
            self.window = Some((start, sum));
        } else {
            let enough = elapsed.as_micros().saturating_mul(BUSY_BYTES_PER_MS) / 1000;
            self.busy = u128::try_from(sum).is_ok_and(|it| it >= enough);
            self.window = Some((now, 0));
        }
        self.busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads of `bytes`, one each `gap_us`: is the last one busy?
    fn check(bytes: usize, gap_us: u64, expected: bool) {
        let (mut pace, start, mut busy) = (Pace::default(), Instant::now(), false);
        for nth in 0..1000 {
            busy = pace.after_read(start + Duration::from_micros(gap_us * nth), bytes);
        }
        assert_eq!(busy, expected, "{bytes} bytes every {gap_us} us");
    }

    #[test]
    fn the_rate_decides_and_not_the_size() {
        check(300, 8, true);
        check(300, 2000, false);
        check(65_536, 1500, true);
        check(65_536, 50_000, false);
        check(500, 100, false);
    }

    #[test]
    fn a_message_after_a_pause_is_not_busy() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        for nth in 0..1000 {
            pace.after_read(start + Duration::from_micros(5 * nth), 300);
        }
        assert!(!pace.after_read(start + Duration::from_secs(1), 300));
    }
}
