//! The headers of a command's request that say who asks for what again, and what belongs together.

use axum::http::{HeaderMap, HeaderName};

use crate::gateway::commands::body::is_id;

/// Longest `Idempotency-Key`, in characters.
const KEY_LENGTH_MAX: usize = 255;

/// What is wrong with a header. The value is not repeated: it may be a secret put in the wrong
/// place, and is hostile where it is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("the header {0} is there twice; send it once")]
    Twice(&'static str),
    #[error("Correlation-Id is not an id: 1 to 128 of A-Z, a-z, 0-9 and ._:-")]
    CorrelationId,
    #[error("Idempotency-Key is not 1 to 255 visible ASCII characters without spaces")]
    IdempotencyKey,
    #[error("the body is not declared as JSON; send Content-Type: application/json")]
    ContentType,
}

/// What the headers of a request say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    pub correlation_id: Option<String>,
    pub idempotency_key: Option<String>,
    /// As W3C's Trace Context writes it; another is as none.
    pub traceparent: Option<String>,
}

impl Given {
    /// # Errors
    /// A header that is there and is not what it should be.
    pub fn parse(headers: &HeaderMap) -> Result<Self, HeaderError> {
        is_json(headers)?;
        let correlation_id = match single(headers, "correlation-id")? {
            None => None,
            Some(it) => Some(text(it, is_id).ok_or(HeaderError::CorrelationId)?),
        };
        let idempotency_key = match single(headers, "idempotency-key")? {
            None => None,
            Some(it) => Some(text(it, is_key).ok_or(HeaderError::IdempotencyKey)?),
        };
        let traceparent = single(headers, "traceparent").ok().flatten();
        let traceparent = traceparent.and_then(|it| text(it, is_traceparent));
        Ok(Self { correlation_id, idempotency_key, traceparent })
    }
}

/// Only what no form and no simple request of a browser can send across origins: a page that we
/// never allowed would have to ask first (CORS).
fn is_json(headers: &HeaderMap) -> Result<(), HeaderError> {
    let said = single(headers, "content-type")?.ok_or(HeaderError::ContentType)?;
    let said = std::str::from_utf8(said).map_err(|_| HeaderError::ContentType)?;
    let media = said.split(';').next().unwrap_or(said).trim();
    let json = media.eq_ignore_ascii_case("application/json");
    if json { Ok(()) } else { Err(HeaderError::ContentType) }
}

fn single<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<Option<&'h [u8]>, HeaderError> {
    let mut all = headers.get_all(HeaderName::from_static(name)).iter();
    match (all.next(), all.next()) {
        (found, None) => Ok(found.map(|it| it.as_bytes())),
        (_, Some(_)) => Err(HeaderError::Twice(name)),
    }
}

fn text(value: &[u8], fine: impl Fn(&str) -> bool) -> Option<String> {
    std::str::from_utf8(value).ok().filter(|it| fine(it)).map(str::to_owned)
}

fn is_key(text: &str) -> bool {
    (1..=KEY_LENGTH_MAX).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_graphic())
}

/// <https://www.w3.org/TR/trace-context/#traceparent-header>: version 00, and later versions as
/// long as they look the same.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else { return false };
    let hex = |it: &str, length: usize| {
        let digit = |it: u8| matches!(it, b'0'..=b'9' | b'a'..=b'f');
        it.len() == length && it.bytes().all(digit)
    };
    let zero = |it: &str| it.bytes().all(|it| it == b'0');
    hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && !zero(trace)
        && hex(parent, 16)
        && !zero(parent)
        && hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn given(headers: &[(&'static str, &[u8])]) -> Result<Given, HeaderError> {
        let mut all = HeaderMap::new();
        all.append("content-type", HeaderValue::from_static("application/json; charset=utf-8"));
        for (name, value) in headers {
            all.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        Given::parse(&all)
    }

    #[test]
    fn hostile_headers_are_refused() {
        for value in ["", " ", "a b", "a\tb", "é", "a/b", "a\"b", "\u{1f600}"] {
            let found = given(&[("correlation-id", value.as_bytes())]);
            assert_eq!(found, Err(HeaderError::CorrelationId), "{value:?}");
        }
        assert_eq!(given(&[("correlation-id", b"a\xff")]), Err(HeaderError::CorrelationId));
        for value in ["", "a b", "a\tb", "é", &"k".repeat(256)] {
            let found = given(&[("idempotency-key", value.as_bytes())]);
            assert_eq!(found, Err(HeaderError::IdempotencyKey), "{value:?}");
        }
        for name in ["correlation-id", "idempotency-key"] {
            assert_eq!(given(&[(name, b"a"), (name, b"a")]), Err(HeaderError::Twice(name)));
        }
        // What would end a header in Kafka's or HTTP's eyes never becomes a value at all.
        assert!(HeaderValue::from_bytes(b"a\r\nX: y").is_err());
    }

    #[test]
    fn good_headers_are_taken_as_they_are() {
        let key = "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"";
        let found = given(&[("correlation-id", b"c:1"), ("idempotency-key", key.as_bytes())]);
        let found = found.unwrap();
        assert_eq!(found.correlation_id.as_deref(), Some("c:1"));
        assert_eq!(found.idempotency_key.as_deref(), Some(key));
        assert_eq!(given(&[]), Ok(Given::default()));
    }

    #[test]
    fn a_trace_that_is_none_is_ignored() {
        let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        let fine = format!("00-{trace}-{parent}-01");
        let found = given(&[("traceparent", fine.as_bytes())]).unwrap();
        assert_eq!(found.traceparent, Some(fine.clone()));
        for wrong in [
            String::new(),
            "00".to_owned(),
            fine.to_uppercase(),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace}-{parent}-01-more"),
            format!("00-{trace}-{parent}-01\u{e9}"),
        ] {
            let found = given(&[("traceparent", wrong.as_bytes())]).unwrap();
            assert_eq!(found.traceparent, None, "{wrong}");
        }
        let twice: [(&str, &[u8]); 2] =
            [("traceparent", fine.as_bytes()), ("traceparent", fine.as_bytes())];
        assert_eq!(given(&twice), Ok(Given::default()));
    }

    #[test]
    fn a_form_is_no_command() {
        for said in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
            let mut headers = HeaderMap::new();
            headers.insert("content-type", HeaderValue::from_static(said));
            assert_eq!(Given::parse(&headers), Err(HeaderError::ContentType), "{said}");
        }
        assert_eq!(Given::parse(&HeaderMap::new()), Err(HeaderError::ContentType));
    }
}
