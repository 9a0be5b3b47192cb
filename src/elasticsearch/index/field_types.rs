//! SQL result types -> Elasticsearch field mappings (pure).
//!
//! Numbers and dates are derived with `ignore_malformed`: Postgres has NaN, infinities and BC
//! dates, which Elasticsearch would refuse together with the whole document.

use serde_json::{Map, Value, json};

use crate::mapping::Nest;
use crate::mapping::plan::{CollectionPlan, OutputColumn};

/// A term may have 32,766 bytes, and a character of UTF-8 up to 4.
const KEYWORD_CHARACTERS_MAX: u32 = 8_191;
/// As Elasticsearch's own dynamic mapping of strings.
const SUB_FIELD_CHARACTERS_MAX: u32 = 256;

/// The field mapping of a column; None: left to what the values turn out to be.
fn field_type(column: &OutputColumn) -> Option<Value> {
    // Extensions' names may be qualified.
    let bare = column.value_type.rsplit('.').next().unwrap_or(&column.value_type);
    let number = |kind: &str| Some(json!({ "type": kind, "ignore_malformed": true }));
    match bare {
        "text" | "character varying" | "citext" | "xml" => Some(text()),
        "smallint" => number("short"),
        "integer" => number("integer"),
        "bigint" | "oid" => number("long"),
        "numeric" | "double precision" => number("double"),
        "real" => number("float"),
        "boolean" => Some(json!({ "type": "boolean" })),
        "date" | "timestamp with time zone" | "timestamp without time zone" => Some(json!({
            "type": "date",
            "format": "strict_date_optional_time||epoch_millis",
            "ignore_malformed": true,
        })),
        // As text in JSON: `happy`, `[1,5)`.
        "enum" | "range" => Some(keyword()),
        "json" | "jsonb" | "record" | "composite" => None,
        // An extension's type may be text in JSON or an object. Only such a name is qualified.
        _ if column.value_type.contains('.') => None,
        _ => Some(keyword()),
    }
}

/// Takes every scalar.
pub(in crate::elasticsearch) fn text() -> Value {
    let sub_field = json!({ "type": "keyword", "ignore_above": SUB_FIELD_CHARACTERS_MAX });
    json!({ "type": "text", "fields": { "keyword": sub_field } })
}

fn keyword() -> Value {
    json!({ "type": "keyword", "ignore_above": KEYWORD_CHARACTERS_MAX })
}

/// Whether only the values tell what a type is: an extension's.
fn is_user_type(column: &OutputColumn) -> bool {
    column.value_type.contains('.') && field_type(column).is_none()
}

/// The `mappings` of a collection's index, without `_meta`.
///
/// When two entries yield the same field, the later one's type wins, as its value does.
pub fn mappings(plan: &CollectionPlan) -> Map<String, Value> {
    let mut properties = Map::new();
    let mut templates = Vec::new();
    for planned in &plan.entries {
        let columns: Vec<&OutputColumn> = match &planned.entry.nest {
            Nest::Top => planned.columns.iter().collect(),
            // The key column is left out of nested objects.
            Nest::Many(_) | Nest::One(_) => {
                planned.columns.iter().filter(|it| it.name != planned.entry.key).collect()
            }
        };
        let types = columns.iter().filter_map(|it| Some((it.name.clone(), field_type(it)?)));
        let prefix = match &planned.entry.nest {
            Nest::Top => {
                // What an earlier entry said of the same field is void, even if now unknown.
                for column in &columns {
                    properties.remove(&column.name);
                }
                properties.extend(types);
                String::new()
            }
            Nest::Many(field) | Nest::One(field) => {
                let inner: Map<String, Value> = types.collect();
                properties.insert(field.clone(), json!({ "properties": inner }));
                format!("{field}.")
            }
        };
        let user_types = columns.iter().filter(|it| is_user_type(it));
        templates.extend(user_types.map(|it| string_template(&format!("{prefix}{}", it.name))));
    }
    for (field, written) in &plan.settings.field_types {
        let written = serde_json::from_str(written).expect("mapping/file.rs wrote this JSON");
        put(&mut properties, field, written);
    }
    templates.extend(dynamic_templates());
    let mut mappings = Map::new();
    // A string in a JSON column that looks like a date would bind the field to dates.
    mappings.insert("date_detection".to_owned(), json!(false));
    mappings.insert("dynamic_templates".to_owned(), Value::Array(templates));
    mappings.insert("properties".to_owned(), Value::Object(properties));
    mappings
}

/// A column of an extension's type is a keyword if its values are strings.
fn string_template(path: &str) -> Value {
    json!({ path: { "match_mapping_type": "string", "path_match": path, "mapping": keyword() } })
}

/// For the inside of JSON columns: what does not fit the field's first value is not searchable,
/// rather than refused.
fn dynamic_templates() -> [Value; 4] {
    let template = |kind: &str, mapping: Value| json!({ format!("onelog_{kind}"): { "match_mapping_type": kind, "mapping": mapping } });
    [
        template("long", dynamic_number("long")),
        template("double", dynamic_number("double")),
        template("string", text()),
        // A boolean field takes nothing but booleans, and a keyword finds `true` as well.
        template("boolean", keyword()),
    ]
}

/// A number within a JSON column.
pub(in crate::elasticsearch) fn dynamic_number(kind: &str) -> Value {
    json!({ "type": kind, "ignore_malformed": true })
}

/// Puts a field's mapping where its dotted name says: `a.b` is b within a, if a is an object here.
fn put(properties: &mut Map<String, Value>, field: &str, mapping: Value) {
    let inner = field.split_once('.').and_then(|(first, rest)| {
        let inner = properties.get_mut(first)?.get_mut("properties")?.as_object_mut()?;
        Some((inner, rest))
    });
    match inner {
        Some((inner, rest)) => put(inner, rest, mapping),
        None => drop(properties.insert(field.to_owned(), mapping)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_result_type_has_its_field_type() {
        let cases = [
            ("text", "text"),
            ("character varying", "text"),
            ("public.citext", "text"),
            ("smallint", "short"),
            ("bigint", "long"),
            ("numeric", "double"),
            ("real", "float"),
            ("boolean", "boolean"),
            ("date", "date"),
            ("timestamp without time zone", "date"),
            ("uuid", "keyword"),
            ("inet", "keyword"),
            ("interval", "keyword"),
            ("bytea", "keyword"),
            ("enum", "keyword"),
            ("range", "keyword"),
            ("jsonb", "unmapped"),
            ("composite", "unmapped"),
            ("public.hstore", "unmapped"),
        ];
        for (value_type, expected) in cases {
            let (name, type_name) = ("c".to_owned(), "public.mine".to_owned());
            let value_type = value_type.to_owned();
            let column = OutputColumn { name, type_oid: 20_000, type_name, value_type };
            let found = field_type(&column);
            let found = found.as_ref().map_or("unmapped", |it| it["type"].as_str().unwrap());
            assert_eq!(found, expected, "{}", column.value_type);
        }
    }

    #[test]
    fn an_override_reaches_into_nested_objects() {
        let inner = json!({ "n": { "type": "integer" } });
        let mut properties = Map::new();
        properties.insert("sites".to_owned(), json!({ "properties": inner }));
        put(&mut properties, "sites.n", json!({ "type": "keyword" }));
        put(&mut properties, "other.x", json!({ "type": "ip" }));
        let expected = json!({
            "sites": { "properties": { "n": { "type": "keyword" } } },
            "other.x": { "type": "ip" },
        });
        assert_eq!(Value::Object(properties), expected);
    }
}
