//! The conditions of a plan, as EXPLAIN prints them: what of a table is compared. Pure.

use pg_query::protobuf::{AExpr, AExprKind, BoolExprType, ColumnRef, Node};
use pg_query::{NodeEnum, NodeRef};

use super::expression;

/// A value of a table's row that a condition compares with something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Equality {
    pub(super) alias: String,
    pub(super) value: Indexed,
    /// Compared with a constant of the SQL, not with a parameter or another table's column.
    pub(super) constant: bool,
    /// An arm of an OR: an index of its own has to find it.
    pub(super) alternative: bool,
}

/// What an index would be on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Indexed {
    Column(String),
    /// SQL over bare columns, and which these are.
    Expression {
        sql: String,
        columns: Vec<String>,
    },
    /// An array that is asked for what is in it.
    Elements(String),
}

/// What a condition compares. What is no SQL (`(hashed SubPlan 1)`) compares nothing.
pub(super) fn equalities(condition: &str) -> Vec<Equality> {
    let sql = format!("SELECT 1 WHERE {condition}");
    let Ok(parsed) = pg_query::parse(&sql, pg_query::ParserOptions::default()) else {
        return vec![];
    };
    let mut found = Vec::new();
    let nodes = || parsed.protobuf.nodes().into_iter().map(|(node, ..)| node);
    let in_an_or: Vec<&Node> = nodes()
        .filter_map(|node| match node {
            NodeRef::BoolExpr(it) if it.boolop() == BoolExprType::OrExpr => Some(&it.args),
            _ => None,
        })
        .flatten()
        .collect();
    for node in nodes() {
        let NodeRef::AExpr(expression) = node else { continue };
        let alternative = in_an_or.iter().any(|it| {
            let inside = it.node.as_ref().map(NodeEnum::nodes).unwrap_or_default();
            let it = it.node.as_ref().map(NodeEnum::to_ref);
            let all = inside.into_iter().map(|(node, ..)| node).chain(it);
            all.into_iter()
                .any(|it| matches!(it, NodeRef::AExpr(it) if std::ptr::eq(it, expression)))
        });
        for mut it in sides(expression) {
            it.alternative = alternative;
            found.push(it);
        }
    }
    found
}

fn sides(expression: &AExpr) -> Vec<Equality> {
    let kinds = [AExprKind::AexprOp, AExprKind::AexprOpAny, AExprKind::AexprIn];
    let name = match expression.name.last().and_then(|it| it.node.as_ref()) {
        Some(NodeEnum::String(it)) => it.sval.as_str(),
        _ => return vec![],
    };
    let (left, right) = (expression.lexpr.as_deref(), expression.rexpr.as_deref());
    let (Some(left), Some(right)) = (left, right) else { return vec![] };
    if !kinds.contains(&expression.kind()) {
        return vec![];
    }
    let of = |(alias, value), other: &Node| Equality {
        alias,
        value,
        constant: is_constant(other),
        alternative: false,
    };
    if name == "@>" {
        let array = column(left).map(|(alias, column)| (alias, Indexed::Elements(column)));
        let asked = matches!(right.node, Some(NodeEnum::AArrayExpr(_)));
        return array.filter(|_| asked).map(|it| of(it, right)).into_iter().collect();
    }
    if name != "=" {
        return vec![];
    }
    let both = [(left, right), (right, left)];
    both.into_iter().filter_map(|(one, other)| Some(of(indexed(one)?, other))).collect()
}

fn indexed(node: &Node) -> Option<(String, Indexed)> {
    if let Some((alias, column)) = column(node) {
        return Some((alias, Indexed::Column(column)));
    }
    expression::indexed(node)
}

/// The column, also under the cast to text by which `varchar` is compared: its index serves.
fn column(node: &Node) -> Option<(String, String)> {
    match node.node.as_ref()? {
        NodeEnum::ColumnRef(reference) => qualified(reference),
        NodeEnum::TypeCast(cast) => {
            let name = cast.type_name.as_ref()?.names.last()?.node.as_ref()?;
            let to_text = matches!(name, NodeEnum::String(it) if it.sval == "text");
            column(cast.arg.as_deref()?).filter(|_| to_text)
        }
        _ => None,
    }
}

pub(super) fn qualified(reference: &ColumnRef) -> Option<(String, String)> {
    let names: Vec<&str> = reference.fields.iter().filter_map(text).collect();
    match names[..] {
        [.., alias, column] => Some((alias.to_owned(), column.to_owned())),
        _ => None,
    }
}

pub(super) fn text(node: &Node) -> Option<&str> {
    match node.node.as_ref()? {
        NodeEnum::String(it) => Some(&it.sval),
        _ => None,
    }
}

pub(super) fn is_constant(node: &Node) -> bool {
    match &node.node {
        Some(NodeEnum::AConst(_)) => true,
        Some(NodeEnum::TypeCast(cast)) => cast.arg.as_deref().is_some_and(is_constant),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equalities_are_found_as_explain_prints_them() {
        let cases = [
            ("(i.shop_id = s.id)", "i.shop_id s.id"),
            ("(i.shop_id = ANY (($1)::integer[]))", "i.shop_id"),
            ("((i.name)::text = changed.c1)", "i.name changed.c1"),
            ("((i.name)::numeric = s.n)", "i.(name::numeric) s.n"),
            ("(lower(i.name) = lower(changed.c1))", "i.(lower(name)) changed.(lower(c1))"),
            ("((i.body ->> 'id'::text) = $1)", "i.(body ->> 'id'::text)"),
            ("((i.body ->> 'id'::text))::bigint = s.id", "i.((body ->> 'id'::text)::bigint) s.id"),
            ("(random() = s.id)", "s.id"),
            ("((i.name || s.name) = s.id)", "s.id"),
            ("((i.refs @> ARRAY[changed.c1]))", "i.refs[]"),
            ("((i.shop_id = s.id) OR (i.up_id = s.id))", "i.shop_id? s.id? i.up_id? s.id?"),
            ("((i.kind = 'a'::text) AND (i.at > now()))", "i.kind*"),
            ("(NOT (hashed SubPlan 1))", ""),
            ("(\"Item\".\"shopId\" = $1)", "Item.shopId"),
        ];
        for (condition, expected) in cases {
            let found: Vec<String> = equalities(condition)
                .iter()
                .map(|it| {
                    let star = if it.constant { "*" } else { "" };
                    let either = if it.alternative { "?" } else { "" };
                    let value = match &it.value {
                        Indexed::Column(it) => it.clone(),
                        Indexed::Expression { sql, .. } => format!("({sql})"),
                        Indexed::Elements(it) => format!("{it}[]"),
                    };
                    format!("{}.{value}{star}{either}", it.alias)
                })
                .collect();
            assert_eq!(found.join(" "), expected, "{condition}");
        }
    }
}
