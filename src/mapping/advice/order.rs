//! Where the order of rows is left to chance: aggregates and LIMIT without ORDER BY, and an ORDER
//! BY in which rows tie.

use std::collections::BTreeSet;

use pg_query::protobuf::{ColumnRef, FuncCall, Node, SelectStmt};
use pg_query::{NodeEnum, NodeRef};

use super::{UniqueKeys, at};
use crate::mapping::Entry;
use crate::mapping::impact::parse_select;
use crate::mapping::plan::{EntryPlan, TableName};
use crate::mapping::resolve::place::place_in_sql;
use crate::mistake::Mistake;

/// Aggregates whose value depends on the order of rows.
const ORDERED: &[&str] = &[
    "array_agg",
    "string_agg",
    "json_agg",
    "json_agg_strict",
    "jsonb_agg",
    "jsonb_agg_strict",
    "json_object_agg",
    "xmlagg",
];

/// Aggregates and LIMIT that take rows as they come, at their place in the SQL as it is written.
pub(super) fn left_to_chance(entry: &Entry) -> Vec<Mistake> {
    let Some(top) = parse_select(&entry.sql) else { return vec![] };
    let top = NodeEnum::SelectStmt(Box::new(top));
    // In breadth: a call within a subquery is met again, later, as a call of that subquery.
    let mut calls = std::collections::BTreeMap::new();
    let mut found = Vec::new();
    let levels = top.nodes().into_iter().filter_map(|(node, ..)| match node {
        NodeRef::SelectStmt(level) => Some(level),
        _ => None,
    });
    for level in levels {
        found.extend(chosen_by_chance(entry, level));
        for (location, name) in unordered_calls(level) {
            calls.insert(location, (name, reads_in_order(level)));
        }
    }
    for (location, (name, in_order)) in calls {
        if !in_order {
            let message = format!(
                "{name}() takes the rows in the order in which Postgres happens to read them, so \
                 that the document may change without a change: write {name}(… ORDER BY …), with \
                 something unique at the end"
            );
            found.push(at_byte(entry, location, message));
        }
    }
    found
}

fn chosen_by_chance(entry: &Entry, level: &SelectStmt) -> Option<Mistake> {
    let distinct_on = level.distinct_clause.iter().find_map(|it| it.node.as_ref());
    let (what, node) = match (&level.limit_count, distinct_on) {
        (Some(count), _) => ("LIMIT", count.node.as_ref()),
        (None, Some(column)) => ("DISTINCT ON", Some(column)),
        (None, None) => return None,
    };
    // EXISTS (SELECT 1 … LIMIT 1) asks for no row in particular.
    let constant = |it: &Node| match &it.node {
        Some(NodeEnum::ResTarget(target)) => {
            let value = target.val.as_ref().and_then(|it| it.node.as_ref());
            matches!(value, Some(NodeEnum::AConst(_)))
        }
        _ => false,
    };
    if !level.sort_clause.is_empty() || level.target_list.iter().all(constant) {
        return None;
    }
    let message = format!(
        "{what} without ORDER BY: which rows it takes is left to chance, so that the document may \
         change without a change; add an ORDER BY with something unique at the end"
    );
    Some(at_byte(entry, node.and_then(location).unwrap_or(0), message))
}

/// Byte offset and name of each aggregate without an order of its own.
fn unordered_calls(level: &SelectStmt) -> Vec<(i32, String)> {
    let targets = level.target_list.iter().filter_map(|it| it.node.as_ref());
    let nodes = targets.flat_map(NodeEnum::nodes).filter_map(|(node, ..)| match node {
        NodeRef::FuncCall(call) => Some(call),
        _ => None,
    });
    let name = |call: &FuncCall| match call.funcname.last()?.node.as_ref()? {
        NodeEnum::String(name) => Some(name.sval.clone()),
        _ => None,
    };
    // DISTINCT sorts, and a window has an order, or is of rows that tie anyway.
    nodes
        .filter(|it| it.agg_order.is_empty() && !it.agg_distinct && it.over.is_none())
        .filter_map(|it| Some((it.location, name(it)?)))
        .filter(|(_, name)| ORDERED.contains(&name.as_str()))
        .collect()
}

/// `SELECT json_agg(x) FROM (SELECT … ORDER BY …) x`: an old way of ordering, which works.
fn reads_in_order(level: &SelectStmt) -> bool {
    let [Node { node: Some(NodeEnum::RangeSubselect(inner)) }] = level.from_clause.as_slice()
    else {
        return false;
    };
    match inner.subquery.as_ref().and_then(|it| it.node.as_ref()) {
        Some(NodeEnum::SelectStmt(inner)) => !inner.sort_clause.is_empty(),
        _ => false,
    }
}

/// An alias and one of its columns.
type Column = (String, String);

/// The warning that rows of the entry tie in its ORDER BY, if nothing in it is unique.
pub(super) fn ties(entry: &EntryPlan, unique: &UniqueKeys) -> Option<Mistake> {
    let select = parse_select(&entry.canonical_sql)?;
    if select.sort_clause.is_empty() {
        return None;
    }
    let tables = tables(&select.from_clause)?;
    let sorted = select.sort_clause.iter().filter_map(sort_column);
    let mut fixed: BTreeSet<Column> = sorted.collect();
    fixed.extend(key_column(&select, &entry.entry.key));
    let grouped: Vec<Option<Column>> = select.group_clause.iter().map(column).collect();
    let by_group = !grouped.is_empty()
        && grouped.iter().all(|it| it.as_ref().is_some_and(|it| fixed.contains(it)));
    // Equal rows of DISTINCT are one.
    if by_group || !select.distinct_clause.is_empty() {
        return None;
    }
    let open = undetermined(&select, (&tables, unique), fixed)?;
    let names: Vec<String> = open
        .iter()
        .flat_map(|(alias, key)| key.iter().map(move |it| (alias, it)))
        .map(|(alias, it)| if tables.len() == 1 { it.clone() } else { format!("{alias}.{it}") })
        .collect();
    if names.is_empty() {
        return None;
    }
    let message = format!(
        "rows that are equal in the ORDER BY may trade places from one read to the next, so that \
         the document may change without a change: put {} at its end",
        names.join(", ")
    );
    Some(at_byte(&entry.entry, written_order(&entry.entry), message))
}

/// The tables of which rows that are equal in `fixed` may still differ, each with a key that would
/// tell them apart; None: nothing is known of some table's rows (a view, or no key).
///
/// A table's row is determined when one of its keys is; and what is determined determines what
/// it is equal to.
fn undetermined<'u>(
    select: &SelectStmt,
    (tables, unique): (&[(String, TableName)], &'u UniqueKeys),
    mut fixed: BTreeSet<Column>,
) -> Option<Vec<(String, &'u BTreeSet<String>)>> {
    let equalities = equalities(select);
    let mut open = Vec::new();
    for (alias, table) in tables {
        open.push((alias.clone(), unique.get(table)?));
    }
    let mut determined = BTreeSet::new();
    // Each round determines a table or a column, or is the last.
    loop {
        let before = (open.len(), fixed.len());
        for (one, other) in equalities.iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
            if fixed.contains(one) || determined.contains(&one.0) {
                fixed.insert(other.clone());
            }
        }
        open.retain(|(alias, keys)| {
            let has = |key: &BTreeSet<String>| {
                key.iter().all(|it| fixed.contains(&(alias.clone(), it.clone())))
            };
            let now = keys.iter().any(has);
            if now {
                determined.insert(alias.clone());
            }
            !now
        });
        if before == (open.len(), fixed.len()) {
            break;
        }
    }
    Some(open.into_iter().filter_map(|(alias, keys)| Some((alias, keys.first()?))).collect())
}

/// Column = column, wherever it stands in the SQL.
fn equalities(select: &SelectStmt) -> Vec<(Column, Column)> {
    let top = NodeEnum::SelectStmt(Box::new(select.clone()));
    let nodes = top.nodes().into_iter().filter_map(|(node, ..)| match node {
        NodeRef::AExpr(it) => Some((it.name.last()?.clone(), it.lexpr.clone()?, it.rexpr.clone()?)),
        _ => None,
    });
    let equal = |name: &Node| matches!(&name.node, Some(NodeEnum::String(it)) if it.sval == "=");
    nodes
        .filter(|(name, ..)| equal(name))
        .filter_map(|(_, left, right)| Some((column(&left)?, column(&right)?)))
        .collect()
}

/// Where the written SQL's ORDER BY has its first column; the SQL's beginning if that is not told.
fn written_order(entry: &Entry) -> i32 {
    let select = parse_select(&entry.sql);
    let first = select.as_ref().and_then(|it| it.sort_clause.first()?.node.as_ref());
    let value = match first {
        Some(NodeEnum::SortBy(sort)) => sort.node.as_ref().and_then(|it| it.node.as_ref()),
        _ => None,
    };
    value.and_then(location).unwrap_or(0)
}

/// The tables of a FROM with their aliases; None: something else is in it.
fn tables(from: &[Node]) -> Option<Vec<(String, TableName)>> {
    let mut waiting: Vec<&Node> = from.iter().collect();
    let mut found = Vec::new();
    while let Some(node) = waiting.pop() {
        match node.node.as_ref()? {
            NodeEnum::RangeVar(table) => {
                let alias = table.alias.as_ref().map_or(&table.relname, |it| &it.aliasname);
                let name =
                    TableName { namespace: table.schemaname.clone(), name: table.relname.clone() };
                found.push((alias.clone(), name));
            }
            NodeEnum::JoinExpr(join) => {
                waiting.extend([join.rarg.as_deref()?, join.larg.as_deref()?]);
            }
            _ => return None,
        }
    }
    Some(found)
}

fn sort_column(node: &Node) -> Option<Column> {
    match node.node.as_ref()? {
        NodeEnum::SortBy(sort) => column(sort.node.as_deref()?),
        _ => None,
    }
}

fn column(node: &Node) -> Option<Column> {
    let NodeEnum::ColumnRef(ColumnRef { fields, .. }) = node.node.as_ref()? else { return None };
    let names = fields.iter().map(|it| match it.node.as_ref()? {
        NodeEnum::String(name) => Some(name.sval.clone()),
        _ => None,
    });
    match names.collect::<Option<Vec<String>>>()?.as_slice() {
        [.., alias, column] => Some((alias.clone(), column.clone())),
        _ => None,
    }
}

/// The column that the key is, when it is one.
fn key_column(select: &SelectStmt, key: &str) -> Option<Column> {
    select.target_list.iter().find_map(|node| {
        let NodeEnum::ResTarget(target) = node.node.as_ref()? else { return None };
        let value = target.val.as_deref()?;
        let found = column(value)?;
        let name = if target.name.is_empty() { &found.1 } else { &target.name };
        (name == key).then_some(found)
    })
}

fn location(node: &NodeEnum) -> Option<i32> {
    match node {
        NodeEnum::ColumnRef(it) => Some(it.location),
        NodeEnum::AConst(it) => Some(it.location),
        NodeEnum::FuncCall(it) => Some(it.location),
        _ => None,
    }
}

fn at_byte(entry: &Entry, location: i32, message: String) -> Mistake {
    let bytes = usize::try_from(location).unwrap_or(0);
    let characters = entry.sql.get(..bytes).map_or(0, |it| it.chars().count());
    at(&place_in_sql(entry, characters), message)
}
