//! A key path as the simulation runs it: the text of the very query that Postgres would get, read
//! and followed.

use onelog::mapping::plan::Path;

use super::evaluate::{Row, State, Value};
use super::query::{COLUMNS, TABLES};

/// A column of the changed row (0) or of the nth hop.
type At = (usize, usize);

#[derive(Debug)]
pub enum Start {
    InRow(usize),
    Lookup {
        /// The table of each hop, and which of its columns equal which columns before it.
        hops: Vec<(usize, Vec<(usize, At)>)>,
        key: Key,
    },
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
        let nth = |it: &str| COLUMNS.iter().position(|column| *column == it).expect("a column");
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
            let table = table.split('"').nth(3).expect("a table");
            let table = TABLES.iter().position(|it| *it == table).expect("one of ours");
            let pair = |text: &str| {
                let (theirs, ours) = text.split_once(" = ").expect("an equality");
                (at(theirs).1, at(ours))
            };
            (table, on.split(" AND ").map(pair).collect())
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
                for (table, pairs) in hops {
                    let next = |chain: Vec<Row>| {
                        let joins = |row: &&Row| {
                            pairs.iter().all(|(theirs, (at, ours))| {
                                row[*theirs].is_some() && row[*theirs] == chain[*at][*ours]
                            })
                        };
                        let rows = state[*table].iter().filter(joins);
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
