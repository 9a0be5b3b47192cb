//! Single-row commits at a steady rate, from several connections.
//!
//! Each commit has its time in a plan; a connection that is late goes on at once, so that a slow
//! server does not thin out the load unseen. The rate that came out is printed.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::bed::Bed;

/// Enough that a commit of 10 ms still leaves room at 500 a second.
const CONNECTIONS: u64 = 8;

pub struct Plan {
    pub commits: u64,
    pub per_second: u64,
    /// With a bigint and a text as its parameters.
    pub sql: String,
    pub values: fn(u64) -> (i64, String),
}

/// A commit, by its place in the plan.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    pub nth: u64,
    /// When the client had the answer to COMMIT.
    pub at: Instant,
}

/// Carries the plan out and tells each commit to one of the outputs, in turn. Returns the rate.
pub async fn run(bed: &Bed, plan: Plan, outputs: Vec<mpsc::Sender<Committed>>) -> f64 {
    let mut workers = JoinSet::new();
    let mut prepared = Vec::new();
    for _ in 0..CONNECTIONS {
        let (client, driver) = bed.client().await;
        let statement = client.prepare(&plan.sql).await.unwrap();
        prepared.push((client, driver, statement));
    }
    let started = Instant::now();
    for (first, (client, driver, statement)) in (0..CONNECTIONS).zip(prepared) {
        let (outputs, commits, values) = (outputs.clone(), plan.commits, plan.values);
        let per_second = plan.per_second;
        workers.spawn(async move {
            let _driver = driver;
            let mut nth = first;
            while nth < commits {
                let due = started + Duration::from_nanos(nth * 1_000_000_000 / per_second);
                tokio::time::sleep_until(due.into()).await;
                let (number, text) = values(nth);
                let rows = client.execute(&statement, &[&number, &text]).await.unwrap();
                let committed = Committed { nth, at: Instant::now() };
                assert_eq!(rows, 1);
                let output = &outputs[usize::try_from(nth).unwrap() % outputs.len()];
                output.send(committed).await.unwrap();
                nth += CONNECTIONS;
            }
        });
    }
    drop(outputs);
    while let Some(ended) = workers.join_next().await {
        ended.unwrap();
    }
    plan.commits as f64 / started.elapsed().as_secs_f64()
}
