//! What each request passes before its route: who asks, how often, and a whole body in time.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::time::Instant;

use crate::config::gateway::GatewayConfig;
use crate::gateway::Gateway;
use crate::gateway::listener::Peer;
use crate::gateway::problem::Problem;

/// Longest that a body may take to arrive: a phone in a basement needs seconds for a megabyte.
const BODY_TIMEOUT: Duration = Duration::from_secs(20);
/// After so many decisions clients that have not been seen for a while are forgotten.
const FORGET_EVERY: u32 = 10_000;

/// Clients are told apart by who they are and where they come from: one stolen or shared key
/// does not shut out everybody, and who has no key at all is limited too.
type Client = (Arc<str>, IpAddr);

#[derive(Debug)]
pub struct Limits {
    requests: DefaultKeyedRateLimiter<Client>,
    decisions: std::sync::atomic::AtomicU32,
    trusted_proxies: Vec<IpAddr>,
}

impl Limits {
    pub fn new(config: &GatewayConfig) -> Self {
        let some = |it: u32| NonZeroU32::new(it).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::per_second(some(config.rate_limit)).allow_burst(some(config.rate_burst));
        Self {
            requests: RateLimiter::keyed(quota),
            decisions: std::sync::atomic::AtomicU32::new(0),
            trusted_proxies: config.trusted_proxies.clone(),
        }
    }

    fn take(&self, client: Client) -> Result<(), Problem> {
        let count = self.decisions.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if count % FORGET_EVERY == FORGET_EVERY - 1 {
            self.requests.retain_recent();
        }
        self.requests.check_key(&client).map_err(|denied| {
            let wait = denied.wait_time_from(DefaultClock::default().now());
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "too-many-requests", "slower, please")
                .retry_after(wait.as_secs() + 1)
        })
    }

    /// Where the request comes from: the peer, or what a proxy of ours says.
    fn address(&self, request: &Request) -> IpAddr {
        let Some(Peer(peer)) = request.extensions().get::<Peer>().copied() else {
            return IpAddr::from([0, 0, 0, 0]);
        };
        let forwarded = request.headers().get_all("x-forwarded-for").iter().next_back();
        let forwarded = forwarded.and_then(|it| it.to_str().ok());
        // The last is the one that our proxy has added; what stands before it anybody may write.
        let last = forwarded.and_then(|it| it.rsplit(',').next()?.trim().parse().ok());
        last.filter(|_| self.trusted_proxies.contains(&peer)).unwrap_or(peer)
    }
}

/// Lets the request through to its route, or answers it; counts both.
pub async fn guard(
    State(gateway): State<Arc<Gateway>>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let response = match enter(&gateway, &mut request).await {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let status = response.status().as_u16().to_string();
    let metrics = &gateway.metrics;
    metrics.gateway_requests_total.with_label_values(&[route, &status]).inc();
    metrics.gateway_request_seconds.observe(started.elapsed().as_secs_f64());
    response
}

async fn enter(gateway: &Gateway, request: &mut Request) -> Result<(), Problem> {
    let address = gateway.limits.address(request);
    let token = feedback_token(request);
    match gateway.doorkeeper.admit(request.headers(), token.as_deref()) {
        Ok(principal) => {
            gateway.limits.take((Arc::clone(&principal.name), address))?;
            request.extensions_mut().insert(principal);
        }
        Err(problem) => {
            gateway.limits.take((Arc::from(""), address))?;
            return Err(problem);
        }
    }
    if request.method() == Method::POST {
        let body = std::mem::take(request.body_mut());
        *request.body_mut() = whole(body, gateway.config.body_bytes_max).await?;
    }
    Ok(())
}

/// Browsers' EventSource can't set headers, so that feedback alone takes a credential in the URL.
fn feedback_token(request: &Request) -> Option<String> {
    if request.uri().path() != "/v1/feedback" {
        return None;
    }
    let pairs = request.uri().query()?.split('&').filter_map(|it| it.split_once('='));
    let (_, value) = pairs.into_iter().find(|(name, _)| *name == "access_token")?;
    let decoded = percent_encoding::percent_decode_str(value).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

/// The whole body, in time: a route never waits for a client that trickles.
async fn whole(body: Body, bytes_max: usize) -> Result<Body, Problem> {
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(Body::from(bytes)),
        Ok(Err(error)) if is_too_large(&error) => Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            format!("a body has at most {bytes_max} bytes"),
        )),
        Ok(Err(_gone)) => {
            Err(Problem::new(StatusCode::BAD_REQUEST, "broken-body", "the body broke off"))
        }
        Err(_late) => Err(Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "too-slow",
            format!("a body arrives within {} s", BODY_TIMEOUT.as_secs()),
        )),
    }
}

fn is_too_large(error: &axum::Error) -> bool {
    let source = std::error::Error::source(error);
    source.is_some_and(|it| it.is::<http_body_util::LengthLimitError>())
}
