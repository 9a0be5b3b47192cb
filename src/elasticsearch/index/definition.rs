//! An index as it is created: names, settings, mappings, and our own note in `_meta` (pure).

use serde_json::{Map, Value, json};

use crate::config::ElasticsearchConfig;
use crate::elasticsearch::bulk::write_alias;
use crate::elasticsearch::index::field_types;
use crate::mapping::plan::CollectionPlan;

/// Elasticsearch's default: each field costs memory on every node.
const FIELDS_MIN: usize = 1_000;

/// The alias that frontends read.
pub fn alias_name(config: &ElasticsearchConfig, collection: &str) -> String {
    format!("{}{collection}", config.index_prefix)
}

/// The index of one definition of a collection.
pub fn index_name(config: &ElasticsearchConfig, plan: &CollectionPlan) -> String {
    format!("{}-{}", alias_name(config, &plan.name), plan.hash)
}

/// Our note in an index: whose it is, and whether it is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexMeta {
    pub collection: String,
    /// `CollectionPlan::hash`.
    pub hash: String,
    /// Every document has been written once.
    pub built: bool,
    /// Of what the SQL reads, as the build was resolved whose sweep has ended well, or has come as
    /// far as `swept` says (A11); empty: none has.
    pub fingerprint: String,
    /// Of the Postgres cluster: versions of another one can't be compared (rule 3).
    pub system_id: u64,
    /// Counts how often a sweep of the whole was owed anew.
    pub era: u64,
    /// How far the sweep that is owed has come, for the next process.
    pub swept: Option<SweptTo>,
}

/// Every document up to a key has been compared or written since the sweep was owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SweptTo {
    /// Inclusive, in the order of the key's type.
    pub key: String,
    /// The index was empty when the sweep began, so that nothing in it can be an orphan.
    pub fresh: bool,
    pub documents: u64,
    /// [`IndexMeta::era`] of the sweep: what was swept in an earlier one counts no more.
    pub era: u64,
}

impl IndexMeta {
    pub fn of(plan: &CollectionPlan, system_id: u64) -> Self {
        let (collection, hash) = (plan.name.clone(), plan.hash.clone());
        Self {
            collection,
            hash,
            built: false,
            fingerprint: String::new(),
            system_id,
            era: 0,
            swept: None,
        }
    }

    /// Whether the index follows all changes, as a whole or in part: if it misses some, this is
    /// void.
    pub fn is_relied_on(&self) -> bool {
        self.built || self.swept.is_some()
    }

    pub(super) fn to_json(&self) -> Value {
        // 64 unsigned bits are more than JSON readers keep, so the id is text.
        let mut note = json!({
            "collection": self.collection,
            "hash": self.hash,
            "built": self.built,
            "fingerprint": self.fingerprint,
            "system_id": self.system_id.to_string(),
            "era": self.era,
        });
        if let Some(swept) = &self.swept {
            note["swept"] = json!({
                "key": swept.key,
                "fresh": swept.fresh,
                "documents": swept.documents,
                "era": swept.era,
            });
        }
        json!({ "onelog": note })
    }

    /// None: the index is not ours.
    pub(super) fn from_json(meta: &Value) -> Option<Self> {
        let note = meta.get("onelog")?;
        Some(Self {
            collection: note.get("collection")?.as_str()?.to_owned(),
            hash: note.get("hash")?.as_str()?.to_owned(),
            built: note.get("built")?.as_bool()?,
            // Older versions wrote none.
            fingerprint: note.get("fingerprint").and_then(Value::as_str).unwrap_or("").to_owned(),
            system_id: note.get("system_id")?.as_str()?.parse().ok()?,
            era: note.get("era").and_then(Value::as_u64).unwrap_or(0),
            swept: note.get("swept").and_then(SweptTo::from_json),
        })
    }
}

impl SweptTo {
    /// None costs a sweep from the beginning.
    fn from_json(note: &Value) -> Option<Self> {
        Some(Self {
            key: note.get("key")?.as_str()?.to_owned(),
            fresh: note.get("fresh")?.as_bool()?,
            documents: note.get("documents")?.as_u64()?,
            era: note.get("era")?.as_u64()?,
        })
    }
}

/// The body of the request that creates a collection's index.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexDefinition {
    pub index: String,
    pub meta: IndexMeta,
    pub(super) body: Value,
}

impl IndexDefinition {
    pub fn new(config: &ElasticsearchConfig, plan: &CollectionPlan, system_id: u64) -> Self {
        let meta = IndexMeta::of(plan, system_id);
        let mut mappings = field_types::mappings(plan);
        mappings.insert("_meta".to_owned(), meta.to_json());
        let columns: usize = plan.entries.iter().map(|it| it.columns.len()).sum();
        let mut settings = Map::new();
        let mut set = |name: &str, value: Value| drop(settings.insert(name.to_owned(), value));
        set("number_of_shards", config.number_of_shards.into());
        set("number_of_replicas", config.number_of_replicas.into());
        // The versions of deleted documents must outlive every read that may still be written.
        set("gc_deletes", "1h".into());
        set("mapping.total_fields.limit", (FIELDS_MIN + 4 * columns).into());
        let written = serde_json::from_str(&plan.settings.index_settings);
        let written: Map<String, Value> = written.expect("mapping/file.rs wrote this JSON");
        flatten("", written, &mut settings);
        let index = index_name(config, plan);
        let aliases = json!({ write_alias(&index): { "is_hidden": true } });
        let body = json!({
            "settings": { "index": settings },
            "mappings": mappings,
            "aliases": aliases,
        });
        Self { index, meta, body }
    }
}

/// Settings may be written with or without `index.`, nested or dotted: one form, so that the
/// writer's replace ours.
fn flatten(prefix: &str, written: Map<String, Value>, into: &mut Map<String, Value>) {
    for (name, value) in written {
        let name = format!("{prefix}{name}");
        match value {
            Value::Object(inner) => flatten(&format!("{name}."), inner, into),
            value => {
                let bare = name.strip_prefix("index.").unwrap_or(&name);
                into.insert(bare.to_owned(), value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_one_form() {
        let written = json!({
            "number_of_shards": 3,
            "index.refresh_interval": "5s",
            "index": { "analysis": { "a": 1 } },
            "sort": { "field": ["x"] },
        });
        let Value::Object(written) = written else { panic!() };
        let mut settings = Map::new();
        settings.insert("number_of_shards".to_owned(), json!(1));
        flatten("", written, &mut settings);
        let expected = json!({
            "number_of_shards": 3,
            "refresh_interval": "5s",
            "analysis.a": 1,
            "sort.field": ["x"],
        });
        assert_eq!(Value::Object(settings), expected);
    }

    #[test]
    fn our_note_comes_back_as_it_was() {
        let meta = IndexMeta {
            collection: "c".to_owned(),
            hash: "0123456789ab".to_owned(),
            built: true,
            fingerprint: "{}".to_owned(),
            system_id: u64::MAX,
            era: 3,
            swept: Some(SweptTo { key: "k\"".to_owned(), fresh: true, documents: 7, era: 3 }),
        };
        assert_eq!(IndexMeta::from_json(&meta.to_json()), Some(meta.clone()));
        let older = json!({ "onelog": {
            "collection": "c", "hash": "0123456789ab", "built": true,
            "system_id": u64::MAX.to_string(),
        }});
        let expected = IndexMeta { fingerprint: String::new(), era: 0, swept: None, ..meta };
        assert_eq!(IndexMeta::from_json(&older), Some(expected));
        assert_eq!(IndexMeta::from_json(&json!({})), None);
    }
}
