//! Documents whose JSON does not fit the index's field types: what can be mended by naming a wider
//! type, and what a person has to decide (pure).
//!
//! Only the inside of JSON columns has types that its first value decides. Elasticsearch takes what
//! differs later, as the templates of such fields say (`index/field_types.rs`). OpenSearch does too,
//! but not while a field is new: one document with `[1.5, 2]` or `[1, "x"]` in it is refused, as each
//! value brings a type of its own. Such a field is given the wider type beforehand, and the document
//! is written again.

use serde_json::{Value, json};

use crate::elasticsearch::index::field_types;

/// A field that one document brings with two types.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Torn {
    /// With dots: `extra.a`.
    pub field: String,
    /// Both types are numbers.
    numeric: bool,
}

/// The field that a refusal speaks of, if a wider type mends it. OpenSearch says
/// `mapper [extra.a] cannot be changed from type [long] to [text]`.
pub fn torn(reason: &str) -> Option<Torn> {
    let (_, rest) = reason.split_once("mapper [")?;
    let (field, rest) = rest.split_once("] cannot be changed from type [")?;
    let (from, rest) = rest.split_once("] to [")?;
    let (to, _) = rest.split_once(']')?;
    let is_object = |it: &str| it == "ObjectMapper" || it == "object";
    if is_object(from) || is_object(to) {
        return None;
    }
    let is_number = |it: &str| ["long", "double", "float"].contains(&it);
    Some(Torn { field: field.to_owned(), numeric: is_number(from) && is_number(to) })
}

impl Torn {
    /// The change of the index's mapping that takes every value which is no object.
    pub fn wider(&self) -> Value {
        let wider = match self.numeric {
            true => field_types::dynamic_number("double"),
            false => field_types::text(),
        };
        json!({ "properties": { self.field.as_str(): wider } })
    }
}

const CURE: &str = "if this is within a JSON column, its values don't fit each other as fields: \
    `fields = { COLUMN = { type = \"object\", enabled = false } }` under [collection.NAME] in the \
    mapping file takes any JSON, kept but not searched; for objects only, \"flattened\" (on \
    OpenSearch \"flat_object\") keeps it searchable by exact values";

/// The reason of a refusal, and if it is about field types what mends it.
pub fn with_cure(reason: String) -> String {
    let kinds = ["document_parsing_exception", "mapper_parsing_exception"];
    let others = ["Limit of total fields", "mapper [", "mapping [", "object field "];
    let about_types = kinds.iter().any(|it| reason.starts_with(it))
        || reason.starts_with("illegal_argument_exception")
            && others.iter().any(|it| reason.contains(it));
    if about_types { format!("{reason}; {CURE}") } else { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_two_types_gets_one_that_takes_both() {
        let said = |from, to| {
            format!(
                "illegal_argument_exception: mapper [extra.a] cannot be changed from type [{from}] to [{to}]"
            )
        };
        let cases = [
            ("long", "double", Some("double")),
            ("text", "long", Some("text")),
            ("keyword", "double", Some("text")),
            ("long", "ObjectMapper", None),
            ("ObjectMapper", "text", None),
        ];
        for (from, to, expected) in cases {
            let wider = torn(&said(from, to)).map(|it| it.wider());
            let found = wider.as_ref().map(|it| it["properties"]["extra.a"]["type"].as_str());
            assert_eq!(found.flatten(), expected, "{from} {to}");
        }
        assert_eq!(torn("mapper_parsing_exception: failed to parse field [a]"), None);
    }

    #[test]
    fn only_a_refusal_of_types_has_the_cure() {
        for (reason, cured) in [
            ("document_parsing_exception: object mapping for [a]", true),
            ("illegal_argument_exception: Limit of total fields [1000] has been exceeded", true),
            ("illegal_argument_exception: something else", false),
            ("version_conflict_engine_exception: x", false),
        ] {
            let said = with_cure(reason.to_owned());
            assert_eq!(said.contains("enabled = false"), cured, "{reason}");
        }
    }
}
