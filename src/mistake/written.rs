//! A TOML file as a person wrote it: keys are taken out of its tables one by one, each with its
//! place, and every mistake is kept.
//!
//! Not serde: that stops at the first mistake, and who edits a file wants to hear of all. A table
//! asks for each key that it knows; what is left over when it is finished is unknown, and is
//! reported with the nearest key that was asked for. So a key can't be accepted without being
//! read, nor be read without being accepted.
//!
//! **Invariant:** a `take_…` that answers None for a key that is present has kept a mistake.

use std::cell::{Cell, RefCell};
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Value};

use crate::mistake::{Mistake, Mistakes, line_and_column, quoted};

/// Replaces what stands for something else in a string, such as `${NAME}`; Err: the mistake.
pub type Expand<'a> = &'a dyn Fn(&str) -> Result<String, String>;

/// Shorter, and the work would be nothing but the interval.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Longer is a slip of the pen; "off" says never.
const INTERVAL_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The file that is being read, and what was found wrong so far.
pub struct Source<'s> {
    path: &'s Path,
    text: &'s str,
    expand: Option<Expand<'s>>,
    mistakes: RefCell<Vec<Mistake>>,
    /// The text is not TOML: what else is found wrong would only follow from that.
    broken: Cell<bool>,
}

/// A value and where it stands, in bytes of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written<T> {
    pub value: T,
    pub span: Range<usize>,
}

impl<'s> Source<'s> {
    pub fn new(path: &'s Path, text: &'s str, expand: Option<Expand<'s>>) -> Self {
        Self { path, text, expand, mistakes: RefCell::default(), broken: Cell::new(false) }
    }

    /// Keeps a mistake, unless the text is no TOML at all, which has been kept then.
    pub fn mistake(&self, span: Range<usize>, message: impl Into<String>) {
        if !self.broken.get() {
            self.mistakes.borrow_mut().push(Mistake::at(self.path, self.text, span, message));
        }
    }

    /// The 1-based line and column of a byte offset.
    pub fn place(&self, offset: usize) -> (usize, usize) {
        line_and_column(self.text, offset)
    }

    /// The file's top table. What does not parse is kept as mistakes, and the rest is read.
    pub fn top<'t>(&'t self) -> Table<'t, 's> {
        let (top, errors) = DeTable::parse_recoverable(self.text);
        let mut errors: Vec<_> =
            errors.iter().map(|it| (it.span().unwrap_or(0..0), it.message())).collect();
        errors.sort_by_key(|(span, _)| span.start);
        let mut last = None;
        for (span, message) in &errors {
            let line = self.place(span.start).0;
            // What is wrong on the same line or the next mostly follows from the first.
            if last.is_none_or(|it| line > it + 1) {
                let cure = match *message {
                    "duplicate key" => "; it stands in this file already: keep one",
                    _ => self.cure_of_quotes(span.start),
                };
                self.mistake(span.clone(), format!("this is not TOML: {message}{cure}"));
            }
            last = Some(line);
        }
        self.broken.set(!errors.is_empty());
        let span = top.span();
        Table { source: self, table: top.into_inner(), title: String::new(), span, known: vec![] }
    }

    /// What cures most lines with quotes that are no TOML.
    fn cure_of_quotes(&self, offset: usize) -> &'static str {
        let line = self.text.lines().nth(self.place(offset).0 - 1).unwrap_or_default();
        match line.contains('"') {
            true => {
                "; a text with double quotes in it, or of several lines, goes between ''' and '''"
            }
            false => "",
        }
    }

    /// A value as it is written, quotes and all.
    pub fn text_of(&self, span: &Range<usize>) -> &'s str {
        self.text.get(span.clone()).unwrap_or_default()
    }

    /// The byte offset of a string's first character, inside its quotes. `span` is the value's.
    pub fn inside_quotes(&self, span: &Range<usize>) -> usize {
        span.start + quoted::offset_of(self.text_of(span), 0)
    }

    /// All mistakes in the file's order; Ok when there is none.
    ///
    /// # Errors
    /// What was kept.
    pub fn finish(self) -> Result<(), Mistakes> {
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort();
        mistakes.dedup();
        if mistakes.is_empty() { Ok(()) } else { Err(Mistakes(mistakes)) }
    }
}

/// A table whose keys have not all been taken yet.
pub struct Table<'t, 's> {
    source: &'t Source<'s>,
    table: DeTable<'s>,
    /// How messages name the table, such as `[kafka]`; empty for the file itself.
    title: String,
    span: Range<usize>,
    known: Vec<&'static str>,
}

impl<'t, 's> Table<'t, 's> {
    /// Where the table stands.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// The value of a key, and the key's own place.
    fn take(&mut self, key: &'static str) -> Option<(Spanned<DeValue<'s>>, Range<usize>)> {
        self.known.push(key);
        let (name, value) = self.table.remove_entry(key)?;
        Some((value, name.span()))
    }

    /// The place of a key that has not been taken.
    pub fn key_span(&self, key: &str) -> Option<Range<usize>> {
        self.table.get_key_value(key).map(|(name, _)| name.span())
    }

    /// Keeps a mistake about a key that must be there.
    pub fn missing(&self, key: &str, example: &str) {
        let of = if self.title.is_empty() { String::new() } else { format!(" in {}", self.title) };
        let message = format!("{key} is missing{of}: write {key} = {example}");
        self.source.mistake(self.span.clone(), message);
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let found = value.get_ref().type_str();
        self.source.mistake(value.span(), format!("{key} must be {expected}, not {found}"));
    }

    fn expanded(&self, text: &str, span: &Range<usize>) -> Option<String> {
        let Some(expand) = self.source.expand else { return Some(text.to_owned()) };
        match expand(text) {
            Ok(expanded) => Some(expanded),
            Err(message) => {
                self.source.mistake(span.clone(), message);
                None
            }
        }
    }

    pub fn take_string(&mut self, key: &'static str) -> Option<Written<String>> {
        let (value, _) = self.take(key)?;
        let Some(text) = value.get_ref().as_str() else {
            self.wrong_type(key, &value, "a string");
            return None;
        };
        let value_text = self.expanded(text, &value.span())?;
        Some(Written { value: value_text, span: value.span() })
    }

    /// A string that says a time; a bare number gets its unit asked for.
    fn take_span(&mut self, key: &'static str, examples: &str) -> Option<Written<String>> {
        if let Some((_, value)) = self.table.get_key_value(key)
            && value.get_ref().as_str().is_none()
        {
            self.known.push(key);
            let expected = format!("a time with its unit, such as {examples}");
            self.wrong_type(key, value, &expected);
            self.table.remove(key);
            return None;
        }
        self.take_string(key)
    }

    pub fn take_bool(&mut self, key: &'static str) -> Option<bool> {
        let (value, _) = self.take(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type(key, &value, "true or false");
        }
        found
    }

    /// A whole number within `range`.
    pub fn take_number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<u64>,
    ) -> Option<Written<u64>> {
        let (value, _) = self.take(key)?;
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, &value, "a whole number");
            return None;
        };
        let parsed = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        match parsed.filter(|it| range.contains(it)) {
            Some(number) => Some(Written { value: number, span: value.span() }),
            None => {
                let (least, most) = (range.start(), range.end());
                let message = format!("{key} must be from {least} to {most}, not {integer}");
                self.source.mistake(value.span(), message);
                None
            }
        }
    }

    /// A duration such as "5s" within `range`.
    pub fn take_duration(
        &mut self,
        key: &'static str,
        range: RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let written = self.take_span(key, "\"5s\", \"2m\" or \"1h\"")?;
        let message = match humantime::parse_duration(&written.value) {
            Ok(duration) if range.contains(&duration) => return Some(duration),
            Ok(_) => format!(
                "{key} must be from {} to {}",
                humantime::format_duration(*range.start()),
                humantime::format_duration(*range.end())
            ),
            Err(error) => {
                format!("{key} must be a duration such as \"5s\", \"2m\" or \"1h\": {error}")
            }
        };
        self.source.mistake(written.span, message);
        None
    }

    /// How often something is done: a duration, or "off" or "0s" for never, which are zero.
    pub fn take_interval(&mut self, key: &'static str) -> Option<Duration> {
        let written = self.take_span(key, "\"30s\", \"2m\" or \"1h\", or \"off\"")?;
        let parsed = match written.value.as_str() {
            "off" => Some(Duration::ZERO),
            text => humantime::parse_duration(text).ok(),
        };
        let valid = parsed.filter(|it| it.is_zero() || (INTERVAL_MIN..=INTERVAL_MAX).contains(it));
        if valid.is_none() {
            let message = format!(
                "{key} must be \"off\", or a duration from \"100ms\" to \"365d\", such as \"30s\""
            );
            self.source.mistake(written.span, message);
        }
        valid
    }

    /// A list of strings.
    pub fn take_strings(&mut self, key: &'static str) -> Option<Written<Vec<Written<String>>>> {
        let (value, _) = self.take(key)?;
        let Some(items) = value.get_ref().as_array() else {
            self.wrong_type(key, &value, "a list of strings, such as [\"a\", \"b\"]");
            return None;
        };
        let mut strings = Vec::new();
        for item in items.iter() {
            match item.get_ref().as_str() {
                Some(text) => strings
                    .push(Written { value: self.expanded(text, &item.span())?, span: item.span() }),
                None => {
                    self.wrong_type(&format!("each of {key}"), item, "a string");
                    return None;
                }
            }
        }
        Some(Written { value: strings, span: value.span() })
    }

    /// An inner table; an empty one when the key is missing.
    pub fn take_table(&mut self, key: &'static str) -> Table<'t, 's> {
        let empty = Table {
            source: self.source,
            table: DeTable::new(),
            title: format!("[{key}]"),
            span: self.span.clone(),
            known: vec![],
        };
        let Some((value, key_span)) = self.take(key) else { return empty };
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(table) => Table { table, span: key_span, ..empty },
            other => {
                self.wrong_type(key, &Spanned::new(span, other), "a table");
                empty
            }
        }
    }

    /// Every table of a `[[key]]`.
    pub fn take_tables(&mut self, key: &'static str) -> Vec<Table<'t, 's>> {
        let Some((value, _)) = self.take(key) else { return vec![] };
        let span = value.span();
        let items = match value.into_inner() {
            DeValue::Array(items) => items,
            other => {
                self.wrong_type(
                    key,
                    &Spanned::new(span, other),
                    &format!("written as [[{key}]], in double brackets"),
                );
                return vec![];
            }
        };
        let mut tables = Vec::new();
        for item in items {
            let span = item.span();
            match item.into_inner() {
                DeValue::Table(table) => tables.push(Table {
                    source: self.source,
                    table,
                    title: format!("[[{key}]]"),
                    span,
                    known: vec![],
                }),
                other => {
                    self.wrong_type(key, &Spanned::new(span, other), &format!("a [[{key}]]"));
                }
            }
        }
        tables
    }

    /// The rest of a table whose keys are names that the writer chose, in the file's order.
    pub fn take_named_tables(mut self) -> Vec<(Written<String>, Table<'t, 's>)> {
        let mut named = Vec::new();
        for (name, value) in std::mem::take(&mut self.table) {
            let span = value.span();
            match value.into_inner() {
                DeValue::Table(table) => named.push((
                    Written { value: name.get_ref().to_string(), span: name.span() },
                    Table {
                        source: self.source,
                        table,
                        title: format!("[{}.{}]", self.title.trim_matches(['[', ']']), &name),
                        span: name.span(),
                        known: vec![],
                    },
                )),
                other => self.wrong_type(name.get_ref(), &Spanned::new(span, other), "a table"),
            }
        }
        named.sort_by_key(|(name, _)| name.span.start);
        named
    }

    /// The rest of a table whose keys are names that the writer chose, in the file's order.
    pub fn take_rest(mut self) -> Vec<(Written<String>, Written<Value>)> {
        let mut rest = Vec::new();
        for (name, value) in std::mem::take(&mut self.table) {
            let span = value.span();
            let Some(plain) = plain(value.get_ref()) else {
                self.source.mistake(span, "this number is out of range");
                continue;
            };
            let name = Written { value: name.get_ref().to_string(), span: name.span() };
            rest.push((name, Written { value: plain, span }));
        }
        rest.sort_by_key(|(name, _)| name.span.start);
        rest
    }

    /// The rest of a table as properties `a.b.c = "text"`, in the file's order. Inner tables are
    /// the same as dots in a name; numbers and booleans are taken as their text.
    pub fn take_properties(mut self) -> Vec<(Written<String>, String)> {
        let mut properties = Vec::new();
        let table = std::mem::take(&mut self.table);
        self.flatten("", table, &mut properties);
        properties.sort_by_key(|(name, _)| name.span.start);
        properties
    }

    fn flatten(&self, prefix: &str, table: DeTable<'s>, into: &mut Vec<(Written<String>, String)>) {
        for (name, value) in table {
            let full_name = format!("{prefix}{}", name.get_ref());
            let span = value.span();
            let text = match value.into_inner() {
                DeValue::Table(inner) => {
                    self.flatten(&format!("{full_name}."), inner, into);
                    continue;
                }
                DeValue::String(text) => self.expanded(&text, &span),
                DeValue::Integer(it) => Some(it.to_string()),
                DeValue::Float(it) => Some(it.as_str().to_owned()),
                DeValue::Boolean(it) => Some(it.to_string()),
                other @ (DeValue::Datetime(_) | DeValue::Array(_)) => {
                    self.wrong_type(&full_name, &Spanned::new(span, other), "a string");
                    None
                }
            };
            if let Some(text) = text {
                into.push((Written { value: full_name, span: name.span() }, text));
            }
        }
    }

    /// Reports every key that was not asked for.
    pub fn finish(self) {
        let of = if self.title.is_empty() { String::new() } else { format!(" in {}", self.title) };
        for name in self.table.keys() {
            let hint = match nearest(name.get_ref(), &self.known) {
                Some(known) => format!("did you mean {known}?"),
                None => format!("known are: {}", self.known.join(", ")),
            };
            let message = format!("unknown key {}{of}; {hint}", name.get_ref());
            self.source.mistake(name.span(), message);
        }
    }
}

/// A value without places. None: a number that does not fit.
fn plain(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(it) => Value::Integer(i64::from_str_radix(it.as_str(), it.radix()).ok()?),
        DeValue::Float(it) => Value::Float(it.as_str().parse().ok()?),
        DeValue::Boolean(it) => Value::Boolean(*it),
        DeValue::Datetime(it) => Value::Datetime(*it),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|it| plain(it.get_ref())).collect::<Option<_>>()?)
        }
        DeValue::Table(table) => Value::Table(
            table
                .iter()
                .map(|(name, it)| Some((name.get_ref().to_string(), plain(it.get_ref())?)))
                .collect::<Option<_>>()?,
        ),
    })
}

/// The known key that is most like the given one, if any is like it at all.
pub fn nearest<'k>(given: &str, known: &[&'k str]) -> Option<&'k str> {
    let close_enough = |it: &str| it.chars().count().max(given.chars().count()).div_ceil(3);
    known
        .iter()
        .map(|it| (edits(given, it), *it))
        .filter(|&(edits, it)| edits <= close_enough(it) || it.contains(given) && given.len() > 2)
        .min()
        .map(|(_, it)| it)
}

/// Levenshtein's distance: single characters inserted, removed or replaced.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (nth, left) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = nth + 1;
        for (at, right) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(left != *right);
            diagonal = row[at + 1];
            row[at + 1] = replaced.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found_or_none_is() {
        let known = ["brokers", "topic_prefix", "group_id"];
        let cases = [
            ("borkers", Some("brokers")),
            ("broker", Some("brokers")),
            ("prefix", Some("topic_prefix")),
            ("topic-prefix", Some("topic_prefix")),
            ("zzz", None),
        ];
        for (given, expected) in cases {
            assert_eq!(nearest(given, &known), expected, "{given}");
        }
    }
}
