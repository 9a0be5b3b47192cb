//! The law of `postgres::text`: from a value's text it writes what Postgres' `to_jsonb` writes.
//!
//! Postgres is the oracle. Random values of many types, and arrays and composites of them, are
//! printed by their output function (`format('%s', …)`; a cast to text prints some types
//! otherwise) and by `to_jsonb` in one query. The seed is fixed unless ONELOG_TEST_SEED is set.

#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

use std::collections::BTreeMap;

use onelog::postgres::text::{Kind, TYPE_ROWS_SQL, TypeKinds, TypeRow, write_json};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::value::RawValue;
use tokio_postgres::{Client, NoTls};

const VALUES_PER_TYPE: usize = 40;

const OBJECTS: &str = r#"
SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres';
SET extra_float_digits = 1; SET bytea_output = 'hex';
CREATE TYPE pg_temp.mood AS ENUM ('so so', 'good "very"', 'bad,\really');
CREATE DOMAIN pg_temp.price AS numeric(12, 2);
CREATE DOMAIN pg_temp.numbers AS int[];
CREATE TYPE pg_temp.inner_row AS
  ("a ""b" int, when_ timestamptz, tags text[], gone int, mood pg_temp.mood);
ALTER TYPE pg_temp.inner_row DROP ATTRIBUTE gone;
CREATE TYPE pg_temp.outer_row AS
  (p pg_temp.price, n pg_temp.numbers, i pg_temp.inner_row, l pg_temp.inner_row[], j jsonb, b bool);
CREATE DOMAIN pg_temp.row_domain AS pg_temp.outer_row;
"#;

type Generator = fn(&mut StdRng) -> String;

/// Types by SQL name, and how to make the text of a random value.
const TYPES: &[(&str, Generator)] = &[
    ("bool", |rng| rng.random::<bool>().to_string()),
    ("int2", |rng| rng.random::<i16>().to_string()),
    ("int4", |rng| rng.random::<i32>().to_string()),
    ("int8", |rng| rng.random::<i64>().to_string()),
    ("oid", |rng| rng.random::<u32>().to_string()),
    ("float4", |rng| float(rng, f32::from_bits(rng.clone().random()).to_string())),
    ("float8", |rng| float(rng, f64::from_bits(rng.clone().random()).to_string())),
    ("float8", |rng| float(rng, rng.clone().random_range(-1000.0..1000.0f64).to_string())),
    ("numeric", numeric),
    ("numeric(20,5)", |rng| rng.random_range(-1e9..1e9f64).to_string()),
    ("pg_temp.price", |rng| rng.random_range(-1e9..1e9f64).to_string()),
    ("money", |rng| rng.random_range(-1e6..1e6f64).to_string()),
    ("text", text),
    ("varchar(9)", |rng| text(rng).chars().take(9).collect()),
    ("char(5)", |rng| text(rng).chars().take(4).collect()),
    ("name", |rng| text(rng).chars().take(9).collect()),
    ("\"char\"", |rng| rng.random_range('!'..='z').to_string()),
    ("bytea", |rng| (0..rng.random_range(0..9)).fold("\\x".to_owned(), |it, _| it + "0f")),
    ("json", |rng| json(rng, 3)),
    ("jsonb", |rng| json(rng, 3)),
    ("uuid", |rng| format!("{:032x}", rng.random::<u128>())),
    ("date", |rng| special(rng, |rng| format!("{}{}", day(rng), era(rng)))),
    ("timestamp", |rng| special(rng, |rng| format!("{} {}{}", day(rng), time(rng), era(rng)))),
    ("timestamptz", |rng| {
        special(rng, |rng| format!("{} {}+05:30{}", day(rng), time(rng), era(rng)))
    }),
    ("timestamptz(0)", |rng| format!("{} {}-11{}", day(rng), time(rng), era(rng))),
    ("time", time),
    ("timetz", |rng| time(rng) + "+02:30"),
    ("interval", |rng| {
        format!("{} mon {} days {}", rng.random_range(-99..99), rng.random::<i16>(), time(rng))
    }),
    ("inet", |rng| format!("10.1.{}.7/{}", rng.random::<u8>(), rng.random_range(0..=32))),
    ("cidr", |rng| format!("10.{}.0.0/16", rng.random::<u8>())),
    ("macaddr", |rng| format!("08:00:2b:01:02:{:02x}", rng.random::<u8>())),
    ("bit(3)", |rng| format!("{:03b}", rng.random_range(0..8))),
    ("varbit", |rng| format!("{:b}", rng.random::<u16>())),
    ("pg_lsn", |rng| format!("{:X}/{:X}", rng.random::<u16>(), rng.random::<u32>())),
    ("point", |rng| format!("({},{})", rng.random::<i16>(), rng.random::<i8>())),
    ("box", |rng| format!("({},1),(-3,{})", rng.random::<i16>(), rng.random::<i8>())),
    ("int4range", |rng| format!("[{},{})", rng.random_range(-9..0), rng.random_range(1..9))),
    ("tstzrange", |rng| format!("[\"2020-01-01 {}\",)", time(rng))),
    ("numrange", |_| "empty".to_owned()),
    ("tsvector", |rng| format!("'a {}':1 'b\\\\c':2", rng.random::<u8>())),
    ("int2vector", |rng| format!("{} 2 -3", rng.random::<i16>())),
    ("oidvector", |rng| format!("{} 2 3", rng.random::<u32>())),
    ("pg_temp.mood", |rng| {
        ["so so", "good \"very\"", "bad,\\really"].choose(rng).unwrap().to_string()
    }),
    ("pg_temp.numbers", |rng| format!("[2:4]={{{},NULL,3}}", rng.random::<i16>())),
    ("pg_temp.inner_row", inner_row),
    ("pg_temp.outer_row", outer_row),
    ("pg_temp.row_domain", outer_row),
];

fn float(rng: &mut StdRng, text: String) -> String {
    let special = ["NaN", "Infinity", "-Infinity", "-0", "1e20", "1e-7", "5e-38", "1.5e15", "1e16"];
    if rng.random_bool(0.3) { special.choose(rng).unwrap().to_string() } else { text }
}

fn numeric(rng: &mut StdRng) -> String {
    if rng.random_bool(0.1) {
        return ["NaN", "Infinity", "-Infinity", "0.000"].choose(rng).unwrap().to_string();
    }
    let digits = |rng: &mut StdRng| -> String {
        (0..rng.random_range(1..40)).map(|_| rng.random_range('0'..='9')).collect()
    };
    format!("{}{}.{}", if rng.random() { "-" } else { "" }, digits(rng), digits(rng))
}

fn text(rng: &mut StdRng) -> String {
    const PARTS: &[&str] = &[
        "a",
        "Z",
        " ",
        "\"",
        "\\",
        "'",
        ",",
        "{",
        "}",
        "(",
        ")",
        ";",
        "NULL",
        "null",
        "\n",
        "\t",
        "\r",
        "\u{1}",
        "\u{8}",
        "\u{C}",
        "\u{1F}",
        "\u{7F}",
        "\u{85}",
        "\u{2028}",
        "ä",
        "€",
        "𝄞",
        "/",
        "=>",
        "long enough for eight bytes",
    ];
    (0..rng.random_range(0..7)).map(|_| *PARTS.choose(rng).unwrap()).collect()
}

/// Without exponents and repeated keys, which `to_jsonb(json)` rewrites and we keep.
fn json(rng: &mut StdRng, depth: u32) -> String {
    let string = |rng: &mut StdRng| serde_json::to_string(&text(rng)).unwrap();
    match rng.random_range(0..if depth == 0 { 4 } else { 6 }) {
        0 => "null".to_owned(),
        1 => rng.random::<bool>().to_string(),
        2 => format!("{}.50", rng.random::<i64>()),
        3 => string(rng),
        4 => {
            let parts: Vec<_> = (0..rng.random_range(0..4)).map(|_| json(rng, depth - 1)).collect();
            format!("[{}]", parts.join(",\n "))
        }
        _ => {
            let member = |rng: &mut StdRng| (string(rng), json(rng, depth - 1));
            let parts: BTreeMap<_, _> = (0..rng.random_range(0..4)).map(|_| member(rng)).collect();
            let parts: Vec<_> =
                parts.iter().map(|(key, value)| format!("{key}: {value}")).collect();
            format!("{{{}}}", parts.join(", "))
        }
    }
}

fn special(rng: &mut StdRng, otherwise: Generator) -> String {
    match rng.random_range(0..10) {
        0 => "infinity".to_owned(),
        1 => "-infinity".to_owned(),
        _ => otherwise(rng),
    }
}

fn day(rng: &mut StdRng) -> String {
    let year = if rng.random() { rng.random_range(1..4000) } else { 2024 };
    format!("{year:04}-{:02}-{:02}", rng.random_range(1..=12), rng.random_range(1..=28))
}

fn time(rng: &mut StdRng) -> String {
    let seconds = rng.random_range(0..86_400);
    let fraction = match rng.random_range(0..3) {
        0 => String::new(),
        1 => ".5".to_owned(),
        _ => format!(".{:06}", rng.random_range(0..1_000_000)),
    };
    format!("{:02}:{:02}:{:02}{fraction}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn era(rng: &mut StdRng) -> &'static str {
    if rng.random_bool(0.2) { " BC" } else { "" }
}

/// A part of a composite's or array's text: quoted, or nothing.
fn part(rng: &mut StdRng, generate: Generator) -> String {
    if rng.random_bool(0.2) {
        return String::new();
    }
    format!("\"{}\"", generate(rng).replace('\\', "\\\\").replace('"', "\\\""))
}

fn inner_row(rng: &mut StdRng) -> String {
    let number = part(rng, |rng| rng.random::<i32>().to_string());
    let when = part(rng, |rng| format!("{} {}", day(rng), time(rng)));
    let tags = part(rng, |rng| {
        let tags: Vec<_> = (0..3).map(|_| part(rng, text)).filter(|it| !it.is_empty()).collect();
        format!("{{{}}}", tags.join(","))
    });
    let mood = part(rng, |_| "bad,\\really".to_owned());
    format!("({number},{when},{tags},{mood})")
}

fn outer_row(rng: &mut StdRng) -> String {
    let price = part(rng, |rng| rng.random_range(-1e6..1e6f64).to_string());
    let numbers = part(rng, |rng| format!("{{{{1,{}}},{{NULL,4}}}}", rng.random::<i8>()));
    let inner = part(rng, inner_row);
    let list = part(rng, |rng| {
        let rows: Vec<_> = (0..2)
            .map(|_| part(rng, inner_row))
            .map(|it| if it.is_empty() { "NULL".to_owned() } else { it })
            .collect();
        format!("{{{}}}", rows.join(","))
    });
    let json = part(rng, |rng| json(rng, 2));
    let flag = part(rng, |rng| rng.random::<bool>().to_string());
    format!("({price},{numbers},{inner},{list},{json},{flag})")
}

async fn connect() -> (Client, tokio::task::JoinSet<()>) {
    let url = std::env::var("ONELOG_TEST_POSTGRES")
        .expect("ONELOG_TEST_POSTGRES is not set: run make test");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(async move { connection.await.unwrap() });
    client.batch_execute(OBJECTS).await.unwrap();
    (client, driver)
}

async fn type_rows(client: &Client, oids: &[u32]) -> Vec<TypeRow> {
    let list = format!("{{{}}}", oids.iter().map(u32::to_string).collect::<Vec<_>>().join(","));
    let rows = client.query(TYPE_ROWS_SQL, &[&list]).await.unwrap();
    rows.iter()
        .map(|row| {
            let columns: Vec<Option<&str>> = (0..row.len()).map(|nth| row.get(nth)).collect();
            TypeRow::from_columns(&columns).unwrap()
        })
        .collect()
}

/// JSON with its keys sorted and its white space gone, but every digit of its numbers kept.
fn canonical(json: &str) -> String {
    match json.trim_start().as_bytes()[0] {
        b'{' => {
            let members: BTreeMap<String, &RawValue> = serde_json::from_str(json).unwrap();
            let member =
                |(key, value): (&String, &&RawValue)| format!("{key:?}:{}", canonical(value.get()));
            format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(","))
        }
        b'[' => {
            let parts: Vec<&RawValue> = serde_json::from_str(json).unwrap();
            let parts: Vec<_> = parts.iter().map(|it| canonical(it.get())).collect();
            format!("[{}]", parts.join(","))
        }
        b'"' => format!("{:?}", serde_json::from_str::<String>(json).unwrap()),
        _ => json.trim().to_owned(),
    }
}

/// Every column pair (text, json) of the query's rows, against the law.
async fn check(client: &Client, kind: &Kind, sql: &str, values: &[Option<String>]) -> usize {
    let rows = client.query(sql, &[&values]).await.unwrap_or_else(|err| panic!("{sql}: {err:?}"));
    let mut checked = 0;
    for row in &rows {
        let (Some(text), Some(expected)) =
            (row.get::<_, Option<&str>>(0), row.get::<_, Option<&str>>(1))
        else {
            continue;
        };
        let mut found = Vec::new();
        if let Err(err) = write_json(kind, text.as_bytes(), &mut found) {
            panic!("{err}: {text} of {kind:?} should be {expected}");
        }
        let found = String::from_utf8(found).unwrap();
        assert_eq!(canonical(&found), canonical(expected), "{text} of {kind:?}");
        checked += 1;
    }
    checked
}

#[tokio::test]
async fn values_are_written_as_to_jsonb_writes_them() {
    let seed = std::env::var("ONELOG_TEST_SEED").map_or(1, |it| it.parse().unwrap());
    println!("ONELOG_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (client, _driver) = connect().await;
    let mut types = TYPES.to_vec();
    if client.batch_execute("CREATE EXTENSION IF NOT EXISTS hstore").await.is_ok() {
        types.push(("hstore", |rng| {
            let pair = |rng: &mut StdRng| {
                let key = part(rng, text);
                format!("{}=>{}", if key.is_empty() { "\"\"" } else { &key }, "NULL")
            };
            format!(
                "{},x=>{}",
                pair(rng),
                Some(part(rng, text)).filter(|it| !it.is_empty()).unwrap_or("NULL".to_owned())
            )
        }));
    }
    for (name, generate) in types {
        let sql = "SELECT $1::text::regtype::oid, ($1::text || '[]')::regtype::oid";
        let row = client.query_one(sql, &[&name]).await.unwrap();
        let (oid, array_oid): (u32, u32) = (row.get(0), row.get(1));
        let mut kinds = TypeKinds::new();
        kinds.add_rows(&type_rows(&client, &[oid, array_oid]).await).unwrap();
        let (kind, array) = (kinds.get(oid).unwrap(), kinds.get(array_oid).unwrap());

        let values: Vec<Option<String>> = (0..VALUES_PER_TYPE)
            .map(|_| rng.random_bool(0.9).then(|| generate(&mut rng)))
            .collect();
        let one = format!(
            "SELECT CASE WHEN s IS NOT NULL THEN format('%s', s::{name}) END,
                    to_jsonb(s::{name})::text FROM unnest($1::text[]) s"
        );
        let checked = check(&client, &kind, &one, &values).await;
        assert!(checked > VALUES_PER_TYPE / 2, "{name}: {checked}");
        if ["int2vector", "oidvector", "pg_temp.numbers"].contains(&name) {
            continue; // SQL's functions of arrays take these for arrays already.
        }
        // One-dimensional, two-dimensional, with other lower bounds, empty.
        let many = format!(
            "WITH list AS (SELECT n / 4 AS g, array_agg(s::{name} ORDER BY n) AS a
                           FROM unnest($1::text[]) WITH ORDINALITY AS t (s, n) GROUP BY 1),
             shaped AS (SELECT a FROM list UNION ALL SELECT ARRAY[a, a] FROM list
                        UNION ALL SELECT array_fill(a[1], '{{2,1}}', '{{-1,7}}') FROM list
                        UNION ALL SELECT '{{}}'::{name}[])
             SELECT format('%s', a), to_jsonb(a)::text FROM shaped"
        );
        assert!(check(&client, &array, &many, &values).await > 20, "{name}[]");
    }
}

#[tokio::test]
async fn built_in_types_are_what_the_catalog_says() {
    let (client, _driver) = connect().await;
    let sql = "SELECT oid FROM pg_type
               WHERE oid < 10000 AND typtype NOT IN ('c', 'p') AND typname !~ '^_pg_'";
    let oids: Vec<u32> = client.query(sql, &[]).await.unwrap().iter().map(|it| it.get(0)).collect();
    let kinds = TypeKinds::new();
    for row in type_rows(&client, &oids).await {
        let kind = kinds.get(row.oid);
        let element = || Some(std::sync::Arc::new(kinds.get(row.element)?));
        match kind.unwrap_or_else(|| panic!("{row:?}")) {
            Kind::Array { element: found, delimiter } => {
                assert_eq!((Some(found), delimiter), (element(), row.delimiter), "{row:?}");
            }
            Kind::Vector(found) => assert_eq!(Some(found), element(), "{row:?}"),
            _ => assert!(row.element == 0 || row.category == b'Z', "{row:?}"),
        }
    }
}
