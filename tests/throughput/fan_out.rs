//! A changed row that stands in many documents: from COMMIT until the last of them is new.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio_postgres::{Client, Statement};

use crate::bare::Worker;
use crate::bed::Bed;
use crate::report::{histogram, record};
use crate::rest::Rest;

const REPEATS: i64 = 30;

/// A document that comes later than this never comes.
const PATIENCE: Duration = Duration::from_secs(120);

/// The rows of one table that are renamed, one after the other.
struct Renames {
    table: &'static str,
    touched: Statement,
    update: Statement,
    rows: i64,
}

impl Renames {
    async fn new(client: &Client, table: &'static str) -> Self {
        let touched = match table {
            "customer" => "SELECT id FROM bench_order WHERE customer_id = $1",
            "product" => "SELECT DISTINCT order_id FROM bench_order_item WHERE product_id = $1",
            _ => {
                "SELECT DISTINCT order_id FROM bench_order_item i \
                 JOIN bench_product p ON p.id = i.product_id WHERE p.category_id = $1"
            }
        };
        let count = format!("SELECT count(*) FROM bench_{table}");
        let update = format!("UPDATE bench_{table} SET name = $2 WHERE id = $1");
        Self {
            table,
            touched: client.prepare(touched).await.unwrap(),
            update: client.prepare(&update).await.unwrap(),
            rows: client.query_one(&count, &[]).await.unwrap().get(0),
        }
    }

    /// A row and the documents that it stands in.
    async fn nth(&self, client: &Client, repeat: i64) -> (i64, Vec<i64>) {
        let row = 1 + repeat * 37 % self.rows;
        let found = client.query(&self.touched, &[&row]).await.unwrap();
        (row, found.iter().map(|it| it.get(0)).collect())
    }

    async fn commit(&self, client: &Client, (row, repeat): (i64, i64)) -> (String, Instant) {
        let name = format!("renamed-{}-{repeat}-end", self.table);
        client.execute(&self.update, &[&row, &name]).await.unwrap();
        (name, Instant::now())
    }
}

/// The times, and the mean number of documents.
pub async fn measure(bed: &Bed, alias: &str, table: &'static str) -> (Histogram<u64>, f64) {
    let (client, _connection) = bed.client().await;
    let renames = Renames::new(&client, table).await;
    let mut rest = Rest::connect().await;
    let (mut latencies, mut documents) = (histogram(), 0);
    for repeat in 0..REPEATS {
        let (row, ids) = renames.nth(&client, repeat).await;
        if ids.is_empty() {
            continue;
        }
        documents += ids.len();
        let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
        let before = versions(&mut rest, alias, &ids).await;
        let (name, committed) = renames.commit(&client, (row, repeat)).await;
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

/// The same by the bare loop.
pub async fn bare(bed: &Bed, index: &str, table: &'static str) -> Histogram<u64> {
    let (client, _connection) = bed.client().await;
    let renames = Renames::new(&client, table).await;
    let mut worker = Worker::new(bed, index).await;
    let mut latencies = histogram();
    for repeat in 0..REPEATS {
        let (row, ids) = renames.nth(&client, repeat).await;
        if ids.is_empty() {
            continue;
        }
        let (name, committed) = renames.commit(&client, (row, repeat)).await;
        let (_, ids) = renames.nth(&client, repeat).await;
        let seen = worker.refresh(&ids).await;
        record(&mut latencies, committed.elapsed());
        assert!(contains(&seen, name.as_bytes()));
    }
    latencies
}

pub fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.windows(wanted.len()).any(|it| it == wanted)
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
