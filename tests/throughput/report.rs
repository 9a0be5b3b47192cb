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
    /// Sentences below the table.
    notes: Vec<String>,
    /// Of the machine, before: what else ran then spoils latencies first.
    load: String,
}

impl Report {
    pub fn new(name: &'static str, title: &str) -> Self {
        let mut text = format!("### {title}\n\n");
        text.push_str(
            "| measure | result | bare | ratio | floor | goal | gap to the goal |\n\
             |---|---|---|---|---|---|---|\n",
        );
        Self { name, text, notes: Vec::new(), load: load_average() }
    }

    /// One row of the table.
    pub fn row(&mut self, measure: &str, value: f64, unit: &str, aim: Aim) {
        self.write_row(measure, (value, unit), None, aim);
    }

    /// One row with what the bare servers did in the same run.
    pub fn beside(&mut self, measure: &str, (value, unit): (f64, &str), bare: f64, aim: Aim) {
        self.write_row(measure, (value, unit), Some(bare), aim);
    }

    fn write_row(
        &mut self,
        measure: &str,
        (value, unit): (f64, &str),
        bare: Option<f64>,
        aim: Aim,
    ) {
        let ratio = bare.map(|bare| value / bare);
        let (bare_text, ratio_text) = match (bare, ratio) {
            (Some(bare), Some(ratio)) => {
                (format!("{} {unit}", digits(bare)), format!("{ratio:.2} ×"))
            }
            _ => (String::new(), String::new()),
        };
        let (floor, goal, gap) = match aim {
            Aim::AtLeast(floor, goal) => (digits(floor), digits(goal), verdict(value, floor, goal)),
            // Reversed, as less is better.
            Aim::AtMost(floor, goal) => {
                let gap = verdict(1.0 / value, 1.0 / floor, 1.0 / goal);
                (digits(floor), digits(goal), gap)
            }
            Aim::None => Default::default(),
        };
        let value = digits(value);
        writeln!(
            self.text,
            "| {measure} | {value} {unit} | {bare_text} | {ratio_text} | {floor} | {goal} | {gap} |"
        )
        .unwrap();
    }

    /// p50, p99 and so on of a histogram of microseconds, with aims in milliseconds for the first;
    /// beside the bare servers' if given.
    pub fn latencies(
        &mut self,
        what: &str,
        found: &Histogram<u64>,
        bare: Option<&Histogram<u64>>,
        aims: &[(f64, f64)],
    ) {
        for (nth, quantile) in [0.5, 0.99, 0.999, 1.0].into_iter().enumerate() {
            let label = ["p50", "p99", "p99.9", "max"][nth];
            let ms = |it: &Histogram<u64>| it.value_at_quantile(quantile) as f64 / 1000.0;
            let aim = aims.get(nth).map_or(Aim::None, |it| Aim::AtMost(it.0, it.1));
            let measure = format!("{what}, {label}");
            self.write_row(&measure, (ms(found), "ms"), bare.map(ms), aim);
        }
    }

    /// A sentence below the table.
    pub fn note(&mut self, sentence: &str) {
        self.notes.push(sentence.to_owned());
    }

    pub fn publish(mut self) {
        let note = format!("Load average before {}, after {}.", self.load, load_average());
        self.note(&note);
        self.text.push('\n');
        for note in &self.notes {
            writeln!(self.text, "{note}  ").unwrap();
        }
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
