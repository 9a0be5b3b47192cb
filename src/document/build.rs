//! Rows become documents: the merge rules of the mappings (design.md section 3). Pure.
//!
//! A document is a function of the rows alone, not of the order in which unordered rows happened
//! to arrive. Values are spliced as the text that Postgres wrote, in [`body`].
//!
//! Invariant: every requested key is in exactly one of [`Built::documents`] and
//! [`Built::refused`], so that whoever waits for it hears of it.

pub mod body;

use std::collections::{BTreeMap, HashSet};

use crate::document::queries::Rows;
use crate::document::{Document, DocumentKey};
use crate::mapping::plan::CollectionPlan;

/// Elasticsearch's limit on `_id`.
pub const KEY_BYTES_MAX: usize = 512;

/// What a read made of the keys that were asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Built {
    /// Requested keys in the order asked, then those that came besides (A8), sorted.
    pub documents: Vec<Document>,
    /// For the dead letters.
    pub refused: Vec<Refused>,
    /// Rows beyond the first of a `nest_one_as`: left out, and worth a warning.
    pub rows_left_out: u64,
}

/// A document that can never be written.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub key: DocumentKey,
    pub reason: Refusal,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the key is the empty text, which cannot be an _id; filter such rows out in the SQL")]
    KeyEmpty,
    #[error("the key has {bytes} bytes, and an _id at most {KEY_BYTES_MAX}; choose a shorter key")]
    KeyTooLong { bytes: usize },
    #[error("entry {nth} of the collection gave a row that is no JSON object: {message}")]
    RowNotAnObject { nth: usize, message: String },
}

/// The rows do not have the form that the queries of `queries` ask for: a mistake of our own, or
/// of what stands between us and Postgres. Nothing may be concluded from them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    #[error("{results} results for {entries} entries")]
    ResultsMissing { entries: usize, results: usize },
    #[error("a row of entry {nth} is not a key and a JSON text")]
    NotKeyAndRow { nth: usize },
}

impl BuildError {
    /// Reading again would give the same.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::ResultsMissing { .. } | Self::NotKeyAndRow { .. } => false,
        }
    }
}

/// For one key the rows of each entry, as JSON text, in the order of arrival.
type RowsOfKey<'a> = Vec<Vec<&'a str>>;

/// Merges `rows`, the results of `refresh_queries` or `slice_queries` in entry order, into one
/// document for each key. A requested key that no row has exactly gets a body of None; keys that
/// were not asked for but came are built too.
pub fn documents(
    plan: &CollectionPlan,
    keys: &[DocumentKey],
    rows: &[Rows],
) -> Result<Built, BuildError> {
    let mut by_key = group(plan, rows)?;
    let mut built = Built::default();
    let mut asked = HashSet::with_capacity(keys.len());
    for key in keys {
        if asked.insert(key) {
            let rows = by_key.remove(key.0.as_str()).unwrap_or_default();
            build_one(plan, key.clone(), &rows, &mut built);
        }
    }
    for (key, rows) in by_key {
        build_one(plan, DocumentKey(key.to_owned()), &rows, &mut built);
    }
    Ok(built)
}

fn group<'a>(
    plan: &CollectionPlan,
    rows: &'a [Rows],
) -> Result<BTreeMap<&'a str, RowsOfKey<'a>>, BuildError> {
    let entries = plan.entries.len();
    if rows.len() != entries {
        return Err(BuildError::ResultsMissing { entries, results: rows.len() });
    }
    let mut by_key: BTreeMap<&str, RowsOfKey<'_>> = BTreeMap::new();
    for (nth, rows) in rows.iter().enumerate() {
        for row in rows {
            let [Some(key), Some(json)] = row.as_slice() else {
                return Err(BuildError::NotKeyAndRow { nth });
            };
            by_key.entry(key).or_insert_with(|| vec![Vec::new(); entries])[nth].push(json);
        }
    }
    Ok(by_key)
}

fn build_one(plan: &CollectionPlan, key: DocumentKey, rows: &RowsOfKey<'_>, built: &mut Built) {
    let refusal = match key.0.len() {
        0 => Some(Refusal::KeyEmpty),
        bytes if bytes > KEY_BYTES_MAX => Some(Refusal::KeyTooLong { bytes }),
        _ => None,
    };
    if let Some(reason) = refusal {
        built.refused.push(Refused { key, reason });
        return;
    }
    let mut entries = plan.entries.iter().zip(rows);
    let exists = entries.any(|(entry, rows)| !entry.entry.optional && !rows.is_empty());
    if !exists {
        built.documents.push(Document { key, body: None });
        return;
    }
    match body::merge(plan, rows) {
        Ok(merged) => {
            built.rows_left_out += merged.rows_left_out;
            built.documents.push(Document { key, body: Some(merged.body) });
        }
        Err(reason) => built.refused.push(Refused { key, reason }),
    }
}

/// A plan of entries over `SELECT 1` with the key `id`, for tests of rules that only look at how
/// entries nest.
#[cfg(test)]
pub(crate) fn test_plan(entries: &[(crate::mapping::Nest, bool)]) -> CollectionPlan {
    use crate::mapping::plan::{EntryPlan, OutputColumn};
    use crate::mapping::{CollectionSettings, Entry, Place};

    let place = Place { path: "connectors/a.toml".into(), line: 1, column: 1 };
    let entry = |(nest, optional): &(crate::mapping::Nest, bool)| EntryPlan {
        entry: Entry {
            collection: "c".to_owned(),
            key: "id".to_owned(),
            sql: "SELECT 1".to_owned(),
            nest: nest.clone(),
            optional: *optional,
            sql_place: place.clone(),
            sql_written: String::new(),
            nest_place: None,
            key_place: place.clone(),
        },
        canonical_sql: "SELECT 1".to_owned(),
        ordered: false,
        columns: vec![OutputColumn {
            name: "id".to_owned(),
            type_oid: 20,
            type_name: "bigint".to_owned(),
            value_type: "bigint".to_owned(),
        }],
        tables: Vec::new(),
        paths: Vec::new(),
        poll_reasons: Vec::new(),
    };
    CollectionPlan {
        name: "c".to_owned(),
        key_type: "bigint".to_owned(),
        settings: CollectionSettings::default(),
        entries: entries.iter().map(entry).collect(),
        hash: "0".repeat(12),
        fingerprint: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mapping::Nest;

    fn rows(of: &[(&str, &str)]) -> Rows {
        of.iter().map(|(k, v)| vec![Some((*k).to_owned()), Some((*v).to_owned())]).collect()
    }

    fn keys(of: &[&str]) -> Vec<DocumentKey> {
        of.iter().map(|it| DocumentKey((*it).to_owned())).collect()
    }

    /// `key:body`, `key:-` for a delete and `key!` for a refusal, in order.
    #[track_caller]
    fn check(entries: &[(Nest, bool)], asked: &[&str], results: &[Rows], expected: &[&str]) {
        let built = documents(&test_plan(entries), &keys(asked), results).unwrap();
        let body = |it: &Document| it.body.clone().unwrap_or_else(|| "-".to_owned());
        let mut shown: Vec<String> =
            built.documents.iter().map(|it| format!("{}:{}", it.key, body(it))).collect();
        shown.extend(built.refused.iter().map(|it| format!("{}!", it.key)));
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_document_exists_while_an_entry_that_counts_has_a_row() {
        let entries = [(Nest::Top, false), (Nest::Top, true)];
        let row = r#"{"id":1}"#;
        let other = r#"{"id":1,"b":2}"#;
        check(&entries, &["1"], &[vec![], vec![]], &["1:-"]);
        check(&entries, &["1"], &[vec![], rows(&[("1", other)])], &["1:-"]);
        check(&entries, &["1"], &[rows(&[("1", row)]), vec![]], &[r#"1:{"id":1}"#]);
        let both = [rows(&[("1", row)]), rows(&[("1", other)])];
        check(&entries, &["1"], &both, &[r#"1:{"id":1,"b":2}"#]);
    }

    #[test]
    fn a_requested_text_that_no_row_has_is_deleted_and_others_are_written() {
        let entries = [(Nest::Top, false)];
        let result = [rows(&[("Bob", r#"{"id":"Bob"}"#)])];
        check(&entries, &["bob"], &result, &["bob:-", r#"Bob:{"id":"Bob"}"#]);
        check(&entries, &["Bob", "Bob"], &result, &[r#"Bob:{"id":"Bob"}"#]);
    }

    #[test]
    fn a_key_that_cannot_be_an_id_is_refused() {
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        let fits = "x".repeat(KEY_BYTES_MAX);
        let row = r#"{"id":"x"}"#;
        let result = [rows(&[("", row), (&long, row), (&fits, row)])];
        let expected = [format!("{fits}:{row}"), "!".to_owned(), format!("{long}!")];
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(&[(Nest::Top, false)], &[], &result, &expected);
        check(&[(Nest::Top, false)], &[""], &[vec![]], &["!"]);
    }

    #[test]
    fn a_row_that_is_no_object_refuses_its_key_only() {
        let result = [rows(&[("1", "[1]"), ("2", r#"{"id":2}"#)])];
        check(&[(Nest::Top, false)], &["1", "2"], &result, &[r#"2:{"id":2}"#, "1!"]);
    }

    #[test]
    fn results_of_another_form_are_an_error() {
        let plan = test_plan(&[(Nest::Top, false)]);
        let cases: [(&[Rows], BuildError); 3] = [
            (&[], BuildError::ResultsMissing { entries: 1, results: 0 }),
            (&[vec![vec![None, None]]], BuildError::NotKeyAndRow { nth: 0 }),
            (&[vec![vec![Some("1".to_owned())]]], BuildError::NotKeyAndRow { nth: 0 }),
        ];
        for (results, expected) in cases {
            assert_eq!(documents(&plan, &[], results), Err(expected));
        }
    }

    proptest! {
        #[test]
        fn arrival_does_not_matter_to_unordered_entries(
            values in proptest::collection::vec((0u8..3, 0u8..4), 0..12),
            seed in proptest::collection::vec(any::<u16>(), 12),
        ) {
            let nests = [Nest::Top, Nest::Many("f".to_owned()), Nest::One("g".to_owned())];
            let plan = test_plan(&nests.map(|it| (it, false)));
            let all: Rows = values
                .iter()
                .map(|(k, v)| {
                    vec![Some(k.to_string()), Some(format!(r#"{{"id":{k},"v":{v}}}"#))]
                })
                .collect();
            let mut order: Vec<usize> = (0..all.len()).collect();
            order.sort_by_key(|&at| seed[at]);
            let other: Rows = order.into_iter().map(|at| all[at].clone()).collect();
            let asked = keys(&["0", "1", "2"]);
            prop_assert_eq!(
                documents(&plan, &asked, &[all.clone(), all.clone(), all]).unwrap(),
                documents(&plan, &asked, &[other.clone(), other.clone(), other]).unwrap()
            );
        }
    }
}
