//! `onelog status`: what the running daemon says of itself at `/v1/status`.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde_json::Value;

use crate::cli::CommandError;
use crate::config::Config;

/// The daemon answers from memory.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Prints the status; exit code 1 if a role waits or a collection is not live.
pub async fn status(config: &Config, json: bool, out: &mut dyn Write) -> Result<u8, CommandError> {
    let address = reachable(config.http.listen);
    let nobody = |error| {
        let doing = format!(
            "no daemon says its status at {address} ([http] listen); is `onelog run` running \
             with this config?"
        );
        CommandError::failed(doing, error)
    };
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_MAX).build();
    let request = client.map_err(nobody)?.get(format!("http://{address}/v1/status"));
    let answered = request.send().await.and_then(reqwest::Response::error_for_status);
    let text = answered.map_err(nobody)?.text().await.map_err(nobody)?;
    let status: Value = serde_json::from_str(&text)
        .map_err(|error| CommandError::failed("the daemon's answer is not JSON", error))?;
    match json {
        true => writeln!(out, "{text}")?,
        false => print(&status, out)?,
    }
    Ok(u8::from(!is_fine(&status)))
}

/// A daemon that listens on every address is asked on this machine.
pub(super) fn reachable(listen: SocketAddr) -> SocketAddr {
    let loopback = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    SocketAddr::new(loopback, listen.port())
}

fn is_fine(status: &Value) -> bool {
    let roles = status["roles"].as_object().into_iter().flat_map(|it| it.values());
    let collections = status["collections"].as_array().into_iter().flatten();
    let live = |it: &Value| matches!(it["state"].as_str(), Some("live" | "polling"));
    roles.map(|it| &it["ready"]).all(|it| it == true) && collections.into_iter().all(live)
}

fn print(status: &Value, out: &mut dyn Write) -> std::io::Result<()> {
    for (role, state) in status["roles"].as_object().into_iter().flatten() {
        match state["waits_for"].as_str() {
            None => writeln!(out, "{role:<12} ready")?,
            Some(reason) => writeln!(out, "{role:<12} waits: {reason}")?,
        }
    }
    let (capture, translate) = (&status["capture"], &status["translate"]);
    if status["roles"].get("capture").is_some() {
        let (bytes, seconds) = (&capture["lag_bytes"], &capture["lag_seconds"]);
        writeln!(out, "{:<12} {bytes} bytes, {seconds} s", "capture lag")?;
        if let Some(state) = status["slot"]["wal_status"].as_str() {
            let kept = &status["slot"]["retained_bytes"];
            writeln!(out, "{:<12} {state}, keeps {kept} bytes of WAL", "slot")?;
        }
    }
    if status["roles"].get("translate").is_some() {
        let (records, keys) = (&translate["lag_records"], &translate["pending_keys"]);
        let parked = &translate["parked_keys"];
        writeln!(out, "{:<12} {records} records, {keys} keys, {parked} parked", "to translate")?;
    }
    print_copies(status, out)?;
    writeln!(out, "\n{:<32} {:<10} SWEEP", "COLLECTION", "STATE")?;
    for collection in status["collections"].as_array().into_iter().flatten() {
        let text = |it: &str| collection[it].as_str().unwrap_or_default().to_owned();
        let sweep = &collection["sweep"];
        let progress = match sweep.is_null() {
            true => "-".to_owned(),
            false => format!(
                "{} of about {} documents, {} s left",
                sweep["documents"], sweep["expected"], sweep["seconds_left"]
            ),
        };
        writeln!(out, "{:<32} {:<10} {progress}", text("name"), text("state"))?;
    }
    Ok(())
}

fn print_copies(status: &Value, out: &mut dyn Write) -> std::io::Result<()> {
    let copies = status["copies"].as_array().filter(|it| !it.is_empty());
    let Some(copies) = copies else { return Ok(()) };
    writeln!(out, "\n{:<32} {:<10} ROWS", "COPY OF", "STATE")?;
    for copy in copies {
        let text = |it: &str| copy[it].as_str().unwrap_or_default().to_owned();
        let (rows, expected, rate) =
            (&copy["rows"], &copy["expected_rows"], &copy["rows_per_second"]);
        let progress = match (copy["waits_for"].as_str(), copy["state"] == "running") {
            (Some(reason), true) => format!("{rows}, waits: {reason}"),
            (None, true) => format!("{rows} of about {expected}, {rate}/s"),
            (_, false) => rows.to_string(),
        };
        writeln!(out, "{:<32} {:<10} {progress}", text("table"), text("state"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_must_be_ready_and_live() {
        let status = |ready: bool, state: &str| {
            json!({
                "roles": { "capture": { "ready": true }, "translate": { "ready": ready } },
                "collections": [{ "state": "live" }, { "state": state }],
            })
        };
        assert!(is_fine(&status(true, "polling")));
        assert!(!is_fine(&status(false, "live")));
        for state in ["building", "frozen", "suspended"] {
            assert!(!is_fine(&status(true, state)), "{state}");
        }
    }

    #[test]
    fn who_listens_everywhere_is_asked_here() {
        for (listen, expected) in [
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("10.0.0.1:80", "10.0.0.1:80"),
        ] {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), expected);
        }
    }
}
