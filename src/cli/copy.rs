//! `onelog copy`: asks the running daemon to copy a table into the log, and watches.
//!
//! The daemon does the copy, and goes on with it whatever becomes of this command; so Ctrl-C ends
//! the watching and nothing else.

use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::{Instant, interval};

use crate::cli::{CommandError, status};
use crate::config::Config;

/// Capture may be between two sessions, and waits that long for the next one.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// How often the daemon is asked how far it is: as often as a person sees a difference.
const LOOK: Duration = Duration::from_millis(500);

/// A daemon that restarts is there again by then, and goes on with the copy.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// What is wanted of a table's copy.
pub struct Wanted<'a> {
    pub table: &'a str,
    /// start, pause, resume or cancel.
    pub wish: &'static str,
    pub condition: Option<&'a str>,
    /// Watches it to its end.
    pub wait: bool,
}

/// Exit code 0: done, or with `wait` copied; 1: refused, cancelled, or nobody answers.
pub async fn copy(
    config: &Config,
    wanted: Wanted<'_>,
    out: &mut dyn Write,
) -> Result<u8, CommandError> {
    let address = status::reachable(config.http.listen);
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_MAX).build();
    let client = client.map_err(|error| nobody(address, error))?;
    let table = wanted.table;
    let body = json!({ "table": table, "wish": wanted.wish, "where": wanted.condition });
    let request = client
        .post(format!("http://{address}/v1/copies"))
        .header("content-type", "application/json")
        .body(body.to_string());
    let answer = request.send().await.map_err(|error| nobody(address, error))?;
    let accepted = answer.status().is_success();
    let text = answer.text().await.map_err(|error| nobody(address, error))?;
    if !accepted {
        let answer: Value = serde_json::from_str(&text).unwrap_or_default();
        writeln!(out, "{}", answer["error"].as_str().unwrap_or(&text))?;
        return Ok(1);
    }
    if !wanted.wait || !matches!(wanted.wish, "start" | "resume") {
        writeln!(out, "{table}: {} is noted.", wanted.wish)?;
        return Ok(0);
    }
    watch(&client, address, table, out).await
}

fn nobody(address: SocketAddr, error: reqwest::Error) -> CommandError {
    let doing = format!(
        "no daemon answers at {address} ([http] listen); is `onelog run` running with this config?"
    );
    CommandError::failed(doing, error)
}

/// Shows how far the copy is until it ends.
async fn watch(
    client: &reqwest::Client,
    address: SocketAddr,
    table: &str,
    out: &mut dyn Write,
) -> Result<u8, CommandError> {
    // On standard error, and only if that is a terminal.
    let bar = ProgressBar::new(0);
    let form = "{prefix} {wide_bar} {pos}/{len} rows, {msg}";
    bar.set_style(ProgressStyle::with_template(form).unwrap_or(ProgressStyle::default_bar()));
    bar.set_prefix(table.to_owned());
    let (mut ticks, mut heard) = (interval(LOOK), Instant::now());
    loop {
        ticks.tick().await;
        let asked = client.get(format!("http://{address}/v1/status")).send().await;
        let text = match asked {
            Ok(answer) => answer.text().await,
            Err(error) => Err(error),
        };
        let status: Value = match text {
            Ok(text) => serde_json::from_str(&text).unwrap_or_default(),
            Err(error) if SILENCE_MAX < heard.elapsed() => return Err(nobody(address, error)),
            Err(_) => continue,
        };
        heard = Instant::now();
        let copies = status["copies"].as_array().cloned().unwrap_or_default();
        // A daemon that has just started has yet to read the progress topic.
        let Some(copy) = copies.iter().find(|it| it["table"] == table) else { continue };
        let rows = copy["rows"].as_u64().unwrap_or(0);
        bar.set_length(copy["expected_rows"].as_u64().unwrap_or(0).max(rows));
        bar.set_position(rows);
        bar.set_message(message(copy));
        match copy["state"].as_str().unwrap_or_default() {
            "running" => {}
            "paused" => bar.set_message("paused"),
            state => {
                bar.finish_and_clear();
                let done = state == "done";
                let verb = if done { "copied" } else { state };
                writeln!(out, "{table}: {verb}, {rows} rows.")?;
                return Ok(u8::from(!done));
            }
        }
    }
}

fn message(copy: &Value) -> String {
    if let Some(reason) = copy["waits_for"].as_str() {
        return format!("waits: {reason}");
    }
    let rate = &copy["rows_per_second"];
    match copy["seconds_left"].as_u64() {
        Some(left) => format!("{rate}/s, {left} s left"),
        None => format!("{rate}/s"),
    }
}
