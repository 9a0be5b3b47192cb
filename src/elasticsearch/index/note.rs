//! Our note in an index, `_meta.onelog`: whose it is, what it holds, where it stands in its life
//! (pure).
//!
//! It is the only place where the life of indices is kept, so that commands work with a running
//! daemon, without one, and with several: a command writes its wish down here, and every daemon
//! reads all notes every few seconds.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::config::ElasticsearchConfig;
use crate::elasticsearch::index::definition::alias_name;
use crate::mapping::plan::CollectionPlan;
use crate::mapping::{Collection, CollectionSettings, Entry, Nest, Place};

/// Our note in an index.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexMeta {
    pub collection: String,
    /// `CollectionPlan::hash`.
    pub hash: String,
    /// How many rebuilds of the same definition came before: part of the name.
    pub generation: u32,
    /// Every document has been written once, and changes were followed since.
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
    /// When the alias was last led here, in milliseconds since the Unix epoch; None: never yet, so
    /// that there is nothing to roll back to. The newest of a collection is whose alias it is.
    pub served_ms: Option<u64>,
    /// Since when nobody fills it; None: it serves, or is being built.
    pub retired_ms: Option<u64>,
    /// How often `onelog prepare --adopt-slot` has asked for a sweep of the whole, as the log lacks
    /// changes: daemons that run notice that it has grown.
    pub sweeps_asked: u64,
    /// `onelog rebuild`: the next generation is wanted.
    pub rebuild: bool,
    /// `onelog rollback`: serve this index as long as the mapping files lead to the one named here.
    pub instead_of: Option<String>,
    /// What the mapping files said of the collection, so that it can be filled again after a
    /// rollback. None: the index was made before we kept it.
    pub definition: Option<Collection>,
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
        let definition = Collection {
            name: plan.name.clone(),
            entries: plan.entries.iter().map(|it| it.entry.clone()).collect(),
            settings: plan.settings.clone(),
        };
        Self {
            collection: plan.name.clone(),
            hash: plan.hash.clone(),
            generation: 0,
            built: false,
            fingerprint: String::new(),
            system_id,
            era: 0,
            swept: None,
            served_ms: None,
            retired_ms: None,
            sweeps_asked: 0,
            rebuild: false,
            instead_of: None,
            definition: Some(definition),
        }
    }

    /// The name that the index has.
    pub fn index_name(&self, config: &ElasticsearchConfig) -> String {
        index_name(config, &self.collection, (&self.hash, self.generation))
    }

    /// Whether the index follows all changes, as a whole or in part: if it misses some, this is
    /// void.
    pub fn is_relied_on(&self) -> bool {
        self.built || self.swept.is_some()
    }

    /// A sweep of the whole is owed: what an unfinished one has noted is void.
    pub fn owe(&mut self) {
        self.built = false;
        self.era += 1;
        self.swept = None;
    }

    /// A sweep of the whole is owed, and every daemon that runs is to notice.
    pub fn ask_sweep(&mut self) {
        self.owe();
        self.sweeps_asked += 1;
    }

    /// Nobody fills the index from now on.
    pub fn retire(&mut self, now_ms: u64) {
        self.owe();
        self.rebuild = false;
        self.instead_of = None;
        self.retired_ms = Some(now_ms);
    }

    /// The alias is led to the index, which is whole.
    pub fn serve(&mut self, now_ms: u64) {
        self.built = true;
        self.swept = None;
        self.served_ms = Some(now_ms);
        self.retired_ms = None;
    }

    pub(super) fn to_json(&self) -> Value {
        // 64 unsigned bits are more than JSON readers keep, so the id is text.
        json!({ "onelog": {
            "collection": self.collection,
            "hash": self.hash,
            "generation": self.generation,
            "built": self.built,
            "fingerprint": self.fingerprint,
            "system_id": self.system_id.to_string(),
            "era": self.era,
            "swept": self.swept.as_ref().map(|it| json!({
                "key": it.key,
                "fresh": it.fresh,
                "documents": it.documents,
                "era": it.era,
            })),
            "served_ms": self.served_ms,
            "retired_ms": self.retired_ms,
            "sweeps_asked": self.sweeps_asked,
            "rebuild": self.rebuild,
            "instead_of": self.instead_of,
            "definition": self.definition.as_ref().map(definition_json),
        }})
    }

    /// None: the index is not ours.
    pub(super) fn from_json(meta: &Value) -> Option<Self> {
        let note = meta.get("onelog")?;
        let text = |name: &str| note.get(name)?.as_str().map(str::to_owned);
        let number = |name: &str| note.get(name).and_then(Value::as_u64);
        let collection = text("collection")?;
        Some(Self {
            hash: text("hash")?,
            generation: number("generation").and_then(|it| it.try_into().ok()).unwrap_or(0),
            built: note.get("built")?.as_bool()?,
            // Older versions wrote none.
            fingerprint: text("fingerprint").unwrap_or_default(),
            system_id: text("system_id")?.parse().ok()?,
            era: number("era").unwrap_or(0),
            swept: note.get("swept").and_then(SweptTo::from_json),
            served_ms: number("served_ms"),
            retired_ms: number("retired_ms"),
            sweeps_asked: number("sweeps_asked").unwrap_or(0),
            rebuild: note.get("rebuild").and_then(Value::as_bool).unwrap_or(false),
            instead_of: text("instead_of"),
            definition: note.get("definition").and_then(|it| definition(&collection, it)),
            collection,
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

/// The index of one definition of a collection, rebuilt so many times.
pub fn index_name(
    config: &ElasticsearchConfig,
    collection: &str,
    (hash, generation): (&str, u32),
) -> String {
    let alias = alias_name(config, collection);
    match generation {
        0 => format!("{alias}-{hash}"),
        _ => format!("{alias}-{hash}-{generation}"),
    }
}

fn definition_json(collection: &Collection) -> Value {
    let place = |it: &Place| json!([it.path.to_string_lossy(), it.line, it.column]);
    let entries = collection.entries.iter().map(|it| {
        let (many, one) = match &it.nest {
            Nest::Top => (None, None),
            Nest::Many(field) => (Some(field), None),
            Nest::One(field) => (None, Some(field)),
        };
        json!({
            "key": it.key,
            "sql": it.sql,
            "sql_written": it.sql_written,
            "nest_as": many,
            "nest_one_as": one,
            "optional": it.optional,
            "sql_place": place(&it.sql_place),
            "key_place": place(&it.key_place),
        })
    });
    let settings = &collection.settings;
    json!({
        "entries": entries.collect::<Vec<_>>(),
        // Their order is part of the definition's hash, and an object would lose it.
        "fields": settings.field_types,
        "settings": settings.index_settings,
        "poll_ms": settings.poll_interval.map(milliseconds),
        "audit_ms": settings.audit_interval.map(milliseconds),
    })
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// None: somebody has changed what we wrote.
fn definition(name: &str, stored: &Value) -> Option<Collection> {
    let place = |it: &Value| {
        let at = |nth: usize| usize::try_from(it.get(nth)?.as_u64()?).ok();
        let path = PathBuf::from(it.get(0)?.as_str()?);
        Some(Place { path, line: at(1)?, column: at(2)? })
    };
    let entry = |it: &Value| {
        let text = |name: &str| it.get(name)?.as_str().map(str::to_owned);
        let nest = match (text("nest_as"), text("nest_one_as")) {
            (Some(field), _) => Nest::Many(field),
            (None, Some(field)) => Nest::One(field),
            (None, None) => Nest::Top,
        };
        Some(Entry {
            collection: name.to_owned(),
            key: text("key")?,
            sql: text("sql")?,
            nest,
            optional: it.get("optional")?.as_bool()?,
            sql_place: place(it.get("sql_place")?)?,
            sql_written: text("sql_written")?,
            nest_place: None,
            key_place: place(it.get("key_place")?)?,
        })
    };
    let field =
        |it: &Value| Some((it.get(0)?.as_str()?.to_owned(), it.get(1)?.as_str()?.to_owned()));
    let interval =
        |name: &str| stored.get(name).and_then(Value::as_u64).map(std::time::Duration::from_millis);
    Some(Collection {
        name: name.to_owned(),
        entries: stored.get("entries")?.as_array()?.iter().map(entry).collect::<Option<_>>()?,
        settings: CollectionSettings {
            poll_interval: interval("poll_ms"),
            audit_interval: interval("audit_ms"),
            field_types: stored
                .get("fields")?
                .as_array()?
                .iter()
                .map(field)
                .collect::<Option<_>>()?,
            // They were right when the index was made.
            field_places: Vec::new(),
            index_settings: stored.get("settings")?.as_str()?.to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(nest: Nest) -> Entry {
        let place = |line| Place { path: "a.toml".into(), line, column: 7 };
        Entry {
            collection: "c".to_owned(),
            key: "id".to_owned(),
            sql: "SELECT \"Id\" AS id\nFROM t".to_owned(),
            nest,
            optional: true,
            sql_place: place(3),
            sql_written: "'SELECT'".to_owned(),
            nest_place: None,
            key_place: place(2),
        }
    }

    #[test]
    fn nothing_that_was_noted_of_a_retired_index_counts() {
        let meta = meta();
        let mut retired = meta.clone();
        retired.retire(9);
        assert!(
            meta.is_relied_on() && !retired.is_relied_on(),
            "it misses what changes from now on"
        );
        assert!(retired.era > meta.era, "a sweep that is under way marks nothing as whole");
        assert!(!retired.rebuild && retired.instead_of.is_none(), "what was asked for is off");
        assert_eq!(retired.retired_ms, Some(9));
        retired.serve(10);
        assert!(retired.is_relied_on() && retired.retired_ms.is_none(), "after a rollback");
    }

    fn meta() -> IndexMeta {
        let nests = [Nest::Top, Nest::Many("a".to_owned()), Nest::One("b".to_owned())];
        IndexMeta {
            collection: "c".to_owned(),
            hash: "0123456789ab".to_owned(),
            generation: 2,
            built: true,
            fingerprint: "{}".to_owned(),
            system_id: u64::MAX,
            era: 3,
            swept: Some(SweptTo { key: "k\"".to_owned(), fresh: true, documents: 7, era: 3 }),
            served_ms: Some(5),
            retired_ms: Some(6),
            sweeps_asked: 4,
            rebuild: true,
            instead_of: Some("p-c-9".to_owned()),
            definition: Some(Collection {
                name: "c".to_owned(),
                entries: nests.map(entry).into(),
                settings: CollectionSettings {
                    poll_interval: Some(Duration::from_millis(1_500)),
                    audit_interval: Some(Duration::ZERO),
                    field_types: vec![("z.y".to_owned(), "{\"type\":\"ip\"}".to_owned())],
                    field_places: vec![],
                    index_settings: "{\"a\":1}".to_owned(),
                },
            }),
        }
    }

    #[test]
    fn our_note_comes_back_as_it_was() {
        let meta = meta();
        assert_eq!(IndexMeta::from_json(&meta.to_json()), Some(meta));
        assert_eq!(IndexMeta::from_json(&json!({})), None);
    }

    #[test]
    fn a_note_of_an_older_daemon_is_read() {
        let old = json!({ "onelog": {
            "collection": "c", "hash": "h", "built": true, "system_id": "7",
        }});
        let meta = IndexMeta::from_json(&old).unwrap();
        assert_eq!((meta.generation, meta.era, meta.served_ms), (0, 0, None));
        assert_eq!((meta.swept, meta.definition), (None, None));
    }
}
