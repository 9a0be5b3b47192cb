//! What the stream has changed while a copy reads: the rule that keeps a copied row from overtaking
//! a newer change of the same key (A9).
//!
//! A chunk is read beside the stream and published at its high watermark, so every change that its
//! snapshot sees was published before it. What the snapshot does *not* see and the stream has
//! delivered all the same is newer than the chunk: rows of those keys are dropped, as the log has
//! them newer already. That is so for a change between the chunk's read and its watermark, and for
//! one whose commit waits for a standby, which the stream delivers long before anybody sees it.
//!
//! From the low watermark on every change of the topic is noted; what a later chunk's snapshot sees
//! is forgotten.
//!
//! **Invariant:** a row is admitted only if its snapshot sees every noted change of its key. When
//! notes had to be given up, nothing is admitted any more.

use std::collections::HashMap;

use crate::snapshot::Snapshot;

/// Most memory that the keys of one copy may take. More are changed between two chunks only when
/// the copy stands still, or under one very large transaction; the copy then begins anew with a low
/// watermark, where it was.
const BYTES_MAX: usize = 4 << 20;

/// What an entry takes beside its key.
const ENTRY_BYTES: usize = 40;

/// The changes of one topic since a copy's low watermark that its last chunk did not see.
#[derive(Debug, Default)]
pub struct Overlap {
    /// By key, the newest transaction that changed it. One is enough: whoever changes a row after
    /// another has waited until that other was seen by all, so who sees the newest sees all.
    changed: HashMap<Box<[u8]>, u64>,
    /// The newest transaction that truncated a table of the topic.
    truncated: Option<u64>,
    bytes: usize,
    lost: bool,
}

impl Overlap {
    /// The stream has delivered a change of `key` by transaction `xid` (64 bits, top level).
    pub fn changed(&mut self, key: &[u8], xid: u64) {
        if self.lost {
            return;
        }
        if let Some(newest) = self.changed.get_mut(key) {
            *newest = xid;
            return;
        }
        self.bytes += key.len() + ENTRY_BYTES;
        if self.bytes <= BYTES_MAX {
            self.changed.insert(key.into(), xid);
        } else {
            self.lost = true;
            self.changed = HashMap::new();
        }
    }

    /// The stream has delivered a TRUNCATE.
    pub fn truncated(&mut self, xid: u64) {
        self.truncated = Some(xid);
    }

    /// Too much has changed to be remembered: the copy needs a new low watermark.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether a row of `key` that `snapshot` has read may be published now.
    pub fn admits(&self, key: Option<&[u8]>, snapshot: &Snapshot) -> bool {
        let sees = |xid: Option<u64>| xid.is_none_or(|it| snapshot.sees(it));
        let newest = key.and_then(|it| self.changed.get(it)).copied();
        !self.lost && sees(self.truncated) && sees(newest)
    }

    /// Forgets what `snapshot` sees: the snapshots of later chunks see it too.
    pub fn settle(&mut self, snapshot: &Snapshot) {
        self.changed.retain(|_, xid| !snapshot.sees(*xid));
        self.bytes = self.changed.keys().map(|it| it.len() + ENTRY_BYTES).sum();
        self.truncated = self.truncated.filter(|it| !snapshot.sees(*it));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().unwrap()
    }

    #[test]
    fn what_the_chunk_does_not_see_is_newer_than_the_chunk() {
        let mut overlap = Overlap::default();
        overlap.changed(b"waits", 12);
        overlap.changed(b"seen", 13);
        overlap.changed(b"later", 20);
        let chunk = snapshot("12:20:12");
        let admitted = |key: &[u8]| overlap.admits(Some(key), &chunk);
        assert!(!admitted(b"waits"), "its commit waits for a standby: A9's counterexample");
        assert!(admitted(b"seen"));
        assert!(!admitted(b"later"), "committed after the chunk was read");
        assert!(admitted(b"untouched"));
        assert!(overlap.admits(None, &chunk), "a row without a key can't be told from others");

        overlap.settle(&chunk);
        let next = snapshot("21:21:");
        assert_eq!(overlap.changed.len(), 2);
        assert!(!overlap.admits(Some(b"waits"), &chunk), "what was not seen is still known");
        overlap.settle(&next);
        assert!(overlap.changed.is_empty() && overlap.admits(Some(b"waits"), &next));
    }

    #[test]
    fn a_truncation_takes_every_row_that_was_read_before_it() {
        let mut overlap = Overlap::default();
        overlap.truncated(30);
        assert!(!overlap.admits(Some(b"any"), &snapshot("30:30:")));
        assert!(!overlap.admits(None, &snapshot("30:40:30")));
        let after = snapshot("31:31:");
        assert!(overlap.admits(Some(b"any"), &after));
        overlap.settle(&after);
        assert_eq!(overlap.truncated, None);
    }

    #[test]
    fn what_can_t_be_remembered_is_said() {
        let mut overlap = Overlap::default();
        for nth in 0..5_000 {
            overlap.changed(format!("{nth:0>1000}").as_bytes(), 7);
            assert_eq!(overlap.is_lost(), overlap.changed.is_empty());
        }
        assert!(overlap.is_lost());
        assert!(!overlap.admits(Some(b"untouched"), &snapshot("9:9:")));
    }

    /// One table in Postgres, its stream, and a copy beside it; time is a list of events.
    #[derive(Debug, Clone)]
    enum Event {
        /// A transaction writes this key, and its commit is in the WAL, but nobody sees it yet.
        Commit(u8),
        /// The oldest transaction that waits for its standby, or this one after it, is seen.
        Show(usize),
        /// The chunk is read: every key, as it is seen now.
        Read,
        /// The high watermark of what was read last.
        High,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let one = prop_oneof![
            4 => (0u8..4).prop_map(Event::Commit),
            4 => any::<usize>().prop_map(Event::Show),
            2 => Just(Event::Read),
            2 => Just(Event::High),
        ];
        proptest::collection::vec(one, 1..80)
    }

    proptest! {
        /// The log's last value of each key is never older than one before it.
        #[test]
        fn no_copied_row_overtakes_a_newer_change(events in events()) {
            let (mut overlap, mut next) = (Overlap::default(), 10u64);
            let mut waiting: Vec<(u64, u8)> = Vec::new();
            let mut seen: BTreeMap<u8, u64> = BTreeMap::new();
            let mut log: BTreeMap<u8, u64> = BTreeMap::new();
            let mut chunk: Option<(Snapshot, BTreeMap<u8, u64>)> = None;
            for event in events {
                match event {
                    // A second writer of the row waits for its lock until the first is seen.
                    Event::Commit(key) if waiting.iter().all(|it| it.1 != key) => {
                        waiting.push((next, key));
                        overlap.changed(&[key], next);
                        log.insert(key, next);
                        next += 1;
                    }
                    Event::Show(nth) if !waiting.is_empty() => {
                        let (xid, key) = waiting.remove(nth % waiting.len());
                        seen.insert(key, xid);
                    }
                    Event::Read => {
                        let xip: Vec<u64> = waiting.iter().map(|it| it.0).collect();
                        let xmin = xip.first().copied().unwrap_or(next);
                        chunk = Some((Snapshot { xmin, xmax: next, xip }, seen.clone()));
                    }
                    Event::High => if let Some((snapshot, rows)) = chunk.take() {
                        for (key, xid) in rows {
                            if overlap.admits(Some(&[key]), &snapshot) {
                                prop_assert!(log.get(&key).is_none_or(|it| *it <= xid));
                                log.insert(key, xid);
                            }
                        }
                        overlap.settle(&snapshot);
                    },
                    Event::Commit(_) | Event::Show(_) => {}
                }
            }
        }
    }
}
