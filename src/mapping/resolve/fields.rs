//! Whether the fields that `[collection.NAME] fields` gives types to are in the documents (pure).

use crate::mapping::plan::{EntryPlan, OutputColumn};
use crate::mapping::{CollectionSettings, Nest};
use crate::mistake::Mistake;
use crate::mistake::written::nearest;

/// A mistake for each field that no entry yields. What is inside of a JSON value is not known, so
/// any name is taken there.
pub(super) fn unknown(settings: &CollectionSettings, entries: &[EntryPlan]) -> Vec<Mistake> {
    let columns: Vec<(String, &OutputColumn)> = entries.iter().flat_map(columns_of).collect();
    let objects = entries.iter().filter_map(|it| match &it.entry.nest {
        Nest::Top => None,
        Nest::Many(field) | Nest::One(field) => Some(field.as_str()),
    });
    let objects: Vec<&str> = objects.collect();
    let known = |field: &str| {
        objects.contains(&field)
            || columns.iter().any(|(name, column)| {
                let inside = field.strip_prefix(name.as_str()).and_then(|it| it.strip_prefix('.'));
                name == field || inside.is_some() && may_be_object(column)
            })
    };
    let wrong = settings.field_types.iter().zip(&settings.field_places);
    wrong
        .filter(|((field, _), _)| !known(field))
        .map(|((field, _), place)| {
            let names: Vec<&str> = columns.iter().map(|it| it.0.as_str()).collect();
            let meant = nearest(field, &names)
                .map_or_else(String::new, |it| format!("; did you mean {it}?"));
            Mistake {
                path: place.path.clone(),
                line: place.line,
                column: place.column,
                message: format!(
                    "fields: no entry yields {field}, but these: {}{meant}",
                    names.join(", ")
                ),
            }
        })
        .collect()
}

/// The entry's fields by their names in the document.
fn columns_of(planned: &EntryPlan) -> Vec<(String, &OutputColumn)> {
    let name = |it: &OutputColumn| match &planned.entry.nest {
        Nest::Top => Some(it.name.clone()),
        // The key column is left out of nested objects.
        Nest::Many(_) | Nest::One(_) if it.name == planned.entry.key => None,
        Nest::Many(field) | Nest::One(field) => Some(format!("{field}.{}", it.name)),
    };
    planned.columns.iter().filter_map(|it| Some((name(it)?, it))).collect()
}

fn may_be_object(column: &OutputColumn) -> bool {
    const FIRST_USER_OID: u32 = 16_384;
    let of_json = ["json", "jsonb", "composite", "record"].contains(&column.value_type.as_str());
    // An extension's type may be an object in JSON, as hstore is.
    of_json || column.type_oid >= FIRST_USER_OID && column.value_type != "enum"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::{Entry, Place};

    fn place(line: usize) -> Place {
        Place { path: "a.toml".into(), line, column: 1 }
    }

    fn entry(nest: Nest, columns: &[(&str, &str)]) -> EntryPlan {
        let column = |it: &(&str, &str)| OutputColumn {
            name: it.0.to_owned(),
            type_oid: 25,
            type_name: it.1.to_owned(),
            value_type: it.1.to_owned(),
        };
        EntryPlan {
            entry: Entry {
                collection: "c".to_owned(),
                key: "id".to_owned(),
                sql: String::new(),
                nest,
                optional: false,
                sql_place: place(1),
                sql_written: String::new(),
                nest_place: None,
                key_place: place(1),
            },
            canonical_sql: String::new(),
            ordered: false,
            columns: columns.iter().map(column).collect(),
            tables: vec![],
            paths: vec![],
            poll_reasons: vec![],
        }
    }

    #[test]
    fn a_field_must_be_in_the_documents() {
        let entries = [
            entry(Nest::Top, &[("id", "bigint"), ("name", "text"), ("extra", "jsonb")]),
            entry(Nest::Many("sites".to_owned()), &[("id", "bigint"), ("url", "text")]),
        ];
        for (field, message) in [
            ("name", None),
            ("id", None),
            ("extra.a.b", None),
            ("sites", None),
            ("sites.url", None),
            ("nane", Some("did you mean name?")),
            ("name.raw", Some("no entry yields name.raw")),
            ("sites.id", Some("no entry yields sites.id")),
            ("url", Some("sites.url")),
        ] {
            let settings = CollectionSettings {
                field_types: vec![(field.to_owned(), "{}".to_owned())],
                field_places: vec![place(7)],
                ..CollectionSettings::default()
            };
            let found = unknown(&settings, &entries);
            assert_eq!(found.len(), usize::from(message.is_some()), "{field}: {found:?}");
            if let Some(message) = message {
                let said = found[0].to_string();
                assert!(said.starts_with("a.toml:7:1:") && said.contains(message), "{said}");
            }
        }
    }
}
