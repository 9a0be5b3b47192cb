//! What a filter says of rows, in tables; that it is what Postgres says is in `tests/topics.rs`.

use super::*;
use crate::relation::{Column, RelationId, ReplicaIdentity};

const COLUMNS: [(&str, u32); 8] = [
    ("id", 23),
    ("total", 1700),
    ("status", 25),
    ("active", 16),
    ("code", 1042),
    ("day", 1082),
    ("at", 1184),
    ("ref", 2950),
];

fn relation() -> Relation {
    let column = |&(name, type_oid): &(&str, u32)| Column {
        name: name.to_owned(),
        type_oid,
        type_modifier: -1,
        in_identity: name == "id",
    };
    Relation {
        id: RelationId(1),
        namespace: "public".to_owned(),
        name: "t".to_owned(),
        replica_identity: ReplicaIdentity::Full,
        columns: COLUMNS.iter().map(column).collect(),
    }
}

/// What the filter says of a row of this one column, all others NULL; `?` was not sent.
fn check(filter: &str, column: &str, value: &str) -> Verdict {
    let filter = RowFilter::parse(filter).unwrap().bind(&relation());
    let place = COLUMNS.iter().position(|it| it.0 == column).unwrap();
    filter.verdict(&|nth| match value {
        _ if nth != place => Value::Null,
        "NULL" => Value::Null,
        "?" => Value::Unsent,
        text => Value::Text(text.as_bytes()),
    })
}

#[test]
fn a_row_passes_if_the_condition_is_true() {
    let cases = [
        ("status = 'open'", "status", "open", true),
        ("status = 'open'", "status", "Open", false),
        ("status <> 'open'", "status", "shut", true),
        ("status <> 'open'", "status", "NULL", false),
        ("NOT status = 'open'", "status", "NULL", false),
        ("status IN ('a', 'b''c')", "status", "b'c", true),
        ("status NOT IN ('a', 'b')", "status", "b", false),
        ("status NOT IN ('a', 'b')", "status", "NULL", false),
        ("status IS NULL", "status", "NULL", true),
        ("status IS NOT NULL", "status", "", true),
        ("active", "active", "t", true),
        ("NOT active", "active", "f", true),
        ("NOT active", "active", "NULL", false),
        ("active = false", "active", "f", true),
        ("total > 1e2", "total", "100.0000000000000000001", true),
        ("total > 100", "total", "100.00", false),
        ("total = 100", "total", "100.00", true),
        ("total < -0.5", "total", "-0.50001", true),
        ("total < -0.5", "total", "-0.4", false),
        ("total = 0", "total", "0.000", true),
        ("total > 0", "total", "NaN", true),
        ("total = 'NaN'", "total", "NaN", true),
        ("total < 5", "total", "-Infinity", true),
        ("total >= '12345678901234567890123'", "total", "12345678901234567890122", false),
        ("id BETWEEN 3 AND 5", "id", "5", true),
        ("id NOT BETWEEN 3 AND 5", "id", "6", true),
        ("id BETWEEN 3 AND 5", "id", "10", false),
        ("code = 'ab'", "code", "ab   ", true),
        ("day >= '2026-01-31'", "day", "2026-02-01", true),
        ("day >= '2026-01-31'", "day", "10000-01-01", true),
        ("day >= '2026-01-31'", "day", "0044-03-15 BC", false),
        ("day > '0045-03-15 BC'", "day", "0044-03-15 BC", true),
        ("day < '2026-01-31'", "day", "-infinity", true),
        ("at >= '2026-01-31'", "at", "2026-01-31 00:00:00+00", true),
        ("at > '2026-01-31 00:00:00.5'", "at", "2026-01-31 00:00:00.45+00", false),
        ("at = '2026-01-31 00:00:00.50'", "at", "2026-01-31 00:00:00.5+00", true),
        (
            "ref = 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'",
            "ref",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            true,
        ),
        ("\"status\" = 'x' OR (id = 1 AND active IS NULL)", "id", "1", true),
        ("gone IS NULL", "id", "1", true),
        ("gone = 'x'", "id", "1", false),
        ("total = 'x'", "total", "1", false),
    ];
    for (filter, column, value, passes) in cases {
        let expected = if passes { Verdict::Passes } else { Verdict::Fails };
        assert_eq!(check(filter, column, value), expected, "{filter} with {value}");
    }
}

#[test]
fn what_was_not_sent_makes_unsure_unless_the_rest_decides() {
    let cases = [
        ("status = 'a'", Verdict::Unsure),
        ("NOT status = 'a'", Verdict::Unsure),
        ("status IS NULL", Verdict::Unsure),
        ("status = 'a' AND id = 1", Verdict::Unsure),
        ("status = 'a' OR id = 1", Verdict::Unsure),
        ("status = 'a' OR id IS NULL", Verdict::Passes),
        ("status = 'a' AND id IS NOT NULL", Verdict::Fails),
    ];
    for (filter, expected) in cases {
        assert_eq!(check(filter, "status", "?"), expected, "{filter}");
    }
}

#[test]
fn what_is_no_filter_is_refused_by_name() {
    let cases = [
        ("status =", "not SQL"),
        ("status = NULL", "write IS NULL"),
        ("lower(status) = 'a'", "something but a column"),
        ("t.status = 'a'", "by its name alone"),
        ("'a' = status", "something but a column"),
        ("status = other", "something but a literal"),
        ("status LIKE 'a%'", "not understood"),
        ("status || 'a' = 'b'", "something but a column"),
        ("true", "not understood"),
        ("exists (select 1)", "not understood"),
        ("id = 1 LIMIT 1", "nothing more"),
        ("id = 1 UNION SELECT 2", "nothing more"),
        ("id = 1; DROP TABLE t", "several statements"),
        ("id = ANY(ARRAY[1])", "not understood"),
    ];
    for (text, expected) in cases {
        let error = RowFilter::parse(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn what_postgres_would_see_otherwise_is_a_mistake() {
    let mut columns: Vec<FilterColumn> = COLUMNS
        .iter()
        .map(|&(name, type_oid)| FilterColumn {
            name: name.to_owned(),
            type_oid,
            is_enum: false,
            deterministic: true,
        })
        .collect();
    let more = |name: &str, type_oid, is_enum, deterministic| FilterColumn {
        name: name.to_owned(),
        type_oid,
        is_enum,
        deterministic,
    };
    columns.push(more("mood", 99_999, true, true));
    columns.push(more("mail", 99_998, false, true));
    columns.push(more("nick", 25, false, false));
    let cases = [
        ("id = 1 AND total > 1.5 AND status = 'a' AND mood = 'ok' AND mail IS NULL", ""),
        ("id = '7' AND day < '2026-01-01' AND at < '2026-01-01 00:00:00' AND NOT active", ""),
        ("ref = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11' AND code IN ('a')", ""),
        ("gone = 1", "column gone, which the table does not have"),
        ("status < 'b'", "the order of column status"),
        ("mood > 'ok'", "the order of column mood"),
        ("mail = 'a'", "column mail, of a type or collation"),
        ("nick = 'a'", "column nick, of a type or collation"),
        ("id = 'seven'", "column id with something but a number"),
        ("status = 7", "column status with something but a string"),
        ("status", "column status with something but a string"),
        ("active = 1", "with something but TRUE or FALSE"),
        ("day = 'today'", "'2026-01-31'"),
        ("ref = 'a'", "a uuid"),
    ];
    for (text, expected) in cases {
        let found = RowFilter::parse(text).unwrap().mistakes(&columns);
        match expected {
            "" => assert_eq!(found, Vec::<String>::new(), "{text}"),
            _ => assert!(found.len() == 1 && found[0].contains(expected), "{text}: {found:?}"),
        }
    }
}
