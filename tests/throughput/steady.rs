//! Capture's latency under a steady load: from the client's COMMIT to a consumer's receipt.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use crate::bed::{Bed, Names};
use crate::drain::kafka;
use crate::load::{self, Committed, Plan};
use crate::report::{Aim, Report, histogram, record};
use crate::scaled;

const PER_SECOND: u64 = 500;

/// Not counted: connections, caches, and the broker's JVM, which still compiles.
const WARM_UP_SECONDS: u64 = 30;

const SILENCE_MAX: Duration = Duration::from_secs(60);

pub async fn measure() {
    let bed = Bed::new("steady").await;
    bed.psql("capture.sql", &[]);
    let own = bed.name.clone();
    let names = Names { own: &own, publication: &own, tables: "\"public.bench_small\"", more: "" };
    let config = bed.config(&names);
    bed.prepare(&config, &[]);
    let process = bed.start(&config, &["--only", "capture"]);
    let warm_up = PER_SECOND * WARM_UP_SECONDS;
    let commits = warm_up + PER_SECOND * scaled(60);
    let topic = format!("{own}.public.bench_small");
    let receiving = tokio::task::spawn_blocking(move || receive(&topic, commits));

    let (output, mut committed) = mpsc::channel::<Committed>(10_000);
    let sql = "INSERT INTO bench_small (id, k, v) VALUES ($1, 1, $2)".to_owned();
    let values = |nth| (i64::try_from(nth).unwrap(), format!("value-{nth}"));
    let plan = Plan { first: 0, commits, per_second: PER_SECOND, sql, values };
    let collecting = async {
        let mut all = Vec::new();
        while let Some(it) = committed.recv().await {
            all.push(it);
        }
        all
    };
    let cpu_before = process.cpu_seconds();
    let (ran, all) = tokio::join!(load::run(&bed, plan, vec![output]), collecting);
    let rate = ran.rate;
    let received = receiving.await.unwrap();

    let mut latencies = histogram();
    for it in all.iter().filter(|it| it.nth >= warm_up) {
        // The record may be there before the answer to COMMIT is: that is no latency at all.
        record(&mut latencies, received[&it.nth].saturating_duration_since(it.at));
    }
    let mut report =
        Report::new("capture_latency", "Capture: commit → record received by a consumer");
    let aims = [(4.0, 2.0), (10.0, 5.0), (20.0, 12.0)];
    report.latencies("500 commits/s", &latencies, None, &aims);
    let seconds = commits as f64 / rate;
    let cpu = (process.cpu_seconds() - cpu_before) / seconds * 60.0;
    report.row("CPU of the daemon in 60 s", cpu, "s", Aim::None);
    report.row(
        "peak memory of the daemon",
        process.peak_megabytes(),
        "MB",
        Aim::AtMost(60.0, 40.0),
    );
    report.note(&format!("{} commits at {rate:.0} a second.", latencies.len()));
    report.publish();
    process.stop().await;
}

/// When each row's record arrived.
fn receive(topic: &str, count: u64) -> HashMap<u64, Instant> {
    let mut config = kafka();
    config.set("fetch.min.bytes", "1").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let mut found = HashMap::new();
    while u64::try_from(found.len()).unwrap() < count {
        let message = consumer.poll(SILENCE_MAX).expect("a record within a minute").unwrap();
        let now = Instant::now();
        let key = std::str::from_utf8(message.key().unwrap()).unwrap();
        let id = key.trim_start_matches(r#"{"id":"#).trim_end_matches('}');
        found.insert(id.parse().unwrap(), now);
    }
    found
}
