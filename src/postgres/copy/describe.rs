//! A table of the catalog as the stream's Relation message would describe it, and its key.

use std::sync::Arc;

use super::{CopyTable, KeyColumn, sql};
use crate::postgres::client::Client;
use crate::postgres::publication::TableInfo;
use crate::postgres::query_error::QueryError;
use crate::relation::{Column, Relation, ReplicaIdentity};

/// Columns as the stream has them: without generated ones. Then the collation that the identity's
/// index has for it, and the namespace of its type's comparisons; built-in types have theirs, and
/// what they share with their kin, in pg_catalog. Types are named for the session's search_path.
const COLUMNS_SQL: &str = "\
SELECT a.attname::text, a.atttypid::pg_catalog.int8, a.atttypmod,
  pg_catalog.format_type(a.atttypid, -1),
  (SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.collname)
   FROM pg_catalog.pg_index i
   CROSS JOIN LATERAL unnest(i.indkey::pg_catalog.int2[], i.indcollation::pg_catalog.oid[])
     k (attnum, sorted)
   JOIN pg_catalog.pg_collation c ON c.oid = k.sorted
   JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace
   WHERE i.indrelid = a.attrelid AND i.indisreplident AND k.attnum = a.attnum),
  coalesce((WITH RECURSIVE base (type, next) AS (
     SELECT t.oid, t.typbasetype FROM pg_catalog.pg_type t WHERE t.oid = a.atttypid
     UNION ALL
     SELECT t.oid, t.typbasetype FROM base JOIN pg_catalog.pg_type t ON t.oid = base.next)
   SELECT pg_catalog.quote_ident(n.nspname) FROM base
   JOIN pg_catalog.pg_opclass c ON c.opcintype = base.type AND c.opcdefault
   JOIN pg_catalog.pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
   JOIN pg_catalog.pg_amop s ON s.amopfamily = c.opcfamily AND s.amopstrategy = 5
     AND s.amoplefttype = c.opcintype AND s.amoprighttype = c.opcintype
   JOIN pg_catalog.pg_operator o ON o.oid = s.amopopr AND o.oprname = '>'
   JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace
   WHERE base.next = 0), 'pg_catalog')
FROM pg_catalog.pg_attribute a
WHERE a.attrelid = $1::text::pg_catalog.oid AND a.attnum > 0 AND NOT a.attisdropped
  AND a.attgenerated = ''
ORDER BY a.attnum";

/// Asks the catalog. The table may change at any time after: a chunk says so.
///
/// # Errors
/// If a query fails.
pub async fn describe(client: &Client, info: &TableInfo) -> Result<CopyTable, QueryError> {
    let failed = QueryError::while_doing("read a table's columns");
    let oid = info.oid.to_string();
    // Before the columns: what changes in between then shows.
    let fingerprint = format!("SELECT {}", sql::fingerprint(info.oid.0));
    let fingerprint: String = client.query_one(&fingerprint, &[]).await.map_err(&failed)?.get(0);
    let rows = client.query(COLUMNS_SQL, &[&oid]).await.map_err(&failed)?;
    let by_index = info.replica_identity == ReplicaIdentity::Index
        && info.key_columns() == info.identity_columns.as_slice();
    let in_identity = |name: &String| match info.replica_identity {
        ReplicaIdentity::Full => true,
        ReplicaIdentity::Nothing => false,
        ReplicaIdentity::Default | ReplicaIdentity::Index => info.identity_columns.contains(name),
    };
    let mut columns = Vec::with_capacity(rows.len());
    let mut types = Vec::with_capacity(rows.len());
    for row in &rows {
        let name: String = row.get(0);
        let type_oid = u32::try_from(row.get::<_, i64>(1)).unwrap_or_default();
        let in_identity = in_identity(&name);
        columns.push(Column { name, type_oid, type_modifier: row.get(2), in_identity });
        let collation: Option<String> = row.get(4);
        let collation = collation.filter(|_| by_index);
        types.push((row.get::<_, String>(3), collation, row.get::<_, String>(5)));
    }
    let key = info.key_columns().iter().filter_map(|name| {
        let nth = columns.iter().position(|it| it.name == *name)?;
        let (type_name, collation, operators) = types[nth].clone();
        Some(KeyColumn { name: name.clone(), type_name, collation, operators })
    });
    let key: Vec<KeyColumn> = key.collect();
    // Half a key would skip rows. No table has an empty fingerprint, so its chunk will say so.
    let whole = key.len() == info.key_columns().len();
    let fingerprint = if whole { fingerprint } else { String::new() };
    let relation = Relation {
        id: info.oid,
        namespace: info.namespace.clone(),
        name: info.name.clone(),
        replica_identity: info.replica_identity,
        columns,
    };
    Ok(CopyTable { relation: Arc::new(relation), key, fingerprint })
}
