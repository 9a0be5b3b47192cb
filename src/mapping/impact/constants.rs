//! `VALUES` of constants: a table that never changes. It may lead on the way, and have the key,
//! as any table; only a path of its own it has not, and needs none.

use std::collections::BTreeSet;

use pg_query::NodeEnum;
use pg_query::protobuf::a_const::Val;
use pg_query::protobuf::{Node, SelectStmt};

use super::facts::{ColumnFacts, TableFacts};
use super::scope::{Collapsed, ColumnOf, Origin, Output};
use super::walk::{Walk, text_of};
use crate::mapping::expression_sql::printed_select;
use crate::mapping::plan::TableName;

/// What is known of such a table.
#[derive(Debug, Clone)]
pub(super) struct Constants {
    pub(super) facts: TableFacts,
    /// `VALUES (…), (…)`.
    pub(super) sql: String,
}

/// A type's name in the catalog, its OID, and its name in SQL.
type Type = (&'static str, u32, &'static str);

/// Those whose equal values have one text.
const TYPES: &[Type] = &[
    ("bool", 16, "boolean"),
    ("int8", 20, "bigint"),
    ("int4", 23, "integer"),
    ("text", 25, "text"),
    ("date", 1082, "date"),
    ("uuid", 2950, "uuid"),
];

impl Walk<'_> {
    /// The columns of a `VALUES` list under these names; opaque if they are no constants, or a
    /// clause of it picks some.
    pub(super) fn values(
        &mut self,
        stmt: &SelectStmt,
        names: Vec<String>,
        picks: bool,
    ) -> Vec<Output> {
        let constants = if picks { None } else { constants(stmt) };
        let known = constants.is_some();
        let occurrence = self.occurrences.len();
        if let Some(constants) = constants {
            self.add_occurrence(constants.facts.name.clone(), "VALUES", Some(constants));
        }
        let output = |name: String| {
            let column = ColumnOf { occurrence, column: name.clone() };
            let origin = if known { Origin::Column(column) } else { Origin::Opaque };
            Output { name, origin, collapsed: Collapsed::No }
        };
        names.into_iter().map(output).collect()
    }
}

fn constants(stmt: &SelectStmt) -> Option<Constants> {
    let row = |it: &Node| match &it.node {
        Some(NodeEnum::List(it)) => it.items.iter().map(constant).collect::<Option<Vec<_>>>(),
        _ => None,
    };
    let rows = stmt.values_lists.iter().map(row).collect::<Option<Vec<_>>>()?;
    let mut types = rows.first()?.clone();
    for row in &rows {
        for (one, other) in types.iter_mut().zip(row) {
            *one = common(*one, *other)?;
        }
    }
    let column = |(nth, &(_, type_oid, type_name)): (usize, &Type)| {
        ColumnFacts::plain(format!("column{}", nth + 1), type_oid, type_name)
    };
    let facts = TableFacts {
        name: TableName { namespace: String::new(), name: "VALUES".to_owned() },
        oid: 0,
        columns: types.iter().enumerate().map(column).collect(),
        published: true,
        identity: BTreeSet::new(),
        obstacles: Vec::new(),
    };
    let values_lists = stmt.values_lists.clone();
    let sql = printed_select(SelectStmt {
        values_lists,
        limit_option: 1,
        op: 1,
        ..SelectStmt::default()
    })?;
    Some(Constants { facts, sql })
}

/// A column's type, of the constants of two rows.
fn common(one: Type, other: Type) -> Option<Type> {
    match (one.0, other.0) {
        (same, also) if same == also => Some(one),
        ("int8", "int4") => Some(one),
        ("int4", "int8") => Some(other),
        _ => None,
    }
}

/// The type of a constant, as Postgres prints one: with a cast to its type, but for numbers.
fn constant(node: &Node) -> Option<Type> {
    let name = match node.node.as_ref()? {
        NodeEnum::AConst(it) => match it.val.as_ref()? {
            Val::Ival(_) => "int4",
            Val::Boolval(_) => "bool",
            Val::Fval(_) | Val::Sval(_) | Val::Bsval(_) => return None,
        },
        NodeEnum::TypeCast(it) => {
            let type_name = it.type_name.as_ref()?;
            let of_constant = matches!(it.arg.as_ref()?.node.as_ref()?, NodeEnum::AConst(_));
            if !of_constant || !type_name.array_bounds.is_empty() {
                return None;
            }
            text_of(type_name.names.last()?)?
        }
        _ => return None,
    };
    TYPES.iter().find(|it| it.0 == name).copied()
}
