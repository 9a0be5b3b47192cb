//! Random queries of the shapes that people write, and which shapes each has.

use std::collections::BTreeSet;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::query::{
    Column, Condition, Field, From, Join, Key, Query, Select, SetOp, Shape, Source, Top,
};

pub struct Writer {
    rng: StdRng,
    /// For what an equality may be besides one of columns: the queries are otherwise the same.
    twists: StdRng,
    aliases: usize,
    ctes: Vec<Select>,
    /// The shapes written so far, by the words in which the issue lists them.
    pub shapes: BTreeSet<&'static str>,
}

/// Deeper subqueries add work and no shape.
const DEPTH_MAX: usize = 2;

impl Writer {
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            twists: StdRng::seed_from_u64(!seed),
            aliases: 0,
            ctes: Vec::new(),
            shapes: BTreeSet::new(),
        }
    }

    fn chance(&mut self, of_ten: u32) -> bool {
        self.rng.random_range(0..10) < of_ten
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        *from.choose(&mut self.rng).unwrap()
    }

    fn alias(&mut self) -> usize {
        self.aliases += 1;
        self.aliases - 1
    }

    fn column(&mut self, aliases: &[usize]) -> Column {
        Column { alias: self.pick(aliases), nth: self.rng.random_range(0..3) }
    }

    fn equality(&mut self, left: &[usize], right: &[usize]) -> Condition {
        let (one, other) = (self.column(left), self.column(right));
        match self.twists.random_range(0..12) {
            0 => {
                self.shapes.insert("OR of equalities");
                let mut column = |of: &[usize]| Column {
                    alias: *of.choose(&mut self.twists).unwrap(),
                    nth: self.twists.random_range(0..3),
                };
                let other_arm = Condition::Equal(column(left), column(right));
                Condition::Or(Box::new(Condition::Equal(one, other)), Box::new(other_arm))
            }
            1 => {
                self.shapes.insert("COALESCE in an equality");
                Condition::EqualOr1(one, other)
            }
            2 => {
                self.shapes.insert("expression in an equality");
                Condition::Next(one, other)
            }
            _ => Condition::Equal(one, other),
        }
    }

    fn set_op(&mut self) -> SetOp {
        let op = self.pick(&[
            SetOp::Union,
            SetOp::UnionAll,
            SetOp::Intersect,
            SetOp::Except,
            SetOp::ExceptAll,
        ]);
        self.shapes.insert(op.word());
        op
    }

    fn source(&mut self, depth: usize) -> (From, Vec<usize>) {
        let alias = self.alias();
        let source = match self.rng.random_range(0..20) {
            0 if depth == 0 => {
                self.shapes.insert("VALUES");
                Source::Values(vec![[0, 1, 2], [1, 1, 0]])
            }
            1..=3 if !self.ctes.is_empty() => {
                self.shapes.insert("CTE");
                Source::Cte(self.rng.random_range(0..self.ctes.len()))
            }
            4..=8 if depth < DEPTH_MAX => Source::Derived(Box::new(self.derived(depth + 1))),
            _ => Source::Table(self.rng.random_range(0..3)),
        };
        (From::Source(alias, source), vec![alias])
    }

    fn derived(&mut self, depth: usize) -> Select {
        let (from, aliases) = self.from(depth, 2);
        let columns = [0; 3].map(|_| self.column(&aliases));
        let conditions = self.filter(&aliases, depth, 3);
        let shape = self.shape(depth);
        Select { from, conditions, columns, shape }
    }

    fn shape(&mut self, depth: usize) -> Shape {
        let (name, shape) = match self.rng.random_range(0..12) {
            0 => ("DISTINCT", Shape::Distinct),
            1 | 2 => ("GROUP BY", Shape::Group(false)),
            3 => ("HAVING", Shape::Group(true)),
            4 => ("GROUP BY", Shape::GroupByTwo),
            5 => ("aggregate", Shape::Total),
            6 => ("DISTINCT ON", Shape::DistinctOn),
            7 => ("window", Shape::Window),
            8 => ("LIMIT", Shape::First),
            9 if depth < DEPTH_MAX => {
                let op = self.set_op();
                let mut other = self.derived(depth + 1);
                other.shape = Shape::Plain;
                ("set operation", Shape::Set(op, Box::new(other)))
            }
            _ => ("derived table", Shape::Plain),
        };
        self.shapes.insert(name);
        shape
    }

    /// A tree of joins over one to `most` sources.
    fn from(&mut self, depth: usize, most: usize) -> (From, Vec<usize>) {
        let count = self.rng.random_range(1..=most);
        let mut nodes: Vec<_> = (0..count).map(|_| self.source(depth)).collect();
        while nodes.len() > 1 {
            let (left, lefts) = nodes.remove(self.rng.random_range(0..nodes.len()));
            let (right, rights) = nodes.remove(self.rng.random_range(0..nodes.len()));
            let kind = self.pick(&[
                Join::Inner,
                Join::Inner,
                Join::Left,
                Join::Left,
                Join::Right,
                Join::Full,
                Join::Cross,
            ]);
            self.shapes.insert(match kind {
                Join::Inner => "inner join",
                Join::Left => "left join",
                Join::Right => "right join",
                Join::Full => "full join",
                Join::Cross => "cross join",
            });
            let all = [lefts.clone(), rights.clone()].concat();
            let mut on = vec![self.equality(&lefts, &rights)];
            if self.chance(3) {
                on.push(self.equality(&all, &all));
            }
            if kind == Join::Full {
                // Postgres runs no other conditions.
                on.retain(|it| matches!(it, Condition::Equal(..)));
            }
            if on.is_empty() {
                on.push(Condition::Equal(self.column(&lefts), self.column(&rights)));
            }
            if self.chance(1) && kind != Join::Full {
                on.push(self.subquery_condition(&all, depth + 1));
            }
            if kind == Join::Cross {
                on.clear();
            }
            nodes.push((From::Join(kind, Box::new(left), Box::new(right), on), all));
        }
        nodes.pop().unwrap()
    }

    /// A subquery that is linked to the aliases around it.
    fn linked(&mut self, around: &[usize], depth: usize) -> Select {
        let (from, own) = self.from(depth + 1, 2);
        let mut conditions = vec![self.equality(&own, around)];
        if self.chance(5) {
            conditions.push(self.equality(&own, around));
        }
        if self.chance(2) {
            conditions.push(self.equality(around, around));
        }
        if depth < DEPTH_MAX && self.chance(3) {
            let all = [own.clone(), around.to_vec()].concat();
            conditions.push(self.subquery_condition(&all, depth + 1));
        }
        let columns = [0; 3].map(|_| self.column(&own));
        Select { from, conditions, columns, shape: Shape::Plain }
    }

    fn subquery_condition(&mut self, around: &[usize], depth: usize) -> Condition {
        let mut select = Box::new(self.linked(around, depth));
        let outer = self.column(around);
        let negated = self.chance(5);
        if self.chance(3) {
            self.shapes.insert("OR of EXISTS");
            let exists = Condition::Exists(negated, select);
            return Condition::Or(Box::new(Condition::Constant(outer, 1)), Box::new(exists));
        }
        if self.chance(5) {
            self.shapes.insert(if negated { "NOT EXISTS" } else { "EXISTS" });
            return Condition::Exists(negated, select);
        }
        if self.chance(5) {
            select.conditions.clear();
        }
        self.shapes.insert(if negated { "NOT IN" } else { "IN" });
        Condition::In(negated, outer, select)
    }

    fn filter(&mut self, aliases: &[usize], depth: usize, of_ten: u32) -> Vec<Condition> {
        let mut conditions = Vec::new();
        if self.chance(of_ten) {
            conditions.push(self.equality(aliases, aliases));
        }
        if self.chance(of_ten) {
            conditions.push(self.subquery_condition(aliases, depth + 1));
        }
        if self.chance(1) {
            conditions.push(Condition::IsNull(self.column(aliases)));
        }
        conditions
    }

    fn field(&mut self, aliases: &[usize]) -> Field {
        if self.chance(5) {
            return Field::Column(self.column(aliases));
        }
        let select = Box::new(self.linked(aliases, 1));
        let (name, field) = match self.rng.random_range(0..5) {
            0 => ("scalar subquery", Field::Max(select)),
            1 => ("scalar subquery", Field::Count(select)),
            2 => ("scalar subquery with LIMIT", Field::First(select)),
            3 => ("EXISTS as a value", Field::Exists(select)),
            _ => {
                let mut select = select;
                if self.chance(5) {
                    select.conditions.clear();
                }
                ("IN as a value", Field::In(self.column(aliases), select))
            }
        };
        self.shapes.insert(name);
        field
    }

    fn lateral(&mut self, from: From, aliases: &mut Vec<usize>) -> From {
        let mut select = self.linked(aliases, 1);
        select.shape = match self.rng.random_range(0..3) {
            0 => Shape::First,
            1 => Shape::Total,
            _ => Shape::Plain,
        };
        let (alias, kind) = (self.alias(), self.pick(&[Join::Left, Join::Inner]));
        aliases.push(alias);
        self.shapes.insert("LATERAL");
        let lateral = From::Source(alias, Source::Lateral(Box::new(select)));
        From::Join(kind, Box::new(from), Box::new(lateral), Vec::new())
    }

    fn full_using(&mut self) -> (From, Vec<usize>, Key) {
        self.shapes.insert("FULL JOIN USING");
        let first = self.alias();
        let mut from = From::Source(first, Source::Table(self.rng.random_range(0..3)));
        let mut aliases = vec![first];
        for _ in 0..self.rng.random_range(1..3) {
            let alias = self.alias();
            from = From::FullUsing(Box::new(from), alias, self.rng.random_range(0..3));
            aliases.push(alias);
        }
        (from, aliases.clone(), Key::Merged(aliases))
    }

    fn key(&mut self, aliases: &[usize]) -> Key {
        let mut column = || self.column(aliases);
        let (one, other, third) = (column(), column(), column());
        match self.rng.random_range(0..12) {
            0 => {
                self.shapes.insert("COALESCE as the key");
                Key::Coalesce(one, other)
            }
            1 => {
                self.shapes.insert("CASE as the key");
                Key::Case(one, other, third)
            }
            _ => Key::Column(one),
        }
    }

    fn top(&mut self, fields: &mut Vec<Field>, aliases: &[usize]) -> Top {
        let nth = self.rng.random_range(0..10);
        if nth > 4 {
            return Top::Plain;
        }
        let column = self.column(aliases);
        *fields = vec![Field::Column(column)];
        let (name, top) = match nth {
            0 => ("GROUP BY", Top::Group),
            1 => ("DISTINCT ON", Top::DistinctOn),
            2 => ("window", Top::Window),
            _ => {
                let op = self.set_op();
                ("set operation", Top::Set(op, Box::new(self.derived(1))))
            }
        };
        self.shapes.insert(name);
        top
    }

    pub fn query(&mut self) -> Query {
        if self.chance(2) {
            let cte = self.derived(1);
            self.ctes.push(cte);
        }
        let (from, aliases, key) = if self.chance(1) {
            self.full_using()
        } else {
            let (mut from, mut aliases) = self.from(0, 4);
            if self.chance(2) {
                from = self.lateral(from, &mut aliases);
            }
            let key = self.key(&aliases);
            (from, aliases, key)
        };
        let count = self.rng.random_range(1..=3);
        let mut fields: Vec<Field> = (0..count).map(|_| self.field(&aliases)).collect();
        let conditions = self.filter(&aliases, 0, 3);
        let top = self.top(&mut fields, &aliases);
        let ctes = std::mem::take(&mut self.ctes);
        Query { ctes, from, conditions, key, fields, top, aliases: self.aliases }
    }
}
