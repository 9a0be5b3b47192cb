//! An index as it is created: names, settings, mappings, and our own note in `_meta` (pure).

use serde_json::{Map, Value, json};

use crate::config::ElasticsearchConfig;
use crate::elasticsearch::bulk::write_alias;
use crate::elasticsearch::index::field_types;
use crate::elasticsearch::index::note::{self, IndexMeta};
use crate::mapping::plan::CollectionPlan;

/// Elasticsearch's default: each field costs memory on every node.
const FIELDS_MIN: usize = 1_000;

/// Levels of objects in a JSON column; Elasticsearch's default of 20 would refuse the document.
const DEPTH_MAX: u32 = 100;
/// Known to Elasticsearch since 8.14, and not to OpenSearch.
const IGNORE_BEYOND_LIMIT: &str = "mapping.total_fields.ignore_dynamic_beyond_limit";

/// The alias that frontends read.
pub fn alias_name(config: &ElasticsearchConfig, collection: &str) -> String {
    format!("{}{collection}", config.index_prefix)
}

/// The first index of one definition of a collection.
pub fn index_name(config: &ElasticsearchConfig, plan: &CollectionPlan) -> String {
    note::index_name(config, &plan.name, (&plan.hash, 0))
}

/// The body of the request that creates a collection's index.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexDefinition {
    pub index: String,
    pub meta: IndexMeta,
    pub(super) body: Value,
}

impl IndexDefinition {
    /// The first index of a definition.
    pub fn new(config: &ElasticsearchConfig, plan: &CollectionPlan, system_id: u64) -> Self {
        Self::noted(config, plan, IndexMeta::of(plan, system_id))
    }

    /// The index that the note tells of, which is of the plan.
    pub fn noted(config: &ElasticsearchConfig, plan: &CollectionPlan, meta: IndexMeta) -> Self {
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
        // Beyond the limit the inside of a JSON column is kept and not searchable, not refused.
        set(IGNORE_BEYOND_LIMIT, true.into());
        set("mapping.depth.limit", DEPTH_MAX.into());
        let written = serde_json::from_str(&plan.settings.index_settings);
        let written: Map<String, Value> = written.expect("mapping/file.rs wrote this JSON");
        flatten("", written, &mut settings);
        let index = meta.index_name(config);
        let aliases = json!({ write_alias(&index): { "is_hidden": true } });
        let body = json!({
            "settings": { "index": settings },
            "mappings": mappings,
            "aliases": aliases,
        });
        Self { index, meta, body }
    }
}

impl IndexDefinition {
    /// What is sent to a server that does not know a setting of ours, if its refusal speaks of one.
    pub(super) fn without_unknown(&self, reason: &str) -> Option<Value> {
        if !reason.contains("unknown setting") || !reason.contains(IGNORE_BEYOND_LIMIT) {
            return None;
        }
        let mut body = self.body.clone();
        body.pointer_mut("/settings/index")?.as_object_mut()?.remove(IGNORE_BEYOND_LIMIT)?;
        Some(body)
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
}
