//! Expressions that an index can be on: over one table's columns, and immutable as far as their
//! text tells. Pure.

use pg_query::NodeEnum;
use pg_query::protobuf::{ColumnRef, Node, String as Text};

use super::conditions::{Indexed, qualified, text};
use crate::mapping::expression_sql::printed;

const FUNCTIONS: &[&str] = &[
    "lower",
    "upper",
    "btrim",
    "ltrim",
    "rtrim",
    "md5",
    "abs",
    "replace",
    "left",
    "right",
    "substr",
    "substring",
    "split_part",
    "reverse",
    "length",
];

const OPERATORS: &[&str] = &["+", "-", "*", "/", "%", "||", "->", "->>", "#>", "#>>"];

/// Casts between these and text are immutable; those of dates and times are not.
const TYPES: &[&str] =
    &["text", "varchar", "int2", "int4", "int8", "numeric", "uuid", "bool", "jsonb"];

/// The alias, and the expression without it.
pub(super) fn indexed(node: &Node) -> Option<(String, Indexed)> {
    let mut node = node.clone();
    let (mut aliases, mut columns) = (Vec::new(), Vec::new());
    strip(&mut node, &mut aliases, &mut columns).then_some(())?;
    let alias = aliases.first()?.clone();
    let one_table = aliases.iter().all(|it| *it == alias);
    let sql = one_table.then(|| printed(node)).flatten()?;
    Some((alias, Indexed::Expression { sql, columns }))
}

/// Takes the aliases out of the column references; false: an index can't be on it.
fn strip(node: &mut Node, aliases: &mut Vec<String>, columns: &mut Vec<String>) -> bool {
    match &mut node.node {
        Some(NodeEnum::ColumnRef(reference)) => {
            let Some((alias, column)) = qualified(reference) else { return false };
            let sval = column.clone();
            let name = Node { node: Some(NodeEnum::String(Text { sval })) };
            *reference = ColumnRef { fields: vec![name], ..ColumnRef::default() };
            aliases.push(alias);
            columns.push(column);
            true
        }
        Some(NodeEnum::AConst(_)) => true,
        Some(NodeEnum::TypeCast(cast)) => {
            let name = cast.type_name.as_ref().and_then(|it| it.names.last()).and_then(text);
            name.is_some_and(|it| TYPES.contains(&it))
                && cast.arg.as_deref_mut().is_some_and(|it| strip(it, aliases, columns))
        }
        Some(NodeEnum::AExpr(it)) => {
            let known = it.name.first().and_then(text).is_some_and(|it| OPERATORS.contains(&it));
            let mut parts = it.lexpr.iter_mut().chain(&mut it.rexpr);
            known && parts.all(|it| strip(it, aliases, columns))
        }
        Some(NodeEnum::FuncCall(it)) => {
            let known = it.funcname.last().and_then(text).is_some_and(|it| FUNCTIONS.contains(&it));
            known && it.args.iter_mut().all(|it| strip(it, aliases, columns))
        }
        _ => false,
    }
}
