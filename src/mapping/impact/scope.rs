//! What a name means at a place of the SQL: the ranges of a level, its CTEs, and those around it.
//!
//! A column is followed to its *origin*: the column of an occurrence of a base table that it is
//! a plain copy of. Anything else is opaque, and what is opaque is never part of a path.

use std::rc::Rc;

use pg_query::protobuf::{CommonTableExpr, Node};

use super::link::Value;

/// A column of an occurrence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ColumnOf {
    /// Index into the walk's occurrences.
    pub(super) occurrence: usize,
    pub(super) column: String,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Origin {
    /// A copy of this column wherever the row exists.
    Column(ColumnOf),
    /// An expression over columns of one occurrence; its column references are bare names of
    /// that occurrence's columns (A5).
    Expression { occurrence: usize, node: Box<Node> },
    /// One of these, of which none is opaque or a list itself: COALESCE, CASE, FULL JOIN USING.
    /// Only a key may use it, but for what `equated` allows.
    OneOf {
        members: Vec<Origin>,
        /// A FULL JOIN equates them: whichever of their rows is there has the value.
        equated: bool,
    },
    /// Anything else: an aggregate, two tables, a column that a barrier hides.
    Opaque,
}

impl Origin {
    /// One origin of several; opaque as soon as one of them is.
    pub(super) fn one_of(origins: Vec<Origin>, equated: bool) -> Self {
        let mut members = Vec::new();
        let mut all_equated = equated;
        for origin in origins {
            match origin {
                Self::Opaque => return Self::Opaque,
                Self::OneOf { members: inner, equated } => {
                    all_equated &= equated;
                    members.extend(inner);
                }
                origin @ (Self::Column(_) | Self::Expression { .. }) => members.push(origin),
            }
        }
        match members.is_empty() {
            true => Self::Opaque,
            false => Self::OneOf { members, equated: all_equated },
        }
    }

    /// The values of single occurrences that an equality of this value speaks of, and for each
    /// whether it does so only where the occurrence is p or κ.
    pub(super) fn comparable(&self) -> Vec<(usize, Value, bool)> {
        match self {
            Self::Column(of) => vec![(of.occurrence, Value::Column(of.column.clone()), false)],
            Self::Expression { occurrence, node } => {
                vec![(*occurrence, Value::Computed(node.clone()), false)]
            }
            Self::OneOf { members, equated: true } => {
                let values = members.iter().flat_map(Self::comparable);
                values.map(|(occurrence, value, _)| (occurrence, value, true)).collect()
            }
            Self::OneOf { .. } | Self::Opaque => Vec::new(),
        }
    }

    /// The single origins that the value may come from.
    pub(super) fn alternatives(&self) -> &[Origin] {
        match self {
            Self::OneOf { members, .. } => members,
            origin => std::slice::from_ref(origin),
        }
    }
}

/// An output column of a level, or a column of a range.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) origin: Origin,
    pub(super) collapsed: Collapsed,
}

/// Whether rows that are equal, not identical, may have been merged on the way (A8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Collapsed {
    No,
    /// Rows whose values here are equal.
    ByItself,
    /// Rows of which the columns that the value is made of are equal.
    ByColumns,
}

impl Output {
    pub(super) fn opaque() -> Self {
        Self { name: String::new(), origin: Origin::Opaque, collapsed: Collapsed::No }
    }
}

/// One name in a FROM clause.
#[derive(Debug, Clone)]
pub(super) struct Range {
    pub(super) alias: String,
    pub(super) columns: Vec<Output>,
    /// The occurrence, when the range is a base table.
    pub(super) occurrence: Option<usize>,
}

/// A column that JOIN … USING merged, and the ranges that it stands for.
#[derive(Debug, Clone)]
pub(super) struct Merged {
    pub(super) column: Output,
    pub(super) ranges: std::ops::Range<usize>,
}

/// The names of one level, and of those around it.
#[derive(Debug, Default)]
pub(super) struct Scope<'p> {
    pub(super) ranges: Vec<Range>,
    pub(super) merged: Vec<Merged>,
    pub(super) ctes: Vec<Rc<CommonTableExpr>>,
    /// Aliases of functions in FROM: their columns are opaque, whatever their names are.
    pub(super) functions: Vec<String>,
    pub(super) parent: Option<&'p Scope<'p>>,
}

/// What a column reference means.
#[derive(Debug)]
pub(super) struct Found<'s> {
    pub(super) output: &'s Output,
    /// 0: this level; 1: the one around it.
    pub(super) depth: usize,
}

impl<'p> Scope<'p> {
    pub(super) fn inside(parent: Option<&'p Scope<'p>>) -> Self {
        Self { parent, ..Self::default() }
    }

    /// What a subquery in FROM without LATERAL sees: the CTEs of this level, not its ranges.
    pub(super) fn beside(&self) -> Scope<'p> {
        Scope { ctes: self.ctes.clone(), parent: self.parent, ..Scope::default() }
    }

    /// Whether the alias is that of a function in FROM, here or further out.
    pub(super) fn is_function(&self, alias: &str) -> bool {
        self.functions.iter().any(|it| it == alias)
            || self.parent.is_some_and(|it| it.is_function(alias))
    }

    /// Whether a bare name may be a column of a function in FROM.
    pub(super) fn has_function(&self) -> bool {
        !self.functions.is_empty() || self.parent.is_some_and(Scope::has_function)
    }

    /// The range with this alias, and how many levels up.
    pub(super) fn range(&self, alias: &str) -> Option<(&Range, usize)> {
        if let Some(found) = self.ranges.iter().find(|it| it.alias == alias) {
            return Some((found, 0));
        }
        self.parent?.range(alias).map(|(range, depth)| (range, depth + 1))
    }

    /// `alias.column`.
    pub(super) fn qualified(&self, alias: &str, column: &str) -> Option<Found<'_>> {
        let (range, depth) = self.range(alias)?;
        let output = range.columns.iter().find(|it| it.name == column)?;
        Some(Found { output, depth })
    }

    /// A bare `column`: the innermost level that has one. Two of them are no answer.
    pub(super) fn bare(&self, column: &str) -> Option<Found<'_>> {
        if let Some(merged) = self.merged.iter().rev().find(|it| it.column.name == column) {
            return Some(Found { output: &merged.column, depth: 0 });
        }
        let mut found = self.ranges.iter().filter_map(|range| {
            let output = range.columns.iter().find(|it| it.name == column)?;
            Some(Found { output, depth: 0 })
        });
        match (found.next(), found.next()) {
            (Some(found), None) => Some(found),
            (Some(_), Some(_)) => None,
            (None, _) => {
                let outer = self.parent?.bare(column)?;
                Some(Found { depth: outer.depth + 1, ..outer })
            }
        }
    }

    /// A column named in USING, on one side of the join.
    pub(super) fn in_ranges(&self, column: &str, side: &std::ops::Range<usize>) -> Option<Output> {
        let within = |it: &&Merged| it.ranges.start >= side.start && it.ranges.end <= side.end;
        let merged = self.merged.iter().rev().filter(within);
        if let Some(merged) = merged.into_iter().find(|it| it.column.name == column) {
            return Some(merged.column.clone());
        }
        let ranges = self.ranges.get(side.clone())?;
        ranges.iter().find_map(|it| it.columns.iter().find(|it| it.name == column)).cloned()
    }

    /// The CTE of this name: where it is defined, and its place among that level's CTEs.
    pub(super) fn cte(&self, name: &str) -> Option<(&Scope<'p>, usize)> {
        match self.ctes.iter().position(|it| it.ctename == name) {
            Some(nth) => Some((self, nth)),
            None => self.parent?.cte(name),
        }
    }
}
