//! What the catalog says about tables, columns and functions, as the analysis needs it.
//!
//! Values only: `resolve` fills them from Postgres, unit tests by hand. Whatever is missing here
//! is unknown, and what is unknown has no path.

use std::collections::BTreeSet;

use crate::mapping::plan::TableName;

/// A base table, or something read like one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableFacts {
    pub name: TableName,
    /// `pg_class.oid`.
    pub oid: u32,
    /// In `attnum` order, dropped ones left out: column aliases count by position.
    pub columns: Vec<ColumnFacts>,
    pub published: bool,
    /// The columns that the old image holds under the table's replica identity.
    pub identity: BTreeSet<String>,
    /// One sentence for each reason why changes of this table have no path whatever the SQL is:
    /// a foreign table, a materialized view, a partitioned root, not published.
    pub obstacles: Vec<String>,
}

impl TableFacts {
    pub fn column(&self, name: &str) -> Option<&ColumnFacts> {
        self.columns.iter().find(|it| it.name == name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnFacts {
    pub name: String,
    pub type_oid: u32,
    /// As `format_type` prints it under an empty search_path.
    pub type_name: String,
    /// Whether the text in a published image is the type's input text, and `=` is no wider than
    /// one notion of equality: scalar built-in types and enums, deterministic collations (A13).
    pub carrier: bool,
    /// Whether the text in a published image is also what `::text` prints. Not so for
    /// timestamps, which images spell as ISO 8601.
    pub same_text: bool,
    /// Equal means identical: the default btree operator class has support function 4 (A8).
    pub equal_image: bool,
    /// Generated columns are in neither image (A12).
    pub generated: bool,
    /// What a generated column is computed from, as `pg_get_expr` prints it under an empty
    /// search_path. None: not generated, or not by built-in functions alone.
    pub expression: Option<String>,
    /// Of what an image has as JSON, and a query can still start from in part.
    pub nested: Option<Nested>,
    /// The collation, quoted, where it is not the type's own: `lower()` of a value goes by it.
    pub collation: Option<String>,
}

impl ColumnFacts {
    /// A column that is not generated, of a type whose equal values have one text.
    pub fn plain(name: String, type_oid: u32, type_name: &str) -> Self {
        Self {
            name,
            type_oid,
            type_name: type_name.to_owned(),
            carrier: true,
            same_text: true,
            equal_image: true,
            generated: false,
            expression: None,
            nested: None,
            collation: None,
        }
    }
}

/// Types whose images are JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nested {
    /// jsonb: by a key of it.
    Json,
    /// An array of carriers: by its elements, whatever its dimensions are.
    Array { type_oid: u32, type_name: String },
}

/// A function, operator or aggregate that the SQL calls, exactly as Postgres resolved it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionFacts {
    pub name: String,
    /// In `pg_catalog`, and made by initdb.
    pub built_in: bool,
    pub volatility: Volatility,
    pub strict: bool,
    pub aggregate: bool,
    pub returns_set: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volatility {
    Immutable,
    Stable,
    Volatile,
}

/// Stable built-ins whose result depends on nothing but their arguments and the settings that
/// every connection pins (B17: TimeZone, DateStyle and so on). Postgres calls them stable because
/// of those settings only; without them nearly every document with nested JSON would poll.
pub const STABLE_BY_SETTINGS: &[&str] = &[
    "array_to_json",
    "array_to_string",
    "concat",
    "concat_ws",
    "date",
    "date_part",
    "date_trunc",
    "extract",
    "format",
    "json_agg",
    "json_agg_strict",
    "json_build_array",
    "json_build_object",
    "json_object_agg",
    "json_object_agg_strict",
    "json_object_agg_unique",
    "json_to_record",
    "json_to_recordset",
    "jsonb_agg",
    "jsonb_agg_strict",
    "jsonb_build_array",
    "jsonb_build_object",
    "jsonb_object_agg",
    "jsonb_object_agg_strict",
    "jsonb_object_agg_unique",
    "jsonb_to_record",
    "jsonb_to_recordset",
    "quote_literal",
    "quote_nullable",
    "row_to_json",
    "string_to_array",
    "timestamp",
    "timestamptz",
    "timestamptz_mi_interval",
    "timestamptz_pl_interval",
    "interval_pl_timestamptz",
    "timezone",
    "to_char",
    "to_date",
    "to_json",
    "to_jsonb",
    "to_number",
    "to_timestamp",
    "generate_series",
    "time",
    "timetz",
    "anytextcat",
    "textanycat",
    "array_agg",
    "string_agg",
    "timestamp_lt_timestamptz",
    "timestamp_le_timestamptz",
    "timestamp_gt_timestamptz",
    "timestamp_ge_timestamptz",
    "timestamp_eq_timestamptz",
    "timestamp_ne_timestamptz",
    "timestamptz_lt_timestamp",
    "timestamptz_le_timestamp",
    "timestamptz_gt_timestamp",
    "timestamptz_ge_timestamp",
    "timestamptz_eq_timestamp",
    "timestamptz_ne_timestamp",
    "date_lt_timestamptz",
    "date_le_timestamptz",
    "date_gt_timestamptz",
    "date_ge_timestamptz",
    "date_eq_timestamptz",
    "date_ne_timestamptz",
    "timestamptz_lt_date",
    "timestamptz_le_date",
    "timestamptz_gt_date",
    "timestamptz_ge_date",
    "timestamptz_eq_date",
    "timestamptz_ne_date",
];

/// Immutable by name, yet they read more than their arguments.
const READS_MORE: &[&str] = &["nextval", "currval", "lastval", "pg_get_viewdef", "format_type"];

impl FunctionFacts {
    /// Why documents that use the function can change without a change of a row, if they can.
    pub fn obstacle(&self) -> Option<String> {
        let name = &self.name;
        if !self.built_in {
            return Some(format!(
                "it calls {name}(), which is not built in: onelog cannot know what it reads"
            ));
        }
        let by_settings = STABLE_BY_SETTINGS.contains(&name.as_str());
        match self.volatility {
            Volatility::Immutable if !READS_MORE.contains(&name.as_str()) => None,
            Volatility::Stable if by_settings => None,
            Volatility::Volatile => {
                Some(format!("it calls {name}(), which may give another value each time"))
            }
            Volatility::Immutable | Volatility::Stable => Some(format!(
                "it calls {name}(), whose value depends on the time, on settings or on other tables"
            )),
        }
    }
}
