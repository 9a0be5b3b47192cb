//! A collection as Postgres understands it: what to run for a key, and which changes touch which
//! keys. Made by `resolve`, used by refresh, sweep and `explain`. Values only.

use std::collections::BTreeSet;

use crate::mapping::fingerprint::Fingerprint;
use crate::mapping::{CollectionSettings, Entry};
use crate::relation::ReplicaIdentity;

/// A collection whose SQL has been resolved by Postgres.
#[derive(Debug, Clone, PartialEq)]
pub struct CollectionPlan {
    pub name: String,
    /// The key's type as `format_type` prints it, the same in all entries (B11).
    pub key_type: String,
    pub settings: CollectionSettings,
    pub entries: Vec<EntryPlan>,
    /// Hex, 12 digits: changes whenever the documents or the index's field types would.
    pub hash: String,
    /// Of every relation read, views too, with the columns that are read (A11).
    pub fingerprint: Fingerprint,
}

impl CollectionPlan {
    /// Every table that any entry reads, sorted, without repeats: what a read locks (A2).
    pub fn tables(&self) -> Vec<TableName> {
        let all: BTreeSet<_> =
            self.entries.iter().flat_map(|it| it.tables.iter().map(|t| t.name.clone())).collect();
        all.into_iter().collect()
    }

    /// Under which names the changes of the tables come whose changes are published.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        let tables = self.entries.iter().flat_map(|it| &it.tables);
        tables.filter(|it| it.published).flat_map(|it| &it.sources)
    }

    /// Whether changes are followed in the same way by both: tables, paths, what polls. Where
    /// things stand in the file does not count.
    pub fn follows_as(&self, other: &Self) -> bool {
        let both = || self.entries.iter().zip(&other.entries);
        self.entries.len() == other.entries.len()
            && both().all(|(one, two)| {
                (&one.canonical_sql, &one.tables, &one.paths, &one.poll_reasons)
                    == (&two.canonical_sql, &two.tables, &two.paths, &two.poll_reasons)
            })
    }

    /// Why the collection must be swept on a timer; empty when every change has a path.
    pub fn poll_reasons(&self) -> Vec<&str> {
        self.entries.iter().flat_map(|it| it.poll_reasons.iter().map(String::as_str)).collect()
    }
}

/// A table's qualified name, unquoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    pub namespace: String,
    pub name: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.namespace, self.name)
    }
}

impl TableName {
    /// As SQL writes it, always quoted: `"public"."order"`.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.namespace), quote_identifier(&self.name))
    }
}

/// A name as an SQL identifier, always quoted.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// One entry, resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct EntryPlan {
    pub entry: Entry,
    /// The SQL as `pg_get_viewdef` prints it under an empty search_path: every name qualified.
    /// No trailing semicolon.
    pub canonical_sql: String,
    /// Whether the SQL has a top-level ORDER BY; without one rows are sorted by their text.
    pub ordered: bool,
    pub columns: Vec<OutputColumn>,
    /// Every base table read, views inlined, by name.
    pub tables: Vec<TableRead>,
    /// One for each occurrence of a table that has a path.
    pub paths: Vec<OccurrencePath>,
    /// One sentence for each reason why the entry must be swept on a timer; empty when every
    /// occurrence has a path.
    pub poll_reasons: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputColumn {
    pub name: String,
    pub type_oid: u32,
    /// As `format_type` prints it, without the modifier: `numeric`, `text[]`, `public.mood`.
    pub type_name: String,
    /// What its values are, arrays and domains opened up: `enum`, `composite`, `range`, or else the
    /// type's name as `format_type` prints it.
    pub value_type: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableRead {
    pub name: TableName,
    /// `pg_class.oid`.
    pub oid: u32,
    /// The columns that the SQL reads; None: all of them (a whole-row use, A7).
    pub columns: Option<BTreeSet<String>>,
    /// All its partitions and all that inherit from it are published.
    pub published: bool,
    /// Of the table, and of each that belongs to it; None: they differ.
    pub identity: Option<ReplicaIdentity>,
    pub sources: Vec<Source>,
    /// Columns that must be in the old image for the paths to be complete, but that the table's
    /// replica identity does not hold (B14).
    pub identity_lacks: BTreeSet<String>,
}

/// Where a table's changes are to be found in the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source {
    /// The table that gives the topic its name: the root, when the table is a partition.
    pub topic: TableName,
    /// Which of the topic's records are the table's, by the name of the table that they are of;
    /// None: all. So it is with a root, whose newest partition nobody has told us of yet.
    pub members: Option<BTreeSet<TableName>>,
}

/// How a changed row of one occurrence of a table leads to the keys it touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OccurrencePath {
    pub table: TableName,
    /// The occurrence's name in the canonical SQL, for `explain`.
    pub alias: String,
    pub path: Path,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// Zero hops: this column of the changed row *is* the key (same type, and equal means
    /// identical: A8).
    InRow { column: String },
    /// The key is found by a query over the tables on the way.
    Lookup(Lookup),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// The changed row's columns that the query starts from. Parameter n is a `text[]` of
    /// column n's values, one element for each image.
    pub columns: Vec<String>,
    /// Those of `columns` whose values are given as JSON: jsonb and arrays.
    pub json: BTreeSet<String>,
    /// An image with a NULL among its columns leads to no key: nobody needs to ask.
    pub strict: bool,
    /// `SELECT DISTINCT <key>::text FROM unnest($1::text[]::bigint[], …) … JOIN …`. One column,
    /// named `key`; NULL keys are left out by the query.
    pub sql: String,
    /// The tables on the way, not the changed one: what the read locks besides.
    pub hops: Vec<TableName>,
    /// The way as a person reads it: `company_websites.company_id = company_profile.id`.
    pub steps: Vec<String>,
}
