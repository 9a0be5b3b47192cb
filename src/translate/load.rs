//! The mapping files become plans and indices: read the folder, have Postgres resolve the SQL, make
//! the indices, and see to the positions from which the log is read.
//!
//! The order at a lost position is what a crash cannot undo: first the index's mark is taken away,
//! then the position is committed. Whoever starts next finds that a sweep is owed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::causes::with_causes;
use crate::config::KafkaConfig;
use crate::config::topics::Format;
use crate::elasticsearch::client::ElasticError;
use crate::elasticsearch::index::AliasState;
use crate::elasticsearch::index::definition::alias_name;
use crate::elasticsearch::index::note::{IndexMeta, SweptTo};
use crate::elasticsearch::index::survey::{Survey, Wishes};
use crate::kafka::consumer::{Log, Partition};
use crate::kafka::positions::Positions;
use crate::kafka::topics::{self, WantedTopic};
use crate::mapping::catalog;
use crate::mapping::fingerprint::Fingerprint;
use crate::mapping::plan::{CollectionPlan, TableName};
use crate::mapping::resolve::{ResolveError, resolve};
use crate::mistake::{Mistake, Mistakes};
use crate::postgres::client;
use crate::postgres::publication;
use crate::translate::filled::{self, Filled};
use crate::translate::place::place;
use crate::translate::{Build, Context, Reaction, Tools, TranslateError};

/// What a load must know of the stage.
pub struct Request {
    pub(super) known: catalog::KnownFiles,
    /// Index -> its build.
    pub(super) active: BTreeMap<String, Arc<Build>>,
    pub(super) followed: BTreeSet<TableName>,
    pub(super) first: bool,
    pub(super) sweep_all: bool,
    /// What commands had asked for at the last load.
    pub(super) wishes: Wishes,
    /// The mistakes that were said.
    pub(super) told: BTreeSet<String>,
}

/// The mapping files as Postgres and Elasticsearch have agreed to them.
pub struct Loaded {
    pub(super) prepared: Vec<Prepared>,
    /// Collections that keep what they have: their files are broken.
    pub(super) frozen: BTreeSet<String>,
    pub(super) known: catalog::KnownFiles,
    /// Indices whose builds are owed a sweep, besides the prepared ones.
    pub(super) owed: BTreeSet<String>,
    /// Published tables whose topic is not there yet: capture makes it when it starts.
    pub(super) missing: BTreeSet<TableName>,
    /// Positions as found: every index that lacks changes before them has been told so.
    pub(super) seen_to: Vec<(Partition, i64)>,
    /// What commands had asked for when the load began.
    pub(super) wishes: Wishes,
    /// Each mistake, as it was said.
    pub(super) told: BTreeSet<String>,
    /// A collection is frozen for what Postgres says of it, which may be mended there.
    pub(super) waits: bool,
}

pub(super) struct Prepared {
    pub(super) plan: CollectionPlan,
    pub(super) index: String,
    pub(super) alias: String,
    pub(super) serving: bool,
    pub(super) built: bool,
    /// How far an unfinished sweep had come.
    pub(super) swept: Option<SweptTo>,
    pub(super) interval: Option<Duration>,
    /// Some changes reach its documents by sweeps only.
    pub(super) polls: bool,
    pub(super) known: Known,
}

/// How a prepared plan stands to the builds that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// No build fills the index.
    New,
    /// A build does, and follows changes as this plan would.
    Same,
    /// A build does, but what it was resolved against is not what there is now: this plan takes
    /// its place, on the same index.
    Replaces,
}

/// Reads the mapping files, has Postgres resolve them, and sees to their indices and positions.
pub async fn load(
    context: &Context,
    tools: &Tools,
    log: &Log,
    request: Request,
) -> Result<Loaded, TranslateError> {
    // First, so that what a command writes meanwhile is a difference at the next look.
    let survey = tools.elastic.survey(&context.config.elasticsearch).await?;
    let Resolved { plans, mut frozen, known, told, waits } =
        resolve_all(context, tools, &request).await?;
    let mut prepared = Vec::with_capacity(plans.len());
    for plan in plans {
        let name = plan.name.clone();
        match prepare(context, tools, plan, (&request, &survey)).await {
            Ok(it) => prepared.push(it),
            // The collection's own fault (a setting that Elasticsearch refuses) stops no other.
            Err(error) if error.reaction() == Reaction::Halt => {
                let reason = with_causes(&error);
                tracing::error!(collection = name, reason, "the collection can't be built");
                frozen.insert(name);
            }
            Err(error) => return Err(error),
        }
    }
    unmark_the_others(tools, &survey, (&prepared, &frozen), &request).await?;
    let settlement = settle_positions(context, tools, log, (&mut prepared, &request)).await?;
    let Settlement { mut owed, missing, seen_to } = settlement;
    let wishes = survey.wishes();
    owed.extend(asked_again(&wishes, &request));
    Ok(Loaded { prepared, frozen, known, owed, missing, seen_to, wishes, told, waits })
}

/// Indices that we fill and that a command wants swept since the last load. It has told them that a
/// sweep is owed.
fn asked_again(wishes: &Wishes, request: &Request) -> Vec<String> {
    let count = |of: &Wishes, index: &str| of.iter().find(|it| it.0 == index).map_or(0, |it| it.2);
    let grown = |it: &&String| count(&request.wishes, it) < count(wishes, it);
    request.active.keys().filter(grown).cloned().collect()
}

/// Takes the mark away from every index that nobody fills from now on: its mapping is broken or
/// gone, so that it will miss changes, and is owed a sweep should it come back, also after a
/// restart.
async fn unmark_the_others(
    tools: &Tools,
    survey: &Survey,
    (prepared, frozen): (&[Prepared], &BTreeSet<String>),
    request: &Request,
) -> Result<(), TranslateError> {
    let filled: BTreeSet<&str> = prepared.iter().map(|it| it.index.as_str()).collect();
    for (index, it) in &survey.indices {
        let serves_on = frozen.contains(&it.meta.collection) && request.active.contains_key(index);
        if it.meta.is_relied_on() && !filled.contains(index.as_str()) && !serves_on {
            match tools.elastic.mark_built(index, false).await {
                // Deleted meanwhile: nothing is left that could be stale.
                Ok(()) | Err(ElasticError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

struct Resolved {
    plans: Vec<CollectionPlan>,
    frozen: BTreeSet<String>,
    known: catalog::KnownFiles,
    told: BTreeSet<String>,
    waits: bool,
}

async fn resolve_all(
    context: &Context,
    tools: &Tools,
    request: &Request,
) -> Result<Resolved, TranslateError> {
    let config = &context.config;
    let folder = config.translate.mappings.clone();
    let files = catalog::load_folder(&folder, &request.known)
        .map_err(|source| TranslateError::Folder { folder, source })?;
    let mut mistakes: Vec<Mistake> = files.mistakes;
    let mut frozen = files.frozen;
    let of_files = frozen.len();
    let mut plans = Vec::new();
    if !files.collections.is_empty() {
        let client = client::connect(&config.postgres.url, "onelog mappings").await?;
        for collection in &files.collections {
            if frozen.contains(&collection.name) {
                continue;
            }
            match resolve(&client, &config.postgres.publication_name, collection).await {
                Ok(plan) => match unreadable(&config.kafka, &plan) {
                    None => plans.push(plan),
                    Some(mistake) => {
                        mistakes.push(mistake);
                        frozen.insert(collection.name.clone());
                    }
                },
                Err(ResolveError::Mistakes(Mistakes(more))) => {
                    mistakes.extend(more);
                    frozen.insert(collection.name.clone());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    let told: BTreeSet<String> = mistakes.iter().map(ToString::to_string).collect();
    for mistake in mistakes.iter().filter(|it| !request.told.contains(&it.to_string())) {
        tracing::error!("{mistake}");
    }
    let result = if mistakes.is_empty() { "ok" } else { "mistakes" };
    tools.metrics.mapping_reloads_total.with_label_values(&[result]).inc();
    if request.first && plans.is_empty() && !mistakes.is_empty() {
        return Err(TranslateError::NoMapping(Mistakes(mistakes)));
    }
    let waits = of_files < frozen.len();
    Ok(Resolved { plans, frozen, known: files.known, told, waits })
}

/// The mapping reads a table whose own topic is not the envelope that translators read.
pub fn unreadable(config: &KafkaConfig, plan: &CollectionPlan) -> Option<Mistake> {
    let is_other = |it: &TableName| {
        let topic = config.entity_topic(&it.namespace, &it.name);
        config.table_declaration(&topic).is_some_and(|it| it.format != Format::Json)
    };
    let entry = plan.entries.first()?;
    let table = published(plan).into_iter().find(is_other)?;
    let place = entry.entry.sql_place.clone();
    let message = format!(
        "collection {} reads table {table}, whose topic is not written as \"json\", which is what \
         mappings read; in [[topics]] leave out its format, and declare another topic with \
         table = \"{table}\" and the format",
        plan.name
    );
    Some(Mistake { path: place.path, line: place.line, column: place.column, message })
}

/// The index's name says which definition and which database cluster it is of.
pub fn index_hash(plan: &CollectionPlan, system_id: u64) -> String {
    let mut hasher = Sha256::new();
    hasher.update(plan.hash.as_bytes());
    hasher.update(system_id.to_be_bytes());
    hasher.finalize().iter().take(6).map(|it| format!("{it:02x}")).collect()
}

async fn prepare(
    context: &Context,
    tools: &Tools,
    plan: CollectionPlan,
    (request, survey): (&Request, &Survey),
) -> Result<Prepared, TranslateError> {
    let config = &context.config;
    let (plan, definition) = place(context, tools, survey, plan).await?;
    let alias = alias_name(&config.elasticsearch, &plan.name);
    let index = definition.index.clone();
    let translate = &config.translate;
    let settings = &plan.settings;
    let weak =
        plan.entries.iter().flat_map(|it| &it.tables).any(|it| !it.identity_lacks.is_empty());
    let polls = weak || !plan.poll_reasons().is_empty();
    let poll = settings.poll_interval.unwrap_or(translate.poll_interval);
    let audit = settings.audit_interval.unwrap_or(translate.audit_interval);
    let wanted = [polls.then_some(poll), Some(audit)];
    let interval = wanted.into_iter().flatten().filter(|it| !it.is_zero()).min();
    let created = tools.elastic.create(&definition).await?;
    let surveyed = survey.indices.get(&index);
    if !created && surveyed.is_some_and(|it| !it.is_writable_by_name(&index)) {
        tools.elastic.add_write_alias(&index).await?;
    }
    let mut note = tools.elastic.meta(&index).await?;
    if note.as_ref().is_some_and(|it| it.retired_ms.is_some()) {
        tools.elastic.amend(&index, |it| it.retired_ms = None).await?;
    }
    let (known, owed) = match request.active.get(&index) {
        Some(build) => {
            let replaces = is_outdated(&build.plan, &plan);
            (if replaces { Known::Replaces } else { Known::Same }, replaces)
        }
        // One that comes back after the first load was not live until now, so that what others
        // read from the log meanwhile (its file was broken, or away) is missing.
        None if request.sweep_all || !request.first => (Known::New, true),
        None => (Known::New, note.as_ref().is_some_and(|it| is_left_behind(it, &plan))),
    };
    // Also if there is no mark: another translator's sweep may be about to set it.
    if owed {
        tools.elastic.mark_built(&index, false).await?;
        note = None;
    }
    let built = note.as_ref().is_some_and(|it| it.built);
    let swept = note.and_then(|it| it.swept);
    let serving = match tools.elastic.alias_state(&alias).await? {
        AliasState::On(indices) => indices.contains(&index),
        AliasState::Missing => false,
        AliasState::IsAnIndex => return Err(TranslateError::AliasTaken { alias }),
    };
    Ok(Prepared { plan, index, alias, serving, built, swept, interval, polls, known })
}

/// Whether an index was swept when what the SQL reads was something else than now: it changed
/// while nobody looked.
fn is_left_behind(meta: &IndexMeta, plan: &CollectionPlan) -> bool {
    let changes = match Fingerprint::from_text(&meta.fingerprint) {
        Some(swept) => swept.differences(&plan.fingerprint),
        None => vec!["last swept by an older onelog".to_owned()],
    };
    if meta.is_relied_on() {
        say_changes(plan, &changes);
    }
    !changes.is_empty()
}

/// Whether a build's plan is not what there is now, so that changes of rows may have been missed.
fn is_outdated(old: &CollectionPlan, new: &CollectionPlan) -> bool {
    let changes = old.fingerprint.differences(&new.fingerprint);
    say_changes(new, &changes);
    !changes.is_empty() || !old.follows_as(new)
}

fn say_changes(plan: &CollectionPlan, changes: &[String]) {
    if !changes.is_empty() {
        let collection = plan.name.as_str();
        tracing::info!(collection, changes = changes.join(", "), "what the sql reads has changed");
    }
}

/// What became of the positions.
struct Settlement {
    /// Indices of builds that miss changes.
    owed: BTreeSet<String>,
    missing: BTreeSet<TableName>,
    /// Where reading goes on, every index that lacks changes before having been told so.
    seen_to: Vec<(Partition, i64)>,
}

/// Sees to it that reading can start: where a position is lost, or was committed by a translator
/// that does not fill an index of ours, first the marks of all indices concerned are taken away, so
/// that not even a crash makes anyone forget the sweep; then lost positions are committed as the
/// topics' ends. The indices are told also if they have no mark: another translator's sweep may be
/// about to set it.
async fn settle_positions(
    context: &Context,
    tools: &Tools,
    log: &Log,
    (prepared, request): (&mut [Prepared], &Request),
) -> Result<Settlement, TranslateError> {
    let config = &context.config.kafka;
    let mut topics: BTreeMap<String, TableName> = BTreeMap::new();
    for table in prepared.iter().flat_map(|it| published(&it.plan)) {
        if !request.followed.contains(&table) {
            topics.insert(config.entity_topic(&table.namespace, &table.name), table);
        }
    }
    let names = topics.keys().cloned().collect();
    let mut found = log.lost_positions(names, config.min_compaction_lag).await?;
    if !found.missing.is_empty() {
        make_topics(context, &found.missing).await?;
        let made = log.lost_positions(found.missing, config.min_compaction_lag).await?;
        found.lost.extend(made.lost);
        found.settled.extend(made.settled);
        found.missing = made.missing;
    }
    let Positions { lost, settled, missing } = found;
    let has_gap = |index: &str, plan: &CollectionPlan| {
        let read = topics_of(config, plan);
        lost.iter().any(|(it, _)| read.contains(&it.topic))
            || settled
                .iter()
                .any(|it| read.contains(&it.partition.topic) && !filled::has(&it.note, index))
    };
    let mut owed = BTreeSet::new();
    let mut filled = Filled::default();
    for it in prepared.iter_mut() {
        filled.add(&it.index, topics_of(config, &it.plan));
        if has_gap(&it.index, &it.plan) {
            tools.elastic.mark_built(&it.index, false).await?;
            (it.built, it.swept) = (false, None);
            owed.insert(it.index.clone());
        }
    }
    for (index, build) in &request.active {
        filled.add(index, topics_of(config, &build.plan));
        if has_gap(index, &build.plan) && !owed.contains(index) {
            tools.elastic.mark_built(index, false).await?;
            owed.insert(index.clone());
        }
    }
    for (partition, end) in &lost {
        tracing::info!(
            topic = partition.topic,
            partition = partition.number,
            end,
            "reading from its end"
        );
    }
    let seen_to = settled.into_iter().map(|it| (it.partition, it.offset));
    let seen_to = seen_to.chain(lost.iter().cloned()).collect();
    log.commit_lost(config, lost, filled.notes()).await?;
    let missing = missing.iter().filter_map(|it| topics.get(it).cloned()).collect();
    Ok(Settlement { owed, missing, seen_to })
}

/// The topics that the plan's changes come on.
pub(super) fn topics_of(config: &KafkaConfig, plan: &CollectionPlan) -> BTreeSet<String> {
    let tables = published(plan);
    tables.iter().map(|it| config.entity_topic(&it.namespace, &it.name)).collect()
}

/// Makes the topics of tables of which nothing was published yet: one that was renamed, or has
/// just been added to the publication. Capture makes them with the first change, and a consumer
/// would not hear of that for minutes.
async fn make_topics(context: &Context, missing: &BTreeSet<String>) -> Result<(), TranslateError> {
    let (kafka, postgres) = (&context.config.kafka, &context.config.postgres);
    let client = client::connect(&postgres.url, "onelog mappings").await?;
    let mut wanted = BTreeMap::new();
    for table in publication::published_tables(&client, &postgres.publication_name).await? {
        let topic = kafka.entity_topic(&table.root_namespace, &table.root_name);
        if missing.contains(&topic) {
            let keyed = !table.key_columns().is_empty();
            wanted.insert(topic.clone(), WantedTopic::of_table(kafka, &topic, keyed));
        }
    }
    let wanted: Vec<_> = wanted.into_values().collect();
    Ok(topics::see_to((kafka, context.health.desk().topics()), &wanted).await?)
}

/// The tables that name the topics which the plan's changes come on.
pub(super) fn published(plan: &CollectionPlan) -> BTreeSet<TableName> {
    plan.sources().map(|it| it.topic.clone()).collect()
}
