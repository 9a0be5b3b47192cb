//! What the servers themselves need, to set onelog's figures against: whoever hears of a commit
//! reads the document by one SELECT, writes it by `_bulk` and gets it. No WAL, no Kafka, no key
//! paths, no proof that the document is right.
//!
//! Commits that wait are taken together, so that this is a good loop and not a slow one.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Statement};

use crate::bed::Bed;
use crate::load::{self, Committed, Plan};
use crate::report::{histogram, record};
use crate::rest::Rest;

/// As many as the daemon has connections to Postgres.
const WORKERS: usize = 4;

/// Most commits taken together.
const TOGETHER_MAX: usize = 500;

const DOCUMENTS: &str = "
SELECT o.id::text, json_build_object(
           'order_id', o.id, 'status', o.status, 'placed_at', o.placed_at, 'total', o.total,
           'note', o.note, 'customer_id', o.customer_id, 'customer_name', c.name,
           'customer_email', c.email, 'customer_city', c.city,
           'items', coalesce(i.items, '[]'))::text
FROM bench_order AS o
JOIN bench_customer AS c ON c.id = o.customer_id
CROSS JOIN LATERAL (
    SELECT json_agg(json_build_object(
               'item_id', i.id, 'quantity', i.quantity, 'price', i.price,
               'product_id', i.product_id, 'product_name', p.name,
               'category_id', p.category_id, 'category_name', k.name) ORDER BY i.id) AS items
    FROM bench_order_item AS i
    JOIN bench_product AS p ON p.id = i.product_id
    JOIN bench_category AS k ON k.id = p.category_id
    WHERE i.order_id = o.id
) AS i
WHERE o.id = ANY($1)";

/// An empty index with the settings and field types of the one behind `alias`.
pub async fn index_like(rest: &mut Rest, alias: &str, index: &str) {
    let like = rest.json("GET", &format!("/{alias}"), "").await;
    let like = like.as_object().unwrap().values().next().unwrap().clone();
    let mut settings = like["settings"]["index"].clone();
    let Value::Object(fields) = &mut settings else { panic!("settings are an object") };
    for name in ["creation_date", "provided_name", "uuid", "version"] {
        fields.remove(name);
    }
    let body = json!({ "settings": { "index": settings }, "mappings": like["mappings"] });
    rest.json("PUT", &format!("/{index}"), &body.to_string()).await;
}

/// One that reads and writes documents.
pub struct Worker {
    client: Client,
    _driver: JoinSet<()>,
    documents: Statement,
    rest: Rest,
    index: String,
}

impl Worker {
    pub async fn new(bed: &Bed, index: &str) -> Self {
        let (client, driver) = bed.client().await;
        let documents = client.prepare(DOCUMENTS).await.unwrap();
        let (rest, index) = (Rest::connect().await, index.to_owned());
        Self { client, _driver: driver, documents, rest, index }
    }

    /// The documents' way from Postgres to a realtime GET; returns what that said of them.
    pub async fn refresh(&mut self, ids: &[i64]) -> Vec<u8> {
        let rows = self.client.query(&self.documents, &[&ids]).await.unwrap();
        assert_eq!(rows.len(), ids.len());
        let mut body = String::new();
        for row in rows {
            let (id, document): (&str, &str) = (row.get(0), row.get(1));
            let document = document.replace('\n', " ");
            writeln!(body, "{{\"index\":{{\"_id\":\"{id}\"}}}}\n{document}").unwrap();
        }
        let path = format!("/{}/_bulk", self.index);
        let (status, answer) = self.rest.send("POST", &path, body.as_bytes()).await;
        let start = String::from_utf8_lossy(&answer[..answer.len().min(200)]);
        assert!(status == 200 && start.contains("\"errors\":false"), "{status} {start}");
        let (status, answer) = match ids {
            [one] => self.rest.send("GET", &format!("/{}/_doc/{one}", self.index), b"").await,
            several => {
                let ids: Vec<String> = several.iter().map(i64::to_string).collect();
                let body = json!({ "ids": ids }).to_string();
                self.rest.send("POST", &format!("/{}/_mget", self.index), body.as_bytes()).await
            }
        };
        assert_eq!(status, 200);
        answer.to_vec()
    }
}

/// From COMMIT until the document was seen, for each commit of the plan from `warm_up` on.
pub async fn single_orders(
    bed: &Bed,
    index: &str,
    plan: Plan,
    (warm_up, order_of): (u64, fn(u64, u64) -> u64),
    orders: u64,
) -> Histogram<u64> {
    let mut workers = JoinSet::new();
    let mut outputs = Vec::new();
    for _ in 0..WORKERS {
        let (output, mut input) = mpsc::channel::<Committed>(100_000);
        outputs.push(output);
        let mut worker = Worker::new(bed, index).await;
        workers.spawn(async move {
            let mut found: Vec<(u64, Duration)> = Vec::new();
            let mut told = Vec::new();
            while input.recv_many(&mut told, TOGETHER_MAX).await > 0 {
                let order = |it: &Committed| i64::try_from(order_of(it.nth, orders)).unwrap();
                let mut ids: Vec<i64> = told.iter().map(order).collect();
                ids.sort_unstable();
                ids.dedup();
                worker.refresh(&ids).await;
                let now = Instant::now();
                found.extend(told.drain(..).map(|it| (it.nth, now - it.at)));
            }
            found
        });
    }
    let first = plan.first;
    load::run(bed, plan, outputs).await;
    let mut all = histogram();
    while let Some(found) = workers.join_next().await {
        for (_, latency) in found.unwrap().into_iter().filter(|it| it.0 - first >= warm_up) {
            record(&mut all, latency);
        }
    }
    all
}
