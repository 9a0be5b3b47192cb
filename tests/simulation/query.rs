//! The simulation's own SQL: a query as a value, and the text that the analysis reads.
//!
//! Every source has the columns id, x and y. The text is as `pg_get_viewdef` would print it: every
//! name qualified, so that the analysis needs no Postgres.

use std::fmt::{Display, Formatter, Result};

pub const TABLES: [&str; 3] = ["a", "b", "c"];
pub const COLUMNS: [&str; 3] = ["id", "x", "y"];

/// A column of the source with this alias.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Column {
    pub alias: usize,
    pub nth: usize,
}

#[derive(Debug, Clone)]
pub enum Source {
    Table(usize),
    /// Beside the others.
    Derived(Box<Select>),
    /// It may use the sources before it.
    Lateral(Box<Select>),
    /// One of the query's CTEs.
    Cte(usize),
    Values(Vec<[i16; 3]>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Join {
    Inner,
    Left,
    Right,
    Full,
    Cross,
}

#[derive(Debug, Clone)]
pub enum From {
    Source(usize, Source),
    Join(Join, Box<From>, Box<From>, Vec<Condition>),
    /// The second is a table with its alias, joined by its x with the x of all before it.
    FullUsing(Box<From>, usize, usize),
}

#[derive(Debug, Clone)]
pub enum Condition {
    Equal(Column, Column),
    /// `c0 = coalesce(c1, 1)`.
    EqualOr1(Column, Column),
    /// `c0 + 1 = c1`.
    Next(Column, Column),
    Constant(Column, i16),
    IsNull(Column),
    Exists(bool, Box<Select>),
    In(bool, Column, Box<Select>),
    Or(Box<Condition>, Box<Condition>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SetOp {
    Union,
    UnionAll,
    Intersect,
    Except,
    ExceptAll,
}

/// What a SELECT makes of its three columns.
#[derive(Debug, Clone)]
pub enum Shape {
    Plain,
    Distinct,
    /// `c0, count(*), max(c1) GROUP BY c0`; with HAVING count(*) > 1.
    Group(bool),
    /// `c0, c1, sum(c2) GROUP BY c0, c1`.
    GroupByTwo,
    /// `max(c0), count(*), 1`.
    Total,
    /// `DISTINCT ON (c0) … ORDER BY c0, c1, c2`.
    DistinctOn,
    /// `c0, c1, sum(c2) OVER (PARTITION BY c0)`.
    Window,
    /// `ORDER BY c0, c1, c2 LIMIT 1`.
    First,
    Set(SetOp, Box<Select>),
}

#[derive(Debug, Clone)]
pub struct Select {
    pub from: From,
    pub conditions: Vec<Condition>,
    pub columns: [Column; 3],
    pub shape: Shape,
}

/// A document's field.
#[derive(Debug, Clone)]
pub enum Field {
    Column(Column),
    /// `(SELECT max(c0) …)`, `(SELECT count(*) …)`.
    Max(Box<Select>),
    Count(Box<Select>),
    /// `(SELECT c0 … ORDER BY c0 LIMIT 1)`.
    First(Box<Select>),
    /// IN and EXISTS as values.
    In(Column, Box<Select>),
    Exists(Box<Select>),
}

#[derive(Debug, Clone)]
pub enum Key {
    Column(Column),
    Coalesce(Column, Column),
    /// `CASE WHEN … IS NULL THEN … ELSE … END`.
    Case(Column, Column, Column),
    /// The x that FULL JOIN USING merged: of these sources.
    Merged(Vec<usize>),
}

#[derive(Debug, Clone)]
pub enum Top {
    Plain,
    /// `key, count(*), max(field)`.
    Group,
    DistinctOn,
    /// `sum(field) OVER (PARTITION BY key)`.
    Window,
    /// The key and the first field on both sides.
    Set(SetOp, Box<Select>),
}

/// A mapping's SQL; its key is k.
#[derive(Debug, Clone)]
pub struct Query {
    pub ctes: Vec<Select>,
    pub from: From,
    pub conditions: Vec<Condition>,
    pub key: Key,
    pub fields: Vec<Field>,
    pub top: Top,
    pub aliases: usize,
}

impl Display for Column {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "o{}.{}", self.alias, COLUMNS[self.nth])
    }
}

impl SetOp {
    pub fn word(self) -> &'static str {
        match self {
            Self::Union => "UNION",
            Self::UnionAll => "UNION ALL",
            Self::Intersect => "INTERSECT",
            Self::Except => "EXCEPT",
            Self::ExceptAll => "EXCEPT ALL",
        }
    }
}

fn joined<T: Display>(items: &[T], between: &str) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(between)
}

fn filter(conditions: &[Condition]) -> String {
    match conditions.is_empty() {
        true => String::new(),
        false => format!(" WHERE {}", joined(conditions, " AND ")),
    }
}

impl Display for From {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let row = |it: &[i16; 3]| format!("({})", joined(it, ", "));
        match self {
            Self::Source(alias, Source::Table(nth)) => {
                write!(f, "public.{} o{alias}", TABLES[*nth])
            }
            Self::Source(alias, Source::Derived(select)) => write!(f, "({select}) o{alias}"),
            Self::Source(alias, Source::Lateral(select)) => {
                write!(f, "LATERAL ({select}) o{alias}")
            }
            Self::Source(alias, Source::Cte(nth)) => write!(f, "w{nth} o{alias}"),
            Self::Source(alias, Source::Values(rows)) => {
                let rows: Vec<String> = rows.iter().map(row).collect();
                write!(f, "(VALUES {}) o{alias}(id, x, y)", rows.join(", "))
            }
            Self::Join(kind, left, right, on) => {
                let word = match kind {
                    Join::Inner => "JOIN",
                    Join::Left => "LEFT JOIN",
                    Join::Right => "RIGHT JOIN",
                    Join::Full => "FULL JOIN",
                    Join::Cross => return write!(f, "({left} CROSS JOIN {right})"),
                };
                let on = if on.is_empty() { "true".to_owned() } else { joined(on, " AND ") };
                write!(f, "({left} {word} {right} ON {on})")
            }
            Self::FullUsing(left, alias, table) => {
                write!(f, "({left} FULL JOIN public.{} o{alias} USING (x))", TABLES[*table])
            }
        }
    }
}

impl Display for Condition {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let not = |it: &bool| if *it { "NOT " } else { "" };
        match self {
            Self::Equal(left, right) => write!(f, "{left} = {right}"),
            Self::EqualOr1(left, right) => write!(f, "{left} = COALESCE({right}, 1)"),
            Self::Next(left, right) => write!(f, "{left} + 1 = {right}"),
            Self::Constant(column, value) => write!(f, "{column} = {value}"),
            Self::IsNull(column) => write!(f, "{column} IS NULL"),
            Self::Exists(negated, select) => {
                write!(f, "{}(EXISTS ({}))", not(negated), select.of_first("1"))
            }
            Self::In(negated, column, select) => {
                let body = select.of_first(&select.columns[0].to_string());
                write!(f, "{}({column} IN ({body}))", not(negated))
            }
            Self::Or(left, right) => write!(f, "({left} OR {right})"),
        }
    }
}

impl Select {
    /// The body with another target list.
    fn of_first(&self, target: &str) -> String {
        format!("SELECT {target} FROM {}{}", self.from, filter(&self.conditions))
    }
}

impl Display for Select {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let [c0, c1, c2] = self.columns;
        let rest = format!("FROM {}{}", self.from, filter(&self.conditions));
        let plain = format!("{c0} AS id, {c1} AS x, {c2} AS y {rest}");
        match &self.shape {
            Shape::Plain => write!(f, "SELECT {plain}"),
            Shape::Distinct => write!(f, "SELECT DISTINCT {plain}"),
            Shape::Group(having) => {
                let having = if *having { " HAVING count(*) > 1" } else { "" };
                write!(
                    f,
                    "SELECT {c0} AS id, count(*)::integer AS x, max({c1}) AS y {rest} \
                     GROUP BY {c0}{having}"
                )
            }
            Shape::GroupByTwo => write!(
                f,
                "SELECT {c0} AS id, {c1} AS x, sum({c2})::integer AS y {rest} GROUP BY {c0}, {c1}"
            ),
            Shape::Total => {
                write!(f, "SELECT max({c0}) AS id, count(*)::integer AS x, 1 AS y {rest}")
            }
            Shape::DistinctOn => {
                write!(f, "SELECT DISTINCT ON ({c0}) {plain} ORDER BY {c0}, {c1}, {c2}")
            }
            Shape::Window => write!(
                f,
                "SELECT {c0} AS id, {c1} AS x, \
                 (sum({c2}) OVER (PARTITION BY {c0}))::integer AS y {rest}"
            ),
            Shape::First => write!(f, "SELECT {plain} ORDER BY {c0}, {c1}, {c2} LIMIT 1"),
            Shape::Set(op, other) => write!(f, "SELECT {plain} {} {other}", op.word()),
        }
    }
}

impl Display for Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let first = |it: &Select| it.columns[0].to_string();
        match self {
            Self::Column(it) => write!(f, "{it}"),
            Self::Max(it) => write!(f, "({})", it.of_first(&format!("max({})", first(it)))),
            Self::Count(it) => write!(f, "({})", it.of_first("count(*)::integer")),
            Self::First(it) => {
                write!(f, "({} ORDER BY {} LIMIT 1)", it.of_first(&first(it)), first(it))
            }
            Self::In(column, it) => write!(f, "({column} IN ({}))", it.of_first(&first(it))),
            Self::Exists(it) => write!(f, "(EXISTS ({}))", it.of_first("1")),
        }
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Column(it) => write!(f, "{it}"),
            Self::Coalesce(one, other) => write!(f, "COALESCE({one}, {other})"),
            Self::Case(test, one, other) => {
                write!(f, "CASE WHEN {test} IS NULL THEN {one} ELSE {other} END")
            }
            Self::Merged(_) => write!(f, "x"),
        }
    }
}

impl Display for Query {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        if !self.ctes.is_empty() {
            let ctes: Vec<String> =
                self.ctes.iter().enumerate().map(|(nth, it)| format!("w{nth} AS ({it})")).collect();
            write!(f, "WITH {} ", ctes.join(", "))?;
        }
        let (key, first) = (&self.key, &self.fields[0]);
        let rest = format!("FROM {}{}", self.from, filter(&self.conditions));
        let fields: Vec<String> =
            self.fields.iter().enumerate().map(|(nth, it)| format!("{it} AS v{nth}")).collect();
        let fields = fields.join(", ");
        match &self.top {
            Top::Plain => write!(f, "SELECT {key} AS k, {fields} {rest}"),
            Top::Group => write!(
                f,
                "SELECT {key} AS k, count(*)::integer AS v0, max({first}) AS v1 {rest} GROUP BY {key}"
            ),
            Top::DistinctOn => {
                write!(
                    f,
                    "SELECT DISTINCT ON ({key}) {key} AS k, {first} AS v0 {rest} ORDER BY {key}, {first}"
                )
            }
            Top::Window => write!(
                f,
                "SELECT {key} AS k, {first} AS v0, \
                 (sum({first}) OVER (PARTITION BY {key}))::integer AS v1 {rest}"
            ),
            Top::Set(op, other) => write!(
                f,
                "SELECT {key} AS k, {first} AS v0 {rest} {} SELECT q.id AS k, q.x AS v0 FROM ({other}) q",
                op.word()
            ),
        }
    }
}
