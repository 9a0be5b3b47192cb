//! One document's body, spliced from its rows' JSON text. Pure.
//!
//! Fields stand in the order of entries, then of columns; a later entry's value of the same field
//! takes the earlier one's place. Digits, strings and inner objects are copied, never rewritten,
//! except that line breaks between tokens (a `json` column may hold some) become spaces: a bulk
//! body is read by lines.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Refusal;
use crate::json::{Object, push_string};
use crate::mapping::Nest;
use crate::mapping::plan::{CollectionPlan, EntryPlan};

#[derive(Debug, PartialEq, Eq)]
pub struct Merged {
    pub body: String,
    /// Rows beyond the first of a `nest_one_as`.
    pub rows_left_out: u64,
}

/// Fields in order, values as JSON text.
#[derive(Default)]
struct Fields<'a> {
    list: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    places: HashMap<Cow<'a, str>, usize>,
}

impl<'a> Fields<'a> {
    fn set(&mut self, name: Cow<'a, str>, value: Cow<'a, str>) {
        match self.places.get(&name) {
            Some(&at) => self.list[at].1 = value,
            None => {
                self.places.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }
}

/// Merges the rows of one key, given for each entry in the order of arrival. At least one entry
/// has a row.
pub fn merge(plan: &CollectionPlan, rows: &[Vec<&str>]) -> Result<Merged, Refusal> {
    let mut parsed = Vec::with_capacity(rows.len());
    for (nth, (entry, rows)) in plan.entries.iter().zip(rows).enumerate() {
        parsed.push(parse(nth, entry, rows)?);
    }
    let mut fields = Fields::default();
    let mut rows_left_out = 0;
    if let Some((name, value)) = key_of_nested(plan, &parsed) {
        fields.set(Cow::Borrowed(name), Cow::Borrowed(value));
    }
    for (entry, rows) in plan.entries.iter().zip(&parsed) {
        match &entry.entry.nest {
            Nest::Top => put_top(&entry.entry.key, rows, &mut fields),
            Nest::Many(name) => {
                let objects = join(rows.iter().map(|it| without(it, &entry.entry.key)));
                fields.set(Cow::Borrowed(name), Cow::Owned(objects));
            }
            Nest::One(name) => {
                let object = rows.first().map(|it| Cow::Owned(without(it, &entry.entry.key)));
                fields.set(Cow::Borrowed(name), object.unwrap_or(Cow::Borrowed("null")));
                rows_left_out += u64::try_from(rows.len().saturating_sub(1)).unwrap_or(u64::MAX);
            }
        }
    }
    let body = object(fields.list.iter().map(|(name, value)| (&**name, &**value)));
    Ok(Merged { body: one_line(body), rows_left_out })
}

/// The entry's rows in the document's order.
fn parse<'a>(nth: usize, entry: &EntryPlan, rows: &[&'a str]) -> Result<Vec<Object<'a>>, Refusal> {
    let mut rows = rows.to_vec();
    if !entry.ordered {
        rows.sort_unstable();
    }
    let refuse = |err: serde_json::Error| Refusal::RowNotAnObject { nth, message: err.to_string() };
    rows.into_iter().map(|it| serde_json::from_str(it).map_err(refuse)).collect()
}

/// The key field of a document that no top-level entry gives one: named as the first top-level
/// entry names it, or else the first entry.
fn key_of_nested<'a>(
    plan: &'a CollectionPlan,
    rows: &[Vec<Object<'a>>],
) -> Option<(&'a str, &'a str)> {
    let is_top = |it: &EntryPlan| it.entry.nest == Nest::Top;
    let mut with_rows = plan.entries.iter().zip(rows).filter(|(_, rows)| !rows.is_empty());
    if with_rows.clone().any(|(entry, _)| is_top(entry)) {
        return None;
    }
    let (entry, rows) = with_rows.next()?;
    let value = rows.first()?.get(&entry.entry.key)?;
    let named = plan.entries.iter().find(|it| is_top(it)).or(plan.entries.first())?;
    Some((&named.entry.key, value))
}

/// One row: its values. Several: the key's value, and of each other column an array.
fn put_top<'a>(key: &str, rows: &[Object<'a>], fields: &mut Fields<'a>) {
    let Some(first) = rows.first() else { return };
    for (at, (name, value)) in first.0.iter().enumerate() {
        let value = if rows.len() == 1 || name == key {
            Cow::Borrowed(value.get())
        } else {
            // All rows come from one query, so a column has the same place in each.
            let column = rows.iter().map(|row| row.0.get(at).map_or("null", |it| it.1.get()));
            Cow::Owned(join(column))
        };
        fields.set(name.clone(), value);
    }
}

/// The row as an object without its key column.
fn without(row: &Object<'_>, key: &str) -> String {
    object(row.0.iter().filter(|(name, _)| name != key).map(|(name, it)| (&**name, it.get())))
}

fn object<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::from("{");
    for (name, value) in fields {
        if out.len() > 1 {
            out.push(',');
        }
        push_string(name, &mut out);
        out.push(':');
        out.push_str(value);
    }
    out.push('}');
    out
}

fn join(values: impl Iterator<Item = impl AsRef<str>>) -> String {
    let mut out = String::from("[");
    for value in values {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(value.as_ref());
    }
    out.push(']');
    out
}

/// JSON has no raw line breaks within strings, so all there are stand between tokens.
fn one_line(body: String) -> String {
    if body.contains(['\n', '\r']) { body.replace(['\n', '\r'], " ") } else { body }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::document::build::test_plan;

    fn many(name: &str) -> Nest {
        Nest::Many(name.to_owned())
    }

    fn one(name: &str) -> Nest {
        Nest::One(name.to_owned())
    }

    #[track_caller]
    fn check(nests: &[Nest], rows: &[&[&str]], expected: &str) {
        let entries: Vec<_> = nests.iter().map(|it| (it.clone(), false)).collect();
        let rows: Vec<Vec<&str>> = rows.iter().map(|it| it.to_vec()).collect();
        assert_eq!(merge(&test_plan(&entries), &rows).unwrap().body, expected);
    }

    #[test]
    fn one_row_gives_scalars_and_several_give_arrays() {
        let top = [Nest::Top];
        check(&top, &[&[r#"{"id":1,"a":"x","b":null}"#]], r#"{"id":1,"a":"x","b":null}"#);
        let two = [r#"{"id":1,"a":"y","b":null}"#, r#"{"id":1,"a":"x","b":[1]}"#];
        check(&top, &[&two], r#"{"id":1,"a":["x","y"],"b":[[1],null]}"#);
        let same = [r#"{"id":1,"a":2}"#, r#"{"id":1,"a":2}"#];
        check(&top, &[&same], r#"{"id":1,"a":[2,2]}"#);
    }

    #[test]
    fn nested_rows_are_objects_without_the_key() {
        let nests = [Nest::Top, many("f"), one("g")];
        let top = r#"{"id":1,"a":2}"#;
        let rows: [&[&str]; 3] =
            [&[top], &[r#"{"u":"b","id":1}"#, r#"{"u":"a","id":1}"#], &[r#"{"id":1,"z":0}"#]];
        check(&nests, &rows, r#"{"id":1,"a":2,"f":[{"u":"a"},{"u":"b"}],"g":{"z":0}}"#);
        check(&nests, &[&[top], &[], &[]], r#"{"id":1,"a":2,"f":[],"g":null}"#);
        check(&[one("g")], &[&[r#"{"id":1}"#]], r#"{"id":1,"g":{}}"#);
    }

    #[test]
    fn extra_rows_of_one_are_counted() {
        let plan = test_plan(&[(one("g"), false)]);
        let rows = vec![r#"{"id":1,"a":3}"#, r#"{"id":1,"a":1}"#, r#"{"id":1,"a":2}"#];
        let merged = merge(&plan, &[rows]).unwrap();
        assert_eq!((merged.body.as_str(), merged.rows_left_out), (r#"{"id":1,"g":{"a":1}}"#, 2));
    }

    #[test]
    fn the_later_entry_wins_in_the_earlier_ones_place() {
        let rows: [&[&str]; 2] = [&[r#"{"id":1,"a":1,"b":1}"#], &[r#"{"id":1,"c":2,"a":2}"#]];
        check(&[Nest::Top, Nest::Top], &rows, r#"{"id":1,"a":2,"b":1,"c":2}"#);
        check(&[Nest::Top, Nest::Top], &[rows[0], &[]], r#"{"id":1,"a":1,"b":1}"#);
        let rows: [&[&str]; 2] = [&[r#"{"id":1,"a":1}"#], &[]];
        check(&[Nest::Top, many("a")], &rows, r#"{"id":1,"a":[]}"#);
    }

    #[test]
    fn a_document_of_nested_rows_only_has_its_key() {
        let rows: [&[&str]; 2] = [&[], &[r#"{"id":"k","a":1}"#]];
        check(&[many("e"), many("f")], &rows, r#"{"id":"k","e":[],"f":[{"a":1}]}"#);
        check(&[Nest::Top, many("f")], &rows, r#"{"id":"k","f":[{"a":1}]}"#);
    }

    #[test]
    fn an_ordered_entry_keeps_the_order_of_arrival() {
        let mut plan = test_plan(&[(many("f"), false)]);
        let rows = [vec![r#"{"id":1,"a":2}"#, r#"{"id":1,"a":1}"#]];
        plan.entries[0].ordered = true;
        assert_eq!(merge(&plan, &rows).unwrap().body, r#"{"id":1,"f":[{"a":2},{"a":1}]}"#);
    }

    #[test]
    fn text_is_kept_and_lines_are_joined() {
        let row = "{\"id\":1,\"n\\u00e4\\\"\":0.10000000000000000001e-400,\"j\":{ \"é\" :\n\r1}}";
        let expected = "{\"id\":1,\"nä\\\"\":0.10000000000000000001e-400,\"j\":{ \"é\" :  1}}";
        check(&[Nest::Top], &[&[row]], expected);
    }

    proptest! {
        #[test]
        fn any_text_is_a_body_or_a_refusal(rows in proptest::collection::vec(".{0,20}", 1..4)) {
            let plan = test_plan(&[(Nest::Top, false)]);
            let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
            if let Ok(merged) = merge(&plan, &[rows]) {
                prop_assert!(serde_json::from_str::<Object<'_>>(&merged.body).is_ok());
            }
        }

        #[test]
        fn digits_and_unicode_survive(digits in "[1-9][0-9]{0,60}\\.[0-9]{1,60}", text: String) {
            let mut quoted = String::new();
            push_string(&text, &mut quoted);
            let row = format!(r#"{{"id":1,"n":{digits},"t":{quoted}}}"#);
            check(&[Nest::Top], &[&[&row]], &row);
            let nested = format!(r#"{{"id":1,"f":[{{"n":{digits},"t":{quoted}}}]}}"#);
            check(&[many("f")], &[&[&row]], &nested);
        }
    }
}
