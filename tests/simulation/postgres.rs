//! The model against the real server: the same documents on the same rows, and the same paths as
//! from the SQL that Postgres prints.

use std::path::PathBuf;

use onelog::mapping::resolve::{ResolveError, resolve};
use onelog::mapping::{Collection, CollectionSettings, Entry, Nest, Place};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use super::evaluate::{Evaluation, Row, State};
use super::query::{Query, TABLES};
use super::universe::Universe;
use super::write::Writer;
use super::{analysis, size};

async fn connect(url: &str, drivers: &mut JoinSet<()>) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("Postgres");
    drivers.spawn(async move { drop(connection.await) });
    client
}

async fn database(drivers: &mut JoinSet<()>) -> Client {
    let url = std::env::var("ONELOG_TEST_POSTGRES")
        .expect("ONELOG_TEST_POSTGRES is not set: run make test");
    let name = "onelog_simulation";
    let admin = connect(&url, drivers).await;
    admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name}")).await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    let client = connect(&format!("{server}/{name}"), drivers).await;
    for table in TABLES {
        let sql = format!(
            "CREATE TABLE {table} (id int PRIMARY KEY, x int, y int); \
             ALTER TABLE {table} REPLICA IDENTITY FULL"
        );
        client.batch_execute(&sql).await.unwrap();
    }
    client.batch_execute("CREATE PUBLICATION onelog FOR TABLE a, b, c").await.unwrap();
    client
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
    Collection {
        name: "page".into(),
        entries: vec![entry],
        settings: CollectionSettings::default(),
    }
}

fn load_sql(state: &State) -> String {
    let text = |it: &Option<i16>| it.map_or("NULL".to_owned(), |it| it.to_string());
    let mut sql = String::new();
    for (table, rows) in TABLES.iter().zip(state) {
        sql.push_str(&format!("DELETE FROM {table};"));
        for row in rows {
            let values: Vec<String> = row.iter().map(text).collect();
            sql.push_str(&format!("INSERT INTO {table} VALUES ({});", values.join(",")));
        }
    }
    sql
}

async fn answers(client: &Client, query: &Query) -> Option<Vec<(i16, Row)>> {
    let fields: Vec<String> = (0..3).map(|it| format!("(to_jsonb(q) -> 'v{it}')::text")).collect();
    let sql =
        format!("SELECT q.k::text, {} FROM ({query}) q WHERE q.k IS NOT NULL", fields.join(", "));
    let value = |text: Option<&str>| match text {
        None | Some("null") => None,
        Some("true") => Some(1),
        Some("false") => Some(0),
        Some(number) => Some(number.parse().expect("a small number")),
    };
    let rows = client.query(&sql, &[]).await.ok()?;
    let row = |it: &tokio_postgres::Row| {
        let key = it.get::<_, &str>(0).parse().expect("a small number");
        (key, [1, 2, 3].map(|nth| value(it.get(nth))))
    };
    Some(rows.iter().map(row).collect())
}

#[tokio::test]
async fn the_model_agrees_with_postgres() {
    let (queries, first) =
        (size("ONELOG_TEST_SIMULATION_COMPARED", 150), size("ONELOG_TEST_SEED", 1));
    let mut drivers = JoinSet::new();
    let client = database(&mut drivers).await;
    let (mut compared, mut wrong) = (0, Vec::new());
    for seed in first..first + queries {
        let query = Writer::new(seed).query();
        let sql = query.to_string();
        let plan = match resolve(&client, "onelog", &collection(&sql)).await {
            Ok(plan) => plan.entries.into_iter().next().unwrap(),
            Err(ResolveError::Mistakes(_)) => continue,
            Err(error) => panic!("{sql}\n{error:?}"),
        };
        let ours = analysis(&sql);
        if (&ours.paths, &ours.poll_reasons) != (&plan.paths, &plan.poll_reasons) {
            wrong.push(format!("seed {seed}, paths: {sql}\n  {ours:?}\n  {plan:?}"));
        }
        for state in [0, 21, 31] {
            let state = Universe::new(seed).state(state);
            client.batch_execute(&format!("BEGIN; {}", load_sql(&state))).await.unwrap();
            let theirs = answers(&client, &query).await;
            client.batch_execute("ROLLBACK").await.unwrap();
            // Planning may refuse a FULL JOIN whose condition it cannot hash or merge.
            let Some(mut theirs) = theirs else { continue };
            let mut ours = (Evaluation { query: &query, state: &state }).rows();
            ours.sort();
            theirs.sort();
            compared += 1;
            if ours != theirs {
                wrong.push(format!("seed {seed}: {sql}\n  {state:?}\n  {ours:?}\n  {theirs:?}"));
            }
        }
    }
    println!("{queries} queries, {compared} answers compared");
    assert!(wrong.is_empty(), "{} differ, for instance\n{}", wrong.len(), wrong[0]);
    assert!(compared >= queries, "only {compared} answers of {queries} queries were compared");
}
