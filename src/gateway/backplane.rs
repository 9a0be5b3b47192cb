//! STAGE: reads the backplane, all of it, and tells each event to those whom it concerns.
//!
//! Every gateway reads the topic's one partition from a window ago, without a consumer group: so
//! any of them knows what any other has said, and may resume any client, as an event's id is its
//! offset. It is ready once it has read what was there when it began.
//!
//! **Invariant:** history and what follows fit together: a subscriber is added under the same lock
//! under which events are taken in, so that it misses none and hears none twice.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use globset::GlobSet;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::KafkaConfig;
use crate::config::gateway::GatewayConfig;
use crate::gateway::claims::desk::Desk;
use crate::gateway::principal::{Principal, globs};
use crate::gateway::problem::Problem;
use crate::gateway::subscribers::Subscribers;
use crate::gateway::window::{Event, History, Key, Limits, Window};
use crate::kafka::delivery::now_ms;
use crate::kafka::feedback::Feedback;
use crate::kafka::feedback_sender::{FeedbackSender, PublishError};
use crate::kafka::reader::Reader;
use crate::kafka::settings::{self, Quiet};
use crate::kafka::topics::{self, TopicError, WantedTopic};
use crate::metrics::Metrics;

/// Most bytes of records in the window, whatever their number: a hundred thousand answers of
/// robots may be large.
const WINDOW_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How often what is too old is forgotten.
const TRIM_EVERY: Duration = Duration::from_secs(1);
/// How often an outage of the backplane is said.
const SAID_EVERY: Duration = Duration::from_secs(10);
/// The partition that all is in.
const PARTITION: i32 = 0;

/// Why the backplane can't be used now. All of these may pass.
#[derive(Debug, thiserror::Error)]
pub enum BackplaneError {
    #[error("the topic of feedback can't be made")]
    Topic(#[from] TopicError),
    #[error("the topic of feedback can't be read")]
    Kafka(#[from] KafkaError),
    #[error("the topic of feedback can't be written to")]
    Publish(#[from] PublishError),
}

impl BackplaneError {
    /// Whether trying again may help without a person's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Topic(error) => error.is_transient(),
            Self::Kafka(error) => settings::is_transient(error),
            Self::Publish(error) => settings::is_transient(&error.source),
        }
    }
}

#[derive(Debug)]
struct Room {
    window: Window,
    subscribers: Subscribers,
}

/// What this gateway knows of the backplane, and a way to say something there.
pub struct Backplane {
    room: Mutex<Room>,
    /// The next offset to be read.
    reached: watch::Sender<i64>,
    sender: FeedbackSender,
    /// Who is to produce which command.
    pub claims: Desk,
    subscribers_max: usize,
    limits: Limits,
    /// Collections that any client may hear of.
    collections: GlobSet,
    /// The gateway stops.
    closed: CancellationToken,
    metrics: Metrics,
}

/// There are as many listeners as this gateway takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this gateway has as many listeners as [gateway] subscribers_max allows")]
pub struct Crowded;

impl Crowded {
    /// 503.
    pub fn problem(self) -> Problem {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "crowded", self.to_string()).retry_after(5)
    }
}

impl Backplane {
    pub fn new(
        (kafka, gateway): (&KafkaConfig, &GatewayConfig),
        metrics: Metrics,
    ) -> Result<Self, PublishError> {
        let age = gateway.feedback_window.as_millis();
        let limits = Limits {
            records_max: gateway.feedback_window_records,
            bytes_max: WINDOW_BYTES_MAX,
            age_max_ms: i64::try_from(age).unwrap_or(i64::MAX),
        };
        let window = Window::new(limits, 0);
        Ok(Self {
            room: Mutex::new(Room { window, subscribers: Subscribers::default() }),
            reached: watch::Sender::new(0),
            claims: Desk::new(gateway),
            sender: FeedbackSender::new(kafka, gateway.command_timeout, metrics.clone())?,
            subscribers_max: gateway.subscribers_max,
            limits,
            collections: globs(&gateway.collections),
            closed: CancellationToken::new(),
            metrics,
        })
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        // A panic while it was held is a mistake of ours; the panic itself ends us.
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something to all gateways, this one too; its offset, once Kafka has it for good.
    pub async fn publish(&self, feedback: &Feedback) -> Result<i64, PublishError> {
        self.sender.publish(feedback).await
    }

    /// Returns once this gateway has read what is at `offset`. The caller limits the wait.
    pub async fn reached(&self, offset: i64) {
        let mut reached = self.reached.subscribe();
        // The sender is our own: it is there as long as we are.
        let _never_closed = reached.wait_for(|next| *next > offset).await;
    }

    /// The next offset to be read, as it moves.
    pub fn progress(&self) -> watch::Receiver<i64> {
        self.reached.subscribe()
    }

    /// Whether this client may hear of documents of the collection.
    pub fn may_tell(&self, principal: &Principal, collection: &str) -> bool {
        self.collections.is_match(collection) && principal.may_read(collection)
    }

    /// Whether the gateway stops.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Lets all listeners go, who would else hold up the end.
    fn close(&self) {
        self.closed.cancel();
        let mut room = self.room();
        room.subscribers.clear();
        self.count(&room);
    }

    /// Looks at what was said of late.
    pub fn look<T>(&self, at: impl FnOnce(&Window) -> T) -> T {
        at(&self.room().window)
    }

    /// Listens to `key`: what is known of it already (after the event `after`, if given), and all
    /// that follows.
    pub fn subscribe(
        self: &Arc<Self>,
        key: Key,
        after: Option<i64>,
    ) -> Result<Subscription, Crowded> {
        let mut room = self.room();
        if room.subscribers.len() >= self.subscribers_max || self.is_closed() {
            return Err(Crowded);
        }
        let history = room.window.history(&key, after);
        let (id, events) = room.subscribers.add(key.clone());
        self.count(&room);
        drop(room);
        Ok(Subscription { history, events, backplane: Arc::clone(self), key, id })
    }

    fn count(&self, room: &Room) {
        let count = |it: usize| i64::try_from(it).unwrap_or(i64::MAX);
        self.metrics.gateway_subscribers.set(count(room.subscribers.len()));
        self.metrics.gateway_window_records.set(count(room.window.len()));
    }

    /// A record was read.
    fn take_in(&self, offset: i64, at_ms: i64, value: &[u8]) {
        let mut room = self.room();
        if offset < room.window.next() {
            // The topic was made anew: nobody's last event id means anything any more.
            tracing::warn!("the topic of feedback begins anew; clients read their documents again");
            room.window = Window::new(self.limits, offset);
            room.subscribers.clear();
        }
        let feedback = Feedback::from_json(value).unwrap_or_else(|error| {
            tracing::debug!(%error, offset, "not ours, or of a newer version");
            None
        });
        if let Some(feedback) = &feedback {
            self.claims.hear(feedback, at_ms);
        }
        let event = match feedback {
            Some(it) => room.window.push((offset, at_ms), it, value.len()),
            None => {
                room.window.skip(offset);
                None
            }
        };
        if let Some(event) = event {
            let mut dropped = 0;
            // What became a session's by this event, before the event itself.
            let (session, brought) = room.window.brought(&event).unzip();
            let session = session.into_iter().collect();
            for earlier in brought.into_iter().flatten() {
                dropped += room.subscribers.tell(&session, &earlier);
            }
            let keys = room.window.keys(&event.feedback);
            dropped += room.subscribers.tell(&keys, &event);
            let dropped = u64::try_from(dropped).unwrap_or(u64::MAX);
            self.metrics.gateway_subscribers_dropped_total.inc_by(dropped);
        }
        let next = room.window.next();
        drop(room);
        self.reached.send_replace(next);
    }

    fn trim(&self) {
        let mut room = self.room();
        room.window.trim(now_ms());
        self.count(&room);
    }

    /// Reading begins at `first`. What is known stays, if reading goes on where it ended.
    fn begin(&self, first: i64) {
        let mut room = self.room();
        if room.window.next() != first {
            room.window = Window::new(self.limits, first);
            room.subscribers.clear();
        }
        drop(room);
        self.reached.send_replace(first);
    }
}

/// Somebody listens, until it is dropped.
pub struct Subscription {
    /// What was said before.
    pub history: History,
    /// What is said from then on. Ended: the listener was too slow, or all must begin anew.
    pub events: mpsc::Receiver<Arc<Event>>,
    backplane: Arc<Backplane>,
    key: Key,
    id: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut room = self.backplane.room();
        room.subscribers.remove(&self.key, self.id);
        self.backplane.count(&room);
    }
}

/// Makes the topic if it is not there, and says where reading begins and what must be read before
/// we are ready.
async fn open(
    kafka: &KafkaConfig,
    gateway: &GatewayConfig,
    next: i64,
) -> Result<(Reader, i64, i64), BackplaneError> {
    let mut wanted = vec![WantedTopic::of_feedback(kafka, gateway.feedback_retention)];
    // Where commands go is made too: else the first of them would be refused.
    wanted.extend(gateway.commands.iter().map(|it| WantedTopic::of_events(kafka, &it.topic)));
    topics::ensure_topics(kafka, &wanted, false).await?;
    let own = [
        // Never joined and never committed to: librdkafka asks for one, and access rights are
        // usually given by it.
        ("group.id", kafka.group_id.clone()),
        ("enable.auto.commit", "false".to_owned()),
        ("enable.auto.offset.store", "false".to_owned()),
        ("auto.offset.reset", "earliest".to_owned()),
        ("allow.auto.create.topics", "false".to_owned()),
        ("fetch.wait.max.ms", "100".to_owned()),
        ("fetch.queue.backoff.ms", "5".to_owned()),
        ("queued.max.messages.kbytes", "8192".to_owned()),
    ];
    let reader = Reader::new(kafka, &own)?;
    let asking: BaseConsumer<Quiet> =
        settings::client_config(kafka, &own).create_with_context(Quiet)?;
    let topic = kafka.feedback_topic();
    let age = i64::try_from(gateway.feedback_window.as_millis()).unwrap_or(i64::MAX);
    let since = now_ms().saturating_sub(age);
    let asked = tokio::task::spawn_blocking(move || ends(&asking, &topic, (since, next))).await;
    let (first, end) = asked.unwrap_or(Err(KafkaError::Canceled))?;
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(&kafka.feedback_topic(), PARTITION, Offset::Offset(first))?;
    reader.consumer().assign(&from)?;
    Ok((reader, first, end))
}

/// Where to begin, and the end: at `next`, if that is within the topic, else with what is not older
/// than `since_ms`. Blocks.
fn ends(
    consumer: &BaseConsumer<Quiet>,
    topic: &str,
    (since_ms, next): (i64, i64),
) -> Result<(i64, i64), KafkaError> {
    let patience = settings::REQUEST_TIMEOUT;
    let (low, high) = consumer.fetch_watermarks(topic, PARTITION, patience)?;
    if 0 < next && (low..=high).contains(&next) {
        return Ok((next, high));
    }
    let mut times = TopicPartitionList::new();
    times.add_partition_offset(topic, PARTITION, Offset::Offset(since_ms))?;
    let found = consumer.offsets_for_times(times, patience)?;
    let first = match found.find_partition(topic, PARTITION).map(|it| it.offset()) {
        Some(Offset::Offset(first)) => first.clamp(low, high),
        // Nothing is so young.
        _ => high,
    };
    Ok((first, high))
}

/// Reads until `shutdown`; outages are waited out. `ready` hears true once what was there at the
/// beginning is read, and false while nothing can be read.
pub async fn run_backplane(
    backplane: Arc<Backplane>,
    (kafka, gateway): (KafkaConfig, GatewayConfig),
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), BackplaneError> {
    let mut pause = Duration::ZERO;
    loop {
        let session = async {
            tokio::time::sleep(pause).await;
            let next = backplane.look(Window::next);
            let (reader, first, end) = open(&kafka, &gateway, next).await?;
            backplane.begin(first);
            read(&backplane, &reader, end, &ready).await
        };
        let ended = tokio::select! {
            biased;

            // 1. The end.
            () = shutdown.cancelled() => {
                backplane.close();
                return Ok(());
            }
            // 2. An outage, or the topic was made anew.
            ended = session => ended,
        };
        ready.send_replace(false);
        match ended {
            Err(error) if !error.is_transient() => return Err(error),
            Err(error) => {
                let reason = crate::causes::with_causes(&error);
                tracing::warn!(reason, "the backplane is not there; trying again");
            }
            Ok(()) => {}
        }
        pause = TRIM_EVERY;
    }
}

/// Reads until the position is gone (Ok: begin anew).
async fn read(
    backplane: &Backplane,
    reader: &Reader,
    end: i64,
    ready: &watch::Sender<bool>,
) -> Result<(), BackplaneError> {
    let mut trims = tokio::time::interval(TRIM_EVERY);
    let mut said: Option<tokio::time::Instant> = None;
    ready.send_replace(*backplane.reached.borrow() >= end);
    loop {
        tokio::select! {
            biased;

            // 1. What is too old goes, also on a busy topic.
            _ = trims.tick() => backplane.trim(),

            // 2. What is said.
            received = reader.recv() => match received {
                Ok(message) => {
                    take_in(backplane, &message);
                    if !*ready.borrow() && *backplane.reached.borrow() >= end {
                        ready.send_replace(true);
                    }
                }
                Err(KafkaError::MessageConsumption(
                    RDKafkaErrorCode::OffsetOutOfRange
                    | RDKafkaErrorCode::AutoOffsetReset
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
                    | RDKafkaErrorCode::UnknownPartition,
                )) => return Ok(()),
                Err(error) if !settings::is_transient(&error) => return Err(error.into()),
                // librdkafka connects anew by itself, and says the same a dozen times a second.
                Err(error) if said.is_none_or(|it| it.elapsed() > SAID_EVERY) => {
                    said = Some(tokio::time::Instant::now());
                    tracing::warn!(%error, "the backplane does not answer");
                }
                Err(_) => {}
            },
        }
    }
}

fn take_in(backplane: &Backplane, message: &BorrowedMessage<'_>) {
    let at_ms = message.timestamp().to_millis().unwrap_or_else(now_ms);
    backplane.take_in(message.offset(), at_ms, message.payload().unwrap_or_default());
}
