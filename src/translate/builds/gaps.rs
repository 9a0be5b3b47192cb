//! Builds whose index misses changes: it is not whole, and is owed a sweep.

use std::collections::BTreeSet;

use crate::document::pending::BuildId;
use crate::translate::builds::Builds;
use crate::translate::load::{Known, Prepared};

impl Builds {
    /// Whether a build was forgotten while the load ran that counts on it: its successor has
    /// finished its sweep meanwhile. Nobody would fill the index; another load makes a build for it.
    pub(super) fn lacks(&self, prepared: &[Prepared]) -> bool {
        let mut known = prepared.iter().filter(|it| it.known == Known::Same);
        known.any(|it| !self.served.values().any(|on| *on.build.index == *it.index))
    }

    /// The build's index misses changes, and says so already.
    pub fn miss(&mut self, id: BuildId) {
        if let Some(served) = self.served.get_mut(&id) {
            served.built = false;
            served.owe(None);
        }
    }

    /// These indices do.
    pub(super) fn miss_all(&mut self, indices: &BTreeSet<String>) {
        let builds = self.served.values().map(|it| &it.build);
        let missing = builds.filter(|it| indices.contains(it.index.as_ref()));
        for id in missing.map(|it| it.id).collect::<Vec<_>>() {
            self.miss(id);
        }
    }
}
