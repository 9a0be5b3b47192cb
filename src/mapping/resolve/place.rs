//! Postgres' errors, and our own findings about an entry, as mistakes at their place in the file.

use tokio_postgres::error::{DbError, ErrorPosition, SqlState};

use crate::mapping::{Entry, Place};
use crate::mistake::Mistake;

/// A mistake about the entry as a whole: at the first character of its SQL.
pub(super) fn in_sql(entry: &Entry, message: impl Into<String>) -> Mistake {
    at(&entry.sql_place, message)
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

/// Postgres' refusal of the entry's SQL. `before`: characters of our statement before the SQL.
pub(super) fn refused(entry: &Entry, error: &DbError, before: usize) -> Mistake {
    let message = describe(error);
    let Some(ErrorPosition::Original(position)) = error.position() else {
        return in_sql(entry, message);
    };
    let position = usize::try_from(*position).unwrap_or(usize::MAX);
    let offset = position.saturating_sub(before + 1);
    let (line, column) = place_of(entry, offset);
    Mistake { path: entry.sql_place.path.clone(), line, column, message }
}

/// The place of the nth character of the SQL. A line break in the SQL is one in the file too: a
/// single-line string with `\n` written out is off by that, which we accept.
fn place_of(entry: &Entry, offset: usize) -> (usize, usize) {
    let (mut line, mut column) = (entry.sql_place.line, entry.sql_place.column);
    for character in entry.sql.chars().take(offset) {
        if character == '\n' {
            line += 1;
            column = 1;
        } else {
            column += 1;
        }
    }
    (line, column)
}

fn describe(error: &DbError) -> String {
    let mut message = if *error.code() == SqlState::DUPLICATE_COLUMN {
        format!("{}: give each column its own name with AS", error.message())
    } else if *error.code() == SqlState::INVALID_TABLE_DEFINITION {
        format!("{}: cast it to a type that can be stored, such as jsonb", error.message())
    } else {
        error.message().to_owned()
    };
    if *error.code() == SqlState::INSUFFICIENT_PRIVILEGE {
        message.push_str("; GRANT USAGE ON SCHEMA, or SELECT, to the daemon's role");
    }
    for more in [error.detail(), error.hint()].into_iter().flatten() {
        message.push_str(". ");
        message.push_str(more);
    }
    message
}

/// The candidate that a misspelled name most likely means.
pub(super) fn nearest<'c>(name: &str, candidates: &[&'c str]) -> Option<&'c str> {
    let close = |it: &&&str| distance(name, it) <= 2 + name.len() / 4;
    candidates.iter().filter(close).min_by_key(|it| distance(name, it)).copied()
}

/// Levenshtein's distance, in characters.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (nth, here) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = nth + 1;
        for (at, there) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(here != *there);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested_only_when_it_is_near() {
        let names = ["profile_id", "name"];
        assert_eq!(nearest("profil_id", &names), Some("profile_id"));
        assert_eq!(nearest("nmae", &names), Some("name"));
        assert_eq!(nearest("zzzzzzzzzzzz", &names), None);
    }
}
