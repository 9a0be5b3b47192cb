//! What there is to know of a collection before it is built: how each table's changes find their
//! documents, what serves the reads, what is missing. `explain` prints it, `check` warns by it.
//!
//! The fields' names are those of `explain --json`, which README.md documents: add, never rename.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tokio_postgres::Client;

use crate::document::queries;
use crate::mapping::Nest;
use crate::mapping::advice::{self, UniqueKeys};
use crate::mapping::plan::{CollectionPlan, EntryPlan, Lookup, Path, TableName};
use crate::mistake::Mistake;
use crate::postgres::query_plan::{self, QueryPlan};

/// The planner assumes ten elements in an array that it does not know, so ten changed rows.
const ASSUMED_IMAGES: f64 = 10.0;

#[derive(Debug, Serialize)]
pub struct CollectionAccount {
    pub collection: String,
    pub key_type: String,
    /// Whether every change reaches its documents at once, without waiting for a sweep.
    pub live: bool,
    pub entries: Vec<EntryAccount>,
    /// Every table that is read.
    pub tables: Vec<TableAccount>,
    pub warnings: Vec<Warning>,
}

#[derive(Debug, Serialize)]
pub struct Warning {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub message: String,
}

#[derive(Debug, Serialize)]
pub struct EntryAccount {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub key: String,
    /// `nest_as` or `nest_one_as`; null: fields at the top.
    pub nest_as: Option<String>,
    pub nest_one: bool,
    pub optional: bool,
    pub changes: Vec<ChangeAccount>,
    /// The query that reads this part of a document.
    pub read: QueryAccount,
    pub swept_because: Vec<SweptBecause>,
}

#[derive(Debug, Serialize)]
pub struct SweptBecause {
    pub reason: String,
    /// What would give it a path, where onelog can tell.
    pub cure: Option<String>,
}

/// How a changed row of one occurrence of a table finds its documents.
#[derive(Debug, Serialize)]
pub struct ChangeAccount {
    pub table: String,
    /// Its name in the SQL.
    pub alias: String,
    /// An update of other columns is ignored; null: all count.
    pub columns: Option<Vec<String>>,
    /// The column of the changed row that is the key; null: the steps lead to it.
    pub key_column: Option<String>,
    /// Equalities that lead from the changed row to the key.
    pub steps: Vec<String>,
    /// The query that finds the keys; null when the row has the key.
    pub query: Option<QueryAccount>,
    /// An estimate from the planner's statistics.
    pub documents_per_change: Option<f64>,
}

#[derive(Debug, Default, Serialize)]
pub struct QueryAccount {
    /// Whether Postgres could plan it.
    pub planned: bool,
    pub indexes: Vec<String>,
    pub missing_indexes: Vec<MissingIndex>,
    /// WITH queries that are computed whole each time.
    pub computed_whole: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct MissingIndex {
    pub table: String,
    /// As ANALYZE counted them; null: it never did.
    pub rows: Option<f64>,
    /// Costs much today, not only when the table grows.
    pub slow: bool,
    /// Null: no index can serve this SQL.
    pub create_index: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct TableAccount {
    pub table: String,
    pub published: bool,
    /// Columns that changes need in the old row and that its replica identity leaves out.
    pub old_row_lacks: Vec<String>,
    /// The statement that cures it.
    pub cure: Option<String>,
}

/// Asks the planner about everything that runs for the collection. Executes none of it.
///
/// # Errors
/// The catalog can't be read.
pub async fn of(
    client: &Client,
    plan: &CollectionPlan,
) -> Result<CollectionAccount, tokio_postgres::Error> {
    let unique = unique_keys(client, plan).await?;
    let reads = queries::refresh_queries(plan, &[]);
    let mut entries = Vec::with_capacity(plan.entries.len());
    for (entry, query) in plan.entries.iter().zip(&reads) {
        let read = query_account(planned(client, &query.sql, query.params.len()).await.as_ref());
        entries.push(entry_account(client, entry, read).await);
    }
    let tables = tables(plan);
    let whole = tables.iter().all(|it| it.old_row_lacks.is_empty());
    Ok(CollectionAccount {
        collection: plan.name.clone(),
        key_type: plan.key_type.clone(),
        live: whole && plan.poll_reasons().is_empty(),
        entries,
        tables,
        warnings: advice::warnings(plan, &unique).into_iter().map(warning).collect(),
    })
}

fn warning(of: Mistake) -> Warning {
    let Mistake { path, line, column, message } = of;
    Warning { file: path.display().to_string(), line, column, message }
}

async fn entry_account(client: &Client, entry: &EntryPlan, read: QueryAccount) -> EntryAccount {
    let tables: BTreeMap<_, _> = entry.tables.iter().map(|it| (&it.name, it)).collect();
    let mut changes = Vec::with_capacity(entry.paths.len());
    for path in &entry.paths {
        let columns = tables.get(&path.table).and_then(|it| it.columns.as_ref());
        let mut change = ChangeAccount {
            table: path.table.to_string(),
            alias: path.alias.clone(),
            columns: columns.map(|it| it.iter().cloned().collect()),
            key_column: None,
            steps: vec![],
            query: None,
            documents_per_change: Some(1.0),
        };
        match &path.path {
            Path::InRow { column } => change.key_column = Some(column.clone()),
            Path::Lookup(lookup) => by_lookup(client, lookup, &mut change).await,
        }
        changes.push(change);
    }
    let written = &entry.entry;
    let (nest_as, nest_one) = match &written.nest {
        Nest::Top => (None, false),
        Nest::Many(field) => (Some(field.clone()), false),
        Nest::One(field) => (Some(field.clone()), true),
    };
    EntryAccount {
        file: written.sql_place.path.display().to_string(),
        line: written.sql_place.line,
        column: written.sql_place.column,
        key: written.key.clone(),
        nest_as,
        nest_one,
        optional: written.optional,
        changes,
        read,
        swept_because: entry.poll_reasons.iter().map(|it| swept_because(it)).collect(),
    }
}

async fn by_lookup(client: &Client, lookup: &Lookup, change: &mut ChangeAccount) {
    let found = planned(client, &lookup.sql, lookup.columns.len()).await;
    change.steps.clone_from(&lookup.steps);
    change.documents_per_change = found.as_ref().map(|it| (it.rows / ASSUMED_IMAGES).ceil());
    change.query = Some(query_account(found.as_ref()));
}

async fn planned(client: &Client, sql: &str, parameters: usize) -> Option<QueryPlan> {
    // The account stands without the planner's word, and says that it is missing.
    query_plan::plan(client, sql, parameters).await.ok()
}

fn query_account(found: Option<&QueryPlan>) -> QueryAccount {
    let Some(found) = found else { return QueryAccount::default() };
    let missing = found.whole.iter().map(|it| MissingIndex {
        table: it.table.to_string(),
        rows: it.rows,
        slow: it.slow,
        create_index: it.create_index.clone(),
    });
    QueryAccount {
        planned: true,
        indexes: found.indexes.clone(),
        missing_indexes: missing.collect(),
        computed_whole: found.computed.clone(),
    }
}

fn tables(plan: &CollectionPlan) -> Vec<TableAccount> {
    let mut all: BTreeMap<&TableName, (bool, BTreeSet<&String>)> = BTreeMap::new();
    for table in plan.entries.iter().flat_map(|it| &it.tables) {
        let of = all.entry(&table.name).or_insert((table.published, BTreeSet::new()));
        of.1.extend(&table.identity_lacks);
    }
    let account = |(name, (published, lacks)): (&TableName, (bool, BTreeSet<&String>))| {
        let cure = format!("ALTER TABLE {} REPLICA IDENTITY FULL;", name.quoted());
        TableAccount {
            table: name.to_string(),
            published,
            cure: (!lacks.is_empty()).then_some(cure),
            old_row_lacks: lacks.into_iter().cloned().collect(),
        }
    };
    all.into_iter().map(account).collect()
}

/// What each kind of obstacle needs to go away, by the words of `mapping::impact`.
fn swept_because(reason: &str) -> SweptBecause {
    let cures = [
        (
            "may give another value each time",
            "keep the value in a column of the table, or leave it out of the document",
        ),
        (
            "depends on the time",
            "compare with a column or a constant, or let the frontend filter by the time; or say \
             by poll_interval how old a document may be",
        ),
        ("which is not built in", "write the function's expression into the sql in its place"),
        ("is a materialized view", "read the tables that it is made of"),
        ("is a foreign table", "copy what is needed into a table of this database"),
        (
            "set REPLICA IDENTITY FULL",
            "run ALTER TABLE … REPLICA IDENTITY FULL; on that column's table",
        ),
        ("WITH RECURSIVE", "keep the path to the root in a column, and join by it"),
    ];
    let cure = cures.iter().find(|(words, _)| reason.contains(words));
    SweptBecause { reason: reason.to_owned(), cure: cure.map(|it| it.1.to_owned()) }
}

/// Unique indexes over columns that can't be NULL, whole and on plain columns.
const UNIQUE_SQL: &str = "\
    SELECT n.nspname::text, c.relname::text, i.indexrelid, array_agg(a.attname::text) \
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid \
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid \
      AND a.attnum = ANY((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
    WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
      AND c.oid = ANY($1) \
    GROUP BY 1, 2, 3 HAVING bool_and(a.attnotnull) ORDER BY 3";

async fn unique_keys(
    client: &Client,
    plan: &CollectionPlan,
) -> Result<UniqueKeys, tokio_postgres::Error> {
    let tables = plan.entries.iter().flat_map(|it| &it.tables);
    let oids: Vec<u32> = tables.map(|it| it.oid).collect();
    let mut unique = UniqueKeys::new();
    for row in client.query(UNIQUE_SQL, &[&oids]).await? {
        let name = TableName { namespace: row.get(0), name: row.get(1) };
        let columns: Vec<String> = row.get(3);
        unique.entry(name).or_default().push(columns.into_iter().collect());
    }
    Ok(unique)
}
