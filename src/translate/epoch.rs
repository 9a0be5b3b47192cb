//! Which database we read, and the epoch that document versions begin with (B1, B4).
//!
//! The epoch is at least the timeline. It is raised by one when the data turn out to be older than
//! what was written before (a restored storage snapshot keeps its timeline), so that what is read
//! now still wins. Either way every collection is swept.

use crate::config::KafkaConfig;
use crate::document::queries::Query;
use crate::document::read::{ReadError, ReadStamp};
use crate::kafka::progress_record::{ProgressReadError, TranslateRecord};
use crate::lsn::Lsn;
use crate::translate::readers::Readers;

/// The database cluster that a session reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub system_id: u64,
    pub timeline: u32,
    pub epoch: u32,
}

impl Identity {
    /// Whether a read comes from the same data.
    pub fn is_of(&self, stamp: &ReadStamp) -> bool {
        stamp.system_id == self.system_id && stamp.timeline == self.timeline
    }
}

/// How far a database cluster was at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub system_id: u64,
    pub timeline: u32,
    /// N of a snapshot.
    pub number: u64,
    pub flush_lsn: Lsn,
}

impl Moment {
    /// Whether these are older data than `other`'s on the same timeline: a restored copy.
    pub fn is_before(&self, other: &Self) -> bool {
        let same = (self.system_id, self.timeline) == (other.system_id, other.timeline);
        same && (self.number < other.number || self.flush_lsn < other.flush_lsn)
    }
}

/// How far the database is known to be after an answer to a question that was asked when `before`
/// was known. None: it has gone back meanwhile.
///
/// The answer is not compared with what another question has brought since: the answers of two
/// that run at once come in any order.
pub fn newest(known: Moment, before: &Moment, answer: Moment) -> Option<Moment> {
    if answer.is_before(before) {
        return None;
    }
    Some(if answer.is_before(&known) { known } else { answer })
}

/// Asks the database how far it is.
pub async fn moment(readers: &Readers) -> Result<Moment, ReadError> {
    let sql = "SELECT pg_current_wal_flush_lsn()::text".to_owned();
    let read = readers.read(&[], &[Query { sql, params: Vec::new() }]).await?;
    let text = read.rows.into_iter().flatten().flatten().flatten().next();
    let flush_lsn = text.and_then(|it| it.parse().ok());
    let what = || ReadError::Inconsistent { what: "it says no flush LSN".to_owned() };
    Ok(Moment {
        system_id: read.stamp.system_id,
        timeline: read.stamp.timeline,
        number: read.stamp.snapshot.number(),
        flush_lsn: flush_lsn.ok_or_else(what)?,
    })
}

/// The identity for a session that starts at `now`, and whether every collection must be
/// swept because the data are not a continuation of what was read before.
pub fn decide(before: Option<&TranslateRecord>, now: &Moment) -> (Identity, bool) {
    let (system_id, timeline) = (now.system_id, now.timeline);
    let fresh = Identity { system_id, timeline, epoch: timeline };
    let Some(before) = before.filter(|it| it.system_id == system_id) else {
        // Another system writes to indices of its own, which are built from nothing.
        return (fresh, false);
    };
    let grown = before.number <= now.number && before.flush_lsn <= now.flush_lsn;
    if before.timeline == timeline && grown {
        return (Identity { epoch: before.epoch.max(timeline), ..fresh }, false);
    }
    (Identity { epoch: timeline.max(before.epoch + 1), ..fresh }, true)
}

/// What to write down of a moment of a session.
pub fn record(identity: &Identity, moment: &Moment) -> TranslateRecord {
    TranslateRecord {
        system_id: identity.system_id,
        timeline: identity.timeline,
        epoch: identity.epoch,
        number: moment.number,
        flush_lsn: moment.flush_lsn,
    }
}

/// Reads the group's record from the progress topic.
pub async fn load(config: &KafkaConfig) -> Result<Option<TranslateRecord>, ProgressReadError> {
    let records = crate::kafka::progress_record::read_all(config).await?;
    Ok(records.and_then(|mut it| it.translators.remove(&config.group_id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: TranslateRecord =
        TranslateRecord { system_id: 7, timeline: 2, epoch: 3, number: 100, flush_lsn: Lsn(50) };

    fn now(system_id: u64, timeline: u32, number: u64, flush_lsn: u64) -> Moment {
        Moment { system_id, timeline, number, flush_lsn: Lsn(flush_lsn) }
    }

    #[test]
    fn answers_to_two_questions_come_in_any_order() {
        let at = |number| now(7, 2, number, number);
        // What is known, what was known as it was asked, the answer.
        let cases = [
            ("in order", (at(5), at(5), at(6)), Some(at(6))),
            ("nothing has happened", (at(5), at(5), at(5)), Some(at(5))),
            ("overtaken", (at(7), at(5), at(6)), Some(at(7))),
            ("restored", (at(5), at(5), at(4)), None),
            ("restored, and overtaken", (at(7), at(5), at(4)), None),
            ("less WAL", (at(5), at(5), now(7, 2, 6, 4)), None),
            ("promoted", (at(5), at(5), now(7, 3, 6, 6)), Some(now(7, 3, 6, 6))),
        ];
        for (what, (known, before, answer), expected) in cases {
            assert_eq!(newest(known, &before, answer), expected, "{what}");
        }
    }

    #[test]
    fn older_data_raises_the_epoch() {
        let cases = [
            ("goes on", now(7, 2, 100, 50), 3, false),
            ("fewer transactions: restored", now(7, 2, 99, 50), 4, true),
            ("less WAL: restored", now(7, 2, 100, 49), 4, true),
            ("promoted", now(7, 3, 200, 90), 4, true),
            ("promoted often", now(7, 9, 200, 90), 9, true),
            ("another cluster", now(8, 1, 1, 1), 1, false),
        ];
        for (what, now, epoch, sweep) in cases {
            let (identity, swept) = decide(Some(&BEFORE), &now);
            assert_eq!((identity.epoch, swept), (epoch, sweep), "{what}");
        }
        assert_eq!(decide(None, &now(7, 2, 1, 1)).0.epoch, 2, "the epoch is at least the timeline");
    }
}
