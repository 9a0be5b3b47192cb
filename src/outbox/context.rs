//! What a transaction says about itself: `pg_logical_emit_message(true, 'onelog.context', json)`.
//!
//! Correlation id and trace become headers of every record of the transaction that follows the
//! message. Records are not held back, as a transaction may have ten million: those before the
//! message go without, so it belongs to the transaction's beginning. A second message changes what
//! it names and leaves the rest; null takes a header away.

use serde_json::value::RawValue;

use super::{HEADERS_MAX, is_reserved, scalar_text, set_header};
use crate::json::Object;
use crate::kafka::envelope::Header;

/// Largest context: each record of the transaction carries it.
const BYTES_MAX: usize = 4096;

/// Why a context is not one. The transaction's records go without it: they are worth more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    #[error("a context has {found} bytes, of at most {BYTES_MAX}")]
    TooLarge { found: usize },
    #[error(
        "a context is a JSON object with correlation_id, traceparent, tracestate or headers: {0}"
    )]
    NotAnObject(String),
    #[error("a context has no field \"{0}\"; put it into \"headers\"")]
    UnknownField(String),
    #[error("a context's headers must not be named \"\", \"id\", \"type\" or \"source-…\"")]
    Reserved,
    #[error("a context's {0} is not a string or number")]
    NotText(String),
    #[error("a context brings more than {HEADERS_MAX} headers")]
    TooManyHeaders,
    #[error("a context must be transactional: pg_logical_emit_message(true, 'onelog.context', …)")]
    NotTransactional,
}

/// Changes the headers of the transaction by its message; on an error not at all.
///
/// # Errors
/// If it is no context.
pub fn apply(content: &[u8], headers: &mut Vec<Header>) -> Result<(), ContextError> {
    if BYTES_MAX < content.len() {
        return Err(ContextError::TooLarge { found: content.len() });
    }
    let parse = |error: serde_json::Error| ContextError::NotAnObject(error.to_string());
    let object: Object<'_> = serde_json::from_slice(content).map_err(parse)?;
    let mut changes = Vec::new();
    for (name, value) in &object.0 {
        match &**name {
            "correlation_id" | "correlation-id" => changes.push(change("correlation-id", value)?),
            "traceparent" | "tracestate" => changes.push(change(name, value)?),
            "headers" if value.get() == "null" => {}
            "headers" => {
                let more: Object<'_> = serde_json::from_str(value.get()).map_err(parse)?;
                for (name, value) in &more.0 {
                    if name.is_empty() || is_reserved(name) {
                        return Err(ContextError::Reserved);
                    }
                    changes.push(change(name, value)?);
                }
            }
            _ => return Err(ContextError::UnknownField(name.clone().into_owned())),
        }
    }
    let mut changed = headers.clone();
    for (name, value) in changes {
        match value {
            Some(value) => set_header(&mut changed, &name, value),
            None => changed.retain(|it| it.0 != name),
        }
    }
    if HEADERS_MAX < changed.len() {
        return Err(ContextError::TooManyHeaders);
    }
    *headers = changed;
    Ok(())
}

/// A header with its new value; None: it is taken away.
fn change(name: &str, value: &RawValue) -> Result<(String, Option<String>), ContextError> {
    let text = match value.get().as_bytes().first() {
        Some(b'{' | b'[') => return Err(ContextError::NotText(name.to_owned())),
        _ => scalar_text(value).map_err(|_| ContextError::NotText(name.to_owned()))?,
    };
    Ok((name.to_owned(), text.map(std::borrow::Cow::into_owned)))
}
