//! `onelog rollback`, `rebuild` and `drop`: what a person decides about a collection's indices.
//!
//! A wish is written into the note of an index, where every daemon reads it within seconds, or at
//! its next start. So these commands need no daemon, and none needs to be told.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::Duration;

use crate::cli::CommandError;
use crate::config::{Config, ElasticsearchConfig};
use crate::elasticsearch::client::{ElasticError, Elasticsearch};
use crate::elasticsearch::index::definition::alias_name;
use crate::elasticsearch::index::survey::{Survey, Surveyed};
use crate::mapping::catalog;
use crate::translate::publish::now_ms;

/// What is there, and the way to change it.
struct Ground<'a> {
    elastic: Elasticsearch,
    config: &'a ElasticsearchConfig,
    survey: Survey,
}

fn failed(error: ElasticError) -> CommandError {
    CommandError::failed("Elasticsearch can't be asked, or refuses", error)
}

async fn ground(config: &Config) -> Result<Ground<'_>, CommandError> {
    let config = &config.elasticsearch;
    let elastic = Elasticsearch::new(config).map_err(failed)?;
    elastic.info().await.map_err(failed)?;
    let survey = elastic.survey(config).await.map_err(failed)?;
    Ok(Ground { elastic, config, survey })
}

impl Ground<'_> {
    /// The collection's indices that its alias leads to; a refusal if there are none of ours.
    fn serving(&self, collection: &str) -> Result<Option<(&String, &Surveyed)>, String> {
        let alias = alias_name(self.config, collection);
        let serving = self.survey.of(collection).find(|(_, it)| it.aliases.contains(&alias));
        if serving.is_none() && self.survey.of(collection).next().is_none() {
            let names: Vec<&str> = self.survey.collections().into_iter().collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(format!(
                "there is no index of collection {collection}; there are: {there}"
            ));
        }
        Ok(serving)
    }
}

/// How long a wish is watched: longer than a daemon that reads a note, changes it and writes it
/// back takes, which may undo what came between.
const WATCHED: u32 = 4;
const WATCH_PAUSE: Duration = Duration::from_millis(500);
/// A wish that is undone so often is undone by more than a coincidence.
const TRIES_MAX: u32 = 5;

impl Ground<'_> {
    /// Whether the wish still stands after a while.
    async fn stands(&self, wish: impl Fn(&Survey) -> bool) -> Result<bool, CommandError> {
        let mut pause = tokio::time::interval(WATCH_PAUSE);
        for _ in 0..WATCHED {
            pause.tick().await;
            if !wish(&self.elastic.survey(self.config).await.map_err(failed)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Refusals are findings: a sentence and exit code 1.
fn refused(out: &mut dyn Write, reason: &str) -> Result<u8, CommandError> {
    writeln!(out, "{reason}")?;
    Ok(1)
}

/// `onelog rebuild`: a new index of the same definition beside the one that serves.
pub async fn rebuild(
    config: &Config,
    collection: &str,
    out: &mut dyn Write,
) -> Result<u8, CommandError> {
    let ground = ground(config).await?;
    let serving = match ground.serving(collection) {
        Ok(serving) => serving,
        Err(reason) => return refused(out, &reason),
    };
    if let Some((pinned, it)) = serving
        && it.meta.instead_of.as_ref().is_some_and(|it| !ground.survey.indices.contains_key(it))
    {
        // What was rolled back from is deleted, so that only the pin must go for it to be made.
        let lifted = ground.elastic.amend(pinned, |it| it.instead_of = None).await;
        lifted.map_err(failed)?;
        writeln!(
            out,
            "The rollback of collection {collection} is over: the daemon builds what the mapping\n\
             file says within seconds, or when it is started. Until then {pinned} serves."
        )?;
        return Ok(0);
    }
    // After a rollback: the index that was rolled back from is what the mapping files lead to.
    let leads = serving.and_then(|(_, it)| it.meta.instead_of.as_ref());
    let leads = leads.and_then(|it| ground.survey.indices.get_key_value(it));
    // Else the newest that is not retired: a build under way, or the one that serves.
    let newest = || {
        let live = ground.survey.of(collection).filter(|(_, it)| it.meta.retired_ms.is_none());
        live.max_by_key(|(_, it)| (it.meta.served_ms.is_none(), it.meta.generation))
    };
    let Some((index, _)) = leads.or_else(newest).or(serving) else {
        return refused(out, &format!("no index of collection {collection} is in use"));
    };
    let hash = ground.survey.indices.get(index).map(|it| it.meta.hash.clone()).unwrap_or_default();
    let wanted = ground.survey.generation(collection, &hash) + 1;
    let mut tries = 0;
    while tries < TRIES_MAX {
        tries += 1;
        let wished = ground.elastic.amend(index, |it| it.rebuild = true).await;
        wished.map_err(failed)?;
        if ground.stands(|it| it.generation(collection, &hash) >= wanted).await? {
            break;
        }
    }
    writeln!(
        out,
        "A new index of collection {collection} will be filled from Postgres beside {index}.\n\
         The daemon begins within seconds, or when it is started, and leads the alias to it once it\n\
         is whole and verified. Until then {} serves.",
        serving.map_or("nothing", |it| it.0)
    )?;
    Ok(0)
}

/// `onelog rollback`: an older index instead of the one that the mapping files lead to.
pub async fn rollback(
    config: &Config,
    collection: &str,
    (to, now): (Option<&str>, bool),
    out: &mut dyn Write,
) -> Result<u8, CommandError> {
    let ground = ground(config).await?;
    let serving = match ground.serving(collection) {
        Ok(serving) => serving,
        Err(reason) => return refused(out, &reason),
    };
    let older = match choose(&ground, collection, (serving.map(|it| it.0), to)) {
        Ok(older) => older,
        Err(reason) => return refused(out, &reason),
    };
    let leads = leads_to(&ground, collection, serving);
    let instead_of = leads.filter(|it| *it != older).cloned();
    let serves = serving.is_some_and(|(index, _)| index == older);
    pin(&ground, collection, (older, instead_of.as_ref()), (now, serves)).await?;
    let alias = alias_name(ground.config, collection);
    if now && !serves {
        lead(&ground, &alias, older).await?;
        writeln!(
            out,
            "Alias {alias} leads to {older} now, with its documents as of when it was replaced;\n\
             the daemon brings them up to date, beginning within seconds, or when it is started."
        )?;
    } else if serves {
        writeln!(out, "Index {older} goes on serving.")?;
    } else {
        writeln!(
            out,
            "The daemon brings {older} up to date, beginning within seconds, or when it is started,\n\
             and then leads alias {alias} to it. `--now` leads it there at once."
        )?;
    }
    match instead_of {
        Some(_) => writeln!(
            out,
            "It is kept up to date with its own SQL until the mapping file is changed, whose present\n\
             definition does not count until then. `onelog rebuild {collection}` takes it back."
        )?,
        None => writeln!(out, "It is what the mapping files lead to.")?,
    }
    Ok(0)
}

/// Leads the alias to an index, from wherever it is by now: the daemon may have moved it.
async fn lead(ground: &Ground<'_>, alias: &str, index: &str) -> Result<(), CommandError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let survey = ground.elastic.survey(ground.config).await.map_err(failed)?;
        match ground.elastic.swap_alias(alias, index, &survey.behind(alias)).await {
            Err(ElasticError::NotFound { .. }) if tries < TRIES_MAX => {}
            ended => return ended.map_err(failed),
        }
    }
}

/// Writes down that `older` serves instead of another index, and none else of the collection.
async fn pin(
    ground: &Ground<'_>,
    collection: &str,
    (older, instead_of): (&String, Option<&String>),
    (now, serves): (bool, bool),
) -> Result<(), CommandError> {
    for _ in 0..TRIES_MAX {
        for (index, it) in ground.survey.of(collection) {
            if it.meta.instead_of.is_some() && index != older {
                let lifted = ground.elastic.amend(index, |it| it.instead_of = None).await;
                lifted.map_err(failed)?;
            }
        }
        let change = ground.elastic.amend(older, |it| {
            // Nobody has followed changes for it: a sweep is owed, whoever comes first.
            if !serves {
                it.owe();
            }
            it.instead_of = instead_of.cloned();
            it.retired_ms = None;
            if now {
                it.served_ms = Some(now_ms());
            }
        });
        change.await.map_err(failed)?;
        let as_wished = |survey: &Survey| {
            survey.of(collection).all(|(index, it)| {
                let wanted = instead_of.filter(|_| index == older);
                it.meta.instead_of.as_ref() == wanted
            })
        };
        if ground.stands(as_wished).await? {
            break;
        }
    }
    Ok(())
}

/// The index to roll back to; Err: why there is none.
fn choose<'g>(
    ground: &'g Ground<'_>,
    collection: &str,
    (serving, to): (Option<&String>, Option<&str>),
) -> Result<&'g String, String> {
    let candidates = ground.survey.of(collection).filter(|(_, it)| it.meta.served_ms.is_some());
    let candidates: Vec<_> = candidates.collect();
    let found = match to {
        Some(to) => candidates.iter().find(|(index, _)| index.as_str() == to),
        None => {
            let others = candidates.iter().filter(|(index, _)| Some(*index) != serving);
            others.max_by_key(|(_, it)| it.meta.served_ms)
        }
    };
    match found {
        Some((index, it)) if it.meta.definition.is_none() => Err(format!(
            "{index} was made by an older onelog, which kept no definition in it, so that it could \
             not be kept up to date: undo the change of the mapping file instead"
        )),
        Some((index, _)) => Ok(index),
        None => {
            let names: Vec<&str> = candidates.iter().map(|it| it.0.as_str()).collect();
            Err(format!(
                "collection {collection} has no such index to roll back to: an index is kept for \
                 [elasticsearch] rollback_window after it was replaced; those that have served: {}",
                if names.is_empty() { "none".to_owned() } else { names.join(", ") }
            ))
        }
    }
}

/// The index that the mapping files lead to, as far as the notes tell: the one that a rollback
/// replaced, or a build under way, or the one that serves.
fn leads_to<'g>(
    ground: &'g Ground<'_>,
    collection: &str,
    serving: Option<(&'g String, &'g Surveyed)>,
) -> Option<&'g String> {
    let pins = ground.survey.of(collection).filter_map(|(_, it)| it.meta.instead_of.as_ref());
    let under_way = ground.survey.of(collection).find(|(_, it)| {
        it.meta.served_ms.is_none() && it.meta.retired_ms.is_none() && it.meta.instead_of.is_none()
    });
    under_way.map(|it| it.0).or(pins.last()).or(serving.map(|it| it.0))
}

/// `onelog drop`: the alias and all indices of a collection that no mapping file speaks of.
pub async fn drop(
    config: &Config,
    collection: &str,
    dry_run: bool,
    out: &mut dyn Write,
) -> Result<u8, CommandError> {
    let folder = &config.translate.mappings;
    let cannot_read =
        |error| CommandError::failed(format!("can't read {}", folder.display()), error);
    let loaded = catalog::load_folder(folder, &catalog::KnownFiles::new()).map_err(cannot_read)?;
    if let Some(defined) = loaded.collections.iter().find(|it| it.name == collection) {
        let places: BTreeSet<String> = defined
            .entries
            .iter()
            .map(|it| format!("{}:{}", it.sql_place.path.display(), it.sql_place.line))
            .collect();
        let places: Vec<String> = places.into_iter().collect();
        return refused(
            out,
            &format!(
                "collection {collection} is defined at {}: remove its entries first, or the daemon \
                 would make it anew",
                places.join(", ")
            ),
        );
    }
    if !loaded.mistakes.is_empty() {
        let reason = format!(
            "a mapping file can't be read, and may define collection {collection}: {}",
            loaded.mistakes[0]
        );
        return refused(out, &reason);
    }
    let ground = ground(config).await?;
    if let Err(reason) = ground.serving(collection) {
        return refused(out, &reason);
    }
    let alias = alias_name(ground.config, collection);
    let says = if dry_run { "Would be deleted" } else { "Deleted" };
    for index in ground.survey.behind(&alias) {
        if !ground.survey.indices.contains_key(&index) {
            if !dry_run {
                ground.elastic.remove_alias(&alias, &index).await.map_err(failed)?;
            }
            writeln!(out, "{says}: alias {alias} of {index}, which is not ours and stays.")?;
        }
    }
    for (index, it) in ground.survey.of(collection) {
        if !dry_run {
            ground.elastic.delete_index(index).await.map_err(failed)?;
        }
        let with = if it.aliases.contains(&alias) {
            format!(", and alias {alias}")
        } else {
            String::new()
        };
        writeln!(out, "{says}: index {index}{with}.")?;
    }
    Ok(0)
}
