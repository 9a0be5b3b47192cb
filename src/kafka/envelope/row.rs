//! Rows and keys as JSON objects.

use super::table::TableShape;
use super::{EnvelopeError, UNAVAILABLE_VALUE};
use crate::change::{Datum, OldRow, Tuple};
use crate::postgres::text::write_json;

/// A row of `shape`, and what else is known of its values.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) shape: &'a TableShape,
    pub(super) tuple: &'a Tuple,
    /// Where an unchanged TOASTed value may be found.
    pub(super) old: Option<&'a OldRow>,
    /// Only the identity's columns were sent; the others read as NULL, whatever is in them.
    pub(super) identity_only: bool,
}

impl<'a> Row<'a> {
    pub(super) fn new(shape: &'a TableShape, tuple: &'a Tuple) -> Self {
        Self { shape, tuple, old: None, identity_only: false }
    }

    pub(super) fn old(shape: &'a TableShape, old: &'a OldRow) -> Self {
        match old {
            OldRow::Full(tuple) => Self::new(shape, tuple),
            OldRow::Identity(tuple) => Self { identity_only: true, ..Self::new(shape, tuple) },
        }
    }

    /// `{"a":1,…}` of all columns.
    pub(super) fn write(self, out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        out.push(b'{');
        for nth in 0..self.shape.names.len() {
            if nth > 0 {
                out.push(b',');
            }
            self.write_column(nth, out)?;
        }
        out.push(b'}');
        Ok(())
    }

    /// `{"id":1}` of the key's columns.
    pub(super) fn write_key(self, out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        out.push(b'{');
        for (at, &nth) in self.shape.key_columns.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            if self.datum(nth) == Datum::UnchangedToast {
                let (relation, column) = self.name_of(nth);
                return Err(EnvelopeError::KeyNotSent { relation, column });
            }
            self.write_column(nth, out)?;
        }
        out.push(b'}');
        Ok(())
    }

    fn write_column(self, nth: usize, out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        out.extend_from_slice(&self.shape.names[nth]);
        match self.datum(nth) {
            Datum::Null => out.extend_from_slice(b"null"),
            Datum::UnchangedToast => write_placeholder(out),
            Datum::Text(text) => {
                let start = out.len();
                if let Err(source) = write_json(&self.shape.kinds[nth], text, out) {
                    let (relation, column) = self.name_of(nth);
                    return Err(EnvelopeError::Value { relation, column, source });
                }
                let is_long = self.shape.value_bytes_max < out.len() - start;
                if is_long && !self.shape.key_columns.contains(&nth) {
                    out.truncate(start);
                    write_placeholder(out);
                }
            }
        }
        Ok(())
    }

    /// Whether a column's value is another than in the old row, though both are the same JSON.
    pub(super) fn differs_unseen(self, old: Row<'_>) -> Result<bool, EnvelopeError> {
        for &nth in &self.shape.ambiguous {
            let in_both = !old.identity_only || self.shape.relation.columns[nth].in_identity;
            let (before, after) = (old.datum(nth), self.datum(nth));
            let sent = before != Datum::UnchangedToast && after != Datum::UnchangedToast;
            if in_both && sent && before != after {
                // Written again: so it is for a value that did change, and no other.
                let (mut one, mut other) = (Vec::new(), Vec::new());
                old.write_column(nth, &mut one)?;
                self.write_column(nth, &mut other)?;
                // Behind the column's name. White space around a value is none of JSON's.
                let start = self.shape.names[nth].len();
                if one[start..].trim_ascii() == other[start..].trim_ascii() {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn datum(self, nth: usize) -> Datum<'a> {
        let in_identity = self.shape.relation.columns[nth].in_identity;
        if self.identity_only && !in_identity {
            return Datum::Null;
        }
        match (self.tuple.get(nth), self.old) {
            (None, _) => Datum::Null,
            (Some(Datum::UnchangedToast), Some(OldRow::Full(old))) => {
                old.get(nth).unwrap_or(Datum::UnchangedToast)
            }
            // An identity's columns are sent whole in the old row.
            (Some(Datum::UnchangedToast), Some(OldRow::Identity(old))) if in_identity => {
                old.get(nth).unwrap_or(Datum::UnchangedToast)
            }
            (Some(datum), _) => datum,
        }
    }

    fn name_of(self, nth: usize) -> (String, String) {
        let relation = &self.shape.relation;
        (relation.qualified_name(), relation.columns[nth].name.clone())
    }
}

fn write_placeholder(out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(UNAVAILABLE_VALUE.as_bytes());
    out.push(b'"');
}
