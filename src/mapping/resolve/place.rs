//! Postgres' errors, and our own findings about an entry, as mistakes at their place in the file.

use crate::mapping::{Entry, Place};
use crate::mistake::{Mistake, quoted};

/// A mistake about the entry as a whole: at the first character of its SQL.
pub(super) fn in_sql(entry: &Entry, message: impl Into<String>) -> Mistake {
    at(&entry.sql_place, message)
}

/// A mistake at the character `nth` of the entry's SQL, from 0.
pub(super) fn at_character(entry: &Entry, nth: usize, message: impl Into<String>) -> Mistake {
    at(&place_in_sql(entry, nth), message)
}

/// A mistake about the entry's key.
pub(super) fn in_key(entry: &Entry, message: impl Into<String>) -> Mistake {
    at(&entry.key_place, message)
}

fn at(place: &Place, message: impl Into<String>) -> Mistake {
    Mistake {
        path: place.path.clone(),
        line: place.line,
        column: place.column,
        message: message.into(),
    }
}

/// Where the character `nth` of the SQL, from 0, stands in the file.
pub fn place_in_sql(entry: &Entry, nth: usize) -> Place {
    let first = (entry.sql_place.line, entry.sql_place.column);
    let (line, column) = quoted::place_of(&entry.sql_written, first, nth);
    Place { path: entry.sql_place.path.clone(), line, column }
}
