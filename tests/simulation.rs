//! The paths find every key: millions of histories, in process.
//!
//! As `paths_soundness.rs`, which asks a real Postgres and so checks thousands: random SQL, its
//! paths as the daemon would have them, and an adversary that picks the snapshot at which each
//! event is handled. Here the SQL, the tables and the path queries are evaluated by a small model;
//! `the_model_agrees_with_postgres` holds it to the real server.
//! Size: ONELOG_TEST_SIMULATION_QUERIES (600, about 60 million histories), ONELOG_TEST_SEED (1).

#![allow(clippy::unwrap_used, clippy::as_conversions, reason = "a test that fails may panic")]
#![allow(clippy::print_stdout, reason = "what was covered is part of the answer")]

#[path = "simulation/evaluate.rs"]
mod evaluate;
#[path = "simulation/lookup.rs"]
mod lookup;
#[path = "simulation/postgres.rs"]
mod postgres;
#[path = "simulation/query.rs"]
mod query;
#[path = "simulation/universe.rs"]
mod universe;
#[path = "simulation/write.rs"]
mod write;

use std::collections::{BTreeMap, BTreeSet};

use onelog::mapping::impact::facts::{ColumnFacts, FunctionFacts, TableFacts, Volatility};
use onelog::mapping::impact::{Analysis, AnalysisInput, analyze};
use onelog::mapping::plan::TableName;

use self::lookup::Start;
use self::query::{COLUMNS, Query, TABLES};
use self::universe::{Tables, Universe};
use self::write::Writer;

/// Universes per query: a path is either wrong soon, or for a constellation that is rare.
const UNIVERSES: u64 = 4;

/// Every shape that must have been checked with a path, or the run says nothing about it.
const SHAPES: &[&str] = &[
    "inner join",
    "left join",
    "right join",
    "full join",
    "cross join",
    "FULL JOIN USING",
    "derived table",
    "CTE",
    "VALUES",
    "LATERAL",
    "UNION",
    "UNION ALL",
    "INTERSECT",
    "EXCEPT",
    "EXCEPT ALL",
    "DISTINCT",
    "DISTINCT ON",
    "GROUP BY",
    "HAVING",
    "aggregate",
    "window",
    "LIMIT",
    "EXISTS",
    "NOT EXISTS",
    "IN",
    "NOT IN",
    "OR of EXISTS",
    "OR of equalities",
    "COALESCE in an equality",
    "expression in an equality",
    "scalar subquery",
    "scalar subquery with LIMIT",
    "EXISTS as a value",
    "IN as a value",
    "COALESCE as the key",
    "CASE as the key",
];

fn table(nth: usize) -> (TableName, TableFacts) {
    let name = TableName { namespace: "public".to_owned(), name: TABLES[nth].to_owned() };
    let column = |name: &&str| ColumnFacts::plain((*name).to_owned(), 23, "integer");
    let facts = TableFacts {
        name: name.clone(),
        oid: 1,
        columns: COLUMNS.iter().map(column).collect(),
        published: true,
        identity: COLUMNS.iter().map(|it| (*it).to_owned()).collect(),
        obstacles: Vec::new(),
    };
    (name, facts)
}

fn analysis(sql: &str) -> Analysis {
    let aggregate = |name: &&str| FunctionFacts {
        name: (*name).to_owned(),
        built_in: true,
        volatility: Volatility::Immutable,
        strict: false,
        aggregate: true,
        returns_set: false,
    };
    let functions: Vec<FunctionFacts> = ["count", "max", "sum"].iter().map(aggregate).collect();
    analyze(&AnalysisInput {
        sql,
        key: "k",
        tables: &[0, 1, 2].map(table).into(),
        views: &BTreeMap::new(),
        key_equal_image: true,
        functions: &functions,
    })
}

/// Which tables some occurrence of has no path; None: the entry polls as a whole.
fn swept(reasons: &[String]) -> Option<[bool; 3]> {
    let mut swept = [false; 3];
    for reason in reasons {
        let rest = reason.strip_prefix("no key path for public.")?;
        swept[TABLES.iter().position(|it| rest.starts_with(it))?] = true;
    }
    Some(swept)
}

fn starts(analysis: &Analysis) -> [Vec<Start>; 3] {
    TABLES.map(|table| {
        let mine = analysis.paths.iter().filter(|it| it.table.name == table);
        mine.map(|it| Start::new(&it.path)).collect()
    })
}

#[derive(Default)]
struct Report {
    checked: u64,
    whole: u64,
    histories: u64,
    shapes: BTreeMap<&'static str, u64>,
    stale: Vec<String>,
}

fn simulate(seed: u64, report: &mut Report) {
    let mut writer = Writer::new(seed);
    let query: Query = writer.query();
    let sql = query.to_string();
    let analysis = analysis(&sql);
    let Some(swept) = swept(&analysis.poll_reasons) else { return };
    report.checked += 1;
    if swept == [false; 3] {
        report.whole += 1;
        writer.shapes.iter().for_each(|it| *report.shapes.entry(it).or_default() += 1);
    }
    let starts = starts(&analysis);
    for nth in 0..UNIVERSES {
        let universe = Universe::new(seed * UNIVERSES + nth);
        let (stale, checked) = Tables::new(&universe, &query, &starts, swept).stale();
        report.histories += checked;
        if let Some(history) = stale {
            let (paths, shown) = (&analysis.paths, universe.shown());
            report.stale.push(format!("seed {seed}: {sql}\n  {paths:?}\n  {history:?} of {shown}"));
            return;
        }
    }
}

fn size(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|it| it.parse().ok()).unwrap_or(usual)
}

#[test]
fn no_history_of_millions_leaves_a_document_stale() {
    let (queries, first) =
        (size("ONELOG_TEST_SIMULATION_QUERIES", 600), size("ONELOG_TEST_SEED", 1));
    let mut reports = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|part| {
                scope.spawn(move || {
                    let mut report = Report::default();
                    let seeds = (first..first + queries).filter(|it| it % 2 == part);
                    seeds.for_each(|it| simulate(it, &mut report));
                    report
                })
            })
            .collect();
        reports.extend(threads.into_iter().map(|it| it.join().unwrap()));
    });
    let total = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    let histories = total(|it| it.histories);
    println!(
        "seeds from {first}: {queries} queries, {} checked, {} of them with a path everywhere, \
         {histories} histories",
        total(|it| it.checked),
        total(|it| it.whole),
    );
    let count = |shape: &&str| reports.iter().filter_map(|it| it.shapes.get(shape)).sum::<u64>();
    SHAPES.iter().for_each(|it| println!("  {it}: {}", count(it)));
    let stale: Vec<&String> = reports.iter().flat_map(|it| &it.stale).collect();
    let shown: Vec<&str> = stale.iter().take(3).map(|it| it.as_str()).collect();
    assert!(stale.is_empty(), "{} stale, for instance\n{}", stale.len(), shown.join("\n"));
    if queries >= 600 {
        let never: BTreeSet<_> = SHAPES.iter().filter(|it| count(it) == 0).collect();
        assert!(never.is_empty(), "never checked: {never:?}");
    }
}
