//! Which expressions are values of a row: they depend on nothing but the row, and are NULL where
//! a nullable row is missing.

use pg_query::NodeEnum;
use pg_query::protobuf::{AExprKind, FuncCall, Node, TypeName};

use super::function::is_elements;
use super::level::{children, function_name};
use super::walk::{Walk, text_of};

/// Strict operators of built-in types.
const OPERATORS: &[&str] = &[
    "+", "-", "*", "/", "%", "||", "=", "<>", "<", "<=", ">", ">=", "->", "->>", "#>", "#>>", "~~",
    "~",
];

/// What `||` is between arrays: an element more, though it is NULL, makes a value of it.
const OF_ARRAYS: &[&str] = &["array_append", "array_prepend", "array_cat"];

/// NULL for a NULL to take apart, though Postgres does not call them strict.
const NULL_OF_NULL: &[&str] = &["string_to_array", "string_to_table"];

/// Types whose input and output read no catalog, by their names in it. Not so `regclass`, whose
/// text changes as a table is renamed, and enums.
const TYPES: &[&str] = &[
    "bool",
    "int2",
    "int4",
    "int8",
    "float4",
    "float8",
    "numeric",
    "text",
    "varchar",
    "bpchar",
    "uuid",
    "date",
    "time",
    "timetz",
    "timestamp",
    "timestamptz",
    "interval",
    "jsonb",
    "bytea",
    "inet",
    "cidr",
    "macaddr",
];

/// Whether the value depends on the row only, and is NULL where a nullable row is missing.
pub(super) fn allowed(walk: &Walk<'_>, node: &Node, nullable: bool) -> bool {
    let all = || {
        let parts = children(node).unwrap_or_default();
        parts.into_iter().all(|it| allowed(walk, it, nullable))
    };
    match &node.node {
        Some(NodeEnum::ColumnRef(_) | NodeEnum::AConst(_)) => true,
        Some(NodeEnum::TypeCast(it)) => {
            let Some(arg) = it.arg.as_deref() else { return false };
            let constant = matches!(arg.node, Some(NodeEnum::AConst(_)));
            allowed(walk, arg, nullable)
                && (constant || it.type_name.as_ref().is_some_and(is_plain))
        }
        Some(NodeEnum::AExpr(it)) => {
            // Plain operators are strict, all but a few; of those only `||` is one of the known.
            let sign = it.name.first().and_then(text_of);
            it.name.len() == 1
                && it.kind() == AExprKind::AexprOp
                && sign.is_some_and(|it| OPERATORS.contains(&it))
                && (sign != Some("||") || !nullable || !appends(walk))
                && all()
        }
        // These may make a value of NULLs.
        Some(
            NodeEnum::CoalesceExpr(_)
            | NodeEnum::CaseExpr(_)
            | NodeEnum::CaseWhen(_)
            | NodeEnum::BoolExpr(_)
            | NodeEnum::NullTest(_),
        ) => !nullable && all(),
        Some(NodeEnum::FuncCall(it)) => call_allowed(walk, it, nullable),
        // A column of a function's rows.
        Some(NodeEnum::AIndirection(it)) => {
            let of_call = |it: &Node| matches!(it.node, Some(NodeEnum::FuncCall(_)));
            let named = it.indirection.iter().all(|it| text_of(it).is_some());
            named && it.arg.as_deref().is_some_and(|it| of_call(it) && allowed(walk, it, nullable))
        }
        _ => false,
    }
}

/// Whether a `||` of the SQL may be one between arrays: which one is not told by its sign.
fn appends(walk: &Walk<'_>) -> bool {
    walk.input.functions.iter().any(|it| OF_ARRAYS.contains(&it.name.as_str()))
}

fn call_allowed(walk: &Walk<'_>, call: &FuncCall, nullable: bool) -> bool {
    let Some(name) = function_name(call) else { return false };
    let plain = call.over.is_none()
        && call.agg_order.is_empty()
        && call.agg_filter.is_none()
        && !call.agg_star
        && !call.agg_distinct;
    let args = || call.args.iter().all(|it| allowed(walk, it, nullable));
    if name == "unnest" && plain {
        // `= ANY (array)` is rewritten to it. An array of NULLs has no element that equals any.
        return match &call.args[..] {
            [Node { node: Some(NodeEnum::AArrayExpr(array)) }] => {
                array.elements.iter().all(|it| allowed(walk, it, true))
            }
            [_] => args(),
            _ => false,
        };
    }
    if is_elements(call) {
        return plain && args();
    }
    let mut facts = walk.input.functions.iter().filter(|it| it.name == name).peekable();
    let fits = |it: &super::facts::FunctionFacts| {
        let strict = it.strict || NULL_OF_NULL.contains(&name);
        it.obstacle().is_none() && !it.aggregate && (strict || !nullable)
    };
    plain && facts.peek().is_some() && facts.all(fits) && args()
}

/// Whether the type's input and output read no catalog.
pub(super) fn is_plain(type_name: &TypeName) -> bool {
    let names: Vec<&str> = type_name.names.iter().filter_map(text_of).collect();
    let name = match names[..] {
        [name] | ["pg_catalog", name] => name,
        _ => return false,
    };
    TYPES.contains(&name)
}
