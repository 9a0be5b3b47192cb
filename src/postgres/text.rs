//! A column's text, as logical replication sends it, written as the JSON that Postgres would write.
//!
//! The law is `to_jsonb(value)`: numbers stay numbers with all their digits, NaN and infinities
//! are strings, timestamps are ISO 8601, arrays and composites are JSON, bytea is hex, whatever
//! else is a string. Equal means equal as JSON values, not as bytes: `to_jsonb` sorts the keys of
//! objects and normalises `json`, and here both are kept as they stand (`json` also keeps its white
//! space). A type that somebody has given a cast to json of its own is written without that cast,
//! which only Postgres could run. Postgres itself is the oracle in `tests/text.rs`.
//!
//! It relies on the settings that every session of ours pins: DateStyle ISO, TimeZone UTC,
//! IntervalStyle postgres, extra_float_digits 1, bytea_output hex, client_encoding UTF8,
//! quote_all_identifiers off; names of objects (regclass) are relative to pg_catalog. Text that
//! they cannot have produced is an error, never a guess and never a panic; only what stands in a
//! `json` or `jsonb` is taken as JSON without a look at its syntax, as Postgres has checked it.
//!
//! Invariant: what [`write_json`] appends without an error is one JSON value in UTF-8.

use std::sync::Arc;

use super::decode::DecodeError;

mod catalog;
mod composite;
mod nested;
mod scalar;

pub use catalog::{TYPE_ROWS_SQL, TypeError, TypeKinds, TypeRow};
pub use composite::Composite;
pub use scalar::write_string;

/// How a type's text becomes JSON: the categories of Postgres' `to_jsonb`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Bool,
    /// smallint, integer, bigint, real, double precision, numeric. *Not* oid or money.
    Number,
    /// json and jsonb.
    Json,
    /// Everything that Postgres writes as a string of the same text: text, uuid, bytea, date,
    /// time, interval, enums, ranges, inet, …
    Text,
    Timestamp,
    TimestampTz,
    /// hstore has a cast to json, which `to_jsonb` uses: an object of strings and nulls.
    Hstore,
    Array {
        element: Arc<Kind>,
        /// `pg_type.typdelim` of the element: a comma, but for box.
        delimiter: u8,
    },
    /// int2vector and oidvector: arrays that print as numbers between spaces.
    Vector(Arc<Kind>),
    Composite(Arc<Composite>),
    /// Not Postgres' own: the JSON of a kind as a string, for readers that know no other.
    Quoted(Arc<Self>),
    /// Not Postgres' own: a float, or null for what is none of JSON's numbers.
    Finite,
}

impl Kind {
    /// Whether two values that differ may be the same JSON: JSON's null and SQL's, `json` with
    /// white space around it, a float's 0 and -0, arrays that count from another number, and
    /// whatever holds these.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Number
            | Self::Json
            | Self::Array { .. }
            | Self::Composite(_)
            | Self::Quoted(_)
            | Self::Finite => true,
            Self::Bool
            | Self::Text
            | Self::Timestamp
            | Self::TimestampTz
            | Self::Hstore
            | Self::Vector(_) => false,
        }
    }

    /// Whether a composite type is part of it: the one thing whose definition can change with no
    /// word of it in the stream.
    pub fn has_composite(&self) -> bool {
        match self {
            Self::Composite(_) => true,
            Self::Array { element, .. } | Self::Vector(element) | Self::Quoted(element) => {
                element.has_composite()
            }
            Self::Bool
            | Self::Number
            | Self::Json
            | Self::Text
            | Self::Timestamp
            | Self::TimestampTz
            | Self::Hstore
            | Self::Finite => false,
        }
    }
}

/// Appends `text`, the output of a type of `kind`, as one JSON value.
///
/// After an error `out` has an unfinished value at its end, which the caller cuts off or drops.
pub fn write_json(kind: &Kind, text: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    match kind {
        Kind::Number => scalar::write_number(text, out),
        Kind::Text => scalar::write_string(text, out),
        Kind::Bool => scalar::write_bool(text, out),
        Kind::Json => scalar::write_verbatim(text, out),
        Kind::Timestamp => scalar::write_timestamp(text, false, out),
        Kind::TimestampTz => scalar::write_timestamp(text, true, out),
        Kind::Hstore => nested::write_hstore(text, out),
        Kind::Array { element, delimiter } => nested::write_array(element, *delimiter, text, out),
        Kind::Vector(element) => nested::write_vector(element, text, out),
        Kind::Composite(composite) => nested::write_composite(composite, text, out),
        Kind::Quoted(kind) => {
            let mut json = Vec::new();
            write_json(kind, text, &mut json)?;
            scalar::write_string(&json, out)
        }
        Kind::Finite => match text {
            b"NaN" | b"Infinity" | b"-Infinity" => {
                out.extend_from_slice(b"null");
                Ok(())
            }
            _ => scalar::write_number(text, out),
        },
    }
}

#[cfg(test)]
mod tests;
