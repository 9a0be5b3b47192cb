//! Mapping SQL resolved by a real Postgres: its paths, its mistakes.
//!
//! `paths_soundness.rs` has the property that the paths find every key; here are the shapes that
//! people write, and what `explain` would say of each.

#![allow(clippy::unwrap_used, clippy::as_conversions, reason = "a test that fails may panic")]

use std::path::PathBuf;

use onelog::mapping::plan::{CollectionPlan, EntryPlan, Path};
use onelog::mapping::resolve::{ResolveError, resolve};
use onelog::mapping::{Collection, CollectionSettings, Entry, Nest, Place};
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
    ALTER TABLE website REPLICA IDENTITY FULL;
    CREATE VIEW shown AS SELECT c.id AS cid, w.url FROM company c JOIN website w
        ON w.company_id = c.id;
    CREATE FUNCTION twice(bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT $1 * 2';
    CREATE PUBLICATION onelog FOR TABLE company, website, kind, stock, tag;";

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

/// The SQL of a shape, the key, and what is expected: lines that start with "polls" are prefixes
/// of reasons, the others whole paths.
const SHAPES: &[(&str, &str, &[&str])] = &[
    ("SELECT id AS k, name FROM company", "k", &["company: in id"]),
    ("SELECT * FROM company;", "id", &["company: in id"]),
    (
        "SELECT c.id AS k, w.url FROM company c JOIN website w ON w.company_id = c.id",
        "k",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT c.id AS k, w.url, n.label FROM company c LEFT JOIN website w ON w.company_id = c.id \
         LEFT JOIN kind n ON n.id = w.kind_id",
        "k",
        &["c: in id", "w: in company_id", "n: n.id = w.kind_id"],
    ),
    (
        "SELECT w.id AS k, c.name FROM website w JOIN company c ON c.slug = w.company_slug",
        "k",
        &["w: in id", "c: c.slug = w.company_slug"],
    ),
    (
        "SELECT c.id AS k, p.name FROM company c JOIN company p ON p.id = c.parent_id",
        "k",
        &["c: in id", "p: p.id = c.parent_id"],
    ),
    (
        "SELECT company_id, count(*) AS n FROM website GROUP BY company_id",
        "company_id",
        &["website: in company_id"],
    ),
    (
        "SELECT c.id, json_agg(w.* ORDER BY w.id) AS sites FROM company c JOIN website w \
         ON w.company_id = c.id GROUP BY c.id",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    ("SELECT DISTINCT company_id FROM website", "company_id", &["website: in company_id"]),
    (
        "SELECT id FROM company c WHERE EXISTS (SELECT 1 FROM website w WHERE w.company_id = c.id)",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT id FROM company c WHERE NOT EXISTS (SELECT 1 FROM website w JOIN kind n ON \
         n.id = w.kind_id WHERE w.company_id = c.id)",
        "id",
        &["c: in id", "w: in company_id", "n: n.id = w.kind_id"],
    ),
    (
        "SELECT id FROM company WHERE id IN (SELECT company_id FROM website)",
        "id",
        &["company: in id", "website: in company_id"],
    ),
    (
        "SELECT c.id, (SELECT count(*) FROM website w WHERE w.company_id = c.id) AS n FROM company c",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT c.id, s.n FROM company c JOIN (SELECT company_id, count(*) AS n FROM website \
         GROUP BY company_id) s ON s.company_id = c.id",
        "id",
        &["c: in id", "website: in company_id"],
    ),
    (
        "WITH w AS (SELECT company_id, url FROM website) SELECT a.company_id AS k, b.url FROM w a \
         JOIN w b USING (company_id)",
        "k",
        &["website: in company_id"],
    ),
    (
        "SELECT id AS k, name FROM company UNION SELECT company_id, url FROM website",
        "k",
        &["company: in id", "website: in company_id"],
    ),
    (
        "SELECT id FROM company EXCEPT SELECT company_id FROM website",
        "id",
        &["company: in id", "website: in company_id"],
    ),
    ("SELECT cid, url FROM shown", "cid", &["c: in id", "w: in company_id"]),
    ("SELECT created_at, name FROM company", "created_at", &["company: by created_at"]),
    ("SELECT feeling, count(*) AS n FROM company GROUP BY 1", "feeling", &["company: in feeling"]),
    ("SELECT lower(name) AS k, id FROM company", "k", &["company: by name"]),
    (
        "SELECT c.code AS k, w.url FROM company c JOIN website w ON w.company_id = c.id",
        "k",
        &["c: in code", "w: w.company_id = c.id"],
    ),
    (
        "SELECT company_id, url, row_number() OVER (PARTITION BY company_id ORDER BY id) AS n \
         FROM website",
        "company_id",
        &["website: in company_id"],
    ),
    (
        "SELECT c.id, t.url FROM company c LEFT JOIN LATERAL (SELECT w.url FROM website w \
         WHERE w.company_id = c.id ORDER BY w.id LIMIT 1) t ON true",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT c.id, x.* FROM company c, unnest(ARRAY[c.name, c.slug]) AS x(part)",
        "id",
        &["c: in id"],
    ),
    (
        "SELECT w.id, c.name FROM company c RIGHT JOIN website w ON w.company_id = c.id",
        "id",
        &["c: c.id = w.company_id", "w: in id"],
    ),
    (
        "SELECT c.id, k.label FROM company c CROSS JOIN kind k LEFT JOIN stock s \
         ON s.company_id = c.id AND s.kind_id = k.id",
        "id",
        &["c: in id", "s: in company_id", "polls: no key path for public.kind (as k)"],
    ),
    (
        "SELECT h.company_id AS k FROM hidden h",
        "k",
        &["h: in company_id", "polls: public.hidden is not"],
    ),
    ("SELECT id, now() AS t FROM company", "id", &["company: in id", "polls: it calls now()"]),
    (
        "SELECT id, current_date AS t FROM company",
        "id",
        &["company: in id", "polls: it reads the cur"],
    ),
    (
        "SELECT id, twice(id) AS t FROM company",
        "id",
        &["company: in id", "polls: it calls twice()"],
    ),
    ("SELECT max(id) AS k FROM company", "k", &["polls: the key k is not a column"]),
    ("SELECT id FROM company ORDER BY id LIMIT 5", "id", &["polls: the key id is not a column"]),
    ("SELECT upper_name AS k FROM company", "k", &["polls: no key path for public.company"]),
    (
        "SELECT oid, relname FROM pg_class",
        "oid",
        &["polls: no key path", "polls: pg_catalog.pg_class is a"],
    ),
    (
        "WITH RECURSIVE t AS (SELECT id, id AS root FROM company UNION SELECT c.id, t.root FROM \
         company c JOIN t ON c.parent_id = t.id) SELECT root, id FROM t",
        "root",
        &["polls: it uses WITH RECURSIVE"],
    ),
];

#[tokio::test]
async fn each_shape_has_the_paths_that_it_can_have() {
    let db = fresh("onelog_paths_shapes", SHOP).await;
    let mut wrong = Vec::new();
    for (sql, key, expected) in SHAPES {
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
