//! The publication: which tables it must have, what it lacks, and what makes it unusable.
//!
//! We make an explicit list of tables, never FOR ALL TABLES: under that, a later table without a key
//! makes the *application's* UPDATE fail (correctness.md B13). For the same reason a table whose old
//! rows Postgres can't name is refused before it is added. One that somebody has made FOR ALL TABLES
//! or FOR TABLES IN SCHEMA is taken as it is: what it gains later is captured with its first change.
//! Filters and column lists are refused, since what they leave out looks like rows that don't exist.
//!
//! `publish_via_partition_root` must be off (A11): changes name the leaf, and
//! [`TableInfo`] knows its root.
//!
//! **Invariant:** a publication that exists only ever gains tables from us.

mod tables;

use globset::{Glob, GlobSet, GlobSetBuilder};
use postgres_protocol::escape::escape_identifier;

use tables::{Candidate, candidates};
pub use tables::{DROPPED_TYPE, TableInfo, published_tables, table};

use crate::postgres::query_error::QueryError;

/// ALTER PUBLICATION waits for whoever alters the table; behind it others would wait.
const LOCK_TIMEOUT: &str = "5s";

/// Why the publication can't be used.
#[derive(Debug, thiserror::Error)]
pub enum PublicationError {
    #[error("publication \"{publication}\" does not exist; run `onelog prepare`")]
    Missing { publication: String },
    #[error(
        "publication \"{publication}\" {problem}; onelog needs whole tables under their own names: drop \
         it, or choose another [postgres] publication_name, and run `onelog prepare`"
    )]
    Unusable { publication: String, problem: String },
    #[error("[postgres] tables: \"{pattern}\" is not a table name or glob: {problem}")]
    Pattern { pattern: String, problem: String },
    #[error(
        "[postgres] tables: \"{pattern}\" matches no table; write namespace.table, a partitioned \
         table by its root; temporary, unlogged and foreign tables and views can't be published"
    )]
    NoSuchTable { pattern: String },
    #[error(
        "publishing {table} would make the application's UPDATE and DELETE of it fail, because \
         its replica identity names no rows; give it a primary key, or run: \
         ALTER TABLE {quoted} REPLICA IDENTITY FULL"
    )]
    NoIdentity { table: String, quoted: String },
    #[error("Postgres refuses: {statement}")]
    Statement {
        statement: String,
        #[source]
        source: QueryError,
    },
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("the catalog answers what we do not understand: {0}")]
    Malformed(String),
}

impl PublicationError {
    /// Whether trying again may help without a person's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Query(error) | Self::Statement { source: error, .. } => error.is_transient(),
            Self::Missing { .. }
            | Self::Unusable { .. }
            | Self::Pattern { .. }
            | Self::NoSuchTable { .. }
            | Self::NoIdentity { .. }
            | Self::Malformed(_) => false,
        }
    }
}

/// What a publication is, as far as it decides whether we can use it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublicationState {
    /// FOR ALL TABLES: no table can be added to it, as none is missing.
    pub all_tables: bool,
    pub insert: bool,
    pub update: bool,
    pub delete: bool,
    pub truncate: bool,
    pub via_root: bool,
    /// Tables with a row filter or a column list.
    pub filtered: Vec<String>,
}

impl PublicationState {
    /// What stands against using it.
    pub fn problem(&self) -> Option<String> {
        if let Some(table) = self.filtered.first() {
            return Some(format!("has a row filter or column list on {table}"));
        }
        if !(self.insert && self.update && self.delete && self.truncate) {
            return Some("does not publish all of insert, update, delete, truncate".to_owned());
        }
        self.via_root.then(|| "has publish_via_partition_root on".to_owned())
    }
}

/// The publication's state; None: there is none of that name.
///
/// # Errors
/// If a query fails.
pub async fn inspect(
    client: &tokio_postgres::Client,
    name: &str,
) -> Result<Option<PublicationState>, PublicationError> {
    // As JSON, because the catalog's columns come and go with versions.
    let sql = "SELECT pg_catalog.jsonb_build_object( \
                 'publication', pg_catalog.to_jsonb(p), \
                 'filtered', (SELECT pg_catalog.jsonb_agg(r.prrelid::pg_catalog.regclass::text) \
                   FROM pg_catalog.pg_publication_rel r \
                   CROSS JOIN LATERAL pg_catalog.to_jsonb(r) AS j \
                   WHERE r.prpubid = p.oid \
                     AND (j->>'prqual' IS NOT NULL OR j->>'prattrs' IS NOT NULL)) \
               )::text FROM pg_catalog.pg_publication p WHERE p.pubname = $1";
    let read = QueryError::while_doing("read the publication");
    let Some(row) = client.query_opt(sql, &[&name]).await.map_err(&read)? else {
        return Ok(None);
    };
    let malformed = |problem: serde_json::Error| PublicationError::Malformed(problem.to_string());
    let found: serde_json::Value = serde_json::from_str(row.get(0)).map_err(malformed)?;
    let flag = |name: &str| found["publication"][name].as_bool().unwrap_or(false);
    let filtered: Option<Vec<String>> =
        serde_json::from_value(found["filtered"].clone()).map_err(malformed)?;
    Ok(Some(PublicationState {
        all_tables: flag("puballtables"),
        insert: flag("pubinsert"),
        update: flag("pubupdate"),
        delete: flag("pubdelete"),
        truncate: flag("pubtruncate"),
        via_root: flag("pubviaroot"),
        filtered: filtered.unwrap_or_default(),
    }))
}

/// Refuses a publication that is missing or unusable.
///
/// # Errors
/// See [`PublicationError`].
pub async fn verify(client: &tokio_postgres::Client, name: &str) -> Result<(), PublicationError> {
    let publication = name.to_owned();
    match inspect(client, name).await?.map(|it| it.problem()) {
        None => Err(PublicationError::Missing { publication }),
        Some(Some(problem)) => Err(PublicationError::Unusable { publication, problem }),
        Some(None) => Ok(()),
    }
}

/// Creates the publication, or adds what it lacks of the tables that `patterns` name. Returns the
/// statements, which with `dry_run` are not run.
///
/// # Errors
/// See [`PublicationError`]. Statements before the failed one have been run.
pub async fn ensure(
    client: &tokio_postgres::Client,
    name: &str,
    patterns: &[String],
    dry_run: bool,
) -> Result<Vec<String>, PublicationError> {
    let state = inspect(client, name).await?;
    if let Some(problem) = state.as_ref().and_then(PublicationState::problem) {
        return Err(PublicationError::Unusable { publication: name.to_owned(), problem });
    }
    let candidates = candidates(client, name).await?;
    let wanted = matching(patterns, &candidates)?;
    if let Some(table) = wanted.iter().find(|it| !it.has_identity) {
        return Err(PublicationError::NoIdentity {
            table: table.qualified_name(),
            quoted: table.quoted_name(),
        });
    }
    let whole_database = state.as_ref().is_some_and(|it| it.all_tables);
    let wanted = if whole_database { &[][..] } else { &wanted };
    let statements = statements(name, state.is_some(), wanted);
    if !dry_run {
        for statement in &statements {
            run(client, statement).await?;
        }
    }
    Ok(statements)
}

fn statements(name: &str, exists: bool, wanted: &[&Candidate]) -> Vec<String> {
    let publication = escape_identifier(name);
    let publication = publication.trim();
    if exists {
        let missing = wanted.iter().filter(|it| !it.published);
        return missing
            .map(|it| format!("ALTER PUBLICATION {publication} ADD TABLE {}", it.quoted_name()))
            .collect();
    }
    let tables: Vec<String> = wanted.iter().map(|it| it.quoted_name()).collect();
    vec![format!(
        "CREATE PUBLICATION {publication} FOR TABLE {} WITH (publish = \
         'insert, update, delete, truncate', publish_via_partition_root = false)",
        tables.join(", ")
    )]
}

async fn run(client: &tokio_postgres::Client, statement: &str) -> Result<(), PublicationError> {
    let transaction =
        format!("BEGIN; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; {statement}; COMMIT");
    if let Err(source) = client.batch_execute(&transaction).await {
        let source = QueryError { doing: "change the publication", source };
        // The transaction is open and failed; if this fails too, the connection is gone.
        let rollback = client.batch_execute("ROLLBACK").await;
        drop(rollback);
        return Err(PublicationError::Statement { statement: statement.to_owned(), source });
    }
    Ok(())
}

/// The candidates that the patterns name, each once, in the catalog's order.
fn matching<'a>(
    patterns: &[String],
    candidates: &'a [Candidate],
) -> Result<Vec<&'a Candidate>, PublicationError> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let wrong =
            |problem: String| PublicationError::Pattern { pattern: pattern.clone(), problem };
        if !pattern.contains('.') {
            return Err(wrong("it needs its namespace, as in public.orders".to_owned()));
        }
        let glob = Glob::new(pattern).map_err(|err| wrong(err.to_string()))?;
        let one = GlobSet::builder().add(glob.clone()).build();
        let one = one.map_err(|err| wrong(err.to_string()))?;
        if !candidates.iter().any(|it| one.is_match(it.qualified_name())) {
            return Err(PublicationError::NoSuchTable { pattern: pattern.clone() });
        }
        set.add(glob);
    }
    let set = set.build().map_err(|err| PublicationError::Pattern {
        pattern: patterns.join(", "),
        problem: err.to_string(),
    })?;
    Ok(candidates.iter().filter(|it| set.is_match(it.qualified_name())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, published: bool) -> Candidate {
        Candidate {
            namespace: "public".to_owned(),
            name: name.to_owned(),
            published,
            has_identity: true,
        }
    }

    fn whole() -> PublicationState {
        PublicationState {
            insert: true,
            update: true,
            delete: true,
            truncate: true,
            ..PublicationState::default()
        }
    }

    #[test]
    fn what_hides_changes_is_a_problem() {
        assert_eq!(whole().problem(), None);
        let cases = [
            (PublicationState { via_root: true, ..whole() }, "has publish_via_partition_root on"),
            (
                PublicationState { truncate: false, ..whole() },
                "does not publish all of insert, update, delete, truncate",
            ),
            (
                PublicationState { filtered: vec!["public.t".to_owned()], ..whole() },
                "has a row filter or column list on public.t",
            ),
        ];
        for (state, expected) in cases {
            assert_eq!(state.problem().as_deref(), Some(expected));
        }
    }

    #[test]
    fn patterns_name_tables_or_are_refused() {
        let all = [candidate("orders", true), candidate("order_items", false)];
        let names = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|&it| it.to_owned()).collect();
            match matching(&patterns, &all) {
                Ok(found) => found.iter().map(|it| it.name.as_str()).collect::<Vec<_>>().join(" "),
                Err(err) => err.to_string(),
            }
        };
        assert_eq!(names(&["public.order*", "public.orders"]), "orders order_items");
        assert_eq!(names(&["public.order_items"]), "order_items");
        assert!(names(&["orders"]).contains("needs its namespace"));
        assert!(names(&["public.x"]).contains("\"public.x\" matches no table"));
        assert!(names(&["public.[x"]).contains("is not a table name or glob"));
    }

    #[test]
    fn only_missing_tables_are_added() {
        let (old, new) = (candidate("orders", true), candidate("we\"ird", false));
        let added = statements("p", true, &[&old, &new]);
        assert_eq!(added, ["ALTER PUBLICATION \"p\" ADD TABLE \"public\".\"we\"\"ird\""]);
        let created = statements("p", false, &[&old, &new]).join(";");
        assert!(created.starts_with(
            "CREATE PUBLICATION \"p\" FOR TABLE \"public\".\"orders\", \"public\".\"we\"\"ird\" WITH"
        ));
    }
}
