//! Values with parts: arrays, composites, vectors and hstore.
//!
//! The manual's sections "Array Input and Output Syntax" and "Composite Type Input and Output
//! Syntax". Only what Postgres prints is accepted, which is less than what it reads: no white
//! space between parts, no lower-case null.

use std::borrow::Cow;

use super::{Composite, Kind, write_json, write_string};
use crate::postgres::decode::DecodeError;

/// Postgres' MAXDIM: more braces than this are not an array, and would cost us stack.
const DIMENSIONS_MAX: usize = 6;

const ARRAY: DecodeError = DecodeError::MalformedValue { kind: "array" };
const COMPOSITE: DecodeError = DecodeError::MalformedValue { kind: "composite" };
const HSTORE: DecodeError = DecodeError::MalformedValue { kind: "hstore" };

/// `{1,NULL,"a b"}`, `{{1,2},{3,4}}`, and with lower bounds `[0:1]={1,2}`, which JSON has not.
pub(super) fn write_array(
    element: &Kind,
    delimiter: u8,
    text: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    let mut cursor = Cursor { rest: text };
    if text.starts_with(b"[") {
        let bounds = cursor.until(|it| it == b'=');
        if !bounds.iter().all(|it| it.is_ascii_digit() || b"[]:-".contains(it)) {
            return Err(ARRAY);
        }
        cursor.expect(b'=', ARRAY)?;
    }
    write_dimension(&mut cursor, (element, delimiter), DIMENSIONS_MAX, out)?;
    cursor.finish(ARRAY)
}

fn write_dimension(
    cursor: &mut Cursor<'_>,
    (element, delimiter): (&Kind, u8),
    dimensions_left: usize,
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    let Some(dimensions_left) = dimensions_left.checked_sub(1) else { return Err(ARRAY) };
    cursor.expect(b'{', ARRAY)?;
    out.push(b'[');
    if cursor.take(b'}') {
        out.push(b']');
        return Ok(());
    }
    loop {
        match cursor.peek() {
            Some(b'{') => write_dimension(cursor, (element, delimiter), dimensions_left, out)?,
            Some(b'"') => write_json(element, &cursor.quoted(ARRAY)?, out)?,
            _ => match cursor.until(|it| it == delimiter || b"{}\"\\".contains(&it)) {
                b"" => return Err(ARRAY),
                b"NULL" => out.extend_from_slice(b"null"),
                text => write_json(element, text, out)?,
            },
        }
        if cursor.take(b'}') {
            out.push(b']');
            return Ok(());
        }
        cursor.expect(delimiter, ARRAY)?;
        out.push(b',');
    }
}

/// `1 2 3`: int2vector and oidvector.
pub(super) fn write_vector(
    element: &Kind,
    text: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    out.push(b'[');
    for (nth, part) in text.split(|&it| it == b' ').enumerate() {
        if text.is_empty() {
            break;
        }
        if nth > 0 {
            out.push(b',');
        }
        write_json(element, part, out)?;
    }
    out.push(b']');
    Ok(())
}

/// `(1,,"a ""b""")`: nothing between commas is NULL.
pub(super) fn write_composite(
    composite: &Composite,
    text: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    let found = count_attributes(text, composite.len());
    let mut refused = DecodeError::OtherAttributes { found, known: composite.len() };
    let start = out.len();
    for (nth, attributes) in composite.of_length(found).enumerate() {
        match write_attributes(attributes, text, out) {
            Ok(()) => return Ok(()),
            Err(error) if nth == 0 => refused = error,
            Err(_) => {}
        }
        out.truncate(start);
    }
    Err(refused)
}

fn write_attributes(
    attributes: &[(String, Kind)],
    text: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), DecodeError> {
    let mut cursor = Cursor { rest: text };
    cursor.expect(b'(', COMPOSITE)?;
    out.push(b'{');
    for (nth, (name, kind)) in attributes.iter().enumerate() {
        if nth > 0 {
            cursor.expect(b',', COMPOSITE)?;
            out.push(b',');
        }
        write_string(name.as_bytes(), out)?;
        out.push(b':');
        match cursor.peek() {
            Some(b'"') => write_json(kind, &cursor.quoted(COMPOSITE)?, out)?,
            _ => match cursor.until(|it| b",()\"\\".contains(&it)) {
                b"" => out.extend_from_slice(b"null"),
                text => write_json(kind, text, out)?,
            },
        }
    }
    cursor.expect(b')', COMPOSITE)?;
    out.push(b'}');
    cursor.finish(COMPOSITE)
}

/// How many attributes the text of a composite has. Nothing between the parentheses is one that is
/// NULL, unless the type has none.
fn count_attributes(text: &[u8], known: usize) -> usize {
    if text == b"()" {
        return known.min(1);
    }
    let (mut quoted, mut escaped, mut commas) = (false, false, 0);
    for &byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => commas += 1,
            _ => {}
        }
    }
    commas + 1
}

/// `"a"=>"1", "b"=>NULL`
pub(super) fn write_hstore(text: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    let mut cursor = Cursor { rest: text };
    out.push(b'{');
    while !cursor.rest.is_empty() {
        if cursor.rest.len() < text.len() {
            cursor.expect(b',', HSTORE)?;
            cursor.expect(b' ', HSTORE)?;
            out.push(b',');
        }
        write_string(&cursor.quoted(HSTORE)?, out)?;
        out.push(b':');
        cursor.expect(b'=', HSTORE)?;
        cursor.expect(b'>', HSTORE)?;
        match cursor.peek() {
            Some(b'"') => write_string(&cursor.quoted(HSTORE)?, out)?,
            _ if cursor.until(|it| it == b',') == b"NULL" => out.extend_from_slice(b"null"),
            _ => return Err(HSTORE),
        }
    }
    out.push(b'}');
    Ok(())
}

/// What is still to be read of a value's text.
struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    /// Passes over `byte` if it is the next one.
    fn take(&mut self, byte: u8) -> bool {
        match self.rest.split_first() {
            Some((&next, rest)) if next == byte => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn expect(&mut self, byte: u8, otherwise: DecodeError) -> Result<(), DecodeError> {
        if self.take(byte) { Ok(()) } else { Err(otherwise) }
    }

    /// What stands before the first byte that `stop` holds for, or before the end.
    fn until(&mut self, stop: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.rest.iter().position(|&it| stop(it)).unwrap_or(self.rest.len());
        let (found, rest) = self.rest.split_at(end);
        self.rest = rest;
        found
    }

    /// A part in double quotes. Within them a backslash stands before a character that is meant
    /// as it is, and composites write a quote as two; in arrays no quote follows a closing one.
    fn quoted(&mut self, otherwise: DecodeError) -> Result<Cow<'a, [u8]>, DecodeError> {
        self.expect(b'"', otherwise.clone())?;
        let mut unescaped: Option<Vec<u8>> = None;
        loop {
            let plain = self.until(|it| it == b'"' || it == b'\\');
            let literal = if self.take(b'\\') {
                let Some((&next, rest)) = self.rest.split_first() else { return Err(otherwise) };
                self.rest = rest;
                next
            } else {
                self.expect(b'"', otherwise.clone())?;
                if !self.take(b'"') {
                    return Ok(match unescaped {
                        None => Cow::Borrowed(plain),
                        Some(mut text) => {
                            text.extend_from_slice(plain);
                            Cow::Owned(text)
                        }
                    });
                }
                b'"'
            };
            let text = unescaped.get_or_insert_default();
            text.extend_from_slice(plain);
            text.push(literal);
        }
    }

    fn finish(&self, otherwise: DecodeError) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(otherwise) }
    }
}
