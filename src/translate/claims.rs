//! One write in flight for each `_id` in a process (rule 3): Elasticsearch forgets a deleted
//! document's version at a node restart, and then two writes on the way could land in either order.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::document::DocumentKey;
use crate::translate::BuildId;

/// The keys being written, shared by refreshes and sweeps.
#[derive(Debug, Clone, Default)]
pub struct Claims {
    taken: Arc<Mutex<HashSet<(BuildId, DocumentKey)>>>,
}

/// Keys claimed by one writer; free again when dropped.
#[derive(Debug)]
pub struct Claimed {
    claims: Claims,
    build: BuildId,
    keys: Vec<DocumentKey>,
}

impl Claims {
    /// Claims those of `keys` that nobody writes; the others are returned beside.
    pub fn claim(
        &self,
        build: BuildId,
        keys: impl IntoIterator<Item = DocumentKey>,
    ) -> (Claimed, Vec<DocumentKey>) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (mine, busy) = keys.into_iter().partition(|key| taken.insert((build, key.clone())));
        (Claimed { claims: self.clone(), build, keys: mine }, busy)
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let mut taken = self.claims.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for key in self.keys.drain(..) {
            taken.remove(&(self.build, key));
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
        let (first, busy) = claims.claim(1, keys(&["a", "b"]));
        assert_eq!(busy, []);
        let (second, busy) = claims.claim(1, keys(&["b", "c"]));
        assert_eq!(busy, keys(&["b"]));
        let (_other_build, busy) = claims.claim(2, keys(&["a", "b", "c"]));
        assert_eq!(busy, []);
        drop(first);
        drop(second);
        let (_all, busy) = claims.claim(1, keys(&["a", "b", "c"]));
        assert_eq!(busy, []);
    }
}
