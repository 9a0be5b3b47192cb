//! A small universe: tables of which five rows have two versions each, so that there are 32
//! states, and the histories that lead from one to the next.
//!
//! Documents, and the keys that each changed row's paths find, are computed once per state. A
//! history is then a walk between states, checked by a few bit operations: millions of them cost
//! what a handful of evaluations costs.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::evaluate::{Evaluation, Row, State};
use super::lookup::Start;
use super::query::Query;

/// Rows that change.
const SLOTS: usize = 5;
const STATES: usize = 1 << SLOTS;
/// Keys that are followed, 0 and up; others are too rare to matter.
const KEYS: usize = 16;
/// Singly changed rows in a history; with several rows in a commit, commits.
const COMMITS_MAX: usize = 3;

/// A set of keys, one bit each.
type Keys = u16;

/// A row with two versions; None: it is not there.
struct Slot {
    table: usize,
    id: i16,
    versions: [Option<Row>; 2],
}

pub struct Universe {
    fixed: Vec<(usize, Row)>,
    slots: Vec<Slot>,
}

fn row(random: &mut StdRng, id: i16) -> Row {
    let mut value = || *[Some(0), Some(1), Some(1), Some(2), None].choose(random).unwrap();
    [Some(id), value(), value()]
}

impl Universe {
    pub fn new(seed: u64) -> Self {
        let random = &mut StdRng::seed_from_u64(seed);
        let mut places: Vec<(usize, i16)> =
            (0..3).flat_map(|table| (0..3).map(move |id| (table, id))).collect();
        let mut slots: Vec<Slot> = Vec::new();
        for _ in 0..SLOTS {
            let (table, id) = places.swap_remove(random.random_range(0..places.len()));
            let one = random.random_bool(0.6).then(|| row(random, id));
            let other = (one.is_none() || random.random_bool(0.6)).then(|| row(random, id));
            slots.push(Slot { table, id, versions: [one, other] });
        }
        let mut fixed = Vec::new();
        for (table, id) in places {
            if random.random_bool(0.5) {
                fixed.push((table, row(random, id)));
            }
        }
        Self { fixed, slots }
    }

    pub fn state(&self, nth: usize) -> State {
        let mut state = State::default();
        for (table, row) in &self.fixed {
            state[*table].push(*row);
        }
        for (at, slot) in self.slots.iter().enumerate() {
            let version = slot.versions[(nth >> at) & 1];
            state[slot.table].extend(version);
        }
        state
    }

    pub fn shown(&self) -> String {
        let slots = self.slots.iter().map(|it| format!("{}:{} {:?}", it.table, it.id, it.versions));
        format!("fixed {:?}\n    {}", self.fixed, slots.collect::<Vec<_>>().join("\n    "))
    }
}

/// What is known of a universe under one query.
pub struct Tables {
    /// Keys whose document differs between two states.
    differs: Vec<[Keys; STATES]>,
    /// Keys that a slot's two images find when they are looked up in a state.
    found: Vec<[Keys; SLOTS]>,
}

impl Tables {
    /// `paths` has the starts of each table; `swept` says of which tables every change sweeps.
    pub fn new(
        universe: &Universe,
        query: &Query,
        paths: &[Vec<Start>; 3],
        swept: [bool; 3],
    ) -> Self {
        let states: Vec<State> = (0..STATES).map(|nth| universe.state(nth)).collect();
        let documents: Vec<[u64; KEYS]> = states.iter().map(|it| documents(query, it)).collect();
        let differs = documents
            .iter()
            .map(|one| {
                let mut row = [0; STATES];
                for (nth, other) in documents.iter().enumerate() {
                    row[nth] =
                        (0..KEYS).filter(|it| one[*it] != other[*it]).fold(0, |a, it| a | 1 << it);
                }
                row
            })
            .collect();
        let found = states
            .iter()
            .map(|state| {
                let mut found = [0; SLOTS];
                for (nth, slot) in universe.slots.iter().enumerate() {
                    if swept[slot.table] {
                        found[nth] = Keys::MAX;
                        continue;
                    }
                    for image in slot.versions.iter().flatten() {
                        for start in &paths[slot.table] {
                            start.keys(image, state).for_each(|key| found[nth] |= bit(key));
                        }
                    }
                }
                found
            })
            .collect();
        Self { differs, found }
    }

    /// The first history of the universe that leaves a document stale; and how many were checked.
    pub fn stale(&self) -> (Option<Vec<usize>>, u64) {
        let mut checked = 0;
        let mut histories: Vec<Vec<usize>> = (0..STATES).map(|it| vec![it]).collect();
        let singles: Vec<usize> = (0..SLOTS).map(|it| 1 << it).collect();
        let any: Vec<usize> = (1..STATES).collect();
        while let Some(history) = histories.pop() {
            let commits = history.len() - 1;
            let single = history.windows(2).all(|it| (it[0] ^ it[1]).count_ones() == 1);
            if commits > 0 {
                checked += 1;
                if self.leaves_stale(&history) {
                    return (Some(history), checked);
                }
            }
            let next: &[usize] = match commits {
                0 | 1 => &any,
                _ if commits < COMMITS_MAX && single => &singles,
                _ => &[],
            };
            let last = history[commits];
            histories.extend(next.iter().map(|change| [&history[..], &[last ^ change]].concat()));
        }
        (None, checked)
    }

    /// The adversary handles every event at any state not before its commit. A document is sure
    /// to be right if some event of its last change, or of a later commit, finds its key at each
    /// of them.
    fn leaves_stale(&self, history: &[usize]) -> bool {
        let (mut sure, mut changed_later) = (0, 0);
        for commit in (1..history.len()).rev() {
            let changes = history[commit - 1] ^ history[commit];
            for slot in (0..SLOTS).filter(|it| changes >> it & 1 == 1) {
                sure |=
                    history[commit..].iter().fold(Keys::MAX, |all, at| all & self.found[*at][slot]);
            }
            let changed = self.differs[history[commit - 1]][history[commit]];
            if changed & !changed_later & !sure != 0 {
                return true;
            }
            changed_later |= changed;
        }
        false
    }
}

fn bit(key: i16) -> Keys {
    if (0..16).contains(&key) { 1 << key } else { 0 }
}

/// For each key the sum of its rows' hashes: rows have no order.
fn documents(query: &Query, state: &State) -> [u64; KEYS] {
    let mut documents = [0u64; KEYS];
    for (key, fields) in (Evaluation { query, state }).rows() {
        let mut hash = 0x9E37_79B9_7F4A_7C15_u64;
        for field in fields {
            let value = field.map_or(0xABCD, |it| it as u64);
            hash = (hash ^ value).wrapping_mul(0xFF51_AFD7_ED55_8CCD).rotate_left(31);
        }
        if let Some(document) = usize::try_from(key).ok().and_then(|it| documents.get_mut(it)) {
            *document = document.wrapping_add(hash | 1);
        }
    }
    documents
}
