//! Capture copies a table into its topic, beside psql's COPY of it to nowhere.

use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::consumer::BaseConsumer;

use crate::bed::{Bed, Names, binary, finished};
use crate::drain::{delete_topic, drop_slot, end_offset, kafka};
use crate::report::{Aim, Report, median};
use crate::{scaled, support};

const ROUNDS: usize = 3;

/// Not counted, as in the drain.
const WARM_UP_ROUNDS: usize = 2;

/// A copy never takes longer than this, or it hangs.
const PATIENCE: Duration = Duration::from_secs(300);

pub async fn measure() {
    let rows = scaled(1_000_000);
    let bed = Bed::new("copy").await;
    bed.psql("capture.sql", &[]);
    bed.psql("capture_a.sql", &[format!("rows={rows}")]);
    let mut report = Report::new("capture_copy", "Capture: copying a table");
    let (mut rates, mut their_rates, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    let mut peak = 0.0f64;
    for round in 1..=WARM_UP_ROUNDS + ROUNDS {
        let theirs = psql_copy(&bed);
        let (seconds, cpu_seconds, megabytes) = ours(&bed, round, rows).await;
        if WARM_UP_ROUNDS < round {
            rates.push(rows as f64 / seconds);
            their_rates.push(rows as f64 / theirs);
            cpu.push(cpu_seconds / (rows as f64 / 1e6));
            peak = peak.max(megabytes);
        }
    }
    let rate = (median(&rates), "rows/s");
    report.beside("1 table of small rows", rate, median(&their_rates), Aim::None);
    report.row("CPU per million rows", median(&cpu), "s", Aim::None);
    report.row("peak memory", peak, "MB", Aim::AtMost(150.0, 60.0));
    report.note(&format!(
        "{rows} rows, median of {ROUNDS} rounds of both, alternating, after {WARM_UP_ROUNDS} that \
         are not counted. *Bare* is `psql -c 'COPY … TO STDOUT' > /dev/null`, which makes no \
         records; ours is from process start to the last record in Kafka, chunk by chunk between \
         two watermarks."
    ));
    report.publish();
}

/// Seconds of it.
fn psql_copy(bed: &Bed) -> f64 {
    let started = Instant::now();
    let mut command = Command::new(binary("psql"));
    command.args(["-X", "-q", "-c", "COPY bench_small TO STDOUT", "-o", "/dev/null"]);
    finished(command.arg(&bed.url));
    started.elapsed().as_secs_f64()
}

/// Seconds, CPU seconds and peak megabytes of a daemon that starts with the table to copy.
async fn ours(bed: &Bed, round: usize, rows: u64) -> (f64, f64, f64) {
    let own = format!("{}_{round}", bed.name);
    let more = "[copy]\nmode = \"initial\"";
    let names = Names { own: &own, publication: &own, tables: "\"public.bench_small\"", more };
    let config = bed.config(&names);
    bed.prepare(&config, &[]);
    let topic = format!("{own}.public.bench_small");
    let watcher: BaseConsumer = kafka().create().unwrap();
    assert_eq!(end_offset(&watcher, &topic), 0);
    let started = Instant::now();
    let process = bed.start(&config, &["--only", "capture"]);
    support::eventually("all rows are in Kafka", PATIENCE, || async {
        let end = tokio::task::block_in_place(|| end_offset(&watcher, &topic));
        (end >= rows).then_some(())
    })
    .await;
    let seconds = started.elapsed().as_secs_f64();
    let (cpu, peak) = (process.cpu_seconds(), process.peak_megabytes());
    process.stop().await;
    assert_eq!(end_offset(&watcher, &topic), rows, "each row is one record");
    let (client, _connection) = bed.client().await;
    drop_slot(&client, &own).await;
    delete_topic(&topic).await;
    (seconds, cpu, peak)
}
