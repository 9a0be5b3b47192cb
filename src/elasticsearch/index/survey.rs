//! All indices of ours at one moment, with their aliases, notes and blocks: what the life of the
//! collections is decided from (pure).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::config::ElasticsearchConfig;
use crate::elasticsearch::bulk::write_alias;
use crate::elasticsearch::index::note::{IndexMeta, index_name};

/// One index of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Surveyed {
    pub meta: IndexMeta,
    pub aliases: BTreeSet<String>,
    /// Names of the blocks that are on, without `index.blocks.`.
    pub blocks: BTreeSet<String>,
}

/// Every index whose name is the one that its note implies; another deployment's prefix may begin
/// with ours.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Survey {
    pub indices: BTreeMap<String, Surveyed>,
    /// Alias -> all indices below our prefix that have it, also those that are not ours.
    pub aliases: BTreeMap<String, BTreeSet<String>>,
}

/// What a person has asked for by a command, as the notes say: by index, what it is to be served
/// instead of, and how many sweeps were asked for.
pub type Wishes = BTreeSet<(String, Option<String>, u64)>;

impl Survey {
    /// From the server's answer about every index below our prefix.
    pub(super) fn from_json(found: &Value, config: &ElasticsearchConfig) -> Self {
        let mut survey = Self::default();
        for (index, it) in found.as_object().into_iter().flatten() {
            let aliases = it.get("aliases").and_then(Value::as_object).into_iter().flatten();
            let aliases: BTreeSet<String> = aliases.map(|(alias, _)| alias.clone()).collect();
            for alias in &aliases {
                survey.aliases.entry(alias.clone()).or_default().insert(index.clone());
            }
            let meta = it.pointer("/mappings/_meta").and_then(IndexMeta::from_json);
            let Some(meta) = meta.filter(|it| it.index_name(config) == *index) else { continue };
            let blocks = it.pointer("/settings/index/blocks").and_then(Value::as_object);
            let blocks = blocks.into_iter().flatten().filter(|(_, it)| *it == "true");
            let blocks = blocks.map(|(name, _)| name.clone()).collect();
            survey.indices.insert(index.clone(), Surveyed { meta, aliases, blocks });
        }
        survey
    }

    /// The indices of a collection.
    pub fn of<'s>(
        &'s self,
        collection: &str,
    ) -> impl Iterator<Item = (&'s String, &'s Surveyed)> + use<'s> {
        let collection = collection.to_owned();
        self.indices.iter().filter(move |(_, it)| it.meta.collection == collection)
    }

    /// Every collection that has an index.
    pub fn collections(&self) -> BTreeSet<&str> {
        self.indices.values().map(|it| it.meta.collection.as_str()).collect()
    }

    /// The indices that an alias leads to.
    pub fn behind(&self, alias: &str) -> Vec<String> {
        self.aliases.get(alias).into_iter().flatten().cloned().collect()
    }

    /// The index that a definition leads to: its newest generation, or a new one that a rebuild
    /// has asked for.
    pub fn generation(&self, collection: &str, hash: &str) -> u32 {
        let of_hash = self.of(collection).filter(|(_, it)| it.meta.hash == hash);
        let newest = of_hash.max_by_key(|(_, it)| it.meta.generation);
        newest.map_or(0, |(_, it)| it.meta.generation + u32::from(it.meta.rebuild))
    }

    /// The index that a rollback wants to be served instead of `target`.
    pub fn pinned(&self, collection: &str, target: &str) -> Option<(&String, &Surveyed)> {
        self.of(collection).find(|(_, it)| it.meta.instead_of.as_deref() == Some(target))
    }

    /// Whose alias it is: the index that it was last led to. Every daemon decides the same.
    pub fn rightful(&self, collection: &str) -> Option<&String> {
        let served = self.of(collection).filter(|(_, it)| it.meta.served_ms.is_some());
        served.max_by_key(|(_, it)| it.meta.served_ms).map(|(name, _)| name)
    }

    /// What commands have asked for; when it changes, the mappings are loaded again.
    pub fn wishes(&self) -> Wishes {
        let wishes = |it: &IndexMeta| it.rebuild || it.instead_of.is_some() || it.sweeps_asked > 0;
        let wished = self.indices.iter().filter(|(_, it)| wishes(&it.meta));
        let wish = |(name, it): (&String, &Surveyed)| {
            (name.clone(), it.meta.instead_of.clone(), it.meta.sweeps_asked)
        };
        wished.map(wish).collect()
    }
}

/// What happens to an index that nobody fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its time begins now.
    Retire,
    Keep,
    Delete,
}

/// An index that never served is of no use to a rollback. It is kept for a while only because an
/// edit that is undone goes on with it.
const ABANDONED_MS: u64 = 10 * 60 * 1_000;

/// Decides over an index of a known collection that no alias leads to and no build fills.
pub fn fate(meta: &IndexMeta, window_ms: u64, now_ms: u64) -> Fate {
    let Some(retired) = meta.retired_ms else { return Fate::Retire };
    let kept = if meta.served_ms.is_some() { window_ms } else { window_ms.min(ABANDONED_MS) };
    if now_ms.saturating_sub(retired) > kept { Fate::Delete } else { Fate::Keep }
}

impl Surveyed {
    /// Whether the index can be written through its hidden alias.
    pub fn is_writable_by_name(&self, index: &str) -> bool {
        self.aliases.contains(&write_alias(index))
    }
}

/// The generation and name of the index that the mapping files lead to.
pub fn target(
    survey: &Survey,
    config: &ElasticsearchConfig,
    (collection, hash): (&str, &str),
) -> (u32, String) {
    let generation = survey.generation(collection, hash);
    (generation, index_name(config, collection, (hash, generation)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::config::Credentials;

    fn config() -> ElasticsearchConfig {
        ElasticsearchConfig {
            url: String::new(),
            credentials: Credentials::None,
            ca_file: None,
            index_prefix: "p-".to_owned(),
            request_timeout: Duration::from_secs(1),
            number_of_shards: 1,
            number_of_replicas: 0,
            rollback_window: Duration::from_secs(1),
        }
    }

    fn index(note: Value) -> Value {
        let mut whole = json!({
            "collection": "c", "hash": "a", "built": true, "system_id": "1", "generation": 0,
        });
        for (name, value) in note.as_object().into_iter().flatten() {
            whole[name] = value.clone();
        }
        json!({ "mappings": { "_meta": { "onelog": whole } } })
    }

    #[test]
    fn only_what_is_ours_is_seen_and_every_alias() {
        let mut ours = index(json!({}));
        ours["aliases"] = json!({ "p-c": {}, "p-c-a-WRITE": {} });
        ours["settings"]["index"]["blocks"] = json!({ "write": "true", "read_only": "false" });
        let found = json!({
            "p-c-a": ours,
            "p-c-b": index(json!({})),
            "p-x": { "aliases": { "p-c": {} } },
        });
        let survey = Survey::from_json(&found, &config());
        assert_eq!(survey.indices.keys().collect::<Vec<_>>(), ["p-c-a"], "the name is the note's");
        assert_eq!(survey.behind("p-c"), ["p-c-a", "p-x"]);
        let seen = &survey.indices["p-c-a"];
        assert!(seen.is_writable_by_name("p-c-a") && !seen.is_writable_by_name("p-c-b"));
        assert_eq!(seen.blocks.iter().collect::<Vec<_>>(), ["write"]);
    }

    #[test]
    fn wishes_decide_which_index_a_definition_leads_to() {
        let found = json!({
            "p-c-a": index(json!({ "served_ms": 5, "retired_ms": 8 })),
            "p-c-a-1": index(json!({ "generation": 1, "served_ms": 7, "rebuild": true })),
            "p-c-b": index(json!({ "hash": "b", "served_ms": 6, "instead_of": "p-c-a-2" })),
        });
        let survey = Survey::from_json(&found, &config());
        assert_eq!(target(&survey, &config(), ("c", "a")), (2, "p-c-a-2".to_owned()));
        assert_eq!(target(&survey, &config(), ("c", "new")), (0, "p-c-new".to_owned()));
        let pinned = |target| survey.pinned("c", target).map(|it| it.0.as_str());
        assert_eq!(pinned("p-c-a-2"), Some("p-c-b"));
        assert_eq!(pinned("p-c-new"), None, "a changed mapping file counts");
        assert_eq!(survey.rightful("c").map(String::as_str), Some("p-c-a-1"));
        assert_eq!(survey.wishes().len(), 2);
    }

    #[test]
    fn what_served_is_kept_for_its_window_and_never_deleted_unmarked() {
        let meta = |served: Option<u64>, retired: Option<u64>| {
            let note = index(json!({ "served_ms": served, "retired_ms": retired }));
            IndexMeta::from_json(&note["mappings"]["_meta"]).unwrap()
        };
        const WINDOW: u64 = 24 * 60 * 60 * 1_000;
        for (served, retired, now, expected) in [
            (Some(1), None, u64::MAX, Fate::Retire),
            (Some(1), Some(5), 5 + WINDOW, Fate::Keep),
            (Some(1), Some(5), 6 + WINDOW, Fate::Delete),
            // A clock that went back deletes nothing.
            (Some(1), Some(5), 0, Fate::Keep),
            (None, Some(5), 5 + ABANDONED_MS, Fate::Keep),
            (None, Some(5), 6 + ABANDONED_MS, Fate::Delete),
        ] {
            assert_eq!(fate(&meta(served, retired), WINDOW, now), expected, "{served:?} {now}");
        }
    }
}
