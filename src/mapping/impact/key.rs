//! Values that are expressions, as keys (A5) and in links: immutable, over columns of one
//! occurrence, strict where that occurrence's row may be missing. Anything else stays opaque, and
//! an opaque key polls.

use pg_query::NodeEnum;
use pg_query::protobuf::{ColumnRef, Node, String as Text};

use super::allowed::allowed;
use super::level::{FIRST_MARK, children};
use super::scope::{Collapsed, ColumnOf, Origin, Output, Scope};
use super::walk::{Walk, text_of};
use crate::mapping::expression_sql::printed;

/// The origin of an expression that may be a key, or opaque.
///
/// COALESCE and CASE yield one of their values. Every derivation of a document then has one of
/// these values as its key, so that the paths of all of them together find the document.
pub(super) fn key_origin(walk: &Walk<'_>, node: &Node, scope: &Scope<'_>) -> Origin {
    let one = key_expression(walk, node, scope);
    if one != Origin::Opaque {
        return one;
    }
    let values: Vec<&Node> = match &node.node {
        Some(NodeEnum::CoalesceExpr(it)) => it.args.iter().collect(),
        Some(NodeEnum::CaseExpr(it)) => {
            let Some(last) = it.defresult.as_deref() else { return Origin::Opaque };
            let results = it.args.iter().filter_map(|it| match &it.node {
                Some(NodeEnum::CaseWhen(it)) => it.result.as_deref(),
                _ => None,
            });
            results.chain([last]).collect()
        }
        _ => return Origin::Opaque,
    };
    // A NULL is no key.
    let values = values.into_iter().filter(|it| !is_null(it));
    let origin = |it: &Node| {
        let plain = walk.plain(it, scope);
        match plain.origin {
            Origin::Opaque => key_expression(walk, it, scope),
            _ if !is_decided(walk, &plain) => Origin::Opaque,
            origin => origin,
        }
    };
    Origin::one_of(values.map(origin).collect(), false)
}

fn is_null(node: &Node) -> bool {
    match &node.node {
        Some(NodeEnum::AConst(it)) => it.isnull,
        Some(NodeEnum::TypeCast(it)) => it.arg.as_deref().is_some_and(is_null),
        _ => false,
    }
}

/// Whether all rows that a barrier merges into one have the same value: it splits them by the
/// value itself, or by every column that the value is made of.
pub(super) fn keeps(open: &[Origin], origin: &Origin) -> bool {
    let column = |occurrence: usize, column: String| {
        open.contains(&Origin::Column(ColumnOf { occurrence, column }))
    };
    match origin {
        Origin::Opaque => false,
        Origin::Column(_) => open.contains(origin),
        Origin::Expression { occurrence, node } => {
            let columns = columns_of(node);
            let by_columns = columns.into_iter().all(|it| column(*occurrence, it));
            by_columns || open.iter().any(|it| same(it, origin))
        }
        Origin::OneOf { members, equated } => {
            let same = |it: &Origin| {
                matches!(it, Origin::OneOf { members: open, equated: also }
                if open == members && also == equated)
            };
            members.iter().all(|it| keeps(open, it)) || (*equated && open.iter().any(same))
        }
    }
}

/// Whether a clause splits rows by the very expression.
pub(super) fn splits_by(open: &[Origin], origin: &Origin) -> bool {
    matches!(origin, Origin::Expression { .. }) && open.iter().any(|it| same(it, origin))
}

/// The same expression, wherever it is written: its text, as nodes have places. Of set-returning
/// calls their marks too, as they go through their rows independently.
fn same(one: &Origin, other: &Origin) -> bool {
    let (
        Origin::Expression { occurrence, node },
        Origin::Expression { occurrence: other, node: also },
    ) = (one, other)
    else {
        return false;
    };
    let shown = |node| print(node, &|it| Some(["row".to_owned(), it.to_owned()]));
    occurrence == other
        && marks(node) == marks(also)
        && shown(node).is_some_and(|it| Some(it) == shown(also))
}

/// The marks of set-returning calls.
fn marks(node: &Node) -> Vec<i32> {
    let mut found = Vec::new();
    if let Some(NodeEnum::FuncCall(it)) = &node.node
        && it.location <= FIRST_MARK
    {
        found.push(it.location);
    }
    for part in children(node).unwrap_or_default() {
        found.extend(marks(part));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Whether the value is one row's, not that of any one of several that are equal only (A8).
fn is_decided(walk: &Walk<'_>, output: &Output) -> bool {
    output.collapsed == Collapsed::No
        || output.origin.alternatives().iter().all(|it| super::identical(walk, it))
}

/// The origin of an expression over one occurrence, or opaque.
pub(super) fn key_expression(walk: &Walk<'_>, node: &Node, scope: &Scope<'_>) -> Origin {
    let mut node = node.clone();
    let mut found = None;
    let understood = replace(&mut node, &mut |column| {
        let output = walk.plain(column, scope);
        if !is_decided(walk, &output) {
            return None;
        }
        let (occurrence, value) = match output.origin {
            Origin::Column(of) => (of.occurrence, reference(vec![of.column])),
            Origin::Expression { occurrence, node } => (occurrence, *node),
            Origin::OneOf { .. } | Origin::Opaque => return None,
        };
        let one_row = *found.get_or_insert(occurrence) == occurrence;
        one_row.then_some(value)
    });
    let (true, Some(occurrence)) = (understood, found) else { return Origin::Opaque };
    // Where a set is empty, an outer join has a row nevertheless.
    let sets = marks(&node).len();
    let nullable = walk.occurrences[occurrence].nullable || sets > 0;
    if sets <= 1 && allowed(walk, &node, nullable) {
        Origin::Expression { occurrence, node: Box::new(node) }
    } else {
        Origin::Opaque
    }
}

/// The column names of an expression's references.
pub(super) fn columns_of(node: &Node) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    if let Some(NodeEnum::ColumnRef(it)) = &node.node {
        columns.extend(it.fields.last().and_then(text_of).map(str::to_owned));
    }
    for column in children(node).unwrap_or_default().into_iter().flat_map(columns_of) {
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    columns
}

/// The expression as SQL, its columns renamed by `name`. None: it cannot be printed.
pub(super) fn print(node: &Node, name: &dyn Fn(&str) -> Option<[String; 2]>) -> Option<String> {
    let mut node = node.clone();
    let renamed = replace(&mut node, &mut |column| match &column.node {
        Some(NodeEnum::ColumnRef(it)) => {
            Some(reference(name(it.fields.last().and_then(text_of)?)?.into()))
        }
        _ => None,
    });
    if !renamed {
        return None;
    }
    printed(node)
}

pub(super) fn reference(names: Vec<String>) -> Node {
    let text = |sval| Node { node: Some(NodeEnum::String(Text { sval })) };
    let fields = names.into_iter().map(text).collect();
    Node { node: Some(NodeEnum::ColumnRef(ColumnRef { fields, location: -1 })) }
}

/// Puts something else in the place of every column reference; false once a reference or a node
/// is not understood.
fn replace(node: &mut Node, by: &mut dyn FnMut(&Node) -> Option<Node>) -> bool {
    match &node.node {
        Some(NodeEnum::ColumnRef(_)) => {
            let Some(other) = by(node) else { return false };
            *node = other;
            true
        }
        Some(NodeEnum::AConst(_)) => true,
        _ => {
            let parts = parts(node);
            !parts.is_empty() && parts.into_iter().all(|it| replace(it, by))
        }
    }
}

/// The parts of an expression of the kinds that a value may be made of.
pub(super) fn parts(node: &mut Node) -> Vec<&mut Node> {
    match &mut node.node {
        Some(NodeEnum::TypeCast(it)) => it.arg.iter_mut().map(|it| &mut **it).collect(),
        Some(NodeEnum::AExpr(it)) => {
            it.lexpr.iter_mut().chain(&mut it.rexpr).map(|it| &mut **it).collect()
        }
        Some(NodeEnum::FuncCall(it)) => it.args.iter_mut().collect(),
        Some(NodeEnum::CoalesceExpr(it)) => it.args.iter_mut().collect(),
        Some(NodeEnum::BoolExpr(it)) => it.args.iter_mut().collect(),
        Some(NodeEnum::AArrayExpr(it)) => it.elements.iter_mut().collect(),
        Some(NodeEnum::NullTest(it)) => it.arg.iter_mut().map(|it| &mut **it).collect(),
        // A column of a composite; an index of an array may be an expression itself.
        Some(NodeEnum::AIndirection(it))
            if it.indirection.iter().all(|it| text_of(it).is_some()) =>
        {
            it.arg.iter_mut().map(|it| &mut **it).collect()
        }
        Some(NodeEnum::CaseExpr(it)) => {
            let ends = it.arg.iter_mut().chain(&mut it.defresult).map(|it| &mut **it);
            it.args.iter_mut().chain(ends).collect()
        }
        Some(NodeEnum::CaseWhen(it)) => {
            it.expr.iter_mut().chain(&mut it.result).map(|it| &mut **it).collect()
        }
        _ => Vec::new(),
    }
}
