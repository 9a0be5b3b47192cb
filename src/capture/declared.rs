//! Whether the tables are as the topics declared of them in `[[topics]]` need them.
//!
//! The catalog is as of now. The stream may be older, for which `kafka::extract` has an answer
//! that loses nothing; so what is wrong here is told before anything is published.

use std::collections::BTreeSet;

use crate::config::Config;
use crate::config::topics::{Declaration, TableTopic};
use crate::postgres::client::Client;
use crate::postgres::publication::{self, PublicationError, TableInfo};
use crate::postgres::query_error::QueryError;
use crate::postgres::row_filter::{FilterColumn, RowFilter};
use crate::relation::ReplicaIdentity;

/// Why tables can't be held against the declarations.
#[derive(Debug, thiserror::Error)]
pub enum DeclaredError {
    #[error(transparent)]
    Publication(#[from] PublicationError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error("{}", .0.join("; "))]
    Mistakes(Vec<String>),
}

impl DeclaredError {
    /// Whether trying again may help without a person's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Publication(error) => error.is_transient(),
            Self::Query(error) => error.is_transient(),
            Self::Mistakes(_) => false,
        }
    }
}

/// Everything that has to be mended, each with its cure; none: all is well.
///
/// # Errors
/// If the catalog can't be read.
pub async fn mistakes(config: &Config, client: &Client) -> Result<Vec<String>, DeclaredError> {
    let extracts = config.kafka.topics.iter().filter_map(|it| Some((it, it.extract.as_ref()?)));
    let extracts: Vec<_> = extracts.collect();
    if extracts.is_empty() {
        return Ok(Vec::new());
    }
    let name = &config.postgres.publication_name;
    let tables = publication::published_tables(client, name).await?;
    let mut found = Vec::new();
    for (declared, extract) in extracts {
        let root = |it: &TableInfo| format!("{}.{}", it.root_namespace, it.root_name);
        let members: Vec<&TableInfo> =
            tables.iter().filter(|it| root(it) == extract.table).collect();
        let another = tables.iter().find(|it| config.kafka.table_topic(&root(it)) == declared.name);
        if let Some(another) = another {
            let (topic, table) = (&declared.name, root(another));
            found.push(format!(
                "topic {topic} is the own topic of table {table}: give it another name in [[topics]]"
            ));
        }
        let Some(first) = members.first() else {
            found.push(format!(
                "topic {} is of table {}, which is not published: add it to [postgres] tables and \
                 run `onelog prepare`, or mend the name (a partitioned table by its root)",
                declared.name, extract.table
            ));
            continue;
        };
        let columns = match &extract.filter {
            Some(filter) => filter_columns(client, first, filter).await?,
            None => Vec::new(),
        };
        found.extend(of_one((declared, extract), &members, &columns));
    }
    Ok(found)
}

/// As [`mistakes`], as an error.
///
/// # Errors
/// See [`DeclaredError`].
pub async fn verify(config: &Config, client: &Client) -> Result<(), DeclaredError> {
    match mistakes(config, client).await? {
        none if none.is_empty() => Ok(()),
        some => Err(DeclaredError::Mistakes(some)),
    }
}

fn of_one(
    (declared, extract): (&Declaration, &TableTopic),
    members: &[&TableInfo],
    columns: &[FilterColumn],
) -> Vec<String> {
    let (topic, table) = (&declared.name, &extract.table);
    let mut found: BTreeSet<String> = BTreeSet::new();
    for member in members {
        let has = |name: &String| member.columns.iter().any(|it| it.0 == *name);
        for name in extract.columns.iter().filter(|it| !has(it)) {
            found.insert(format!(
                "topic {topic}: table {table} has no column {name} (or it is generated, and not in \
                 the stream); mend columns"
            ));
        }
        for name in member.key_columns() {
            if !extract.columns.is_empty() && !extract.columns.contains(name) {
                found.insert(format!(
                    "topic {topic}: columns must have the key of {table}: add \"{name}\""
                ));
            }
        }
        let Some(filter) = &extract.filter else { continue };
        let known = match member.replica_identity {
            ReplicaIdentity::Full => continue,
            // Rows are inserted and never more.
            ReplicaIdentity::Nothing => continue,
            ReplicaIdentity::Default => &member.primary_key,
            ReplicaIdentity::Index => &member.identity_columns,
        };
        let unknown: Vec<&str> =
            filter.columns().into_iter().filter(|it| known.iter().all(|name| name != it)).collect();
        if !unknown.is_empty() {
            found.insert(format!(
                "topic {topic}: where reads {}, which old rows of {table} do not have, so that it \
                 would not be known which rows leave the topic; run: ALTER TABLE {} REPLICA \
                 IDENTITY FULL;",
                unknown.join(", "),
                member.quoted_name()
            ));
        }
    }
    let wrong = extract.filter.as_ref().map_or_else(Vec::new, |it| it.mistakes(columns));
    found.extend(wrong.into_iter().map(|it| format!("topic {topic}: {it}")));
    found.into_iter().collect()
}

/// The types of the columns that a filter reads.
async fn filter_columns(
    client: &Client,
    table: &TableInfo,
    filter: &RowFilter,
) -> Result<Vec<FilterColumn>, QueryError> {
    // A domain is compared as what it is made of, unless that is a domain again.
    let sql = "SELECT a.attname::text, coalesce(base.oid, t.oid)::pg_catalog.int8, \
               coalesce(base.typtype, t.typtype) = 'e', coalesce(c.collisdeterministic, true) \
               FROM pg_catalog.pg_attribute a \
               JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
               LEFT JOIN pg_catalog.pg_type base ON t.typtype = 'd' AND base.oid = t.typbasetype \
               LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation \
               WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped \
               AND a.attname::text = ANY ($2)";
    let names: Vec<&str> = filter.columns().into_iter().collect();
    let rows = client
        .query(sql, &[&table.oid.0, &names])
        .await
        .map_err(QueryError::while_doing("read the columns of a row filter"))?;
    let column = |row: &tokio_postgres::Row| FilterColumn {
        name: row.get(0),
        type_oid: u32::try_from(row.get::<_, i64>(1)).unwrap_or(0),
        is_enum: row.get(2),
        deterministic: row.get(3),
    };
    Ok(rows.iter().map(column).collect())
}
