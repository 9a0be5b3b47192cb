//! The benchmark: `make bench`. Measures what the design promises (throughput, latency, memory)
//! against real servers, prints a table for each part and writes it to target/bench/.
//!
//! It never asserts a figure: machines differ, and a shared one from minute to minute. Where a
//! figure can be set against what the servers themselves can do, both are measured in the same
//! run, alternating, and the ratio is the result.
//!
//! `ONELOG_BENCH_SCALE=0.1` makes every size and duration a tenth, for a look.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark prints, and may fail")]
#![allow(clippy::as_conversions, reason = "figures for people")]

mod support;

#[path = "throughput/bare.rs"]
mod bare;
#[path = "throughput/bed.rs"]
mod bed;
#[path = "throughput/beside.rs"]
mod beside;
#[path = "throughput/copy.rs"]
mod copy;
#[path = "throughput/cost.rs"]
mod cost;
#[path = "throughput/documents.rs"]
mod documents;
#[path = "throughput/drain.rs"]
mod drain;
#[path = "throughput/fan_out.rs"]
mod fan_out;
#[path = "throughput/gateway.rs"]
mod gateway;
#[path = "throughput/large.rs"]
mod large;
#[path = "throughput/load.rs"]
mod load;
#[path = "throughput/report.rs"]
mod report;
#[path = "throughput/rest.rs"]
mod rest;
#[path = "throughput/steady.rs"]
mod steady;
#[path = "throughput/sweep.rs"]
mod sweep;

/// `full`, or the part of it that ONELOG_BENCH_SCALE asks for.
fn scaled(full: u64) -> u64 {
    let scale = std::env::var("ONELOG_BENCH_SCALE").map_or(1.0, |it| it.parse().unwrap());
    ((full as f64 * scale) as u64).max(1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench"]
async fn capture_drain() {
    drain::measure().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench"]
async fn capture_copy() {
    copy::measure().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench"]
async fn capture_latency() {
    steady::measure().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench"]
async fn capture_large() {
    large::measure().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench"]
async fn commit_to_document() {
    documents::measure().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench"]
async fn sweep_of_a_new_collection() {
    sweep::measure().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench"]
async fn small_beside_large() {
    beside::measure().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench"]
async fn gateway_post_to_document() {
    gateway::measure().await;
}
