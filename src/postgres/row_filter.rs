//! Row filters: which rows of a table a topic is of. A WHERE of a column with literals, read by
//! Postgres' own grammar and evaluated here over the values as the stream has them, with SQL's
//! three-valued logic.
//!
//! The language is small, so that what is evaluated here is what Postgres would say: `=`, `<>`, `IN`,
//! `IS NULL`, a boolean column, `AND`, `OR`, `NOT`; and `<`, `<=`, `>`, `>=`, `BETWEEN` for numbers,
//! dates and timestamps. No functions, and no order of text, which is up to a collation.
//!
//! Evaluation is total: a column that a row of old lacks is NULL there, and one whose value was not
//! sent makes the verdict [`Verdict::Unsure`] unless the others decide.

mod compare;
mod parse;

use std::collections::BTreeSet;

use compare::{Class, order};

use crate::change::Datum;
use crate::relation::Relation;

/// A condition as written, with columns by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowFilter {
    condition: Condition<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition<C> {
    And(Vec<Self>),
    Or(Vec<Self>),
    Not(Box<Self>),
    IsNull(C),
    /// A boolean column by itself.
    IsTrue(C),
    Compare {
        column: C,
        operator: Operator,
        literal: Literal,
    },
    In {
        column: C,
        literals: Vec<Literal>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Operator {
    fn needs_order(self) -> bool {
        !matches!(self, Self::Equal | Self::NotEqual)
    }

    fn holds(self, order: std::cmp::Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Literal {
    Number(String),
    Text(String),
    Bool(bool),
}

/// What is known of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    /// It was not sent.
    Unsent,
    Text(&'a [u8]),
}

impl<'a> From<Datum<'a>> for Value<'a> {
    fn from(datum: Datum<'a>) -> Self {
        match datum {
            Datum::Null => Self::Null,
            Datum::UnchangedToast => Self::Unsent,
            Datum::Text(text) => Self::Text(text),
        }
    }
}

/// Whether a row passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Passes,
    Fails,
    /// It is up to a value that was not sent.
    Unsure,
}

/// A column's type, as far as a filter is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterColumn {
    pub name: String,
    /// Of a domain that of its base type.
    pub type_oid: u32,
    /// `pg_type.typtype` of that type is `e`.
    pub is_enum: bool,
    /// Texts are equal if they are the same.
    pub deterministic: bool,
}

impl RowFilter {
    /// Reads a condition.
    ///
    /// # Errors
    /// What is not understood, and what may be written.
    pub fn parse(text: &str) -> Result<Self, String> {
        parse::condition(text).map(|condition| Self { condition })
    }

    /// The columns that it reads.
    pub fn columns(&self) -> BTreeSet<&str> {
        fn collect<'c>(it: &'c Condition<String>, into: &mut BTreeSet<&'c str>) {
            match it {
                Condition::And(all) | Condition::Or(all) => {
                    all.iter().for_each(|it| collect(it, into));
                }
                Condition::Not(it) => collect(it, into),
                Condition::IsNull(column)
                | Condition::IsTrue(column)
                | Condition::Compare { column, .. }
                | Condition::In { column, .. } => {
                    into.insert(column);
                }
            }
        }
        let mut found = BTreeSet::new();
        collect(&self.condition, &mut found);
        found
    }

    /// What Postgres would evaluate otherwise than we do, or not at all, if the columns are these.
    pub fn mistakes(&self, columns: &[FilterColumn]) -> Vec<String> {
        let mut found = Vec::new();
        self.condition.mistakes(columns, &mut found);
        found.dedup();
        found
    }

    /// The filter of rows of `relation`.
    pub fn bind(&self, relation: &Relation) -> BoundFilter {
        let place = |name: &String| {
            let nth = relation.columns.iter().position(|it| it.name == *name)?;
            Some((nth, Class::of(relation.columns[nth].type_oid)))
        };
        BoundFilter { condition: self.condition.map(&place) }
    }
}

impl Condition<String> {
    fn map<C>(&self, f: &impl Fn(&String) -> C) -> Condition<C> {
        let all = |of: &[Self]| of.iter().map(|it| it.map(f)).collect();
        match self {
            Self::And(of) => Condition::And(all(of)),
            Self::Or(of) => Condition::Or(all(of)),
            Self::Not(it) => Condition::Not(Box::new(it.map(f))),
            Self::IsNull(column) => Condition::IsNull(f(column)),
            Self::IsTrue(column) => Condition::IsTrue(f(column)),
            Self::Compare { column, operator, literal } => Condition::Compare {
                column: f(column),
                operator: *operator,
                literal: literal.clone(),
            },
            Self::In { column, literals } => {
                Condition::In { column: f(column), literals: literals.clone() }
            }
        }
    }

    fn mistakes(&self, columns: &[FilterColumn], found: &mut Vec<String>) {
        let find = |name: &String| columns.iter().find(|it| it.name == *name);
        let (name, literals, ordered): (_, &[Literal], _) = match self {
            Self::And(all) | Self::Or(all) => {
                return all.iter().for_each(|it| it.mistakes(columns, found));
            }
            Self::Not(it) => return it.mistakes(columns, found),
            Self::IsNull(name) => (name, &[], false),
            Self::IsTrue(name) => (name, &[Literal::Bool(true)], false),
            Self::Compare { column, operator, literal } => {
                (column, std::slice::from_ref(literal), operator.needs_order())
            }
            Self::In { column, literals } => (column, literals, false),
        };
        let Some(column) = find(name) else {
            return found.push(format!("where reads column {name}, which the table does not have"));
        };
        if literals.is_empty() {
            return;
        }
        let class = Class::of(column.type_oid);
        let comparable =
            class != Class::Text || column.is_enum || compare::is_text(column.type_oid);
        if !comparable || !column.deterministic {
            return found.push(format!(
                "where compares column {name}, of a type or collation whose equality only Postgres \
                 knows; what can be compared are numbers, booleans, text, uuid, enums, dates and \
                 timestamps"
            ));
        }
        if ordered && !matches!(class, Class::Number | Class::Time) {
            found.push(format!(
                "where compares the order of column {name}, which is for numbers, dates and \
                 timestamps; of others write =, <> or IN"
            ));
        }
        for literal in literals {
            if let Some(expected) = compare::unfit(class, literal) {
                found.push(format!("where compares column {name} with something but {expected}"));
            }
        }
    }
}

/// A filter with the places of its columns; None: the row has no such column.
#[derive(Debug, Clone)]
pub struct BoundFilter {
    condition: Condition<Option<(usize, Class)>>,
}

/// SQL's three, and what we do not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    True,
    False,
    Null,
    Unsure,
}

impl From<bool> for Truth {
    fn from(it: bool) -> Self {
        if it { Self::True } else { Self::False }
    }
}

impl Truth {
    fn not(self) -> Self {
        match self {
            Self::True => Self::False,
            Self::False => Self::True,
            Self::Null | Self::Unsure => self,
        }
    }

    /// AND if `decides` is False, OR if it is True.
    fn all(of: impl Iterator<Item = Self>, decides: Self) -> Self {
        let mut result = decides.not();
        for it in of {
            if it == decides {
                return it;
            }
            result = match (result, it) {
                (Self::Unsure, _) | (_, Self::Unsure) => Self::Unsure,
                (Self::Null, _) | (_, Self::Null) => Self::Null,
                (result, _) => result,
            };
        }
        result
    }
}

impl BoundFilter {
    /// Whether the row passes whose column at a place is `value` of it.
    pub fn verdict<'v>(&self, value: &impl Fn(usize) -> Value<'v>) -> Verdict {
        match truth(&self.condition, value) {
            Truth::True => Verdict::Passes,
            Truth::False | Truth::Null => Verdict::Fails,
            Truth::Unsure => Verdict::Unsure,
        }
    }
}

fn truth<'v>(
    condition: &Condition<Option<(usize, Class)>>,
    value: &impl Fn(usize) -> Value<'v>,
) -> Truth {
    let of = |column: &Option<(usize, Class)>| column.map_or(Value::Null, |it| value(it.0));
    let with =
        |column: &Option<(usize, Class)>, holds: &dyn Fn(Class, &[u8]) -> Option<bool>| match of(
            column,
        ) {
            Value::Null => Truth::Null,
            Value::Unsent => Truth::Unsure,
            Value::Text(text) => {
                let class = column.map_or(Class::Text, |it| it.1);
                holds(class, text).map_or(Truth::Null, Truth::from)
            }
        };
    match condition {
        Condition::And(all) => Truth::all(all.iter().map(|it| truth(it, value)), Truth::False),
        Condition::Or(all) => Truth::all(all.iter().map(|it| truth(it, value)), Truth::True),
        Condition::Not(it) => truth(it, value).not(),
        Condition::IsNull(column) => match of(column) {
            Value::Null => Truth::True,
            // What is too large to be sent again is something.
            Value::Text(_) => Truth::False,
            Value::Unsent => Truth::Unsure,
        },
        Condition::IsTrue(column) => with(column, &|_, text| Some(text == b"t")),
        Condition::Compare { column, operator, literal } => {
            with(column, &|class, text| order(class, text, literal).map(|it| operator.holds(it)))
        }
        Condition::In { column, literals } => with(column, &|class, text| {
            Some(literals.iter().any(|it| order(class, text, it).is_some_and(|it| it.is_eq())))
        }),
    }
}

#[cfg(test)]
mod tests;
