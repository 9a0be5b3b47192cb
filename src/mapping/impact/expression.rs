//! The walk over expressions: which columns they read, and the subqueries in them.
//!
//! An expression gives no equality; only conjuncts do (see `level`). A subquery in an expression
//! does not restrict the rows around it, so its equalities may be left from inside only (A3).

use pg_query::NodeEnum;
use pg_query::protobuf::{ColumnRef, FuncCall, Node, SubLink};

use super::level::{children, function_name};
use super::scope::Scope;
use super::walk::{Walk, text_of};

impl Walk<'_> {
    pub(super) fn expression(&mut self, node: &Node, scope: &Scope<'_>) {
        match &node.node {
            Some(NodeEnum::ColumnRef(column)) => return self.column(column, scope),
            Some(NodeEnum::SubLink(link)) => self.sublink(link, scope),
            Some(NodeEnum::FuncCall(call)) => self.call(call, scope),
            Some(NodeEnum::SqlvalueFunction(_)) => {
                return self.deny(
                    "it reads the current date, time or user: it can change without any row's change",
                );
            }
            _ => {}
        }
        match children(node) {
            Some(parts) => parts.into_iter().for_each(|it| self.expression(it, scope)),
            None => self.deny(unknown(node)),
        }
    }

    fn column(&mut self, column: &ColumnRef, scope: &Scope<'_>) {
        let fields: Vec<_> = column.fields.iter().map(text_of).collect();
        let found = match fields[..] {
            [Some(alias), Some(column)] => scope.qualified(alias, column),
            [Some(column)] => scope.bare(column),
            [Some(alias), None] => return self.whole_row(alias, scope),
            _ => None,
        };
        if let Some(found) = found {
            let origin = found.output.origin.clone();
            return self.read(&origin);
        }
        let by_function = match fields[..] {
            [Some(alias), Some(_)] => scope.is_function(alias),
            // Canonical SQL leaves out the alias only where a level has a single range.
            [Some(_)] => scope.has_function(),
            _ => false,
        };
        if by_function {
            return;
        }
        if let [Some(name)] = fields[..]
            && scope.range(name).is_some()
        {
            return self.whole_row(name, scope);
        }
        let written: Vec<_> = fields.iter().map(|it| it.unwrap_or("*")).collect();
        self.deny(format!("it uses {}, which onelog cannot trace to a column", written.join(".")));
    }

    /// `alias.*` or `alias` in an expression: every column counts as read (A7).
    fn whole_row(&mut self, alias: &str, scope: &Scope<'_>) {
        match scope.range(alias) {
            Some((range, _)) => {
                let tables: Vec<_> = range.columns.iter().map(|it| it.origin.clone()).collect();
                if let Some(occurrence) = range.occurrence {
                    self.whole_rows.insert(self.occurrences[occurrence].table.clone());
                }
                tables.iter().for_each(|it| self.read(it));
            }
            None if scope.is_function(alias) => {}
            None => self.deny(format!("it uses {alias}.*, which onelog cannot trace to a table")),
        }
    }

    fn call(&mut self, call: &FuncCall, scope: &Scope<'_>) {
        let Some(name) = function_name(call) else { return };
        if call.over.is_some() || !self.input.aggregates().contains(name) {
            return;
        }
        // An aggregate belongs to the level of its innermost column: one that has only columns
        // from further out makes a level further out an aggregate one.
        let mut depths = Vec::new();
        for arg in call.args.iter().chain(call.agg_filter.as_deref()) {
            depths_of(arg, scope, &mut depths);
        }
        if depths.iter().min().is_some_and(|it| *it > 0) {
            let name = name.to_owned();
            self.deny(format!("it calls {name}() over columns of an outer query"));
        }
    }

    /// A subquery that does not restrict the rows around it.
    pub(super) fn sublink(&mut self, link: &SubLink, scope: &Scope<'_>) {
        let Some(NodeEnum::SelectStmt(stmt)) =
            link.subselect.as_ref().and_then(|it| it.node.as_ref())
        else {
            return self.deny("it has a subquery that is not a SELECT");
        };
        if let Some(test) = &link.testexpr {
            self.expression(test, scope);
        }
        // Of IN, NOT IN and ALL the comparison itself is no equality: as a value, one NULL in the
        // subselect changes the answer for every row (A6). What correlates the subselect is.
        self.apart(|walk| walk.select(stmt, Some(scope)));
    }
}

fn depths_of(node: &Node, scope: &Scope<'_>, depths: &mut Vec<usize>) {
    if let Some(NodeEnum::ColumnRef(column)) = &node.node {
        let fields: Vec<_> = column.fields.iter().map(text_of).collect();
        let depth = match fields[..] {
            [Some(alias), Some(column)] => scope.qualified(alias, column).map(|it| it.depth),
            [Some(column)] => scope.bare(column).map(|it| it.depth),
            [Some(alias), None] => scope.range(alias).map(|(_, depth)| depth),
            _ => None,
        };
        // A column that is not found is a function's, in FROM: of this level, for all we know.
        depths.push(depth.unwrap_or(0));
    }
    for child in children(node).unwrap_or_default() {
        depths_of(child, scope, depths);
    }
}

fn unknown(node: &Node) -> String {
    let name = node.node.as_ref().map_or_else(String::new, |it| {
        let shown = format!("{it:?}");
        shown.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
    });
    match name.as_str() {
        "GroupingSet" | "GroupingFunc" => {
            "it uses GROUPING SETS, ROLLUP or CUBE, whose rows belong to no one key".to_owned()
        }
        _ => format!("it has an expression ({name}) that onelog does not understand"),
    }
}
