//! The producing stage's part of copies: notes of what the stream changes, and the chunks that wait
//! for their high watermark.
//!
//! Everything here happens in the order of the stream. A chunk's rows become records of the
//! transaction of its high watermark, so that the slot is not confirmed past it before they are
//! durable.

use std::collections::HashMap;

use tokio::sync::mpsc;

use crate::kafka::chunk::{Chunk, CopyWord, Mark, Outcome};
use crate::kafka::overlap::Overlap;
use crate::lsn::Lsn;
use crate::snapshot::Snapshot;

/// Most chunks on their way to the producing stage: one for each table that is copied at once, and
/// what a copy says at its end.
pub const WORDS_MAX: usize = 64;

/// What the producing stage knows of the copies of its session.
pub struct Merge {
    session: String,
    words: mpsc::Receiver<CopyWord>,
    arrived: HashMap<u64, Chunk>,
    /// By topic: which copy it is, and what the stream has changed since its low watermark.
    noted: HashMap<String, (u64, Overlap)>,
    /// To be said at the end of the transaction.
    replies: Vec<Reply>,
}

struct Reply {
    to: tokio::sync::oneshot::Sender<Outcome>,
    published: u64,
    overtaken: u64,
}

impl Merge {
    /// `session` is what our watermarks name.
    pub fn new(session: String, words: mpsc::Receiver<CopyWord>) -> Self {
        let (arrived, noted, replies) = (HashMap::new(), HashMap::new(), Vec::new());
        Self { session, words, arrived, noted, replies }
    }

    /// Takes what the copies have said meanwhile.
    pub fn listen(&mut self) {
        while let Ok(word) = self.words.try_recv() {
            match word {
                CopyWord::Chunk(chunk) => {
                    self.arrived.insert(chunk.number, chunk);
                }
                CopyWord::Over { copy } => {
                    self.noted.retain(|_, it| it.0 != copy);
                    self.arrived.retain(|_, it| it.copy != copy);
                }
            }
        }
    }

    /// A watermark has come. Some: the chunk whose place this is.
    pub fn mark(&mut self, content: &[u8]) -> Option<Chunk> {
        let mark = Mark::parse(content).filter(|it| it.session() == self.session)?;
        match mark {
            Mark::Low { copy, topic, .. } => {
                self.noted.insert(topic, (copy, Overlap::default()));
                None
            }
            Mark::High { number, .. } => {
                self.listen();
                let chunk = self.arrived.remove(&number)?;
                let known = self.noted.get(&*chunk.shape.topic);
                if known.is_some_and(|it| it.0 == chunk.copy && !it.1.is_lost()) {
                    return Some(chunk);
                }
                self.noted.remove(&*chunk.shape.topic);
                // Whoever does not wait any more does not need to know.
                chunk.reply.send(Outcome::NoLowWatermark).unwrap_or_default();
                None
            }
        }
    }

    /// The stream has brought a record of this topic. `key`: None without one.
    pub fn note(&mut self, topic: &str, key: Option<&[u8]>, xid: u64) {
        if let Some(key) = key
            && let Some((_, overlap)) = self.noted.get_mut(topic)
        {
            overlap.changed(key, xid);
        }
    }

    /// Whether any topic is copied: all others cost the stream nothing.
    pub fn is_idle(&self) -> bool {
        self.noted.is_empty()
    }

    /// A table of this topic was truncated.
    pub fn note_truncate(&mut self, topic: &str, xid: u64) {
        if let Some((_, overlap)) = self.noted.get_mut(topic) {
            overlap.truncated(xid);
        }
    }

    /// Whether the row of a chunk that [`Merge::mark`] has returned is to be published.
    pub fn admits(&self, topic: &str, key: Option<&[u8]>, snapshot: &Snapshot) -> bool {
        self.noted.get(topic).is_some_and(|(_, overlap)| overlap.admits(key, snapshot))
    }

    /// The chunk's rows are on their way.
    pub fn settle(&mut self, chunk: Chunk, published: u64, overtaken: u64) {
        if let Some((_, overlap)) = self.noted.get_mut(&*chunk.shape.topic) {
            overlap.settle(&chunk.snapshot);
        }
        self.replies.push(Reply { to: chunk.reply, published, overtaken });
    }

    /// The transaction of high watermarks ends at `end`.
    pub fn commit(&mut self, end: Lsn) {
        for Reply { to, published, overtaken } in self.replies.drain(..) {
            to.send(Outcome::Published { end, published, overtaken }).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::oneshot;

    use super::*;
    use crate::kafka::envelope::TableShape;
    use crate::postgres::text::TypeKinds;
    use crate::relation::{Column, Relation, RelationId, ReplicaIdentity};

    const TOPIC: &str = "a.public.t";

    struct Bed {
        merge: Merge,
        words: mpsc::Sender<CopyWord>,
    }

    fn bed() -> Bed {
        let (words, heard) = mpsc::channel(WORDS_MAX);
        Bed { merge: Merge::new("me".to_owned(), heard), words }
    }

    impl Bed {
        fn low(&mut self, session: &str, copy: u64) {
            let mark = Mark::Low { session: session.to_owned(), copy, topic: TOPIC.to_owned() };
            assert!(self.merge.mark(mark.to_text().as_bytes()).is_none());
        }

        fn high(&mut self, session: &str, number: u64) -> Option<Chunk> {
            let mark = Mark::High { session: session.to_owned(), number };
            self.merge.mark(mark.to_text().as_bytes())
        }

        fn chunk(&mut self, copy: u64, number: u64) -> oneshot::Receiver<Outcome> {
            let column = Column {
                name: "id".to_owned(),
                type_oid: 23,
                type_modifier: -1,
                in_identity: true,
            };
            let relation = Relation {
                id: RelationId(1),
                namespace: "public".to_owned(),
                name: "t".to_owned(),
                replica_identity: ReplicaIdentity::Default,
                columns: vec![column],
            };
            let key = ["id".to_owned()];
            let shape =
                TableShape::new(Arc::new(relation), TOPIC.into(), &key, &TypeKinds::new()).unwrap();
            let snapshot = "20:20:".parse().unwrap();
            let (reply, answer) = oneshot::channel();
            let (shape, rows) = (Arc::new(shape), Vec::new());
            let chunk = Chunk { copy, number, shape, snapshot, rows, reply };
            self.words.try_send(CopyWord::Chunk(chunk)).unwrap();
            answer
        }
    }

    #[test]
    fn a_chunk_waits_for_its_own_high_watermark() {
        let mut bed = bed();
        bed.low("me", 1);
        let mut answer = bed.chunk(1, 7);
        bed.merge.listen();
        assert!(bed.high("me", 6).is_none(), "another chunk's");
        assert!(bed.high("other", 7).is_none(), "another session's, replayed or of another daemon");
        bed.merge.note(TOPIC, Some(b"new"), 25);
        let chunk = bed.high("me", 7).expect("its place");
        let admits = |key: &[u8]| bed.merge.admits(TOPIC, Some(key), &chunk.snapshot);
        assert!(admits(b"old") && !admits(b"new"), "noted since the low watermark");
        bed.merge.settle(chunk, 4, 1);
        assert!(answer.try_recv().is_err(), "not before its transaction's end");
        bed.merge.commit(Lsn(99));
        let outcome = Outcome::Published { end: Lsn(99), published: 4, overtaken: 1 };
        assert_eq!(answer.try_recv(), Ok(outcome));
        assert!(bed.high("me", 7).is_none(), "once");
    }

    #[test]
    fn without_its_low_watermark_a_chunk_has_no_place() {
        for setting in ["none", "of another session", "of another copy", "over", "lost"] {
            let mut bed = bed();
            match setting {
                "of another session" => bed.low("other", 1),
                "of another copy" => bed.low("me", 2),
                "over" => {
                    bed.low("me", 1);
                    bed.words.try_send(CopyWord::Over { copy: 1 }).unwrap();
                }
                "lost" => {
                    bed.low("me", 1);
                    for nth in 0..=100_000 {
                        bed.merge.note(TOPIC, Some(nth.to_string().as_bytes()), 25);
                    }
                }
                _ => {}
            }
            let mut answer = bed.chunk(1, 7);
            assert!(bed.high("me", 7).is_none(), "{setting}");
            assert_eq!(answer.try_recv(), Ok(Outcome::NoLowWatermark), "{setting}");
            assert!(bed.merge.is_idle() || setting == "of another copy");
        }
    }

    #[test]
    fn a_copy_that_is_over_is_forgotten() {
        let mut bed = bed();
        bed.low("me", 1);
        let mut answer = bed.chunk(1, 7);
        bed.words.try_send(CopyWord::Over { copy: 1 }).unwrap();
        bed.merge.listen();
        assert!(bed.merge.is_idle());
        assert!(bed.high("me", 7).is_none() && answer.try_recv().is_err());
    }
}
