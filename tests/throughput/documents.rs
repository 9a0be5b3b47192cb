//! From COMMIT to document: the daemon in its default config on the bed of order pages; a document
//! counts once a realtime GET by id shows the change.
//!
//! Each commit writes a text of its own into an order of its own. Whoever waits for it asks again
//! every two milliseconds: that, and the GET, are part of what is measured.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::bed::{Bed, Names};
use crate::load::{self, Committed, Plan};
use crate::report::{Aim, Report, histogram, record};
use crate::rest::Rest;
use crate::{scaled, support};

const PER_SECOND: u64 = 500;
const WARM_UP_SECONDS: u64 = 3;
const POLLERS: usize = 4;
const REPEATS: u64 = 30;

/// After a commit and between two looks at the same document; later the looks become rarer, so
/// that a daemon that fell behind isn't kept there by us.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LOOKS: Duration = Duration::from_millis(2);
const LATE: Duration = Duration::from_millis(100);
const LATE_LOOKS: Duration = Duration::from_millis(20);

/// Most documents in one look. On a machine with time to spare it is one or two.
const LOOK_MAX: usize = 50;

/// A document that comes later than this never comes.
const PATIENCE: Duration = Duration::from_secs(120);

/// The tables of order_page.sql, quoted for a config.
pub const TABLES: &str = "\"public.bench_*\"";

pub async fn measure() {
    let bed = Bed::new("documents").await;
    let orders = order_pages(&bed);
    let own = bed.name.clone();
    let config = bed.config(&Names { own: &own, publication: &own, tables: TABLES });
    std::fs::copy(crate::bed::sample("order_page.toml"), bed.mappings().join("order_page.toml"))
        .unwrap();
    bed.prepare(&config, &[]);
    let process = bed.start(&config, &[]);
    let alias = format!("{own}-order_page");
    served(&alias).await;

    let mut report =
        Report::new("commit_to_document", "Commit → document, daemon in default config");
    let cpu_before = process.cpu_seconds();
    let (latencies, rate) = single_orders(&bed, &alias, orders).await;
    let seconds = (scaled(60) + WARM_UP_SECONDS) as f64;
    let cpu = (process.cpu_seconds() - cpu_before) / seconds * 60.0;
    report.latencies("500 commits/s", &latencies, &[(20.0, 8.0), (80.0, 30.0), (200.0, 80.0)]);
    let joined =
        [("customer", (25.0, 10.0)), ("product", (40.0, 15.0)), ("category", (300.0, 80.0))];
    for (table, aim) in joined {
        let (found, documents) = fan_out(&bed, &alias, table).await;
        let p50 = found.value_at_quantile(0.5) as f64 / 1000.0;
        let worst = found.max() as f64 / 1000.0;
        let what = format!("changed {table}, {documents:.0} documents");
        report.row(&format!("{what}, p50 to the last"), p50, "ms", Aim::AtMost(aim.0, aim.1));
        report.row(&format!("{what}, max to the last"), worst, "ms", Aim::None);
    }
    report.row("CPU of the daemon in 60 s at 500/s", cpu, "s", Aim::None);
    let peak = process.peak_megabytes();
    report.row("peak memory of the daemon", peak, "MB", Aim::AtMost(150.0, 60.0));
    report
        .note(&format!("{} commits at {rate:.0} a second; {orders} order pages.", latencies.len()));
    report.publish();
    process.stop().await;
}

/// Loads the bed; returns how many orders it has.
pub fn order_pages(bed: &Bed) -> u64 {
    let orders = scaled(60_000).max(3_000);
    bed.psql("order_page.sql", &[format!("orders={orders}")]);
    orders
}

/// Waits until the alias is there, which is when its index was built.
pub async fn served(alias: &str) {
    let path = format!("/_alias/{alias}");
    let rest = tokio::sync::Mutex::new(Rest::connect().await);
    support::eventually("the collection is built", PATIENCE, || async {
        (rest.lock().await.send("GET", &path, b"").await.0 == 200).then_some(())
    })
    .await;
}

/// Different orders one after the other, far from each other: 7919 is a prime that divides none
/// of the bed's sizes.
fn order_of(nth: u64, orders: u64) -> u64 {
    1 + nth * 7919 % orders
}

fn text_of(nth: u64) -> String {
    format!("change-{nth}-end")
}

async fn single_orders(bed: &Bed, alias: &str, orders: u64) -> (Histogram<u64>, f64) {
    let warm_up = PER_SECOND * WARM_UP_SECONDS;
    let commits = warm_up + PER_SECOND * scaled(60);
    let mut pollers = JoinSet::new();
    let mut outputs = Vec::new();
    for _ in 0..POLLERS {
        let (output, input) = mpsc::channel(10_000);
        outputs.push(output);
        let (alias, rest) = (alias.to_owned(), Rest::connect().await);
        pollers.spawn(poll(rest, alias, orders, input));
    }
    // As `order_of`.
    let sql =
        format!("UPDATE bench_order SET note = $2 WHERE id = 1 + $1::bigint * 7919 % {orders}");
    let values = |nth| (i64::try_from(nth).unwrap(), text_of(nth));
    let rate = load::run(bed, Plan { commits, per_second: PER_SECOND, sql, values }, outputs).await;
    let mut all = histogram();
    while let Some(found) = pollers.join_next().await {
        for (nth, latency) in found.unwrap() {
            if nth >= warm_up {
                record(&mut all, latency);
            }
        }
    }
    (all, rate)
}

/// Looks for each change that it is told of until its document has it.
async fn poll(
    mut rest: Rest,
    alias: String,
    orders: u64,
    mut input: mpsc::Receiver<Committed>,
) -> Vec<(u64, Duration)> {
    let mut waiting: BinaryHeap<Reverse<(Instant, Instant, u64)>> = BinaryHeap::new();
    let mut found = Vec::new();
    loop {
        let next = waiting.peek().map(|it| it.0.0);
        tokio::select! {
            biased;
            told = input.recv(), if !input.is_closed() || !input.is_empty() => {
                if let Some(it) = told {
                    waiting.push(Reverse((it.at + FIRST_LOOK, it.at, it.nth)));
                }
                continue;
            }
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into()),
                if next.is_some() => {}
            else => return found,
        }
        let mut due = Vec::new();
        while due.len() < LOOK_MAX
            && let Some(it) = waiting.peek()
            && (due.is_empty() || it.0.0 <= Instant::now())
        {
            due.extend(waiting.pop().map(|it| (it.0.1, it.0.2)));
        }
        let orders: Vec<u64> = due.iter().map(|it| order_of(it.1, orders)).collect();
        let body = look(&mut rest, &alias, &orders).await;
        for (committed, nth) in due {
            let age = committed.elapsed();
            if contains(body, text_of(nth).as_bytes()) {
                found.push((nth, age));
                continue;
            }
            assert!(age < PATIENCE, "no document has {} after {age:?}", text_of(nth));
            let pause = if age < LATE { LOOKS } else { LATE_LOOKS };
            waiting.push(Reverse((Instant::now() + pause, committed, nth)));
        }
    }
}

/// The documents of some orders, as realtime GETs see them.
async fn look<'a>(rest: &'a mut Rest, alias: &str, orders: &[u64]) -> &'a [u8] {
    let (status, body) = match orders {
        [one] => rest.send("GET", &format!("/{alias}/_doc/{one}"), b"").await,
        several => {
            let ids: Vec<String> = several.iter().map(u64::to_string).collect();
            let body = serde_json::json!({ "ids": ids }).to_string();
            rest.send("POST", &format!("/{alias}/_mget"), body.as_bytes()).await
        }
    };
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(body));
    body
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|it| it == wanted)
}

/// Changes rows that stand in many documents, one after the other; the time from COMMIT until the
/// last document is new, and the mean number of documents.
async fn fan_out(bed: &Bed, alias: &str, table: &str) -> (Histogram<u64>, f64) {
    let (client, _connection) = bed.client().await;
    let mut rest = Rest::connect().await;
    let touched = match table {
        "customer" => "SELECT id FROM bench_order WHERE customer_id = $1",
        "product" => "SELECT DISTINCT order_id FROM bench_order_item WHERE product_id = $1",
        _ => {
            "SELECT DISTINCT order_id FROM bench_order_item i \
             JOIN bench_product p ON p.id = i.product_id WHERE p.category_id = $1"
        }
    };
    let update = format!("UPDATE bench_{table} SET name = $2 WHERE id = $1");
    let count = format!("SELECT count(*) FROM bench_{table}");
    let rows: i64 = client.query_one(&count, &[]).await.unwrap().get(0);
    let update = client.prepare(&update).await.unwrap();
    let mut latencies = histogram();
    let mut documents = 0;
    for repeat in 0..i64::try_from(REPEATS).unwrap() {
        let row = 1 + repeat * 37 % rows;
        let found = client.query(touched, &[&row]).await.unwrap();
        let ids: Vec<String> = found.iter().map(|it| it.get::<_, i64>(0).to_string()).collect();
        if ids.is_empty() {
            continue;
        }
        documents += ids.len();
        let before = versions(&mut rest, alias, &ids).await;
        let name = format!("renamed-{table}-{repeat}-end");
        client.execute(&update, &[&row, &name]).await.unwrap();
        let committed = Instant::now();
        let mut waiting: Vec<(String, u64)> = ids.iter().cloned().zip(before).collect();
        while !waiting.is_empty() {
            // The first of them are asked for until they are new, and then the next ones.
            let asked = waiting.len().min(100);
            let ids: Vec<String> = waiting[..asked].iter().map(|it| it.0.clone()).collect();
            let now = versions(&mut rest, alias, &ids).await;
            let old: Vec<(String, u64)> = waiting
                .drain(..asked)
                .zip(now)
                .filter(|(it, now)| it.1 == *now)
                .map(|it| it.0)
                .collect();
            waiting.splice(0..0, old);
            assert!(committed.elapsed() < PATIENCE, "{table} {row}: {} left", waiting.len());
        }
        record(&mut latencies, committed.elapsed());
        for id in [ids.first(), ids.last()].into_iter().flatten() {
            let (_, body) = rest.send("GET", &format!("/{alias}/_doc/{id}"), b"").await;
            assert!(contains(body, name.as_bytes()), "{id} is new but has no {name}");
        }
    }
    let mean = documents as f64 / latencies.len() as f64;
    (latencies, mean)
}

/// The documents' versions, which a write of a newer read raises.
async fn versions(rest: &mut Rest, alias: &str, ids: &[String]) -> Vec<u64> {
    let mut found = Vec::with_capacity(ids.len());
    for ids in ids.chunks(100) {
        let body = serde_json::json!({ "ids": ids }).to_string();
        let answer = rest.json("POST", &format!("/{alias}/_mget?_source=false"), &body).await;
        let documents = answer["docs"].as_array().unwrap();
        found.extend(documents.iter().map(|it| it["_version"].as_u64().unwrap()));
    }
    found
}
