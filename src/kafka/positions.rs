//! The group's positions: which are lost, and how to set them while others are in the group.
//!
//! Everything here blocks for answers of the brokers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::kafka::consumer::{LogError, Partition, while_doing};
use crate::kafka::settings;

/// Longest wait for one answer of the broker about positions. An outage at this moment is an
/// error that the caller repeats with backoff.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Margin of the age check: clocks of broker and translator may differ by this much.
const CLOCK_MARGIN: Duration = Duration::from_secs(3_600);

/// Longest wait for joining the group: the other members are given a session timeout to rejoin,
/// and a rebalance may have to be waited for first.
const JOIN_MAX: Duration = Duration::from_secs(20);
/// One turn of waiting for it.
const JOIN_TURN: Duration = Duration::from_millis(50);

/// What is committed beside the offsets, by topic.
pub type Notes = BTreeMap<String, String>;

/// A position of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub partition: Partition,
    pub offset: i64,
    /// What was committed beside it; empty: nothing.
    pub note: String,
}

/// What is to be done before topics are read.
#[derive(Debug, Default)]
pub struct Positions {
    /// Where reading may go on.
    pub settled: Vec<Settled>,
    /// Where reading may start instead: the partitions' ends.
    pub lost: Vec<(Partition, i64)>,
    /// Topics that are not there, or not yet.
    pub missing: BTreeSet<String>,
}

impl Positions {
    /// Adds what one topic needs.
    pub(super) fn look_at<C: ConsumerContext>(
        &mut self,
        consumer: &impl Consumer<C>,
        topic: String,
        age_max: Duration,
    ) -> Result<(), LogError> {
        let numbers = partition_numbers(consumer, &topic)?;
        if numbers.is_empty() {
            self.missing.insert(topic);
            return Ok(());
        }
        let mut wanted = TopicPartitionList::new();
        let mut aged = TopicPartitionList::new();
        let oldest_ms = oldest_trusted_ms(age_max);
        for &number in &numbers {
            wanted.add_partition(&topic, number);
            aged.add_partition_offset(&topic, number, Offset::Offset(oldest_ms))
                .map_err(while_doing("naming a position"))?;
        }
        // Records arrive and positions move while we ask. In this order neither makes a position
        // look lost: it was there before the end was, and so was every record that must be young.
        let committed = consumer
            .committed_offsets(wanted, ANSWER_MAX)
            .map_err(while_doing("reading committed offsets"))?;
        let mut ends = Vec::with_capacity(numbers.len());
        for number in numbers {
            let (low, high) = consumer
                .fetch_watermarks(&topic, number, ANSWER_MAX)
                .map_err(while_doing("reading a partition's ends"))?;
            ends.push((number, low, high));
        }
        let first_trusted = consumer
            .offsets_for_times(aged, ANSWER_MAX)
            .map_err(while_doing("reading offsets by time"))?;
        for (number, low, high) in ends {
            let trusted_from = offset_of(&first_trusted, &topic, number).unwrap_or(high);
            let position = offset_of(&committed, &topic, number);
            let fine = position.is_some_and(|at| {
                let in_range = low <= at && at <= high;
                in_range && (at == high || trusted_from <= at)
            });
            if fine {
                self.settled.extend(settled(&committed).find(|it| it.partition.number == number));
            } else {
                self.lost.push((Partition { topic: topic.clone(), number }, high));
            }
        }
        Ok(())
    }
}

/// The partitions of a topic; none: there is no such topic.
pub(super) fn partition_numbers<C: ConsumerContext>(
    consumer: &impl Consumer<C>,
    topic: &str,
) -> Result<Vec<i32>, LogError> {
    let metadata = consumer
        .fetch_metadata(Some(topic), ANSWER_MAX)
        .map_err(while_doing("reading a topic's partitions"))?;
    let partitions = metadata.topics().iter().flat_map(|it| it.partitions());
    Ok(partitions.map(|it| it.id()).collect())
}

/// Positions as librdkafka takes them.
pub(super) fn list(
    positions: &[(Partition, i64)],
    notes: &Notes,
) -> Result<TopicPartitionList, LogError> {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for (partition, offset) in positions {
        let mut place = list.add_partition(&partition.topic, partition.number);
        place.set_offset(Offset::Offset(*offset)).map_err(while_doing("naming a position"))?;
        if let Some(note) = notes.get(&partition.topic).filter(|it| !it.is_empty()) {
            place.set_metadata(note);
        }
    }
    Ok(list)
}

/// The positions that a list of committed offsets has.
pub(super) fn settled(list: &TopicPartitionList) -> impl Iterator<Item = Settled> {
    let places = list.elements().into_iter();
    places.filter_map(|it| {
        let Offset::Offset(offset) = it.offset() else { return None };
        let partition = Partition { topic: it.topic().to_owned(), number: it.partition() };
        Some(Settled { partition, offset, note: it.metadata().to_owned() })
    })
}

/// Whether the group did not take the positions because it has members, and we are none, or not
/// at this moment.
pub(super) fn is_for_members(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let codes = [Code::UnknownMemberId, Code::IllegalGeneration, Code::RebalanceInProgress];
    error.rdkafka_error_code().is_some_and(|it| codes.contains(&it))
}

/// Notes that the group has let us in, with or without partitions.
#[derive(Debug, Default)]
struct Joining {
    joined: AtomicBool,
}

impl ClientContext for Joining {
    fn error(&self, error: KafkaError, reason: &str) {
        settings::hush(&error, reason);
    }
}

impl ConsumerContext for Joining {
    fn post_rebalance(&self, _consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(_) = rebalance {
            self.joined.store(true, Ordering::Relaxed);
        }
    }
}

/// Joins the group, commits those of the positions that are still lost, and leaves. The other
/// members hardly notice: a cooperative rebalance takes nothing from them but what is new to all.
pub(super) fn join(
    mut config: ClientConfig,
    (found, notes): (&[(Partition, i64)], &Notes),
    age_max: Duration,
) -> Result<(), LogError> {
    // Two members of one name would fence each other; and a static member never leaves.
    config.remove("group.instance.id");
    let consumer: BaseConsumer<Joining> = config
        .create_with_context(Joining::default())
        .map_err(while_doing("joining the group to commit first offsets"))?;
    let topics: BTreeSet<&str> = found.iter().map(|(it, _)| it.topic.as_str()).collect();
    let names: Vec<&str> = topics.iter().copied().collect();
    consumer.subscribe(&names).map_err(while_doing("subscribing to commit first offsets"))?;
    let deadline = Instant::now() + JOIN_MAX;
    loop {
        // What it brings is not ours to handle: it is read again by whoever gets the partition.
        let _message = consumer.poll(JOIN_TURN);
        let late = Instant::now() > deadline;
        if !consumer.context().joined.load(Ordering::Relaxed) && !late {
            continue;
        }
        // Joining takes seconds, in which another member may have settled them as well, and have
        // read on from there: its position is not to be set back.
        let mut now = Positions::default();
        for topic in &topics {
            now.look_at(&consumer, (*topic).to_owned(), age_max)?;
        }
        let still_lost = |(it, _): &&(Partition, i64)| now.lost.iter().any(|(lost, _)| lost == it);
        let still: Vec<_> = found.iter().filter(still_lost).cloned().collect();
        if still.is_empty() {
            return Ok(());
        }
        match consumer.commit(&list(&still, notes)?, CommitMode::Sync) {
            Err(error) if is_for_members(&error) && !late => {}
            committed => return committed.map_err(while_doing("committing first offsets")),
        }
    }
}

pub(super) fn offset_of(list: &TopicPartitionList, topic: &str, number: i32) -> Option<i64> {
    match list.find_partition(topic, number)?.offset() {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

/// Records before this time (in ms since the Unix epoch) may lack predecessors that compaction
/// has eaten.
fn oldest_trusted_ms(age_max: Duration) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let oldest = now.saturating_sub(age_max.saturating_sub(CLOCK_MARGIN));
    i64::try_from(oldest.as_millis()).unwrap_or(i64::MAX)
}
