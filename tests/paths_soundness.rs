//! The paths find every key: random SQL, random histories, and an adversary that picks the
//! snapshot at which each event is handled.
//!
//! A document is stale for ever when no event is sure to refresh it at or after the last commit
//! that changed it: for every event there is a snapshot, not before its commit, that is either
//! before that last change or at which the event's paths do not find the key. The tables, the
//! documents and the path queries are Postgres' own. The known counterexamples come first, with
//! more histories each. Size: ONELOG_TEST_PATHS_QUERIES (100), ONELOG_TEST_PATHS_HISTORIES (8).

#![allow(clippy::unwrap_used, clippy::as_conversions, reason = "a test that fails may panic")]

#[path = "paths_soundness/traps.rs"]
mod traps;
#[path = "paths_soundness/write.rs"]
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use futures_util::future::join_all;
use onelog::mapping::plan::{EntryPlan, Path};
use onelog::mapping::resolve::{ResolveError, resolve};
use onelog::mapping::{Collection, CollectionSettings, Entry, Nest, Place};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, Statement};
use write::Writer;

const TABLES: [&str; 3] = ["a", "b", "c"];
const COLUMNS: [&str; 3] = ["id", "x", "y"];

type Row = [Option<i32>; 3];
type State = BTreeMap<&'static str, BTreeMap<i32, Row>>;

/// One row's change in a commit (numbered from 1).
struct Event {
    commit: usize,
    table: &'static str,
    images: Vec<Row>,
}

async fn connect(url: &str, drivers: &mut JoinSet<()>) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("Postgres");
    drivers.spawn(async move { drop(connection.await) });
    client
}

/// The text of a column in an image: r is an array and j an object of x and y.
fn of_row(row: &Row, column: &str) -> Option<String> {
    let json = |nth: usize| row[nth].map_or("null".to_owned(), |it| it.to_string());
    match column {
        // A repeat, a lone value, nothing.
        "r" => Some(match (row[1], row[2]) {
            (Some(1), None) => "[]".to_owned(),
            _ => format!("[{},{}]", json(1), json(2)),
        }),
        "j" if row[1] == Some(2) => Some("null".to_owned()),
        "j" => Some(format!(
            r#"{{"x": {x}, "l": [{y}], "o": {{"x": {x}, "yy": {y}}},
                "s": [{{"x": {x}, "y": {y}}}, {{"x": {y}}}]}}"#,
            x = json(1),
            y = json(2)
        )),
        name => {
            let nth = COLUMNS.iter().position(|it| *it == name).expect(name);
            row[nth].map(|it| it.to_string())
        }
    }
}

fn load_sql(state: &State) -> String {
    let mut sql = String::new();
    let text = |it: &Option<i32>| it.map_or("NULL".to_owned(), |it| it.to_string());
    for (table, rows) in state {
        sql.push_str(&format!("DELETE FROM {table};"));
        for row in rows.values() {
            let values: Vec<_> = row.iter().map(text).collect();
            let (list, json) = (of_row(row, "r").unwrap(), of_row(row, "j").unwrap());
            let list = list.replace('[', "{").replace(']', "}");
            sql.push_str(&format!(
                "INSERT INTO {table} (id, x, y, r, j) VALUES ({}, '{list}', '{json}');",
                values.join(",")
            ));
        }
    }
    sql
}

/// The paths of one table's occurrences, lookups prepared.
enum Ready {
    InRow(String),
    Lookup(Vec<String>, Statement),
}

async fn prepare(client: &Client, plan: &EntryPlan) -> Vec<(String, Ready)> {
    let mut ready = Vec::new();
    for path in &plan.paths {
        let path_ready = match &path.path {
            Path::InRow { column } => Ready::InRow(column.clone()),
            Path::Lookup(lookup) => {
                let statement = client.prepare(&lookup.sql).await.expect(&lookup.sql);
                Ready::Lookup(lookup.columns.clone(), statement)
            }
        };
        ready.push((path.table.name.clone(), path_ready));
    }
    ready
}

async fn keys(client: &Client, path: &Ready, image: &Row) -> Vec<String> {
    // As in an image: JSON's null looks like SQL's.
    let text = |it: &String| of_row(image, it).filter(|it| it != "null");
    match path {
        Ready::InRow(column) => text(column).into_iter().collect(),
        Ready::Lookup(columns, statement) => {
            let values: Vec<Vec<Option<String>>> =
                columns.iter().map(|it| vec![text(it)]).collect();
            let values: Vec<&(dyn tokio_postgres::types::ToSql + Sync)> =
                values.iter().map(|it| it as _).collect();
            let rows = client.query(statement, &values).await.unwrap();
            rows.iter().map(|it| it.get(0)).collect()
        }
    }
}

type Documents = BTreeMap<String, Vec<String>>;

async fn documents(client: &Client, statement: &Statement) -> Documents {
    let mut documents = Documents::new();
    for row in client.query(statement, &[]).await.unwrap() {
        documents.entry(row.get(0)).or_default().push(row.get(1));
    }
    documents.values_mut().for_each(|it| it.sort());
    documents
}

/// The key of a document that can stay stale for ever, if there is one.
async fn stale(
    client: &Client,
    truth: &Statement,
    (paths, swept): (&[(String, Ready)], &BTreeSet<&str>),
    (states, events): &(Vec<State>, Vec<Event>),
) -> Option<String> {
    let (mut docs, mut found) = (Vec::new(), Vec::new());
    for (at, state) in states.iter().enumerate() {
        client.batch_execute(&load_sql(state)).await.unwrap();
        docs.push(documents(client, truth).await);
        let of_event = async |event: &Event| {
            let Event { commit, table, images } = event;
            let mut all = BTreeSet::new();
            if *commit <= at {
                let mine = paths.iter().filter(|(it, _)| it == table);
                let asked = mine.flat_map(|(_, path)| images.iter().map(move |it| (path, it)));
                let asked = asked.map(|(path, image)| keys(client, path, image));
                all.extend(join_all(asked).await.into_iter().flatten());
            }
            all
        };
        found.push(join_all(events.iter().map(of_event)).await);
    }
    let all: BTreeSet<&String> = docs.iter().flat_map(|it| it.keys()).collect();
    all.into_iter()
        .find(|key| {
            let changed = |at: &usize| docs[*at].get(*key) != docs[at - 1].get(*key);
            let Some(last) = (1..states.len()).rev().find(changed) else { return false };
            events.iter().enumerate().all(|(nth, event)| {
                let misses = |at: usize| at < last || !found[at][nth].contains(*key);
                !swept.contains(event.table) && (event.commit..states.len()).any(misses)
            })
        })
        .cloned()
}

/// The tables that some occurrence of has no path; None: the entry as a whole polls.
fn swept(reasons: &[String]) -> Option<BTreeSet<&str>> {
    let table = |it: &String| {
        let rest = it.strip_prefix("no key path for public.")?;
        TABLES.into_iter().find(|it| rest.starts_with(it))
    };
    reasons.iter().map(table).collect()
}

fn collection(sql: &str) -> Collection {
    let place = Place { path: PathBuf::from("a.toml"), line: 1, column: 1 };
    let entry = Entry {
        collection: "page".into(),
        key: "k".into(),
        sql: sql.into(),
        nest: Nest::Top,
        optional: false,
        sql_place: place.clone(),
        sql_written: String::new(),
        nest_place: None,
        key_place: place,
    };
    let settings = CollectionSettings::default();
    Collection { name: "page".into(), entries: vec![entry], settings }
}

async fn setup(drivers: &mut JoinSet<()>) -> Client {
    let url = std::env::var("ONELOG_TEST_POSTGRES")
        .expect("ONELOG_TEST_POSTGRES is not set: run make test");
    let name = "onelog_paths_soundness";
    let admin = connect(&url, drivers).await;
    admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name}")).await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    let client = connect(&format!("{server}/{name}"), drivers).await;
    for table in TABLES {
        let sql = format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, x int, y int, \
             g int GENERATED ALWAYS AS (coalesce(x, 0) + 1) STORED, r int[], j jsonb); \
             ALTER TABLE {table} REPLICA IDENTITY FULL"
        );
        client.batch_execute(&sql).await.unwrap();
    }
    client.batch_execute("CREATE PUBLICATION onelog FOR TABLE a, b, c").await.unwrap();
    client
}

fn size(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|it| it.parse().ok()).unwrap_or(usual)
}

/// What became of a query.
enum Outcome {
    /// Postgres does not run it, or the entry polls as a whole.
    NotChecked,
    Sound,
    Stale(String),
}

async fn check(client: &Client, sql: &str, writer: &mut Writer, histories: usize) -> Outcome {
    let plan = match resolve(client, "onelog", &collection(sql)).await {
        Ok(plan) => plan.entries.into_iter().next().unwrap(),
        Err(ResolveError::Mistakes(_)) => return Outcome::NotChecked,
        Err(error) => panic!("{sql}\n{error:?}"),
    };
    let paths = prepare(client, &plan).await;
    let truth = plan.canonical_sql.as_str();
    let truth = format!("SELECT q.k::text, q::text FROM ({truth}) q WHERE q.k IS NOT NULL");
    let truth = client.prepare(&truth).await.expect(&truth);
    // Without a path a table is swept: its changes then find everything. Other reasons to poll
    // are about the whole entry.
    let Some(swept) = swept(&plan.poll_reasons) else { return Outcome::NotChecked };
    for _ in 0..histories {
        let history = writer.history();
        client.batch_execute("BEGIN").await.unwrap();
        // Planning may still refuse a FULL JOIN whose condition it cannot hash or merge.
        let refused = client.query(&truth, &[]).await.is_err();
        let key = match refused {
            true => None,
            false => stale(client, &truth, (&paths, &swept), &history).await,
        };
        client.batch_execute("ROLLBACK").await.unwrap();
        match key {
            _ if refused => return Outcome::NotChecked,
            Some(key) => return Outcome::Stale(format!("key {key}: {sql}\n  {:?}", plan.paths)),
            None => {}
        }
    }
    Outcome::Sound
}

#[tokio::test]
async fn no_choice_of_snapshots_leaves_a_document_stale() {
    let queries = size("ONELOG_TEST_PATHS_QUERIES", 100);
    let histories = size("ONELOG_TEST_PATHS_HISTORIES", 8);
    let first = size("ONELOG_TEST_SEED", 1) as u64;
    let mut drivers = JoinSet::new();
    let client = setup(&mut drivers).await;
    let (mut failures, mut checked) = (Vec::new(), 0);
    for trap in traps::TRAPS {
        let mut writer = Writer::new(first);
        if let Outcome::Stale(shown) = check(&client, trap, &mut writer, histories * 8).await {
            failures.push(format!("a known trap, {shown}"));
        }
    }
    for seed in first..first + queries as u64 {
        let mut writer = Writer::new(seed);
        let sql = writer.sql();
        match check(&client, &sql, &mut writer, histories).await {
            Outcome::NotChecked => {}
            Outcome::Sound => checked += 1,
            Outcome::Stale(shown) => failures.push(format!("seed {seed}, {shown}")),
        }
    }
    println!("{queries} queries, {checked} checked over {histories} histories each");
    assert!(failures.is_empty(), "{} stale:\n{}", failures.len(), failures.join("\n"));
    assert!(checked * 2 >= queries, "only {checked} of {queries} queries could be checked");
}
