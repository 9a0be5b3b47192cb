//! What flows from a copy to the stage that writes Kafka: chunks of rows, and the watermarks in the
//! stream that say where they belong.
//!
//! A watermark is a transactional logical message (B9), so it has a place in the order of commits.
//! *Low*: from here on the changes of a topic are noted. *High*: here this chunk's rows go in. A
//! chunk is handed over before its high watermark is emitted, so it is there when that arrives.
//!
//! A watermark names its session: one that a restart replays, or that another daemon on the same
//! database emits, means nothing to us.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::change::Tuple;
use crate::kafka::envelope::TableShape;
use crate::lsn::Lsn;
use crate::snapshot::Snapshot;

/// The prefix of watermarks.
pub const MARK_PREFIX: &str = "onelog.copy";

/// A watermark's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark {
    Low {
        session: String,
        copy: u64,
        topic: String,
    },
    /// `number` is unique in its session.
    High {
        session: String,
        number: u64,
    },
}

impl Mark {
    pub fn to_text(&self) -> String {
        match self {
            Self::Low { session, copy, topic } => format!("low {session} {copy} {topic}"),
            Self::High { session, number } => format!("high {session} {number}"),
        }
    }

    /// None: it is none, whoever wrote it.
    pub fn parse(content: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(content).ok()?;
        let (kind, rest) = text.split_once(' ')?;
        let (session, rest) = rest.split_once(' ')?;
        let session = session.to_owned();
        match kind {
            "low" => {
                let (copy, topic) = rest.split_once(' ')?;
                Some(Self::Low { session, copy: copy.parse().ok()?, topic: topic.to_owned() })
            }
            "high" => Some(Self::High { session, number: rest.parse().ok()? }),
            _ => None,
        }
    }

    pub fn session(&self) -> &str {
        match self {
            Self::Low { session, .. } | Self::High { session, .. } => session,
        }
    }
}

/// Rows of one table, read from one snapshot.
#[derive(Debug)]
pub struct Chunk {
    /// The copy whose low watermark it relies on.
    pub copy: u64,
    /// That of its high watermark.
    pub number: u64,
    pub shape: Arc<TableShape>,
    pub snapshot: Snapshot,
    pub rows: Vec<Tuple>,
    pub reply: oneshot::Sender<Outcome>,
}

/// What became of a chunk at its high watermark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Handed to Kafka; durable once everything before `end` is confirmed.
    Published { end: Lsn, published: u64, overtaken: u64 },
    /// The notes since the low watermark were lost: emit a new one, and read the chunk again.
    NoLowWatermark,
    /// A row can't be a record.
    Refused(String),
}

/// What a copy tells the stage that writes Kafka.
#[derive(Debug)]
pub enum CopyWord {
    Chunk(Chunk),
    /// The copy is over or stands still: its notes are not needed any more.
    Over {
        copy: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_told_from_other_words() {
        let session = "0a1b".to_owned();
        let low = Mark::Low { session: session.clone(), copy: 3, topic: "a.public.t t".to_owned() };
        let high = Mark::High { session, number: 7 };
        assert_eq!(low.to_text(), "low 0a1b 3 a.public.t t");
        assert_eq!(high.to_text(), "high 0a1b 7");
        for mark in [low, high] {
            assert_eq!(Mark::parse(mark.to_text().as_bytes()), Some(mark));
        }
        for text in ["", "low", "low a", "low a 1", "low a x t", "high a", "high a -1", "mid a 1"] {
            assert_eq!(Mark::parse(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Mark::parse(&[0xFF, b' ', b'a', b' ', b'1']), None);
    }
}
