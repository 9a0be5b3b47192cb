//! How far a sweep has come, while its slices end in any order. Pure.
//!
//! **Invariant:** the frontier is the end of a slice that has ended, and so have all before it.

use std::collections::VecDeque;

use crate::document::DocumentKey;

#[derive(Debug)]
struct Slice {
    /// Inclusive; None: the collection's end.
    high: Option<DocumentKey>,
    /// Documents in it, once it has ended.
    documents: Option<u64>,
}

/// Slices in the order of their keys, from the first that has not ended.
#[derive(Debug, Default)]
pub struct Frontier {
    slices: VecDeque<Slice>,
    /// The number of the first in `slices`.
    first: usize,
    reached: Option<DocumentKey>,
    documents: u64,
}

impl Frontier {
    /// Begins behind `reached`, which `documents` lie before.
    pub fn from(reached: Option<DocumentKey>, documents: u64) -> Self {
        Self { reached, documents, ..Self::default() }
    }

    /// The next slice begins; returns its number.
    pub fn begin(&mut self, high: Option<DocumentKey>) -> usize {
        self.slices.push_back(Slice { high, documents: None });
        self.first + self.slices.len() - 1
    }

    /// A slice has ended. True: the frontier has moved.
    pub fn end(&mut self, number: usize, documents: u64) -> bool {
        let before = self.first;
        if let Some(slice) = self.slices.get_mut(number - self.first) {
            slice.documents = Some(documents);
        }
        while let Some(Slice { documents: Some(documents), .. }) = self.slices.front() {
            self.documents += documents;
            let slice = self.slices.pop_front().expect("it was just looked at");
            self.reached = slice.high.or(self.reached.take());
            self.first += 1;
        }
        before < self.first
    }

    /// Every key up to this one has been swept. None: not even the first slice has ended.
    pub fn reached(&self) -> Option<&DocumentKey> {
        self.reached.as_ref()
    }

    /// Documents up to there.
    pub fn documents(&self) -> u64 {
        self.documents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> DocumentKey {
        DocumentKey(text.to_owned())
    }

    #[test]
    fn the_frontier_waits_for_the_slowest_slice() {
        let mut frontier = Frontier::from(Some(key("a")), 5);
        let numbers: Vec<usize> =
            ["d", "f", "k"].iter().map(|it| frontier.begin(Some(key(it)))).collect();
        assert!(!frontier.end(numbers[2], 3));
        assert!(!frontier.end(numbers[1], 2));
        assert_eq!((frontier.reached(), frontier.documents()), (Some(&key("a")), 5));
        assert!(frontier.end(numbers[0], 1));
        assert_eq!((frontier.reached(), frontier.documents()), (Some(&key("k")), 11));
        let last = frontier.begin(None);
        assert!(frontier.end(last, 4));
        assert_eq!((frontier.reached(), frontier.documents()), (Some(&key("k")), 15));
    }

    #[test]
    fn nothing_is_reached_before_the_first_slice() {
        let mut frontier = Frontier::default();
        frontier.begin(Some(key("d")));
        let second = frontier.begin(None);
        assert!(!frontier.end(second, 1));
        assert_eq!((frontier.reached(), frontier.documents()), (None, 0));
    }
}
