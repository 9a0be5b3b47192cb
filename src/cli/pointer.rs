//! A mistake as a person sees it on a terminal: its place and message, and under them the line of
//! the file with a mark at the column.

use std::path::Path;

use crate::mistake::{Mistake, Mistakes};

/// A wider line is cut around the mark: a screen has not much more.
const SHOWN_COLUMNS: usize = 96;

/// The mistake, and its line if the file can be read (it may have changed meanwhile).
pub fn pointed(mistake: &Mistake) -> String {
    let text = read(&mistake.path).unwrap_or_default();
    match text.lines().nth(mistake.line.saturating_sub(1)) {
        Some(line) if !line.trim().is_empty() => {
            format!("{mistake}\n{}", marked(line, mistake.column))
        }
        _ => mistake.to_string(),
    }
}

/// All mistakes, with an empty line between two.
pub fn all_pointed(mistakes: &Mistakes) -> String {
    let all: Vec<String> = mistakes.0.iter().map(pointed).collect();
    all.join("\n\n")
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The line, and below it `^` at the column (from 1). Tabs become spaces, so that the mark fits.
fn marked(line: &str, column: usize) -> String {
    let line: Vec<char> = line.chars().map(|it| if it.is_control() { ' ' } else { it }).collect();
    let at = column.saturating_sub(1).min(line.len());
    let from = (at + 8).saturating_sub(SHOWN_COLUMNS);
    let cut: String = line.iter().skip(from).take(SHOWN_COLUMNS).collect();
    format!("    {}\n    {}^", cut.trim_end(), " ".repeat(at - from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stands_under_its_column() {
        let cases = [("ab\tü cd", 6, "    ab ü cd\n         ^"), ("a", 9, "    a\n     ^")];
        for (line, column, expected) in cases {
            assert_eq!(marked(line, column), expected, "{line}");
        }
        let long = format!("{}x{}", "-".repeat(500), "-".repeat(500));
        let shown = marked(&long, 501);
        let (cut, mark) = shown.split_once('\n').unwrap();
        assert_eq!(cut.find('x'), mark.find('^'));
        assert!(cut.len() <= SHOWN_COLUMNS + 4);
    }
}
