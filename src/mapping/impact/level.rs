//! One level of a SELECT: its barriers, its conditions and its output columns.
//!
//! A barrier (GROUP BY, window, DISTINCT ON, LIMIT, an aggregate) makes output rows of many input
//! rows. It may be left only through the columns on which it splits them (A6): every other
//! output column is opaque.

use std::collections::BTreeSet;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    AExprKind, BoolExprType, FuncCall, Node, SelectStmt, String as Text, SubLink, SubLinkType,
    WindowDef,
};

use super::key::{keeps, key_origin, splits_by};
use super::scope::{Collapsed, ColumnOf, Origin, Output, Scope};
use super::walk::{Walk, output_names, text_of};

/// What a level does besides joining and filtering.
#[derive(Debug, Default)]
pub(super) struct Features {
    grouped: bool,
    aggregated: bool,
    limited: bool,
    distinct: bool,
    distinct_on: bool,
    windows: Vec<WindowDef>,
}

impl Features {
    pub(super) fn is_barrier(&self) -> bool {
        self.grouped
            || self.aggregated
            || self.limited
            || self.distinct_on
            || !self.windows.is_empty()
    }
}

/// Finds the features of a level from its clauses; `aggregates` are the names of aggregates.
pub(super) fn features(stmt: &SelectStmt, aggregates: &BTreeSet<&str>) -> Features {
    let mut features = Features {
        grouped: !stmt.group_clause.is_empty(),
        aggregated: stmt.having_clause.is_some(),
        limited: stmt.limit_count.is_some() || stmt.limit_offset.is_some(),
        distinct: !stmt.distinct_clause.is_empty(),
        distinct_on: stmt.distinct_clause.iter().any(|it| it.node.is_some()),
        windows: Vec::new(),
    };
    let having = stmt.having_clause.as_deref();
    let places = stmt.target_list.iter().chain(&stmt.sort_clause).chain(&stmt.distinct_clause);
    for node in places.chain(having) {
        calls(node, &mut |call| {
            if let Some(window) = &call.over {
                features.windows.push((**window).clone());
            } else if function_name(call).is_some_and(|it| aggregates.contains(it)) {
                features.aggregated = true;
            }
        });
    }
    features
}

/// The last part of a function's name.
pub(super) fn function_name(call: &FuncCall) -> Option<&str> {
    call.funcname.last().and_then(text_of)
}

/// Visits the function calls of a level; those of subqueries are not among them.
fn calls(node: &Node, visit: &mut impl FnMut(&FuncCall)) {
    if let Some(NodeEnum::FuncCall(call)) = &node.node {
        visit(call);
    }
    for child in children(node).unwrap_or_default() {
        calls(child, visit);
    }
}

/// The parts of an expression, subqueries left out; None: not understood.
pub(super) fn children(node: &Node) -> Option<Vec<&Node>> {
    let parts: Vec<&Node> = match node.node.as_ref()? {
        NodeEnum::ColumnRef(_)
        | NodeEnum::AConst(_)
        | NodeEnum::Integer(_)
        | NodeEnum::Float(_)
        | NodeEnum::Boolean(_)
        | NodeEnum::String(_)
        | NodeEnum::AStar(_) => Vec::new(),
        NodeEnum::ResTarget(it) => it.val.as_deref().into_iter().collect(),
        NodeEnum::SortBy(it) => it.node.as_deref().into_iter().collect(),
        NodeEnum::AExpr(it) => it.lexpr.iter().chain(&it.rexpr).map(|it| &**it).collect(),
        NodeEnum::BoolExpr(it) => it.args.iter().collect(),
        NodeEnum::TypeCast(it) => it.arg.as_deref().into_iter().collect(),
        NodeEnum::CoalesceExpr(it) => it.args.iter().collect(),
        NodeEnum::MinMaxExpr(it) => it.args.iter().collect(),
        NodeEnum::NullTest(it) => it.arg.as_deref().into_iter().collect(),
        NodeEnum::BooleanTest(it) => it.arg.as_deref().into_iter().collect(),
        NodeEnum::RowExpr(it) => it.args.iter().collect(),
        NodeEnum::AArrayExpr(it) => it.elements.iter().collect(),
        NodeEnum::CollateClause(it) => it.arg.as_deref().into_iter().collect(),
        NodeEnum::NamedArgExpr(it) => it.arg.as_deref().into_iter().collect(),
        NodeEnum::List(it) => it.items.iter().filter(|it| it.node.is_some()).collect(),
        NodeEnum::AIndices(it) => it.lidx.iter().chain(&it.uidx).map(|it| &**it).collect(),
        NodeEnum::AIndirection(it) => {
            it.arg.as_deref().into_iter().chain(it.indirection.iter()).collect()
        }
        NodeEnum::CaseExpr(it) => {
            let ends = it.arg.iter().chain(&it.defresult).map(|it| &**it);
            it.args.iter().chain(ends).collect()
        }
        NodeEnum::CaseWhen(it) => it.expr.iter().chain(&it.result).map(|it| &**it).collect(),
        NodeEnum::SubLink(it) => it.testexpr.as_deref().into_iter().collect(),
        NodeEnum::FuncCall(it) => {
            let parts = it.args.iter().chain(&it.agg_order).chain(it.agg_filter.as_deref());
            parts.chain(it.over.iter().flat_map(|it| window_parts(it))).collect()
        }
        _ => return None,
    };
    Some(parts)
}

fn window_parts(window: &WindowDef) -> impl Iterator<Item = &Node> {
    let ends = window.start_offset.iter().chain(&window.end_offset).map(|it| &**it);
    window.partition_clause.iter().chain(&window.order_clause).chain(ends)
}

impl Walk<'_> {
    /// A condition: its top-level AND conjuncts. `restricts`: rows that fail it are gone, so an
    /// EXISTS or IN conjunct is a join like any other.
    pub(super) fn condition(&mut self, node: &Node, scope: &Scope<'_>, restricts: bool) {
        match &node.node {
            Some(NodeEnum::BoolExpr(it)) if it.boolop() == BoolExprType::AndExpr => {
                for part in &it.args {
                    self.condition(part, scope, restricts);
                }
            }
            Some(NodeEnum::SubLink(it)) => self.sublink_conjunct(it, scope, restricts),
            Some(NodeEnum::BoolExpr(it)) if it.boolop() == BoolExprType::OrExpr => {
                self.either(&it.args, scope);
                self.expression(node, scope);
            }
            Some(NodeEnum::AExpr(_)) => {
                if let Some((left, right)) = equals_of(node) {
                    let (left, right) = (self.compared(&left, scope), self.compared(&right, scope));
                    self.equality(&left, &right);
                }
                self.expression(node, scope);
            }
            _ => self.expression(node, scope),
        }
    }

    fn sublink_conjunct(&mut self, link: &SubLink, scope: &Scope<'_>, restricts: bool) {
        let Some(NodeEnum::SelectStmt(stmt)) =
            link.subselect.as_ref().and_then(|it| it.node.as_ref())
        else {
            return self.deny("it has a subquery that is not a SELECT");
        };
        let tests: Vec<&Node> = match link.testexpr.as_deref() {
            None => Vec::new(),
            Some(Node { node: Some(NodeEnum::RowExpr(row)) }) => row.args.iter().collect(),
            Some(test) => vec![test],
        };
        let equals = link.oper_name.is_empty() || is_plain_equals(&link.oper_name);
        let joins = match link.sub_link_type() {
            SubLinkType::ExistsSublink => true,
            SubLinkType::AnySublink => equals,
            _ => false,
        };
        if !joins {
            return self.sublink(link, scope);
        }
        for test in &tests {
            self.expression(test, scope);
        }
        let body = |walk: &mut Self| {
            let outputs = walk.select(stmt, Some(scope));
            for (test, output) in tests.iter().zip(&outputs) {
                let test = walk.compared(test, scope);
                walk.equality(&test, &output.origin);
            }
        };
        if restricts { body(self) } else { self.apart(body) }
    }

    /// What an expression is a copy of. A cast from `varchar` to `text` changes nothing: it is
    /// how Postgres prints every comparison of `varchar` columns.
    pub(super) fn plain(&self, node: &Node, scope: &Scope<'_>) -> Output {
        let opaque = Output::opaque;
        match &node.node {
            Some(NodeEnum::ColumnRef(column)) => {
                let fields: Vec<_> = column.fields.iter().map(text_of).collect();
                let found = match fields[..] {
                    [Some(alias), Some(column)] => scope.qualified(alias, column),
                    [Some(column)] => scope.bare(column),
                    _ => None,
                };
                found.map_or_else(opaque, |it| it.output.clone())
            }
            Some(NodeEnum::TypeCast(cast)) => {
                let to_text = cast.type_name.as_ref().is_some_and(|it| {
                    it.array_bounds.is_empty() && it.names.last().and_then(text_of) == Some("text")
                });
                match cast.arg.as_deref() {
                    Some(arg @ Node { node: Some(NodeEnum::ColumnRef(_)) }) if to_text => {
                        let output = self.plain(arg, scope);
                        if self.is_varchar(&output.origin) { output } else { opaque() }
                    }
                    _ => opaque(),
                }
            }
            _ => opaque(),
        }
    }

    fn is_varchar(&self, origin: &Origin) -> bool {
        const VARCHAR_OID: u32 = 1043;
        let Origin::Column(ColumnOf { occurrence, column }) = origin else { return false };
        let facts = self.facts(*occurrence).and_then(|it| it.column(column));
        facts.is_some_and(|it| it.type_oid == VARCHAR_OID)
    }

    /// Everything after WHERE; the level's output columns.
    pub(super) fn level_outputs(
        &mut self,
        stmt: &SelectStmt,
        scope: &Scope<'_>,
        features: &Features,
    ) -> Vec<Output> {
        let clauses = stmt.group_clause.iter().chain(&stmt.target_list).chain(&stmt.values_lists);
        let ends = stmt.having_clause.iter().chain(&stmt.limit_count).chain(&stmt.limit_offset);
        for node in clauses.chain(ends.map(|it| &**it)) {
            self.expression(node, scope);
        }
        for node in stmt.distinct_clause.iter().filter(|it| it.node.is_some()) {
            self.expression(node, scope);
        }
        for node in &stmt.window_clause {
            match &node.node {
                Some(NodeEnum::WindowDef(it)) => {
                    window_parts(it).for_each(|it| self.expression(it, scope));
                }
                _ => self.deny("it has a WINDOW clause that onelog does not understand"),
            }
        }
        let names = output_names(stmt);
        for node in &stmt.sort_clause {
            self.sort_key(node, &names, scope);
        }
        if !stmt.values_lists.is_empty() {
            return self.values(stmt, names, features.is_barrier());
        }
        let mark = self.new_mark();
        let open = self.exposed(stmt, (scope, mark), features);
        let targets = stmt.target_list.iter().zip(names);
        targets
            .map(|(node, name)| {
                self.output((node, name), (scope, mark), open.as_ref(), features.distinct)
            })
            .collect()
    }

    fn output(
        &self,
        (node, name): (&Node, String),
        (scope, mark): (&Scope<'_>, i32),
        open: Option<&Exposed>,
        distinct: bool,
    ) -> Output {
        let value = match &node.node {
            Some(NodeEnum::ResTarget(target)) => target.val.as_deref(),
            _ => None,
        };
        let Some(value) = value else {
            return Output { name, ..Output::opaque() };
        };
        let plain = self.plain(value, scope);
        let origin = self.valued(value, scope, mark);
        let distinct = if distinct { Collapsed::ByItself } else { Collapsed::No };
        let merged = match open {
            None => Collapsed::No,
            Some(open) if !keeps(&open.values, &origin) => {
                return Output { name, ..Output::opaque() };
            }
            Some(open) if open.parts.iter().all(|it| splits_by(it, &origin)) => Collapsed::ByItself,
            Some(_) => Collapsed::ByColumns,
        };
        Output { name, origin, collapsed: plain.collapsed.max(distinct).max(merged) }
    }

    /// What an output column, or an expression of GROUP BY, is.
    fn valued(&self, node: &Node, scope: &Scope<'_>, mark: i32) -> Origin {
        match self.plain(node, scope).origin {
            Origin::Opaque => {
                let mut node = node.clone();
                self.mark_calls(&mut node, mark);
                key_origin(self, &node, scope)
            }
            origin => origin,
        }
    }

    /// ORDER BY may name an output column, which is then walked already.
    fn sort_key(&mut self, node: &Node, names: &[String], scope: &Scope<'_>) {
        if let Some(NodeEnum::SortBy(sort)) = &node.node
            && let Some(Some(NodeEnum::ColumnRef(column))) = sort.node.as_ref().map(|it| &it.node)
            && let [name] = &column.fields[..]
            && text_of(name).is_some_and(|it| names.iter().any(|name| name == it))
        {
            return;
        }
        self.expression(node, scope);
    }

    /// The values through which the level may be left; None: there is no barrier.
    fn exposed(
        &self,
        stmt: &SelectStmt,
        (scope, mark): (&Scope<'_>, i32),
        features: &Features,
    ) -> Option<Exposed> {
        let columns = |nodes: &[Node]| -> Vec<Origin> {
            let origins = nodes.iter().map(|it| self.valued(it, scope, mark));
            origins.filter(|it| *it != Origin::Opaque).collect()
        };
        let mut parts: Vec<Vec<Origin>> = Vec::new();
        if features.limited {
            parts.push(Vec::new());
        }
        if features.grouped || features.aggregated {
            parts.push(columns(&stmt.group_clause));
        }
        if features.distinct_on {
            parts.push(columns(&stmt.distinct_clause));
        }
        for window in &features.windows {
            let partition = partition_of(window, stmt);
            parts.push(partition.map(columns).unwrap_or_default());
        }
        let mut others = parts.iter();
        let first = others.next()?.clone();
        let values = others
            .fold(first, |open, part| open.into_iter().filter(|it| keeps(part, it)).collect());
        Some(Exposed { values, parts })
    }
}

/// What a barrier keeps.
struct Exposed {
    /// By these values all parts split the rows.
    values: Vec<Origin>,
    /// What each clause splits the rows by.
    parts: Vec<Vec<Origin>>,
}

/// The PARTITION BY of a window, followed through the WINDOW clause. None: not found.
fn partition_of<'w>(window: &'w WindowDef, stmt: &'w SelectStmt) -> Option<&'w [Node]> {
    let named = |name: &str| {
        stmt.window_clause.iter().find_map(|it| match &it.node {
            Some(NodeEnum::WindowDef(it)) if it.name == name => Some(&**it),
            _ => None,
        })
    };
    let mut window = window;
    // Names refer to windows before them, so the chain is no longer than the clause.
    for _ in 0..=stmt.window_clause.len() {
        if !window.partition_clause.is_empty() {
            return Some(&window.partition_clause);
        }
        let next = if !window.refname.is_empty() { &window.refname } else { &window.name };
        match named(next) {
            Some(next) if !std::ptr::eq(next, window) => window = next,
            _ => return None,
        }
    }
    None
}

/// Set-returning calls have this mark for a location, or one below; real ones are above.
pub(super) const FIRST_MARK: i32 = -2;

/// The two sides of a plain `=`. `x = ANY (array)` says that x equals one of the elements.
pub(super) fn equals_of(node: &Node) -> Option<(Node, Node)> {
    let Some(NodeEnum::AExpr(it)) = &node.node else { return None };
    let (left, right) = (it.lexpr.as_deref()?.clone(), it.rexpr.as_deref()?.clone());
    match it.kind() {
        _ if !is_plain_equals(&it.name) => None,
        AExprKind::AexprOp => Some((left, right)),
        AExprKind::AexprOpAny => {
            let text =
                |sval: &str| Node { node: Some(NodeEnum::String(Text { sval: sval.to_owned() })) };
            // Nobody compares it with another call; that it is marked says that it is a set.
            let call = FuncCall {
                location: FIRST_MARK,
                funcname: vec![text("pg_catalog"), text("unnest")],
                args: vec![right],
                funcformat: 1,
                ..FuncCall::default()
            };
            Some((left, Node { node: Some(NodeEnum::FuncCall(Box::new(call))) }))
        }
        _ => None,
    }
}

/// A bare `=`: one that is not built in is printed as `OPERATOR(namespace.=)`.
fn is_plain_equals(name: &[Node]) -> bool {
    matches!(name, [name] if text_of(name) == Some("="))
}
