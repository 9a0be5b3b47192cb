//! The log, read by the translators' consumer group.
//!
//! Where reading starts is decided here, before anything is consumed: a partition whose committed
//! offset is missing, out of range, or so old that compaction may have eaten an old image starts
//! at its end, and its table is named as *lost*, so that the collections that read it are swept.
//! Offsets are committed only up to the first record whose documents are not written yet.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::consumer::{
    BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance, StreamConsumer,
};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::{ClientConfig, Statistics};

use crate::config::KafkaConfig;
use crate::kafka::lost_cluster::Lost;
use crate::kafka::positions::{self, Notes, Positions, Settled};
use crate::kafka::reader::drop_aside;
use crate::kafka::settings;

/// The log could not be read. All of these are outages: waited out and tried again.
#[derive(Debug, thiserror::Error)]
#[error("Kafka failed while {doing}")]
pub struct LogError {
    pub doing: &'static str,
    #[source]
    pub source: KafkaError,
}

impl LogError {
    /// The group has no position where it had one: its topic was deleted, or somebody has reset it.
    pub fn forgotten() -> Self {
        let source = KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset);
        Self { doing: "looking for the group's position, which Kafka has forgotten", source }
    }

    pub fn is_forgotten(&self) -> bool {
        matches!(self.source, KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset))
    }
}

pub(super) fn while_doing(doing: &'static str) -> impl FnOnce(KafkaError) -> LogError {
    move |source| LogError { doing, source }
}

/// One partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    pub topic: String,
    pub number: i32,
}

/// What the group's membership brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebalanced {
    Assigned(Vec<Partition>),
    Revoked(Vec<Partition>),
}

/// Collects what librdkafka says by callback, for the one task that reads it.
#[derive(Debug, Default)]
pub struct LogContext {
    rebalanced: Mutex<Vec<Rebalanced>>,
    high_offsets: Mutex<HashMap<Partition, i64>>,
    /// No broker was connected when librdkafka last looked, once a second.
    away: AtomicBool,
    lost: Lost,
    /// An asynchronous commit of offsets has failed.
    uncommitted: AtomicBool,
}

fn partitions_of(list: &TopicPartitionList) -> Vec<Partition> {
    let elements = list.elements();
    elements
        .iter()
        .map(|it| Partition { topic: it.topic().to_owned(), number: it.partition() })
        .collect()
}

impl ClientContext for LogContext {
    fn error(&self, error: KafkaError, reason: &str) {
        settings::hush(&error, reason);
    }

    fn stats(&self, statistics: Statistics) {
        let connected = statistics.brokers.values().any(|it| it.state == "UP");
        self.away.store(!connected, Ordering::Relaxed);
        self.lost.note(&statistics);
        let mut high = self.high_offsets.lock().unwrap_or_else(PoisonError::into_inner);
        for (topic, facts) in statistics.topics {
            for (number, partition) in facts.partitions {
                if number >= 0 && partition.hi_offset >= 0 {
                    let place = Partition { topic: topic.clone(), number };
                    high.insert(place, partition.hi_offset);
                }
            }
        }
    }
}

impl ConsumerContext for LogContext {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, "offsets not committed; they are committed again");
            self.uncommitted.store(true, Ordering::Relaxed);
        }
    }

    fn pre_rebalance(&self, _consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(list) = rebalance {
            let event = Rebalanced::Revoked(partitions_of(list));
            self.rebalanced.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        }
    }

    fn post_rebalance(&self, _consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = rebalance {
            let event = Rebalanced::Assigned(partitions_of(list));
            self.rebalanced.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        }
    }
}

/// Longest wait for leaving the group. A member that does not leave is missed by the others only
/// for a session timeout.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// A member of the group.
pub struct Log {
    /// None only while it is being dropped.
    consumer: Option<Arc<StreamConsumer<LogContext>>>,
}

/// Settings of the group's members. librdkafka's defaults would buffer 64 MiB and wait 1 s after
/// a full queue.
fn member_config(config: &KafkaConfig) -> ClientConfig {
    let own = [
        ("group.id", config.group_id.clone()),
        ("enable.auto.commit", "false".to_owned()),
        ("enable.auto.offset.store", "false".to_owned()),
        // Positions are always committed before a topic is subscribed to; anything else is an
        // error to look at, not a reason to skip or repeat.
        ("auto.offset.reset", "error".to_owned()),
        ("isolation.level", "read_uncommitted".to_owned()),
        ("fetch.min.bytes", "1".to_owned()),
        ("fetch.wait.max.ms", "500".to_owned()),
        ("fetch.queue.backoff.ms", "5".to_owned()),
        ("queued.min.messages", "10000".to_owned()),
        ("queued.max.messages.kbytes", "8192".to_owned()),
        // The broker's minimum: how long a crashed member's partitions wait for the next.
        ("session.timeout.ms", "6000".to_owned()),
        ("heartbeat.interval.ms", "1500".to_owned()),
        ("partition.assignment.strategy", "cooperative-sticky".to_owned()),
        ("statistics.interval.ms", "1000".to_owned()),
    ];
    settings::client_config(config, &own)
}

impl Log {
    /// Creates the member; nothing is read before [`Log::subscribe`].
    pub fn new(config: &KafkaConfig) -> Result<Self, LogError> {
        let consumer = member_config(config)
            .create_with_context(LogContext::default())
            .map_err(while_doing("creating the consumer"))?;
        Ok(Self { consumer: Some(Arc::new(consumer)) })
    }

    pub fn consumer(&self) -> &StreamConsumer<LogContext> {
        self.shared()
    }

    fn shared(&self) -> &Arc<StreamConsumer<LogContext>> {
        self.consumer.as_ref().expect("it is taken by drop alone")
    }

    /// Leaves the group, and waits for it if this is the last holder.
    pub async fn close(log: Arc<Self>) {
        let Some(consumer) = Arc::into_inner(log).and_then(|mut it| it.consumer.take()) else {
            return;
        };
        let (closed, waiting) = tokio::sync::oneshot::channel();
        drop_aside(consumer, move || {
            // Whoever waited may have lost patience.
            let _gone = closed.send(());
        });
        let _patience_lost = tokio::time::timeout(CLOSE_MAX, waiting).await;
    }

    /// Membership changes since the last call, oldest first.
    pub fn take_rebalanced(&self) -> Vec<Rebalanced> {
        let context = self.consumer().context();
        std::mem::take(&mut *context.rebalanced.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Up to where each assigned partition has been handed out, as far as it was: past the marks
    /// of transactions, which are no records.
    pub fn handed_out(&self) -> Result<Vec<(Partition, i64)>, LogError> {
        let position = self.consumer().position().map_err(while_doing("asking for positions"))?;
        Ok(positions::settled(&position).map(|it| (it.partition, it.offset)).collect())
    }

    /// The end of a partition as the broker last said it.
    pub fn high_offset(&self, partition: &Partition) -> Option<i64> {
        let context = self.consumer().context();
        let high = context.high_offsets.lock().unwrap_or_else(PoisonError::into_inner);
        high.get(partition).copied()
    }

    /// Subscribes to exactly these topics. Their positions must have been committed.
    pub fn subscribe(&self, topics: &[String]) -> Result<(), LogError> {
        if topics.is_empty() {
            self.consumer().unsubscribe();
            return Ok(());
        }
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        self.consumer().subscribe(&names).map_err(while_doing("subscribing"))
    }

    /// Whether no broker is connected. An idle log is silent, so that nothing else says when an
    /// outage has ended.
    pub fn is_away(&self) -> bool {
        self.consumer().context().away.load(Ordering::Relaxed)
    }

    /// Finds the cluster again, if librdkafka has lost it. Costs nothing otherwise.
    pub fn find_cluster(&self, config: &KafkaConfig) {
        let consumer = self.consumer();
        consumer.context().lost.find(consumer.client(), config);
    }

    /// Stops fetching while poll() goes on, so that a long wait causes no rebalance.
    pub fn pause(&self, paused: bool) -> Result<(), LogError> {
        let assigned = self.consumer().assignment().map_err(while_doing("pausing"))?;
        let result = if paused {
            self.consumer().pause(&assigned)
        } else {
            self.consumer().resume(&assigned)
        };
        result.map_err(while_doing("pausing"))
    }

    /// Commits positions (the next offset to read of each partition).
    pub fn commit(
        &self,
        positions: &[(Partition, i64)],
        notes: &Notes,
        mode: CommitMode,
    ) -> Result<(), LogError> {
        if positions.is_empty() {
            return Ok(());
        }
        let list = positions::list(positions, notes)?;
        self.consumer().commit(&list, mode).map_err(while_doing("committing offsets"))
    }

    /// Whether a commit that was not waited for has failed since the last call.
    pub fn take_uncommitted(&self) -> bool {
        self.consumer().context().uncommitted.swap(false, Ordering::Relaxed)
    }

    /// Commits the positions that [`Log::lost_positions`] proposed, and waits for it.
    ///
    /// A group that others are in takes positions from members only, and we join it with what we
    /// subscribe to, later: then a member for this alone joins, commits and leaves.
    pub async fn commit_lost(
        &self,
        config: &KafkaConfig,
        found: Vec<(Partition, i64)>,
        notes: Notes,
    ) -> Result<(), LogError> {
        if found.is_empty() {
            return Ok(());
        }
        let list = positions::list(&found, &notes)?;
        let (consumer, member) = (Arc::clone(self.shared()), member_config(config));
        let age_max = config.min_compaction_lag;
        blocking(move || match consumer.commit(&list, CommitMode::Sync) {
            Err(error) if positions::is_for_members(&error) => {
                positions::join(member, (&found, &notes), age_max)
            }
            committed => committed.map_err(while_doing("committing first offsets")),
        })
        .await
    }

    /// The ends of the topics' partitions, as of now.
    pub async fn ends(&self, topics: Vec<String>) -> Result<Vec<(Partition, i64)>, LogError> {
        let consumer = Arc::clone(self.shared());
        blocking(move || {
            let mut ends = Vec::new();
            for topic in topics {
                for number in positions::partition_numbers(&*consumer, &topic)? {
                    let ends_of = consumer.fetch_watermarks(&topic, number, positions::ANSWER_MAX);
                    let (_, high) = ends_of.map_err(while_doing("reading a partition's ends"))?;
                    ends.push((Partition { topic: topic.clone(), number }, high));
                }
            }
            Ok(ends)
        })
        .await
    }

    /// Whether the group, whoever of its members it was, has committed up to these positions.
    pub async fn is_committed(&self, ends: Vec<(Partition, i64)>) -> Result<bool, LogError> {
        let consumer = Arc::clone(self.shared());
        blocking(move || {
            let committed = consumer
                .committed_offsets(positions::list(&ends, &Notes::new())?, positions::ANSWER_MAX)
                .map_err(while_doing("reading committed offsets"))?;
            let reached = |(partition, end): &(Partition, i64)| {
                let at = positions::offset_of(&committed, &partition.topic, partition.number);
                at.is_some_and(|it| it >= *end)
            };
            Ok(ends.iter().all(reached))
        })
        .await
    }

    /// In which of these partitions the group has no position any more: Kafka forgets them with a
    /// topic that is deleted, also if another one has its name by now.
    pub async fn forgotten(&self, partitions: Vec<Partition>) -> Result<Vec<Partition>, LogError> {
        let settled = self.committed(&partitions).await?;
        let settled: BTreeSet<Partition> = settled.into_iter().map(|it| it.partition).collect();
        Ok(partitions.into_iter().filter(|it| !settled.contains(it)).collect())
    }

    /// The group's positions in these partitions, with their notes. One that has none is an error:
    /// it is committed before its topic is subscribed to.
    pub async fn settled_positions(
        &self,
        partitions: Vec<Partition>,
    ) -> Result<Vec<Settled>, LogError> {
        let settled = self.committed(&partitions).await?;
        match settled.len() == partitions.len() {
            true => Ok(settled),
            false => Err(LogError::forgotten()),
        }
    }

    /// Those of the partitions in which the group has a position.
    async fn committed(&self, partitions: &[Partition]) -> Result<Vec<Settled>, LogError> {
        let mut wanted = TopicPartitionList::with_capacity(partitions.len());
        for it in partitions {
            wanted.add_partition(&it.topic, it.number);
        }
        let consumer = Arc::clone(self.shared());
        blocking(move || {
            let committed = consumer.committed_offsets(wanted, positions::ANSWER_MAX);
            let committed = committed.map_err(while_doing("reading committed offsets"))?;
            Ok(positions::settled(&committed).collect())
        })
        .await
    }

    /// Which of `topics` have a partition whose position is missing, out of range, or older than
    /// `age_max`, with the positions from which reading may start instead (their ends); and which
    /// topics are not there.
    ///
    /// Nothing is committed here: whoever is affected must first note durably that it is owed a
    /// sweep. Blocks for network answers, so it runs on a blocking thread.
    pub async fn lost_positions(
        &self,
        topics: BTreeSet<String>,
        age_max: Duration,
    ) -> Result<Positions, LogError> {
        let consumer = Arc::clone(self.shared());
        blocking(move || {
            let mut found = Positions::default();
            for topic in topics {
                found.look_at(&*consumer, topic, age_max)?;
            }
            Ok(found)
        })
        .await
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Some(consumer) = self.consumer.take() {
            drop_aside(consumer, || {});
        }
    }
}

/// Runs what waits for the broker on a thread where waiting harms nobody.
async fn blocking<T: Send + 'static>(
    asking: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(asking).await.unwrap_or_else(|_panicked| {
        Err(LogError { doing: "reading positions", source: KafkaError::Canceled })
    })
}
