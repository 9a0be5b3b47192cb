//! From COMMIT to document: the daemon in its default config on the bed of order pages; a document
//! counts once a realtime GET by id shows the change.
//!
//! Beside it, on a database of its own, the bare loop of `bare.rs` with the same commits.
//!
//! Each commit writes a text of its own into an order of its own. Whoever waits for it asks again
//! every two milliseconds: that, and the GET, are part of what is measured.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::bed::{Bed, Names, Process};
use crate::cost::Backends;
use crate::fan_out::contains;
use crate::load::{self, Committed, Plan};
use crate::report::{Aim, Report, histogram, record};
use crate::rest::Rest;
use crate::{bare, fan_out, scaled, support};

/// Commits a second, for how many seconds, and the aims for p50, p99 and p99.9.
type Steady = (u64, u64, &'static [(f64, f64)]);
const STEADY: [Steady; 3] =
    [(100, 20, &[]), (500, 60, &[(20.0, 8.0), (80.0, 30.0), (200.0, 80.0)]), (2_000, 15, &[])];
/// Table, and the aims for p50.
const JOINED: [(&str, (f64, f64)); 3] =
    [("customer", (25.0, 10.0)), ("product", (40.0, 15.0)), ("category", (300.0, 80.0))];

const BARE_SECONDS: u64 = 15;
const WARM_UP_SECONDS: u64 = 3;
/// Before everything, at the rate that has aims: for about so long the servers' JVMs compile what
/// they need, on the same cores.
const SERVERS_WARM_UP_SECONDS: u64 = 180;
const SERVERS_WARM_UP_RATE: u64 = 500;
const POLLERS: usize = 4;

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

/// Two databases of order pages: one with the daemon, one for the bare loop.
struct Both {
    bed: Bed,
    alias: String,
    process: Process,
    bare: Bed,
    bare_index: String,
    orders: u64,
}

impl Both {
    async fn new() -> Self {
        let (bed, bare) = (Bed::new("documents").await, Bed::new("bare").await);
        let orders = order_pages(&bed);
        order_pages(&bare);
        let own = bed.name.clone();
        let config = bed.config(&Names { own: &own, publication: &own, tables: TABLES, more: "" });
        let mapping = bed.mappings().join("order_page.toml");
        std::fs::copy(crate::bed::sample("order_page.toml"), mapping).unwrap();
        bed.prepare(&config, &[]);
        let process = bed.start(&config, &[]);
        let alias = format!("{own}-order_page");
        served(&alias).await;
        let bare_index = format!("{own}-bare");
        bare::index_like(&mut Rest::connect().await, &alias, &bare_index).await;
        Self { bed, alias, process, bare, bare_index, orders }
    }
}

/// The documents that are watched.
pub struct Pages<'a> {
    pub bed: &'a Bed,
    pub alias: &'a str,
    pub orders: u64,
}

pub async fn measure() {
    let both = Both::new().await;
    let title = "Commit → document, daemon in default config, beside a bare loop";
    let mut report = Report::new("commit_to_document", title);
    let mut costs = Report::new("cost", "What a change costs, in CPU time per 1,000 changes");
    let wanted = std::env::var("ONELOG_BENCH_RATES").unwrap_or_else(|_| "100,500,2000".to_owned());
    let wanted: Vec<u64> = wanted.split(',').map(|it| it.parse().unwrap()).collect();
    let pages = Pages { bed: &both.bed, alias: &both.alias, orders: both.orders };
    watched(&pages, plan(both.orders, SERVERS_WARM_UP_RATE, scaled(SERVERS_WARM_UP_SECONDS))).await;
    for steady in STEADY.iter().filter(|it| wanted.contains(&it.0)) {
        single_orders(&both, steady, &mut report, &mut costs).await;
    }
    for (table, aim) in JOINED {
        let bare = fan_out::bare(&both.bare, &both.bare_index, table).await;
        let (found, documents) = fan_out::measure(&both.bed, &both.alias, table).await;
        let what = format!("changed {table}, {documents:.0} documents, to the last");
        let ms = |it: &Histogram<u64>, quantile| it.value_at_quantile(quantile) as f64 / 1000.0;
        for (label, quantile, aim) in
            [("p50", 0.5, Aim::AtMost(aim.0, aim.1)), ("max", 1.0, Aim::None)]
        {
            let value = (ms(&found, quantile), "ms");
            report.beside(&format!("{what}, {label}"), value, ms(&bare, quantile), aim);
        }
    }
    let peak = both.process.peak_megabytes();
    report.row("peak memory of the daemon", peak, "MB", Aim::AtMost(150.0, 60.0));
    report.note(&format!(
        "{} order pages, after {} s at {SERVERS_WARM_UP_RATE} a second.",
        both.orders,
        scaled(SERVERS_WARM_UP_SECONDS)
    ));
    report.publish();
    costs.note("`load` is the application's own: one UPDATE and its COMMIT for each change.");
    costs.publish();
    both.process.stop().await;
}

/// One rate: the bare loop, then the daemon.
async fn single_orders(
    both: &Both,
    &(per_second, seconds, aims): &Steady,
    report: &mut Report,
    costs: &mut Report,
) {
    let plan = |seconds| plan(both.orders, per_second, WARM_UP_SECONDS + seconds);
    let warm_up = (per_second * WARM_UP_SECONDS, order_of as fn(u64, u64) -> u64);
    let (bare_bed, bare_index) = (&both.bare, &both.bare_index);
    let seconds_bare = scaled(BARE_SECONDS);
    let bare =
        bare::single_orders(bare_bed, bare_index, plan(seconds_bare), warm_up, both.orders).await;
    let (client, _connection) = both.bed.client().await;
    let plan = plan(scaled(seconds));
    let thousands = plan.commits as f64 / 1000.0;
    let (before, cpu_before) = (Backends::now(&client).await, both.process.cpu_seconds());
    let pages = Pages { bed: &both.bed, alias: &both.alias, orders: both.orders };
    let told = watched(&pages, plan).await;
    let mut latencies = histogram();
    for (_, latency) in told.found.iter().filter(|it| it.0 >= warm_up.0) {
        record(&mut latencies, *latency);
    }
    let cpu = both.process.cpu_seconds() - cpu_before;
    let what = format!("{per_second} commits/s");
    let of_postgres = told.backends.since(&before);
    let own = of_postgres.get(load::APPLICATION).copied().unwrap_or_default() / thousands * 1e3;
    for (name, seconds) in &of_postgres {
        let cost = (seconds / thousands * 1e3, "ms");
        if cost.0 >= 0.5 {
            costs.beside(&format!("{what}, Postgres for `{name}`"), cost, own, Aim::None);
        }
    }
    costs.beside(&format!("{what}, the daemon"), (cpu / thousands * 1e3, "ms"), own, Aim::None);
    report.latencies(&what, &latencies, Some(&bare), aims);
    let rate = told.rate;
    report.note(&format!("{} commits at {rate:.0} a second.", latencies.len()));
}

/// Each commit writes a text of its own, of which no earlier plan has written any.
pub fn plan(orders: u64, per_second: u64, seconds: u64) -> Plan {
    static PLANNED: AtomicU64 = AtomicU64::new(0);
    let commits = per_second * seconds;
    let first = PLANNED.fetch_add(commits, Ordering::Relaxed);
    // As `order_of`.
    let sql =
        format!("UPDATE bench_order SET note = $2 WHERE id = 1 + $1::bigint * 7919 % {orders}");
    let values = |nth| (i64::try_from(nth).unwrap(), text_of(nth));
    Plan { first, commits, per_second, sql, values }
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

pub struct Watched {
    /// Each commit, by its place in the plan, and how long its document took.
    pub found: Vec<(u64, Duration)>,
    rate: f64,
    backends: Backends,
}

/// Carries the plan out and watches each commit's document.
pub async fn watched(pages: &Pages<'_>, plan: Plan) -> Watched {
    let mut pollers = JoinSet::new();
    let mut outputs = Vec::new();
    for _ in 0..POLLERS {
        let (output, input) = mpsc::channel(100_000);
        outputs.push(output);
        let (alias, rest) = (pages.alias.to_owned(), Rest::connect().await);
        pollers.spawn(poll(rest, alias, pages.orders, input));
    }
    let (client, _connection) = pages.bed.client().await;
    let first = plan.first;
    let ran = load::run(pages.bed, plan, outputs).await;
    let found = pollers.join_all().await.concat();
    let found = found.into_iter().map(|(nth, took)| (nth - first, took)).collect();
    let backends = Backends::now(&client).await;
    drop(ran.connections);
    Watched { found, rate: ran.rate, backends }
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
