//! Whether each role makes progress: what `/readyz` answers.
//!
//! Progress, not "connected": a role is ready while it moves or has nothing to do, and says why
//! when it waits for somebody else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by the roles, which set it, and the HTTP server, which reads it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    states: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

impl Health {
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
