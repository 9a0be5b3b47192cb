//! The first build of a collection, beside a bare loop in the same run: one SELECT of the same
//! documents, and `_bulk` by as many writers as a sweep has.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use crate::bare;
use crate::bed::{Bed, Names, sample};
use crate::documents::{TABLES, order_pages, served};
use crate::report::{Aim, Report, median};
use crate::rest::Rest;
use crate::support;

const ROUNDS: usize = 3;

/// As `translate::sweep` has them: slices in the making, and documents in each.
const WRITERS: usize = 3;
const SLICE: usize = 1_000;

const DOCUMENTS: &str = "
SELECT o.id::text, json_build_object(
           'order_id', o.id, 'status', o.status, 'placed_at', o.placed_at, 'total', o.total,
           'note', o.note, 'customer_id', o.customer_id, 'customer_name', c.name,
           'customer_email', c.email, 'customer_city', c.city,
           'items', coalesce(i.items, '[]'))::text
FROM bench_order AS o
JOIN bench_customer AS c ON c.id = o.customer_id
LEFT JOIN (
    SELECT i.order_id, json_agg(json_build_object(
               'item_id', i.id, 'quantity', i.quantity, 'price', i.price,
               'product_id', i.product_id, 'product_name', p.name,
               'category_id', p.category_id, 'category_name', k.name) ORDER BY i.id) AS items
    FROM bench_order_item AS i
    JOIN bench_product AS p ON p.id = i.product_id
    JOIN bench_category AS k ON k.id = p.category_id
    GROUP BY i.order_id
) AS i ON i.order_id = o.id
ORDER BY o.id";

pub async fn measure() {
    let bed = Bed::new("sweep").await;
    let orders = order_pages(&bed);
    let own = bed.name.clone();
    let config = bed.config(&Names { own: &own, publication: &own, tables: TABLES, more: "" });
    bed.prepare(&config, &[]);
    let process = bed.start(&config, &[]);
    let mapping = std::fs::read_to_string(sample("order_page.toml")).unwrap();
    let mut rest = Rest::connect().await;
    let (mut ratios, mut rates, mut bare_rates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut walls, mut cpu) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let collection = format!("order_page_{round}");
        let alias = format!("{own}-{collection}");
        let cpu_before = process.cpu_seconds();
        let started = Instant::now();
        // Another collection each time; the one before is no longer updated.
        let text = mapping.replace("\"order_page\"", &format!("\"{collection}\""));
        std::fs::write(bed.mappings().join("order_page.toml"), text).unwrap();
        served(&alias).await;
        walls.push(started.elapsed().as_secs_f64());
        cpu.push(process.cpu_seconds() - cpu_before);
        let (documents, seconds) = swept(&bed, &collection).await;
        assert_eq!(documents, orders);
        let bare = bare_loop(&bed, &mut rest, &alias, orders).await;
        println!("round {round}: sweep {seconds:.2} s, bare loop {bare:.2} s");
        ratios.push(bare / seconds * 100.0);
        rates.push(orders as f64 / seconds);
        bare_rates.push(orders as f64 / bare);
    }
    let mut report = Report::new("sweep", "Sweep: the first build of a joined collection");
    let rate = (median(&rates), "documents/s");
    report.beside("first build", rate, median(&bare_rates), Aim::None);
    report.row("first build, ratio", median(&ratios), "%", Aim::AtLeast(50.0, 80.0));
    report.row("from the mapping file's save to the alias", median(&walls), "s", Aim::None);
    report.row("CPU of the daemon for it", median(&cpu), "s", Aim::None);
    let peak = process.peak_megabytes();
    report.row("peak memory of the daemon", peak, "MB", Aim::AtMost(150.0, 60.0));
    report.note(&format!("{orders} documents, median of {ROUNDS} rounds of both, alternating."));
    report.publish();
    process.stop().await;
}

/// Documents and seconds of the collection's sweep, as the daemon logs them at its end.
async fn swept(bed: &Bed, collection: &str) -> (u64, f64) {
    let wanted = format!("collection=\"{collection}\"");
    support::eventually("the sweep is logged", Duration::from_secs(20), || async {
        let text = bed.log_text();
        let line = text.lines().find(|it| it.contains(" swept ") && it.contains(&wanted))?;
        let field = |name: &str| Some(line.split_once(name)?.1.split(' ').next()?.to_owned());
        Some((field(" documents=")?.parse().ok()?, field(" seconds=")?.parse().ok()?))
    })
    .await
}

/// Seconds for the same documents into an index with the same settings and field types.
async fn bare_loop(bed: &Bed, rest: &mut Rest, alias: &str, orders: u64) -> f64 {
    let index = format!("{}-bare", bed.name);
    bare::index_like(rest, alias, &index).await;
    let started = Instant::now();
    let (output, input) = mpsc::channel::<String>(1);
    let input = Arc::new(Mutex::new(input));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (input, path) = (Arc::clone(&input), format!("/{index}/_bulk"));
        let mut rest = Rest::connect().await;
        writers.spawn(async move {
            loop {
                let Some(body) = input.lock().await.recv().await else { return };
                let (status, answer) = rest.send("POST", &path, body.as_bytes()).await;
                let start = String::from_utf8_lossy(&answer[..answer.len().min(200)]);
                assert!(status == 200 && start.contains("\"errors\":false"), "{status} {start}");
            }
        });
    }
    select_all(bed, output).await;
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
    }
    rest.json("POST", &format!("/{index}/_refresh"), "").await;
    let seconds = started.elapsed().as_secs_f64();
    let count = rest.json("GET", &format!("/{index}/_count"), "").await;
    assert_eq!(count["count"].as_u64(), Some(orders));
    rest.json("DELETE", &format!("/{index}"), "").await;
    seconds
}

/// Bodies of `_bulk`, a slice each.
async fn select_all(bed: &Bed, output: mpsc::Sender<String>) {
    let (client, _connection) = bed.client().await;
    let none: [i64; 0] = [];
    let rows = client.query_raw(DOCUMENTS, none).await.unwrap();
    let mut rows = std::pin::pin!(rows);
    let (mut body, mut count) = (String::new(), 0);
    while let Some(row) = rows.try_next().await.unwrap() {
        let (id, document): (&str, &str) = (row.get(0), row.get(1));
        writeln!(body, "{{\"index\":{{\"_id\":\"{id}\"}}}}\n{document}").unwrap();
        count += 1;
        if count == SLICE {
            output.send(std::mem::take(&mut body)).await.unwrap();
            count = 0;
        }
    }
    if count > 0 {
        output.send(body).await.unwrap();
    }
}
