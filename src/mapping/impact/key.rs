//! Keys that are expressions (A5): immutable, over columns of one occurrence, strict where that
//! occurrence's row may be missing. Anything else stays opaque, and an opaque key polls.

use pg_query::NodeEnum;
use pg_query::protobuf::{
    AExprKind, Node, ParseResult, RawStmt, ResTarget, SelectStmt, String as Text,
};

use super::level::{children, function_name};
use super::scope::{ColumnOf, Origin, Scope};
use super::walk::Walk;

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
    let origin = |it: &Node| match walk.plain(it, scope).origin {
        Origin::Opaque => key_expression(walk, it, scope),
        origin => origin,
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

/// The same expression, wherever it is written: its text, as nodes have places.
fn same(one: &Origin, other: &Origin) -> bool {
    let (
        Origin::Expression { occurrence, node },
        Origin::Expression { occurrence: other, node: also },
    ) = (one, other)
    else {
        return false;
    };
    let shown = |node| print(node, &|it| Some(["row".to_owned(), it.to_owned()]));
    occurrence == other && shown(node).is_some_and(|it| Some(it) == shown(also))
}

/// The origin of an expression over one occurrence, or opaque.
fn key_expression(walk: &Walk<'_>, node: &Node, scope: &Scope<'_>) -> Origin {
    let mut node = node.clone();
    let mut occurrence = None;
    let found = rewrite(&mut node, &mut |column| {
        let Origin::Column(of) = walk.plain(column, scope).origin else { return None };
        if occurrence.is_some_and(|it| it != of.occurrence) {
            return None;
        }
        occurrence = Some(of.occurrence);
        Some(vec![of.column])
    });
    let (true, Some(occurrence)) = (found, occurrence) else { return Origin::Opaque };
    if allowed(walk, &node, walk.occurrences[occurrence].nullable) {
        Origin::Expression { occurrence, node: Box::new(node) }
    } else {
        Origin::Opaque
    }
}

/// The column names of an expression's references.
pub(super) fn columns_of(node: &Node) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    let mut node = node.clone();
    rewrite(&mut node, &mut |column| {
        if let Some(NodeEnum::ColumnRef(it)) = &column.node
            && let Some(name) = it.fields.last().and_then(super::walk::text_of)
            && !columns.iter().any(|it| it == name)
        {
            columns.push(name.to_owned());
        }
        Some(Vec::new())
    });
    columns
}

/// The expression as SQL, its columns renamed by `name`. None: it cannot be printed.
pub(super) fn print(node: &Node, name: &dyn Fn(&str) -> Option<[String; 2]>) -> Option<String> {
    let mut node = node.clone();
    let renamed = rewrite(&mut node, &mut |column| match &column.node {
        Some(NodeEnum::ColumnRef(it)) => {
            name(it.fields.last().and_then(super::walk::text_of)?).map(Vec::from)
        }
        _ => None,
    });
    if !renamed {
        return None;
    }
    let target = ResTarget { val: Some(Box::new(node)), ..ResTarget::default() };
    let select = SelectStmt {
        target_list: vec![Node { node: Some(NodeEnum::ResTarget(Box::new(target))) }],
        limit_option: 1,
        op: 1,
        ..SelectStmt::default()
    };
    let stmt = Node { node: Some(NodeEnum::SelectStmt(Box::new(select))) };
    let stmts = vec![RawStmt { stmt: Some(Box::new(stmt)), ..RawStmt::default() }];
    let sql =
        ParseResult { version: 0, stmts }.deparse(pg_query::DeparseOptions::default()).ok()?;
    sql.strip_prefix("SELECT ").map(str::to_owned)
}

/// Gives every column reference new fields; false once a reference or a node is not understood.
fn rewrite(node: &mut Node, name: &mut dyn FnMut(&Node) -> Option<Vec<String>>) -> bool {
    if matches!(node.node, Some(NodeEnum::ColumnRef(_))) {
        let Some(fields) = name(node) else { return false };
        if let Some(NodeEnum::ColumnRef(column)) = &mut node.node {
            let text = |sval| Node { node: Some(NodeEnum::String(Text { sval })) };
            if !fields.is_empty() {
                column.fields = fields.into_iter().map(text).collect();
            }
        }
        return true;
    }
    match &mut node.node {
        Some(NodeEnum::AConst(_)) => true,
        Some(NodeEnum::TypeCast(it)) => it.arg.as_mut().is_some_and(|it| rewrite(it, name)),
        Some(NodeEnum::AExpr(it)) => {
            it.lexpr.iter_mut().chain(&mut it.rexpr).all(|it| rewrite(it, name))
        }
        Some(NodeEnum::FuncCall(it)) => it.args.iter_mut().all(|it| rewrite(it, name)),
        Some(NodeEnum::CoalesceExpr(it)) => it.args.iter_mut().all(|it| rewrite(it, name)),
        Some(NodeEnum::BoolExpr(it)) => it.args.iter_mut().all(|it| rewrite(it, name)),
        Some(NodeEnum::NullTest(it)) => it.arg.as_mut().is_some_and(|it| rewrite(it, name)),
        Some(NodeEnum::CaseExpr(it)) => {
            let ends = it.arg.iter_mut().chain(&mut it.defresult).map(|it| &mut **it);
            it.args.iter_mut().chain(ends).all(|it| rewrite(it, name))
        }
        Some(NodeEnum::CaseWhen(it)) => {
            it.expr.iter_mut().chain(&mut it.result).all(|it| rewrite(it, name))
        }
        _ => false,
    }
}

/// Strict operators of built-in types.
const OPERATORS: &[&str] = &["+", "-", "*", "/", "%", "||", "=", "<>", "<", "<=", ">", ">="];

/// Whether the value depends on the row only, and is NULL where a nullable row is missing.
fn allowed(walk: &Walk<'_>, node: &Node, nullable: bool) -> bool {
    match &node.node {
        Some(NodeEnum::ColumnRef(_) | NodeEnum::AConst(_)) => true,
        Some(NodeEnum::TypeCast(it)) => {
            it.arg.as_ref().is_some_and(|it| allowed(walk, it, nullable))
        }
        Some(NodeEnum::AExpr(it)) => {
            // Plain operators are strict, all but a few; those are not made of one known sign.
            let plain = it.name.len() == 1
                && it
                    .name
                    .first()
                    .and_then(super::walk::text_of)
                    .is_some_and(|it| OPERATORS.contains(&it));
            let plain = plain && it.kind() == AExprKind::AexprOp;
            plain && it.lexpr.iter().chain(&it.rexpr).all(|it| allowed(walk, it, nullable))
        }
        // These may make a value of NULLs.
        Some(
            NodeEnum::CoalesceExpr(_)
            | NodeEnum::CaseExpr(_)
            | NodeEnum::CaseWhen(_)
            | NodeEnum::BoolExpr(_)
            | NodeEnum::NullTest(_),
        ) => {
            let parts = children(node).unwrap_or_default();
            !nullable && parts.into_iter().all(|it| allowed(walk, it, nullable))
        }
        Some(NodeEnum::FuncCall(it)) => {
            let Some(name) = function_name(it) else { return false };
            let plain = it.over.is_none()
                && it.agg_order.is_empty()
                && it.agg_filter.is_none()
                && !it.agg_star
                && !it.agg_distinct;
            let mut facts = walk.input.functions.iter().filter(|it| it.name == name).peekable();
            plain
                && facts.peek().is_some()
                && facts.all(|it| {
                    it.obstacle().is_none()
                        && !it.aggregate
                        && !it.returns_set
                        && (it.strict || !nullable)
                })
                && it.args.iter().all(|it| allowed(walk, it, nullable))
        }
        _ => false,
    }
}
