//! What links two occurrences: values of their rows that the SQL says are equal, and the scope in
//! which it does.
//!
//! A value is a column, or an expression over one row. Postgres evaluates it in the path query as
//! it does in the SQL, over the same types and collations, so that an equality of expressions is
//! as good an edge as one of columns: whatever makes it hold in the SQL makes it hold there.

use pg_query::NodeEnum;
use pg_query::protobuf::{BoolExprType, Node};

use super::key::{columns_of, key_expression};
use super::level::equals_of;
use super::scope::{Origin, Scope};
use super::walk::{Constraint, Walk};

/// A value that a row of one occurrence has.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Column(String),
    /// Its column references are bare names of the occurrence's columns. It has a value for each
    /// row that a set-returning function in it makes.
    Computed(Box<Node>),
}

impl Value {
    pub(super) fn columns(&self) -> Vec<String> {
        match self {
            Self::Column(column) => vec![column.clone()],
            Self::Computed(node) => columns_of(node),
        }
    }
}

/// Equal values: of the one occurrence, and of the other.
pub(super) type Pair = (Value, Value);

/// Alternatives (OR), of which each is several equalities (AND).
pub(super) type Arms = Vec<Vec<Pair>>;

/// Rows of `u` and `v` that meet in a derivation have equal values in all pairs of one of the arms.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) u: usize,
    pub(super) v: usize,
    pub(super) arms: Arms,
    pub(super) constraints: Vec<Constraint>,
}

impl Link {
    /// The arms as seen from an occurrence: its own values first. None: it is not linked.
    pub(super) fn from(&self, occurrence: usize) -> Option<(usize, Arms)> {
        if self.u == occurrence {
            return Some((self.v, self.arms.clone()));
        }
        let turned = |arm: &Vec<Pair>| arm.iter().map(|(u, v)| (v.clone(), u.clone())).collect();
        (self.v == occurrence).then(|| (self.u, self.arms.iter().map(turned).collect()))
    }
}

impl Walk<'_> {
    pub(super) fn equality(&mut self, u: &Origin, v: &Origin) {
        for (u, u_value, u_ends) in u.comparable() {
            for (v, v_value, v_ends) in v.comparable() {
                if u == v {
                    continue;
                }
                let mut constraints = self.constraints.clone();
                constraints.extend(u_ends.then_some(Constraint::Ends(u)));
                constraints.extend(v_ends.then_some(Constraint::Ends(v)));
                let arms = vec![vec![(u_value.clone(), v_value)]];
                self.links.push(Link { u, v, arms, constraints });
            }
        }
    }

    /// An OR: a link between two occurrences that every arm links, as then one of the arms' links
    /// holds wherever the condition does.
    pub(super) fn either(&mut self, arms: &[Node], scope: &Scope<'_>) {
        let mut all: Vec<Vec<(usize, Value, usize, Value)>> = Vec::new();
        for arm in arms {
            let mut found = Vec::new();
            self.conjuncts(arm, scope, &mut found);
            all.push(found);
        }
        let mut both: Vec<(usize, usize)> = Vec::new();
        for (u, _, v, _) in all.first().into_iter().flatten() {
            if !both.contains(&(*u, *v)) {
                both.push((*u, *v));
            }
        }
        for (u, v) in both {
            let of = |arm: &Vec<(usize, Value, usize, Value)>| -> Vec<Pair> {
                let ours = arm.iter().filter(|it| (it.0, it.2) == (u, v));
                ours.map(|it| (it.1.clone(), it.3.clone())).collect()
            };
            let arms: Arms = all.iter().map(of).collect();
            if arms.iter().all(|it| !it.is_empty()) {
                let constraints = self.constraints.clone();
                self.links.push(Link { u, v, arms, constraints });
            }
        }
    }

    /// The equalities of plain values among the conjuncts of a condition, lower occurrence first.
    fn conjuncts(
        &self,
        node: &Node,
        scope: &Scope<'_>,
        found: &mut Vec<(usize, Value, usize, Value)>,
    ) {
        if let Some(NodeEnum::BoolExpr(it)) = &node.node
            && it.boolop() == BoolExprType::AndExpr
        {
            return it.args.iter().for_each(|it| self.conjuncts(it, scope, found));
        }
        let Some((left, right)) = equals_of(node) else { return };
        let (left, right) = (self.compared(&left, scope), self.compared(&right, scope));
        for (u, u_value, u_ends) in left.comparable() {
            for (v, v_value, v_ends) in right.comparable() {
                if u == v || u_ends || v_ends {
                    continue;
                }
                found.push(match u < v {
                    true => (u, u_value.clone(), v, v_value),
                    false => (v, v_value, u, u_value.clone()),
                });
            }
        }
    }

    /// The origin of one side of a comparison.
    pub(super) fn compared(&self, node: &Node, scope: &Scope<'_>) -> Origin {
        match self.plain(node, scope).origin {
            Origin::Opaque => key_expression(self, node, scope),
            origin => origin,
        }
    }
}
