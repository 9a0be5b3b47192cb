//! One write in flight for each `_id` in a process (rule 3): Elasticsearch forgets a deleted
//! document's version at a node restart, and then two writes on the way could land in either order.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::document::DocumentKey;

/// An index and a key in it.
type Place = (Arc<str>, DocumentKey);

/// The keys being written, by index, shared by refreshes and sweeps. Two builds may fill the same
/// index for a while: one with the paths of before, and its successor.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    taken: Arc<Mutex<HashSet<Place>>>,
}

/// Keys claimed by one writer; free again when dropped.
#[derive(Debug)]
pub struct Claimed {
    claims: Claims,
    index: Arc<str>,
    keys: Vec<DocumentKey>,
}

impl Claims {
    /// Claims those of `keys` that nobody writes; the others are returned beside.
    pub fn claim(
        &self,
        index: &Arc<str>,
        keys: impl IntoIterator<Item = DocumentKey>,
    ) -> (Claimed, Vec<DocumentKey>) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (mine, busy) =
            keys.into_iter().partition(|key| taken.insert((Arc::clone(index), key.clone())));
        (Claimed { claims: self.clone(), index: Arc::clone(index), keys: mine }, busy)
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let mut taken = self.claims.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for key in self.keys.drain(..) {
            taken.remove(&(Arc::clone(&self.index), key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_claimed_once_until_it_is_dropped() {
        let keys = |names: &[&str]| -> Vec<DocumentKey> {
            names.iter().map(|&it| DocumentKey(it.to_owned())).collect()
        };
        let claims = Claims::default();
        let (one, other): (Arc<str>, Arc<str>) = ("one".into(), "other".into());
        let (first, busy) = claims.claim(&one, keys(&["a", "b"]));
        assert_eq!(busy, []);
        let (second, busy) = claims.claim(&one, keys(&["b", "c"]));
        assert_eq!(busy, keys(&["b"]));
        let (_other_index, busy) = claims.claim(&other, keys(&["a", "b", "c"]));
        assert_eq!(busy, []);
        drop(first);
        drop(second);
        let (_all, busy) = claims.claim(&one, keys(&["a", "b", "c"]));
        assert_eq!(busy, []);
    }
}
