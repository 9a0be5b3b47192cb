//! STAGE: tells the gateways once a second how far capture is, so that who waits for a document in
//! vain learns where it stands. Only where there is a gateway.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::causes::with_causes;
use crate::config::Config;
use crate::kafka::delivery::now_ms;
use crate::kafka::feedback::{Feedback, Hop, Role, State};
use crate::kafka::feedback_sender::{self, FeedbackSender};
use crate::lsn::Lsn;
use crate::metrics::Metrics;

const HOP_EVERY: Duration = Duration::from_secs(1);
/// Before the next try to make the topic: what hinders it hinders capture too, and is said there.
const RETRY_EVERY: Duration = Duration::from_secs(5);

/// Tells until `shutdown`, and then that we stop.
pub(super) async fn run_hops(config: Arc<Config>, metrics: Metrics, shutdown: CancellationToken) {
    let made = async {
        loop {
            match feedback_sender::of_role(&config, metrics.clone()).await {
                Ok(sender) => return sender,
                Err(error) => tracing::debug!(error = with_causes(&error), "no feedback yet"),
            }
            tokio::time::sleep(RETRY_EVERY).await;
        }
    };
    let Some(Some(sender)) = shutdown.run_until_cancelled(made).await else { return };
    let mut ticks = interval(HOP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        tell(&sender, &metrics);
    }
    let said = tokio::task::spawn_blocking(move || sender.say_goodbye(Role::Capture, now_ms()));
    // A thread of ours that panics has said so itself.
    let _said = said.await;
}

fn tell(sender: &FeedbackSender, metrics: &Metrics) {
    // Who stands by has nothing to say: whoever holds the slot does.
    if metrics.capture_standby.get() > 0 {
        return;
    }
    let streaming = metrics.capture_streaming.get() > 0;
    let confirmed = u64::try_from(metrics.capture_confirmed_lsn.get()).unwrap_or(0);
    let state = if streaming { State::Running } else { State::Waiting };
    sender.offer(&Feedback::Hop(Hop {
        lag_seconds: streaming.then(|| metrics.capture_lag_seconds.get()),
        lag_bytes: streaming.then(|| metrics.capture_lag_bytes.get()),
        lsn: Some(Lsn(confirmed)).filter(|it| *it > Lsn(0)),
        ..Hop::new((Role::Capture, sender.instance()), state, now_ms())
    }));
}
