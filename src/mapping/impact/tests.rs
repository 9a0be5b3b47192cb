//! Canonical SQL in, paths and reasons out: the counterexamples behind A3 to A12, one a line.

use std::collections::BTreeMap;

use super::facts::{ColumnFacts, FunctionFacts, Nested, TableFacts, Volatility};
use super::{AnalysisInput, analyze};
use crate::mapping::plan::{Path, TableName};

fn column(name: &str) -> ColumnFacts {
    let (type_oid, type_name) = match name {
        "n" => (1700, "numeric"),
        "t" => (25, "text"),
        "j" => (3802, "jsonb"),
        "arr" => (1007, "integer[]"),
        "v" => (1043, "character varying"),
        "at" => (1184, "timestamp with time zone"),
        _ => (23, "integer"),
    };
    ColumnFacts {
        name: name.to_owned(),
        type_oid,
        type_name: type_name.to_owned(),
        carrier: !["j", "arr"].contains(&name),
        same_text: name != "at",
        equal_image: !["n", "j", "arr"].contains(&name),
        generated: name == "gen",
        expression: (name == "gen").then(|| "(x + 1)".to_owned()),
        nested: match name {
            "j" => Some(Nested::Json),
            "arr" => Some(Nested::Array { type_oid: 23, type_name: "integer".to_owned() }),
            _ => None,
        },
        collation: None,
    }
}

fn table(name: &str) -> (TableName, TableFacts) {
    let name = TableName { namespace: "public".to_owned(), name: name.to_owned() };
    let columns = ["id", "x", "y", "n", "t", "j", "v", "at", "gen", "arr"].map(column).to_vec();
    // As under REPLICA IDENTITY FULL, but for table d.
    let identity = match name.name.as_str() {
        "d" => ["id".to_owned()].into(),
        _ => columns.iter().map(|it| it.name.clone()).collect(),
    };
    let facts = TableFacts {
        name: name.clone(),
        oid: 1,
        columns,
        published: true,
        identity,
        obstacles: Vec::new(),
    };
    (name, facts)
}

fn function(name: &str, aggregate: bool, strict: bool) -> FunctionFacts {
    FunctionFacts {
        name: name.to_owned(),
        built_in: true,
        volatility: Volatility::Immutable,
        strict,
        aggregate,
        returns_set: false,
    }
}

/// Paths as `alias: in column` or `alias: a.x = b.y > …`; then `no alias`, or the reason's start.
fn shown(sql: &str) -> String {
    let names = TableName { namespace: "public".to_owned(), name: "view".to_owned() };
    let view = "SELECT b.x AS vx, c.y AS vy FROM public.b JOIN public.c ON c.x = b.y";
    let analysis = analyze(&AnalysisInput {
        sql,
        key: "k",
        tables: &["k", "a", "b", "c", "d"].map(table).into(),
        views: &BTreeMap::from([(names, view.to_owned())]),
        key_equal_image: true,
        functions: &[
            function("max", true, false),
            function("count", true, false),
            function("row_number", false, false),
            function("lower", false, true),
        ],
    });
    let path = |it: &Path| match it {
        Path::InRow { column } => format!("in {column}"),
        Path::Lookup(it) if it.steps.is_empty() => format!("by {}", it.columns.join(",")),
        Path::Lookup(it) => it.steps.join(" > "),
    };
    let reason = |it: &String| match it.strip_prefix("no key path for public.") {
        Some(rest) => {
            let alias = rest.split_once("(as ").map_or(rest, |(_, alias)| alias);
            format!("no {}", alias.split([')', ':']).next().unwrap())
        }
        None => it.chars().take(24).collect(),
    };
    let paths = analysis.paths.iter().map(|it| format!("{}: {}", it.alias, path(&it.path)));
    paths.chain(analysis.poll_reasons.iter().map(reason)).collect::<Vec<_>>().join("; ")
}

#[track_caller]
fn check(cases: &[(&str, &str)]) {
    let wrong: Vec<String> = cases
        .iter()
        .filter(|(sql, expected)| shown(sql) != *expected)
        .map(|(sql, expected)| format!("{sql}\n  is  {}\n  not {expected}", shown(sql)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn an_equality_is_an_edge_within_its_scope_only() {
    check(&[
        // A3: the matrix with stock, and its three relatives.
        (
            "SELECT a.id AS k FROM public.a CROSS JOIN public.d LEFT JOIN public.b ON b.x = a.id AND b.y = d.id",
            "a: in id; b: in x; no d",
        ),
        (
            "SELECT a.id AS k FROM public.a, public.d WHERE NOT EXISTS (SELECT 1 FROM public.b WHERE b.x = a.id AND b.y = d.id)",
            "a: in id; b: in x; no d",
        ),
        (
            "SELECT a.id AS k, (SELECT max(b.id) AS max FROM public.b WHERE b.x = a.id AND b.y = d.id) AS m FROM public.a, public.d",
            "a: in id; b: in x; no d",
        ),
        (
            "SELECT a.id AS k FROM public.a CROSS JOIN public.d LEFT JOIN public.b ON a.x = d.x AND b.x = a.id",
            "a: in id; b: in x; no d",
        ),
        // EXISTS restricts, so it may be crossed.
        (
            "SELECT a.id AS k FROM public.a, public.d WHERE EXISTS (SELECT 1 FROM public.b WHERE b.x = a.id AND b.y = d.id)",
            "a: in id; d: d.id = b.y; b: in x",
        ),
        (
            "SELECT a.id AS k FROM public.a FULL JOIN public.b ON a.x = b.x",
            "a: in id; b: b.x = a.x",
        ),
        (
            "SELECT a.id AS k FROM public.a FULL JOIN public.b ON a.x = b.x FULL JOIN public.c ON c.x = b.y",
            "a: in id; b: b.x = a.x; c: c.x = b.y > b.x = a.x",
        ),
        // Of a merged column either side's row may be missing: neither leads on for a third table.
        (
            "SELECT k.id AS k FROM public.k JOIN (SELECT x FROM public.a FULL JOIN public.b USING (x)) m ON m.x = k.y JOIN public.c ON c.y = m.x",
            "k: in id; a: a.x = k.y; b: b.x = k.y; no c",
        ),
        (
            "SELECT a.id AS k FROM public.a WHERE a.id IN (SELECT b.x FROM public.b)",
            "a: in id; b: in x",
        ),
        (
            "SELECT a.id AS k FROM public.a WHERE NOT a.id IN (SELECT b.x FROM public.b)",
            "a: in id; no b",
        ),
        (
            "SELECT a.id AS k FROM public.a WHERE NOT a.y IN (SELECT b.y FROM public.b WHERE b.x = a.id)",
            "a: in id; b: in x",
        ),
        (
            "SELECT a.id AS k, a.id IN (SELECT b.x FROM public.b) AS m FROM public.a",
            "a: in id; no b",
        ),
        (
            "SELECT a.id AS k FROM public.a JOIN public.b ON b.x = a.id OR b.y = a.id",
            "a: in id; b: b.x = a.id or b.y = a.id",
        ),
        (
            "SELECT a.id AS k FROM public.a JOIN public.b ON NOT b.x IS DISTINCT FROM a.id",
            "a: in id; no b",
        ),
    ]);
}

#[test]
fn barriers_are_left_through_their_columns_only() {
    check(&[
        (
            "SELECT k.id AS k FROM public.k JOIN (SELECT b.x, max(b.y) AS m FROM public.b GROUP BY b.x) s ON s.x = k.id",
            "k: in id; b: in x",
        ),
        (
            "SELECT k.id AS k FROM public.k JOIN (SELECT b.x, max(b.y) AS m FROM public.b GROUP BY b.x) s ON s.m = k.id",
            "k: in id; no b",
        ),
        (
            "SELECT k.id AS k FROM public.k JOIN (SELECT b.y, row_number() OVER (PARTITION BY b.x) AS r FROM public.b) s ON s.y = k.id",
            "k: in id; no b",
        ),
        ("SELECT max(a.id) AS k FROM public.a GROUP BY a.x", "the key k is not a colum"),
        (
            "SELECT DISTINCT ON (x) id AS k, y FROM public.a ORDER BY x, y",
            "the key k is not a colum",
        ),
        ("SELECT id AS k FROM public.a LIMIT 1", "the key k is not a colum"),
        (
            "SELECT x AS k FROM public.a GROUP BY ROLLUP(x)",
            "it uses GROUPING SETS, R; the key k is not a colum",
        ),
        (
            "SELECT k.id AS k FROM public.k LEFT JOIN LATERAL (SELECT b.y FROM public.b WHERE b.x = k.id LIMIT 1) s ON true",
            "k: in id; b: in x",
        ),
    ]);
}

#[test]
fn keys_and_columns_must_be_identical_where_they_are_taken_for_each_other() {
    check(&[
        // A8: numeric is equal without being identical, so the key's own row is asked.
        ("SELECT a.n AS k FROM public.a JOIN public.b ON b.n = a.n", "a: in n; b: b.n = a.n"),
        ("SELECT a.id AS k FROM public.a JOIN public.b ON b.n = a.id", "a: in id; b: b.n = a.id"),
        ("SELECT n AS k FROM public.a GROUP BY n", "rows are merged by the k"),
        (
            "SELECT a.id AS k FROM public.a JOIN public.b ON b.t::integer = a.id",
            "a: in id; b: b.t::int = a.id",
        ),
        (
            "SELECT a.v AS k FROM public.a JOIN public.b ON b.v::text = a.v::text",
            "a: in v; b: in v",
        ),
        ("SELECT a.v AS k FROM public.a JOIN public.b ON b.t = a.v::text", "a: in v; b: b.t = a.v"),
        ("SELECT at AS k FROM public.a", "a: by at"),
        // A12: generated columns are in neither image, but what they are made of is.
        ("SELECT gen AS k FROM public.a", "a: by x"),
        ("SELECT a.id AS k FROM public.a JOIN public.b ON b.gen = a.id", "a: in id; b: by x"),
        // A5: an expression over one occurrence, strict where the row may be missing.
        ("SELECT lower(t) AS k FROM public.a", "a: by t"),
        (
            "SELECT a.x + b.x AS k FROM public.a, public.b WHERE a.y = b.y",
            "the key k is not a colum",
        ),
        (
            "SELECT COALESCE(b.t, 'none'::text) AS k FROM public.a LEFT JOIN public.b ON b.x = a.x",
            "the key k is not a colum",
        ),
        (
            "SELECT a.x + b.x AS k FROM public.a, public.b WHERE a.x = b.x",
            "the key k is not a colum",
        ),
        // Several origins: each has a tree of its own.
        (
            "SELECT COALESCE(b.y, a.y) AS k FROM public.a LEFT JOIN public.b ON b.x = a.x",
            "a: a.x = b.x; b: in y; a: in y; b: b.x = a.x",
        ),
        (
            "SELECT x AS k, a.y, b.y AS z FROM public.a FULL JOIN public.b USING (x)",
            "a: in x; b: in x",
        ),
        ("SELECT a.id::text AS k FROM public.a GROUP BY a.id", "a: by id"),
        ("SELECT lower(a.t) AS k FROM public.a GROUP BY (lower(a.t))", "a: by t"),
        ("SELECT lower(a.t) AS k FROM public.a GROUP BY a.y", "the key k is not a colum"),
        (
            "SELECT lower(b.t) AS k FROM public.a LEFT JOIN public.b ON b.x = a.x",
            "a: a.x = b.x; b: by t",
        ),
    ]);
}

#[test]
fn every_branch_and_every_use_is_an_occurrence_of_its_own() {
    check(&[
        ("SELECT a.id AS k FROM public.a UNION SELECT b.x FROM public.b", "a: in id; b: in x"),
        (
            "SELECT k.id AS k FROM public.k JOIN (SELECT b.x FROM public.b EXCEPT SELECT c.y FROM public.c) s ON s.x = k.id",
            "k: in id; b: in x; c: in y",
        ),
        (
            "WITH w AS (SELECT b.x, b.y FROM public.b) SELECT p.x AS k FROM w p JOIN w q ON q.y = p.y",
            "b: in x; b: b.y = b.y",
        ),
        ("SELECT v.vx AS k, v.vy FROM public.view v", "b: in x; c: c.x = b.y"),
        (
            "SELECT nothing.id AS k FROM public.nothing",
            "it reads public.nothing,; it uses nothing.id, whic; the key k is not a colum",
        ),
    ]);
}

/// An expression's text is what Postgres evaluates: it must have the same meaning.
#[test]
fn what_is_printed_is_what_was_read() {
    let expressions = [
        "a - (b - c)",
        "(a - b) - c",
        "a || (b || c)",
        "(a + b) * c",
        "a * (b + c)",
        "-a * -(b)",
        "(- 5)::text",
        "(a || b)::integer",
        "a::text || b::integer::text",
        "((j -> 'a') ->> 'b')::bigint",
        "j -> ('a' || b)",
        "(j ->> 'a') || (j ->> 'b')",
        "(j ->> 'a') = 'x'",
        "(a = b) = c",
        "NOT (a AND b) OR c",
        "a AND (b OR c)",
        "(a = b) IS NULL",
        "CASE WHEN a > 0 AND (b OR c) THEN (a || 'x') ELSE lower(b) END",
        "COALESCE(a, (b || c)) || 'x'",
        "(CASE a WHEN 1 THEN b END)::text",
        "pg_catalog.unnest(ARRAY[a, b + 1])",
        "unnest(a)::text || 'x'",
        "'it''s \\ ü'::text || a",
        "E'a\\nb' || a",
        "a % (b % c)",
        "(a < b) < c",
        "date_trunc('day'::text, (a AT TIME ZONE 'UTC'::text))",
        "(a #>> '{a,\"b c\"}'::text[])",
        "\"Weird\"(a) || b",
    ];
    for written in expressions {
        let of = |expression: &str| {
            let select = super::parse_select(&format!("SELECT {expression}")).expect(expression);
            select.target_list.into_iter().next().unwrap()
        };
        let Some(pg_query::NodeEnum::ResTarget(target)) = of(written).node else { panic!() };
        let name = |it: &str| Some(["r".to_owned(), it.to_owned()]);
        let printed = super::key::print(&target.val.unwrap(), &name).expect(written);
        let again = printed.replace("r.", "");
        let meaning = |expression: &str| {
            let shown = format!("{:?}", of(expression));
            let parts = shown.split("location: ").map(|it| it.trim_start_matches(['-', '0', '1']));
            let parts = parts.map(|it| it.trim_start_matches(|c: char| c.is_ascii_digit()));
            parts.collect::<String>()
        };
        assert_eq!(meaning(written), meaning(&again), "{written}\n{printed}");
    }
}
