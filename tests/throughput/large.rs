//! Large and many: a transaction of ten million rows, a gigabyte of rows of a megabyte, thousands of
//! tables, thousands of tiny transactions a second. What counts is that memory stays flat and
//! nothing stalls.
//!
//! `ONELOG_BENCH_LARGE=rows,tables` runs some of: rows, megabytes, tables, tiny.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::bed::{Bed, Names, Process};
use crate::load::{self, Plan};
use crate::report::{Aim, Report};
use crate::scaled;

/// Ten million rows take minutes on two cores.
const PATIENCE: Duration = Duration::from_secs(1800);

const PER_SECOND: u64 = 2000;

pub async fn measure() {
    let mut report = Report::new("capture_large", "Capture: large and many");
    let wanted = std::env::var("ONELOG_BENCH_LARGE");
    let wanted = wanted.unwrap_or_else(|_| "rows,megabytes,tables,tiny".to_owned());
    let is_wanted = |name| wanted.split(',').any(|it| it == name);
    if is_wanted("rows") {
        let rows = scaled(10_000_000);
        let fill =
            format!("INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, {rows}) g");
        backlog(("rows", "one transaction of small rows"), (rows, &fill), &mut report).await;
    }
    if is_wanted("megabytes") {
        let rows = scaled(1000);
        // Not compressible, or the WAL would hold a few kilobytes.
        let fill = format!(
            "INSERT INTO t SELECT g, (SELECT string_agg(md5(h::text || g), '') \
             FROM generate_series(1, 31250) h) FROM generate_series(1, {rows}) g"
        );
        backlog(("megabytes", "rows of 1 MB"), (rows, &fill), &mut report).await;
    }
    if is_wanted("tables") {
        tables(scaled(1000), &mut report).await;
    }
    if is_wanted("tiny") {
        tiny(&mut report).await;
    }
    report.publish();
}

/// A bed with its daemon's config, and how much it published.
async fn bed(what: &str, sql: &str) -> (Bed, std::path::PathBuf) {
    let bed = Bed::new(what).await;
    let (client, _connection) = bed.client().await;
    for statement in sql.split(";;") {
        client.batch_execute(statement).await.unwrap();
    }
    let own = bed.name.clone();
    let config =
        bed.config(&Names { own: &own, publication: &own, tables: "\"public.*\"", more: "" });
    (bed, config)
}

async fn ended(bed: &Bed, process: Process) {
    process.stop().await;
    let said = bed.log_text();
    assert!(!said.contains("session ended"), "a stall, or an error: {said}");
}

async fn backlog((name, title): (&str, &str), (rows, fill): (u64, &str), report: &mut Report) {
    let (bed, config) = bed(
        name,
        "CREATE TABLE t (id bigint PRIMARY KEY, v text); \
                            ALTER TABLE t ALTER v SET STORAGE EXTERNAL",
    )
    .await;
    bed.prepare(&config, &[]);
    let (client, _connection) = bed.client().await;
    client.batch_execute(fill).await.unwrap();
    let started = Instant::now();
    let process = bed.start(&config, &["--only", "capture"]);
    bed.confirmed(&bed.name, PATIENCE).await;
    let seconds = started.elapsed().as_secs_f64();
    let title = format!("{rows} {title}");
    report.row(&format!("{title}, seconds"), seconds, "s", Aim::None);
    report.row(&format!("{title}, CPU"), process.cpu_seconds(), "s", Aim::None);
    report.row(
        &format!("{title}, peak memory"),
        process.peak_megabytes(),
        "MB",
        Aim::AtMost(150.0, 60.0),
    );
    ended(&bed, process).await;
}

/// All tables change in one transaction, twice: before their topics are there, and after.
async fn tables(count: u64, report: &mut Report) {
    let create = (1..=count).map(|nth| {
        let end = if nth % 500 == 0 { ";;" } else { ";" };
        format!("CREATE TABLE t{nth} (id int PRIMARY KEY, v text){end}")
    });
    let (bed, config) = bed("tables", &create.collect::<String>()).await;
    let started = Instant::now();
    bed.prepare(&config, &[]);
    let title = format!("{count} tables");
    let seconds = || started.elapsed().as_secs_f64();
    report.row(
        &format!("{title}: prepare, with topics for 1,000 at most"),
        seconds(),
        "s",
        Aim::None,
    );
    let started = Instant::now();
    let process = bed.start(&config, &["--only", "capture"]);
    bed.confirmed(&bed.name, PATIENCE).await;
    let seconds = started.elapsed().as_secs_f64();
    report.row(&format!("{title}: start until the slot moves"), seconds, "s", Aim::None);
    let (client, _connection) = bed.client().await;
    for what in ["the first change of each, in one transaction", "the next"] {
        let insert = format!(
            "DO $$ BEGIN FOR i IN 1..{count} LOOP EXECUTE format('INSERT INTO t%s VALUES \
             ((random() * 1e9)::int, ''v'')', i); END LOOP; END $$"
        );
        client.batch_execute(&insert).await.unwrap();
        let started = Instant::now();
        bed.confirmed(&bed.name, PATIENCE).await;
        let seconds = started.elapsed().as_secs_f64();
        report.row(&format!("{title}: {what}"), seconds, "s", Aim::None);
    }
    report.row(
        &format!("{title}: peak memory"),
        process.peak_megabytes(),
        "MB",
        Aim::AtMost(150.0, 60.0),
    );
    process.stop().await;
}

async fn tiny(report: &mut Report) {
    let (bed, config) = bed("tiny", "CREATE TABLE t (id bigint PRIMARY KEY, v text)").await;
    bed.prepare(&config, &[]);
    let process = bed.start(&config, &["--only", "capture"]);
    bed.confirmed(&bed.name, PATIENCE).await;
    let (output, mut committed) = mpsc::channel(10_000);
    let sql = "INSERT INTO t VALUES ($1, $2)".to_owned();
    let values = |nth| (i64::try_from(nth).unwrap(), format!("value-{nth}"));
    let commits = PER_SECOND * scaled(60);
    let plan = Plan { first: 0, commits, per_second: PER_SECOND, sql, values };
    let counting = async { while committed.recv().await.is_some() {} };
    let (ran, ()) = tokio::join!(load::run(&bed, plan, vec![output]), counting);
    let started = Instant::now();
    bed.confirmed(&bed.name, PATIENCE).await;
    let behind = started.elapsed().as_secs_f64();
    report.row("tiny transactions", ran.rate, "/s", Aim::None);
    report.row("tiny transactions, from the last to all confirmed", behind, "s", Aim::None);
    report.row("tiny transactions, CPU", process.cpu_seconds(), "s", Aim::None);
    report.row(
        "tiny transactions, peak memory",
        process.peak_megabytes(),
        "MB",
        Aim::AtMost(150.0, 60.0),
    );
    ended(&bed, process).await;
}
