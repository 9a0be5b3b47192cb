//! Images that wait to be looked up. Pure: time is passed in.
//!
//! The same image wanted by many records is looked up once for all that wait, so that a category
//! renamed fifty times costs no more than one renamed once.
//!
//! An image that leads to very many keys is *walked* page by page. What wants it while its walk is
//! under way waits for the walk's end, and then one more walk serves all of them: so two walks
//! follow any number of changes that come meanwhile.
//!
//! Invariant: an image waits once, or is in flight, or is walked; its records' tickets are never
//! forgotten: they come back in a batch, in a walk's end, or from [`Lookups::remove`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::time::Instant;

use crate::document::queries::Page;
use crate::snapshot::Cause;
use crate::translate::route::PathId;

/// Images in one lookup: enough to amortize the round trip, few enough for a short query.
const IMAGES_MAX: usize = 500;

/// Keys that a lookup may lead to and still count as a small change, to be handled before large
/// ones: four reads of documents, some 100 ms of work.
pub const SMALL_KEYS_MAX: i64 = 2_000;

/// Values of a path's columns: what a lookup starts from.
pub type Values = Vec<Option<String>>;

/// A row image that waits to be looked up, for all records that have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub values: Values,
    /// All of these the read's snapshot must see.
    pub causes: BTreeSet<Cause>,
    /// The records that wait for it, without repeats.
    pub tickets: Vec<u64>,
    /// How often in a row a cause was not visible.
    pub attempts: u32,
}

impl Wanted {
    /// The same image, wanted by others too: one lookup serves all.
    pub fn merge(&mut self, other: Self) {
        self.causes.extend(other.causes);
        self.tickets.extend(other.tickets);
        self.attempts = self.attempts.max(other.attempts);
    }
}

/// What to look up.
#[derive(Debug)]
pub struct Ask {
    pub path: PathId,
    pub wanted: Vec<Wanted>,
    pub page: Page,
    /// The page is one of a walk.
    pub walk: bool,
}

/// Images of one path.
#[derive(Debug, Default)]
struct Images {
    order: VecDeque<Values>,
    wanted: HashMap<Values, Wanted>,
}

/// The way through all keys of one image.
#[derive(Debug)]
struct Walk {
    /// What its keys are demanded with: the records wait behind it.
    ticket: u64,
    /// Without tickets; its causes must be seen by the first page.
    wanted: Wanted,
    after: Option<String>,
    state: State,
    again: Option<Wanted>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    InFlight,
    Parked(Instant),
}

/// How a page of a walk ended.
#[derive(Debug, PartialEq, Eq)]
pub enum PageEnd {
    /// There are more keys above this one.
    More(String),
    /// To be read again, then.
    Again(Instant, Box<Wanted>),
    /// It was the last, or the walk is given up.
    Last,
}

/// A walk is over.
#[derive(Debug, PartialEq, Eq)]
pub struct Walked {
    pub ticket: u64,
    /// What came while it was under way.
    pub again: Option<Wanted>,
}

/// All images of all paths.
#[derive(Debug, Default)]
pub struct Lookups {
    ready: BTreeMap<PathId, Images>,
    parked: Vec<(Instant, PathId, Wanted)>,
    /// The path whose turn was last.
    last: Option<PathId>,
    walks: BTreeMap<(PathId, Values), Walk>,
    last_walk: Option<(PathId, Values)>,
    /// How many images of a path to ask for together, where all that may be were too many.
    together: HashMap<PathId, usize>,
}

impl Lookups {
    pub fn push(&mut self, path: PathId, wanted: Wanted) {
        if let Some(walk) = self.walks.get_mut(&(path, wanted.values.clone())) {
            match &mut walk.again {
                Some(again) => again.merge(wanted),
                again @ None => *again = Some(wanted),
            }
            return;
        }
        let images = self.ready.entry(path).or_default();
        match images.wanted.get_mut(&wanted.values) {
            Some(same) => same.merge(wanted),
            None => {
                images.order.push_back(wanted.values.clone());
                images.wanted.insert(wanted.values.clone(), wanted);
            }
        }
    }

    pub fn park(&mut self, path: PathId, wanted: impl IntoIterator<Item = Wanted>, until: Instant) {
        self.parked.extend(wanted.into_iter().map(|it| (until, path, it)));
    }

    /// Images of one path that may be asked for together. Paths take turns, so that a busy one
    /// does not hold up the others.
    pub fn take(&mut self, now: Instant) -> Option<Ask> {
        if self.parked.iter().any(|(until, ..)| *until <= now) {
            let parked = std::mem::take(&mut self.parked);
            for (until, path, wanted) in parked {
                if until <= now {
                    self.push(path, wanted);
                } else {
                    self.parked.push((until, path, wanted));
                }
            }
        }
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.ready.range((after, Bound::Unbounded)).next();
        let path = next.or_else(|| self.ready.first_key_value()).map(|(path, _)| *path)?;
        self.last = Some(path);
        let images = self.ready.get_mut(&path)?;
        let max = self.together.get(&path).copied().unwrap_or(IMAGES_MAX);
        let batch = images.order.drain(..max.min(images.order.len()));
        let wanted = batch.filter_map(|it| images.wanted.remove(&it)).collect();
        if images.order.is_empty() {
            self.ready.remove(&path);
        }
        let page = Page { after: None, keys_max: SMALL_KEYS_MAX };
        Some(Ask { path, wanted, page, walk: false })
    }

    /// So many images were served by one lookup; `rest` had to be left out, as all together led
    /// to too many keys.
    pub fn served(&mut self, path: PathId, images: usize, rest: Vec<Wanted>) {
        if !rest.is_empty() {
            self.together.insert(path, images.max(1));
        } else if let Some(together) = self.together.get_mut(&path) {
            *together *= 2;
            if *together >= IMAGES_MAX {
                self.together.remove(&path);
            }
        }
        for it in rest {
            self.push(path, it);
        }
    }

    /// Begins to walk an image that is not walked yet ([`Lookups::ticket_of`]); its keys up to
    /// `after` are known, if given.
    pub fn walk(&mut self, path: PathId, mut wanted: Wanted, ticket: u64, after: Option<String>) {
        let id = (path, wanted.values.clone());
        wanted.tickets.clear();
        let walk = Walk { ticket, wanted, after, state: State::Ready, again: None };
        assert!(self.walks.insert(id, walk).is_none(), "an image is walked once at a time");
    }

    /// The next page of some walk. Walks take turns, so that a small one ends before a large one.
    pub fn take_page(&mut self, keys_max: i64, now: Instant) -> Option<Ask> {
        let is_ready = |it: &Walk| match it.state {
            State::Ready => true,
            State::Parked(until) => until <= now,
            State::InFlight => false,
        };
        let after = self.last_walk.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let later = self.walks.range((after, Bound::Unbounded)).find(|(_, it)| is_ready(it));
        let next = later.or_else(|| self.walks.iter().find(|(_, it)| is_ready(it)));
        let id = next.map(|(id, _)| id.clone())?;
        let walk = self.walks.get_mut(&id)?;
        walk.state = State::InFlight;
        let (path, wanted) = (id.0, vec![walk.wanted.clone()]);
        let page = Page { after: walk.after.clone(), keys_max };
        self.last_walk = Some(id);
        Some(Ask { path, wanted, page, walk: true })
    }

    /// The ticket of a walk that a page belongs to. None: it was given up with its collection.
    pub fn ticket_of(&self, path: PathId, values: &Values) -> Option<u64> {
        self.walks.get(&(path, values.clone())).map(|it| it.ticket)
    }

    /// A page has been read, or not. Some: the walk is over.
    pub fn page_ended(&mut self, path: PathId, values: &Values, end: PageEnd) -> Option<Walked> {
        let id = (path, values.clone());
        let walk = self.walks.get_mut(&id)?;
        match end {
            PageEnd::More(after) => {
                walk.after = Some(after);
                walk.state = State::Ready;
                None
            }
            PageEnd::Again(until, wanted) => {
                walk.wanted = *wanted;
                walk.state = State::Parked(until);
                None
            }
            PageEnd::Last => {
                let walk = self.walks.remove(&id)?;
                Some(Walked { ticket: walk.ticket, again: walk.again })
            }
        }
    }

    /// Forgets a build's images; returns their tickets.
    pub fn remove(&mut self, build: usize) -> Vec<u64> {
        let mut tickets = Vec::new();
        self.ready.retain(|path, images| {
            if path.build == build {
                tickets.extend(images.wanted.values().flat_map(|it| &it.tickets));
            }
            path.build != build
        });
        self.parked.retain(|(_, path, wanted)| {
            if path.build == build {
                tickets.extend(&wanted.tickets);
            }
            path.build != build
        });
        self.walks.retain(|(path, _), walk| {
            if path.build == build {
                tickets.push(walk.ticket);
                tickets.extend(walk.again.iter().flat_map(|it| &it.tickets));
            }
            path.build != build
        });
        self.together.retain(|path, _| path.build != build);
        tickets
    }

    /// Images that wait, those of walks aside.
    pub fn len(&self) -> usize {
        self.parked.len() + self.ready.values().map(|it| it.order.len()).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.len() + self.walks() == 0
    }

    /// Walks under way.
    pub fn walks(&self) -> usize {
        self.walks.len()
    }

    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    pub fn next_wake(&self) -> Option<Instant> {
        self.parked.iter().map(|(until, ..)| *until).min()
    }

    /// When the next parked walk may go on.
    pub fn next_page(&self) -> Option<Instant> {
        let parked = |it: &Walk| match it.state {
            State::Parked(until) => Some(until),
            State::Ready | State::InFlight => None,
        };
        self.walks.values().filter_map(parked).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: usize) -> PathId {
        PathId { build: 1, entry: 0, path }
    }

    fn wanted(value: u64, ticket: u64) -> Wanted {
        Wanted {
            values: vec![Some(value.to_string())],
            causes: BTreeSet::from([Cause { timeline: 1, xid: ticket }]),
            tickets: vec![ticket],
            attempts: 0,
        }
    }

    fn tickets(ask: &Ask) -> Vec<u64> {
        ask.wanted.iter().flat_map(|it| it.tickets.clone()).collect()
    }

    #[test]
    fn paths_take_turns() {
        let mut lookups = Lookups::default();
        lookups.served(path(0), 2, vec![wanted(0, 0)]);
        lookups.served(path(1), 2, vec![wanted(10, 10)]);
        for ticket in 1..3 {
            lookups.push(path(0), wanted(ticket, ticket));
            lookups.push(path(1), wanted(10 + ticket, 10 + ticket));
        }
        let now = Instant::now();
        lookups.park(path(2), [wanted(20, 20)], now);
        let mut turns = Vec::new();
        while let Some(ask) = lookups.take(now) {
            turns.push((ask.path.path, tickets(&ask)));
        }
        let expected =
            [(0, vec![0, 1]), (1, vec![10, 11]), (2, vec![20]), (0, vec![2]), (1, vec![12])];
        assert_eq!(turns, expected);
        assert!(lookups.is_empty());
    }

    #[test]
    fn the_same_image_is_looked_up_once_for_all_who_wait() {
        let mut lookups = Lookups::default();
        for ticket in 0..50 {
            lookups.push(path(0), wanted(7, ticket));
        }
        assert_eq!(lookups.len(), 1);
        let ask = lookups.take(Instant::now()).unwrap();
        assert_eq!(tickets(&ask), (0..50).collect::<Vec<_>>());
        assert_eq!(ask.wanted[0].causes.len(), 50, "it must see every one of them");
    }

    #[test]
    fn too_many_keys_at_once_are_asked_for_by_fewer_images() {
        let mut lookups = Lookups::default();
        let now = Instant::now();
        lookups.served(path(0), 1, (0..9).map(|it| wanted(it, it)).collect());
        let mut sizes = Vec::new();
        while let Some(ask) = lookups.take(now) {
            sizes.push(ask.wanted.len());
            lookups.served(path(0), ask.wanted.len(), Vec::new());
        }
        assert_eq!(sizes, [1, 2, 4, 2]);
    }

    #[test]
    fn fifty_changes_of_an_image_are_walked_twice() {
        let mut lookups = Lookups::default();
        let now = Instant::now();
        lookups.walk(path(0), wanted(7, 0), 100, Some("k".to_owned()));
        let page = lookups.take_page(10, now).unwrap();
        assert_eq!((page.page.after.as_deref(), page.walk), (Some("k"), true));
        assert!(lookups.take_page(10, now).is_none(), "one page of a walk at a time");
        for ticket in 1..50 {
            lookups.push(path(0), wanted(7, ticket));
        }
        assert!(lookups.take(now).is_none(), "all of them wait for the walk");
        let values = &page.wanted[0].values;
        assert_eq!(lookups.page_ended(path(0), values, PageEnd::More("m".to_owned())), None);
        let page = lookups.take_page(10, now).unwrap();
        assert_eq!(page.page.after.as_deref(), Some("m"));
        let walked = lookups.page_ended(path(0), values, PageEnd::Last).unwrap();
        let again = walked.again.unwrap();
        assert_eq!((walked.ticket, again.tickets), (100, (1..50).collect::<Vec<_>>()));
        assert_eq!(again.causes.len(), 49);
        assert!(lookups.is_empty());
    }

    #[test]
    fn walks_take_turns_and_a_parked_one_waits() {
        let mut lookups = Lookups::default();
        let now = Instant::now();
        let later = now + std::time::Duration::from_secs(1);
        for image in 0..2 {
            lookups.walk(path(0), wanted(image, image), 100 + image, None);
        }
        let first = lookups.take_page(10, now).unwrap().wanted;
        let back = Box::new(first[0].clone());
        lookups.page_ended(path(0), &first[0].values, PageEnd::Again(later, back));
        let second = lookups.take_page(10, now).unwrap().wanted;
        assert_ne!(first, second);
        let more = || PageEnd::More(String::new());
        lookups.page_ended(path(0), &second[0].values, more());
        assert_eq!(lookups.take_page(10, now).unwrap().wanted, second, "the other one is parked");
        lookups.page_ended(path(0), &second[0].values, more());
        assert_eq!(lookups.next_page(), Some(later));
        assert_eq!(lookups.take_page(10, later).unwrap().wanted, first);
        lookups.push(path(0), wanted(0, 7));
        let mut left = lookups.remove(1);
        left.sort_unstable();
        assert_eq!(left, [7, 100, 101]);
        assert!(lookups.is_empty());
    }
}
