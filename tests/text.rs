//! The law of `postgres::text`: from a value's text it writes what Postgres' `to_jsonb` writes.
//!
//! Postgres is the oracle. Random values of many types, and arrays and composites of them, are
//! printed by their output function (`format('%s', …)`; a cast to text prints some types
//! otherwise) and by `to_jsonb` in one query. The seed is fixed unless ONELOG_TEST_SEED is set.

#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

#[path = "text/stream.rs"]
mod stream;
#[path = "text/values.rs"]
mod values;

use onelog::postgres::text::{Kind, TYPE_ROWS_SQL, TypeKinds, TypeRow, write_json};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_postgres::{Client, NoTls};
use values::{OBJECTS, PINNED, TYPES, canonical};

const VALUES_PER_TYPE: usize = 40;

async fn connect() -> (Client, tokio::task::JoinSet<()>) {
    let url = std::env::var("ONELOG_TEST_POSTGRES")
        .expect("ONELOG_TEST_POSTGRES is not set: run make test");
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    let mut driver = tokio::task::JoinSet::new();
    driver.spawn(async move { connection.await.unwrap() });
    client.batch_execute(PINNED).await.unwrap();
    client.batch_execute(&OBJECTS.replace("$s", "pg_temp")).await.unwrap();
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
    for (name, generate) in TYPES {
        let name = &name.replace("$s", "pg_temp");
        let sql = "SELECT $1::text::regtype::oid, ($1::text || '[]')::regtype::oid";
        let row = client.query_one(sql, &[&name]).await.unwrap();
        let (oid, array_oid): (u32, u32) = (row.get(0), row.get(1));
        let mut kinds = TypeKinds::new();
        kinds.add_rows(&type_rows(&client, &[oid, array_oid]).await).unwrap();
        let (kind, array) = (kinds.get(oid).unwrap(), kinds.get(array_oid).unwrap());

        let values: Vec<Option<String>> = (0..VALUES_PER_TYPE)
            .map(|_| rng.random_bool(0.9).then(|| generate(&mut rng).replace("$s", "pg_temp")))
            .collect();
        let one = format!(
            "SELECT CASE WHEN s IS NOT NULL THEN format('%s', s::{name}) END,
                    to_jsonb(s::{name})::text FROM unnest($1::text[]) s"
        );
        let checked = check(&client, &kind, &one, &values).await;
        assert!(checked > VALUES_PER_TYPE / 2, "{name}: {checked}");
        if ["int2vector", "oidvector", "pg_temp.numbers"].contains(&name.as_str()) {
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
