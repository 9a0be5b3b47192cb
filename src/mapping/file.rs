//! One mapping file's text -> [`Mapping`], or every mistake in it.
//!
//! Knows nothing of other files nor of Postgres: whether the SQL runs is `resolve`'s to say, which
//! is why every entry keeps the exact place of its SQL and key.

use std::path::Path;

use toml::Value;

use crate::mapping::{CollectionSettings, Entry, Mapping, Nest, Place};
use crate::mistake::Mistakes;
use crate::mistake::written::{Source, Table, Written};

/// An index name may have 255 bytes: 64 are the prefix's, 13 the hash's, and the rest is slack.
const COLLECTION_NAME_MAX: usize = 150;

/// What the document's place needs, and the index settings that are not the writer's to choose.
const SETTINGS_OF_OURS: [&str; 2] = ["gc_deletes", "version"];

/// Checks a mapping file's text. An empty file is fine.
///
/// # Errors
/// All mistakes of the file, in its order.
pub fn parse(path: &Path, text: &str) -> Result<Mapping, Mistakes> {
    let source = Source::new(path, text, None);
    let mut top = source.top();
    let entries = top
        .take_tables("denormalization")
        .into_iter()
        .filter_map(|it| entry(path, &source, it))
        .collect();
    let settings = top
        .take_table("collection")
        .take_named_tables()
        .into_iter()
        .map(|(name, table)| {
            if let Err(message) = collection_name(&name.value) {
                source.mistake(name.span.clone(), message);
            }
            let place = place(path, &source, name.span.start);
            (name.value, collection_settings(path, &source, table), place)
        })
        .collect();
    top.finish();
    source.finish()?;
    Ok(Mapping { path: path.to_owned(), entries, settings })
}

/// One `[[denormalization]]`; None: a mistake has been kept.
fn entry(path: &Path, source: &Source<'_>, mut table: Table<'_, '_>) -> Option<Entry> {
    let collection =
        either(source, &mut table, ["collection_name", "collection"], "\"company_details_page\"")
            .filter(|it| match collection_name(&it.value) {
                Ok(()) => true,
                Err(message) => {
                    source.mistake(it.span.clone(), message);
                    false
                }
            });
    let key = either(source, &mut table, ["key_to_denormalize_upon", "key"], "\"id\"")
        .filter(|it| not_empty(source, "key_to_denormalize_upon", it));
    if table.key_span("sql").is_none() {
        table.missing("sql", "\"SELECT …\"");
    }
    let sql = table.take_string("sql").filter(|it| not_empty(source, "sql", it));
    let many = table.take_string("nest_as").filter(|it| not_empty(source, "nest_as", it));
    let one = table.take_string("nest_one_as").filter(|it| not_empty(source, "nest_one_as", it));
    let optional = table.take_bool("optional").unwrap_or(false);
    table.finish();
    let nest_place = many.as_ref().or(one.as_ref()).map(|it| it.span.clone());
    let nest = match (many, one) {
        (None, None) => Nest::Top,
        (Some(many), None) => Nest::Many(many.value),
        (None, Some(one)) => Nest::One(one.value),
        (Some(_), Some(one)) => {
            let message = "nest_as (an array) and nest_one_as (one object) contradict: keep one";
            source.mistake(one.span, message);
            return None;
        }
    };
    let (key, sql) = (key?, sql?);
    Some(Entry {
        collection: collection?.value,
        key: key.value,
        nest,
        optional,
        sql_place: place(path, source, source.inside_quotes(&sql.span)),
        sql_written: source.text_of(&sql.span).to_owned(),
        key_place: place(path, source, source.inside_quotes(&key.span)),
        nest_place: nest_place.map(|it| place(path, source, source.inside_quotes(&it))),
        sql: sql.value,
    })
}

/// The value of a key that may be written by either of two names, but must be written.
fn either(
    source: &Source<'_>,
    table: &mut Table<'_, '_>,
    [name, alias]: [&'static str; 2],
    example: &str,
) -> Option<Written<String>> {
    match (table.key_span(name), table.key_span(alias)) {
        (None, None) => table.missing(name, example),
        (Some(_), Some(second)) => {
            source.mistake(second, format!("{name} and {alias} are the same key: keep one"));
        }
        (Some(_), None) | (None, Some(_)) => {}
    }
    let (long, short) = (table.take_string(name), table.take_string(alias));
    long.or(short)
}

fn not_empty(source: &Source<'_>, key: &str, written: &Written<String>) -> bool {
    let empty = written.value.trim().is_empty();
    if empty {
        let wanted = match key {
            "sql" => "write one SELECT",
            "key_to_denormalize_upon" => "write the column that says which document a row is of",
            _ => "write the field's name, or leave the line out",
        };
        source.mistake(written.span.clone(), format!("{key} is empty: {wanted}"));
    }
    !empty
}

/// A collection's name becomes part of an index's name (Elasticsearch reference, Create index).
///
/// # Errors
/// What a name must be, as a sentence.
pub fn collection_name(name: &str) -> Result<(), String> {
    let valid = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || b"_-".contains(&it);
    let begins_well = name.starts_with(|it: char| it.is_ascii_lowercase() || it.is_ascii_digit());
    if name.len() <= COLLECTION_NAME_MAX && name.bytes().all(valid) && begins_well {
        return Ok(());
    }
    Err(format!(
        "a collection's name must be 1 to {COLLECTION_NAME_MAX} of a-z, 0-9, \"_\" and \"-\", and \
         begin with a letter or digit, not \"{name}\""
    ))
}

/// `[collection.NAME]`.
fn collection_settings(
    path: &Path,
    source: &Source<'_>,
    mut table: Table<'_, '_>,
) -> CollectionSettings {
    let poll_interval = table.take_interval("poll_interval");
    let audit_interval = table.take_interval("audit_interval");
    let (mut field_types, mut field_places) = (Vec::new(), Vec::new());
    for (name, written) in table.take_table("fields").take_rest() {
        let mapping = match written.value {
            Value::String(kind) if !kind.trim().is_empty() => {
                Some(serde_json::json!({ "type": kind }))
            }
            Value::Table(table) if !table.is_empty() => json(Value::Table(table)),
            _ => None,
        };
        match mapping {
            Some(mapping) => {
                field_places.push(place(path, source, name.span.start));
                field_types.push((name.value, mapping.to_string()));
            }
            None => source.mistake(
                written.span,
                format!(
                    "write {} = \"keyword\", or {{ type = \"keyword\", … }} with Elasticsearch's \
                     field parameters",
                    name.value
                ),
            ),
        }
    }
    let mut settings = serde_json::Map::new();
    for (name, written) in table.take_table("settings").take_rest() {
        if let Some(ours) = setting_of_ours(&name.value, &written.value) {
            let message = format!("{ours} is onelog's own to set: leave it out");
            source.mistake(name.span, message);
        }
        match json(written.value) {
            Some(value) => drop(settings.insert(name.value, value)),
            None => source.mistake(written.span, "write a date or time as a string"),
        }
    }
    table.finish();
    CollectionSettings {
        poll_interval,
        audit_interval,
        field_types,
        field_places,
        index_settings: serde_json::Value::Object(settings).to_string(),
    }
}

/// The name of a setting that is ours to choose, however it is nested or dotted.
fn setting_of_ours(name: &str, value: &Value) -> Option<String> {
    let bare = name.strip_prefix("index.").unwrap_or(name);
    if SETTINGS_OF_OURS.contains(&bare) {
        return Some(name.to_owned());
    }
    let inner = value.as_table().into_iter().flatten();
    inner.map(|(key, it)| setting_of_ours(&format!("{name}.{key}"), it)).find_map(|it| it)
}

/// TOML as JSON; None: it holds what JSON has not (a date, NaN).
fn json(value: Value) -> Option<serde_json::Value> {
    Some(match value {
        Value::String(text) => text.into(),
        Value::Integer(number) => number.into(),
        Value::Float(number) => serde_json::Number::from_f64(number)?.into(),
        Value::Boolean(it) => it.into(),
        Value::Datetime(_) => return None,
        Value::Array(items) => {
            serde_json::Value::Array(items.into_iter().map(json).collect::<Option<_>>()?)
        }
        Value::Table(table) => serde_json::Value::Object(
            table.into_iter().map(|(name, it)| Some((name, json(it)?))).collect::<Option<_>>()?,
        ),
    })
}

fn place(path: &Path, source: &Source<'_>, offset: usize) -> Place {
    let (line, column) = source.place(offset);
    Place { path: path.to_owned(), line, column }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(text: &str) -> Result<Mapping, Mistakes> {
        parse(Path::new("a.toml"), text)
    }

    const WHOLE: &str = r#"
[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "profile_id"
sql = "SELECT id AS profile_id FROM company_profile WHERE name <> ''"

[[denormalization]]
collection = "page"
key = 'profile_id'
nest_as = "websites"
optional = true
sql = '''
  SELECT profile_id, url FROM company_websites'''

[collection.page]
poll_interval = "2s"
audit_interval = "off"
fields = { url = "keyword", "a.b" = { type = "text", index = false } }
settings = { number_of_shards = 2, "index.refresh_interval" = "5s" }
"#;

    #[test]
    fn a_whole_file_is_read_with_its_places() {
        let mapping = read(WHOLE).unwrap();
        let places: Vec<_> = mapping
            .entries
            .iter()
            .flat_map(|it| [&it.sql_place, &it.key_place])
            .map(|it| (it.line, it.column))
            .collect();
        assert_eq!(places, [(5, 8), (4, 28), (13, 1), (9, 8)]);
        assert_eq!(mapping.entries[1].sql, "  SELECT profile_id, url FROM company_websites");
        assert_eq!(mapping.entries[1].nest, Nest::Many("websites".to_owned()));
        assert!(mapping.entries[1].optional && !mapping.entries[0].optional);
        let (name, settings, place) = &mapping.settings[0];
        assert_eq!((name.as_str(), place.line), ("page", 15));
        assert_eq!(settings.poll_interval, Some(Duration::from_secs(2)));
        assert_eq!(settings.audit_interval, Some(Duration::ZERO));
        let fields: Vec<_> = settings.field_types.iter().map(|it| it.1.as_str()).collect();
        assert_eq!(fields, [r#"{"type":"keyword"}"#, r#"{"index":false,"type":"text"}"#]);
        let expected = r#"{"number_of_shards":2,"index.refresh_interval":"5s"}"#;
        assert_eq!(settings.index_settings, expected);
        assert_eq!(read("").unwrap().entries, []);
    }

    #[test]
    fn every_mistake_has_its_place_and_its_cure() {
        let entry = |lines: &str| format!("[[denormalization]]\n{lines}");
        let good = "collection = \"c\"\nkey = \"k\"\nsql = \"SELECT 1\"\n";
        let cases = [
            (entry("key = \"k\"\nsql = \"s\""), "1:1: collection_name is missing"),
            (entry("collection = \"c\"\nsql = \"s\""), "1:1: key_to_denormalize_upon is missing"),
            (entry("collection = \"c\"\nkey = \"k\""), "1:1: sql is missing"),
            (entry(&good.replace("SELECT 1", " ")), "4:7: sql is empty"),
            (entry(&good.replace("\"c\"", "\"Page\"")), "2:14: a collection's name must be"),
            (entry(&good.replace("\"c\"", "\"_c\"")), "2:14: a collection's name must be"),
            (
                entry(&format!("{good}collection_name = \"d\"")),
                "2:1: collection_name and collection",
            ),
            (entry(&format!("{good}nest_ass = \"d\"")), "did you mean nest_as?"),
            (entry(&format!("{good}optional = 1")), "5:12: optional must be true or false"),
            (entry(&format!("{good}nest_as=\"a\"\nnest_one_as=\"b\"")), "6:13: nest_as (an array)"),
            ("[denormalization]\nsql = \"\"".to_owned(), "must be written as [[denormalization]]"),
            ("[collection.c]\npoll_interval = \"x\"".to_owned(), "2:17: poll_interval must be"),
            ("[collection.c]\npoll = \"1s\"".to_owned(), "did you mean poll_interval?"),
            ("[collection.C]\n".to_owned(), "1:13: a collection's name"),
            ("[collection.c]\nfields = { a = 1 }".to_owned(), "2:16: write a = \"keyword\""),
            (
                "[collection.c]\nsettings = { \"index.gc_deletes\" = \"1s\" }".to_owned(),
                "2:14: index.gc_deletes is onelog's own",
            ),
            (
                "[collection.c]\nsettings = { index = { gc_deletes = \"1s\" } }".to_owned(),
                "2:14: index.gc_deletes is onelog's own",
            ),
            ("[collection.c]\nsettings.version.created = 1".to_owned(), "version is onelog's own"),
            ("[[denormalization]".to_owned(), "this is not TOML"),
        ];
        for (text, expected) in cases {
            let Mistakes(mistakes) = read(&text).unwrap_err();
            let found = mistakes[0].to_string();
            assert!(found.contains(expected), "{text}\nfound {found}\nexpected {expected}");
        }
    }

    #[test]
    fn the_first_character_of_sql_is_found_in_every_kind_of_string() {
        let cases = [
            ("\"S\"", (4, 8)),
            ("'S'", (4, 8)),
            ("'''S'''", (4, 10)),
            ("\"\"\"\nS\"\"\"", (5, 1)),
            ("'''\r\n  S'''", (5, 1)),
        ];
        for (sql, expected) in cases {
            let text = format!("[[denormalization]]\ncollection = 'c'\nkey = 'k'\nsql = {sql}\n");
            let place = read(&text).unwrap().entries[0].sql_place.clone();
            assert_eq!((place.line, place.column), expected, "{sql}");
        }
    }
}
