//! Mapping SQL resolved by a real Postgres: its paths, its mistakes.
//!
//! `paths_soundness.rs` has the property that the paths find every key; here are the shapes that
//! people write, and what `explain` would say of each.

#![allow(clippy::unwrap_used, clippy::as_conversions, reason = "a test that fails may panic")]

#[path = "paths/computed.rs"]
mod computed;
#[path = "paths/images.rs"]
mod images;
#[path = "paths/shapes.rs"]
mod shapes;

use std::path::PathBuf;

use computed::COMPUTED;
use onelog::mapping::impact::facts::STABLE_BY_SETTINGS;
use onelog::mapping::plan::{CollectionPlan, EntryPlan, Path};
use onelog::mapping::resolve::{ResolveError, resolve};
use onelog::mapping::{Collection, CollectionSettings, Entry, Nest, Place};
use shapes::SHAPES;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

struct Database {
    client: Client,
    _drivers: JoinSet<()>,
}

async fn connect(url: &str, drivers: &mut JoinSet<()>) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("Postgres");
    drivers.spawn(async move { drop(connection.await) });
    client
}

async fn fresh(name: &str, setup: &str) -> Database {
    let url = std::env::var("ONELOG_TEST_POSTGRES")
        .expect("ONELOG_TEST_POSTGRES is not set: run make test");
    let mut drivers = JoinSet::new();
    let admin = connect(&url, &mut drivers).await;
    admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name}")).await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    let client = connect(&format!("{server}/{name}"), &mut drivers).await;
    client.batch_execute(setup).await.unwrap();
    Database { client, _drivers: drivers }
}

const SHOP: &str = "
    CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE TABLE company (id bigint PRIMARY KEY, name text, slug varchar(40), parent_id bigint,
        feeling mood, created_at timestamptz, code numeric, token uuid,
        upper_name text GENERATED ALWAYS AS (upper(name)) STORED);
    CREATE TABLE website (id bigint PRIMARY KEY, company_id bigint, url text, kind_id int,
        company_slug varchar);
    CREATE TABLE kind (id int PRIMARY KEY, label text);
    CREATE TABLE stock (id bigint PRIMARY KEY, company_id bigint, kind_id int, amount int);
    CREATE TABLE tag (company_id bigint, label text, PRIMARY KEY (company_id, label));
    CREATE TABLE hidden (id bigint PRIMARY KEY, company_id bigint);
    CREATE TABLE nokey (company_id bigint);
    CREATE TABLE doc (id int PRIMARY KEY, tags text[], refs bigint[], body jsonb);
    CREATE TABLE measure (day date, amount int, PRIMARY KEY (day)) PARTITION BY RANGE (day);
    CREATE TABLE measure_2024 PARTITION OF measure FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
    CREATE TABLE parent (id int PRIMARY KEY, name text);
    CREATE TABLE child (extra int, PRIMARY KEY (id)) INHERITS (parent);
    CREATE FUNCTION half(bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT $1 / 2';
    CREATE TABLE note (at int PRIMARY KEY, body jsonb, kind text,
        ref bigint GENERATED ALWAYS AS (half(at)) STORED);
    CREATE TABLE made (id int, twice int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id))
        PARTITION BY RANGE (id);
    CREATE TABLE made_1 PARTITION OF made FOR VALUES FROM (0) TO (10);
    ALTER TABLE website REPLICA IDENTITY FULL;
    ALTER TABLE doc REPLICA IDENTITY FULL;
    CREATE VIEW shown AS SELECT c.id AS cid, w.url FROM company c JOIN website w
        ON w.company_id = c.id;
    CREATE VIEW shown_twice AS SELECT a.cid, array_agg(b.url ORDER BY b.url) AS urls FROM shown a
        JOIN shown b ON b.cid = a.cid GROUP BY a.cid;
    CREATE FUNCTION twice(bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
    CREATE PUBLICATION onelog FOR TABLE company, website, kind, stock, tag, doc, note, made,
        measure, parent, child;";

fn entry(sql: &str, key: &str) -> Entry {
    let place = |line, column| Place { path: PathBuf::from("connectors/a.toml"), line, column };
    Entry {
        collection: "page".into(),
        key: key.into(),
        sql: sql.into(),
        nest: Nest::Top,
        optional: false,
        sql_place: place(4, 8),
        sql_written: format!("'''{sql}'''"),
        nest_place: None,
        key_place: place(3, 1),
    }
}

fn collection(entries: Vec<Entry>) -> Collection {
    Collection { name: "page".into(), entries, settings: CollectionSettings::default() }
}

async fn plan(db: &Database, entries: Vec<Entry>) -> Result<CollectionPlan, ResolveError> {
    resolve(&db.client, "onelog", &collection(entries)).await
}

/// Each path in one line, then the poll reasons.
fn shown(plan: &EntryPlan) -> Vec<String> {
    let path = |it: &Path| match it {
        Path::InRow { column } => format!("in {column}"),
        Path::Lookup(it) if it.steps.is_empty() => format!("by {}", it.columns.join(", ")),
        Path::Lookup(it) => it.steps.join(" > "),
    };
    let paths = plan.paths.iter().map(|it| format!("{}: {}", it.alias, path(&it.path)));
    paths.chain(plan.poll_reasons.iter().map(|it| format!("polls: {it}"))).collect()
}

#[tokio::test]
async fn each_shape_has_the_paths_that_it_can_have() {
    let db = fresh("onelog_paths_shapes", SHOP).await;
    let mut wrong = Vec::new();
    for (sql, key, expected) in SHAPES.iter().chain(COMPUTED) {
        let plan = match plan(&db, vec![entry(sql, key)]).await {
            Ok(plan) => plan,
            Err(error) => {
                wrong.push(format!("{sql}\n  {error} {:?}", std::error::Error::source(&error)));
                continue;
            }
        };
        let shown = shown(&plan.entries[0]);
        let prefix = |it: &&str| match it.strip_prefix("polls") {
            Some(_) => shown.iter().any(|shown| shown.starts_with(it)),
            None => shown.iter().any(|shown| shown == it),
        };
        let recursion = sql.contains("RECURSIVE");
        if !expected.iter().all(prefix) || !(recursion || shown.len() == expected.len()) {
            wrong.push(format!("{sql}\n  {}", shown.join("\n  ")));
        }
        for path in &plan.entries[0].paths {
            if let Path::Lookup(lookup) = &path.path
                && let Err(error) = db.client.prepare(&lookup.sql).await
            {
                wrong.push(format!("{sql}\n  {}\n  {error:?}", lookup.sql));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// SQL, key, and how the mistake begins.
const MISTAKES: &[(&str, &str, &str)] = &[
    ("SELECT id, nam FROM company", "id", "connectors/a.toml:4:19: column \"nam\" does not exist"),
    ("SELECT id,\n  nam\nFROM company", "id", "connectors/a.toml:5:3: column \"nam\""),
    ("SELECT é, id FROM company", "id", "connectors/a.toml:4:15: column"),
    ("SELEC 1", "id", "connectors/a.toml:4:8: syntax error"),
    ("SELECT 1 AS id; SELECT 2", "id", "connectors/a.toml:4:24: the sql has 2 statements"),
    ("DELETE FROM company", "id", "connectors/a.toml:4:8: the sql is a DELETE: write one SELECT"),
    (" ; ", "id", "connectors/a.toml:4:8: the sql is empty"),
    (
        "SELECT id, id FROM company",
        "id",
        "connectors/a.toml:4:19: column \"id\" specified more than once; give",
    ),
    (
        "SELECT id, name FROM company",
        "ide",
        "connectors/a.toml:3:1: the key ide is not among the sql's columns, which are id, name; did you mean id?",
    ),
    (
        "SELECT to_json(id) AS k FROM company",
        "k",
        "connectors/a.toml:3:1: the key k has type json, which has no",
    ),
    ("SELECT $1::int AS k", "k", "connectors/a.toml:4:15: there is no parameter $1"),
    ("SELECT id FROM nowhere", "id", "connectors/a.toml:4:23: relation \"nowhere\" does not exist"),
];

#[tokio::test]
async fn each_mistake_has_its_place_and_a_cure() {
    let db = fresh("onelog_paths_mistakes", SHOP).await;
    for (sql, key, expected) in MISTAKES {
        let error = plan(&db, vec![entry(sql, key)]).await.expect_err(sql).to_string();
        assert!(error.starts_with(expected), "{sql}\n  {error}\n  {expected}");
    }
    let two = vec![entry("SELECT id FROM company", "id"), entry("SELECT id FROM kind", "id")];
    let error = plan(&db, two).await.unwrap_err().to_string();
    assert!(error.contains("the key id is integer here, but id of"), "{error}");
}

#[tokio::test]
async fn missing_privileges_are_mistakes_with_their_grant() {
    let db = fresh("onelog_paths_grants", SHOP).await;
    let setup =
        "DO $$ BEGIN CREATE ROLE onelog_paths_poor; EXCEPTION WHEN duplicate_object THEN END $$;
        REVOKE TEMP ON DATABASE onelog_paths_grants FROM PUBLIC;
        GRANT SELECT ON shown TO onelog_paths_poor; SET ROLE onelog_paths_poor";
    db.client.batch_execute(setup).await.unwrap();
    let cases = [
        (
            "RESET ROLE; SET ROLE onelog_paths_poor",
            "GRANT TEMPORARY ON DATABASE onelog_paths_grants TO onelog_paths_poor",
        ),
        (
            "RESET ROLE; GRANT TEMP ON DATABASE onelog_paths_grants TO PUBLIC; SET ROLE onelog_paths_poor",
            "GRANT SELECT ON \"public\".\"company\", \"public\".\"website\" TO onelog_paths_poor",
        ),
    ];
    for (setup, expected) in cases {
        db.client.batch_execute(setup).await.unwrap();
        let error = plan(&db, vec![entry("SELECT cid FROM shown", "cid")]).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn columns_identities_and_the_hash_follow_the_definition() {
    let db = fresh("onelog_paths_reads", SHOP).await;
    let sql = "SELECT c.id, c.name, s.amount FROM company c JOIN stock s ON s.company_id = c.id";
    let first = plan(&db, vec![entry(sql, "id")]).await.unwrap();
    let read = |plan: &CollectionPlan, table: &str| {
        plan.entries[0].tables.iter().find(|it| it.name.name == table).cloned().unwrap()
    };
    let names = |it: Option<std::collections::BTreeSet<String>>| {
        it.map(|it| it.into_iter().collect::<Vec<_>>().join(","))
    };
    assert_eq!(names(read(&first, "company").columns).as_deref(), Some("id,name"));
    assert_eq!(names(read(&first, "stock").columns).as_deref(), Some("amount,company_id"));
    assert_eq!(names(Some(read(&first, "stock").identity_lacks)).as_deref(), Some("company_id"));
    assert_eq!(names(Some(read(&first, "company").identity_lacks)).as_deref(), Some(""));

    let whole = "SELECT c.id, to_jsonb(c) AS all_of_it FROM company c ORDER BY c.id";
    let second = plan(&db, vec![entry(whole, "id")]).await.unwrap();
    assert_eq!(read(&second, "company").columns, None);
    assert!(second.entries[0].ordered && !first.entries[0].ordered);

    let again = plan(&db, vec![entry(sql, "id")]).await.unwrap();
    assert_eq!(first.hash, again.hash);
    assert_eq!(first.hash.len(), 12);
    assert_ne!(first.hash, second.hash);

    let view = vec![entry("SELECT cid, url FROM shown", "cid")];
    let before = plan(&db, view.clone()).await.unwrap();
    db.client
        .batch_execute("CREATE OR REPLACE VIEW shown AS SELECT c.id AS cid, w.url FROM company c JOIN website w ON w.company_id = c.id AND w.url <> ''")
        .await
        .unwrap();
    let after = plan(&db, view).await.unwrap();
    assert_ne!(before.hash, after.hash, "a view's definition is part of the collection's");
}

/// What is stable for another reason than a pinned setting: it reads the clock (no arguments),
/// the catalog (`reg…` types, names, oids), or is not stable at all but volatile.
#[tokio::test]
async fn what_counts_as_stable_by_settings_reads_no_clock_and_no_catalog() {
    let db = fresh("onelog_paths_stable", "").await;
    let names: Vec<&str> = STABLE_BY_SETTINGS.to_vec();
    let wrong = "SELECT p.oid::regprocedure::text FROM pg_proc p \
        WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY($1) \
          AND (p.provolatile = 'v' OR p.provolatile = 's' AND (p.pronargs = 0 AND p.prokind = 'f' \
            AND p.proname NOT IN ('json_build_array', 'json_build_object', 'jsonb_build_array', \
              'jsonb_build_object') \
            OR EXISTS (SELECT FROM unnest(p.proargtypes) t WHERE format_type(t, NULL) \
              ~ '^(reg|name$|oid$|cstring|xml|refcursor|internal)')))";
    let wrong: Vec<String> =
        db.client.query(wrong, &[&names]).await.unwrap().iter().map(|it| it.get(0)).collect();
    assert_eq!(wrong, Vec::<String>::new());
    let clocks = "SELECT p.proname::text FROM pg_proc p WHERE p.proname = ANY($1) \
        AND p.pronamespace = 'pg_catalog'::regnamespace GROUP BY 1";
    let there = db.client.query(clocks, &[&names]).await.unwrap().len();
    // Those that Postgres 16 brought are missing before.
    assert!(there + 7 >= names.len(), "only {there} of {} names are functions", names.len());
    for clock in ["now", "age", "current_setting", "pg_get_viewdef", "to_regclass", "random"] {
        assert!(!names.contains(&clock), "{clock}");
    }
}
