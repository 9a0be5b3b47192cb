//! Small changes beside a large one: a category that stands in every document is renamed, and
//! meanwhile orders change, each in one document. What those wait is set against what they wait
//! when nothing else happens.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::bed::{Bed, Names, sample};
use crate::documents::{self, Pages, TABLES, Watched, served};
use crate::report::{Aim, Report, histogram, record};
use crate::rest::Rest;
use crate::scaled;

/// Documents that the category stands in, and seconds that orders change for.
const DOCUMENTS: u64 = 200_000;
const SECONDS: u64 = 60;

const PER_SECOND: u64 = 100;
const ALONE_SECONDS: u64 = 10;
const WARM_UP_SECONDS: u64 = 3;
/// Before both: the servers' JVMs compile what they need.
const SERVERS_WARM_UP_SECONDS: u64 = 60;

/// A fan-out that takes longer never ends.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two counts of the renamed: each goes through all documents, which is work of its own for
/// the servers.
const COUNTS: Duration = Duration::from_millis(500);

const CATEGORY: i64 = 1;
const NAME: &str = "renamed-for-all";

pub async fn measure() {
    let bed = Bed::new("beside").await;
    let orders = scaled(DOCUMENTS).max(3_000);
    bed.psql("order_page.sql", &[format!("orders={orders}")]);
    let (client, _connection) = bed.client().await;
    let all = format!("UPDATE bench_product SET category_id = {CATEGORY}");
    client.batch_execute(&all).await.unwrap();
    client.batch_execute("VACUUM ANALYZE").await.unwrap();
    let own = bed.name.clone();
    let config = bed.config(&Names { own: &own, publication: &own, tables: TABLES, more: "" });
    std::fs::copy(sample("order_page.toml"), bed.mappings().join("order_page.toml")).unwrap();
    bed.prepare(&config, &[]);
    let process = bed.start(&config, &[]);
    let alias = format!("{own}-order_page");
    served(&alias).await;

    let pages = Pages { bed: &bed, alias: &alias, orders };
    let plan = |seconds| documents::plan(orders, PER_SECOND, WARM_UP_SECONDS + seconds);
    documents::watched(&pages, plan(scaled(SERVERS_WARM_UP_SECONDS))).await;
    let alone = of(&documents::watched(&pages, plan(ALONE_SECONDS)).await, u64::MAX);
    let seconds = scaled(SECONDS).max(10);
    let mut found = Rest::connect().await;
    let renaming = async {
        tokio::time::sleep(Duration::from_secs(WARM_UP_SECONDS)).await;
        renamed(&pages, &client).await
    };
    let changing = async {
        let told = documents::watched(&pages, plan(seconds)).await;
        (told, count(&mut found, &pages).await)
    };
    let ((told, meanwhile), took) = tokio::join!(changing, renaming);
    let during = took.as_secs_f64().min(seconds as f64);
    let last = WARM_UP_SECONDS * PER_SECOND + (during * PER_SECOND as f64) as u64;
    let beside = of(&told, last);

    let title = "Small changes while a renamed category goes into every document";
    let mut report = Report::new("beside", title);
    // The goal for 500/s: what is unrelated is not to be delayed beyond it.
    let aims = &[(20.0, 8.0), (80.0, 30.0), (200.0, 80.0)];
    report.latencies("an order of its own", &beside, Some(&alone), aims);
    let rate = meanwhile as f64 / during;
    report.row("the category's documents meanwhile", rate, "documents/s", Aim::None);
    report.row("until the last of them can be searched", took.as_secs_f64(), "s", Aim::None);
    report.row(
        "peak memory of the daemon",
        process.peak_megabytes(),
        "MB",
        Aim::AtMost(150.0, 60.0),
    );
    report.note(&format!(
        "{} changes of single orders during {orders} documents of the category. *Bare* is here the \
         same load without the renaming.",
        beside.len()
    ));
    report.publish();
    process.stop().await;
}

/// The times of the commits after the warm-up and before `last`.
fn of(told: &Watched, last: u64) -> Histogram<u64> {
    let mut all = histogram();
    let wanted = WARM_UP_SECONDS * PER_SECOND..last;
    for (_, latency) in told.found.iter().filter(|it| wanted.contains(&it.0)) {
        record(&mut all, *latency);
    }
    all
}

/// Renames the category, and waits until a search finds the new name in every document.
async fn renamed(pages: &Pages<'_>, client: &tokio_postgres::Client) -> Duration {
    let rename = "UPDATE bench_category SET name = $2 WHERE id = $1";
    client.execute(rename, &[&CATEGORY, &NAME]).await.unwrap();
    let committed = Instant::now();
    let mut rest = Rest::connect().await;
    let mut pause = tokio::time::interval(COUNTS);
    loop {
        pause.tick().await;
        let found = count(&mut rest, pages).await;
        if found == pages.orders {
            return committed.elapsed();
        }
        assert!(committed.elapsed() < PATIENCE, "after {PATIENCE:?}: {found} are renamed");
    }
}

/// How many documents a search finds by the new name.
async fn count(rest: &mut Rest, pages: &Pages<'_>) -> u64 {
    let query = serde_json::json!({"query": {"match_phrase": {"items.category_name": NAME}}});
    let path = format!("/{}/_count", pages.alias);
    let answer = rest.json("POST", &path, &query.to_string()).await;
    answer["count"].as_u64().unwrap()
}
