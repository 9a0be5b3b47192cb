//! Messages of the log become demands: keys to refresh, images to look up, collections to sweep.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Instant;

use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Headers as _};

use crate::causes::with_causes;
use crate::kafka::consumer::Partition;
use crate::kafka::offsets;
use crate::kafka::record::{self, ChangeRecord, RecordError};
use crate::kafka::side::BadRecord;
use crate::translate::lookup::Wanted;
use crate::translate::route::PathId;
use crate::translate::stage::{Done, Origin, Stage};

/// Images that wait to be looked up, by path.
#[derive(Debug, Default)]
pub struct Lookups {
    ready: BTreeMap<PathId, VecDeque<Wanted>>,
    parked: Vec<(Instant, PathId, Wanted)>,
    /// The path whose turn was last.
    last: Option<PathId>,
}

impl Lookups {
    pub fn push(&mut self, path: PathId, wanted: Wanted) {
        self.ready.entry(path).or_default().push_back(wanted);
    }

    pub fn park(&mut self, path: PathId, wanted: impl IntoIterator<Item = Wanted>, until: Instant) {
        self.parked.extend(wanted.into_iter().map(|it| (until, path, it)));
    }

    /// Up to `max` images of one path. Paths take turns, so that a busy one does not hold up the
    /// others.
    pub fn take(&mut self, max: usize, now: Instant) -> Option<(PathId, Vec<Wanted>)> {
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
        let queue = self.ready.get_mut(&path)?;
        let batch = queue.drain(..max.min(queue.len())).collect();
        if queue.is_empty() {
            self.ready.remove(&path);
        }
        Some((path, batch))
    }

    /// Forgets a build's images; returns their tickets.
    pub fn remove(&mut self, build: usize) -> Vec<u64> {
        let mut tickets = Vec::new();
        self.ready.retain(|path, queue| {
            if path.build == build {
                tickets.extend(queue.iter().map(|it| it.ticket));
            }
            path.build != build
        });
        self.parked.retain(|(_, path, wanted)| {
            if path.build == build {
                tickets.push(wanted.ticket);
            }
            path.build != build
        });
        tickets
    }

    pub fn len(&self) -> usize {
        self.parked.len() + self.ready.values().map(VecDeque::len).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn parked(&self) -> usize {
        self.parked.len()
    }

    pub fn next_wake(&self) -> Option<Instant> {
        self.parked.iter().map(|(until, ..)| *until).min()
    }
}

/// What a message asks for, with nothing borrowed from it.
pub enum Taken {
    Nothing,
    Change(Box<Touching>),
    Bad(Box<OwnedRecord>),
}

/// A change and what it touches.
pub struct Touching {
    pub touched: crate::translate::route::Touched,
    pub cause: crate::snapshot::Cause,
    /// Of the change's transaction, microseconds since the Unix epoch.
    pub commit_us: i64,
    /// False: the record is of another cluster, whose transaction ids mean nothing here.
    pub same_system: bool,
}

pub struct OwnedRecord {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    reason: String,
}

impl Stage {
    /// Takes a message in: its offset is tracked from here on.
    pub fn take_in(&mut self, message: &BorrowedMessage<'_>) {
        self.tools.metrics.translate_records_total.inc();
        let partition =
            Partition { topic: message.topic().to_owned(), number: message.partition() };
        let offset = message.offset();
        let place = self.offsets.received(&partition, offset);
        let taken = match parse(message) {
            Ok(None) => Taken::Nothing,
            Ok(Some(record)) => Taken::Change(Box::new(self.touching(&record))),
            Err(error) => Taken::Bad(Box::new(OwnedRecord {
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
                reason: with_causes(&error),
            })),
        };
        match taken {
            Taken::Nothing => {
                self.offsets.done(place);
            }
            Taken::Change(touching) => self.demand(place, *touching),
            Taken::Bad(record) => self.bury(place, partition, offset, *record),
        }
    }

    fn touching(&self, record: &ChangeRecord<'_>) -> Touching {
        Touching {
            touched: self.router.touched(record),
            cause: record.cause,
            commit_us: record.commit_us,
            same_system: record.system_id == self.tools.identity.system_id,
        }
    }

    fn demand(&mut self, place: offsets::Ticket, touching: Touching) {
        let touched = touching.touched;
        if touched.keys.is_empty() && touched.lookups.is_empty() && touched.sweeps.is_empty() {
            self.offsets.done(place);
            return;
        }
        let ticket = self.open_ticket(Origin::Record { place, commit_us: touching.commit_us });
        let cause = touching.same_system.then_some(touching.cause);
        for (build, key) in touched.keys {
            self.count_affected(build, 1);
            self.pending.demand(build, key, cause, Some(ticket));
        }
        for (path, values) in touched.lookups {
            self.pending.open(ticket);
            // A foreign cause is replaced by one that every snapshot sees.
            let cause = cause.unwrap_or(crate::snapshot::Cause { timeline: 0, xid: 0 });
            self.lookups.push(path, Wanted { values, cause, ticket, attempts: 0 });
        }
        for build in touched.sweeps {
            self.pending.open(ticket);
            self.owe_sweep(build, Some(ticket));
        }
        self.close_ticket(ticket);
    }

    fn bury(
        &mut self,
        place: offsets::Ticket,
        partition: Partition,
        offset: i64,
        record: OwnedRecord,
    ) {
        tracing::error!(
            topic = partition.topic,
            partition = partition.number,
            offset,
            reason = record.reason,
            "a record of the log can't be used; it goes to the dead letters"
        );
        let tools = std::sync::Arc::clone(&self.tools);
        self.tasks.spawn(async move {
            let mut pause = tokio::time::interval(super::RETRY_MAX);
            loop {
                pause.tick().await;
                let bad = BadRecord {
                    partition: &partition,
                    offset,
                    key: record.key.as_deref(),
                    value: record.value.as_deref(),
                    reason: &record.reason,
                };
                match tools.side.bury_record(bad).await {
                    Ok(()) => return Done::Buried(place),
                    Err(error) => tracing::warn!(error = %with_causes(&error), "no dead letter"),
                }
            }
        });
    }
}

fn parse<'a>(message: &'a BorrowedMessage<'_>) -> Result<Option<ChangeRecord<'a>>, RecordError> {
    let headers = message.headers();
    let headers = headers.into_iter().flat_map(|it| it.iter()).map(|it| (it.key, it.value));
    record::parse(message.payload(), headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::Cause;

    #[test]
    fn paths_take_turns() {
        let path = |path| PathId { build: 1, entry: 0, path };
        let wanted = |ticket| Wanted {
            values: Vec::new(),
            cause: Cause { timeline: 1, xid: 1 },
            ticket,
            attempts: 0,
        };
        let mut lookups = Lookups::default();
        for ticket in 0..3 {
            lookups.push(path(0), wanted(ticket));
            lookups.push(path(1), wanted(10 + ticket));
        }
        let now = Instant::now();
        lookups.park(path(2), [wanted(20)], now);
        let mut turns = Vec::new();
        while let Some((path, batch)) = lookups.take(2, now) {
            turns.push((path.path, batch.iter().map(|it| it.ticket).collect::<Vec<_>>()));
        }
        let expected =
            [(0, vec![0, 1]), (1, vec![10, 11]), (2, vec![20]), (0, vec![2]), (1, vec![12])];
        assert_eq!(turns, expected);
        assert!(lookups.is_empty());
    }
}
