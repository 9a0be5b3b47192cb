//! What a Postgres transaction sees, and what may be concluded from it.
//!
//! Rules 2 and 3 of the design rest on this file. *The gate*: a document may be written because
//! of a change only if the snapshot that read it sees the change's transaction. *The number*: on a
//! primary, snapshots are totally ordered by what they see, and `xmax - 1 - |xip|`, the count of
//! completed transactions, orders them exactly; an LSN does not.

use std::str::FromStr;

/// The value of `pg_current_snapshot()`, with 64-bit transaction ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The oldest transaction that is still running.
    pub xmin: u64,
    /// The first transaction id not yet assigned: it and all later ones are not seen.
    pub xmax: u64,
    /// The running transactions between xmin and xmax, ascending.
    pub xip: Vec<u64>,
}

/// The text is not of the form `xmin:xmax:xip,xip`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a pg_snapshot such as 10:20:10,14,15")]
pub struct ParseSnapshotError(pub String);

impl FromStr for Snapshot {
    type Err = ParseSnapshotError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || -> Option<Self> {
            let (xmin, rest) = text.split_once(':')?;
            let (xmax, list) = rest.split_once(':')?;
            let (xmin, xmax) = (xmin.parse().ok()?, xmax.parse().ok()?);
            let xip: Vec<u64> = match list {
                "" => Vec::new(),
                list => list.split(',').map(|it| it.parse().ok()).collect::<Option<_>>()?,
            };
            let ascending = xip.is_sorted_by(|a, b| a < b);
            let within = xip.iter().all(|it| (xmin..xmax).contains(it));
            (1 <= xmin && xmin <= xmax && ascending && within).then_some(Self { xmin, xmax, xip })
        };
        parse().ok_or_else(|| ParseSnapshotError(text.to_owned()))
    }
}

impl Snapshot {
    /// Whether a *committed top-level* transaction is visible. A running subtransaction's id
    /// would look visible (correctness.md B7), so it must never be asked for.
    pub fn sees(&self, xid: u64) -> bool {
        xid < self.xmax && self.xip.binary_search(&xid).is_err()
    }

    /// N of rule 3: how many transactions have completed that this snapshot sees.
    pub fn number(&self) -> u64 {
        let running = u64::try_from(self.xip.len()).expect("a list's length fits");
        // xip holds distinct ids in xmin..xmax and xmin >= 1, so neither step underflows.
        self.xmax - 1 - running
    }
}

/// The transaction that caused a change, and the timeline on which it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cause {
    pub timeline: u32,
    /// 64 bits, widened once by capture (B6).
    pub xid: u64,
}

/// What the gate says of a cause (B5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// The read sees the cause: its result may be used.
    Open,
    /// Not visible yet: throw the result away and read again shortly.
    NotYet,
    /// The change comes from a newer timeline than the read: we are on an old primary.
    /// Reconnect.
    OldPrimary,
}

/// Whether a read on `timeline` with `snapshot` may serve a change caused by `cause`.
///
/// An older timeline's change passes: it was decoded before a promotion, so it is either part of
/// the data that was promoted, or lost and must not hold anyone up.
pub fn gate(cause: Cause, timeline: u32, snapshot: &Snapshot) -> Gate {
    match cause.timeline.cmp(&timeline) {
        std::cmp::Ordering::Less => Gate::Open,
        std::cmp::Ordering::Greater => Gate::OldPrimary,
        std::cmp::Ordering::Equal if snapshot.sees(cause.xid) => Gate::Open,
        std::cmp::Ordering::Equal => Gate::NotYet,
    }
}

/// Widens a 32-bit transaction id to 64 bits by its signed distance to a recent 64-bit one (B6).
///
/// Right as long as the two are less than 2^31 apart, which Postgres itself guarantees for any
/// transaction that is still of interest.
pub fn widen_xid(xid: u32, near: u64) -> u64 {
    let near_low = u32::try_from(near & 0xFFFF_FFFF).expect("masked to 32 bits");
    let distance = i64::from(xid.wrapping_sub(near_low).cast_signed());
    near.saturating_add_signed(distance)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_snapshot_is_refused() {
        for text in
            ["", "1", "1:2", "2:1:", "1:5:7", "1:5:3,2", "1:5:3,3", "1:5:x", "0:1:", "1:5:3,"]
        {
            assert_eq!(text.parse::<Snapshot>(), Err(ParseSnapshotError(text.to_owned())));
        }
    }

    #[test]
    fn a_snapshot_sees_what_completed_before_it() {
        let snapshot: Snapshot = "10:20:10,14".parse().unwrap();
        let seen: Vec<u64> = (8..22).filter(|&xid| snapshot.sees(xid)).collect();
        assert_eq!(seen, [8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
        assert_eq!(snapshot.number(), 17);
    }

    #[test]
    fn the_gate_knows_timelines() {
        let snapshot: Snapshot = "10:20:10".parse().unwrap();
        let cases = [
            (2, 9, Gate::Open),
            (2, 10, Gate::NotYet),
            (2, 20, Gate::NotYet),
            (1, 20, Gate::Open),
            (3, 9, Gate::OldPrimary),
        ];
        for (timeline, xid, expected) in cases {
            assert_eq!(gate(Cause { timeline, xid }, 2, &snapshot), expected, "{timeline} {xid}");
        }
    }

    proptest! {
        #[test]
        fn widening_finds_the_id_within_two_billion(
            near in 1u64 << 32..1 << 60,
            distance in -(1i64 << 31) + 1..1 << 31,
        ) {
            let xid = near.checked_add_signed(distance).unwrap();
            let low = u32::try_from(xid & 0xFFFF_FFFF).unwrap();
            prop_assert_eq!(widen_xid(low, near), xid);
        }

        #[test]
        fn what_a_later_snapshot_sees_more_it_numbers_higher(
            xmax in 2u64..40, running in proptest::collection::btree_set(1u64..40, 0..10),
            finished in 0usize..10,
        ) {
            let xip: Vec<u64> = running.into_iter().filter(|&it| it < xmax).collect();
            let earlier = Snapshot { xmin: xip.first().copied().unwrap_or(xmax), xmax, xip };
            let mut xip = earlier.xip.clone();
            let gone = finished.min(xip.len());
            xip.drain(..gone);
            let later = Snapshot { xmin: xip.first().copied().unwrap_or(xmax), xmax, xip };
            prop_assert_eq!(later.number() - earlier.number(), u64::try_from(gone).unwrap());
        }
    }
}
