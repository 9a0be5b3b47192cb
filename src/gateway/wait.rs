//! Read your writes: waits until a document reflects a command, a transaction or a place of the WAL.
//!
//! Who waits listens to the backplane as a subscriber does: what is known already counts, and what
//! is said next ends the wait at once. A robot's refusal ends it too. Else the answer says how far
//! behind each hop is, so that "not yet" can be told from "never".

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout_at};

use crate::gateway::backplane::{Backplane, Crowded};
use crate::gateway::pipeline::Pipeline;
use crate::gateway::problem::Problem;
use crate::gateway::query::bad_parameter;
use crate::gateway::window::{Event, Key, Window};
use crate::kafka::delivery::now_ms;
use crate::kafka::feedback::{DocumentNews, Feedback, Hop, Response, Role, State, Status};
use crate::lsn::Lsn;

/// What a hop said longer ago is not known any more: it says something every second.
const HOP_AGE_MAX_MS: i64 = 10_000;

/// What the document has to reflect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// A command, and the transaction that it led to.
    Correlation(String),
    /// A transaction, by its 64-bit id: `SELECT onelog.token()`.
    Txid(u64),
    /// All that was committed before this place of the WAL: `SELECT pg_current_wal_insert_lsn()`.
    MinLsn(Lsn),
}

impl Token {
    /// From the parameters of a request, of which one may be given. None: none is.
    ///
    /// # Errors
    /// 400.
    pub fn read(
        correlation_id: Option<&str>,
        txid: Option<&str>,
        min_lsn: Option<&str>,
    ) -> Result<Option<Self>, Problem> {
        match (correlation_id, txid, min_lsn) {
            (None, None, None) => Ok(None),
            (Some(id), None, None) if (1..=128).contains(&id.len()) => {
                Ok(Some(Self::Correlation(id.to_owned())))
            }
            (Some(_), None, None) => Err(bad_parameter("a correlation_id has 1 to 128 characters")),
            (None, Some(txid), None) => match txid.parse() {
                Ok(txid) => Ok(Some(Self::Txid(txid))),
                Err(_) => Err(bad_parameter("txid is a number, as SELECT onelog.token() gives it")),
            },
            (None, None, Some(lsn)) => match lsn.parse() {
                Ok(lsn) => Ok(Some(Self::MinLsn(lsn))),
                Err(_) => Err(bad_parameter("min_lsn is of the form 16/B374D848")),
            },
            _ => Err(bad_parameter("wait for one of correlation_id, txid and min_lsn")),
        }
    }

    /// Whether a document that was written so reflects it.
    ///
    /// Of a place in the WAL: who has asked for it had committed before, and a transaction whose
    /// commit is behind it became visible later than that; so a snapshot that sees the one sees the
    /// other.
    fn is_reflected(&self, news: &DocumentNews) -> bool {
        match self {
            Self::Correlation(id) => news.correlation_ids.iter().any(|it| it == id),
            Self::Txid(txid) => *txid < news.xmin || news.txids.contains(txid),
            Self::MinLsn(lsn) => *lsn <= news.lsn,
        }
    }
}

/// Which document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub collection: String,
    pub id: String,
}

/// How a wait ended.
#[derive(Debug)]
pub enum Waited {
    Reflected,
    /// A robot says that the command has failed: 409.
    Failed(Arc<Event>),
    /// 504.
    Late(Standing),
    /// 503.
    Crowded(Crowded),
}

impl Waited {
    /// What the client hears; None: its document.
    pub fn problem(&self) -> Option<Problem> {
        match self {
            Self::Reflected => None,
            Self::Failed(event) => Some(refused(&event.feedback)),
            Self::Late(standing) => Some(standing.problem()),
            Self::Crowded(it) => Some(it.problem()),
        }
    }
}

fn refused(feedback: &Feedback) -> Problem {
    let detail = "the command has failed; \"response\" has what its robot says";
    let response = feedback.shown().and_then(|(_, text)| serde_json::from_str(&text).ok());
    Problem::new(StatusCode::CONFLICT, "command-failed", detail)
        .with("response", response.unwrap_or(Value::Null))
}

/// Waits until the document reflects the token, for `limit` at most.
pub async fn until_reflected(
    (backplane, pipeline): (&Arc<Backplane>, &Pipeline),
    document: &Document,
    token: &Token,
    limit: Duration,
) -> Waited {
    let deadline = Instant::now() + limit;
    let key = match token {
        Token::Correlation(id) => Key::Correlation(id.clone()),
        Token::Txid(_) | Token::MinLsn(_) => {
            Key::Document { collection: document.collection.clone(), id: document.id.clone() }
        }
    };
    let mut subscription = match backplane.subscribe(key, None) {
        Ok(subscription) => subscription,
        Err(crowded) => return Waited::Crowded(crowded),
    };
    let known = std::mem::take(&mut subscription.history.events);
    let end = |event: &Arc<Event>| end_of(event, document, token);
    if let Some(ended) = known.iter().find_map(end) {
        return ended;
    }
    let heard = async {
        while let Some(event) = subscription.events.recv().await {
            if let Some(ended) = end(&event) {
                return ended;
            }
        }
        // Too slow, or all begins anew: the deadline ends it.
        std::future::pending().await
    };
    let passed = async {
        match token {
            Token::MinLsn(lsn) => pipeline.passed(backplane, *lsn).await,
            Token::Correlation(_) | Token::Txid(_) => std::future::pending().await,
        }
        Waited::Reflected
    };
    let either = async {
        tokio::select! {
            biased;

            // 1. The document was written.
            ended = heard => ended,
            // 2. All that was committed before has been handled, and the document was not concerned.
            ended = passed => ended,
        }
    };
    match timeout_at(deadline, either).await {
        Ok(ended) => ended,
        Err(_) => Waited::Late(backplane.look(|it| Standing::new(it, token, now_ms()))),
    }
}

/// The end of the wait that an event is, if it is one.
fn end_of(event: &Arc<Event>, document: &Document, token: &Token) -> Option<Waited> {
    match &event.feedback {
        Feedback::Document(it) => {
            let same = it.collection == document.collection && it.id == document.id;
            (same && token.is_reflected(it)).then_some(Waited::Reflected)
        }
        // An answer without the document is good news, and the document is still to come.
        Feedback::Response(Response { status: Some(Status::Failure), .. }) => {
            Some(Waited::Failed(Arc::clone(event)))
        }
        Feedback::Response(_) | Feedback::Accepted(_) | Feedback::Claimed(_) | Feedback::Hop(_) => {
            None
        }
    }
}

/// Where it stands, as far as we know.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    hops: Vec<Value>,
    stands_at: Option<&'static str>,
    seen: Vec<Value>,
}

impl Standing {
    fn new(window: &Window, token: &Token, now_ms: i64) -> Self {
        let mut by_role: BTreeMap<Role, Vec<&Hop>> = BTreeMap::new();
        by_role.insert(Role::Capture, Vec::new());
        by_role.insert(Role::Translate, Vec::new());
        for hop in window.hops().filter(|it| now_ms - it.ts_ms <= HOP_AGE_MAX_MS) {
            by_role.entry(hop.role).or_default().push(hop);
        }
        let (mut hops, mut stands_at) = (Vec::new(), None);
        for (role, mut said) in by_role {
            // Who has stopped counts only while nobody else has the role.
            if said.iter().any(|it| it.state != State::Stopped) {
                said.retain(|it| it.state != State::Stopped);
            }
            let behind = |it: &&Hop| {
                let lag = it.lag_records.or(it.lag_bytes).unwrap_or(0);
                it.state != State::Running || 0 < lag
            };
            if said.is_empty() || said.iter().any(behind) {
                stands_at = stands_at.or(Some(role.name()));
            }
            if said.is_empty() {
                hops.push(json!({ "role": role.name(), "state": "unknown" }));
            }
            hops.extend(said.into_iter().map(|it| told(it, now_ms)));
        }
        let seen = match token {
            Token::Correlation(id) => {
                let known = window.history(&Key::Correlation(id.clone()), None).events;
                known.iter().filter_map(|it| seen(it)).collect()
            }
            Token::Txid(_) | Token::MinLsn(_) => Vec::new(),
        };
        Self { hops, stands_at, seen }
    }

    fn problem(&self) -> Problem {
        let detail = "the document does not reflect it yet; ask again with the same parameters. \
                      \"hops\" says how far behind each part is";
        Problem::new(StatusCode::GATEWAY_TIMEOUT, "not-yet", detail)
            .with("stands_at", self.stands_at.map_or(Value::Null, Value::from))
            .with("hops", Value::Array(self.hops.clone()))
            .with("seen", Value::Array(self.seen.clone()))
    }
}

fn told(hop: &Hop, now_ms: i64) -> Value {
    let text = Feedback::Hop(hop.clone()).to_json();
    let mut told: Map<String, Value> = serde_json::from_str(&text).unwrap_or_default();
    for name in ["kind", "ts_ms", "lsn"] {
        told.shift_remove(name);
    }
    told.insert("age_ms".to_owned(), Value::from((now_ms - hop.ts_ms).max(0)));
    Value::Object(told)
}

/// What has been heard of a command, without what is in it.
fn seen(event: &Event) -> Option<Value> {
    let (kind, _) = event.feedback.shown()?;
    let collection = match &event.feedback {
        Feedback::Document(it) => Some(it.collection.as_str()),
        _ => None,
    };
    Some(json!({ "kind": kind, "collection": collection, "ts_ms": event.at_ms }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::window::Limits;

    fn news(xmin: u64, txids: &[u64], lsn: u64, correlation: &str) -> DocumentNews {
        DocumentNews {
            collection: "page".to_owned(),
            id: "d".to_owned(),
            correlation_ids: vec![correlation.to_owned()],
            txids: txids.to_vec(),
            xmin,
            lsn: Lsn(lsn),
            ..DocumentNews::default()
        }
    }

    #[test]
    fn a_document_reflects_what_its_snapshot_saw() {
        let it = news(100, &[105, 130], 7, "k");
        let cases = [
            (Token::Txid(99), true),
            (Token::Txid(100), false),
            (Token::Txid(105), true),
            (Token::Txid(106), false),
            (Token::MinLsn(Lsn(7)), true),
            (Token::MinLsn(Lsn(8)), false),
            (Token::Correlation("k".to_owned()), true),
            (Token::Correlation("l".to_owned()), false),
        ];
        for (token, expected) in cases {
            assert_eq!(token.is_reflected(&it), expected, "{token:?}");
        }
    }

    #[test]
    fn another_document_of_the_same_command_ends_no_wait() {
        let limits = Limits { records_max: 9, bytes_max: 999, age_max_ms: 99 };
        let mut window = Window::new(limits, 0);
        let token = Token::Correlation("k".to_owned());
        for (collection, id, expected) in
            [("page", "d", true), ("page", "e", false), ("list", "d", false)]
        {
            let it = window.push((window.next(), 0), Feedback::Document(news(1, &[], 1, "k")), 1);
            let document = Document { collection: collection.to_owned(), id: id.to_owned() };
            let ended = end_of(&it.unwrap(), &document, &token);
            assert_eq!(matches!(ended, Some(Waited::Reflected)), expected, "{document:?}");
        }
    }

    #[test]
    fn one_token_is_read_and_nonsense_is_refused() {
        let read = |c, t, l| Token::read(c, t, l).map_err(|it| it.status().as_u16());
        assert_eq!(read(None, None, None), Ok(None));
        assert_eq!(read(None, Some("7"), None), Ok(Some(Token::Txid(7))));
        assert_eq!(read(None, None, Some("1/A")), Ok(Some(Token::MinLsn(Lsn(1 << 32 | 10)))));
        let bad = [
            (Some("k"), Some("7"), None),
            (Some(""), None, None),
            (None, Some("-7"), None),
            (None, None, Some("7")),
        ];
        for (c, t, l) in bad {
            assert_eq!(read(c, t, l), Err(400), "{c:?} {t:?} {l:?}");
        }
    }

    fn hop(role: Role, state: State, lag: i64, ts_ms: i64) -> Feedback {
        Feedback::Hop(Hop {
            lag_seconds: Some(0.0),
            lag_records: Some(lag),
            ..Hop::new((role, &format!("{role:?}{state:?}")), state, ts_ms)
        })
    }

    #[test]
    fn the_hop_that_stands_is_named() {
        let limits = Limits { records_max: 9, bytes_max: 999, age_max_ms: 99 };
        let (c, t) = (Role::Capture, Role::Translate);
        let (running, stopped, waiting) = (State::Running, State::Stopped, State::Waiting);
        let now = 100_000;
        let cases: &[(&[Feedback], Option<&str>)] = &[
            (&[], Some("capture")),
            (&[hop(c, running, 0, now)], Some("translate")),
            (&[hop(c, running, 0, now), hop(t, running, 0, now)], None),
            (&[hop(c, running, 0, now), hop(t, running, 5, now)], Some("translate")),
            (&[hop(c, running, 0, now), hop(t, waiting, 0, now)], Some("translate")),
            (&[hop(c, running, 0, now), hop(t, stopped, 0, now)], Some("translate")),
            // One that has stopped and one that runs: a rolling restart.
            (&[hop(c, running, 0, now), hop(t, stopped, 0, now), hop(t, running, 0, now)], None),
            (&[hop(c, running, 0, now - 20_000), hop(t, running, 0, now)], Some("capture")),
        ];
        for (said, expected) in cases {
            let mut window = Window::new(limits, 0);
            for (offset, it) in (0..).zip(said.iter()) {
                window.push((offset, 0), it.clone(), 1);
            }
            let standing = Standing::new(&window, &Token::Txid(1), now);
            assert_eq!(standing.stands_at, *expected, "{said:?}");
            assert_eq!(standing.problem().status(), StatusCode::GATEWAY_TIMEOUT);
        }
    }
}
