//! Mappings: what frontend developers write in `connectors/`, validated.
//!
//! A [`Collection`] is the merge of all entries with its name, from any number of files. It becomes
//! a [`plan::CollectionPlan`] once Postgres has resolved its names.

pub mod advice;
pub mod catalog;
pub mod expression_sql;
pub mod file;
pub mod fingerprint;
pub mod impact;
pub mod key_sql;
pub mod plan;
pub mod resolve;
pub mod watch;

use std::path::PathBuf;
use std::time::Duration;

/// Where something was written, for messages about it that only Postgres can give rise to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

/// How an entry's rows enter the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nest {
    /// Columns become top-level fields.
    Top,
    /// `nest_as`: an array of objects under this field.
    Many(String),
    /// `nest_one_as`: one object, or null, under this field.
    One(String),
}

/// One `[[denormalization]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub collection: String,
    /// `key_to_denormalize_upon`: an output column of the SQL.
    pub key: String,
    pub sql: String,
    pub nest: Nest,
    /// Rows of an optional entry do not make a document exist.
    pub optional: bool,
    /// Where the entry's SQL begins, its first character.
    pub sql_place: Place,
    /// The SQL as the file has it, quotes and escapes and all, by which a place in the SQL becomes
    /// a place in the file.
    pub sql_written: String,
    /// Where the key is written.
    pub key_place: Place,
    /// Where `nest_as` or `nest_one_as` is written.
    pub nest_place: Option<Place>,
}

/// `[collection.NAME]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CollectionSettings {
    /// None: the config's. Some(zero): never.
    pub poll_interval: Option<Duration>,
    /// None: the config's. Some(zero): never.
    pub audit_interval: Option<Duration>,
    /// Field name (dots for inner fields) -> Elasticsearch field mapping, a JSON object's text.
    pub field_types: Vec<(String, String)>,
    /// Where each of them is written, for mistakes that only Postgres' answer shows.
    pub field_places: Vec<Place>,
    /// Index settings, a JSON object's text; "{}" when there are none.
    pub index_settings: String,
}

/// A mapping file after validation.
#[derive(Debug, Clone, PartialEq)]
pub struct Mapping {
    pub path: PathBuf,
    /// In the file's order.
    pub entries: Vec<Entry>,
    /// By collection name, in the file's order, each with the place of its table.
    pub settings: Vec<(String, CollectionSettings, Place)>,
}

/// All that is written about one collection, entries in merge order (file name, then place).
#[derive(Debug, Clone, PartialEq)]
pub struct Collection {
    pub name: String,
    pub entries: Vec<Entry>,
    pub settings: CollectionSettings,
}
