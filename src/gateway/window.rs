//! What was said on the backplane of late, found by whom it concerns. Pure: time is passed in.
//!
//! Bounded by number, bytes and age, so that a gateway's memory is flat, whatever is said. What has
//! fallen out is not found any more: who resumes from before it is told so (*gap*) and reads its
//! documents anew.
//!
//! A session sees what concerns its commands: a correlation id is the session's whose accepted
//! command was the first to have it, so that nobody listens to another session's commands by
//! sending one with the same id.
//!
//! A document may be written before the log has that its command was accepted. What is said of a
//! correlation id before it is a session's becomes that session's with the `accepted`, and has its
//! *place* ([`Window::place`]) there, just before it; all else has its place where it is in the
//! log. A session hears in the order of places, live as in its history, and resumes by places: what
//! is told out of the log's order has no id, so that who has heard an id has heard everything
//! before that place. (Who loses the connection between such an event and its `accepted` hears
//! the event twice, and never misses it.)
//!
//! Invariants: offsets ascend; what [`Window::history`] finds is what looking at every event by
//! [`Window::keys`] would find; a listener who was there all the time has heard the same in the
//! same order; a repeated answer of a robot is there once.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::kafka::feedback::{Feedback, Hop, Role};

/// Processes whose lag is remembered: more than anybody runs, and no way to fill our memory.
const HOPS_MAX: usize = 256;

/// One thing that was said.
#[derive(Debug)]
pub struct Event {
    /// In the backplane's one partition, and so its id for everybody.
    pub offset: i64,
    /// When the log took it.
    pub at_ms: i64,
    pub feedback: Feedback,
    /// Of the record.
    bytes: usize,
}

/// Whom an event concerns: what a client may ask for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Session(String),
    Correlation(String),
    Document { collection: String, id: String },
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub records_max: usize,
    pub bytes_max: usize,
    pub age_max_ms: i64,
}

/// What is known of a key's past.
#[derive(Debug)]
pub struct History {
    pub events: Vec<Arc<Event>>,
    /// Something that was asked for may have fallen out.
    pub gap: bool,
}

#[derive(Debug)]
pub struct Window {
    limits: Limits,
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Everything from here on is known.
    first: i64,
    /// The next offset to be taken in.
    next: i64,
    by_key: HashMap<Key, VecDeque<i64>>,
    /// The accepted commands of a correlation id that have a session, oldest first; the first one
    /// with the offset since which the id is its session's.
    owners: HashMap<String, VecDeque<(i64, String)>>,
    /// The correlation ids that are a session's.
    owned: HashMap<String, BTreeSet<String>>,
    /// Answers by their own id.
    answers: HashMap<String, i64>,
    hops: BTreeMap<(Role, String), Hop>,
}

impl Window {
    /// `first`: the offset that reading begins at.
    pub fn new(limits: Limits, first: i64) -> Self {
        Self {
            limits,
            events: VecDeque::new(),
            bytes: 0,
            first,
            next: first,
            by_key: HashMap::new(),
            owners: HashMap::new(),
            owned: HashMap::new(),
            answers: HashMap::new(),
            hops: BTreeMap::new(),
        }
    }

    /// Takes in what was read; None: there is nothing to tell anybody. What is older than what is
    /// there (the topic was made anew) is not for this window: see [`Window::next`].
    pub fn push(
        &mut self,
        (offset, at_ms): (i64, i64),
        feedback: Feedback,
        bytes: usize,
    ) -> Option<Arc<Event>> {
        if offset < self.next {
            return None;
        }
        self.next = offset + 1;
        if let Feedback::Hop(hop) = feedback {
            self.note_hop(hop);
            return None;
        }
        // Of no client's concern; who claimed what is known to `claims`.
        if let Feedback::Claimed(_) = feedback {
            return None;
        }
        if let Feedback::Response(it) = &feedback
            && let Some(id) = &it.event
        {
            if self.answers.contains_key(id) {
                return None;
            }
            self.answers.insert(id.clone(), offset);
        }
        let event = Arc::new(Event { offset, at_ms, feedback, bytes });
        for key in direct_keys(&event.feedback) {
            self.by_key.entry(key).or_default().push_back(offset);
        }
        if let Some((correlation, session)) = owning(&event.feedback) {
            let owners = self.owners.entry(correlation.to_owned()).or_default();
            owners.push_back((offset, session.to_owned()));
            if owners.len() == 1 {
                self.owned.entry(session.to_owned()).or_default().insert(correlation.to_owned());
            }
        }
        self.bytes += bytes;
        self.events.push_back(Arc::clone(&event));
        while self.events.len() > self.limits.records_max || self.bytes > self.limits.bytes_max {
            self.evict();
        }
        Some(event)
    }

    /// A record that says nothing to us.
    pub fn skip(&mut self, offset: i64) {
        self.next = self.next.max(offset + 1);
    }

    /// Forgets what is too old.
    pub fn trim(&mut self, now_ms: i64) {
        let oldest = now_ms.saturating_sub(self.limits.age_max_ms);
        while self.events.front().is_some_and(|it| it.at_ms < oldest) {
            self.evict();
        }
    }

    fn evict(&mut self) {
        let Some(event) = self.events.pop_front() else { return };
        self.bytes -= event.bytes;
        self.first = event.offset + 1;
        for key in direct_keys(&event.feedback) {
            drop_first(&mut self.by_key, &key, event.offset);
        }
        if let Feedback::Response(it) = &event.feedback
            && let Some(id) = &it.event
        {
            self.answers.remove(id);
        }
        if let Some((correlation, session)) = owning(&event.feedback) {
            self.disown(correlation, session);
        }
    }

    /// The first owner's command has fallen out: the id is the next one's.
    fn disown(&mut self, correlation: &str, session: &str) {
        if let Some(owned) = self.owned.get_mut(session) {
            owned.remove(correlation);
            if owned.is_empty() {
                self.owned.remove(session);
            }
        }
        let Some(owners) = self.owners.get_mut(correlation) else { return };
        let gone = owners.pop_front();
        match owners.front_mut() {
            Some((since, next)) => {
                let same = gone.filter(|(_, it)| it == next);
                *since = same.map_or(self.next - 1, |(since, _)| since);
                self.owned.entry(next.clone()).or_default().insert(correlation.to_owned());
            }
            None => drop(self.owners.remove(correlation)),
        }
    }

    fn note_hop(&mut self, hop: Hop) {
        let place = (hop.role, hop.instance.clone());
        if self.hops.len() >= HOPS_MAX && !self.hops.contains_key(&place) {
            let oldest = self.hops.iter().min_by_key(|(_, it)| it.ts_ms).map(|(it, _)| it.clone());
            oldest.map(|it| self.hops.remove(&it));
        }
        self.hops.insert(place, hop);
    }

    /// What each process last said of its lag.
    pub fn hops(&self) -> impl Iterator<Item = &Hop> {
        self.hops.values()
    }

    /// The next offset to be taken in: all before it is known, or has been.
    pub fn next(&self) -> i64 {
        self.next
    }

    pub fn len(&self) -> usize {
        self.events.len()
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Whose commands have this correlation id, if any session's.
    pub fn session_of(&self, correlation: &str) -> Option<&str> {
        let owners = self.owners.get(correlation)?;
        owners.front().map(|(_, session)| session.as_str())
    }

    /// Everybody whom an event concerns, as far as is known now.
    pub fn keys(&self, feedback: &Feedback) -> BTreeSet<Key> {
        let mut keys = direct_keys(feedback);
        let sessions = correlations_of(feedback).into_iter().filter_map(|it| self.session_of(it));
        let sessions: Vec<Key> = sessions.map(|it| Key::Session(it.to_owned())).collect();
        keys.extend(sessions);
        keys
    }

    /// Where a session hears of an event: see the module. None: it does not.
    pub fn place(&self, event: &Event, session: &str) -> Option<i64> {
        if session_named(&event.feedback) == Some(session) {
            return Some(event.offset);
        }
        let owned = |it: &str| {
            let (since, owner) = self.owners.get(it)?.front()?;
            (owner == session).then_some(*since)
        };
        let since = correlations_of(&event.feedback).into_iter().filter_map(owned).min()?;
        Some(since.max(event.offset))
    }

    /// What became a session's by the event that was just taken in, in the order of the log.
    pub fn brought(&self, event: &Event) -> Option<(Key, Vec<Arc<Event>>)> {
        let (correlation, session) = owning(&event.feedback)?;
        let key = Key::Correlation(correlation.to_owned());
        let earlier = self.offsets(&key).filter(|it| *it < event.offset);
        let earlier = earlier.filter_map(|it| self.at(it));
        let here = |it: &Arc<Event>| self.place(it, session) == Some(event.offset);
        Some((Key::Session(session.to_owned()), earlier.filter(here).collect()))
    }

    /// What is known of a key, after the place `after` if one is given.
    pub fn history(&self, key: &Key, after: Option<i64>) -> History {
        let mut offsets: BTreeSet<i64> = self.offsets(key).collect();
        let mut session = None;
        if let Key::Session(own) = key {
            session = Some(own.as_str());
            for correlation in self.owned.get(own).into_iter().flatten() {
                offsets.extend(self.offsets(&Key::Correlation(correlation.clone())));
            }
        }
        let placed = offsets.into_iter().filter_map(|it| self.at(it)).map(|it| {
            let place = session.and_then(|session| self.place(&it, session));
            (place.unwrap_or(it.offset), it)
        });
        let is_new = |(place, _): &(i64, Arc<Event>)| after.is_none_or(|it| it < *place);
        let mut found: Vec<(i64, Arc<Event>)> = placed.filter(is_new).collect();
        found.sort_by_key(|(place, it)| (*place, it.offset));
        let gap = after.is_some_and(|it| it.saturating_add(1) < self.first);
        History { events: found.into_iter().map(|(_, it)| it).collect(), gap }
    }

    fn offsets(&self, key: &Key) -> impl Iterator<Item = i64> {
        self.by_key.get(key).into_iter().flatten().copied()
    }

    fn at(&self, offset: i64) -> Option<Arc<Event>> {
        let nth = self.events.binary_search_by_key(&offset, |it| it.offset).ok()?;
        self.events.get(nth).map(Arc::clone)
    }
}

fn drop_first(index: &mut HashMap<Key, VecDeque<i64>>, key: &Key, offset: i64) {
    let Some(offsets) = index.get_mut(key) else { return };
    if offsets.front() == Some(&offset) {
        offsets.pop_front();
    }
    if offsets.is_empty() {
        index.remove(key);
    }
}

/// Whom the event itself names.
fn direct_keys(feedback: &Feedback) -> BTreeSet<Key> {
    let mut keys = BTreeSet::new();
    if let Feedback::Document(it) = feedback {
        keys.insert(Key::Document { collection: it.collection.clone(), id: it.id.clone() });
    }
    keys.extend(session_named(feedback).map(|it| Key::Session(it.to_owned())));
    keys.extend(correlations_of(feedback).into_iter().map(|it| Key::Correlation(it.to_owned())));
    keys
}

fn session_named(feedback: &Feedback) -> Option<&str> {
    match feedback {
        Feedback::Accepted(it) => it.session_id.as_deref(),
        Feedback::Response(it) => it.session_id.as_deref(),
        Feedback::Document(_) | Feedback::Claimed(_) | Feedback::Hop(_) => None,
    }
}

fn correlations_of(feedback: &Feedback) -> Vec<&str> {
    match feedback {
        Feedback::Accepted(it) => vec![it.correlation_id.as_str()],
        Feedback::Response(it) => it.correlation_id.as_deref().into_iter().collect(),
        Feedback::Document(it) => it.correlation_ids.iter().map(String::as_str).collect(),
        Feedback::Claimed(_) | Feedback::Hop(_) => Vec::new(),
    }
}

/// The correlation id that becomes a session's by this event.
fn owning(feedback: &Feedback) -> Option<(&str, &str)> {
    match feedback {
        Feedback::Accepted(it) => Some((&it.correlation_id, it.session_id.as_deref()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
