//! `?fields=a,b.c`: the parts of a document that a client wants, as the text they are (pure).
//!
//! Not Elasticsearch's source filter: that parses the document, and may write a number in another
//! way than Postgres did.

use serde_json::value::RawValue;

use crate::json::{Object, push_string};

/// A page has some dozens of fields; who wants more takes the document whole.
const FIELDS_MAX: usize = 100;
const FIELD_BYTES_MAX: usize = 256;
/// Levels of objects and lists that are looked into.
const DEPTH_MAX: usize = 20;

/// Which fields are wanted: a tree by name. A leaf takes all that is below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    below: Vec<(String, Selection)>,
}

impl Selection {
    /// Reads `a,b.c`.
    ///
    /// # Errors
    /// What is wrong with it, as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split(',').map(str::trim).collect();
        if fields.len() > FIELDS_MAX {
            return Err(format!("at most {FIELDS_MAX} fields can be asked for"));
        }
        let mut root = Self::default();
        for field in fields {
            let path: Vec<&str> = field.split('.').collect();
            let is_empty = path.iter().any(|it| it.is_empty());
            if is_empty || field.len() > FIELD_BYTES_MAX || path.len() > DEPTH_MAX {
                return Err(
                    "fields are names, or paths of names such as b.c, with commas between \
                            them"
                        .to_owned(),
                );
            }
            root.add(&path);
        }
        Ok(root)
    }

    fn add(&mut self, path: &[&str]) {
        let Some((name, rest)) = path.split_first() else { return };
        let at = self.below.iter().position(|(it, _)| it == name);
        match at.and_then(|at| self.below.get_mut(at)) {
            // A leaf has all already, and becomes one when the whole is asked for.
            Some((_, known)) if known.below.is_empty() => {}
            Some((_, known)) if rest.is_empty() => known.below.clear(),
            Some((_, known)) => known.add(rest),
            None => {
                let mut new = Self::default();
                new.add(rest);
                self.below.push(((*name).to_owned(), new));
            }
        }
    }

    /// The node that a field's name leads to; the name may have dots in it itself.
    fn step(&self, name: &str) -> Option<&Self> {
        let mut node = self;
        for part in name.split('.') {
            node = &node.below.iter().find(|(it, _)| it == part)?.1;
            if node.below.is_empty() {
                return Some(node);
            }
        }
        Some(node)
    }

    /// The wanted part of an object.
    ///
    /// # Errors
    /// The text is no JSON object.
    pub fn of(&self, object: &str) -> Result<String, serde_json::Error> {
        let mut out = String::new();
        self.push_object(object, DEPTH_MAX, &mut out)?;
        Ok(out)
    }

    fn push_object(
        &self,
        text: &str,
        depth: usize,
        out: &mut String,
    ) -> Result<(), serde_json::Error> {
        let object: Object<'_> = serde_json::from_str(text)?;
        out.push('{');
        let mut first = true;
        for (name, value) in &object.0 {
            let Some(node) = self.step(name) else { continue };
            let mut part = String::new();
            if !node.push(value.get(), depth, &mut part)? {
                continue;
            }
            if !std::mem::take(&mut first) {
                out.push(',');
            }
            push_string(name, out);
            out.push(':');
            out.push_str(&part);
        }
        out.push('}');
        Ok(())
    }

    /// Appends the wanted part of a value. False: nothing of it is wanted.
    fn push(&self, text: &str, depth: usize, out: &mut String) -> Result<bool, serde_json::Error> {
        if self.below.is_empty() {
            out.push_str(text);
            return Ok(true);
        }
        match text.as_bytes().first() {
            Some(b'{') if depth > 0 => {
                self.push_object(text, depth - 1, out)?;
                Ok(true)
            }
            Some(b'[') if depth > 0 => {
                let items: Vec<&RawValue> = serde_json::from_str(text)?;
                out.push('[');
                let mut first = true;
                for item in items {
                    let mut part = String::new();
                    if !self.push(item.get(), depth - 1, &mut part)? {
                        continue;
                    }
                    if !std::mem::take(&mut first) {
                        out.push(',');
                    }
                    out.push_str(&part);
                }
                out.push(']');
                Ok(true)
            }
            // A scalar where a field below it was asked for.
            _ => Ok(false),
        }
    }
}

/// Whether a field of the document, or one of its values when it has several, is this text.
pub fn has(object: &Object<'_>, name: &str, wanted: &str) -> bool {
    let Some(text) = object.get(name) else { return false };
    let is_it = |text: &str| match serde_json::from_str::<String>(text) {
        Ok(string) => string == wanted,
        // A number, or true and false.
        Err(_) => text == wanted,
    };
    match serde_json::from_str::<Vec<&RawValue>>(text) {
        Ok(items) => items.iter().any(|it| is_it(it.get())),
        Err(_) => is_it(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"id": 12345678901234567890.10, "a":{"b":1.0,"c":[{"d":1,"e":2},{"e":3},4]}, "x.y":{"z":1,"w":2}, "list":[], "s":"t"}"#;

    #[test]
    fn parts_are_taken_as_they_are_written() {
        for (fields, expected) in [
            ("id", r#"{"id":12345678901234567890.10}"#),
            ("s,id", r#"{"id":12345678901234567890.10,"s":"t"}"#),
            ("a.b", r#"{"a":{"b":1.0}}"#),
            ("a.b,a", r#"{"a":{"b":1.0,"c":[{"d":1,"e":2},{"e":3},4]}}"#),
            ("a,a.b", r#"{"a":{"b":1.0,"c":[{"d":1,"e":2},{"e":3},4]}}"#),
            ("a.c.d", r#"{"a":{"c":[{"d":1},{}]}}"#),
            ("x.y.z", r#"{"x.y":{"z":1}}"#),
            ("x.y", r#"{"x.y":{"z":1,"w":2}}"#),
            ("x", r#"{"x.y":{"z":1,"w":2}}"#),
            ("s.t", "{}"),
            ("list.a", r#"{"list":[]}"#),
            ("none", "{}"),
        ] {
            assert_eq!(
                Selection::parse(fields).unwrap().of(DOCUMENT).unwrap(),
                expected,
                "{fields}"
            );
        }
    }

    #[test]
    fn what_is_no_list_of_fields_is_refused() {
        let long = "x".repeat(FIELD_BYTES_MAX + 1);
        let deep = ["a"; DEPTH_MAX + 1].join(".");
        let many = ["a"; FIELDS_MAX + 1].join(",");
        for text in ["", ",", "a,,b", "a.", ".a", "a..b", &long, &deep, &many] {
            assert!(Selection::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_deep_document_is_no_deep_call() {
        let deep = format!("{}1{}", "[".repeat(900), "]".repeat(900));
        let text = format!(r#"{{"a":{deep}}}"#);
        assert!(Selection::parse("a.b").unwrap().of(&text).is_ok());
    }

    #[test]
    fn a_field_has_a_value_alone_or_among_others() {
        let text = r#"{"a":"x","n":42,"l":["p","x"],"o":{"a":"x"},"e":"\u0078"}"#;
        let object: Object<'_> = serde_json::from_str(text).unwrap();
        for (name, wanted, expected) in [
            ("a", "x", true),
            ("a", "X", false),
            ("n", "42", true),
            ("n", "4", false),
            ("l", "x", true),
            ("l", "y", false),
            ("o", "x", false),
            ("e", "x", true),
            ("none", "x", false),
        ] {
            assert_eq!(has(&object, name, wanted), expected, "{name} {wanted}");
        }
    }
}
