//! What a query yields on a state of the tables: SQL's own meaning, three-valued, in a few loops.
//!
//! `agrees_with_postgres` compares it with the server's answers.

use super::query::{
    Column, Condition, Field, From, Join, Key, Query, Select, SetOp, Shape, Source, Top,
};

pub type Value = Option<i16>;
pub type Row = [Value; 3];
/// The rows of a, b and c.
pub type State = [Vec<Row>; 3];

const ABSENT: Row = [None; 3];

/// The rows of all aliases in force; an absent row is NULLs.
type Env = Vec<Row>;
/// One row of a FROM: the alias and row of each of its sources.
type Bound = Vec<(usize, Row)>;

pub struct Evaluation<'q> {
    pub query: &'q Query,
    pub state: &'q State,
}

fn set(env: &mut Env, bound: &Bound) {
    for (alias, row) in bound {
        env[*alias] = *row;
    }
}

fn of(env: &Env, column: Column) -> Value {
    env[column.alias][column.nth]
}

fn equal(left: Value, right: Value) -> Option<bool> {
    Some(left? == right?)
}

fn sum(values: impl Iterator<Item = Value>) -> Value {
    values.flatten().reduce(i16::wrapping_add)
}

/// NULLs last, as ORDER BY has them.
fn ordered(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by_key(|row| row.map(|it| (it.is_none(), it)));
    rows
}

fn distinct(rows: Vec<Row>) -> Vec<Row> {
    let mut rows = ordered(rows);
    rows.dedup();
    rows
}

fn combined(op: SetOp, left: Vec<Row>, right: Vec<Row>) -> Vec<Row> {
    match op {
        SetOp::UnionAll => [left, right].concat(),
        SetOp::Union => distinct([left, right].concat()),
        SetOp::Intersect => distinct(left.into_iter().filter(|it| right.contains(it)).collect()),
        SetOp::Except => distinct(left.into_iter().filter(|it| !right.contains(it)).collect()),
        SetOp::ExceptAll => {
            let mut left = left;
            for row in right {
                if let Some(at) = left.iter().position(|it| *it == row) {
                    left.swap_remove(at);
                }
            }
            left
        }
    }
}

fn count(rows: usize) -> Value {
    Some(i16::try_from(rows).unwrap_or(i16::MAX))
}

impl Shape {
    fn of(&self, rows: Vec<Row>) -> Vec<Row> {
        let grouped = |by: usize| {
            let rows = ordered(rows.clone());
            let groups = rows.chunk_by(|one, other| one[..by] == other[..by]);
            groups.map(<[Row]>::to_vec).collect::<Vec<_>>()
        };
        let first = |it: Vec<Row>| it[0];
        match self {
            Self::Plain | Self::Set(..) => rows,
            Self::Distinct => distinct(rows),
            Self::Group(having) => {
                let groups = grouped(1).into_iter().filter(|it| !having || it.len() > 1);
                let row = |it: Vec<Row>| {
                    [it[0][0], count(it.len()), it.iter().filter_map(|it| it[1]).max()]
                };
                groups.map(row).collect()
            }
            Self::GroupByTwo => {
                let row = |it: Vec<Row>| [it[0][0], it[0][1], sum(it.iter().map(|it| it[2]))];
                grouped(2).into_iter().map(row).collect()
            }
            Self::Total => {
                vec![[rows.iter().filter_map(|it| it[0]).max(), count(rows.len()), Some(1)]]
            }
            Self::DistinctOn => grouped(1).into_iter().map(first).collect(),
            Self::Window => {
                let of_group = |it: Vec<Row>| {
                    let total = sum(it.iter().map(|it| it[2]));
                    it.into_iter().map(move |row| [row[0], row[1], total])
                };
                grouped(1).into_iter().flat_map(of_group).collect()
            }
            Self::First => ordered(rows).into_iter().take(1).collect(),
        }
    }
}

impl Evaluation<'_> {
    /// Key and fields of every row; a NULL key is left out.
    pub fn rows(&self) -> Vec<(i16, Row)> {
        let query = self.query;
        let mut env = vec![ABSENT; query.aliases];
        let mut rows = Vec::new();
        for bound in self.from(&query.from, &mut env) {
            set(&mut env, &bound);
            if self.all(&query.conditions, &mut env) == Some(true) {
                let key = key(&query.key, &env);
                let mut fields = ABSENT;
                for (nth, field) in query.fields.iter().enumerate() {
                    fields[nth] = self.field(field, &mut env);
                }
                rows.push((key, fields));
            }
        }
        let first: Vec<Row> = rows.iter().map(|(key, fields)| [*key, fields[0], None]).collect();
        let by_top = match &query.top {
            Top::Plain => None,
            Top::Group => {
                let shaped = Shape::Group(false).of(first);
                Some(shaped)
            }
            Top::DistinctOn => Some(Shape::DistinctOn.of(first)),
            Top::Window => {
                let doubled = first.into_iter().map(|it| [it[0], it[1], it[1]]).collect();
                Some(Shape::Window.of(doubled))
            }
            Top::Set(op, other) => {
                let other = self.select(other, &mut env);
                let other = other.into_iter().map(|it| [it[0], it[1], None]).collect();
                Some(combined(*op, first, other))
            }
        };
        let rows: Vec<(Value, Row)> = match by_top {
            None => rows,
            Some(shaped) => shaped.into_iter().map(|it| (it[0], [it[1], it[2], None])).collect(),
        };
        rows.into_iter().filter_map(|(key, fields)| Some((key?, fields))).collect()
    }

    fn field(&self, field: &Field, env: &mut Env) -> Value {
        let boolean = |it: Option<bool>| it.map(i16::from);
        match field {
            Field::Column(it) => of(env, *it),
            Field::Max(it) => self.firsts(it, env).into_iter().flatten().max(),
            Field::Count(it) => count(self.firsts(it, env).len()),
            Field::First(it) => {
                let mut all = self.firsts(it, env);
                all.sort_by_key(|it| (it.is_none(), *it));
                all.into_iter().next().flatten()
            }
            Field::In(column, it) => boolean(self.is_in(*column, it, env)),
            Field::Exists(it) => boolean(Some(!self.firsts(it, env).is_empty())),
        }
    }

    /// The first column of a subquery's rows, whatever its shape is.
    fn firsts(&self, select: &Select, env: &mut Env) -> Vec<Value> {
        self.plain(select, env).into_iter().map(|it| it[0]).collect()
    }

    fn plain(&self, select: &Select, env: &mut Env) -> Vec<Row> {
        let mut rows = Vec::new();
        for bound in self.from(&select.from, env) {
            set(env, &bound);
            if self.all(&select.conditions, env) == Some(true) {
                rows.push(select.columns.map(|it| of(env, it)));
            }
        }
        rows
    }

    fn select(&self, select: &Select, env: &mut Env) -> Vec<Row> {
        let rows = self.plain(select, env);
        match &select.shape {
            Shape::Set(op, other) => combined(*op, rows, self.select(other, env)),
            shape => shape.of(rows),
        }
    }

    fn from(&self, from: &From, env: &mut Env) -> Vec<Bound> {
        match from {
            From::Source(alias, source) => {
                let rows = match source {
                    Source::Table(nth) => self.state[*nth].clone(),
                    Source::Derived(it) | Source::Lateral(it) => self.select(it, env),
                    Source::Cte(nth) => self.select(&self.query.ctes[*nth], env),
                    Source::Values(rows) => rows.iter().map(|it| it.map(Some)).collect(),
                };
                rows.into_iter().map(|row| vec![(*alias, row)]).collect()
            }
            From::Join(kind, left, right, on) => self.join(*kind, (left, right), on, env),
            From::FullUsing(left, alias, table) => {
                let lefts = self.from(left, env);
                let rights: Vec<Bound> =
                    self.state[*table].iter().map(|row| vec![(*alias, *row)]).collect();
                let merged = |it: &Bound| it.iter().find_map(|(_, row)| row[1]);
                let matches = |left: &Bound, right: &Bound, _: &mut Env| {
                    equal(merged(left), right[0].1[1]) == Some(true)
                };
                outer(Join::Full, (lefts, rights), env, (aliases(left), vec![*alias]), matches)
            }
        }
    }

    fn join(
        &self,
        kind: Join,
        (left, right): (&From, &From),
        on: &[Condition],
        env: &mut Env,
    ) -> Vec<Bound> {
        if let From::Source(_, Source::Lateral(_)) = right {
            let mut all = Vec::new();
            for bound in self.from(left, env) {
                set(env, &bound);
                let rights = self.from(right, env);
                let matches = |_: &Bound, _: &Bound, _: &mut Env| true;
                let sides = (vec![bound], rights);
                all.extend(outer(kind, sides, env, (aliases(left), aliases(right)), matches));
            }
            return all;
        }
        let sides = (self.from(left, env), self.from(right, env));
        let matches = |left: &Bound, right: &Bound, env: &mut Env| {
            set(env, left);
            set(env, right);
            self.all(on, env) == Some(true)
        };
        outer(kind, sides, env, (aliases(left), aliases(right)), matches)
    }

    fn all(&self, conditions: &[Condition], env: &mut Env) -> Option<bool> {
        let mut all = Some(true);
        for condition in conditions {
            match self.holds(condition, env) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => all = None,
            }
        }
        all
    }

    fn holds(&self, condition: &Condition, env: &mut Env) -> Option<bool> {
        match condition {
            Condition::Equal(left, right) => equal(of(env, *left), of(env, *right)),
            Condition::EqualOr1(left, right) => equal(of(env, *left), of(env, *right).or(Some(1))),
            Condition::Next(left, right) => equal(of(env, *left).map(|it| it + 1), of(env, *right)),
            Condition::Constant(column, value) => equal(of(env, *column), Some(*value)),
            Condition::IsNull(column) => Some(of(env, *column).is_none()),
            Condition::Exists(negated, select) => {
                Some(self.plain(select, env).is_empty() == *negated)
            }
            Condition::In(negated, column, select) => {
                self.is_in(*column, select, env).map(|it| it != *negated)
            }
            Condition::Or(left, right) => match (self.holds(left, env), self.holds(right, env)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
        }
    }

    fn is_in(&self, column: Column, select: &Select, env: &mut Env) -> Option<bool> {
        let value = of(env, column);
        let found: Vec<_> =
            self.firsts(select, env).into_iter().map(|it| equal(value, it)).collect();
        match found.contains(&Some(true)) {
            true => Some(true),
            false if found.contains(&None) => None,
            false => Some(false),
        }
    }
}

fn key(key: &Key, env: &Env) -> Value {
    match key {
        Key::Column(it) => of(env, *it),
        Key::Coalesce(one, other) => of(env, *one).or(of(env, *other)),
        Key::Case(test, one, other) => {
            if of(env, *test).is_none() {
                of(env, *one)
            } else {
                of(env, *other)
            }
        }
        Key::Merged(aliases) => aliases.iter().find_map(|it| env[*it][1]),
    }
}

fn aliases(from: &From) -> Vec<usize> {
    match from {
        From::Source(alias, _) => vec![*alias],
        From::Join(_, left, right, _) => [aliases(left), aliases(right)].concat(),
        From::FullUsing(left, alias, _) => [aliases(left), vec![*alias]].concat(),
    }
}

/// Every join: the pairs that match, and the rows without a match of the sides that are kept.
fn outer(
    kind: Join,
    (lefts, rights): (Vec<Bound>, Vec<Bound>),
    env: &mut Env,
    (left_aliases, right_aliases): (Vec<usize>, Vec<usize>),
    mut matches: impl FnMut(&Bound, &Bound, &mut Env) -> bool,
) -> Vec<Bound> {
    let absent = |aliases: &[usize]| aliases.iter().map(|it| (*it, ABSENT)).collect::<Bound>();
    let mut all = Vec::new();
    let mut right_matched = vec![false; rights.len()];
    for left in &lefts {
        let mut matched = false;
        for (nth, right) in rights.iter().enumerate() {
            if kind == Join::Cross || matches(left, right, env) {
                all.push([left.as_slice(), right.as_slice()].concat());
                (matched, right_matched[nth]) = (true, true);
            }
        }
        if !matched && matches!(kind, Join::Left | Join::Full) {
            all.push([left.clone(), absent(&right_aliases)].concat());
        }
    }
    if matches!(kind, Join::Right | Join::Full) {
        let alone = rights.iter().zip(right_matched).filter(|(_, matched)| !matched);
        all.extend(alone.map(|(right, _)| [absent(&left_aliases), right.clone()].concat()));
    }
    all
}
