//! What a committed position says beside its offset: the indices that were filled up to it (pure).
//!
//! Translators of one group may have different mapping files for a while: they are rolled out one
//! after another, or one's files are broken. An index then misses the changes of those partitions
//! that a translator without it has read. Nobody can know that from the index, whose mark is shared,
//! nor from the offset. But offset and note are committed together, by the one who did the work:
//!
//! **Invariant:** if a position's note has an index, every change before the position has been
//! applied to it, or the index has been told that a sweep is owed after the change was read.
//!
//! So whoever takes a partition over, and fills an index that the note lacks, first tells the index
//! that a sweep is owed, and only then commits a note that has it. A position without a note (an
//! older onelog committed it) lacks all.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

use crate::kafka::positions::Notes;

/// So that a note of another version is none.
const VERSION: &str = "filled/1:";
/// Characters of an index in a note: 48 bits, as Kafka takes 4 KiB by default.
const TAG_CHARACTERS: usize = 12;
/// Indices over one topic that a note has room for. A sweep is owed to the others whenever their
/// partitions change hands.
const TAGS_MAX: usize = (4_096 - VERSION.len()) / TAG_CHARACTERS;

/// Notes for positions: by topic, which indices its changes are applied to.
#[derive(Debug, Default)]
pub struct Filled(BTreeMap<String, BTreeSet<String>>);

fn tag(index: &str) -> String {
    let digest = Sha256::digest(index.as_bytes());
    digest.iter().take(TAG_CHARACTERS / 2).map(|it| format!("{it:02x}")).collect()
}

impl Filled {
    /// The changes of these topics are applied to the index.
    pub fn add(&mut self, index: &str, topics: impl IntoIterator<Item = String>) {
        // Once, as this is asked several times a second.
        let tag = tag(index);
        for topic in topics {
            self.0.entry(topic).or_default().insert(tag.clone());
        }
    }

    pub fn notes(&self) -> Notes {
        let note = |tags: &BTreeSet<String>| {
            let tags = tags.iter().take(TAGS_MAX).map(String::as_str);
            std::iter::once(VERSION).chain(tags).collect::<String>()
        };
        self.0.iter().map(|(topic, tags)| (topic.clone(), note(tags))).collect()
    }
}

/// Whether the note of a position says that the index was filled up to it.
pub fn has(note: &str, index: &str) -> bool {
    let Some(tags) = note.strip_prefix(VERSION) else { return false };
    let wanted = tag(index);
    tags.as_bytes().chunks(TAG_CHARACTERS).any(|it| it == wanted.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_has_the_indices_that_its_topic_fills() {
        let mut filled = Filled::default();
        filled.add("a-1", ["apple".to_owned(), "pear".to_owned()]);
        filled.add("b-1", ["pear".to_owned()]);
        let notes = filled.notes();
        for (topic, index, expected) in [
            ("apple", "a-1", true),
            ("apple", "b-1", false),
            ("pear", "a-1", true),
            ("pear", "b-1", true),
            ("pear", "b-2", false),
        ] {
            assert_eq!(has(&notes[topic], index), expected, "{topic} {index}");
        }
        for other in ["", "x", "filled/2:", &notes["pear"]["filled/1:".len()..]] {
            assert!(!has(other, "a-1"), "{other}");
        }
    }

    #[test]
    fn a_note_is_no_longer_than_kafka_takes() {
        let mut filled = Filled::default();
        for nth in 0..1_000 {
            filled.add(&format!("i-{nth}"), ["apple".to_owned()]);
        }
        let note = &filled.notes()["apple"];
        assert!(note.len() <= 4_096);
        let known = (0..1_000).filter(|it| has(note, &format!("i-{it}"))).count();
        assert_eq!(known, TAGS_MAX);
    }
}
