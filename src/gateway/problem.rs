//! What went wrong with a request, as RFC 9457 has it: `application/problem+json`.
//!
//! **Invariant:** nothing of a server behind us is in a problem: its errors go to our log.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};

/// An answer that is none.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem(Box<Parts>);

#[derive(Debug, Clone, PartialEq)]
struct Parts {
    status: StatusCode,
    /// Names the kind of problem, for programs: the last part of `type`.
    kind: &'static str,
    /// One sentence for the person who wrote the request, with the cure.
    detail: String,
    more: Map<String, Value>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self(Box::new(Parts { status, kind, detail, more: Map::new(), headers: Vec::new() }))
    }

    /// Something that this kind of problem says besides.
    #[must_use]
    pub fn with(mut self, name: &str, value: Value) -> Self {
        self.0.more.insert(name.to_owned(), value);
        self
    }

    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// When it is worth to try again.
    #[must_use]
    pub fn retry_after(self, seconds: u64) -> Self {
        self.with_header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    pub fn status(&self) -> StatusCode {
        self.0.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let parts = *self.0;
        let mut body = Map::new();
        body.insert("type".to_owned(), format!("urn:onelog:problem:{}", parts.kind).into());
        let title = parts.status.canonical_reason().unwrap_or("Problem");
        body.insert("title".to_owned(), title.into());
        body.insert("status".to_owned(), parts.status.as_u16().into());
        body.insert("detail".to_owned(), parts.detail.into());
        body.extend(parts.more);
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (parts.status, kind, Value::Object(body).to_string()).into_response();
        response.headers_mut().extend(parts.headers);
        response
    }
}

/// Somebody we know, who may not do this.
pub fn forbidden(detail: &str) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
}

/// No route, or none that this client may know of.
pub fn not_found() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not-found", "there is nothing here")
}

/// A defect of ours; the log has it.
pub fn internal() -> Problem {
    let detail = "something is wrong here; it is in the log";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
}

/// A route, and not with this method.
pub fn wrong_method() -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "not with this method")
}
