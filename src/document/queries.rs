//! The SQL that reads documents: what a refresh, a sweep's slice, an orphan check and a key path
//! send to Postgres. Pure: plans and keys in, [`Query`]s out.
//!
//! Every result column and every parameter is text: Postgres does all comparing and rendering, so
//! that no type needs to be known here. Keys travel as `text[]` and are cast to the key's type.
//! The canonical SQL is always a subquery and keeps its ORDER BY in there.
//!
//! Never decides which keys or tables; every key that leaves here is NOT NULL.

use crate::document::DocumentKey;
use crate::mapping::key_sql::without_order;
use crate::mapping::plan::{CollectionPlan, EntryPlan, Lookup, quote_identifier};

/// A value for `$n`. Owned, so that a query can be sent to another task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Param {
    TextArray(Vec<Option<String>>),
    Text(Option<String>),
    Int8(i64),
}

/// One statement and its values. All result columns must be of type text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    pub sql: String,
    pub params: Vec<Param>,
}

/// A result, row by row, each a list of columns.
pub type Rows = Vec<Vec<Option<String>>>;

/// A slice of a sweep: keys above `low` (exclusive) up to `high` (inclusive), in the order of the
/// key's type. None: no bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub low: Option<DocumentKey>,
    pub high: Option<DocumentKey>,
}

/// One page of a path's keys, in bytewise order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The last key of the page before; None: the first page.
    pub after: Option<String>,
    /// Keys on a page, 1 or more.
    pub keys_max: i64,
}

/// All rows of the keys, one query for each entry in order. Columns: key, row as JSON.
///
/// A key's text that is no value of the key's type fails the whole query: bisect.
pub fn refresh_queries(plan: &CollectionPlan, keys: &[DocumentKey]) -> Vec<Query> {
    let query = |entry: &EntryPlan| Query {
        sql: rows_where(entry, |key| format!("{key} = ANY($1::text[]::{}[])", key_type(plan))),
        params: vec![texts(keys)],
    };
    plan.entries.iter().map(query).collect()
}

/// Where to cut a range into slices: up to `count` keys, ascending, with `every` keys of the range
/// from one to the next. Fewer than `count`: the range ends within the slice after the last one.
///
/// To be cut well, not exactly: slices that follow from it cover every key of the range once,
/// whatever else was written meanwhile.
pub fn bounds_query(plan: &CollectionPlan, range: &Range, every: i64, count: i64) -> Query {
    let mut params = vec![Param::Int8(every.saturating_mul(count)), Param::Int8(every)];
    let condition = range_condition(plan, range, &mut params);
    let collate = collate(&plan.key_type);
    let keys: Vec<String> = plan
        .entries
        .iter()
        .map(|entry| {
            let row = row_alias(entry);
            let key = format!("{row}.{}", quote_identifier(&entry.entry.key));
            format!(
                "(SELECT DISTINCT {key}{collate} AS k FROM ({}) {row} WHERE {} \
                 ORDER BY 1 LIMIT $1::bigint)",
                without_order(&entry.canonical_sql),
                condition(&key)
            )
        })
        .collect();
    let sql = format!(
        "SELECT n.k::text FROM (SELECT d.k, row_number() OVER (ORDER BY d.k) AS nth FROM \
         (SELECT DISTINCT u.k FROM ({}) u ORDER BY 1 LIMIT $1::bigint) d) n \
         WHERE n.nth % $2::bigint = 0 ORDER BY n.nth",
        keys.join(" UNION ALL ")
    );
    Query { sql, params }
}

/// The keys that [`bounds_query`] answered.
pub fn bounds(rows: &Rows) -> Vec<DocumentKey> {
    rows.iter().filter_map(|it| it.first()?.clone()).map(DocumentKey).collect()
}

/// How many keys there are, as an estimate of the planner's: EXPLAIN for the entry that makes
/// documents exist. None: no entry does.
pub fn estimate_queries(plan: &CollectionPlan) -> Vec<Query> {
    let entries = plan.entries.iter().filter(|it| !it.entry.optional);
    let query = |entry: &EntryPlan| {
        let key = quote_identifier(&entry.entry.key);
        let row = row_alias(entry);
        let inner = without_order(&entry.canonical_sql);
        let sql = format!("EXPLAIN SELECT {row}.{key} FROM ({inner}) {row} GROUP BY {row}.{key}");
        Query { sql, params: Vec::new() }
    };
    entries.map(query).collect()
}

/// The rows that the first line of an EXPLAIN expects: `… (cost=0.29..8.31 rows=60 width=8)`.
pub fn estimated_rows(rows: &Rows) -> Option<u64> {
    let line = rows.first()?.first()?.as_ref()?;
    line.split_once(" rows=")?.1.split(' ').next()?.parse().ok()
}

/// All rows whose key lies in the range, one query for each entry in order. Columns: key, row as
/// JSON.
pub fn slice_queries(plan: &CollectionPlan, range: &Range) -> Vec<Query> {
    let mut params = Vec::new();
    let condition = range_condition(plan, range, &mut params);
    let query =
        |entry: &EntryPlan| Query { sql: rows_where(entry, &condition), params: params.clone() };
    plan.entries.iter().map(query).collect()
}

/// The condition that a key lies in the range, its values being appended to `params`.
fn range_condition<'a>(
    plan: &'a CollectionPlan,
    range: &Range,
    params: &mut Vec<Param>,
) -> impl Fn(&str) -> String + use<'a> {
    let key_type = key_type(plan);
    let collate = collate(&plan.key_type);
    let mut given = Vec::new();
    for (sign, bound) in [(">", &range.low), ("<=", &range.high)] {
        if let Some(bound) = bound {
            params.push(Param::Text(Some(bound.0.clone())));
            given.push((sign, params.len()));
        }
    }
    move |key: &str| {
        let conditions: Vec<String> = given
            .iter()
            .map(|(sign, nth)| format!("{key}{collate} {sign} ${nth}::text::{key_type}"))
            .collect();
        match conditions.is_empty() {
            true => format!("{key} IS NOT NULL"),
            false => conditions.join(" AND "),
        }
    }
}

/// Which of the keys have a document, for the search of orphans: one query for each entry that
/// makes documents exist. One column: the text of a key that is there. A key is an orphan when no
/// query answers exactly its text.
pub fn existing_queries(plan: &CollectionPlan, keys: &[DocumentKey]) -> Vec<Query> {
    let entries = plan.entries.iter().filter(|it| !it.entry.optional);
    let query = |entry: &EntryPlan| {
        let row = row_alias(entry);
        let key = format!("{row}.{}", quote_identifier(&entry.entry.key));
        Query {
            sql: format!(
                "SELECT DISTINCT {key}::text FROM ({}) {row} WHERE {key} = ANY($1::text[]::{}[])",
                entry.canonical_sql,
                key_type(plan)
            ),
            params: vec![texts(keys)],
        }
    };
    entries.map(query).collect()
}

/// How many rows are left out because their key is NULL, one query for each entry. One row, one
/// column: a number.
pub fn null_key_queries(plan: &CollectionPlan) -> Vec<Query> {
    let query = |entry: &EntryPlan| {
        let row = row_alias(entry);
        let key = format!("{row}.{}", quote_identifier(&entry.entry.key));
        Query {
            sql: format!(
                "SELECT count(*)::text FROM ({}) {row} WHERE {key} IS NULL",
                entry.canonical_sql
            ),
            params: Vec::new(),
        }
    };
    plan.entries.iter().map(query).collect()
}

/// The keys that changed rows touch. `images` has the values of [`Lookup::columns`], in that
/// order, one list for each image. One column: the key; in bytewise order if paged.
pub fn lookup_query(lookup: &Lookup, images: &[Vec<Option<String>>], page: Option<&Page>) -> Query {
    let column = |nth: usize| {
        images.iter().map(|image| image.get(nth).cloned().flatten()).collect::<Vec<_>>()
    };
    let columns = lookup.columns.len();
    let mut params: Vec<Param> = (0..columns).map(|nth| Param::TextArray(column(nth))).collect();
    let Some(page) = page else {
        return Query { sql: lookup.sql.clone(), params };
    };
    let (after, limit) = (columns + 1, columns + 2);
    params.extend([Param::Text(page.after.clone()), Param::Int8(page.keys_max)]);
    let sql = format!(
        "SELECT p.\"key\" FROM ({}) p WHERE ${after}::text IS NULL \
         OR p.\"key\" > ${after}::text COLLATE \"C\" \
         ORDER BY p.\"key\" COLLATE \"C\" LIMIT ${limit}::bigint",
        lookup.sql
    );
    Query { sql, params }
}

/// `SELECT key, row FROM (…) WHERE …`, the condition being written by `condition` from the key.
fn rows_where(entry: &EntryPlan, condition: impl Fn(&str) -> String) -> String {
    let row = row_alias(entry);
    let key = format!("{row}.{}", quote_identifier(&entry.entry.key));
    format!(
        "SELECT {key}::text, row_to_json({row})::text FROM ({}) {row} WHERE {}",
        entry.canonical_sql,
        condition(&key)
    )
}

/// A name for the subquery that none of its columns has: in `row_to_json(q)` a column `q` would
/// come before the row `q`.
fn row_alias(entry: &EntryPlan) -> String {
    let mut alias = "q".to_owned();
    while entry.columns.iter().any(|it| it.name == alias) {
        alias.push('_');
    }
    alias
}

/// The key's type as a cast target. `character` and `bit` without a length would mean a length of
/// one there.
fn key_type(plan: &CollectionPlan) -> &str {
    match plan.key_type.as_str() {
        "character" => "bpchar",
        "bit" => "\"bit\"",
        other => other,
    }
}

/// Entries whose key columns have different collations must still agree on the order of keys, or
/// slices would miss some. Named only for the types that have one; an index on a column with the
/// database's own collation, the usual case, is used all the same.
fn collate(key_type: &str) -> &'static str {
    let last = key_type.rsplit('.').next().unwrap_or(key_type);
    match last {
        "text" | "character varying" | "character" | "bpchar" | "name" | "citext" => {
            " COLLATE pg_catalog.\"default\""
        }
        _ => "",
    }
}

fn texts(keys: &[DocumentKey]) -> Param {
    Param::TextArray(keys.iter().map(|it| Some(it.0.clone())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::build::test_plan;
    use crate::mapping::Nest;

    fn key(text: &str) -> DocumentKey {
        DocumentKey(text.to_owned())
    }

    #[test]
    fn a_refresh_asks_each_entry_for_its_keys() {
        let mut plan = test_plan(&[(Nest::Top, false), (Nest::Many("f".to_owned()), true)]);
        plan.key_type = "character".to_owned();
        plan.entries[1].columns[0].name = "q".to_owned();
        let queries = refresh_queries(&plan, &[key("a"), key("b")]);
        let sql: Vec<&str> = queries.iter().map(|it| it.sql.as_str()).collect();
        assert_eq!(
            sql,
            [
                "SELECT q.\"id\"::text, row_to_json(q)::text FROM (SELECT 1) q \
                 WHERE q.\"id\" = ANY($1::text[]::bpchar[])",
                "SELECT q_.\"id\"::text, row_to_json(q_)::text FROM (SELECT 1) q_ \
                 WHERE q_.\"id\" = ANY($1::text[]::bpchar[])",
            ]
        );
        let both = Param::TextArray(vec![Some("a".to_owned()), Some("b".to_owned())]);
        assert!(queries.iter().all(|it| it.params == [both.clone()]));
        assert_eq!(existing_queries(&plan, &[key("a")]).len(), 1, "optional entries do not count");
    }

    #[test]
    fn a_slice_has_the_bounds_that_are_given() {
        let plan = test_plan(&[(Nest::Top, false)]);
        let cases = [
            (None, None, "q.\"id\" IS NOT NULL"),
            (Some("1"), None, "q.\"id\" > $1::text::bigint"),
            (None, Some("9"), "q.\"id\" <= $1::text::bigint"),
            (Some("1"), Some("9"), "q.\"id\" > $1::text::bigint AND q.\"id\" <= $2::text::bigint"),
        ];
        for (low, high, expected) in cases {
            let range = Range { low: low.map(key), high: high.map(key) };
            let query = slice_queries(&plan, &range).remove(0);
            assert!(query.sql.ends_with(&format!("WHERE {expected}")), "{}", query.sql);
            assert_eq!(query.params.len(), [low, high].iter().flatten().count());
        }
    }

    #[test]
    fn an_estimate_is_read_from_the_first_line() {
        let line = "HashAggregate  (cost=1.00..2.00 rows=60000 width=8)";
        assert_eq!(estimated_rows(&vec![vec![Some(line.to_owned())]]), Some(60_000));
        assert_eq!(estimated_rows(&Vec::new()), None);
    }

    #[test]
    fn a_lookup_turns_images_into_columns() {
        let lookup = Lookup {
            columns: vec!["a".to_owned(), "b".to_owned()],
            json: Default::default(),
            strict: false,
            sql: "SELECT x AS key FROM t".to_owned(),
            hops: Vec::new(),
            steps: Vec::new(),
        };
        let one = |it: &str| Some(it.to_owned());
        let images = [vec![one("1"), None], vec![one("2"), one("y")]];
        let query = lookup_query(&lookup, &images, None);
        let columns =
            [Param::TextArray(vec![one("1"), one("2")]), Param::TextArray(vec![None, one("y")])];
        assert_eq!((query.sql.as_str(), &query.params[..]), (lookup.sql.as_str(), &columns[..]));
        let page = Page { after: one("k"), keys_max: 5 };
        let query = lookup_query(&lookup, &images, Some(&page));
        assert!(query.sql.contains("$3::text") && query.sql.ends_with("LIMIT $4::bigint"));
        assert_eq!(query.params[2..], [Param::Text(one("k")), Param::Int8(5)]);
    }
}
