//! A collection as Postgres understands it: names resolved, types known, reads found.
//!
//! Each entry becomes a temporary view in a transaction that is rolled back (B12), so that
//! Postgres itself qualifies every name, expands every `*` and says what is read. What is wrong
//! with the SQL becomes a [`Mistake`] at its place in the file. Done at load, never per refresh:
//! a view costs an xid and catalog WAL. It never runs the SQL.

mod catalog;
mod family;
mod fields;
pub mod place;
mod refusal;

use std::collections::BTreeSet;

use pg_query::NodeEnum;
use sha2::{Digest, Sha256};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use self::catalog::{Reached, reach};
use self::place::{at_character, in_key, in_sql};
use crate::mapping::fingerprint::{FINGERPRINT_SQL, Fingerprint, FingerprintError};
use crate::mapping::impact::{self, Analysis, AnalysisInput};
use crate::mapping::plan::{CollectionPlan, EntryPlan, OutputColumn, TableRead, quote_identifier};
use crate::mapping::{Collection, Entry, Nest};
use crate::mistake::written::nearest;
use crate::mistake::{Mistake, Mistakes};

/// Why a collection could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// A person has to change a mapping file, or a privilege.
    #[error("{0}")]
    Mistakes(Mistakes),
    /// Postgres went away, is busy, or answered what we do not expect. Worth another try.
    #[error("Postgres failed while {doing}")]
    Postgres {
        doing: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error(transparent)]
    Fingerprint(#[from] FingerprintError),
}

impl ResolveError {
    /// Whether trying again may help without anyone's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Mistakes(_) | Self::Fingerprint(_) => false,
            Self::Postgres { .. } => true,
        }
    }
}

fn failed(doing: &'static str) -> impl Fn(tokio_postgres::Error) -> ResolveError {
    move |source| ResolveError::Postgres { doing, source }
}

/// The limits keep a load from waiting behind the application's DDL, or from holding it up.
/// Everything is asked of one snapshot, the one that the fingerprint is of: what somebody changes
/// meanwhile shows at the next look (A11).
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE; \
    SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '10s'";

const CREATE: &str = "CREATE TEMP VIEW onelog_entry AS ";

/// The walk opens domains and arrays up, down to the type that says what a value is; it is as long
/// as domains over arrays of domains are nested.
const OUTPUTS_SQL: &str = "\
    WITH RECURSIVE walk AS ( \
      SELECT a.attnum, a.atttypid AS type, 0 AS depth \
      FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 \
      UNION ALL \
      SELECT w.attnum, CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.typelem END, \
        w.depth + 1 \
      FROM walk w JOIN pg_catalog.pg_type t ON t.oid = w.type \
      WHERE t.typtype = 'd' OR t.typcategory = 'A' AND t.typelem <> 0 AND t.typlen = -1) \
    SELECT a.attname::text, a.atttypid, pg_catalog.format_type(a.atttypid, NULL), \
      (SELECT CASE t.typtype WHEN 'e' THEN 'enum' WHEN 'c' THEN 'composite' WHEN 'r' THEN 'range' \
          WHEN 'm' THEN 'range' ELSE pg_catalog.format_type(t.oid, NULL) END \
        FROM walk w JOIN pg_catalog.pg_type t ON t.oid = w.type \
        WHERE w.attnum = a.attnum ORDER BY w.depth DESC LIMIT 1) \
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 ORDER BY a.attnum";

/// Resolves every entry of a collection. All mistakes are reported, not the first.
///
/// The client must be outside a transaction; when the future is dropped before its end, the
/// connection must be dropped too, as its transaction may still be open.
pub async fn resolve(
    client: &Client,
    publication: &str,
    collection: &Collection,
) -> Result<CollectionPlan, ResolveError> {
    let (mut mistakes, mut entries, mut definitions) = (Vec::new(), Vec::new(), Vec::new());
    let mut fingerprint = Fingerprint::default();
    for entry in &collection.entries {
        let doing = "opening a transaction to resolve a mapping";
        client.batch_execute(BEGIN).await.map_err(failed(doing))?;
        let resolved = resolve_entry(client, publication, entry).await;
        let rolled_back = client.batch_execute("ROLLBACK").await;
        match resolved {
            Ok((plan, reached)) => {
                entries.push(plan);
                fingerprint.merge(reached.fingerprint);
                definitions.extend(reached.views);
            }
            Err(ResolveError::Mistakes(Mistakes(found))) => mistakes.extend(found),
            Err(error) => return Err(error),
        }
        rolled_back.map_err(failed("rolling back the view of a mapping"))?;
    }
    let key_type = match one_key_type(&entries) {
        Ok(key_type) => key_type,
        Err(mistake) => {
            mistakes.push(mistake);
            String::new()
        }
    };
    if mistakes.is_empty() {
        mistakes = fields::unknown(&collection.settings, &entries);
    }
    if !mistakes.is_empty() {
        return Err(ResolveError::Mistakes(Mistakes(mistakes)));
    }
    let mut plan = CollectionPlan {
        name: collection.name.clone(),
        key_type,
        settings: collection.settings.clone(),
        entries,
        hash: String::new(),
        fingerprint,
    };
    definitions.sort();
    definitions.dedup();
    let views: Vec<String> =
        definitions.into_iter().map(|(name, sql)| format!("{name} {sql}")).collect();
    plan.hash = hash(&plan, &views);
    Ok(plan)
}

fn key_column(plan: &EntryPlan) -> Option<&OutputColumn> {
    plan.columns.iter().find(|it| it.name == plan.entry.key)
}

/// B11: one document cannot have two keys that only look alike.
fn one_key_type(entries: &[EntryPlan]) -> Result<String, Mistake> {
    let Some(first) = entries.first() else { return Ok(String::new()) };
    let type_of = |it| key_column(it).map(|it| it.type_name.as_str()).unwrap_or_default();
    let expected = type_of(first);
    match entries.iter().find(|it| type_of(it) != expected) {
        None => Ok(expected.to_owned()),
        Some(other) => {
            let place = &first.entry.key_place;
            Err(in_key(
                &other.entry,
                format!(
                    "the key {key} is {} here, but {} of {}:{} is {expected}: all entries of \
                     collection {} need the same key type; cast one of them, as in {key}::{expected}",
                    type_of(other),
                    first.entry.key,
                    place.path.display(),
                    place.line,
                    other.entry.collection,
                    key = other.entry.key,
                ),
            ))
        }
    }
}

fn mistake(mistake: Mistake) -> ResolveError {
    ResolveError::Mistakes(Mistakes(vec![mistake]))
}

/// The entry's SQL as one SELECT without its semicolon.
fn single_select(entry: &Entry) -> Result<&str, ResolveError> {
    let sql = entry.sql.trim_end().trim_end_matches(';').trim_end();
    if sql.is_empty() {
        return Err(mistake(in_sql(entry, "the sql is empty: write one SELECT")));
    }
    // What this parser does not know, Postgres may: it has the last word, and a place to show.
    let Ok(parsed) = pg_query::parse(sql, pg_query::ParserOptions::default()) else {
        return Ok(sql);
    };
    let stmts = &parsed.protobuf.stmts;
    if let [_, second, ..] = stmts.as_slice() {
        let message = format!(
            "the sql has {} statements: keep one SELECT, and give the others entries of their own",
            stmts.len()
        );
        return Err(mistake(at_character(entry, start_of(sql, second.stmt_location), message)));
    }
    let node = stmts.first().and_then(|it| it.stmt.as_ref()).and_then(|it| it.node.as_ref());
    let said = match node {
        Some(NodeEnum::SelectStmt(select)) if select.into_clause.is_none() => return Ok(sql),
        Some(NodeEnum::SelectStmt(_)) => "is a SELECT … INTO, which makes a table: leave INTO out",
        Some(NodeEnum::InsertStmt(_)) => "is an INSERT: write one SELECT, as onelog only reads",
        Some(NodeEnum::UpdateStmt(_)) => "is an UPDATE: write one SELECT, as onelog only reads",
        Some(NodeEnum::DeleteStmt(_)) => "is a DELETE: write one SELECT, as onelog only reads",
        None => "is nothing but a comment: write one SELECT",
        Some(_) => "is not a SELECT: write one that only reads",
    };
    Err(mistake(in_sql(entry, format!("the sql {said}"))))
}

/// The character at which a statement begins, white space left out. `location` is in bytes.
fn start_of(sql: &str, location: i32) -> usize {
    let location = usize::try_from(location).unwrap_or(0);
    let (before, rest) = sql.split_at_checked(location).unwrap_or((sql, ""));
    before.chars().count() + rest.chars().take_while(|it| it.is_whitespace()).count()
}

async fn resolve_entry(
    client: &Client,
    publication: &str,
    entry: &Entry,
) -> Result<(EntryPlan, Reached), ResolveError> {
    let sql = single_select(entry)?;
    check_may_create(client, entry).await?;
    create_view(client, entry, sql).await?;
    let doing = "reading what a mapping's SQL reads";
    client.batch_execute("SET LOCAL search_path = ''").await.map_err(failed(doing))?;
    let row = client
        .query_one(
            "SELECT oid, pg_catalog.pg_get_viewdef(oid) FROM pg_catalog.pg_class \
             WHERE oid = 'pg_temp.onelog_entry'::pg_catalog.regclass",
            &[],
        )
        .await
        .map_err(failed(doing))?;
    let (view, canonical_sql): (u32, String) = (row.get(0), catalog::strip(row.get(1)));
    let rows = client.query(OUTPUTS_SQL, &[&view]).await.map_err(failed(doing))?;
    let columns: Vec<OutputColumn> = rows
        .iter()
        .map(|it| OutputColumn {
            name: it.get(0),
            type_oid: it.get(1),
            type_name: it.get(2),
            value_type: it.get(3),
        })
        .collect();
    let mut reached = reach(client, view, publication).await.map_err(failed(doing))?;
    reached.fingerprint = fingerprint(client, &reached, publication).await?;
    check_privileges(client, entry, &reached).await?;
    check_key(client, entry, &columns).await?;
    let analysis = impact::analyze(&AnalysisInput {
        sql: &canonical_sql,
        key: &entry.key,
        tables: &reached.tables,
        views: &reached.views,
        key_equal_image: reached.outputs.iter().any(|it| it.name == entry.key && it.equal_image),
        functions: &reached.functions,
    });
    let tables = table_reads(&reached, &analysis);
    for (table, read) in tables.iter().filter_map(|it| Some((it.oid, it.columns.as_ref()?))) {
        reached.fingerprint.keep_columns(table, read);
    }
    let plan = EntryPlan {
        entry: entry.clone(),
        ordered: impact::parse_select(&canonical_sql).is_some_and(|it| !it.sort_clause.is_empty()),
        canonical_sql,
        columns,
        tables,
        paths: analysis.paths,
        poll_reasons: analysis.poll_reasons,
    };
    Ok((plan, reached))
}

async fn check_may_create(client: &Client, entry: &Entry) -> Result<(), ResolveError> {
    let row = client
        .query_one(
            "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMP'), \
             pg_catalog.quote_ident(pg_catalog.current_database()), \
             pg_catalog.quote_ident(current_user)",
            &[],
        )
        .await
        .map_err(failed("asking for the privilege to create a temporary view"))?;
    if row.get(0) {
        return Ok(());
    }
    let (database, role): (&str, &str) = (row.get(1), row.get(2));
    Err(mistake(in_sql(
        entry,
        format!(
            "onelog's role may not create the temporary view by which Postgres resolves names; \
             run as the owner: GRANT TEMPORARY ON DATABASE {database} TO {role};"
        ),
    )))
}

async fn create_view(client: &Client, entry: &Entry, sql: &str) -> Result<(), ResolveError> {
    // The extended protocol takes one statement only, whatever the text holds.
    let created = client.execute(&format!("{CREATE}{sql}"), &[]).await;
    let Err(source) = created else { return Ok(()) };
    match source.as_db_error() {
        Some(error) if is_mistake(error.code()) => {
            client.batch_execute("ROLLBACK").await.map_err(failed("rolling back"))?;
            Err(mistake(refusal::mistake(client, entry, error, CREATE.chars().count()).await))
        }
        _ => Err(ResolveError::Postgres { doing: "creating the view of a mapping", source }),
    }
}

/// Classes of SQLSTATE that speak of the SQL: data (22), access (42). A busy, stopping or
/// read-only server is not the mapping's fault.
fn is_mistake(code: &SqlState) -> bool {
    ["0A", "22", "26", "2F", "3D", "3F", "42"].iter().any(|it| code.code().starts_with(it))
}

/// CREATE VIEW does not check that the role may SELECT.
async fn check_privileges(
    client: &Client,
    entry: &Entry,
    reached: &Reached,
) -> Result<(), ResolveError> {
    if reached.forbidden.is_empty() {
        return Ok(());
    }
    let row = client
        .query_one("SELECT pg_catalog.quote_ident(current_user)", &[])
        .await
        .map_err(failed("asking for the role's name"))?;
    let role: &str = row.get(0);
    let tables: Vec<String> = reached.forbidden.iter().map(|it| it.quoted()).collect();
    Err(mistake(in_sql(
        entry,
        format!(
            "onelog's role may not read what the sql reads; run as the owner: GRANT SELECT ON {} TO \
             {role};",
            tables.join(", ")
        ),
    )))
}

async fn check_key(
    client: &Client,
    entry: &Entry,
    columns: &[OutputColumn],
) -> Result<(), ResolveError> {
    let Some(key) = columns.iter().find(|it| it.name == entry.key) else {
        let names: Vec<&str> = columns.iter().map(|it| it.name.as_str()).collect();
        let meant = nearest(&entry.key, &names)
            .map_or("select it too, or choose one of them".to_owned(), |it| {
                format!("did you mean {it}?")
            });
        let message = format!(
            "the key {} is not among the sql's columns, which are {}; {meant}",
            entry.key,
            names.join(", ")
        );
        return Err(mistake(in_key(entry, message)));
    };
    // Prepared only: whether the type has an order is decided without running anything.
    let quoted = quote_identifier(&key.name);
    let sql = format!("SELECT 1 FROM pg_temp.onelog_entry ORDER BY {quoted}");
    match client.prepare(&sql).await {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_FUNCTION) => {
            let message = format!(
                "the key {} has type {}, which has no equality and order: cast it, for instance \
                 to text",
                key.name, key.type_name
            );
            Err(mistake(in_key(entry, message)))
        }
        Err(source) => Err(failed("checking the key's type")(source)),
    }
}

async fn fingerprint(
    client: &Client,
    reached: &Reached,
    publication: &str,
) -> Result<Fingerprint, ResolveError> {
    let oids: Vec<String> = reached.oids.iter().map(u32::to_string).collect();
    let rows = client.query(FINGERPRINT_SQL, &[&oids, &publication]).await;
    let mut fingerprint = Fingerprint::default();
    for row in rows.map_err(failed("taking the fingerprint of what a mapping reads"))? {
        fingerprint.add(row.get(0), row.get(1))?;
    }
    Ok(fingerprint)
}

fn table_reads(reached: &Reached, analysis: &Analysis) -> Vec<TableRead> {
    let lockable = reached.tables.values().filter(|it| reached.lockable.contains(&it.name));
    lockable
        .map(|facts| {
            let name = &facts.name;
            let mut columns = reached.columns.get(name).cloned().unwrap_or_default();
            columns.extend(analysis.columns_read.get(name).into_iter().flatten().cloned());
            let whole = analysis.whole_rows.contains(name);
            let starts = analysis.path_columns.get(name).into_iter().flatten();
            let lacks: BTreeSet<String> =
                starts.filter(|it| !facts.identity.contains(*it)).cloned().collect();
            TableRead {
                name: name.clone(),
                oid: facts.oid,
                columns: (!whole).then_some(columns),
                published: facts.published,
                identity: reached.identities.get(name).copied(),
                sources: reached.sources.get(name).cloned().unwrap_or_default(),
                identity_lacks: lacks,
            }
        })
        .collect()
}

/// Changes whenever the documents or the index's field types would.
fn hash(plan: &CollectionPlan, views: &[String]) -> String {
    let mut digest = Sha256::new();
    // The length goes first, so that no two lists of parts have the same bytes.
    let mut add = |part: &str| {
        digest.update(part.len().to_be_bytes());
        digest.update(part.as_bytes());
    };
    for entry in &plan.entries {
        add(&entry.canonical_sql);
        for column in &entry.columns {
            add(&column.name);
            add(&column.type_name);
        }
        let (kind, field) = match &entry.entry.nest {
            Nest::Top => ("top", ""),
            Nest::Many(field) => ("many", field.as_str()),
            Nest::One(field) => ("one", field.as_str()),
        };
        for part in [kind, field, &entry.entry.key, if entry.entry.optional { "?" } else { "" }] {
            add(part);
        }
    }
    for (field, mapping) in &plan.settings.field_types {
        add(field);
        add(mapping);
    }
    add(&plan.settings.index_settings);
    views.iter().for_each(|it| add(it));
    digest.finalize().iter().take(6).map(|it| format!("{it:02x}")).collect()
}
