//! Push: `GET /v1/feedback`, as Server-Sent Events or, asked for an upgrade, by WebSocket.
//!
//! An event's id is its place in the backplane, which is the same at every gateway: a client that
//! comes back, to whichever gateway, says the last id that it has heard and gets what follows. Is
//! that not known any more, it hears `reset` first, and reads its documents anew.
//!
//! **Invariant:** a client hears of its own session's commands, or of what it may read, and of
//! nothing else; what it can't take in time is not kept for it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::value::RawValue;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::gateway::Gateway;
use crate::gateway::backplane::{Backplane, Subscription};
use crate::gateway::principal::Principal;
use crate::gateway::problem::{self, Problem, forbidden};
use crate::gateway::query::{Parameters, bad_parameter};
use crate::gateway::window::{Event, Key};
use crate::kafka::feedback::Feedback;

/// Proxies close a connection that says nothing for a minute, and many do after 30 s.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client that names an event waits for a gateway that has not read so far yet.
const CATCH_UP_MAX: Duration = Duration::from_secs(2);
/// How long a WebSocket may take to accept one message, while others wait in its queue.
const SEND_MAX: Duration = Duration::from_secs(10);
/// A client has nothing to say to us.
const MESSAGE_BYTES_MAX: usize = 4096;
/// What a client may name things with.
const ID_BYTES_MAX: usize = 512;

/// `GET /v1/feedback?session_id=|correlation_id=|collection=&id=`
///
/// # Errors
/// As a problem.
pub async fn feedback(
    State(gateway): State<Arc<Gateway>>,
    Extension(principal): Extension<Principal>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let asked = Asked::read(&uri, &headers)?;
    let is_upgrade = headers.contains_key(header::UPGRADE);
    if is_upgrade && !may_connect(&headers, &gateway.config.allowed_origins) {
        return Err(forbidden(
            "pages of this origin may not listen; see [gateway] allowed_origins",
        ));
    }
    let listener = listen(&gateway.backplane, principal, asked).await?;
    if !is_upgrade {
        let heartbeat = KeepAlive::new().interval(HEARTBEAT).text("heartbeat");
        // Proxies that collect answers before they pass them on are asked not to.
        let unbuffered = [(HeaderName::from_static("x-accel-buffering"), "no")];
        return Ok((unbuffered, Sse::new(events(listener)).keep_alive(heartbeat)).into_response());
    }
    let upgrade = upgrade.map_err(|_| {
        let detail = "this is no handshake of a WebSocket";
        Problem::new(StatusCode::BAD_REQUEST, "bad-handshake", detail)
    })?;
    let upgrade = upgrade.max_message_size(MESSAGE_BYTES_MAX).max_frame_size(MESSAGE_BYTES_MAX);
    Ok(upgrade.on_upgrade(|socket| talk(socket, listener)))
}

/// What a client wants to hear.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    key: Key,
    after: Option<i64>,
}

impl Asked {
    fn read(uri: &Uri, headers: &HeaderMap) -> Result<Self, Problem> {
        const KNOWN: [&str; 6] =
            ["session_id", "correlation_id", "collection", "id", "last_event_id", "access_token"];
        let wrong =
            || bad_parameter(format!("give each of {} once at most", KNOWN[..5].join(", ")));
        let given = Parameters::read(uri, |it| KNOWN.contains(&it)).map_err(|_| wrong())?;
        let fits = |it: &str| (1..=ID_BYTES_MAX).contains(&it.len());
        if given.iter().any(|(name, it)| name != "access_token" && !fits(it)) {
            return Err(wrong());
        }
        let get = |name: &str| given.get(name).map(str::to_owned);
        let key = match (get("session_id"), get("correlation_id"), get("collection"), get("id")) {
            (Some(session), None, None, None) => Key::Session(session),
            (None, Some(correlation), None, None) => Key::Correlation(correlation),
            (None, None, Some(collection), Some(id)) => Key::Document { collection, id },
            _ => {
                return Err(bad_parameter(
                    "give session_id, or correlation_id, or collection and id",
                ));
            }
        };
        // What a browser sends by itself when it connects again is newer than its URL.
        let last = headers.get("last-event-id").map(|it| it.to_str().unwrap_or("?").to_owned());
        let last = last.filter(|it| !it.is_empty()).or_else(|| get("last_event_id"));
        let after = last.map(|it| it.parse::<i64>().ok().filter(|it| 0 <= *it));
        match after {
            Some(None) => Err(bad_parameter("the last event's id is a number that we have given")),
            after => Ok(Self { key, after: after.flatten() }),
        }
    }
}

/// A browser does not ask before it opens a WebSocket to somebody else's server, so we must look
/// who it is. Programs send no Origin.
fn may_connect(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let origin = origin.to_str().unwrap_or("");
    let host = headers.get(header::HOST).and_then(|it| it.to_str().ok());
    let own = origin.split_once("://").is_some_and(|(_, it)| Some(it) == host);
    own || allowed.iter().any(|it| it == "*" || it == origin)
}

/// Somebody who listens, and what they have not heard yet.
struct Listener {
    principal: Principal,
    key: Key,
    /// What was known already has a gap before it; the id from which on nothing is missing.
    reset: Option<Option<i64>>,
    history: VecDeque<Arc<Event>>,
    /// The first event of a correlation id that is not known to be the client's session's.
    not_told: Option<i64>,
    subscription: Subscription,
    backplane: Arc<Backplane>,
    ended: bool,
}

/// One thing for a client.
#[derive(Debug, PartialEq, Eq)]
struct Word {
    id: Option<i64>,
    event: &'static str,
    data: String,
}

async fn listen(
    backplane: &Arc<Backplane>,
    principal: Principal,
    asked: Asked,
) -> Result<Listener, Problem> {
    let Asked { key, mut after } = asked;
    may_listen(backplane, &principal, &key)?;
    // The other gateway may have read a little further than this one.
    let mut unknown = false;
    if let Some(last) = after {
        unknown = timeout(CATCH_UP_MAX, backplane.reached(last)).await.is_err();
        after = after.filter(|_| !unknown);
    }
    let subscription =
        backplane.subscribe(key.clone(), after).map_err(|crowded| crowded.problem())?;
    let history: VecDeque<Arc<Event>> = subscription.history.events.iter().cloned().collect();
    let before = |it: &Arc<Event>| it.offset - 1;
    let next = backplane.look(|it| it.next());
    let reset = (unknown || subscription.history.gap)
        .then(|| Some(history.front().map_or(next - 1, before)).filter(|it| 0 <= *it));
    let backplane = Arc::clone(backplane);
    let (not_told, ended) = (None, false);
    Ok(Listener { principal, key, reset, history, not_told, subscription, backplane, ended })
}

fn may_listen(backplane: &Backplane, principal: &Principal, key: &Key) -> Result<(), Problem> {
    let own = principal.session.as_deref();
    match key {
        Key::Session(session) if own.is_some_and(|own| own != session) => {
            Err(forbidden("this session is not yours"))
        }
        Key::Correlation(id) => {
            let session = backplane.look(|it| it.session_of(id).map(str::to_owned));
            match (own, session) {
                (Some(own), Some(session)) if own != session => {
                    Err(forbidden("this command is not your session's"))
                }
                _ => Ok(()),
            }
        }
        // In the same words as a collection that there is none of.
        Key::Document { collection, .. } if !backplane.may_tell(principal, collection) => {
            Err(problem::not_found())
        }
        Key::Session(_) | Key::Document { .. } => Ok(()),
    }
}

impl Listener {
    /// The next thing to say. None: it is over.
    async fn next(&mut self) -> Option<Word> {
        if let Some(id) = self.reset.take() {
            let data = r#"{"kind":"reset"}"#.to_owned();
            return Some(Word { id, event: "reset", data });
        }
        loop {
            if self.ended {
                return None;
            }
            let event = match self.history.pop_front() {
                Some(event) => event,
                None => match self.subscription.events.recv().await {
                    Some(event) => event,
                    None => {
                        self.ended = true;
                        // Who connects again goes on where they are; here, or at another gateway.
                        let closing = self.backplane.is_closed();
                        let data = r#"{"kind":"dropped"}"#.to_owned();
                        return (!closing).then_some(Word { id: None, event: "dropped", data });
                    }
                },
            };
            if self.may_hear(&event)
                && let Some(word) = self.word(&event)
            {
                return Some(word);
            }
        }
    }

    /// Whether a token's client may hear of the correlation id that it listens to. What came before
    /// that was known is told then.
    fn may_hear(&mut self, event: &Arc<Event>) -> bool {
        let own = self.principal.session.as_deref();
        let (Key::Correlation(id), Some(own)) = (&self.key, own) else { return true };
        let not_told = self.not_told;
        let earlier = self.backplane.look(|it| {
            let is_own = it.session_of(id) == Some(own);
            is_own.then(|| not_told.map(|from| it.history(&self.key, Some(from - 1)).events))
        });
        let Some(earlier) = earlier else {
            self.not_told = not_told.or(Some(event.offset));
            return false;
        };
        let Some(earlier) = earlier else { return true };
        self.not_told = None;
        self.history.push_front(Arc::clone(event));
        let earlier = earlier.into_iter().rev().filter(|it| it.offset < event.offset);
        earlier.for_each(|it| self.history.push_front(it));
        false
    }

    /// None: it is not for this client.
    fn word(&self, event: &Event) -> Option<Word> {
        if let Feedback::Document(it) = &event.feedback
            && !self.backplane.may_tell(&self.principal, &it.collection)
        {
            return None;
        }
        let (event_name, data) = event.feedback.shown()?;
        let place = match &self.key {
            Key::Session(it) => self.backplane.look(|window| window.place(event, it)),
            Key::Correlation(_) | Key::Document { .. } => None,
        };
        // Out of the log's order it has no id: who resumes goes by the last one (see `window`).
        let id = place.is_none_or(|it| it <= event.offset).then_some(event.offset);
        Some(Word { id, event: event_name, data })
    }
}

fn events(listener: Listener) -> impl stream::Stream<Item = Result<SseEvent, Infallible>> {
    stream::unfold(listener, async |mut listener| {
        let word = listener.next().await?;
        let event = SseEvent::default().event(word.event).data(word.data);
        let event = match word.id {
            Some(id) => event.id(id.to_string()),
            None => event,
        };
        Some((Ok(event), listener))
    })
}

/// `{"id":"17","event":"document","data":{…}}`, as a WebSocket has no names for its messages.
fn frame(word: &Word) -> String {
    #[derive(serde::Serialize)]
    struct Frame<'a> {
        id: Option<String>,
        event: &'a str,
        data: &'a RawValue,
    }
    let data: &RawValue = serde_json::from_str(&word.data).expect("we have written it");
    let frame = Frame { id: word.id.map(|it| it.to_string()), event: word.event, data };
    serde_json::to_string(&frame).expect("text and JSON make JSON")
}

/// Tells a WebSocket until either side has enough.
async fn talk(mut socket: WebSocket, mut listener: Listener) {
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            biased;

            // 1. The client: it has gone, or says something that is nothing to us. Pings are
            //    answered by the socket itself.
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            // 2. What there is to say.
            word = listener.next() => match word {
                Some(word) => Message::text(frame(&word)),
                None => Message::Close(None),
            },
            // 3. A sign of life, also for the proxies between.
            _ = heartbeat.tick() => Message::Ping(Default::default()),
        };
        let last = matches!(message, Message::Close(_));
        // Who takes nothing for so long has gone, or is too slow.
        let sent = timeout(SEND_MAX, socket.send(message)).await;
        if last || !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(query: &str, header: Option<&str>) -> Result<Asked, u16> {
        let uri: Uri = format!("/v1/feedback?{query}").parse().unwrap();
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert("last-event-id", header.parse().unwrap());
        }
        Asked::read(&uri, &headers).map_err(|it| it.status().as_u16())
    }

    #[test]
    fn one_thing_is_asked_for() {
        let session = || Key::Session("s 1".to_owned());
        let document = || Key::Document { collection: "page".to_owned(), id: "ä/1".to_owned() };
        let cases = [
            ("session_id=s+1", None, Ok((session(), None))),
            ("session_id=s%201&access_token=x", None, Ok((session(), None))),
            ("collection=page&id=%C3%A4%2F1", None, Ok((document(), None))),
            ("session_id=s+1&last_event_id=7", None, Ok((session(), Some(7)))),
            ("session_id=s+1&last_event_id=7", Some("9"), Ok((session(), Some(9)))),
            ("session_id=s+1", Some(""), Ok((session(), None))),
            ("", None, Err(400)),
            ("session_id=", None, Err(400)),
            ("collection=page", None, Err(400)),
            ("session_id=a&correlation_id=b", None, Err(400)),
            ("session_id=a&session_id=a", None, Err(400)),
            ("session=a", None, Err(400)),
            ("session_id=a", Some("x"), Err(400)),
            ("session_id=a", Some("-1"), Err(400)),
            ("session_id=a", Some("99999999999999999999"), Err(400)),
        ];
        for (query, header, expected) in cases {
            let expected = expected.map(|(key, after)| Asked { key, after });
            assert_eq!(asked(query, header), expected, "{query} {header:?}");
        }
    }

    #[test]
    fn pages_of_other_origins_open_no_socket() {
        let allowed = ["https://app.example.com".to_owned()];
        for (origin, expected) in [
            (None, true),
            (Some("https://app.example.com"), true),
            (Some("http://gateway:8081"), true),
            (Some("https://evil.example"), false),
            (Some("null"), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, "gateway:8081".parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            assert_eq!(may_connect(&headers, &allowed), expected, "{origin:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, "https://evil.example".parse().unwrap());
        assert!(may_connect(&headers, &["*".to_owned()]));
    }

    #[test]
    fn a_frame_says_what_an_event_says() {
        let word = Word { id: Some(7), event: "reset", data: r#"{"kind":"reset"}"#.to_owned() };
        assert_eq!(frame(&word), r#"{"id":"7","event":"reset","data":{"kind":"reset"}}"#);
    }
}
