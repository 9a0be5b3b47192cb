//! `onelog prepare`, capture's half: publication, topics, slot and the first progress record.
//!
//! In this order: a slot decodes with the catalog of its time, so the publication must be there
//! before it; and the record says where the slot begins, so it comes last. Idempotent: what is
//! there and right is left alone, and what is there and wrong is refused as `run` would refuse it.
//!
//! **Invariant:** an existing slot is taken over without a matching record only when a person asks
//! (`adopt`), since changes may be missing then.

use std::collections::HashSet;

use crate::capture::declared::{self, DeclaredError};
use crate::capture::{DELIVERY_SLACK, database, read_record};
use crate::config::{Config, KafkaConfig};
use crate::kafka::delivery::{LogProducer, ProduceError, now_ms};
use crate::kafka::envelope::OutRecord;
use crate::kafka::producer::AHEAD_MAX;
use crate::kafka::progress_record::{self, ProgressReadError, ProgressRecord};
use crate::kafka::topics::{self, TopicAction, TopicError, WantedTopic};
use crate::lsn::Lsn;
use crate::metrics::Metrics;
use crate::postgres::client::{self, Client};
use crate::postgres::connection::{ConnectionError, IdentifySystem, ReplicationConnection};
use crate::postgres::publication::{self, PublicationError};
use crate::postgres::query_error::QueryError;
use crate::postgres::slot::{self, Server, SlotError, SlotState};

/// Why `prepare` stopped. What it said before was done.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("can't connect to Postgres")]
    Connection(#[from] ConnectionError),
    #[error("Postgres has wal_level = {found}; set wal_level = logical and restart it")]
    WalLevel { found: String },
    #[error("role \"{role}\" may not replicate; run: ALTER ROLE {quoted} REPLICATION")]
    NotAllowed { role: String, quoted: String },
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Publication(#[from] PublicationError),
    #[error(transparent)]
    Declared(#[from] DeclaredError),
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("slot \"{slot}\" is held by process {pid}; stop it, and run `onelog prepare` again")]
    SlotActive { slot: String, pid: i32 },
    #[error(transparent)]
    ProgressRead(#[from] ProgressReadError),
    #[error(transparent)]
    Produce(#[from] ProduceError),
}

impl PrepareError {
    /// Whether the same command may succeed later without a person's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connection(error) => error.is_transient(),
            Self::Query(error) => error.is_transient(),
            Self::Publication(error) => error.is_transient(),
            Self::Declared(error) => error.is_transient(),
            Self::Topic(error) => error.is_transient(),
            Self::Slot(error) => error.is_transient(),
            Self::ProgressRead(error) => error.is_transient(),
            Self::Produce(error) => error.is_transient(),
            Self::WalLevel { .. } | Self::NotAllowed { .. } | Self::SlotActive { .. } => false,
        }
    }
}

/// Makes everything that `run` needs, and says in `said`, a sentence each, what was done, or with
/// `dry_run` what would be; also before an error. With `adopt` a slot that does not match our record is taken as it is: changes may be
/// missing then, so the tables are to be copied again.
///
/// # Errors
/// See [`PrepareError`].
pub async fn prepare_capture(
    config: &Config,
    dry_run: bool,
    adopt: bool,
    said: &mut Vec<String>,
) -> Result<(), PrepareError> {
    let client = client::connect(&config.postgres.url, "onelog prepare").await?;
    check_server(&client).await?;
    let name = &config.postgres.publication_name;
    let statements =
        publication::ensure(&client, name, &config.published_tables(), dry_run).await?;
    if statements.is_empty() {
        said.push(format!("Publication {name} has all tables."));
    }
    let verb = if dry_run { "Would run" } else { "Ran" };
    said.extend(statements.iter().map(|it| format!("{verb}: {it}.")));

    if !dry_run {
        declared::verify(config, &client).await?;
    }
    let mut wanted = wanted_topics(config, &client).await?;
    if AHEAD_MAX < wanted.len() {
        let later = wanted.len() - AHEAD_MAX;
        wanted.truncate(AHEAD_MAX);
        said.push(format!("{later} more topics are made with the first change of their tables."));
    }
    for action in topics::ensure_topics(&config.kafka, &wanted, dry_run).await? {
        said.push(match action {
            TopicAction::Fine { topic } => format!("Topic {topic} is as it should be."),
            TopicAction::Created { topic } if dry_run => format!("Would create topic {topic}."),
            TopicAction::Created { topic } => format!("Created topic {topic}."),
            TopicAction::Drift { warning, .. } => format!("Warning: {warning}"),
        });
    }
    said.extend(prepare_slot(config, &client, (dry_run, adopt)).await?);
    Ok(())
}

async fn check_server(client: &Client) -> Result<(), PrepareError> {
    let sql = "SELECT pg_catalog.current_setting('wal_level'), current_user::text, \
               pg_catalog.quote_ident(current_user), r.rolsuper OR r.rolreplication \
               FROM pg_catalog.pg_roles r WHERE r.rolname = current_user";
    let row = client
        .query_one(sql, &[])
        .await
        .map_err(QueryError::while_doing("read wal_level and the role"))?;
    let found: String = row.get(0);
    if found != "logical" {
        return Err(PrepareError::WalLevel { found });
    }
    if row.get(3) {
        Ok(())
    } else {
        Err(PrepareError::NotAllowed { role: row.get(1), quoted: row.get(2) })
    }
}

/// Ours, one for each table with its leaves, and those that are declared by name. In a dry run the
/// publication may lack tables still; their topics are then not told.
///
/// # Errors
/// If the publication can't be read.
pub async fn wanted_topics(
    config: &Config,
    client: &Client,
) -> Result<Vec<WantedTopic>, PublicationError> {
    let kafka: &KafkaConfig = &config.kafka;
    let mut wanted: Vec<WantedTopic> = WantedTopic::of_the_daemon(kafka).into();
    let mut names = HashSet::new();
    let name = &config.postgres.publication_name;
    for table in publication::published_tables(client, name).await? {
        let topic = kafka.entity_topic(&table.root_namespace, &table.root_name);
        // Rows of an outbox go where each says.
        let is_outbox = config.outbox.has_topic(kafka, &topic);
        if !is_outbox && names.insert(topic.clone()) {
            let keyed = !table.key_columns().is_empty();
            wanted.push(WantedTopic::of_table(kafka, &topic, keyed));
            wanted.extend(WantedTopic::extracts_of(kafka, &topic, keyed));
        }
    }
    let declared = WantedTopic::declared(kafka, |it| wanted.iter().any(|known| known.name == it));
    wanted.extend(declared);
    Ok(wanted)
}

async fn prepare_slot(
    config: &Config,
    client: &Client,
    (dry_run, adopt): (bool, bool),
) -> Result<Vec<String>, PrepareError> {
    let name = &config.postgres.slot_name;
    let state = slot::inspect(client, name).await?;
    // The record before the server's position: a running daemon moves both on, and the record
    // must not seem to be ahead.
    let (record, settled) = read_record(config).await?;
    let mut connection = ReplicationConnection::connect(&config.postgres.url).await?;
    let server = Server::of(&mut connection, record.as_ref()).await?;
    let database = database(client).await?;
    // Neither is a first time. Anything else must match, unless a person says otherwise.
    if (state.is_some() || record.is_some()) && !adopt {
        let decided = slot::decide((name, &database), state.as_ref(), record.as_ref(), &server);
        if matches!(decided, Err(SlotError::SlotPastResumePoint { .. })) && !settled {
            let topic = config.kafka.progress_topic();
            return Err(ProgressReadError::Unsettled { topic }.into());
        }
        decided?;
        let mut said = vec![format!("Slot {name} is where its progress record says.")];
        if let Some(state) = state {
            said.extend(allow_failover(config, connection, (&state, dry_run)).await?);
        }
        return Ok(said);
    }
    let mut said = Vec::new();
    let state = drop_lost(config, client, (state, dry_run), &mut said).await?;
    let lsn = match &state {
        None if dry_run => {
            said.push(format!("Would create slot {name} and its progress record."));
            return Ok(said);
        }
        None => {
            let lsn = slot::create(client, name, config.postgres.slot_failover).await?;
            said.push(format!("Created slot {name} at {lsn}."));
            lsn
        }
        Some(state) => {
            let lsn = slot::check(name, &database, Some(state))?;
            if let Some(pid) = state.active_pid {
                return Err(PrepareError::SlotActive { slot: name.clone(), pid });
            }
            lsn
        }
    };
    if dry_run {
        said.push(format!("Would write the progress record of slot {name} at {lsn}."));
        return Ok(said);
    }
    // Who wrote last may still have records in flight.
    let clean = record.as_ref().is_none_or(|it| it.clean);
    let exactly_once = record.is_some_and(|it| it.exactly_once);
    write_record(config, &server.system, (lsn, clean, exactly_once)).await?;
    said.push(format!("Wrote the progress record of slot {name} at {lsn}."));
    Ok(said)
}

/// A slot that has lost WAL can't be read any more: the way on is a new one in its place.
async fn drop_lost(
    config: &Config,
    client: &Client,
    (state, dry_run): (Option<SlotState>, bool),
    said: &mut Vec<String>,
) -> Result<Option<SlotState>, PrepareError> {
    let name = &config.postgres.slot_name;
    let checked = slot::check(name, &config.postgres.url.database, state.as_ref());
    if !matches!(checked, Err(SlotError::WalLost { .. })) {
        return Ok(state);
    }
    if dry_run {
        said.push(format!("Would drop slot {name}, which has lost WAL."));
    } else {
        slot::drop_slot(client, name).await?;
        said.push(format!("Dropped slot {name}, which had lost WAL."));
    }
    Ok(None)
}

/// A slot of an older onelog, or of an older server, may be one that standbys do not copy.
async fn allow_failover(
    config: &Config,
    mut connection: ReplicationConnection,
    (state, dry_run): (&SlotState, bool),
) -> Result<Option<String>, PrepareError> {
    let name = &state.name;
    // None: the server knows no failover slots.
    if !config.postgres.slot_failover || state.failover != Some(false) {
        return Ok(None);
    }
    if dry_run {
        return Ok(Some(format!("Would let standbys copy slot {name}.")));
    }
    if let Some(pid) = state.active_pid {
        let held = format!(
            "Warning: standbys don't copy slot {name}, and process {pid} holds it; stop the daemon \
             and run `onelog prepare` again."
        );
        return Ok(Some(held));
    }
    let alter = format!("ALTER_REPLICATION_SLOT {name} (FAILOVER true)");
    connection.simple_query(&alter).await?;
    Ok(Some(format!("Standbys may copy slot {name} now.")))
}

async fn write_record(
    config: &Config,
    system: &IdentifySystem,
    (lsn, clean, exactly_once): (Lsn, bool, bool),
) -> Result<(), PrepareError> {
    let producer = LogProducer::new(&config.kafka, &Metrics::new())?;
    let record = ProgressRecord {
        system_id: system.system_id,
        timeline: system.timeline,
        lsn,
        clean,
        exactly_once,
        run_id: producer.run_id().to_owned(),
        at_ms: now_ms(),
    };
    let (topic, value) = (config.kafka.progress_topic(), record.to_json());
    let key = progress_record::slot_key(&config.postgres.slot_name);
    let out = OutRecord { topic: &topic, key: Some(&key), value: Some(&value), header: None };
    // The queue of a new producer has room.
    let sent = producer.send_progress(out, lsn)?;
    assert!(sent, "an empty queue takes one record");
    producer.quiet(config.kafka.delivery_timeout + DELIVERY_SLACK).await?;
    producer.standing()?;
    Ok(())
}
