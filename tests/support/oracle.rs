//! The oracle: what a collection's documents must be, computed from scratch and by other code than
//! the daemon's: the mapping file's own SQL, run as it is written, merged with plain JSON values.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use tokio_postgres::Client;

/// `_id` -> document.
pub type Documents = BTreeMap<String, Value>;

/// One `[[denormalization]]` as the file has it.
struct Entry {
    collection: String,
    key: String,
    sql: String,
    many: Option<String>,
    one: Option<String>,
    optional: bool,
}

fn entries(folder: &Path) -> Vec<Entry> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .expect("a mappings folder")
        .map(|it| it.expect("an entry").path())
        .filter(|it| it.extension().is_some_and(|ext| ext == "toml"))
        .collect();
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("UTF-8");
        let table: toml::Table = toml::from_str(&text).expect("the sample's mappings are TOML");
        let Some(list) = table.get("denormalization").and_then(toml::Value::as_array) else {
            continue;
        };
        for entry in list {
            let field = |names: &[&str]| {
                let value = names.iter().find_map(|it| entry.get(it))?;
                Some(value.as_str().expect("a string").to_owned())
            };
            found.push(Entry {
                collection: field(&["collection_name", "collection"]).expect("a collection"),
                key: field(&["key_to_denormalize_upon", "key"]).expect("a key"),
                sql: field(&["sql"]).expect("sql").trim().trim_end_matches(';').to_owned(),
                many: field(&["nest_as"]),
                one: field(&["nest_one_as"]),
                optional: entry.get("optional").and_then(toml::Value::as_bool).unwrap_or(false),
            });
        }
    }
    found
}

/// The names of all collections of a mappings folder.
pub fn collections(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = entries(folder).into_iter().map(|it| it.collection).collect();
    names.sort();
    names.dedup();
    names
}

/// What the collection must hold.
pub async fn expected(client: &Client, folder: &Path, collection: &str) -> Documents {
    let entries: Vec<Entry> =
        entries(folder).into_iter().filter(|it| it.collection == collection).collect();
    let mut existing = BTreeMap::new();
    let mut rows_of: Vec<BTreeMap<String, Vec<String>>> = Vec::new();
    for entry in &entries {
        let key = format!("q.\"{}\"", entry.key);
        let sql = format!(
            "SELECT {key}::text, row_to_json(q)::text FROM ({}) q WHERE {key} IS NOT NULL",
            entry.sql
        );
        let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in client.query(&sql, &[]).await.expect("the mapping's SQL runs") {
            by_key.entry(row.get(0)).or_default().push(row.get(1));
        }
        if !entry.optional {
            existing.extend(by_key.keys().map(|it| (it.clone(), ())));
        }
        if !outside_parentheses(&entry.sql).to_lowercase().contains("order by") {
            by_key.values_mut().for_each(|rows| rows.sort());
        }
        rows_of.push(by_key);
    }
    let documents = existing.into_keys().map(|key| {
        let rows: Vec<&[String]> =
            rows_of.iter().map(|it| it.get(&key).map_or(&[][..], Vec::as_slice)).collect();
        let document = merged(&entries, &rows);
        (key, document)
    });
    documents.collect()
}

/// The SQL's top level: an ORDER BY within an aggregate or a subquery orders no rows.
fn outside_parentheses(sql: &str) -> String {
    let mut depth = 0;
    let mut outside = String::new();
    for it in sql.chars() {
        depth += i32::from(it == '(') - i32::from(it == ')');
        if depth == 0 {
            outside.push(it);
        }
    }
    outside
}

fn merged(entries: &[Entry], rows_of: &[&[String]]) -> Value {
    let mut document = Map::new();
    for (entry, rows) in entries.iter().zip(rows_of) {
        let objects: Vec<Map<String, Value>> =
            rows.iter().map(|it| serde_json::from_str(it).expect("a row is an object")).collect();
        if let Some(first) = objects.first() {
            document.entry(entry.key.clone()).or_insert_with(|| first[&entry.key].clone());
        }
        let without_key = |mut row: Map<String, Value>| {
            row.shift_remove(&entry.key);
            Value::Object(row)
        };
        if let Some(field) = &entry.many {
            let list = objects.into_iter().map(without_key).collect();
            document.insert(field.clone(), Value::Array(list));
        } else if let Some(field) = &entry.one {
            let one = objects.into_iter().next().map_or(Value::Null, without_key);
            document.insert(field.clone(), one);
        } else if let [row] = objects.as_slice() {
            document.extend(row.clone());
        } else if let Some(first) = objects.first() {
            for name in first.keys().filter(|it| **it != entry.key) {
                let list = objects.iter().map(|row| row[name].clone()).collect();
                document.insert(name.clone(), Value::Array(list));
            }
        }
    }
    Value::Object(document)
}

/// Says the first differences, or nothing.
pub fn difference(expected: &Documents, found: &Documents) -> Option<String> {
    let mut faults = Vec::new();
    for (key, document) in expected {
        match found.get(key) {
            None => faults.push(format!("{key} is missing; it should be {document}")),
            Some(it) if it != document => {
                faults.push(format!("{key} is\n    {it}\n  but should be\n    {document}"));
            }
            Some(_) => {}
        }
    }
    let extra = found.keys().filter(|it| !expected.contains_key(*it));
    faults.extend(extra.map(|it| format!("{it} is there and should not be")));
    let count = faults.len();
    faults.truncate(3);
    (count > 0).then(|| format!("{count} documents are wrong:\n  {}", faults.join("\n  ")))
}
