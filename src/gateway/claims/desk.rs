//! Where requests wait for what the backplane says of their claims.
//!
//! The backplane's reader tells every claim and acceptance in the order of the log; whoever waits
//! for one of them is told at that moment. A mutex that nobody holds longer than one record takes.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use uuid::Uuid;

use crate::config::gateway::GatewayConfig;
use crate::gateway::claims::{Claim, Claims, Ids, Sameness, Verdict};
use crate::kafka::feedback::{Claimed, Feedback};

struct State {
    claims: Claims,
    /// Who waits for the verdict on a claim, by the command id that the claim proposed.
    asked: HashMap<Uuid, oneshot::Sender<Verdict>>,
    /// Who waits for the acceptance of a command.
    waiting: HashMap<Uuid, Vec<oneshot::Sender<i64>>>,
}

/// See the module.
pub struct Desk {
    state: Mutex<State>,
}

impl Desk {
    /// As long as the window of feedback, a command is known again. Twice the longest wait, and
    /// whoever claimed it has long answered.
    pub fn new(config: &GatewayConfig) -> Self {
        let ms = |it: std::time::Duration| i64::try_from(it.as_millis()).unwrap_or(i64::MAX);
        let patience_ms = ms(config.command_timeout * 2);
        let (memory_ms, most) = (ms(config.feedback_window), config.feedback_window_records);
        let claims = Claims::new(memory_ms, patience_ms, most);
        let (asked, waiting) = (HashMap::new(), HashMap::new());
        Self { state: Mutex::new(State { claims, asked, waiting }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next record of the backplane.
    pub fn hear(&self, feedback: &Feedback, at_ms: i64) {
        match feedback {
            // Another's mistake in a record is nobody's claim.
            Feedback::Claimed(it) => {
                if let Some(claim) = claim(it) {
                    self.claimed(claim, at_ms);
                }
            }
            Feedback::Accepted(it) => {
                if let Ok(command) = Uuid::try_parse(&it.command) {
                    self.accepted(command, at_ms);
                }
            }
            Feedback::Document(_) | Feedback::Response(_) | Feedback::Hop(_) => {}
        }
    }

    /// The next claim in the log.
    pub fn claimed(&self, claim: Claim, at_ms: i64) {
        let proposed = claim.ids.command;
        let mut state = self.lock();
        let verdict = state.claims.claimed(claim, at_ms);
        if let Some(asked) = state.asked.remove(&proposed) {
            // Whoever asked may have lost patience.
            let _gone = asked.send(verdict);
        }
    }

    /// The next acceptance in the log.
    pub fn accepted(&self, command: Uuid, at_ms: i64) {
        let mut state = self.lock();
        state.claims.accepted(command, at_ms);
        for waiting in state.waiting.remove(&command).unwrap_or_default() {
            let _gone = waiting.send(at_ms);
        }
    }

    /// See [`Claims::known`].
    pub fn known(&self, identity: Sameness, request: Sameness) -> Option<Verdict> {
        self.lock().claims.known(identity, request)
    }

    /// Asks for the verdict on a claim that is about to be produced.
    pub fn ask(&self, proposed: Uuid) -> Asked<'_> {
        let (sender, verdict) = oneshot::channel();
        self.lock().asked.insert(proposed, sender);
        Asked { desk: self, proposed, verdict }
    }

    /// Waits until a command is accepted; None: whoever tells it is gone.
    pub async fn acceptance(&self, command: Uuid) -> Option<i64> {
        let waiting = {
            let mut state = self.lock();
            if let Some(at_ms) = state.claims.acceptance(command) {
                return Some(at_ms);
            }
            let (sender, waiting) = oneshot::channel();
            let all = state.waiting.entry(command).or_default();
            // Those who gave up are cleared away by those who come.
            all.retain(|it| !it.is_closed());
            all.push(sender);
            waiting
        };
        let left = Left { desk: self, command };
        let told = waiting.await.ok();
        drop(left);
        told
    }
}

fn claim(record: &Claimed) -> Option<Claim> {
    let identity = match &record.identity {
        Some(identity) => Some(Sameness::parse(identity)?),
        None => None,
    };
    Some(Claim {
        identity,
        target: Sameness::parse(&record.target)?,
        request: Sameness::parse(&record.request)?,
        ids: Ids {
            command: Uuid::try_parse(&record.command).ok()?,
            document_id: record.document_id.clone(),
            session_id: record.session_id.clone(),
            correlation_id: record.correlation_id.clone(),
        },
    })
}

/// A question that is taken back when nobody waits for its answer any more.
pub struct Asked<'d> {
    desk: &'d Desk,
    proposed: Uuid,
    verdict: oneshot::Receiver<Verdict>,
}

impl Asked<'_> {
    /// None: whoever tells it is gone. Cancel-safe.
    pub async fn verdict(&mut self) -> Option<Verdict> {
        (&mut self.verdict).await.ok()
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.desk.lock().asked.remove(&self.proposed);
    }
}

/// Clears away a list of waiters that is left by the last of them.
struct Left<'d> {
    desk: &'d Desk,
    command: Uuid,
}

impl Drop for Left<'_> {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        let deserted = |it: &Vec<oneshot::Sender<i64>>| it.iter().all(oneshot::Sender::is_closed);
        if state.waiting.get(&self.command).is_some_and(deserted) {
            state.waiting.remove(&self.command);
        }
    }
}
