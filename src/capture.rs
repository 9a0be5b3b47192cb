//! Capture: Postgres' WAL -> Kafka, session after session.
//!
//! A session is one walsender stream and the producing stage behind it; when either ends, both do,
//! and the next session resumes from the progress record. The producer of plain records alone lives
//! on, which keeps the order of what is in flight (`kafka::delivery`).
//!
//! How a session starts is the order that its safety rests on: the slot is *ours* before the
//! progress record is read for good, so that nobody else moves it any more; a predecessor that did
//! not stop cleanly is waited out before the first record is produced (A14), or fenced, if it used
//! transactions, before the record is read; and our own record, not clean, is durable before that
//! too. Postgres is told to begin at the record, and sends nothing that was published before it.
//!
//! A predecessor of this very machine that is known to be dead is waited out all the same: its last
//! requests live on without it. The kernel repeats what was not delivered for some minutes after
//! a network's outage, and a broker works on what it has received, up to five requests, each held
//! up until the one before is on all replicas. Nobody but the broker knows when that is over, and
//! only a transactional id makes it refuse them: `delivery = "exactly-once"` takes over at once.
//!
//! **Invariant:** nothing is produced before [`slot::decide`] has allowed it.

mod copies;
pub mod declared;
mod error;
mod hops;
mod partitions;
mod prepare;
mod slot_watch;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub use error::CaptureError;
pub use prepare::{PrepareError, prepare_capture, wanted_topics};

use crate::causes::with_causes;
use crate::config::Config;
use crate::health::Health;
use crate::kafka::copy_record::CopyRecord;
use crate::kafka::delivery::{self, LogProducer, ProduceError, now_us};
use crate::kafka::envelope::SourceContext;
use crate::kafka::merge::{Merge, WORDS_MAX};
use crate::kafka::producer::{ProducerSession, run_producer};
use crate::kafka::progress_record::{self, Committed, ProgressReadError, ProgressRecord};
use crate::kafka::topics::WantedTopic;
use crate::lsn::Lsn;
use crate::metrics::Metrics;
use crate::postgres::cleanup::run_cleanup;
use crate::postgres::client::{self, Client};
use crate::postgres::connection::{
    ConnectionError, IdentifySystem, ReplicationConnection, ReplicationStream,
};
use crate::postgres::publication;
use crate::postgres::query_error::QueryError;
use crate::postgres::slot::{self, Server, SlotError};
use crate::postgres::source::{BATCHES_MAX, Shapes, Source, SourceError, run_source};
use crate::postgres::walsender::StandbyStatusUpdate;

/// First pause after a failed session; doubled for each further one.
const BACKOFF_MIN: Duration = Duration::from_millis(200);

/// Longest pause: what an operator would call "at once" after a long outage.
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// How often a slot that another process holds is looked at again.
const SLOT_POLL: Duration = Duration::from_secs(1);

/// How often the server gets a sign of life while a predecessor is waited out.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Added to waits for deliveries: librdkafka looks for timed-out records once a second.
const DELIVERY_SLACK: Duration = Duration::from_secs(2);

/// Runs sessions until `shutdown`, which drains; an outage is waited out with backoff, for ever.
///
/// What a person has to change ends it at the start, when that person is looking. Once it has been
/// in order it waits, loudly: then the other roles are worth more than an exit code, and it goes
/// on by itself when mended.
///
/// # Errors
/// What a person has to change.
pub async fn run_capture(
    config: Arc<Config>,
    metrics: Metrics,
    health: Health,
    shutdown: CancellationToken,
) -> Result<(), CaptureError> {
    let make = || LogProducer::of_slot(&config.kafka, &config.postgres.slot_name, &metrics);
    let mut producer = Arc::new(make()?);
    let mut spent = false;
    // Beside the sessions: WAL grows most while none can start.
    let mut watching = JoinSet::new();
    watching.spawn(slot_watch::run_slot_watch(config.postgres.clone(), metrics.clone()));
    let mut telling = JoinSet::new();
    telling.spawn(hops::run_hops(Arc::clone(&config), metrics.clone(), shutdown.clone()));
    let mut backoff = BACKOFF_MIN;
    let mut settled = false;
    while !shutdown.is_cancelled() {
        if spent || producer.is_fatal() {
            delivery::dismiss(std::mem::replace(&mut producer, Arc::new(make()?)));
        }
        // Another daemon may take over between two sessions.
        spent = producer.transactions().is_some();
        let records_before = metrics.capture_received_bytes_total.get();
        let ended = run_session(&config, (&metrics, &health), &shutdown, &producer).await;
        settled |= metrics.capture_streaming.get() + metrics.capture_standby.get() > 0;
        metrics.capture_streaming.set(0);
        metrics.capture_standby.set(0);
        let error = match ended.map_err(|it| it.or_unpublished(&config.postgres)) {
            Ok(()) => continue,
            Err(error) if error.is_transient() || (settled && error.is_curable()) => error,
            Err(error) => {
                health.waits("capture", with_causes(&error));
                return Err(error);
            }
        };
        let received = records_before < metrics.capture_received_bytes_total.get();
        // What a person has to mend fails each time at the same place of the stream.
        if received && error.is_transient() {
            backoff = BACKOFF_MIN;
        }
        metrics.stage_restarts_total.with_label_values(&["capture"]).inc();
        let cause = with_causes(&error);
        metrics.capture_refused.set(i64::from(!error.is_transient()));
        health.waits("capture", cause.as_str());
        if error.is_transient() {
            tracing::warn!(error = cause, retry_after = ?backoff, "capture session ended");
        } else {
            tracing::error!(error = cause, retry_after = ?backoff, "capture waits for a person");
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sleep(backoff) => {}
        }
        backoff = BACKOFF_MAX.min(backoff * 2);
    }
    // It ends by the same shutdown, with a word of goodbye.
    while telling.join_next().await.is_some() {}
    Ok(())
}

/// One session, from connecting to the end of the stream. Ok after `shutdown`, with everything
/// that was received durable, confirmed, and a clean-stop record.
///
/// # Errors
/// See [`CaptureError`].
pub async fn run_session(
    config: &Config,
    (metrics, health): (&Metrics, &Health),
    shutdown: &CancellationToken,
    producer: &Arc<LogProducer>,
) -> Result<(), CaptureError> {
    metrics.capture_sessions_total.inc();
    // Records of our own last session: what they become must be known before progress is read.
    producer.quiet(config.kafka.delivery_timeout + DELIVERY_SLACK).await?;
    let opened = open(config, (metrics, health), (shutdown, producer)).await?;
    let Some(mut opened) = opened else { return Ok(()) };
    // A record of another producer may still be on its way to Kafka, also of another of this
    // process: only our own follow in order. One with transactions is fenced by now.
    let unclean = !opened.record.clean && !opened.record.exactly_once;
    if unclean && opened.record.run_id != producer.run_id() {
        // A batch may have waited for one delivery timeout before its records got another.
        let wait = 2 * config.kafka.delivery_timeout + config.kafka.socket_timeout;
        let resume = opened.record.lsn;
        let seconds = wait.as_secs_f64();
        let reason = format!("what the last writer sent may land for {seconds} s still");
        health.waits("capture", reason);
        tracing::info!(
            seconds,
            "the last writer did not stop cleanly: waiting until its records landed"
        );
        if kept_alive(&mut opened.stream, resume, sleep(wait), shutdown).await?.is_none() {
            opened.stream.stop().await?;
            return Ok(());
        }
    }
    metrics.capture_streaming.set(1);
    metrics.capture_refused.set(0);
    health.ready("capture");
    tracing::info!(slot = config.postgres.slot_name, from = %opened.record.lsn, "streaming");
    run_stages((config, metrics, health), shutdown, producer, opened).await
}

/// What a session needs to start.
struct Opened {
    stream: ReplicationStream,
    shapes: Shapes,
    xid_near: u64,
    system: IdentifySystem,
    record: ProgressRecord,
    /// By table.
    copies: BTreeMap<String, CopyRecord>,
}

/// Gets the slot, waiting while another holds it. None: shutdown came first.
async fn open(
    config: &Config,
    (metrics, health): (&Metrics, &Health),
    (shutdown, producer): (&CancellationToken, &Arc<LogProducer>),
) -> Result<Option<Opened>, CaptureError> {
    let name = &config.postgres.slot_name;
    let mut told = None;
    loop {
        let client = client::connect(&config.postgres.url, "onelog capture").await?;
        publication::verify(&client, &config.postgres.publication_name).await?;
        declared::verify(config, &client).await?;
        let state = slot::inspect(&client, name).await?;
        let database = database(&client).await?;
        if let Some(pid) = state.as_ref().and_then(|it| it.active_pid) {
            if told != Some(pid) {
                tracing::info!(slot = name, pid, "waiting for slot, held by another process");
                health.waits("capture", format!("standby: slot {name} is held by pid {pid}"));
                metrics.capture_standby.set(1);
                metrics.capture_refused.set(0);
                told = Some(pid);
            }
        } else {
            let mut connection = ReplicationConnection::connect(&config.postgres.url).await?;
            // The record first: it may move on, and must not seem to be ahead of the server.
            let (record, settled) = read_record(config).await?;
            let server = Server::of(&mut connection, record.as_ref()).await?;
            let decided = slot::decide((name, &database), state.as_ref(), record.as_ref(), &server);
            match decided {
                // The newest record may be hidden by a transaction that nobody ends before we do.
                Err(SlotError::SlotPastResumePoint { .. }) if !settled => {}
                decided => drop(decided?),
            }
            let system = server.system;
            if let Some(fork) = server.fork {
                let timeline = system.timeline;
                tracing::warn!(timeline, %fork, "a standby was promoted; nothing published is lost");
            }
            match start(config, connection, record.as_ref().map_or(Lsn(0), |it| it.lsn)).await {
                Ok(mut stream) => {
                    metrics.capture_standby.set(0);
                    let resume = record.as_ref().map_or(Lsn(0), |it| it.lsn);
                    let shut_out = shut_out(config, producer, (record.as_ref(), settled));
                    match kept_alive(&mut stream, resume, shut_out, shutdown).await? {
                        Some(fenced) => fenced?,
                        None => return Ok(None),
                    }
                    return verified(config, client, stream, (system, record)).await.map(Some);
                }
                // Someone was faster: it holds the slot now.
                Err(ConnectionError::Server(error)) if error.code == "55006" => {}
                Err(error) => return Err(error.into()),
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = sleep(SLOT_POLL) => {}
        }
    }
}

async fn start(
    config: &Config,
    connection: ReplicationConnection,
    from: Lsn,
) -> Result<ReplicationStream, ConnectionError> {
    // The name is an identifier in a list of them.
    let publication = config.postgres.publication_name.replace('"', "\"\"");
    let publications = format!("\"{publication}\"");
    let options = [
        ("proto_version", "1"),
        ("publication_names", publications.as_str()),
        // What `pg_logical_emit_message` writes: the outbox without a table, and our own marks.
        ("messages", "true"),
    ];
    connection.start_replication(&config.postgres.slot_name, from, &options).await
}

/// The slot is ours now, and so is its transactional id, if one is or may be in use: what a
/// predecessor has left open is given up, and nothing more of it lands.
async fn shut_out(
    config: &Config,
    producer: &Arc<LogProducer>,
    (record, settled): (Option<&ProgressRecord>, bool),
) -> Result<(), ProduceError> {
    let unclean = record.is_some_and(|it| it.exactly_once && !it.clean);
    if producer.transactions().is_some() {
        producer.take_over().await
    } else if unclean || !settled {
        delivery::fence(&config.kafka, &config.postgres.slot_name).await
    } else {
        Ok(())
    }
}

/// The slot is ours now: what we decided by must still be so.
async fn verified(
    config: &Config,
    client: Client,
    stream: ReplicationStream,
    (system, record): (IdentifySystem, Option<ProgressRecord>),
) -> Result<Opened, CaptureError> {
    let slot = &config.postgres.slot_name;
    let Some(record) = record.filter(|it| it.system_id == system.system_id) else {
        return Err(SlotError::NoProgressRecord { slot: slot.clone() }.into());
    };
    let Committed { mut records, settled } = progress_record::read_committed(&config.kafka).await?;
    if !settled {
        return Err(ProgressReadError::Unsettled { topic: config.kafka.progress_topic() }.into());
    }
    if records.slots.remove(slot).as_ref() != Some(&record) {
        return Err(CaptureError::Raced { slot: slot.clone() });
    }
    let copies = records.copies.into_iter().filter(|((of, _), _)| of == slot);
    let copies = copies.map(|((_, table), it)| (table, it)).collect();
    let sql = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text";
    let row = client
        .query_one(sql, &[])
        .await
        .map_err(QueryError::while_doing("read the current transaction id"))?;
    let text: String = row.get(0);
    let xid_near = text.parse().map_err(|_| SlotError::Malformed(text))?;
    let publication = &config.postgres.publication_name;
    let shapes = Shapes::new(client, &config.kafka, publication).await?;
    Ok(Opened { stream, shapes, xid_near, system, record, copies })
}

/// The slot's record, and whether there is no newer one in an open transaction.
async fn read_record(config: &Config) -> Result<(Option<ProgressRecord>, bool), ProgressReadError> {
    let mut read = progress_record::read_committed(&config.kafka).await?;
    Ok((read.records.slots.remove(&config.postgres.slot_name), read.settled))
}

async fn database(client: &Client) -> Result<String, QueryError> {
    let row = client.query_one("SELECT pg_catalog.current_database()::text", &[]).await;
    row.map(|it| it.get(0)).map_err(QueryError::while_doing("read the database's name"))
}

/// Does `work` while the server gets a sign of life and nothing is read. None: shutdown came first.
async fn kept_alive<T>(
    stream: &mut ReplicationStream,
    resume: Lsn,
    work: impl Future<Output = T>,
    shutdown: &CancellationToken,
) -> Result<Option<T>, CaptureError> {
    let mut work = pin!(work);
    loop {
        let update = StandbyStatusUpdate {
            received: resume,
            flushed: resume,
            applied: resume,
            now_us: now_us(),
            reply_requested: false,
        };
        stream.send(&update).await.map_err(SourceError::from)?;
        tokio::select! {
            biased;
            // 1. The work, whose end is what we wait for.
            done = &mut work => return Ok(Some(done)),
            // 2. It may take half a minute, which a shutdown does not have.
            () = shutdown.cancelled() => return Ok(None),
            // 3. The next sign of life.
            () = sleep(STATUS_INTERVAL) => {}
        }
    }
}

/// The topics of the tables that are published now, and those that are declared by name. Rows of
/// an outbox go where each says.
fn expected_topics(config: &Config, shapes: &Shapes) -> Vec<WantedTopic> {
    let all = shapes.topics();
    let declared = WantedTopic::declared(&config.kafka, |it| all.contains(it));
    let topics = all.into_iter().filter(|it| !config.outbox.has_topic(&config.kafka, it));
    let of_table = |it: String| {
        let own = WantedTopic::of_table(&config.kafka, &it, true);
        std::iter::once(own).chain(WantedTopic::extracts_of(&config.kafka, &it, true))
    };
    topics.flat_map(of_table).chain(declared).collect()
}

/// What runs beside the stages, for as long as it is kept: it cleans outbox tables up, and has the
/// session drained where partitions ask for another one.
fn start_beside(config: &Config, metrics: &Metrics, drain: CancellationToken) -> JoinSet<()> {
    let mut beside = JoinSet::new();
    if config.outbox.is_cleaned_up() {
        let (config, metrics) = (config.clone(), metrics.clone());
        beside.spawn(async move { run_cleanup(&config, &metrics).await });
    }
    let postgres = config.postgres.clone();
    beside.spawn(async move {
        partitions::run_partition_watch(postgres).await;
        drain.cancel();
    });
    beside
}

/// What every envelope says of where it is from.
fn source_context(config: &Config, system: &IdentifySystem) -> SourceContext {
    SourceContext {
        name: config.kafka.topic_prefix.clone(),
        db: config.postgres.url.database.clone(),
        timeline: system.timeline,
        system_id: system.system_id,
    }
}

/// The stages, each as a task, so that decoding and encoding share two cores.
async fn run_stages(
    (config, metrics, health): (&Config, &Metrics, &Health),
    shutdown: &CancellationToken,
    producer: &Arc<LogProducer>,
    opened: Opened,
) -> Result<(), CaptureError> {
    let resume = opened.record.lsn;
    producer.resume(resume);
    // Drains this session: at a shutdown, or for another one.
    let drain = shutdown.child_token();
    let (output, input) = mpsc::channel(BATCHES_MAX);
    let (durable, confirmed) = watch::channel(resume);
    let (words, heard) = mpsc::channel(WORDS_MAX);
    // No other session has this name, of another process neither.
    let name = format!("{}-{}", producer.run_id(), metrics.capture_sessions_total.get());
    let session = ProducerSession {
        config: config.kafka.clone(),
        outbox: config.outbox.clone(),
        metrics: metrics.clone(),
        slot: config.postgres.slot_name.clone(),
        source: source_context(config, &opened.system),
        producer: Arc::clone(producer),
        copies: Merge::new(name.clone(), heard),
        made: health.desk().topics().clone(),
        resume,
        expected: expected_topics(config, &opened.shapes),
        shutdown: drain.clone(),
    };
    let copies = copies::Ground {
        config: config.clone(),
        system: opened.system,
        name,
        words,
        confirmed: confirmed.clone(),
        desk: health.desk().clone(),
        metrics: metrics.clone(),
        records: opened.copies,
    };
    let source = Source {
        stream: opened.stream,
        shapes: opened.shapes,
        xid_near: opened.xid_near,
        confirmed,
        // What is left of a delivery timeout is for what waits in the queue behind it.
        trust: config.kafka.delivery_timeout / 4,
        metrics: metrics.clone(),
    };
    // Dropped, and so ended, with the session.
    let _beside = start_beside(config, metrics, drain.clone());
    let mut stages: JoinSet<Result<(), CaptureError>> = JoinSet::new();
    stages.spawn(async { run_producer(session, input, durable).await.map_err(Into::into) });
    // Copies hold nothing up: they are over as soon as one of the other two is.
    let over = drain.child_token();
    stages.spawn(async { run_source(source, output, drain).await.map_err(Into::into) });
    let mut copying = JoinSet::new();
    copying.spawn(copies::run_copies(copies, over.clone()));
    let mut first = Ok(());
    while let Some(joined) = stages.join_next().await {
        over.cancel();
        let ended = joined.unwrap_or_else(|error| Err(CaptureError::Panicked(error)));
        // The first error is the cause; the other stage ends because of it.
        first = first.and(ended);
    }
    match copying.join_next().await {
        Some(Err(error)) => first.and(Err(CaptureError::Panicked(error))),
        Some(Ok(())) | None => first,
    }
}
