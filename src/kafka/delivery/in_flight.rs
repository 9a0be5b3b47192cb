//! How many topics have records on their way.

use std::collections::HashSet;

/// Most topics with records in flight. librdkafka sends a request for each, and a broker answers
/// those of a connection one after the other: in 1 ms, but 10 ms and more for a topic's first. The
/// records of thousands of topics, handed over at once, would wait for longer than
/// `delivery_timeout` behind each other, and so would those of every next session.
pub const TOPICS_IN_FLIGHT: usize = 200;

/// What has had records since nothing was outstanding.
#[derive(Default)]
pub(super) struct InFlight(HashSet<Box<str>>);

impl InFlight {
    /// Counts the topic as one with records in flight. False: there are enough of them, until
    /// nothing is outstanding.
    pub(super) fn admits(&mut self, topic: &str, outstanding: u64) -> bool {
        if self.0.contains(topic) {
            return true;
        }
        if outstanding == 0 {
            self.0.clear();
        }
        let admits = self.0.len() < TOPICS_IN_FLIGHT;
        if admits {
            self.0.insert(topic.into());
        }
        admits
    }
}
