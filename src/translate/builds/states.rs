//! What is told of the builds: the state of each collection, and its sweeps.

use std::collections::BTreeMap;

use super::{Builds, Sweep};
use crate::health::{CollectionHealth, CollectionState};

impl Builds {
    /// Every collection's state, by name.
    pub fn states(&self) -> Vec<CollectionHealth> {
        let mut states = BTreeMap::new();
        for served in self.served.values() {
            let state = match (served.serving && served.built, served.polls) {
                (true, true) => CollectionState::Polling,
                (true, false) => CollectionState::Live,
                (false, _) => CollectionState::Building,
            };
            // Of two builds the one that serves says what the documents are worth.
            let known = states.entry(served.build.plan.name.clone()).or_insert(state);
            if *known == CollectionState::Building {
                *known = state;
            }
        }
        let ill = [
            (&self.suspended, CollectionState::Suspended),
            (&self.frozen, CollectionState::Frozen),
        ];
        for (names, state) in ill {
            states.extend(names.iter().map(|it| (it.clone(), state)));
        }
        states.into_iter().map(|(name, state)| CollectionHealth { name, state }).collect()
    }

    /// Sweeps that are running or owed, by collection; once more with none for each collection
    /// that has gone.
    pub fn sweeps_pending(&mut self) -> BTreeMap<String, usize> {
        let mut pending = std::mem::take(&mut self.counted);
        pending.values_mut().for_each(|it| *it = 0);
        for served in self.served.values() {
            let count = match &served.sweep {
                Sweep::Idle => 0,
                Sweep::Owed { .. } | Sweep::Running { again: None, .. } => 1,
                Sweep::Running { again: Some(_), .. } => 2,
            };
            *pending.entry(served.build.plan.name.clone()).or_default() += count;
            self.counted.insert(served.build.plan.name.clone(), 0);
        }
        pending
    }
}
