//! Looks after the indices and aliases while the daemon runs: a deleted alias is put back, a
//! deleted index made anew, a replaced index deleted when its time is over, a blocked one told to
//! `/readyz`, and what a command has written into a note is noticed.
//!
//! An alias that leads to one index is never moved from here, wherever it leads: two daemons with
//! different mapping files would take it from each other for ever. It is said instead.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::causes::with_causes;
use crate::config::ElasticsearchConfig;
use crate::document::pending::BuildId;
use crate::elasticsearch::block;
use crate::elasticsearch::client::ElasticError;
use crate::elasticsearch::index::note::IndexMeta;
use crate::elasticsearch::index::survey::{Fate, Survey, Wishes, fate};
use crate::translate::publish::now_ms;
use crate::translate::stage::{Done, Stage};
use crate::translate::{Build, Tools};

/// A deleted alias is a page that is down; a look costs one small request.
pub const TEND_EVERY: Duration = Duration::from_secs(2);

/// What a look is compared with.
pub struct Expected {
    pub builds: Vec<Arc<Build>>,
    /// Collections of which one of the builds serves: only these have an alias to be looked after.
    pub serving: BTreeSet<String>,
    /// Collections that the mapping files speak of.
    pub known: BTreeSet<String>,
    /// Those of them whose files are broken: nothing of theirs is touched.
    pub frozen: BTreeSet<String>,
    /// As of the last load of the mappings.
    pub wishes: Wishes,
}

/// What a look has found that the stage must act upon.
#[derive(Debug, Default)]
pub struct Look {
    /// A command has asked for something.
    pub reload: bool,
    pub missing: Vec<BuildId>,
    /// For `/readyz`.
    pub blocked: Option<String>,
    /// What a person should know, a sentence each.
    pub said: BTreeSet<String>,
    pub orphaned: Vec<String>,
}

/// Looks at everything once, and mends what is only ours to mend.
pub async fn tend(
    tools: &Tools,
    config: &ElasticsearchConfig,
    expected: &Expected,
) -> Result<Look, ElasticError> {
    let survey = tools.elastic.survey(config).await?;
    let orphaned = survey.collections().into_iter().filter(|it| !expected.known.contains(*it));
    let orphaned: Vec<String> = orphaned.map(str::to_owned).collect();
    let mut look = Look { orphaned, ..Look::default() };
    if survey.wishes() != expected.wishes {
        look.reload = true;
        return Ok(look);
    }
    let active: BTreeSet<&str> = expected.builds.iter().map(|it| &*it.index).collect();
    for build in &expected.builds {
        let Some(it) = survey.indices.get(&*build.index) else {
            look.missing.push(build.id);
            continue;
        };
        if !it.is_writable_by_name(&build.index) {
            tracing::warn!(index = %build.index, "the alias that it is written through is put back");
            tools.elastic.add_write_alias(&build.index).await?;
        }
        if it.meta.retired_ms.is_some() {
            tools.elastic.amend(&build.index, |it| it.retired_ms = None).await?;
        }
        look.blocked = look.blocked.or_else(|| block::sentence(&build.index, &it.blocks));
    }
    let mut by_alias: BTreeMap<&str, Vec<&Arc<Build>>> = BTreeMap::new();
    for build in &expected.builds {
        by_alias.entry(&build.alias).or_default().push(build);
    }
    for (alias, builds) in by_alias {
        let serves = builds.iter().any(|it| expected.serving.contains(&it.plan.name));
        if !serves {
            continue;
        }
        match tend_alias(tools, &survey, alias, &builds).await? {
            Alias::Fine => {}
            Alias::Said(said) => drop(look.said.insert(said)),
            Alias::Wished => look.reload = true,
        }
    }
    clear_away(tools, config, (&survey, expected, &active)).await?;
    Ok(look)
}

/// What came of a look at an alias.
enum Alias {
    Fine,
    /// For a person.
    Said(String),
    /// A rollback wants it elsewhere.
    Wished,
}

/// Leads an alias that was deleted, or leads to several indices, to the right one.
async fn tend_alias(
    tools: &Tools,
    survey: &Survey,
    alias: &str,
    builds: &[&Arc<Build>],
) -> Result<Alias, ElasticError> {
    let Some(name) = builds.first().map(|it| &it.plan.name) else { return Ok(Alias::Fine) };
    let behind = survey.behind(alias);
    let ours = |index: &str| builds.iter().any(|it| &*it.index == index);
    if let [only] = behind.as_slice() {
        // Two commands may have come between two looks: the first led it away with `--now`, and
        // the second wants back what was wanted before, so that no wish looks new.
        let pinned = survey.of(name).any(|(it, on)| on.meta.instead_of.is_some() && ours(it));
        return Ok(match (ours(only), pinned) {
            (true, _) => Alias::Fine,
            (false, true) => Alias::Wished,
            (false, false) => Alias::Said(format!(
                "alias {alias} was led to {only} by someone else, and nobody keeps that index up \
                 to date; `onelog rollback {name} --to INDEX` or `onelog rebuild {name}` mends it"
            )),
        });
    }
    let rightful = survey.rightful(name).filter(|it| ours(it));
    let Some(index) = rightful.or_else(|| behind.iter().find(|it| ours(it))) else {
        // Not built yet.
        return Ok(Alias::Fine);
    };
    match tools.elastic.swap_alias(alias, index, &behind).await {
        Ok(()) => {
            tracing::warn!(alias, found = ?behind, index, "an alias was changed by someone else; it \
                            is led to its index again");
            Ok(Alias::Fine)
        }
        Err(ElasticError::Refused { reason, .. }) => Ok(Alias::Said(format!(
            "alias {alias} is gone and can't be put back: {reason}; delete or rename what has its name"
        ))),
        // It has changed meanwhile: the next look sees.
        Err(ElasticError::NotFound { .. }) => Ok(Alias::Fine),
        Err(error) => Err(error),
    }
}

/// Retires indices that nobody fills, and deletes those whose time is over.
async fn clear_away(
    tools: &Tools,
    config: &ElasticsearchConfig,
    (survey, expected, active): (&Survey, &Expected, &BTreeSet<&str>),
) -> Result<(), ElasticError> {
    let window_ms = u64::try_from(config.rollback_window.as_millis()).unwrap_or(u64::MAX);
    for (index, it) in &survey.indices {
        let collection = &it.meta.collection;
        let alias = crate::elasticsearch::index::definition::alias_name(config, collection);
        let touchable =
            expected.known.contains(collection) && !expected.frozen.contains(collection);
        if !touchable || active.contains(index.as_str()) || it.aliases.contains(&alias) {
            continue;
        }
        match fate(&it.meta, window_ms, now_ms()) {
            // Unless a command has written into it since the look.
            Fate::Retire => {
                let unchanged = |fresh: &mut IndexMeta| {
                    if *fresh == it.meta {
                        fresh.retire(now_ms());
                    }
                };
                match tools.elastic.amend(index, unchanged).await {
                    Ok(()) | Err(ElasticError::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Fate::Keep => {}
            Fate::Delete => {
                tracing::info!(collection, index, "its time for a rollback is over: deleted");
                tools.elastic.delete_index(index).await?;
            }
        }
    }
    Ok(())
}

impl Stage {
    /// Starts a look, unless the mappings are being loaded, which changes what is expected.
    pub fn start_tending(&mut self) {
        if self.tending {
            return;
        }
        let Some(expected) = self.builds.expected() else { return };
        self.tending = true;
        let (tools, config) = (Arc::clone(&self.tools), self.context.config.elasticsearch.clone());
        self.tasks.spawn(async move { Done::Tended(tend(&tools, &config, &expected).await) });
    }

    pub fn on_tended(&mut self, look: Result<Look, ElasticError>) {
        self.tending = false;
        let look = match look {
            Ok(look) => look,
            // Writes meet the same outage, and say so; the next look is soon.
            Err(error) => {
                tracing::debug!(reason = with_causes(&error), "could not look at the indices");
                return;
            }
        };
        self.tools
            .metrics
            .collections_orphaned
            .set(i64::try_from(look.orphaned.len()).unwrap_or(0));
        for collection in look.orphaned.iter().filter(|it| !self.orphaned.contains(it)) {
            tracing::warn!(
                collection,
                "orphaned: no mapping file speaks of it; its alias serves what it has, until \
                 `onelog drop`"
            );
        }
        self.orphaned = look.orphaned;
        for said in look.said.difference(&self.said) {
            tracing::warn!("{said}");
        }
        self.said = look.said;
        if look.blocked != self.blocked {
            match &look.blocked {
                Some(reason) => tracing::warn!(reason, "writes wait"),
                None => tracing::info!("indices take writes again"),
            }
            self.blocked = look.blocked;
            self.tell_health();
        }
        for build in look.missing {
            self.recreate(build);
        }
        if look.reload {
            self.load_catalog();
        }
    }
}
