//! From a changed row to the keys it touches: the key paths of one entry, found in its SQL.
//!
//! The proof that they find every key is in the design (section 4); the rules are those that a
//! simulator with an adversary could not break: an equality counts within its scope only (A3),
//! the paths form a tree built outward from the key (A4), and whatever is not positively
//! understood has no path and is swept on a timer instead (A6). Too many keys is only work, too
//! few is a stale document.
//!
//! Pure: the canonical SQL and the catalog's facts in, paths and reasons out.

mod allowed;
mod carried;
mod constants;
mod expression;
pub mod facts;
mod function;
mod key;
mod level;
mod link;
mod lookup;
mod occurrence;
mod scope;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use pg_query::NodeEnum;
use pg_query::protobuf::SelectStmt;

use self::facts::{FunctionFacts, TableFacts};
use self::scope::{Collapsed, Origin, Output};
use self::walk::{Choices, Walk};
use crate::mapping::plan::{OccurrencePath, Path, TableName};

/// Each set operation doubles the combinations of branches; more than this many poll.
const VARIANTS_MAX: usize = 64;

/// One entry, as Postgres understands it.
#[derive(Debug, Clone, Copy)]
pub struct AnalysisInput<'a> {
    /// As `pg_get_viewdef` prints it under an empty search_path.
    pub sql: &'a str,
    /// The key, an output column.
    pub key: &'a str,
    /// Every base table that the SQL reads, views inlined.
    pub tables: &'a BTreeMap<TableName, TableFacts>,
    /// The canonical SQL of every view that is read.
    pub views: &'a BTreeMap<TableName, String>,
    /// Whether equal values of the key's type, under its collation, have the same text.
    pub key_equal_image: bool,
    /// Every function that the SQL or a view calls.
    pub functions: &'a [FunctionFacts],
}

impl<'a> AnalysisInput<'a> {
    fn aggregates(&self) -> BTreeSet<&'a str> {
        self.functions.iter().filter(|it| it.aggregate).map(|it| it.name.as_str()).collect()
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Analysis {
    /// For each occurrence that has a path, in the SQL's order.
    pub paths: Vec<OccurrencePath>,
    /// Sentences; empty when every occurrence has a path.
    pub poll_reasons: Vec<String>,
    /// Columns read, as the SQL's text shows them.
    pub columns_read: BTreeMap<TableName, BTreeSet<String>>,
    /// Tables whose rows are used whole: all their columns are read (A7).
    pub whole_rows: BTreeSet<TableName>,
    /// Columns that each table's images must hold for the paths.
    pub path_columns: BTreeMap<TableName, BTreeSet<String>>,
}

/// Finds the paths of an entry.
pub fn analyze(input: &AnalysisInput<'_>) -> Analysis {
    let mut analysis = Analysis::default();
    let mut reasons: BTreeSet<String> =
        input.functions.iter().filter_map(FunctionFacts::obstacle).collect();
    reasons.extend(input.tables.values().flat_map(|it| it.obstacles.iter().cloned()));
    let mut views = BTreeMap::new();
    for (name, sql) in input.views {
        match parse_select(sql) {
            Some(view) => {
                views.insert(name.clone(), view);
            }
            None => {
                reasons.insert(format!("the view {name} cannot be analysed"));
            }
        }
    }
    match parse_select(input.sql) {
        Some(stmt) => all_variants(input, &views, &stmt, (&mut analysis, &mut reasons)),
        None => {
            reasons.insert("the SQL cannot be analysed".to_owned());
        }
    }
    analysis.poll_reasons = reasons.into_iter().collect();
    analysis
}

/// The single SELECT that a text is, if it is one.
pub fn parse_select(sql: &str) -> Option<SelectStmt> {
    let mut parsed = pg_query::parse(sql, pg_query::ParserOptions::default()).ok()?.protobuf;
    let stmt = parsed.stmts.pop()?.stmt?;
    match stmt.node? {
        NodeEnum::SelectStmt(select) if parsed.stmts.is_empty() => Some(*select),
        _ => None,
    }
}

/// Analyses every combination of the branches of set operations.
fn all_variants(
    input: &AnalysisInput<'_>,
    views: &BTreeMap<TableName, SelectStmt>,
    stmt: &SelectStmt,
    (analysis, reasons): (&mut Analysis, &mut BTreeSet<String>),
) {
    let mut choices = Some(Choices::default());
    for _ in 0..VARIANTS_MAX {
        let Some(chosen) = choices.take() else { return };
        let mut walk = Walk::new(input, views, chosen);
        let outputs = walk.select(stmt, None);
        variant(&walk, &outputs, input.key, (&mut *analysis, &mut *reasons));
        choices = walk.choices.advance();
    }
    if choices.is_some() {
        reasons.insert("it combines too many UNION, INTERSECT or EXCEPT branches".to_owned());
    }
}

/// One combination: its key, its tree, its paths.
fn variant(
    walk: &Walk<'_>,
    outputs: &[Output],
    key: &str,
    (analysis, reasons): (&mut Analysis, &mut BTreeSet<String>),
) {
    reasons.extend(walk.reasons.iter().cloned());
    for (table, columns) in &walk.columns_read {
        analysis.columns_read.entry(table.clone()).or_default().extend(columns.iter().cloned());
    }
    analysis.whole_rows.extend(walk.whole_rows.iter().cloned());
    match key_origin(walk, outputs, key) {
        Ok(origin) => {
            for origin in origin.alternatives() {
                tree_of(walk, origin, (&mut *analysis, &mut *reasons));
            }
        }
        Err(reason) => {
            reasons.insert(reason);
        }
    }
}

/// The paths of one origin of the key.
///
/// Where the key may come from several, a row of a document has it from one of them, and is
/// found by that one's tree: all trees together find every document.
fn tree_of(
    walk: &Walk<'_>,
    origin: &Origin,
    (analysis, reasons): (&mut Analysis, &mut BTreeSet<String>),
) {
    let routes = tree::build(walk, origin);
    for (nth, occurrence) in walk.occurrences.iter().enumerate() {
        if occurrence.constants.is_some() {
            continue;
        }
        let Some(path) = lookup::path(walk, &routes, nth) else {
            reasons.insert(tree::reason(walk, nth, &routes));
            continue;
        };
        let columns = match &path {
            Path::InRow { column } => std::slice::from_ref(column),
            Path::Lookup(lookup) => lookup.columns.as_slice(),
        };
        let table = occurrence.table.clone();
        analysis.path_columns.entry(table.clone()).or_default().extend(columns.iter().cloned());
        let found = OccurrencePath { table, alias: occurrence.alias.clone(), path };
        if !analysis.paths.contains(&found) {
            analysis.paths.push(found);
        }
    }
}

/// Where the key comes from (A5).
fn key_origin<'o>(walk: &Walk<'_>, outputs: &'o [Output], key: &str) -> Result<&'o Origin, String> {
    let Some(output) = outputs.iter().find(|it| it.name == key) else {
        return Err(format!("onelog cannot find where the key {key} comes from"));
    };
    let origin = &output.origin;
    if *origin == Origin::Opaque {
        return Err(format!(
            "the key {key} is not a column of one table, nor an expression over one row: it is \
             computed from several rows or tables, or GROUP BY, PARTITION BY, DISTINCT ON or LIMIT \
             does not keep it; let a table's own columns make the key"
        ));
    }
    let obstacle = |origin: &Origin| {
        let (occurrence, value, _) = origin.comparable().pop()?;
        carried::obstacle(walk, occurrence, &value)
    };
    if let Some(why) = origin.alternatives().iter().find_map(obstacle) {
        return Err(format!("the key {key} is made of {why}"));
    }
    let identical = || match output.collapsed {
        Collapsed::No => true,
        Collapsed::ByItself if matches!(origin, Origin::Expression { .. }) => true,
        Collapsed::ByItself | Collapsed::ByColumns => {
            origin.alternatives().iter().all(|it| identical(walk, it))
        }
    };
    if output.collapsed != Collapsed::No && !(walk.input.key_equal_image && identical()) {
        return Err(format!(
            "rows are merged by the key {key}, whose type has equal values with different texts: \
             which text the document has is not decided by one row"
        ));
    }
    Ok(origin)
}

/// Whether equal values of every column of the origin are identical (A8).
fn identical(walk: &Walk<'_>, origin: &Origin) -> bool {
    let (occurrence, columns) = match origin {
        Origin::Column(of) => (of.occurrence, vec![of.column.clone()]),
        Origin::Expression { occurrence, node } => (*occurrence, key::columns_of(node)),
        Origin::OneOf { .. } | Origin::Opaque => return true,
    };
    let equal_image = |it: &String| walk.facts(occurrence)?.column(it).map(|it| it.equal_image);
    columns.iter().all(|it| equal_image(it) == Some(true))
}
