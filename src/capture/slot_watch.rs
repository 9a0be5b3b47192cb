//! Watches what the slot costs the primary, and how near it is to losing WAL.
//!
//! It runs beside the sessions and without them, since WAL grows most while Kafka is away and no
//! session can start. It decides nothing about the stream: a session finds a slot that is gone by
//! itself ([`slot::decide`]).
//!
//! **Invariant:** the slot is dropped only where the configuration says so, and never in silence.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::causes::with_causes;
use crate::config::{BudgetAction, PostgresConfig};
use crate::lsn::Lsn;
use crate::metrics::Metrics;
use crate::postgres::client::{self, Client, ConnectError};
use crate::postgres::query_error::QueryError;
use crate::postgres::slot::{self, SlotError, SlotState, WalStatus};

/// How often the slot is looked at: one question to memory of the server. A busy primary writes
/// 100 MB/s, so that a budget is kept to within half a gigabyte.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Less than a quarter of what the server grants is left: another outage a third as long as this
/// one costs the slot.
const SAFE_PARTS: u64 = 4;

/// Names of [`WalStatus`] as a metric's label, and of a slot that is not there.
const STATUSES: [&str; 5] = ["reserved", "extended", "unreserved", "lost", "missing"];

/// Why a look gave nothing.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("can't connect to Postgres")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Slot(#[from] SlotError),
}

/// What is to be said or done about the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alarm {
    None,
    /// Little room is left before the slot loses WAL.
    Shrinks,
    /// The next checkpoint may take WAL that it needs.
    Unreserved,
    OverBudget,
    Lost,
}

/// A look at the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    status: &'static str,
    retained: u64,
    safe: Option<u64>,
}

impl Seen {
    fn of(state: Option<&SlotState>, wal_end: Lsn) -> Self {
        let Some(state) = state else { return Self { status: "missing", retained: 0, safe: None } };
        let status = match state.wal_status {
            WalStatus::Lost => "lost",
            _ if state.invalidation.is_some() => "lost",
            WalStatus::Unreserved => "unreserved",
            WalStatus::Extended => "extended",
            WalStatus::Reserved | WalStatus::Unknown => "reserved",
        };
        let kept = state.restart_lsn.map_or(0, |it| wal_end.0.saturating_sub(it.0));
        let safe = state.safe_wal_bytes.map(|it| u64::try_from(it).unwrap_or(0));
        // A slot that is lost keeps nothing any more.
        Self { status, retained: if status == "lost" { 0 } else { kept }, safe }
    }

    fn alarm(&self, budget: Option<u64>) -> Alarm {
        let over = budget.is_some_and(|it| it < self.retained);
        let whole = self.safe.map(|it| it.saturating_add(self.retained));
        let shrinks =
            self.safe.zip(whole).is_some_and(|(safe, all)| safe.saturating_mul(SAFE_PARTS) < all);
        match self.status {
            "lost" => Alarm::Lost,
            _ if over => Alarm::OverBudget,
            "unreserved" => Alarm::Unreserved,
            _ if shrinks => Alarm::Shrinks,
            _ => Alarm::None,
        }
    }
}

/// Runs until it is dropped.
pub(super) async fn run_slot_watch(config: PostgresConfig, metrics: Metrics) {
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client: Option<Client> = None;
    let mut told = Alarm::None;
    loop {
        ticks.tick().await;
        let connected = match client.take() {
            Some(it) => Ok(it),
            None => client::connect(&config.url, "onelog slot").await,
        };
        let looked = match connected {
            Ok(it) => look(&config, &metrics, &it, &mut told).await.map(|()| it),
            Err(error) => Err(error.into()),
        };
        match looked {
            Ok(it) => client = Some(it),
            // Whoever needs the server more says so louder.
            Err(error) => tracing::debug!(error = %with_causes(&error), "can't look at the slot"),
        }
    }
}

async fn look(
    config: &PostgresConfig,
    metrics: &Metrics,
    client: &Client,
    told: &mut Alarm,
) -> Result<(), LookError> {
    let state = slot::inspect(client, &config.slot_name).await?;
    let seen = Seen::of(state.as_ref(), slot::wal_end(client).await?);
    show(metrics, &seen, config.wal_budget);
    let alarm = seen.alarm(config.wal_budget);
    if *told != alarm {
        tell(config, &seen, alarm);
        *told = alarm;
    }
    if alarm == Alarm::OverBudget && config.wal_budget_action == BudgetAction::DropSlot {
        slot::drop_slot(client, &config.slot_name).await?;
        tracing::error!(
            slot = config.slot_name,
            retained_bytes = seen.retained,
            "the slot kept more WAL than wal_budget and was dropped: changes that were not yet \
             published are missing in the log; run `onelog prepare --adopt-slot`"
        );
    }
    Ok(())
}

fn show(metrics: &Metrics, seen: &Seen, budget: Option<u64>) {
    let gauge = |it: u64| i64::try_from(it).unwrap_or(i64::MAX);
    metrics.slot_retained_bytes.set(gauge(seen.retained));
    metrics.slot_safe_bytes.set(seen.safe.map_or(-1, gauge));
    metrics.slot_over_budget.set(i64::from(budget.is_some_and(|it| it < seen.retained)));
    for status in STATUSES {
        let is_now = i64::from(status == seen.status);
        metrics.slot_wal_status.with_label_values(&[status]).set(is_now);
    }
}

/// Once for each change: an alarm is a metric for those who want it repeated.
fn tell(config: &PostgresConfig, seen: &Seen, alarm: Alarm) {
    let (slot, retained_bytes) = (&config.slot_name, seen.retained);
    let safe_bytes = seen.safe;
    match alarm {
        Alarm::None => tracing::info!(slot, retained_bytes, "the slot's WAL is within its limits"),
        Alarm::Shrinks => tracing::warn!(
            slot,
            retained_bytes,
            safe_bytes,
            "less than a quarter of max_slot_wal_keep_size is left before the slot loses WAL: see \
             why capture is behind, or raise it"
        ),
        Alarm::Unreserved => tracing::error!(
            slot,
            retained_bytes,
            "the slot is beyond max_slot_wal_keep_size: the next checkpoint may take WAL that it \
             needs; raise it at once, and SELECT pg_reload_conf()"
        ),
        Alarm::OverBudget => tracing::error!(
            slot,
            retained_bytes,
            budget_bytes = config.wal_budget,
            "the slot keeps more WAL on the primary than wal_budget: see why capture is behind"
        ),
        Alarm::Lost => tracing::error!(
            slot,
            "the slot has lost WAL and can't be read any more; run `onelog prepare --adopt-slot`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(wal_status: WalStatus, safe_wal_bytes: Option<i64>) -> SlotState {
        SlotState {
            name: "s".to_owned(),
            plugin: None,
            database: None,
            active_pid: None,
            confirmed_flush_lsn: None,
            restart_lsn: Some(Lsn(1000)),
            wal_status,
            invalidation: None,
            safe_wal_bytes,
            failover: None,
        }
    }

    #[track_caller]
    fn check(state: &SlotState, wal_end: u64, expected: (u64, Alarm)) {
        let seen = Seen::of(Some(state), Lsn(wal_end));
        assert_eq!((seen.retained, seen.alarm(Some(500))), expected);
    }

    #[test]
    fn the_worst_is_said() {
        let kept = |safe| state(WalStatus::Reserved, safe);
        check(&kept(None), 1500, (500, Alarm::None));
        check(&kept(None), 1501, (501, Alarm::OverBudget));
        check(&kept(Some(100)), 1300, (300, Alarm::None));
        check(&kept(Some(99)), 1300, (300, Alarm::Shrinks));
        check(&kept(Some(-5)), 1300, (300, Alarm::Shrinks));
        check(&state(WalStatus::Unreserved, Some(-5)), 1300, (300, Alarm::Unreserved));
        check(&state(WalStatus::Unreserved, Some(-5)), 1501, (501, Alarm::OverBudget));
        check(&state(WalStatus::Lost, None), 9000, (0, Alarm::Lost));
        let invalid = SlotState { invalidation: Some("idle_timeout".to_owned()), ..kept(None) };
        check(&invalid, 9000, (0, Alarm::Lost));
        assert_eq!(Seen::of(None, Lsn(9000)).alarm(Some(500)), Alarm::None);
        assert_eq!(Seen::of(Some(&kept(None)), Lsn(9000)).alarm(None), Alarm::None);
    }
}
