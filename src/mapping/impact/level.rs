//! One level of a SELECT: its barriers, its conditions and its output columns.
//!
//! A barrier (GROUP BY, window, DISTINCT ON, LIMIT, an aggregate) makes output rows of many input
//! rows. It may be left only through the columns on which it splits them (A6): every other
//! output column is opaque.

use std::collections::BTreeSet;

use pg_query::NodeEnum;
use pg_query::protobuf::{
    AExprKind, BoolExprType, FuncCall, Node, SelectStmt, SubLink, SubLinkType, WindowDef,
};

use super::key::{keeps, key_origin};
use super::scope::{ColumnOf, Origin, Output, Scope};
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
            Some(NodeEnum::AExpr(it)) if it.kind() == AExprKind::AexprOp => {
                if let (true, Some(left), Some(right)) =
                    (is_plain_equals(&it.name), &it.lexpr, &it.rexpr)
                {
                    let (left, right) = (self.plain(left, scope), self.plain(right, scope));
                    self.equality(&left.origin, &right.origin);
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
                let test = walk.plain(test, scope);
                walk.equality(&test.origin, &output.origin);
            }
        };
        if restricts { body(self) } else { self.apart(body) }
    }

    /// What an expression is a copy of. A cast from `varchar` to `text` changes nothing: it is
    /// how Postgres prints every comparison of `varchar` columns.
    pub(super) fn plain(&self, node: &Node, scope: &Scope<'_>) -> Output {
        let opaque = || Output { name: String::new(), origin: Origin::Opaque, collapsed: false };
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
        let table = &self.occurrences[*occurrence].table;
        let facts = self.input.tables.get(table).and_then(|it| it.column(column));
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
            let opaque = |name| Output { name, origin: Origin::Opaque, collapsed: false };
            return names.into_iter().map(opaque).collect();
        }
        let open = self.exposed(stmt, scope, features);
        let collapses = features.distinct || features.is_barrier();
        let targets = stmt.target_list.iter().zip(names);
        targets
            .map(|(node, name)| self.output((node, name), scope, open.as_deref(), collapses))
            .collect()
    }

    fn output(
        &self,
        (node, name): (&Node, String),
        scope: &Scope<'_>,
        open: Option<&[Origin]>,
        collapses: bool,
    ) -> Output {
        let value = match &node.node {
            Some(NodeEnum::ResTarget(target)) => target.val.as_deref(),
            _ => None,
        };
        let Some(value) = value else {
            return Output { name, origin: Origin::Opaque, collapsed: true };
        };
        let plain = self.plain(value, scope);
        let collapsed = plain.collapsed || collapses;
        let origin = match plain.origin {
            Origin::Opaque => key_origin(self, value, scope),
            origin => origin,
        };
        let origin = match open {
            Some(open) if !keeps(open, &origin) => Origin::Opaque,
            _ => origin,
        };
        Output { name, origin, collapsed }
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
        scope: &Scope<'_>,
        features: &Features,
    ) -> Option<Vec<Origin>> {
        let columns = |nodes: &[Node]| -> Vec<Origin> {
            let origin = |it| match self.plain(it, scope).origin {
                Origin::Opaque => key_origin(self, it, scope),
                origin => origin,
            };
            nodes.iter().map(origin).filter(|it| *it != Origin::Opaque).collect()
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
        let mut parts = parts.into_iter();
        let first = parts.next()?;
        Some(
            parts
                .fold(first, |open, part| open.into_iter().filter(|it| keeps(&part, it)).collect()),
        )
    }
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

/// A bare `=`: one that is not built in is printed as `OPERATOR(namespace.=)`.
fn is_plain_equals(name: &[Node]) -> bool {
    matches!(name, [name] if text_of(name) == Some("="))
}
