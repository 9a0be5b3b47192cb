//! Messages of the log become demands: keys to refresh, images to look up, collections to sweep.

use rdkafka::Message as _;
use rdkafka::message::{BorrowedMessage, Headers as _};

use crate::causes::with_causes;
use crate::kafka::consumer::Partition;
use crate::kafka::offsets;
use crate::kafka::record::{self, ChangeRecord, RecordError};
use crate::kafka::side::BadRecord;
use crate::translate::lookups::Wanted;
use crate::translate::news::Provenance;
use crate::translate::stage::{Done, Origin, Stage};

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
    /// For the gateways; None: there are none.
    pub provenance: Option<Box<Provenance>>,
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
            Ok(Some(record)) => Taken::Change(Box::new(self.touching(message, &record))),
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

    fn touching(&self, message: &BorrowedMessage<'_>, record: &ChangeRecord<'_>) -> Touching {
        let same_system = record.system_id == self.tools.identity.system_id;
        let provenance = self.tools.feedback.as_ref().map(|_| {
            Box::new(Provenance::of(record, same_system, message.timestamp().to_millis()))
        });
        Touching {
            touched: self.router.touched(message.topic(), record),
            cause: record.cause,
            commit_us: record.commit_us,
            same_system,
            provenance,
        }
    }

    fn demand(&mut self, place: offsets::Ticket, touching: Touching) {
        let touched = touching.touched;
        self.telling.taken_us = Some(touching.commit_us);
        if touched.keys.is_empty() && touched.lookups.is_empty() && touched.sweeps.is_empty() {
            self.offsets.done(place);
            return;
        }
        let Touching { commit_us, provenance, .. } = touching;
        let ticket = self.open_ticket(Origin::Record { place, commit_us, provenance });
        let cause = touching.same_system.then_some(touching.cause);
        for (build, key) in touched.keys {
            self.count_affected(build, 1);
            self.pending.demand(build, key, cause, Some(ticket));
        }
        for (path, values) in touched.lookups {
            self.pending.open(ticket);
            // A foreign cause is none: every snapshot sees what is to be seen.
            let causes = cause.into_iter().collect();
            self.lookups.push(path, Wanted { values, causes, tickets: vec![ticket], attempts: 0 });
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
