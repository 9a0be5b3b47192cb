//! Functions in FROM: `unnest(d.tags) AS t(tag)`, whose rows are made of one row beside it.
//!
//! The column of such a function is a value of that row, as if the call stood in its place: each
//! row of the function is one of the values that the expression has.

use pg_query::NodeEnum;
use pg_query::protobuf::{FuncCall, Node, RangeFunction};

use super::key::{key_expression, parts};
use super::level::{children, function_name};
use super::scope::{Collapsed, Origin, Output, Range, Scope};
use super::walk::{Walk, text_of};

impl Walk<'_> {
    pub(super) fn range_function(&mut self, range: &RangeFunction, scope: &mut Scope<'_>) {
        for function in &range.functions {
            self.expression(function, scope);
        }
        if !range.coldeflist.is_empty() {
            self.deny("it calls a function in FROM with a list of column definitions");
        }
        let Some(alias) = &range.alias else { return };
        if let Some(columns) = self.function_columns(range, scope) {
            let alias = alias.aliasname.clone();
            return scope.ranges.push(Range { alias, columns, occurrence: None });
        }
        // Its columns are values of more than one row, or rows themselves: never a copy. Their
        // names are not all known here, so they must be asked for by the alias.
        scope.functions.push(alias.aliasname.clone());
    }

    /// The one column of a function whose rows are plain values, and their number. Of a function that makes
    /// rows of several columns (`jsonb_each`) the names of its own columns are not known.
    fn function_columns(
        &mut self,
        range: &RangeFunction,
        scope: &Scope<'_>,
    ) -> Option<Vec<Output>> {
        let names = &range.alias.as_ref()?.colnames;
        let [Node { node: Some(NodeEnum::List(call)) }] = &range.functions[..] else { return None };
        let call = call.items.first()?;
        if names.len() != 1 + usize::from(range.ordinality) || !range.coldeflist.is_empty() {
            return None;
        }
        let marked = self.marked(call);
        let origin = key_expression(self, &marked, scope);
        let mut columns = Vec::new();
        for (name, origin) in names.iter().zip([origin, Origin::Opaque]) {
            columns.push(Output {
                name: text_of(name)?.to_owned(),
                origin,
                collapsed: Collapsed::No,
            });
        }
        Some(columns)
    }

    /// The call with a mark of its own in the place of its location: two calls of one function
    /// with the same arguments go through their rows independently. One that returns no set is
    /// marked too: an outer join may leave its row out.
    fn marked(&mut self, call: &Node) -> Node {
        let mark = self.new_mark();
        let mut call = call.clone();
        self.mark_calls(&mut call, mark);
        if let Some(NodeEnum::FuncCall(it)) = &mut call.node {
            it.location = mark;
        }
        call
    }

    /// Calls with one mark go through their rows together, as those of one SELECT list do.
    pub(super) fn new_mark(&mut self) -> i32 {
        self.marks -= 1;
        self.marks
    }

    /// Marks the set-returning calls of an expression.
    pub(super) fn mark_calls(&self, node: &mut Node, mark: i32) {
        if let Some(NodeEnum::FuncCall(it)) = &mut node.node
            && self.returns_set(it)
        {
            it.location = mark;
        }
        for part in parts(node) {
            self.mark_calls(part, mark);
        }
    }

    fn returns_set(&self, call: &FuncCall) -> bool {
        let Some(name) = function_name(call) else { return false };
        // `= ANY (array)` is rewritten to it.
        name == "unnest" || self.input.functions.iter().any(|it| it.returns_set && it.name == name)
    }
}

/// Whether the value is one of a set.
pub(super) fn has_set(walk: &Walk<'_>, node: &Node) -> bool {
    let here = matches!(&node.node, Some(NodeEnum::FuncCall(it)) if walk.returns_set(it));
    here || children(node).unwrap_or_default().into_iter().any(|it| has_set(walk, it))
}
