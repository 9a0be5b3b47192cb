//! Single-row commits at a steady rate, from several connections.
//!
//! Each commit has its time in a plan; a connection that is late goes on at once, so that a slow
//! server does not thin out the load unseen. The rate that came out is printed.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use crate::bed::Bed;

/// Enough that a commit of 10 ms still leaves room at 500 a second.
const CONNECTIONS: usize = 8;

/// How the load's connections are named on the server.
pub const APPLICATION: &str = "load";

pub struct Plan {
    /// The number of the first commit. Two plans for the same rows have no number in common: what
    /// the second writes would be there already.
    pub first: u64,
    pub commits: u64,
    pub per_second: u64,
    /// With a bigint and a text as its parameters.
    pub sql: String,
    pub values: fn(u64) -> (i64, String),
}

/// A commit, by its number.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    pub nth: u64,
    /// When the client had the answer to COMMIT.
    pub at: Instant,
}

/// A plan that was carried out.
pub struct Ran {
    /// Commits a second.
    pub rate: f64,
    /// Still open, so that their processes can be asked for what they cost.
    pub connections: Vec<(Client, JoinSet<()>)>,
}

/// Carries the plan out and tells each commit to one of the outputs, in turn.
pub async fn run(bed: &Bed, plan: Plan, outputs: Vec<mpsc::Sender<Committed>>) -> Ran {
    let mut workers = JoinSet::new();
    let mut prepared = Vec::new();
    for _ in 0..CONNECTIONS {
        let (client, driver) = bed.client().await;
        // So that its cost on the server can be told apart.
        client.batch_execute(&format!("SET application_name = '{APPLICATION}'")).await.unwrap();
        let statement = client.prepare(&plan.sql).await.unwrap();
        prepared.push((client, driver, statement));
    }
    let started = Instant::now();
    for (own, (client, driver, statement)) in prepared.into_iter().enumerate() {
        let (outputs, commits, values) = (outputs.clone(), plan.commits, plan.values);
        let first = plan.first;
        let per_second = plan.per_second;
        workers.spawn(async move {
            for place in (0..commits).skip(own).step_by(CONNECTIONS) {
                let due = started + Duration::from_nanos(place * 1_000_000_000 / per_second);
                tokio::time::sleep_until(due.into()).await;
                let nth = first + place;
                let (number, text) = values(nth);
                let rows = client.execute(&statement, &[&number, &text]).await.unwrap();
                let committed = Committed { nth, at: Instant::now() };
                assert_eq!(rows, 1);
                let output = &outputs[usize::try_from(nth).unwrap() % outputs.len()];
                output.send(committed).await.unwrap();
            }
            (client, driver)
        });
    }
    drop(outputs);
    let connections = workers.join_all().await;
    Ran { rate: plan.commits as f64 / started.elapsed().as_secs_f64(), connections }
}
