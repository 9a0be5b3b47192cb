//! What a person wrote wrong in a file, and where. For `config.toml` and mapping files alike.

pub mod quoted;
pub mod written;

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::error::Category;

/// One mistake, at the place where it was written: `connectors/a.toml:3:7: message`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{}:{line}:{column}: {message}", path.display())]
pub struct Mistake {
    pub path: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl Mistake {
    /// A mistake at a byte range of `text`, the content of the file at `path`.
    pub fn at(path: &Path, text: &str, span: Range<usize>, message: impl Into<String>) -> Self {
        let (line, column) = line_and_column(text, span.start);
        Self { path: path.to_owned(), line, column, message: message.into() }
    }

    /// What a parser of JSON says of the file. Never what stands there, which may be a secret.
    pub fn in_json(path: &Path, error: &serde_json::Error) -> Self {
        let (line, column) = (error.line().max(1), error.column().max(1));
        let said = error.to_string();
        let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(it, _)| it);
        let message = match error.classify() {
            Category::Data => "it is JSON of another form".to_owned(),
            Category::Syntax | Category::Eof | Category::Io => format!("it is not JSON: {said}"),
        };
        Self { path: path.to_owned(), line, column, message }
    }
}

/// The 1-based line and column (in characters) of a byte offset.
pub fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|&it| it != '\n').count() + 1;
    (line, column)
}

/// All mistakes of a load, one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, mistake) in self.0.iter().enumerate() {
            if nth > 0 {
                writeln!(f)?;
            }
            fmt::Display::fmt(mistake, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "a = 1\nü = \"é\"\n";
        let cases =
            [(0, (1, 1)), (5, (1, 6)), (6, (2, 1)), (8, (2, 2)), (999, (3, 1)), (7, (2, 1))];
        for (offset, expected) in cases {
            assert_eq!(line_and_column(text, offset), expected, "offset {offset}");
        }
    }
}
