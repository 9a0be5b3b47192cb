//! Which of several requests for the same command is the one: decided by the log.
//!
//! Every gateway puts a claim on the backplane before it produces a command, and reads the
//! backplane from its only partition. So all of them see the same claims in the same order with
//! the same times (LogAppendTime), run this same machine over them, and come to the same verdict
//! without asking each other: the first claim of an identity wins.
//!
//! Two ways to be the same command:
//! - **An identity** (an `Idempotency-Key`, or document id and `Correlation-Id`): whoever says it
//!   again, within the memory of [`Claims`], means the same command; with another body it is a
//!   mistake.
//! - **No identity, but a document id**: the body that its *latest* command had is that command
//!   again. A, B, A are three edits; A, A is one. Claims with an identity count as latest too.
//!
//! A claim whose command was never accepted (its gateway died, Kafka was away) may be taken over
//! after [`Claims::patience_ms`], as the *same* command with the same ids: it may have reached
//! Kafka after all, and then robots drop the second by its header `id`.
//!
//! **Invariant:** the verdict depends on nothing but claims, acceptances and their times in the log.

pub mod desk;

use std::collections::{HashMap, VecDeque};
use std::fmt;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::config::gateway::parse_sha256;

/// SHA-256 of what makes two things the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sameness([u8; 32]);

impl Sameness {
    /// Of texts in this order; `["a", "bc"]` and `["ab", "c"]` differ.
    pub fn of(parts: &[&str]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part.len().to_string());
            hash.update(":");
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// From 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        parse_sha256(text).map(Self)
    }
}

impl fmt::Display for Sameness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|it| write!(f, "{it:02x}"))
    }
}

impl fmt::Debug for Sameness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A command's ids, as its first claim has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    pub command: Uuid,
    pub document_id: String,
    pub session_id: Option<String>,
    pub correlation_id: String,
}

/// Somebody wants to produce a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// None: only the latest command of the document can be the same one.
    pub identity: Option<Sameness>,
    /// The document that it is for: of principal, topic and document id.
    pub target: Sameness,
    /// Of what is in the body.
    pub request: Sameness,
    pub ids: Ids,
}

/// What becomes of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It wins: produce the command with these ids, which are an earlier claim's if that one's
    /// command was never accepted.
    Produce(Ids),
    /// It is the same as one that was accepted then, in milliseconds since 1970.
    Repeat(Ids, i64),
    /// It is the same as one that may be accepted soon, and else can be taken over at this time of
    /// the log.
    Wait(Ids, i64),
    /// The identity was used for another body.
    Conflict,
}

#[derive(Debug)]
struct Held {
    claim: Claim,
    at_ms: i64,
    accepted_ms: Option<i64>,
}

/// The claims of the recent past.
#[derive(Debug)]
pub struct Claims {
    /// For how long a command is known again.
    memory_ms: i64,
    /// How long a claim may go without its command's acceptance.
    patience_ms: i64,
    /// Most claims that are remembered: what bounds memory when commands come very fast.
    claims_max: usize,
    held: HashMap<u64, Held>,
    by_identity: HashMap<Sameness, u64>,
    latest: HashMap<Sameness, u64>,
    by_command: HashMap<Uuid, u64>,
    /// Oldest first.
    order: VecDeque<u64>,
    next: u64,
    /// The newest time of the log. A broker's clock may go back; this does not.
    now_ms: i64,
}

impl Claims {
    pub fn new(memory_ms: i64, patience_ms: i64, claims_max: usize) -> Self {
        Self {
            memory_ms,
            patience_ms,
            claims_max: claims_max.max(1),
            held: HashMap::new(),
            by_identity: HashMap::new(),
            latest: HashMap::new(),
            by_command: HashMap::new(),
            order: VecDeque::new(),
            next: 0,
            now_ms: 0,
        }
    }

    /// The next claim in the log.
    pub fn claimed(&mut self, claim: Claim, at_ms: i64) -> Verdict {
        self.now_ms = self.now_ms.max(at_ms);
        self.forget();
        let earlier = match claim.identity {
            Some(identity) => self.by_identity.get(&identity).and_then(|it| self.held.get(it)),
            None => {
                let latest = self.latest.get(&claim.target).and_then(|it| self.held.get(it));
                latest.filter(|it| it.claim.request == claim.request)
            }
        };
        let Some(earlier) = earlier else { return self.wins(claim) };
        if earlier.claim.request != claim.request {
            return Verdict::Conflict;
        }
        let ids = earlier.claim.ids.clone();
        let given_up_ms = earlier.at_ms + self.patience_ms;
        match earlier.accepted_ms {
            Some(accepted_ms) => Verdict::Repeat(ids, accepted_ms),
            None if self.now_ms <= given_up_ms => Verdict::Wait(ids, given_up_ms),
            None => self.wins(Claim { ids, ..claim }),
        }
    }

    /// A command is in Kafka. The time that its first acceptance had stays.
    pub fn accepted(&mut self, command: Uuid, at_ms: i64) {
        self.now_ms = self.now_ms.max(at_ms);
        let held = self.by_command.get(&command).and_then(|it| self.held.get_mut(it));
        if let Some(held) = held {
            held.accepted_ms.get_or_insert(at_ms);
        }
    }

    /// What is certain of an identity without a claim: a command of it that was accepted stays so.
    /// Without an identity nothing is: another command may be the latest by now, elsewhere.
    pub fn known(&self, identity: Sameness, request: Sameness) -> Option<Verdict> {
        let held = self.held.get(self.by_identity.get(&identity)?)?;
        let accepted_ms = held.accepted_ms?;
        if held.at_ms + self.memory_ms < self.now_ms {
            return None;
        }
        let same = held.claim.request == request;
        let repeat = || Verdict::Repeat(held.claim.ids.clone(), accepted_ms);
        Some(if same { repeat() } else { Verdict::Conflict })
    }

    /// When the command was accepted, if it was.
    pub fn acceptance(&self, command: Uuid) -> Option<i64> {
        self.by_command.get(&command).and_then(|it| self.held.get(it)?.accepted_ms)
    }

    fn wins(&mut self, claim: Claim) -> Verdict {
        let (nth, ids) = (self.next, claim.ids.clone());
        self.next += 1;
        if let Some(identity) = claim.identity {
            self.by_identity.insert(identity, nth);
        }
        self.latest.insert(claim.target, nth);
        self.by_command.insert(ids.command, nth);
        self.order.push_back(nth);
        self.held.insert(nth, Held { claim, at_ms: self.now_ms, accepted_ms: None });
        Verdict::Produce(ids)
    }

    /// What is too old, or too much with one more.
    fn forget(&mut self) {
        while let Some(nth) = self.order.front() {
            let oldest_ms = self.now_ms - self.memory_ms;
            let old = self.held.get(nth).is_none_or(|it| it.at_ms < oldest_ms);
            if !old && self.order.len() < self.claims_max {
                return;
            }
            let nth = *nth;
            self.order.pop_front();
            let Some(Held { claim, .. }) = self.held.remove(&nth) else { continue };
            if let Some(identity) = claim.identity {
                remove_if(&mut self.by_identity, identity, nth);
            }
            remove_if(&mut self.latest, claim.target, nth);
            remove_if(&mut self.by_command, claim.ids.command, nth);
        }
    }
}

/// Removes what still points there: a later claim may have taken its place.
fn remove_if<K: std::hash::Hash + Eq>(map: &mut HashMap<K, u64>, key: K, nth: u64) {
    if map.get(&key) == Some(&nth) {
        map.remove(&key);
    }
}

#[cfg(test)]
mod tests;
