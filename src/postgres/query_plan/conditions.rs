//! The conditions of a plan, as EXPLAIN prints them: which columns are compared for equality. Pure.

use pg_query::protobuf::{AExpr, AExprKind, ColumnRef, Node};
use pg_query::{NodeEnum, NodeRef};

/// A column of a table that a condition compares with something else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Equality {
    pub(super) alias: String,
    pub(super) column: String,
    /// Compared with a constant of the SQL, not with a parameter or another table's column.
    pub(super) constant: bool,
}

/// The equalities of a condition. What is no SQL (`(hashed SubPlan 1)`) has none.
pub(super) fn equalities(condition: &str) -> Vec<Equality> {
    let sql = format!("SELECT 1 WHERE {condition}");
    let Ok(parsed) = pg_query::parse(&sql, pg_query::ParserOptions::default()) else {
        return vec![];
    };
    let expressions = parsed.protobuf.nodes().into_iter().filter_map(|(node, ..)| match node {
        NodeRef::AExpr(expression) => Some(expression.clone()),
        _ => None,
    });
    expressions.flat_map(|it| sides(&it)).collect()
}

fn sides(expression: &AExpr) -> Vec<Equality> {
    let kinds = [AExprKind::AexprOp, AExprKind::AexprOpAny, AExprKind::AexprIn];
    let name = expression.name.last().and_then(|it| it.node.as_ref());
    let equals = matches!(name, Some(NodeEnum::String(it)) if it.sval == "=");
    if !equals || !kinds.contains(&expression.kind()) {
        return vec![];
    }
    let (left, right) = (expression.lexpr.as_deref(), expression.rexpr.as_deref());
    let mut found = Vec::new();
    for (one, other) in [(left, right), (right, left)] {
        let (Some(one), Some(other)) = (one, other) else { continue };
        if let Some((alias, column)) = column(one) {
            found.push(Equality { alias, column, constant: is_constant(other) });
        }
    }
    found
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

fn qualified(reference: &ColumnRef) -> Option<(String, String)> {
    let names: Vec<&str> = reference.fields.iter().filter_map(text).collect();
    match names[..] {
        [.., alias, column] => Some((alias.to_owned(), column.to_owned())),
        _ => None,
    }
}

fn text(node: &Node) -> Option<&str> {
    match node.node.as_ref()? {
        NodeEnum::String(it) => Some(&it.sval),
        _ => None,
    }
}

fn is_constant(node: &Node) -> bool {
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
            ("((i.name)::numeric = s.n)", "s.n"),
            ("((i.kind = 'a'::text) AND (i.at > now()))", "i.kind*"),
            ("(NOT (hashed SubPlan 1))", ""),
            ("(\"Item\".\"shopId\" = $1)", "Item.shopId"),
        ];
        for (condition, expected) in cases {
            let found: Vec<String> = equalities(condition)
                .iter()
                .map(|it| {
                    let star = if it.constant { "*" } else { "" };
                    format!("{}.{}{star}", it.alias, it.column)
                })
                .collect();
            assert_eq!(found.join(" "), expected, "{condition}");
        }
    }
}
