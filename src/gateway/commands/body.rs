//! The body of a command: checked, and kept as the client wrote it.
//!
//! It is read once, from start to end, and never built: digits, key order and white space stay
//! as they were. Refused is what two readers may understand in two ways: a key that an object has
//! twice (the first, the last, both?), a number beyond a double's range (infinity, or an error?),
//! half a surrogate pair. Whoever signs, filters or validates what a robot then reads otherwise
//! has checked another command (RFC 8259, section 4; RFC 7493).

use std::cell::Cell;
use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// How deep arrays and objects may lie in each other. Elasticsearch takes 20 levels of a document,
/// Postgres' and Python's parsers some thousand: a command is nowhere near.
pub const DEPTH_MAX: usize = 64;

/// Longest id, in characters: what fits a key, a header and a URL with room to spare.
pub const ID_LENGTH_MAX: usize = 128;

/// The fields that the write point looks at.
const FIELDS: [&str; 3] = ["document_id", "session_id", "type"];

/// What is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the body is not UTF-8; send JSON in UTF-8")]
    NotUtf8,
    #[error("the body is not JSON (line {line}, column {column}: {reason})")]
    NotJson { line: usize, column: usize, reason: &'static str },
    #[error("the body is not a JSON object; send {{\"document_id\": …}}")]
    NotAnObject,
    #[error(
        "an object has a key twice (line {line}, column {column}): two readers may see two \
         values; leave one out"
    )]
    KeyTwice { line: usize, column: usize },
    #[error("arrays and objects lie deeper in each other than {DEPTH_MAX} levels; flatten them")]
    TooDeep,
    #[error("{field} is not a string; write it as one, or leave it out")]
    NotText { field: &'static str },
    #[error("{field} is not an id: 1 to {ID_LENGTH_MAX} of A-Z, a-z, 0-9 and ._:-")]
    NotAnId { field: &'static str },
}

impl BodyError {
    /// Whether it is JSON that breaks a rule of ours, and not something else altogether.
    pub fn is_about_content(&self) -> bool {
        match self {
            Self::NotUtf8 | Self::NotJson { .. } => false,
            Self::NotAnObject
            | Self::KeyTwice { .. }
            | Self::TooDeep
            | Self::NotText { .. }
            | Self::NotAnId { .. } => true,
        }
    }
}

/// A body that keeps every rule of this module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandBody<'a> {
    text: &'a str,
    pub document_id: Option<String>,
    pub session_id: Option<String>,
    /// Its field `type`.
    pub kind: Option<String>,
}

impl<'a> CommandBody<'a> {
    /// # Errors
    /// See [`BodyError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BodyError> {
        let text = std::str::from_utf8(bytes).map_err(|_| BodyError::NotUtf8)?;
        let fault = Cell::new(None);
        let mut fields = [None, None, None];
        let mut reader = serde_json::Deserializer::from_str(text);
        let top = Top { fault: &fault, fields: &mut fields };
        let read = reader.deserialize_any(top).and_then(|()| reader.end());
        if let Err(error) = read {
            return Err(told(&error, fault.take()));
        }
        let [document_id, session_id, kind] = fields;
        for (field, value) in FIELDS.iter().zip([&document_id, &session_id, &kind]) {
            if value.as_ref().is_some_and(|it| !is_id(it)) {
                return Err(BodyError::NotAnId { field });
            }
        }
        Ok(Self { text, document_id, session_id, kind })
    }

    /// The body as the client wrote it.
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// What makes it the same body as another: its fields but the document id, in the order of
    /// their names, each as it was written. So who repeats a request with the id that we made, or
    /// by another library, means the same.
    pub fn essence(&self) -> Vec<String> {
        let fields: BTreeMap<String, &RawValue> =
            serde_json::from_str(self.text).unwrap_or_default();
        let fields = fields.into_iter().filter(|(name, _)| name != "document_id");
        fields.flat_map(|(name, value)| [name, value.get().to_owned()]).collect()
    }

    /// The body with fields that it lacks put in front. Ids need no escapes.
    pub fn with(&self, fields: &[(&str, &str)]) -> String {
        let (before, rest) = self.text.split_once('{').unwrap_or(("", self.text));
        let mut text = String::with_capacity(self.text.len() + fields.len() * ID_LENGTH_MAX);
        text.push_str(before);
        text.push('{');
        let empty = rest.trim_start().starts_with('}');
        for (nth, (name, value)) in fields.iter().enumerate() {
            let comma = if empty && nth + 1 == fields.len() { "" } else { "," };
            text.extend(["\"", name, "\":\"", value, "\"", comma]);
        }
        text.push_str(rest);
        text
    }
}

/// Whether a text may be an id: of characters that mean nothing in JSON, a URL's query, a header,
/// a file name's first part or a log.
pub fn is_id(text: &str) -> bool {
    let fine = |it: u8| it.is_ascii_alphanumeric() || matches!(it, b'.' | b'_' | b':' | b'-');
    (1..=ID_LENGTH_MAX).contains(&text.len()) && text.bytes().all(fine)
}

/// What went wrong while it was walked over.
#[derive(Debug, Clone, Copy)]
enum Fault {
    NotAnObject,
    KeyTwice,
    TooDeep,
    NotText(&'static str),
}

fn told(error: &serde_json::Error, fault: Option<Fault>) -> BodyError {
    let (line, column) = (error.line(), error.column());
    match fault {
        Some(Fault::NotAnObject) => BodyError::NotAnObject,
        Some(Fault::KeyTwice) => BodyError::KeyTwice { line, column },
        Some(Fault::TooDeep) => BodyError::TooDeep,
        Some(Fault::NotText(field)) => BodyError::NotText { field },
        None => {
            let cut = error.is_eof();
            let reason = if cut { "it ends too early" } else { "no valid JSON from there on" };
            BodyError::NotJson { line, column, reason }
        }
    }
}

/// The body itself: an object, of which some fields are kept.
struct Top<'f> {
    fault: &'f Cell<Option<Fault>>,
    fields: &'f mut [Option<String>; 3],
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whatever is found instead of an object ends here, as no other method is there.
        self.fault.set(Some(Fault::NotAnObject));
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            match FIELDS.iter().position(|it| *it == key) {
                Some(nth) if !keys.contains(&key) => {
                    let text = Text { fault: self.fault, field: FIELDS[nth] };
                    self.fields[nth] = Some(map.next_value_seed(text)?);
                }
                _ => map.next_value_seed(Anything { fault: self.fault, depth: 1 })?,
            }
            if !keys.insert(key) {
                self.fault.set(Some(Fault::KeyTwice));
                return Err(A::Error::custom(""));
            }
        }
        Ok(())
    }
}

/// A field that must be a string.
struct Text<'f> {
    fault: &'f Cell<Option<Fault>>,
    field: &'static str,
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<String, D::Error> {
        input.deserialize_any(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fault.set(Some(Fault::NotText(self.field)));
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }
}

/// Any value: walked over and forgotten.
#[derive(Clone, Copy)]
struct Anything<'f> {
    fault: &'f Cell<Option<Fault>>,
    /// How many arrays and objects it lies in.
    depth: usize,
}

impl Anything<'_> {
    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth == DEPTH_MAX {
            self.fault.set(Some(Fault::TooDeep));
            return Err(E::custom(""));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Anything<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<(), D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Anything<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        while items.next_element_seed(deeper)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let deeper = self.deeper()?;
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(deeper)?;
            if !keys.insert(key) {
                self.fault.set(Some(Fault::KeyTwice));
                return Err(A::Error::custom(""));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<CommandBody<'_>, BodyError> {
        CommandBody::parse(text.as_bytes())
    }

    #[test]
    fn the_text_stays_and_its_fields_are_found() {
        let text = " {\"b\" : 1.10,\"type\":\"order.place\", \"document_id\":\"d\\u002d1\",\n \
                    \"n\":123456789012345678901234567890.10, \"session_id\":\"s:1\"}\n";
        let body = parsed(text).unwrap();
        assert_eq!(body.text(), text);
        assert_eq!(body.document_id.as_deref(), Some("d-1"));
        assert_eq!(body.session_id.as_deref(), Some("s:1"));
        assert_eq!(body.kind.as_deref(), Some("order.place"));
    }

    #[test]
    fn absent_fields_are_put_in_and_nothing_else_changes() {
        for (text, expected) in [
            ("{}", r#"{"document_id":"d","session_id":"s"}"#),
            (" {\n}\n", " {\"document_id\":\"d\",\"session_id\":\"s\"\n}\n"),
            (r#"{"a":1.0}"#, r#"{"document_id":"d","session_id":"s","a":1.0}"#),
        ] {
            let body = parsed(text).unwrap();
            let full = body.with(&[("document_id", "d"), ("session_id", "s")]);
            assert_eq!(full, expected);
            assert_eq!(parsed(&full).unwrap().document_id.as_deref(), Some("d"));
            assert_eq!(body.with(&[]), text);
        }
    }

    #[test]
    fn the_same_body_is_known_however_it_is_written() {
        let essence = |text: &str| parsed(text).unwrap().essence();
        let first = essence(r#"{"a":1.0,"b":{"x":[1]}}"#);
        let again = essence(r#"{ "document_id":"d", "b" : {"x":[1]}, "\u0061":1.0 }"#);
        assert_eq!(first, again);
        for other in [r#"{"a":1.00,"b":{"x":[1]}}"#, r#"{"a":1.0}"#, r#"{"b":1.0,"a":{"x":[1]}}"#] {
            assert_ne!(first, essence(other), "{other}");
        }
    }

    #[test]
    fn what_two_readers_may_understand_in_two_ways_is_refused() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":[{"b":{"c":1,"c":2}}]}"#,
            r#"{"document_id":"a","document_id":"b"}"#,
            r#"{"document_id":"a","document_id":7}"#,
        ] {
            assert!(matches!(parsed(text), Err(BodyError::KeyTwice { .. })), "{text}");
        }
        for text in [
            r#"{"a":1e999}"#,
            r#"{"a":"\ud800"}"#,
            r#"{"a":NaN}"#,
            r#"{"a":01}"#,
            r#"{"a":1,}"#,
            r#"{"a":1} {}"#,
            r#"{"a":1"#,
            "{'a':1}",
            "{\"a\":\"\n\"}",
            "\u{feff}{}",
            "",
        ] {
            assert!(matches!(parsed(text), Err(BodyError::NotJson { .. })), "{text}");
        }
        assert_eq!(CommandBody::parse(b"{\"a\":\"\xff\"}"), Err(BodyError::NotUtf8));
    }

    #[test]
    fn only_an_object_is_a_command() {
        for text in ["null", "true", "1", "-1", "1.5", "\"x\"", "[]", "[{}]"] {
            assert_eq!(parsed(text), Err(BodyError::NotAnObject), "{text}");
        }
    }

    #[test]
    fn ids_are_strings_of_harmless_characters() {
        for value in ["null", "1", "{}", "[]", "true"] {
            let text = format!("{{\"document_id\":{value}}}");
            assert_eq!(parsed(&text), Err(BodyError::NotText { field: "document_id" }), "{text}");
        }
        let long = "x".repeat(ID_LENGTH_MAX + 1);
        for id in
            ["", " ", "a b", "a/b", "a\\nb", "a\\r\\nX: y", "é", "a\\u0000", "<", "%41", &long]
        {
            for field in FIELDS {
                let text = format!("{{\"{field}\":\"{id}\"}}");
                assert_eq!(parsed(&text), Err(BodyError::NotAnId { field }), "{text}");
            }
        }
        assert!(is_id(&long[1..]) && is_id("01939b5e-4c7c-7c3a-8f00-000000000001"));
    }

    #[test]
    fn depth_has_a_limit_and_no_stack_overflows() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            format!("{{\"a\":{open}{close}}}")
        };
        assert!(parsed(&nested(DEPTH_MAX - 1)).is_ok());
        assert_eq!(parsed(&nested(DEPTH_MAX)), Err(BodyError::TooDeep));
        assert_eq!(parsed(&nested(100_000)), Err(BodyError::TooDeep));
        let open = "{\"a\":".repeat(500_000);
        assert_eq!(parsed(&open), Err(BodyError::TooDeep));
    }
}
