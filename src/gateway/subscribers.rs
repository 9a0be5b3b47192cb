//! Who listens to whom. Each has a bounded queue: who is too slow is let go, and nobody else
//! notices.
//!
//! Found by key, so that ten thousand who listen to other things cost an event nothing.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::gateway::window::{Event, Key};

/// Events that wait for one client: more than a page's connection of bad quality needs to catch
/// up within a second or two.
pub const QUEUE_MAX: usize = 256;

#[derive(Debug)]
struct Subscriber {
    id: u64,
    queue: mpsc::Sender<Arc<Event>>,
}

/// Everybody who listens.
#[derive(Debug, Default)]
pub struct Subscribers {
    by_key: HashMap<Key, Vec<Subscriber>>,
    next_id: u64,
    count: usize,
}

impl Subscribers {
    /// One more who listens to `key`; the number names them.
    pub fn add(&mut self, key: Key) -> (u64, mpsc::Receiver<Arc<Event>>) {
        let (queue, events) = mpsc::channel(QUEUE_MAX);
        self.next_id += 1;
        self.count += 1;
        self.by_key.entry(key).or_default().push(Subscriber { id: self.next_id, queue });
        (self.next_id, events)
    }

    /// Forgets one; who was let go is forgotten already.
    pub fn remove(&mut self, key: &Key, id: u64) {
        let Some(of_key) = self.by_key.get_mut(key) else { return };
        let before = of_key.len();
        of_key.retain(|it| it.id != id);
        self.count -= before - of_key.len();
        if of_key.is_empty() {
            self.by_key.remove(key);
        }
    }

    /// Gives the event to all who listen to one of the keys, once each. Returns how many were let
    /// go because they were too slow.
    pub fn tell(&mut self, keys: &BTreeSet<Key>, event: &Arc<Event>) -> usize {
        let mut dropped = 0;
        for key in keys {
            let Some(of_key) = self.by_key.get_mut(key) else { continue };
            let before = of_key.len();
            of_key.retain(|it| match it.queue.try_send(Arc::clone(event)) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    dropped += 1;
                    false
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            });
            self.count -= before - of_key.len();
            if of_key.is_empty() {
                self.by_key.remove(key);
            }
        }
        dropped
    }

    /// Lets everybody go: what they were told so far counts no more.
    pub fn clear(&mut self) {
        self.by_key.clear();
        self.count = 0;
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::window::{Limits, Window};
    use crate::kafka::feedback::{DocumentNews, Feedback};

    fn event(window: &mut Window) -> Arc<Event> {
        let news = DocumentNews { collection: "page".to_owned(), ..DocumentNews::default() };
        window.push((window.next(), 0), Feedback::Document(news), 1).unwrap()
    }

    fn key(of: &str) -> Key {
        Key::Correlation(of.to_owned())
    }

    #[test]
    fn who_is_too_slow_is_let_go_and_the_others_hear_everything() {
        let limits = Limits { records_max: 1_000, bytes_max: 1_000, age_max_ms: 1_000 };
        let mut window = Window::new(limits, 0);
        let mut all = Subscribers::default();
        let (_, mut slow) = all.add(key("a"));
        let (_, mut quick) = all.add(key("a"));
        let (_, mut other) = all.add(key("b"));
        let both = BTreeSet::from([key("a"), key("c")]);
        let mut dropped = 0;
        for offset in 0..300 {
            dropped += all.tell(&both, &event(&mut window));
            assert_eq!(quick.try_recv().unwrap().offset, offset);
        }
        assert_eq!((dropped, all.len()), (1, 2));
        let mut heard = Vec::new();
        while let Ok(it) = slow.try_recv() {
            heard.push(it.offset);
        }
        assert_eq!(heard, (0..256).collect::<Vec<_>>(), "no gap before the end");
        assert!(slow.is_closed());
        assert!(other.try_recv().is_err() && !other.is_closed());
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let limits = Limits { records_max: 1_000, bytes_max: 1_000, age_max_ms: 1_000 };
        let mut window = Window::new(limits, 0);
        let mut all = Subscribers::default();
        let (first, _events) = all.add(key("a"));
        let (_, gone) = all.add(key("b"));
        drop(gone);
        all.remove(&key("a"), first);
        all.remove(&key("a"), first);
        assert_eq!(all.tell(&BTreeSet::from([key("a"), key("b")]), &event(&mut window)), 0);
        assert!(all.is_empty() && all.by_key.is_empty());
    }
}
