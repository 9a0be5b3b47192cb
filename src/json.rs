//! JSON objects as ordered lists of names and *raw* values.
//!
//! Documents and change images are spliced from JSON that Postgres wrote. A parsed `Value` would
//! lose digits of numbers, the order of names and duplicates, so values stay the text they were.
//! Never looks into a value.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// An object's fields in the order of the text, borrowed from it.
#[derive(Debug, Clone, Default)]
pub struct Object<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Object<'a> {
    /// The value's text of the first field with this name.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(it, _)| it == name).map(|(_, value)| value.get())
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        // The hint is not from the text (serde_json gives none), so nobody can ask for memory.
        let mut fields = Vec::new();
        while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &'de RawValue>()? {
            fields.push((name, value));
        }
        Ok(Object(fields))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

/// Where in a JSON text the value begins that a JSON Pointer (RFC 6901) leads to. Where it leads to
/// nothing, the last value on its way.
pub fn offset_of(text: &str, pointer: &str) -> usize {
    let mut here = text.trim_start();
    let mut offset = text.len() - here.len();
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        let next = if here.starts_with('{') {
            serde_json::from_str::<Object<'_>>(here).ok().and_then(|it| it.get(&step))
        } else {
            let elements: Option<Vec<&RawValue>> = serde_json::from_str(here).ok();
            let nth = step.parse::<usize>().ok();
            elements.zip(nth).and_then(|(it, nth)| Some(it.get(nth)?.get()))
        };
        // A raw value is a part of the text that it was read from.
        let Some(next) = next else { break };
        offset += next.as_ptr().addr() - here.as_ptr().addr();
        here = next;
    }
    offset
}

/// Appends `text` as a JSON string.
pub fn push_string(text: &str, out: &mut String) {
    out.push_str(&serde_json::to_string(text).expect("a str is always a JSON string"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_keeps_order_digits_and_repeats() {
        let text = r#"{"b": 1.00000000000000000001, "a\n":[ 1 ], "b":null}"#;
        let object: Object<'_> = serde_json::from_str(text).unwrap();
        let fields: Vec<(&str, &str)> = object.0.iter().map(|(n, v)| (&**n, v.get())).collect();
        assert_eq!(fields, [("b", "1.00000000000000000001"), ("a\n", "[ 1 ]"), ("b", "null")]);
        assert_eq!(object.get("b"), Some("1.00000000000000000001"));
        assert_eq!(object.get("c"), None);
    }

    #[test]
    fn a_pointer_leads_to_a_place_in_the_text() {
        let text = " {\"a/b\": [1, {\"ü\": {}, \"c\" : \n true}]}";
        let cases = [
            ("", "{\"a/b\""),
            ("/a~1b", "[1"),
            ("/a~1b/0", "1, {"),
            ("/a~1b/1/c", "true"),
            ("/a~1b/1/nothing/c", "{\"ü\""),
            ("/a~1b/7", "[1"),
            ("/a~1b/0/0", "1, {"),
        ];
        for (pointer, expected) in cases {
            let rest = &text[offset_of(text, pointer)..];
            assert!(rest.starts_with(expected), "{pointer}: {rest}");
        }
        assert_eq!(offset_of("no JSON", "/a"), 0);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in ["", "1", "[]", "null", "{", "{\"a\":}", "{} x"] {
            assert!(serde_json::from_str::<Object<'_>>(text).is_err(), "{text}");
        }
    }
}
