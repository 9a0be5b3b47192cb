//! What the catalog knows of tables: which may be published, and the keys of those that are.
//!
//! Leaves of a partitioned table are told with their root: their changes go to the root's topic,
//! under the root's key.

use postgres_protocol::escape::escape_identifier;
use serde::Deserialize;

use super::PublicationError;
use crate::postgres::query_error::QueryError;
use crate::relation::{RelationId, ReplicaIdentity};

/// A table that could be published.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Candidate {
    pub namespace: String,
    pub name: String,
    /// It is in the publication already.
    pub published: bool,
    /// The replica identity names rows, of all its partitions too.
    pub has_identity: bool,
}

impl Candidate {
    pub fn qualified_name(&self) -> String {
        format!("{}.{}", self.namespace, self.name)
    }

    pub fn quoted_name(&self) -> String {
        // escape_identifier puts a space before some names.
        let quoted = |name: &str| escape_identifier(name).trim().to_owned();
        format!("{}.{}", quoted(&self.namespace), quoted(&self.name))
    }
}

/// `pg_attribute.atttypid` of a column that is no more.
pub const DROPPED_TYPE: u32 = 0;

/// A table whose changes the stream brings: an ordinary table or a leaf partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableInfo {
    pub oid: RelationId,
    pub namespace: String,
    pub name: String,
    /// Its topmost partitioned table, or itself: namespace and name give the topic.
    pub root_oid: RelationId,
    pub root_namespace: String,
    pub root_name: String,
    pub replica_identity: ReplicaIdentity,
    /// The columns of the replica identity, in the index's order; none under FULL and NOTHING.
    pub identity_columns: Vec<String>,
    /// The root's primary key, in the key's order; empty: it has none.
    pub primary_key: Vec<String>,
    /// In the table's order, with their type OIDs; those that were dropped have
    /// [`DROPPED_TYPE`]. Without generated columns, which are not in the stream.
    pub columns: Vec<(String, u32)>,
}

impl TableInfo {
    /// As SQL has it.
    pub fn quoted_name(&self) -> String {
        // escape_identifier puts a space before some names.
        let quoted = |name: &str| escape_identifier(name).trim().to_owned();
        format!("{}.{}", quoted(&self.namespace), quoted(&self.name))
    }

    /// What a record's key is made of: the primary key, if old rows have it, else the identity's
    /// columns; as `TableShape` decides from the stream. Empty: the
    /// table has no key, and its topic is not compacted.
    pub fn key_columns(&self) -> &[String] {
        let by_index = self.replica_identity == ReplicaIdentity::Index;
        let in_old_rows = |name: &String| !by_index || self.identity_columns.contains(name);
        if !self.primary_key.is_empty() && self.primary_key.iter().all(in_old_rows) {
            &self.primary_key
        } else {
            &self.identity_columns
        }
    }
}

#[derive(Deserialize)]
struct WireTable {
    oid: u32,
    namespace: String,
    name: String,
    root_oid: u32,
    root_namespace: String,
    root_name: String,
    replica_identity: String,
    identity_columns: Vec<String>,
    primary_key: Vec<String>,
    columns: Vec<(String, u32)>,
}

/// Partitioned roots and ordinary tables that log changes, outside the system's namespaces.
/// Identity: 'f', or an index that is there: the primary key ('d') or the chosen one ('i'). A
/// partitioned table needs it on every leaf, where changes are made.
const CANDIDATES_SQL: &str = "\
SELECT pg_catalog.jsonb_build_object('namespace', n.nspname, 'name', c.relname, 'published',
  EXISTS (SELECT FROM pg_catalog.pg_publication_rel r
    JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
    WHERE p.pubname = $1 AND r.prrelid = c.oid)
  OR EXISTS (SELECT FROM pg_catalog.pg_publication p
    CROSS JOIN LATERAL pg_catalog.pg_get_publication_tables(p.pubname) t
    WHERE p.pubname = $1
      AND coalesce(pg_catalog.pg_partition_root(t.relid)::pg_catalog.oid, t.relid) = c.oid),
  'has_identity', NOT EXISTS (
    SELECT FROM (
      SELECT c.oid AS leaf WHERE c.relkind = 'r'
      UNION ALL
      SELECT t.relid FROM pg_catalog.pg_partition_tree(c.oid) t
      WHERE c.relkind = 'p' AND t.isleaf AND t.relid <> c.oid) l
    JOIN pg_catalog.pg_class lc ON lc.oid = l.leaf AND lc.relkind = 'r'
    WHERE lc.relreplident <> 'f' AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = lc.oid AND i.indislive
        AND CASE lc.relreplident WHEN 'd' THEN i.indisprimary
                                 WHEN 'i' THEN i.indisreplident ELSE false END))
)::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
ORDER BY n.nspname, c.relname";

/// All tables whose changes the stream brings, leaves instead of partitioned tables; and those whose
/// OIDs are given as the text of an `oid[]`.
const PUBLISHED_SQL: &str = "\
WITH published AS (
  SELECT t.relid AS oid
  FROM pg_catalog.pg_publication p
  CROSS JOIN LATERAL pg_catalog.pg_get_publication_tables(p.pubname) t
  WHERE p.pubname = $1
  UNION
  SELECT unnest($2::text::pg_catalog.oid[])
)
SELECT pg_catalog.jsonb_build_object(
  'oid', c.oid::pg_catalog.int8, 'namespace', n.nspname, 'name', c.relname,
  'root_oid', rc.oid::pg_catalog.int8, 'root_namespace', rn.nspname, 'root_name', rc.relname,
  'replica_identity', c.relreplident,
  'identity_columns', coalesce((
    SELECT pg_catalog.jsonb_agg(a.attname ORDER BY k.nth)
    FROM pg_catalog.pg_index i
    CROSS JOIN LATERAL unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY k (attnum, nth)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = c.oid AND i.indislive AND k.nth <= i.indnkeyatts
      AND CASE c.relreplident WHEN 'd' THEN i.indisprimary
                              WHEN 'i' THEN i.indisreplident ELSE false END), '[]'),
  'primary_key', coalesce((
    SELECT pg_catalog.jsonb_agg(a.attname ORDER BY k.nth)
    FROM pg_catalog.pg_index i
    CROSS JOIN LATERAL unnest(i.indkey::pg_catalog.int2[]) WITH ORDINALITY k (attnum, nth)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = rc.oid AND i.indisprimary AND k.nth <= i.indnkeyatts), '[]'),
  'columns', (
    SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
      a.attname, a.atttypid::pg_catalog.int8) ORDER BY a.attnum), '[]')
    FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND a.attgenerated = '')
)::text
FROM published
JOIN pg_catalog.pg_class c ON c.oid = published.oid AND c.relkind = 'r'
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_class rc
  ON rc.oid = coalesce(pg_catalog.pg_partition_root(c.oid)::pg_catalog.oid, c.oid)
JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
ORDER BY n.nspname, c.relname";

/// The tables that could be published, by name.
pub(super) async fn candidates(
    client: &tokio_postgres::Client,
    publication: &str,
) -> Result<Vec<Candidate>, PublicationError> {
    let rows = client
        .query(CANDIDATES_SQL, &[&publication])
        .await
        .map_err(QueryError::while_doing("list the tables"))?;
    rows.iter().map(|row| parse(row.get(0))).collect()
}

/// What is known of every table that the publication brings, by name.
///
/// # Errors
/// If the query fails.
pub async fn published_tables(
    client: &tokio_postgres::Client,
    publication: &str,
) -> Result<Vec<TableInfo>, PublicationError> {
    tables(client, Some(publication), &[]).await
}

/// The same of one table, published or not. None: it is gone.
///
/// # Errors
/// If the query fails.
pub async fn table(
    client: &tokio_postgres::Client,
    id: RelationId,
) -> Result<Option<TableInfo>, PublicationError> {
    Ok(tables(client, None, &[id]).await?.pop())
}

async fn tables(
    client: &tokio_postgres::Client,
    publication: Option<&str>,
    others: &[RelationId],
) -> Result<Vec<TableInfo>, PublicationError> {
    let others: Vec<String> = others.iter().map(RelationId::to_string).collect();
    let others = format!("{{{}}}", others.join(","));
    let rows = client
        .query(PUBLISHED_SQL, &[&publication, &others])
        .await
        .map_err(QueryError::while_doing("read the published tables"))?;
    rows.iter()
        .map(|row| {
            let wire: WireTable = parse(row.get(0))?;
            let letter = wire.replica_identity.as_bytes().first().copied().unwrap_or(0);
            let replica_identity = ReplicaIdentity::from_letter(letter)
                .ok_or_else(|| PublicationError::Malformed(wire.replica_identity.clone()))?;
            Ok(TableInfo {
                oid: RelationId(wire.oid),
                namespace: wire.namespace,
                name: wire.name,
                root_oid: RelationId(wire.root_oid),
                root_namespace: wire.root_namespace,
                root_name: wire.root_name,
                replica_identity,
                identity_columns: wire.identity_columns,
                primary_key: wire.primary_key,
                columns: wire.columns,
            })
        })
        .collect()
}

fn parse<T: for<'a> Deserialize<'a>>(json: &str) -> Result<T, PublicationError> {
    serde_json::from_str(json).map_err(|err| PublicationError::Malformed(err.to_string()))
}
