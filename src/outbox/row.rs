//! An event from an outbox table's row.

use std::borrow::Cow;

use super::message::parsed;
use super::timestamp::epoch_ms;
use super::{Event, Refusal, add_headers};
use crate::change::{Datum, Tuple};
use crate::config::OutboxConfig;
use crate::relation::Relation;

/// `pg_type.oid` of bytea, whose text is not what it holds.
const BYTEA: u32 = 17;

/// Where the columns of an outbox table are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxTable {
    id: usize,
    aggregate_type: Option<usize>,
    aggregate_id: usize,
    kind: Option<usize>,
    payload: usize,
    payload_is_bytea: bool,
    headers: Option<usize>,
    timestamp: Option<usize>,
    partition: Option<usize>,
    /// With the header's name.
    more: Vec<(usize, String)>,
}

impl OutboxTable {
    /// Finds the columns that the config names.
    ///
    /// # Errors
    /// If one is not there. Then no row of the table is an event.
    pub fn new(relation: &Relation, config: &OutboxConfig) -> Result<Self, Refusal> {
        let find = |names: &[String]| {
            names.iter().find_map(|name| relation.columns.iter().position(|it| it.name == *name))
        };
        let missing =
            |names: &[String], key| Refusal::MissingColumn { column: names.join(" or "), key };
        let needed = |names: &[String], key| find(names).ok_or_else(|| missing(names, key));
        // What was named must be there; what merely has a default need not.
        let wanted = |(names, named): (&[String], bool), key| match find(names) {
            None if named => Err(missing(names, key)),
            found => Ok(found),
        };
        let columns = &config.columns;
        let type_named = columns.aggregate_type.len() == 1 || config.topic.needs_aggregate_type();
        let payload = needed(&columns.payload, "payload_column")?;
        let more = config.header_columns.iter().map(|(column, header)| {
            let nth = needed(std::slice::from_ref(column), "header_columns")?;
            Ok((nth, header.clone()))
        });
        let optional = |name: &Option<String>, key| match name {
            None => Ok(None),
            Some(name) => needed(std::slice::from_ref(name), key).map(Some),
        };
        Ok(Self {
            id: needed(&columns.id, "id_column")?,
            aggregate_type: wanted((&columns.aggregate_type, type_named), "aggregatetype_column")?,
            aggregate_id: needed(&columns.aggregate_id, "aggregateid_column")?,
            kind: wanted((&columns.kind, columns.kind.len() == 1), "type_column")?,
            payload,
            payload_is_bytea: relation.columns[payload].type_oid == BYTEA,
            headers: wanted((&columns.headers, columns.headers_named), "headers_column")?,
            timestamp: optional(&columns.timestamp, "timestamp_column")?,
            partition: optional(&columns.partition, "partition_column")?,
            more: more.collect::<Result<_, Refusal>>()?,
        })
    }

    /// The event of a row that was inserted.
    ///
    /// # Errors
    /// If the row is none.
    pub fn event<'a>(&self, row: &'a Tuple) -> Result<Event<'a>, Refusal> {
        let mut headers = Vec::new();
        if let Some(json) = text(row, self.headers, "headers")? {
            add_headers(&json, "headers", &mut headers)?;
        }
        for (nth, header) in &self.more {
            if let Some(value) = text(row, Some(*nth), header)? {
                super::set_header(&mut headers, header, value.into_owned());
            }
        }
        let id = text(row, Some(self.id), "id")?.ok_or(Refusal::Missing { field: "id" })?;
        let number = |it: &str| it.parse().ok().filter(|it| 0 <= *it);
        Ok(Event {
            id,
            aggregate_type: text(row, self.aggregate_type, "aggregatetype")?,
            aggregate_id: text(row, Some(self.aggregate_id), "aggregateid")?,
            kind: text(row, self.kind, "type")?,
            payload: self.payload(row)?,
            headers,
            timestamp_ms: parsed(
                "timestamp",
                "a time, or milliseconds since 1970",
                text(row, self.timestamp, "timestamp")?,
                epoch_ms,
            )?,
            partition: parsed(
                "partition",
                "a partition's number",
                text(row, self.partition, "partition")?,
                number,
            )?,
        })
    }

    fn payload<'a>(&self, row: &'a Tuple) -> Result<Option<Cow<'a, [u8]>>, Refusal> {
        let Some(Datum::Text(bytes)) = row.get(self.payload) else { return Ok(None) };
        if !self.payload_is_bytea {
            return Ok(Some(Cow::Borrowed(bytes)));
        }
        let malformed =
            || Refusal::Malformed { field: "payload".to_owned(), expected: "bytea in hex" };
        let hex = bytes.strip_prefix(b"\\x").ok_or_else(malformed)?;
        let digit = |it: u8| char::from(it).to_digit(16).and_then(|it| u8::try_from(it).ok());
        let pair = |it: &[u8]| match it {
            [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
            _ => None,
        };
        let decoded: Option<Vec<u8>> = hex.chunks(2).map(pair).collect();
        Ok(Some(Cow::Owned(decoded.ok_or_else(malformed)?)))
    }
}

fn text<'a>(
    row: &'a Tuple,
    nth: Option<usize>,
    field: &str,
) -> Result<Option<Cow<'a, str>>, Refusal> {
    match nth.and_then(|nth| row.get(nth)) {
        // An inserted row has all its values; one that was not sent would be no event's.
        None | Some(Datum::Null | Datum::UnchangedToast) => Ok(None),
        Some(Datum::Text(bytes)) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Some(Cow::Borrowed(text))),
            Err(_) => Err(Refusal::Malformed { field: field.to_owned(), expected: "UTF-8" }),
        },
    }
}
