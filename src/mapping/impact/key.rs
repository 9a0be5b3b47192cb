//! Keys that are expressions (A5): immutable, over columns of one occurrence, strict where that
//! occurrence's row may be missing. Anything else stays opaque, and an opaque key polls.

use pg_query::NodeEnum;
use pg_query::protobuf::{Node, ParseResult, RawStmt, ResTarget, SelectStmt, String as Text};

use super::facts::Volatility;
use super::level::function_name;
use super::scope::{Origin, Scope};
use super::walk::Walk;

/// The origin of an expression over one occurrence, or opaque.
pub(super) fn key_expression(walk: &Walk<'_>, node: &Node, scope: &Scope<'_>) -> Origin {
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
        _ => false,
    }
}

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
                    .is_some_and(|it| ["+", "-", "*", "/", "%", "||"].contains(&it));
            plain && it.lexpr.iter().chain(&it.rexpr).all(|it| allowed(walk, it, nullable))
        }
        Some(NodeEnum::CoalesceExpr(it)) => {
            !nullable && it.args.iter().all(|it| allowed(walk, it, nullable))
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
                    it.built_in
                        && it.volatility == Volatility::Immutable
                        && !it.aggregate
                        && !it.returns_set
                        && (it.strict || !nullable)
                })
                && it.args.iter().all(|it| allowed(walk, it, nullable))
        }
        _ => false,
    }
}
