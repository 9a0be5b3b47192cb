//! Documents: what Elasticsearch keeps, one per key of a collection.

pub mod build;
pub mod pending;
pub mod queries;
pub mod read;

use std::fmt;

use crate::snapshot::Snapshot;

/// A document's `_id`: the key's text as Postgres prints it, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentKey(pub String);

impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Elasticsearch's external version: `epoch << 44 | N` (rule 3).
///
/// N orders the snapshots of one primary; the epoch, at least the timeline, is above it so that a
/// promoted standby or an older copy of the data, which may have lost transactions, still writes
/// newer versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentVersion(pub u64);

/// Bits of N: 17 trillion transactions, and 524,287 epochs within Elasticsearch's signed 64 bits.
pub const NUMBER_BITS: u32 = 44;

impl DocumentVersion {
    /// The version of what `snapshot` read. None once N or the epoch no longer fits.
    pub fn new(epoch: u32, snapshot: &Snapshot) -> Option<Self> {
        let number = snapshot.number();
        let fits = number >> NUMBER_BITS == 0 && epoch < 1 << (63 - NUMBER_BITS);
        fits.then_some(Self(u64::from(epoch) << NUMBER_BITS | number))
    }
}

/// One document as a read found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub key: DocumentKey,
    /// JSON text, spliced from Postgres' own; None: no entry has a row for the key.
    pub body: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_epoch_is_above_any_number() {
        let old: Snapshot = "900:1000:900".parse().unwrap();
        let new: Snapshot = "5:6:".parse().unwrap();
        assert_eq!(DocumentVersion::new(1, &old), Some(DocumentVersion(1 << 44 | 998)));
        assert!(DocumentVersion::new(1, &old) < DocumentVersion::new(2, &new));
        assert_eq!(DocumentVersion::new(1 << 19, &new), None);
    }
}
