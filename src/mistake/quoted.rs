//! A TOML string as it is written, quotes and all: where each character of its value stands.
//!
//! Postgres counts characters of the SQL, a person looks at lines of a file, and between the two
//! are escapes, line ends that a backslash joins, and the line break after `"""`. Pure.

use crate::mistake::line_and_column;

/// The byte offset in `written` of the value's character `nth` (from 0); of the closing quotes
/// when the value ends before it. The text is a valid TOML string (TOML 1.1, String).
pub fn offset_of(written: &str, nth: usize) -> usize {
    let (quotes, body) = opened(written);
    let (basic, multi_line) = (quotes.starts_with('"'), quotes.len() > 1);
    let mut at = written.len() - body.len();
    for _ in 0..nth {
        at = skip_joins(written, at, basic && multi_line);
        at += length_at(&written[at..], basic);
    }
    let end = written.len().saturating_sub(quotes.len());
    skip_joins(written, at, basic && multi_line).min(end)
}

/// Where the value's character `nth` stands, in lines and columns, when its first character
/// stands at `first`.
pub fn place_of(written: &str, first: (usize, usize), nth: usize) -> (usize, usize) {
    let (first_line, first_column) = line_and_column(written, offset_of(written, 0));
    let (line, column) = line_and_column(written, offset_of(written, nth));
    match line - first_line {
        0 => (first.0, first.1 + column - first_column),
        lines => (first.0 + lines, column),
    }
}

/// The opening quotes, and what follows them and the line break that belongs to them.
fn opened(written: &str) -> (&str, &str) {
    for quotes in ["'''", "\"\"\""] {
        if let Some(body) = written.strip_prefix(quotes) {
            let body = body.strip_prefix("\r\n").or(body.strip_prefix('\n')).unwrap_or(body);
            return (quotes, body);
        }
    }
    let quote = written.chars().next().map_or(0, char::len_utf8);
    written.split_at(quote)
}

/// Past any backslash at a line's end, and the white space that it takes away.
fn skip_joins(written: &str, mut at: usize, joins: bool) -> usize {
    while joins && let Some(rest) = written[at..].strip_prefix('\\') {
        let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if !rest[..rest.len() - trimmed.len()].contains('\n') {
            break;
        }
        at = written.len() - trimmed.len();
    }
    at
}

/// Bytes in which the next character is written.
fn length_at(rest: &str, basic: bool) -> usize {
    let mut characters = rest.chars();
    match (characters.next(), characters.next()) {
        (Some('\\'), Some(kind)) if basic => match kind {
            'x' => 4,
            'u' => 6,
            'U' => 10,
            _ => 2,
        },
        (Some(character), _) => character.len_utf8(),
        (None, _) => 0,
    }
    .min(rest.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One character of a value and a way to write it; none: a joined line end.
    fn piece(basic: bool, multi_line: bool) -> BoxedStrategy<(Option<char>, String)> {
        let plain = prop::sample::select(vec!['a', ' ', 'ü', '🦀', '$', '1']);
        let plain = plain.prop_map(|it| (Some(it), it.to_string())).boxed();
        let mut ways = vec![plain];
        if basic {
            let escapes = [
                ('"', "\\\""),
                ('\\', "\\\\"),
                ('\n', "\\n"),
                ('\t', "\\t"),
                ('A', "\\u0041"),
                ('🦀', "\\U0001F980"),
            ];
            let escapes = escapes.map(|(value, written)| (Some(value), written.to_owned()));
            ways.push(prop::sample::select(escapes.to_vec()).boxed());
        }
        if multi_line {
            ways.push(Just((Some('\n'), "\n".to_owned())).boxed());
        }
        if basic && multi_line {
            ways.push(Just((None, "\\ \n \t\n".to_owned())).boxed());
        }
        prop::strategy::Union::new(ways).boxed()
    }

    fn written() -> impl Strategy<Value = (String, Vec<(Option<char>, String)>)> {
        prop::sample::select(vec!["\"", "'", "\"\"\"", "'''"]).prop_flat_map(|quotes| {
            let pieces = piece(quotes.starts_with('"'), quotes.len() > 1);
            (Just(quotes.to_owned()), prop::collection::vec(pieces, 0..12))
        })
    }

    proptest! {
        /// TOML's own parser says what the value is; the pieces say where each character begins.
        #[test]
        fn every_character_is_found_where_it_is_written((quotes, mut pieces) in written()) {
            // White space after a joined line end is taken away with it.
            for nth in 1..pieces.len() {
                let joined = pieces[..nth].iter().rev().find(|it| it.0 != Some(' ') || it.1 != " ");
                if joined.is_some_and(|it| it.0.is_none())
                    && [" ", "\n"].contains(&pieces[nth].1.as_str())
                {
                    pieces[nth] = (Some('b'), "b".to_owned());
                }
            }
            let open = if quotes.len() > 1 { format!("{quotes}\n") } else { quotes.clone() };
            let text: String = pieces.iter().map(|it| it.1.as_str()).collect();
            let string = format!("{open}{text}{quotes}");
            let value: String = pieces.iter().filter_map(|it| it.0).collect();
            let parsed: toml::Table = toml::from_str(&format!("v = {string}\n")).unwrap();
            prop_assert_eq!(parsed["v"].as_str(), Some(value.as_str()));

            let (mut at, mut nth) = (open.len(), 0);
            for (character, written) in &pieces {
                if character.is_some() {
                    prop_assert_eq!(offset_of(&string, nth), at, "character {} of {}", nth, string);
                    nth += 1;
                }
                at += written.len();
            }
            prop_assert_eq!(offset_of(&string, nth), at, "the end of {}", string);
            prop_assert_eq!(offset_of(&string, nth + 5), at, "beyond the end of {}", string);
        }
    }

    #[test]
    fn places_are_those_of_the_file() {
        let cases = [
            ("\"a \\\"b\\\" c\"", 7, (4, 17)),
            ("\"a\\nb\"", 2, (4, 11)),
            ("'''\na\n  b'''", 4, (6, 3)),
            ("\"\"\"a \\\n   b\"\"\"", 2, (5, 4)),
        ];
        for (written, nth, expected) in cases {
            // The value's first character: behind the quotes, or at the next line's beginning.
            let first = if written.starts_with("'''\n") { (5, 1) } else { (4, 8) };
            let first = if written.starts_with("\"\"\"") { (4, 10) } else { first };
            assert_eq!(place_of(written, first, nth), expected, "{written}");
        }
    }
}
