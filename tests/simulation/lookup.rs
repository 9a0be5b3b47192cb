//! A key path as the simulation runs it: the text of the very query that Postgres would get, read
//! and followed.

use onelog::mapping::plan::Path;

use super::evaluate::{Row, State, Value};
use super::query::{COLUMNS, TABLES};

/// A column of the changed row (0) or of the nth hop.
type At = (usize, usize);

/// One of these, each of several equalities.
pub type Arms = Vec<Vec<(Term, Term)>>;

#[derive(Debug)]
pub enum Term {
    Column(At),
    /// `coalesce(…, 1)`.
    Or1(At),
    /// `… + 1`.
    Next(At),
}

#[derive(Debug)]
pub enum Start {
    InRow(usize),
    Lookup {
        /// The table of each hop, and what must hold of it and the rows before it.
        hops: Vec<(Rows, Vec<Arms>)>,
        key: Key,
    },
}

#[derive(Debug)]
pub enum Rows {
    Table(usize),
    Values(Vec<Row>),
}

#[derive(Debug)]
pub enum Key {
    /// The first that is not NULL.
    Coalesce(Vec<At>),
    /// `CASE WHEN c1 IS NULL THEN c2 ELSE c3 END`.
    Case(At, At, At),
}

impl Start {
    pub fn new(path: &Path) -> Self {
        let nth = |it: &str| {
            let of_values = |it: &str| it.strip_prefix("column")?.parse::<usize>().ok();
            let of_table = || COLUMNS.iter().position(|column| *column == it);
            of_values(it).map(|it| it - 1).or_else(of_table).expect("a column")
        };
        let lookup = match path {
            Path::InRow { column } => return Self::InRow(nth(column)),
            Path::Lookup(lookup) => lookup,
        };
        let at = |text: &str| -> At {
            let (range, column) = text.trim().split_once('.').expect(text);
            match range.strip_prefix('h') {
                Some(hop) => (hop.parse().expect("a hop"), nth(column.trim_matches('"'))),
                None => {
                    assert_eq!(range, "changed", "{text}");
                    let parameter: usize = column[1..].parse().expect("a parameter");
                    (0, nth(&lookup.columns[parameter - 1]))
                }
            }
        };
        let (key, rest) = lookup.sql.split_once("::pg_catalog.text AS key FROM ").expect("a key");
        let (from, _) = rest.rsplit_once(" WHERE ").expect("a WHERE");
        let hop = |text: &str| {
            let (table, on) = text.split_once(" ON ").expect("a condition");
            let rows = rows(table);
            let term = |text: &str| {
                let text = text.trim_matches(['(', ')']).to_lowercase();
                match (text.strip_prefix("coalesce("), text.strip_suffix(" + 1")) {
                    (Some(one), _) => Term::Or1(at(one.strip_suffix(", 1").expect("a 1"))),
                    (_, Some(one)) => Term::Next(at(one)),
                    _ => Term::Column(at(&text)),
                }
            };
            let pair = |text: &str| {
                let (theirs, ours) = text.split_once(" = ").expect("an equality");
                (term(theirs), term(ours))
            };
            let arms = |text: &str| {
                let arm = |text: &str| text.split(" AND ").map(pair).collect();
                match text.contains(" OR ") {
                    true => text[1..text.len() - 1].split(" OR ").map(arm).collect(),
                    false => vec![vec![pair(text)]],
                }
            };
            (rows, conjuncts(on).into_iter().map(arms).collect())
        };
        let hops = from.split(" JOIN ").skip(1).map(hop).collect();
        let key = key.strip_prefix("SELECT DISTINCT ").expect("a SELECT");
        let key = match key.strip_prefix('(').and_then(|it| it.strip_suffix(')')) {
            None => Key::Coalesce(vec![at(key)]),
            Some(key) => match key.strip_prefix("CASE WHEN ") {
                Some(rest) => {
                    let (test, rest) = rest.split_once(" IS NULL THEN ").expect("a test");
                    let (one, rest) = rest.split_once(" ELSE ").expect("a value");
                    Key::Case(at(test), at(one), at(rest.trim_end_matches(" END")))
                }
                None => {
                    let list = key.to_lowercase();
                    let list = list.strip_prefix("coalesce(").and_then(|it| it.strip_suffix(')'));
                    Key::Coalesce(list.expect(key).split(',').map(at).collect())
                }
            },
        };
        Self::Lookup { hops, key }
    }

    /// The keys that an image finds in a state.
    pub fn keys(&self, image: &Row, state: &State) -> impl Iterator<Item = i16> {
        let keys: Vec<Value> = match self {
            Self::InRow(column) => vec![image[*column]],
            Self::Lookup { hops, key } => {
                let mut chains = vec![vec![*image]];
                for (table, arms) in hops {
                    let next = |chain: Vec<Row>| {
                        let equal = |row: &Row, (theirs, ours): &(Term, Term)| {
                            let rows = [&chain[..], &[*row]].concat();
                            theirs.of(&rows).is_some() && theirs.of(&rows) == ours.of(&rows)
                        };
                        let joins = |row: &&Row| {
                            let arm = |arm: &Vec<_>| arm.iter().all(|it| equal(row, it));
                            arms.iter().all(|it| it.iter().any(arm))
                        };
                        let rows: &[Row] = match table {
                            Rows::Table(nth) => &state[*nth],
                            Rows::Values(rows) => rows,
                        };
                        let rows = rows.iter().filter(joins);
                        rows.map(|row| [&chain[..], &[*row]].concat()).collect::<Vec<_>>()
                    };
                    chains = chains.into_iter().flat_map(next).collect();
                }
                chains.iter().map(|it| key.of(it)).collect()
            }
        };
        keys.into_iter().flatten()
    }
}

/// What a hop joins with.
fn rows(text: &str) -> Rows {
    let Some(values) = text.strip_prefix("(VALUES (") else {
        let table = text.split('"').nth(3).expect("a table");
        return Rows::Table(TABLES.iter().position(|it| *it == table).expect("one of ours"));
    };
    let (values, _) = values.split_once("))").expect("an end");
    let row = |text: &str| {
        let values: Vec<Value> = text.split(", ").map(|it| it.parse().ok()).collect();
        values.try_into().expect("three columns")
    };
    Rows::Values(values.split("), (").map(row).collect())
}

/// The parts between the ANDs that are in no parentheses.
fn conjuncts(text: &str) -> Vec<&str> {
    let (mut found, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            ' ' if depth == 0 && text[at..].starts_with(" AND ") => {
                found.push(&text[start..at]);
                start = at + " AND ".len();
            }
            _ => {}
        }
    }
    found.push(&text[start..]);
    found
}

impl Term {
    fn of(&self, chain: &[Row]) -> Value {
        let value = |(at, column): &At| chain[*at][*column];
        match self {
            Self::Column(at) => value(at),
            Self::Or1(at) => value(at).or(Some(1)),
            Self::Next(at) => value(at).map(|it| it + 1),
        }
    }
}

impl Key {
    fn of(&self, chain: &[Row]) -> Value {
        let value = |(at, column): &At| chain[*at][*column];
        match self {
            Self::Coalesce(all) => all.iter().find_map(value),
            Self::Case(test, one, other) => {
                if value(test).is_none() {
                    value(one)
                } else {
                    value(other)
                }
            }
        }
    }
}
