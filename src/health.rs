//! Whether each role makes progress: what `/readyz` answers.
//!
//! Progress, not "connected": a role is ready while it moves or has nothing to do, and says why
//! when it waits for somebody else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::copies::Desk;

/// Shared by the roles, which set it, and the HTTP server, which reads it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    states: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
    collections: Arc<Mutex<Vec<CollectionHealth>>>,
    desk: Desk,
}

/// What a collection's documents are worth at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectionState {
    /// They follow every change.
    Live,
    /// Some changes reach them by sweeps only.
    Polling,
    /// A sweep has to make them whole first.
    Building,
    /// Its mapping has a mistake; what there was before goes on.
    Frozen,
    /// Its SQL does not run any more.
    Suspended,
}

impl CollectionState {
    /// As `/v1/status` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Polling => "polling",
            Self::Building => "building",
            Self::Frozen => "frozen",
            Self::Suspended => "suspended",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectionHealth {
    pub name: String,
    pub state: CollectionState,
}

impl Health {
    /// Where copies are asked for and told of.
    pub fn desk(&self) -> &Desk {
        &self.desk
    }

    /// Registers a role that has yet to make progress.
    pub fn expect(&self, role: &'static str) {
        self.waits(role, "starting");
    }

    pub fn ready(&self, role: &'static str) {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).insert(role, None);
    }

    /// The role can't go on until `reason`, a short phrase, ends.
    pub fn waits(&self, role: &'static str, reason: impl Into<String>) {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.insert(role, Some(reason.into()));
    }

    /// Every role, with the reason why it waits if it does.
    pub fn roles(&self) -> Vec<(&'static str, Option<String>)> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.iter().map(|(role, why)| (*role, why.clone())).collect()
    }

    pub fn set_collections(&self, collections: Vec<CollectionHealth>) {
        *self.collections.lock().unwrap_or_else(PoisonError::into_inner) = collections;
    }

    /// By name.
    pub fn collections(&self) -> Vec<CollectionHealth> {
        self.collections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every role that waits, with its reason; empty when all make progress.
    pub fn waiting(&self) -> Vec<(&'static str, String)> {
        let states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.iter().filter_map(|(role, why)| Some((*role, why.clone()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_waits_until_it_says_that_it_is_ready() {
        let health = Health::default();
        assert_eq!(health.waiting(), []);
        health.expect("capture");
        health.waits("translate", "Elasticsearch does not answer");
        health.ready("capture");
        let expected = [("translate", "Elasticsearch does not answer".to_owned())];
        assert_eq!(health.waiting(), expected);
        health.ready("translate");
        assert_eq!(health.waiting(), []);
    }
}
