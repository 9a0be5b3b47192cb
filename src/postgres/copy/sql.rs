//! The SQL of a chunk, as text.
//!
//! Everything of a chunk is one simple query: one round trip, and all values come as the text of
//! their types' output functions, which is what the stream has too. LOCK comes before the first
//! snapshot (A2). Values of keys are quoted literals, cast to their column's type.
//!
//! The session's search_path is pg_catalog, as the walsender's is: so the text of a regclass is the
//! stream's. Every name here is qualified, comparisons too: in another path an extension's type
//! falls back to those of text, whose order is not that of its index. A person's condition has its
//! names from the role's own path: a cursor is parsed under that one, and read under ours.
//!
//! A chunk begins after a key and is compared by the order of the index that makes the key unique,
//! with its collation: in another order rows that are equal there, and not here, would be skipped.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use super::{CopyTable, KeyColumn, Wanted};
use crate::kafka::copy_record::After;

/// How many pages of a table without a key one chunk has: 512 KiB of the table's file.
pub(super) const PAGES: u32 = 64;

pub(super) fn identifier(name: &str) -> String {
    // escape_identifier puts a space before some names.
    escape_identifier(name).trim().to_owned()
}

pub(super) fn literal(value: &str) -> String {
    escape_literal(value).trim().to_owned()
}

/// A word for the columns of a table, which differs when they do.
pub(super) fn fingerprint(oid: u32) -> String {
    format!(
        "(SELECT pg_catalog.md5(coalesce(pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attnum, \
         a.attname, a.atttypid, a.attgenerated), ',' ORDER BY a.attnum), '')) \
         FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = {oid} AND a.attnum > 0 AND NOT a.attisdropped)"
    )
}

/// The whole transaction: first the state, then of a chunk with a condition where its range ends,
/// then its rows.
pub(super) fn transaction(table: &CopyTable, wanted: &Wanted<'_>) -> String {
    let (name, oid) = (table.quoted_name(), table.relation.id.0);
    let (found, fingerprint) = (literal(&name), fingerprint(oid));
    let queries =
        if table.key.is_empty() { by_place(table, wanted) } else { by_key(table, wanted) };
    format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
         LOCK TABLE ONLY {name} IN ACCESS SHARE MODE; \
         SELECT pg_catalog.pg_current_snapshot(), pg_catalog.pg_is_in_recovery()::text, \
         pg_catalog.to_regclass({found})::pg_catalog.oid, {fingerprint}, \
         pg_catalog.pg_relation_filenode({oid}), \
         pg_catalog.pg_relation_size({oid}) / pg_catalog.current_setting('block_size')::int8; \
         {queries}; COMMIT"
    )
}

fn columns(table: &CopyTable) -> String {
    let names = table.relation.columns.iter().map(|it| identifier(&it.name));
    names.collect::<Vec<_>>().join(", ")
}

fn by_key(table: &CopyTable, wanted: &Wanted<'_>) -> String {
    let name = table.quoted_name();
    let keys: Vec<String> = table.key.iter().map(|it| it.expression()).collect();
    let order = keys.join(", ");
    let descending: Vec<String> = keys.iter().map(|it| format!("{it} DESC")).collect();
    let range = match wanted.after {
        Some(After::Key { values, .. }) => {
            let pairs = table.key.iter().zip(values);
            let values: Vec<String> =
                pairs.map(|(key, it)| format!("{}::{}", literal(it), key.type_name)).collect();
            format!("WHERE {}", beyond(&table.key, &values))
        }
        Some(After::Place { .. }) | None => String::new(),
    };
    let (columns, limit) = (columns(table), wanted.rows);
    let Some(condition) = wanted.condition else {
        return format!("SELECT {columns} FROM ONLY {name} {range} ORDER BY {order} LIMIT {limit}");
    };
    // The condition is asked of a range, so that one that is true for few rows still ends in time.
    // A line of its own each, as it may end with a comment.
    let bare = table.key.iter().map(|it| identifier(&it.name)).collect::<Vec<_>>().join(", ");
    let alias = identifier(&table.relation.name);
    format!(
        "SELECT pg_catalog.count(*) OVER (), {bare} FROM (SELECT {bare} FROM ONLY {name} {range} \
         ORDER BY {order} LIMIT {limit}) q ORDER BY {} LIMIT 1; {}",
        descending.join(", "),
        by_cursor(&format!(
            "SELECT {columns} FROM (SELECT * FROM ONLY {name} {range} ORDER BY {order} \
             LIMIT {limit}) AS {alias} WHERE (\n{condition}\n) ORDER BY {order}"
        ))
    )
}

/// What is true for keys behind this one. Columns with one namespace of comparisons are compared
/// as rows are, which their index answers; with several there is no such comparison, and the
/// index is read from the first column's value on.
fn beyond(key: &[KeyColumn], values: &[String]) -> String {
    let columns: Vec<String> = key.iter().map(KeyColumn::expression).collect();
    let first = key.first().map_or("pg_catalog", |it| it.operators.as_str());
    if key.iter().all(|it| it.operators == first) {
        let (columns, values) = (columns.join(", "), values.join(", "));
        return format!("({columns}) OPERATOR({first}.>) ({values})");
    }
    let compare = |nth: usize, operator: &str| {
        let (column, space, value) = (&columns[nth], &key[nth].operators, &values[nth]);
        format!("{column} OPERATOR({space}.{operator}) {value}")
    };
    let last = key.len() - 1;
    let inner = (0..last).rev().fold(compare(last, ">"), |rest, nth| {
        format!("({} OR ({} AND {rest}))", compare(nth, ">"), compare(nth, "="))
    });
    format!("{} AND {inner}", compare(0, ">="))
}

/// The query's names are those of the role's search_path, and its values are written under ours.
fn by_cursor(query: &str) -> String {
    format!(
        "SET LOCAL search_path TO DEFAULT; DECLARE onelog_rows NO SCROLL CURSOR FOR {query}; \
         SET LOCAL search_path = pg_catalog; FETCH ALL FROM onelog_rows"
    )
}

fn by_place(table: &CopyTable, wanted: &Wanted<'_>) -> String {
    let (page, tuple) = place_of(wanted);
    let end = page.saturating_add(PAGES);
    let (name, columns) = (table.quoted_name(), columns(table));
    let condition = wanted.condition.map(|it| format!("AND (\n{it}\n)")).unwrap_or_default();
    let query = format!(
        "SELECT {columns}, ctid FROM ONLY {name} WHERE ctid > '({page},{tuple})'::tid \
         AND ctid < '({end},0)'::tid {condition} ORDER BY ctid"
    );
    if wanted.condition.is_some() { by_cursor(&query) } else { query }
}

/// The place after which a chunk of a table without a key begins; no row is at tuple 0.
pub(super) fn place_of(wanted: &Wanted<'_>) -> (u32, u16) {
    match wanted.after {
        Some(After::Place { page, tuple, .. }) => (*page, *tuple),
        Some(After::Key { .. }) | None => (0, 0),
    }
}

/// The text of what is to be prepared to find mistakes in a condition, and nothing else.
pub(super) fn with_condition(quoted_name: &str, name: &str, condition: &str) -> String {
    let alias = identifier(name);
    format!("SELECT FROM (SELECT * FROM {quoted_name}) AS {alias} WHERE (\n{condition}\n)")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::postgres::copy::KeyColumn;
    use crate::relation::{Column, Relation, RelationId, ReplicaIdentity};

    fn table(key: Vec<KeyColumn>) -> CopyTable {
        let column = |name: &str| Column {
            name: name.to_owned(),
            type_oid: 25,
            type_modifier: -1,
            in_identity: false,
        };
        let relation = Relation {
            id: RelationId(7),
            namespace: "public".to_owned(),
            name: "T t".to_owned(),
            replica_identity: ReplicaIdentity::Default,
            columns: vec![column("a"), column("b"), column("v")],
        };
        CopyTable { relation: Arc::new(relation), key, fingerprint: String::new() }
    }

    fn key() -> Vec<KeyColumn> {
        let column = |name: &str, type_name: &str, collation: Option<&str>| KeyColumn {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            collation: collation.map(str::to_owned),
            operators: "pg_catalog".to_owned(),
        };
        vec![column("b", "bigint", None), column("a", "text", Some("pg_catalog.\"C\""))]
    }

    fn after_key() -> After {
        let columns = vec!["b".to_owned(), "a".to_owned()];
        After::Key { columns, values: vec!["1".to_owned(), "o'x".to_owned()] }
    }

    #[track_caller]
    fn check(table: &CopyTable, wanted: &Wanted<'_>, expected: &str) {
        let sql = transaction(table, wanted);
        let queries = sql.split_once("int8; ").expect("the state").1;
        assert_eq!(queries.strip_suffix("; COMMIT"), Some(expected));
    }

    #[test]
    fn the_lock_is_taken_before_the_snapshot() {
        let wanted = Wanted { after: None, condition: None, rows: 3, bytes_max: 1 };
        let sql = transaction(&table(key()), &wanted);
        let expected = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE ONLY \
                        \"public\".\"T t\" IN ACCESS SHARE MODE; SELECT ";
        assert!(sql.starts_with(expected), "{sql}");
    }

    #[test]
    fn chunks_go_by_the_key_in_its_order() {
        let order = "\"b\", \"a\" COLLATE pg_catalog.\"C\"";
        let mut wanted = Wanted { after: None, condition: None, rows: 3, bytes_max: 1 };
        let head = "SELECT \"a\", \"b\", \"v\" FROM ONLY \"public\".\"T t\"";
        check(&table(key()), &wanted, &format!("{head}  ORDER BY {order} LIMIT 3"));
        let after = after_key();
        wanted.after = Some(&after);
        let range = format!("WHERE ({order}) OPERATOR(pg_catalog.>) ('1'::bigint, 'o''x'::text)");
        check(&table(key()), &wanted, &format!("{head} {range} ORDER BY {order} LIMIT 3"));
        wanted.condition = Some("v = '' -- all");
        let within = format!("FROM ONLY \"public\".\"T t\" {range} ORDER BY {order} LIMIT 3");
        let expected = format!(
            "SELECT pg_catalog.count(*) OVER (), \"b\", \"a\" FROM (SELECT \"b\", \"a\" {within}) q \
             ORDER BY \"b\" DESC, \"a\" COLLATE pg_catalog.\"C\" DESC LIMIT 1; {}",
            by_cursor(&format!(
                "SELECT \"a\", \"b\", \"v\" FROM (SELECT * {within}) AS \"T t\" \
                 WHERE (\nv = '' -- all\n) ORDER BY {order}"
            ))
        );
        check(&table(key()), &wanted, &expected);
    }

    #[test]
    fn comparisons_are_those_of_the_types() {
        let values = ["1::bigint".to_owned(), "'x'::ext.citext".to_owned()];
        let mut key = key();
        key[1].collation = None;
        key[1].operators = "ext".to_owned();
        let expected = "\"b\" OPERATOR(pg_catalog.>=) 1::bigint AND (\"b\" \
                        OPERATOR(pg_catalog.>) 1::bigint OR (\"b\" OPERATOR(pg_catalog.=) \
                        1::bigint AND \"a\" OPERATOR(ext.>) 'x'::ext.citext))";
        assert_eq!(beyond(&key, &values), expected);
        let alone = "(\"a\") OPERATOR(ext.>) ('x'::ext.citext)";
        assert_eq!(beyond(&key[1..], &values[1..]), alone);
    }

    #[test]
    fn a_table_without_a_key_goes_by_place() {
        let after = After::Place { file: 9, page: 64, tuple: 3 };
        let wanted = Wanted { after: Some(&after), condition: Some("true"), rows: 3, bytes_max: 1 };
        check(
            &table(Vec::new()),
            &wanted,
            &by_cursor(
                "SELECT \"a\", \"b\", \"v\", ctid FROM ONLY \"public\".\"T t\" WHERE ctid > \
                 '(64,3)'::tid AND ctid < '(128,0)'::tid AND (\ntrue\n) ORDER BY ctid",
            ),
        );
    }
}
