//! Topics that were made while onelog runs, and which of them had been there before.
//!
//! A topic that somebody deletes is made anew by the next session of capture or of the translator,
//! and then lacks what was in it. Whoever makes topics notes it here, over all sessions of the
//! process, and copies find here which tables to copy again.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared by all roles of a process, and by their sessions.
#[derive(Debug, Clone, Default)]
pub struct MadeTopics(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    there: HashSet<String>,
    /// Whether it had been there before.
    made: BTreeMap<String, bool>,
}

impl MadeTopics {
    /// The topic is there.
    pub fn note_there(&self, topic: &str) {
        let mut inner = self.inner();
        if !inner.there.contains(topic) {
            inner.there.insert(topic.to_owned());
        }
    }

    /// The topic was missing and is made. Whether it had been there before, and so was deleted.
    pub fn note_made(&self, topic: &str) -> bool {
        let mut inner = self.inner();
        let was_there = !inner.there.insert(topic.to_owned());
        *inner.made.entry(topic.to_owned()).or_default() |= was_there;
        was_there
    }

    /// Those that were made and that nobody has settled, each with whether it had been there before.
    pub fn unsettled(&self) -> BTreeMap<String, bool> {
        self.inner().made.clone()
    }

    /// What follows from the making of the topic is seen to.
    pub fn settle(&self, topic: &str) {
        self.inner().made.remove(topic);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_was_there_if_it_was_seen_or_made_before() {
        let topics = MadeTopics::default();
        assert!(!topics.note_made("new"));
        assert!(!topics.note_made("deleted later"));
        topics.note_there("seen");
        for deleted in ["deleted later", "seen"] {
            assert!(topics.note_made(deleted), "{deleted}");
        }
        let expected = [("deleted later", true), ("new", false), ("seen", true)];
        let expected = expected.map(|(topic, was_there)| (topic.to_owned(), was_there));
        assert_eq!(topics.unsettled(), BTreeMap::from(expected));
        for (topic, _) in topics.unsettled() {
            topics.settle(&topic);
        }
        assert_eq!(topics.unsettled(), BTreeMap::new());
        assert!(topics.note_made("new"), "it was there");
    }
}
