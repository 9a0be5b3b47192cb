//! Tables for people: printed, and written to target/bench/.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Which way is better, with what must and what should be reached.
#[derive(Clone, Copy)]
pub enum Aim {
    AtLeast(f64, f64),
    AtMost(f64, f64),
    /// Told without an aim.
    None,
}

/// A part of the benchmark.
pub struct Report {
    name: &'static str,
    text: String,
    /// Of the machine, before: what else ran then spoils latencies first.
    load: String,
}

impl Report {
    pub fn new(name: &'static str, title: &str) -> Self {
        let mut text = format!("### {title}\n\n");
        text.push_str(
            "| measure | result | floor | goal | gap to the goal |\n|---|---|---|---|---|\n",
        );
        Self { name, text, load: load_average() }
    }

    /// One row of the table.
    pub fn row(&mut self, measure: &str, value: f64, unit: &str, aim: Aim) {
        let (floor, goal, gap) = match aim {
            Aim::AtLeast(floor, goal) => (floor, goal, verdict(value, floor, goal)),
            // Reversed, as less is better.
            Aim::AtMost(floor, goal) => {
                (floor, goal, verdict(1.0 / value, 1.0 / floor, 1.0 / goal))
            }
            Aim::None => {
                writeln!(self.text, "| {measure} | {} {unit} | | | |", digits(value)).unwrap();
                return;
            }
        };
        let (value, floor, goal) = (digits(value), digits(floor), digits(goal));
        writeln!(self.text, "| {measure} | {value} {unit} | {floor} | {goal} | {gap} |").unwrap();
    }

    /// p50, p99 and so on of a histogram of microseconds, with aims in milliseconds for the first.
    pub fn latencies(&mut self, what: &str, found: &Histogram<u64>, aims: &[(f64, f64)]) {
        for (nth, quantile) in [0.5, 0.99, 0.999, 1.0].into_iter().enumerate() {
            let label = ["p50", "p99", "p99.9", "max"][nth];
            let ms = found.value_at_quantile(quantile) as f64 / 1000.0;
            let aim = aims.get(nth).map_or(Aim::None, |it| Aim::AtMost(it.0, it.1));
            self.row(&format!("{what}, {label}"), ms, "ms", aim);
        }
    }

    /// A sentence below the table.
    pub fn note(&mut self, sentence: &str) {
        let gap = if self.text.ends_with("|\n") { "\n" } else { "" };
        writeln!(self.text, "{gap}{sentence}  ").unwrap();
    }

    pub fn publish(mut self) {
        let note = format!("Load average before {}, after {}.", self.load, load_average());
        self.note(&note);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{}.md", self.name)), &self.text).unwrap();
        println!("\n{}", self.text);
    }
}

/// Over the last minute.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// How a value stands that is better when larger.
fn verdict(value: f64, floor: f64, goal: f64) -> String {
    let short = format!("{:.2} ×", goal / value);
    match () {
        () if value >= goal => "reached".to_owned(),
        () if value >= floor => format!("{short}; above the floor"),
        () => format!("{short}; **below the floor**"),
    }
}

fn digits(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

pub fn histogram() -> Histogram<u64> {
    Histogram::new(3).unwrap()
}

pub fn record(into: &mut Histogram<u64>, latency: Duration) {
    into.record(u64::try_from(latency.as_micros()).unwrap().max(1)).unwrap();
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}
