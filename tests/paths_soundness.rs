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

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use futures_util::future::join_all;
use onelog::mapping::plan::{EntryPlan, Path};
use onelog::mapping::resolve::{ResolveError, resolve};
use onelog::mapping::{Collection, CollectionSettings, Entry, Nest, Place};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, Statement};

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

/// Writes random SQL. Every source has the columns id, x and y.
struct Writer {
    rng: StdRng,
    made: usize,
}

impl Writer {
    fn chance(&mut self, of_ten: u32) -> bool {
        self.rng.random_range(0..10) < of_ten
    }

    fn pick<'s>(&mut self, from: &[&'s str]) -> &'s str {
        from.choose(&mut self.rng).unwrap()
    }

    fn alias(&mut self) -> String {
        self.made += 1;
        format!("o{}", self.made)
    }

    fn column(&mut self, aliases: &[String]) -> String {
        let alias = aliases.choose(&mut self.rng).unwrap().clone();
        format!("{alias}.{}", self.pick(&COLUMNS))
    }

    fn equality(&mut self, left: &[String], right: &[String]) -> String {
        format!("{} = {}", self.column(left), self.column(right))
    }

    /// A FROM item and its alias.
    fn source(&mut self, depth: usize) -> (String, Vec<String>) {
        let alias = self.alias();
        if depth > 1 || self.chance(7) {
            return (format!("{} {alias}", self.pick(&TABLES)), vec![alias]);
        }
        (format!("({}) {alias}", self.derived(depth + 1)), vec![alias])
    }

    fn derived(&mut self, depth: usize) -> String {
        let (from, aliases) = self.from(depth, 1, 2);
        let mut c = || self.column(&aliases);
        let (k, l, m) = (c(), c(), c());
        let filter = self.filter(&aliases, depth, 3);
        let kind =
            self.pick(&["plain", "distinct", "group", "group2", "set", "on", "window", "sum"]);
        match kind {
            "distinct" => {
                format!("SELECT DISTINCT {k} AS id, {l} AS x, {m} AS y FROM {from}{filter}")
            }
            "group" => format!(
                "SELECT {k} AS id, count(*)::int AS x, max({l}) AS y FROM {from}{filter} GROUP BY {k}"
            ),
            "group2" if k != l => format!(
                "SELECT {k} AS id, {l} AS x, sum({m})::int AS y FROM {from}{filter} GROUP BY {k}, {l}"
            ),
            "set" => {
                let (other, others) = self.from(depth, 1, 2);
                let mut c = || self.column(&others);
                let (n, o, p) = (c(), c(), c());
                let op = self.pick(&["UNION", "UNION ALL", "EXCEPT", "INTERSECT", "EXCEPT ALL"]);
                format!(
                    "SELECT {k} AS id, {l} AS x, {m} AS y FROM {from}{filter} {op} \
                     SELECT {n}, {o}, {p} FROM {other}"
                )
            }
            "on" => format!(
                "SELECT DISTINCT ON ({k}) {k} AS id, {l} AS x, {m} AS y FROM {from}{filter} \
                 ORDER BY {k}, {l}, {m}"
            ),
            "window" => format!(
                "SELECT {k} AS id, {l} AS x, (sum({m}) OVER (PARTITION BY {k}))::int AS y \
                 FROM {from}{filter}"
            ),
            "sum" => {
                format!("SELECT max({k}) AS id, count(*)::int AS x, 1 AS y FROM {from}{filter}")
            }
            _ => format!("SELECT {k} AS id, {l} AS x, {m} AS y FROM {from}{filter}"),
        }
    }

    /// A tree of joins over `least` to `most` sources.
    fn from(&mut self, depth: usize, least: usize, most: usize) -> (String, Vec<String>) {
        let count = self.rng.random_range(least..=most);
        let mut nodes: Vec<_> = (0..count).map(|_| self.source(depth)).collect();
        while nodes.len() > 1 {
            let (left, lefts) = nodes.remove(self.rng.random_range(0..nodes.len()));
            let (right, rights) = nodes.remove(self.rng.random_range(0..nodes.len()));
            let kind = self.pick(&["", "", "LEFT", "LEFT", "RIGHT", "FULL", "CROSS"]);
            let all = [lefts.clone(), rights.clone()].concat();
            let mut on = vec![self.equality(&lefts, &rights)];
            if self.chance(3) {
                on.push(self.equality(&all, &all));
            }
            if self.chance(1) && kind != "FULL" {
                on.push(self.exists(&all, depth + 1));
            }
            let on = match kind {
                "CROSS" => String::new(),
                _ => format!(" ON {}", on.join(" AND ")),
            };
            nodes.push((format!("({left} {kind} JOIN {right}{on})"), all));
        }
        nodes.pop().unwrap()
    }

    /// The FROM and WHERE of a subquery that is linked to the aliases around it.
    fn linked(&mut self, around: &[String], depth: usize) -> (String, Vec<String>) {
        let (from, own) = self.from(depth + 1, 1, 2);
        let mut links = vec![self.equality(&own, around)];
        if self.chance(5) {
            links.push(self.equality(&own, around));
        }
        if self.chance(2) {
            links.push(self.equality(around, around));
        }
        if depth < 2 && self.chance(3) {
            links.push(self.exists(&[own.clone(), around.to_vec()].concat(), depth + 1));
        }
        (format!("FROM {from} WHERE {}", links.join(" AND ")), own)
    }

    fn exists(&mut self, around: &[String], depth: usize) -> String {
        let (body, own) = self.linked(around, depth);
        let column = self.column(&own);
        let outer = self.column(around);
        match self.pick(&["e", "ne", "ne", "in", "nin", "or"]) {
            "e" => format!("EXISTS (SELECT 1 {body})"),
            "ne" => format!("NOT EXISTS (SELECT 1 {body})"),
            "in" => format!("{outer} IN (SELECT {column} {body})"),
            "nin" => format!("{outer} NOT IN (SELECT {column} {body})"),
            _ => format!("({outer} = 1 OR EXISTS (SELECT 1 {body}))"),
        }
    }

    fn filter(&mut self, aliases: &[String], depth: usize, of_ten: u32) -> String {
        let mut parts = Vec::new();
        if self.chance(of_ten) {
            parts.push(self.equality(aliases, aliases));
        }
        if self.chance(of_ten) {
            parts.push(self.exists(aliases, depth + 1));
        }
        if self.chance(1) {
            parts.push(format!("{} IS NULL", self.column(aliases)));
        }
        if parts.is_empty() { String::new() } else { format!(" WHERE {}", parts.join(" AND ")) }
    }

    /// A whole mapping's SQL, its key being k.
    fn sql(&mut self) -> String {
        let (mut from, mut aliases) = self.from(0, 1, 4);
        if self.chance(2) {
            let (body, own) = self.linked(&aliases, 1);
            let (c, lateral) = (self.column(&own), self.alias());
            let kind = self.pick(&["LEFT", "INNER"]);
            let tail = self.pick(&["", "ORDER BY 1 LIMIT 1"]);
            from = format!(
                "{from} {kind} JOIN LATERAL (SELECT {c} AS id, {c} AS x, {c} AS y {body} {tail}) \
                 {lateral} ON true"
            );
            aliases.push(lateral);
        }
        let key = self.column(&aliases);
        let mut columns: Vec<String> = aliases.iter().map(|it| format!("{it}.y")).collect();
        if self.chance(4) {
            let (body, own) = self.linked(&aliases, 1);
            columns.push(format!("(SELECT max({}) {body})", self.column(&own)));
        }
        let filter = self.filter(&aliases, 0, 3);
        if self.chance(2) {
            let c = self.column(&aliases);
            return format!(
                "SELECT {key} AS k, count(*) AS n, max({c}) AS m FROM {from}{filter} GROUP BY {key}"
            );
        }
        if self.chance(2) {
            let other = self.derived(1);
            let (op, y) = (self.pick(&["UNION", "EXCEPT", "UNION ALL"]), self.column(&aliases));
            return format!(
                "WITH w AS ({other}) SELECT {key} AS k, {y} AS v FROM {from}{filter} {op} \
                 SELECT w.id, v.x FROM w JOIN w v ON v.id = w.x"
            );
        }
        let named: Vec<_> =
            columns.iter().enumerate().map(|(nth, it)| format!("{it} AS v{nth}")).collect();
        format!("SELECT {key} AS k, {} FROM {from}{filter}", named.join(", "))
    }

    fn value(&mut self) -> Option<i32> {
        *[Some(0), Some(1), Some(1), Some(2), None].choose(&mut self.rng).unwrap()
    }

    fn history(&mut self) -> (Vec<State>, Vec<Event>) {
        let mut state = State::new();
        for table in TABLES {
            let rows = state.entry(table).or_default();
            for id in 0..3 {
                if self.chance(4) {
                    rows.insert(id, [Some(id), self.value(), self.value()]);
                }
            }
        }
        let (mut states, mut events) = (vec![state.clone()], Vec::new());
        for commit in 1..=self.rng.random_range(1..5) {
            for _ in 0..self.rng.random_range(1..3) {
                let table = *TABLES.choose(&mut self.rng).unwrap();
                let id = self.rng.random_range(0..3);
                let rows = state.get_mut(table).unwrap();
                let old = rows.remove(&id);
                let new = (old.is_none() || self.chance(5))
                    .then(|| [Some(id), self.value(), self.value()]);
                if let Some(new) = new {
                    state.get_mut(table).unwrap().insert(id, new);
                }
                let images = old.into_iter().chain(new).collect();
                events.push(Event { commit, table, images });
            }
            states.push(state.clone());
        }
        (states, events)
    }
}

fn load_sql(state: &State) -> String {
    let mut sql = String::new();
    let text = |it: &Option<i32>| it.map_or("NULL".to_owned(), |it| it.to_string());
    for (table, rows) in state {
        sql.push_str(&format!("DELETE FROM {table};"));
        for row in rows.values() {
            let values: Vec<_> = row.iter().map(text).collect();
            sql.push_str(&format!("INSERT INTO {table} VALUES ({});", values.join(",")));
        }
    }
    sql
}

/// The paths of one table's occurrences, lookups prepared.
enum Ready {
    InRow(usize),
    Lookup(Vec<usize>, Statement),
}

async fn prepare(client: &Client, plan: &EntryPlan) -> Vec<(String, Ready)> {
    let nth = |it: &String| COLUMNS.iter().position(|column| column == it).unwrap();
    let mut ready = Vec::new();
    for path in &plan.paths {
        let path_ready = match &path.path {
            Path::InRow { column } => Ready::InRow(nth(column)),
            Path::Lookup(lookup) => {
                let statement = client.prepare(&lookup.sql).await.expect(&lookup.sql);
                Ready::Lookup(lookup.columns.iter().map(nth).collect(), statement)
            }
        };
        ready.push((path.table.name.clone(), path_ready));
    }
    ready
}

async fn keys(client: &Client, path: &Ready, image: &Row) -> Vec<String> {
    let text = |nth: &usize| image[*nth].map(|it| it.to_string());
    match path {
        Ready::InRow(nth) => text(nth).into_iter().collect(),
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
        let sql = format!("CREATE TABLE {table} (id int PRIMARY KEY, x int, y int)");
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
        let mut writer = Writer { rng: StdRng::seed_from_u64(first), made: 0 };
        if let Outcome::Stale(shown) = check(&client, trap, &mut writer, histories * 8).await {
            failures.push(format!("a known trap, {shown}"));
        }
    }
    for seed in first..first + queries as u64 {
        let mut writer = Writer { rng: StdRng::seed_from_u64(seed), made: 0 };
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
