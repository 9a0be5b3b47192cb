//! The progress topic: compacted, one partition, one record for each slot, each translator and
//! each copy of a table.
//!
//! Why beside the slot's own `confirmed_flush_lsn`: the slot can be dropped, re-created or moved,
//! and a new one looks just like ours. A record is durable *before* its LSN is confirmed, so a
//! slot past the record was moved by someone else (rule 1). `clean` says whether the writer may
//! still have records in flight (A14).
//!
//! A record in a Kafka transaction is true once that is committed. A slot's is therefore read as
//! committed. All other records are plain.
//!
//! **Invariant:** what was written by a newer onelog is refused, never half understood.

mod reading;

use std::collections::BTreeMap;

use rdkafka::error::KafkaError;
pub use reading::{Committed, read_all, read_committed};
use serde::{Deserialize, Serialize};

use crate::kafka::copy_record::CopyRecord;
use crate::kafka::settings;
use crate::lsn::Lsn;

/// The version of the records' form. Another one is refused.
const VERSION: u32 = 1;

/// How far a slot's changes are durable in Kafka, and who wrote them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgressRecord {
    pub system_id: u64,
    pub timeline: u32,
    /// Every transaction whose commit ends at or before it is durable in Kafka.
    pub lsn: Lsn,
    /// The writer has stopped and has nothing in flight.
    pub clean: bool,
    /// It was written in a transaction, and a successor can fence its writer.
    pub exactly_once: bool,
    /// Names the producer that wrote it.
    pub run_id: String,
    /// Milliseconds since 1970, by the writer's clock; for people only.
    pub at_ms: i64,
}

/// What a group of translators has written last (B4): older data on the same timeline shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TranslateRecord {
    pub system_id: u64,
    pub timeline: u32,
    /// High bits of document versions; at least the timeline.
    pub epoch: u32,
    /// The highest N of rule 3 that was written.
    pub number: u64,
    pub flush_lsn: Lsn,
}

/// The newest record of each writer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProgressRecords {
    /// By slot name.
    pub slots: BTreeMap<String, ProgressRecord>,
    /// By consumer group.
    pub translators: BTreeMap<String, TranslateRecord>,
    /// By slot name and table.
    pub copies: BTreeMap<(String, String), CopyRecord>,
}

/// Why the progress topic can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ProgressReadError {
    #[error("can't read the progress topic {topic}{}", settings::cure(.source))]
    Kafka {
        topic: String,
        #[source]
        source: KafkaError,
    },
    #[error(
        "a transaction on the progress topic {topic} is open, of another slot's daemon: it ends \
         once that one runs again, or after its transaction_timeout"
    )]
    Unsettled { topic: String },
    #[error("reading the progress topic {topic} took longer than {} s", reading::READ_TIMEOUT.as_secs())]
    TimedOut { topic: String },
    #[error(
        "the progress topic {topic} has a record that this onelog does not understand at offset \
         {offset}: {problem}; run the onelog that wrote it, or a newer one"
    )]
    NotUnderstood { topic: String, offset: i64, problem: String },
}

impl ProgressReadError {
    /// Whether trying again may help without a person's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Kafka { source, .. } => settings::is_transient(source),
            Self::Unsettled { .. } | Self::TimedOut { .. } => true,
            Self::NotUnderstood { .. } => false,
        }
    }

    /// Whether Kafka refuses what a person can give.
    pub fn is_curable(&self) -> bool {
        match self {
            Self::Kafka { source, .. } => settings::is_right(source),
            Self::Unsettled { .. } | Self::TimedOut { .. } | Self::NotUnderstood { .. } => false,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum WireKey {
    Slot {
        slot: String,
    },
    Translate {
        translate: String,
    },
    /// `of`: the slot.
    Copy {
        copy: String,
        of: String,
    },
}

#[derive(Serialize, Deserialize)]
struct WireProgress {
    version: u32,
    /// As text: it does not fit a JavaScript number.
    system_id: String,
    timeline: u32,
    lsn: String,
    clean: bool,
    /// Left out when false: versions before knew no transactions.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    exactly_once: bool,
    run_id: String,
    at_ms: i64,
}

#[derive(Serialize, Deserialize)]
struct WireTranslate {
    version: u32,
    system_id: String,
    timeline: u32,
    epoch: u32,
    number: u64,
    flush_lsn: String,
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain structs become JSON")
}

/// The Kafka key of a slot's progress record.
pub fn slot_key(slot: &str) -> Vec<u8> {
    to_json(&WireKey::Slot { slot: slot.to_owned() })
}

/// The Kafka key of a group of translators.
pub fn translate_key(group: &str) -> Vec<u8> {
    to_json(&WireKey::Translate { translate: group.to_owned() })
}

/// The Kafka key of the copy of a table, `namespace.name`.
pub fn copy_key(slot: &str, table: &str) -> Vec<u8> {
    to_json(&WireKey::Copy { copy: table.to_owned(), of: slot.to_owned() })
}

impl ProgressRecord {
    /// The record's value in Kafka.
    pub fn to_json(&self) -> Vec<u8> {
        to_json(&WireProgress {
            version: VERSION,
            system_id: self.system_id.to_string(),
            timeline: self.timeline,
            lsn: self.lsn.to_string(),
            clean: self.clean,
            exactly_once: self.exactly_once,
            run_id: self.run_id.clone(),
            at_ms: self.at_ms,
        })
    }

    fn from_json(value: &[u8]) -> Result<Self, String> {
        let wire: WireProgress = parse(value)?;
        check_version(wire.version)?;
        Ok(Self {
            system_id: parse_number(&wire.system_id)?,
            timeline: wire.timeline,
            lsn: parse_lsn(&wire.lsn)?,
            clean: wire.clean,
            exactly_once: wire.exactly_once,
            run_id: wire.run_id,
            at_ms: wire.at_ms,
        })
    }
}

impl TranslateRecord {
    /// The record's value in Kafka.
    pub fn to_json(&self) -> Vec<u8> {
        to_json(&WireTranslate {
            version: VERSION,
            system_id: self.system_id.to_string(),
            timeline: self.timeline,
            epoch: self.epoch,
            number: self.number,
            flush_lsn: self.flush_lsn.to_string(),
        })
    }

    fn from_json(value: &[u8]) -> Result<Self, String> {
        let wire: WireTranslate = parse(value)?;
        check_version(wire.version)?;
        Ok(Self {
            system_id: parse_number(&wire.system_id)?,
            timeline: wire.timeline,
            epoch: wire.epoch,
            number: wire.number,
            flush_lsn: parse_lsn(&wire.flush_lsn)?,
        })
    }
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|err| err.to_string())
}

fn check_version(version: u32) -> Result<(), String> {
    if version == VERSION {
        Ok(())
    } else {
        Err(format!("its version is {version}, not {VERSION}"))
    }
}

fn parse_number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not a system identifier"))
}

fn parse_lsn(text: &str) -> Result<Lsn, String> {
    text.parse().map_err(|err: crate::lsn::ParseLsnError| err.to_string())
}

impl ProgressRecords {
    /// Takes the next record of the topic: a later one replaces, one without value removes.
    fn apply(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), String> {
        match (parse::<WireKey>(key)?, value) {
            (WireKey::Slot { slot }, Some(value)) => {
                self.slots.insert(slot, ProgressRecord::from_json(value)?);
            }
            (WireKey::Slot { slot }, None) => {
                self.slots.remove(&slot);
            }
            (WireKey::Translate { translate }, Some(value)) => {
                self.translators.insert(translate, TranslateRecord::from_json(value)?);
            }
            (WireKey::Translate { translate }, None) => {
                self.translators.remove(&translate);
            }
            (WireKey::Copy { copy, of }, Some(value)) => {
                self.copies.insert((of, copy), CopyRecord::from_json(value)?);
            }
            (WireKey::Copy { copy, of }, None) => {
                self.copies.remove(&(of, copy));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> ProgressRecord {
        ProgressRecord {
            system_id: 7_612_345_678_901_234_567,
            timeline: 3,
            lsn: Lsn(0x16_B374_D848),
            clean: false,
            exactly_once: false,
            run_id: "a1".to_owned(),
            at_ms: 5,
        }
    }

    #[test]
    fn records_have_this_form() {
        let expected = r#"{"version":1,"system_id":"7612345678901234567","timeline":3,"#.to_owned()
            + r#""lsn":"16/B374D848","clean":false,"run_id":"a1","at_ms":5}"#;
        assert_eq!(String::from_utf8(record().to_json()).unwrap(), expected);
        let within = ProgressRecord { exactly_once: true, ..record() };
        let expected = expected.replace("false,", "false,\"exactly_once\":true,");
        assert_eq!(String::from_utf8(within.to_json()).unwrap(), expected);
        assert_eq!(ProgressRecord::from_json(&within.to_json()), Ok(within));
        assert_eq!(slot_key("a\"b"), br#"{"slot":"a\"b"}"#);
        assert_eq!(translate_key("g"), br#"{"translate":"g"}"#);
    }

    #[test]
    fn the_newest_record_of_each_key_counts() {
        let translate =
            TranslateRecord { system_id: 1, timeline: 1, epoch: 2, number: 3, flush_lsn: Lsn(4) };
        let mut records = ProgressRecords::default();
        records.apply(&slot_key("s"), Some(&record().to_json())).unwrap();
        records.apply(&slot_key("gone"), Some(&record().to_json())).unwrap();
        records.apply(&translate_key("g"), Some(&translate.to_json())).unwrap();
        records.apply(&slot_key("gone"), None).unwrap();
        let newer = ProgressRecord { clean: true, ..record() };
        records.apply(&slot_key("s"), Some(&newer.to_json())).unwrap();
        let copy = CopyRecord::new(None, 5);
        records.apply(&copy_key("s", "public.t"), Some(&copy.to_json())).unwrap();
        records.apply(&copy_key("s", "public.gone"), Some(&copy.to_json())).unwrap();
        records.apply(&copy_key("s", "public.gone"), None).unwrap();
        let copies = BTreeMap::from([(("s".to_owned(), "public.t".to_owned()), copy)]);
        assert_eq!(records.copies, copies);
        assert_eq!(records.slots, BTreeMap::from([("s".to_owned(), newer)]));
        assert_eq!(records.translators, BTreeMap::from([("g".to_owned(), translate)]));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let newer = String::from_utf8(record().to_json()).unwrap().replace("n\":1", "n\":2");
        let cases: [(&[u8], &[u8], &str); 4] = [
            (b"{}", b"", "data did not match"),
            (br#"{"slot":"s"}"#, b"{}", "missing field"),
            (br#"{"slot":"s"}"#, newer.as_bytes(), "its version is 2, not 1"),
            (b"", b"{}", "EOF"),
        ];
        for (key, value, expected) in cases {
            let problem = ProgressRecords::default().apply(key, Some(value)).unwrap_err();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
