//! Which offset of a partition may be committed: the first that is not done. Pure.
//!
//! Records are done in any order, since a parked key does not hold up the others, but a consumer
//! group keeps one number for each partition. Committing past a record that is not done would
//! lose it at the next start.
//!
//! Invariants: [`Offsets::committable`] never passes a record that is not done, nor a hold; it
//! falls only when the consumer itself was sent back.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A received record, unique over all partitions and assignments of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A place that may not be passed yet, though all records are done: a sweep is owed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hold(u64);

/// Records of one partition.
#[derive(Debug, Default)]
struct Partition {
    /// Those that are not done: a record that waits for a day must not keep all that came after
    /// it. Tickets are handed out ascending, so the first has the lowest offset.
    open: BTreeMap<Ticket, i64>,
    /// One past the last record received.
    next: Option<i64>,
    holds: BTreeMap<Hold, i64>,
}

impl Partition {
    /// The first record that is not done, or one past the last. Holds aside.
    fn base(&self) -> Option<i64> {
        self.open.first_key_value().map(|(_, offset)| *offset).or(self.next)
    }
}

/// The offsets of all partitions that are assigned to us. `P` names one: topic and number.
///
/// Holds one entry for each record that is not done, [`Offsets::len`]: bounded by what the
/// consumer lets be in flight.
#[derive(Debug)]
pub struct Offsets<P> {
    partitions: HashMap<P, Partition>,
    of_ticket: HashMap<Ticket, P>,
    of_hold: HashMap<Hold, P>,
    next_id: u64,
}

impl<P> Default for Offsets<P> {
    fn default() -> Self {
        Self {
            partitions: HashMap::new(),
            of_ticket: HashMap::new(),
            of_hold: HashMap::new(),
            next_id: 0,
        }
    }
}

impl<P: Clone + Eq + Hash> Offsets<P> {
    /// A record was received. An offset at or below an earlier one means that the consumer went
    /// back: what was received before is forgotten, its tickets are void and holds stay.
    pub fn received(&mut self, partition: &P, offset: i64) -> Ticket {
        let ticket = Ticket(self.id());
        let state = self.partitions.entry(partition.clone()).or_default();
        if state.next.is_some_and(|next| offset < next) {
            for ticket in std::mem::take(&mut state.open).into_keys() {
                self.of_ticket.remove(&ticket);
            }
        }
        state.open.insert(ticket, offset);
        state.next = Some(offset + 1);
        self.of_ticket.insert(ticket, partition.clone());
        ticket
    }

    /// Every record before `offset` was received: what lies between the last one and it is none,
    /// such as the mark that ends a transaction.
    pub fn passed(&mut self, partition: &P, offset: i64) {
        let state = self.partitions.entry(partition.clone()).or_default();
        state.next = state.next.max(Some(offset));
    }

    /// All that the record asked for is durable. False for a ticket that is void or done already.
    pub fn done(&mut self, ticket: Ticket) -> bool {
        let Some(partition) = self.of_ticket.remove(&ticket) else { return false };
        let state = self.partitions.get_mut(&partition).expect("revoke voids the tickets");
        state.open.remove(&ticket).expect("a ticket that is not void has its record");
        true
    }

    /// What may be committed: every record before it is done. None: nothing was received.
    pub fn committable(&self, partition: &P) -> Option<i64> {
        let state = self.partitions.get(partition)?;
        let held = state.holds.values().min().copied();
        let base = state.base()?;
        Some(held.map_or(base, |held| held.min(base)))
    }

    /// Every partition's committable offset, in no order.
    pub fn all_committable(&self) -> impl Iterator<Item = (&P, i64)> {
        self.partitions.keys().filter_map(|it| Some((it, self.committable(it)?)))
    }

    /// Keeps the partition's committable offset from moving on from where it stands. None if
    /// nothing was received: there is nothing to commit then.
    pub fn hold(&mut self, partition: &P) -> Option<Hold> {
        let at = self.committable(partition)?;
        let hold = Hold(self.id());
        self.partitions.get_mut(partition)?.holds.insert(hold, at);
        self.of_hold.insert(hold, partition.clone());
        Some(hold)
    }

    /// Ends a hold. Nothing happens if the partition was revoked meanwhile.
    pub fn release(&mut self, hold: Hold) {
        let Some(partition) = self.of_hold.remove(&hold) else { return };
        if let Some(state) = self.partitions.get_mut(&partition) {
            state.holds.remove(&hold);
        }
    }

    /// The partition is no longer ours: its tickets and holds are void.
    pub fn revoke(&mut self, partition: &P) {
        let Some(state) = self.partitions.remove(partition) else { return };
        for ticket in state.open.keys() {
            self.of_ticket.remove(ticket);
        }
        for hold in state.holds.keys() {
            self.of_hold.remove(hold);
        }
    }

    /// Records that are not done: what memory depends on.
    pub fn len(&self) -> usize {
        self.of_ticket.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_that_is_not_done_may_be_committed() {
        let mut offsets = Offsets::default();
        assert_eq!(offsets.committable(&0), None);
        let tickets: Vec<_> = [5, 6, 9].map(|it| offsets.received(&0, it)).into();
        assert_eq!(offsets.committable(&0), Some(5));
        assert!(offsets.done(tickets[1]));
        assert_eq!(offsets.committable(&0), Some(5));
        assert!(offsets.done(tickets[0]));
        assert_eq!(offsets.committable(&0), Some(9), "compaction leaves gaps");
        assert!(offsets.done(tickets[2]) && !offsets.done(tickets[2]));
        assert_eq!(offsets.committable(&0), Some(10));
        assert!(offsets.is_empty());
    }

    #[test]
    fn marks_between_records_are_passed() {
        let mut offsets = Offsets::default();
        let ticket = offsets.received(&0, 5);
        offsets.passed(&0, 7);
        assert_eq!(offsets.committable(&0), Some(5), "not over a record that is not done");
        assert!(offsets.done(ticket));
        assert_eq!(offsets.committable(&0), Some(7));
        offsets.passed(&0, 6);
        assert_eq!(offsets.committable(&0), Some(7));
        offsets.passed(&1, 3);
        assert_eq!(offsets.committable(&1), Some(3), "a partition with marks alone");
    }

    #[test]
    fn a_revoked_partition_forgets() {
        let mut offsets = Offsets::default();
        let old = offsets.received(&0, 5);
        let hold = offsets.hold(&0).unwrap();
        offsets.revoke(&0);
        assert_eq!((offsets.done(old), offsets.committable(&0)), (false, None));
        let new = offsets.received(&0, 5);
        offsets.release(hold);
        assert_eq!((offsets.done(new), offsets.committable(&0)), (true, Some(6)));
    }

    #[test]
    fn a_consumer_sent_back_starts_over() {
        let mut offsets = Offsets::default();
        let first = offsets.received(&0, 5);
        let second = offsets.received(&0, 6);
        assert!(offsets.done(second));
        let again = offsets.received(&0, 5);
        assert!(!offsets.done(first));
        assert_eq!(offsets.committable(&0), Some(5));
        assert!(offsets.done(again));
        assert_eq!(offsets.committable(&0), Some(6));
    }

    #[derive(Debug, Clone)]
    enum Act {
        Receive { partition: u8, gap: i64 },
        Done { which: usize },
        Hold { partition: u8 },
        Release { which: usize },
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            3 => (0u8..2, 1i64..3).prop_map(|(partition, gap)| Act::Receive { partition, gap }),
            3 => (0usize..64).prop_map(|which| Act::Done { which }),
            1 => (0u8..2).prop_map(|partition| Act::Hold { partition }),
            1 => (0usize..64).prop_map(|which| Act::Release { which }),
        ];
        proptest::collection::vec(act, 0..60)
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list_that_forgets_nothing(acts in acts()) {
            let mut offsets = Offsets::default();
            let mut records: Vec<(u8, i64, Ticket, bool)> = Vec::new();
            let mut holds: Vec<(u8, i64, Hold)> = Vec::new();
            for act in acts {
                match act {
                    Act::Receive { partition, gap } => {
                        let last = records.iter().rev().find(|it| it.0 == partition);
                        let offset = last.map_or(0, |it| it.1) + gap;
                        let ticket = offsets.received(&partition, offset);
                        records.push((partition, offset, ticket, false));
                    }
                    Act::Done { which } if !records.is_empty() => {
                        let at = which % records.len();
                        prop_assert_eq!(offsets.done(records[at].2), !records[at].3);
                        records[at].3 = true;
                    }
                    Act::Hold { partition } => {
                        let at = offsets.committable(&partition);
                        let hold = offsets.hold(&partition);
                        prop_assert_eq!(at.is_some(), hold.is_some());
                        holds.extend(at.zip(hold).map(|(at, hold)| (partition, at, hold)));
                    }
                    Act::Release { which } if !holds.is_empty() => {
                        let at = which % holds.len();
                        offsets.release(holds.remove(at).2);
                    }
                    Act::Done { .. } | Act::Release { .. } => {}
                }
                for partition in 0..2 {
                    let of = || records.iter().filter(|it| it.0 == partition);
                    let open = of().find(|it| !it.3).map(|it| it.1);
                    let base = open.or_else(|| of().next_back().map(|it| it.1 + 1));
                    let held = holds.iter().filter(|it| it.0 == partition).map(|it| it.1);
                    let expected = base.map(|base| held.fold(base, i64::min));
                    prop_assert_eq!(offsets.committable(&partition), expected);
                }
            }
        }
    }
}
