//! An event without a table: `pg_logical_emit_message(true, 'onelog.outbox', json)`.
//!
//! The fields have the names of the table's columns. A name that is not known is refused: it would
//! be a field that its writer believes to be published.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::timestamp::epoch_ms;
use super::{Event, Refusal, add_headers, scalar_text};
use crate::config::OutboxConfig;
use crate::json::Object;
use crate::lsn::Lsn;

/// The event of a message. Without an `id` of its own it is named by the message's place in the
/// log, which is the same when it is published again.
///
/// # Errors
/// If it is not one.
pub fn parse<'a>(content: &'a [u8], lsn: Lsn, config: &OutboxConfig) -> Result<Event<'a>, Refusal> {
    let object: Object<'a> =
        serde_json::from_slice(content).map_err(|error| Refusal::NotAnEvent(error.to_string()))?;
    let mut event = Event {
        id: Cow::Owned(lsn.to_string()),
        aggregate_type: None,
        aggregate_id: None,
        kind: None,
        payload: None,
        headers: Vec::new(),
        timestamp_ms: None,
        partition: None,
    };
    for (name, value) in object.0 {
        let text = || scalar_text(value);
        match &*name {
            "id" => event.id = text()?.unwrap_or(event.id),
            "aggregatetype" | "aggregate_type" => event.aggregate_type = text()?,
            "aggregateid" | "aggregate_id" => event.aggregate_id = text()?,
            "type" | "event_type" => event.kind = text()?,
            "payload" => event.payload = payload(value),
            "headers" if value.get() == "null" => {}
            "headers" => add_headers(value.get(), "headers", &mut event.headers)?,
            "timestamp" => {
                let expected = "a time in UTC, or milliseconds since 1970";
                event.timestamp_ms = parsed("timestamp", expected, text()?, epoch_ms)?;
            }
            "partition" => {
                let number = |it: &str| it.parse().ok().filter(|it| 0 <= *it);
                event.partition = parsed("partition", "a partition's number", text()?, number)?;
            }
            _ => match config.header_columns.iter().find(|it| it.0 == *name) {
                Some((_, header)) => {
                    event.headers.extend(text()?.map(|it| (header.clone(), it.into_owned())));
                }
                None => return Err(Refusal::UnknownField(name.into_owned())),
            },
        }
    }
    Ok(event)
}

/// As it was written, digits and all.
fn payload(value: &RawValue) -> Option<Cow<'_, [u8]>> {
    Some(value.get()).filter(|it| *it != "null").map(|it| Cow::Borrowed(it.as_bytes()))
}

/// A field that must have a form if it is there.
pub(super) fn parsed<T>(
    field: &'static str,
    expected: &'static str,
    text: Option<Cow<'_, str>>,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let malformed = || Refusal::Malformed { field: field.to_owned(), expected };
    parse(&text).map(Some).ok_or_else(malformed)
}
