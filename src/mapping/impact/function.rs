//! Functions in FROM: `unnest(d.tags) AS t(tag)`, whose rows are made of one row beside it.
//!
//! The column of such a function is a value of that row, as if the call stood in its place: each
//! row of the function is one of the values that the expression has. So is one of several columns:
//! of `jsonb_each(d.body)` it is `(jsonb_each(d.body)).key`, of `jsonb_to_recordset(d.body) AS t(n
//! int)` it is `(jsonb_array_elements(d.body) ->> 'n')::int`, which is how Postgres makes it.

use pg_query::NodeEnum;
use pg_query::protobuf::a_const::Val;
use pg_query::protobuf::{
    AConst, AExpr, AExprKind, AIndirection, ColumnDef, FuncCall, Node, RangeFunction,
    String as Text, TypeCast, TypeName,
};

use super::allowed::is_plain;
use super::key::{key_expression, parts};
use super::level::{children, function_name};
use super::scope::{Collapsed, Origin, Output, Range, Scope};
use super::walk::{Walk, text_of};

impl Walk<'_> {
    pub(super) fn range_function(&mut self, range: &RangeFunction, scope: &mut Scope<'_>) {
        for function in &range.functions {
            self.expression(function, scope);
        }
        for defined in range.coldeflist.iter().filter_map(definition) {
            // A column of json has a part as it is.
            let fits = |it: &TypeName| is_plain(it) || is_type(it, "json");
            if !defined.type_name.as_ref().is_some_and(fits) {
                let name = &defined.colname;
                self.deny(format!(
                    "it calls a function in FROM whose column {name} is defined with a type that \
                     may read more than the value: text, and a cast of it, reads nothing"
                ));
            }
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

    /// The columns of a function whose rows are values of one row, and their number. None: the
    /// names of its own columns are not known.
    fn function_columns(
        &mut self,
        range: &RangeFunction,
        scope: &Scope<'_>,
    ) -> Option<Vec<Output>> {
        let [Node { node: Some(NodeEnum::List(call)) }] = &range.functions[..] else { return None };
        let call = self.marked(call.items.first()?);
        let mut columns = Vec::new();
        for (name, value) in values_of(range, &call)? {
            let origin = value.map_or(Origin::Opaque, |it| key_expression(self, &it, scope));
            columns.push(Output { name, origin, collapsed: Collapsed::No });
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
        let made_here = name == "unnest" || is_elements(call);
        made_here || self.input.functions.iter().any(|it| it.returns_set && it.name == name)
    }
}

/// Each column of the call in FROM: its name, and its value unless that is not a row's.
fn values_of(range: &RangeFunction, call: &Node) -> Option<Vec<(String, Option<Node>)>> {
    let name = match &call.node {
        Some(NodeEnum::FuncCall(it)) => function_name(it),
        _ => None,
    };
    if !range.coldeflist.is_empty() {
        let elements = (name == Some("jsonb_to_recordset")).then(|| elements_of(call)).flatten();
        let defined = range.coldeflist.iter().map(definition);
        let value = |it: &ColumnDef| member(elements.clone()?, it);
        return defined.map(|it| Some((it?.colname.clone(), value(it?)))).collect();
    }
    let mut names = range.alias.as_ref()?.colnames.iter().map(|it| text_of(it).map(str::to_owned));
    let values = match name {
        Some("jsonb_each" | "jsonb_each_text") => vec![field(call, "key"), field(call, "value")],
        _ => vec![call.clone()],
    };
    let ordinality = usize::from(range.ordinality);
    if names.len() != values.len() + ordinality {
        return None;
    }
    let values = values.into_iter().map(Some).chain([None]);
    names.by_ref().zip(values).map(|(name, value)| Some((name?, value))).collect()
}

fn definition(node: &Node) -> Option<&ColumnDef> {
    match &node.node {
        Some(NodeEnum::ColumnDef(it)) => Some(it),
        _ => None,
    }
}

fn is_type(type_name: &TypeName, name: &str) -> bool {
    type_name.names.last().and_then(text_of) == Some(name)
}

fn named(name: &str) -> Node {
    Node { node: Some(NodeEnum::String(Text { sval: name.to_owned() })) }
}

fn boxed(node: NodeEnum) -> Box<Node> {
    Box::new(Node { node: Some(node) })
}

/// `(call).column`.
fn field(call: &Node, column: &str) -> Node {
    let field =
        AIndirection { arg: Some(Box::new(call.clone())), indirection: vec![named(column)] };
    *boxed(NodeEnum::AIndirection(Box::new(field)))
}

const ELEMENTS: &str = "jsonb_array_elements";

/// The elements of what the call goes through, under its mark.
fn elements_of(call: &Node) -> Option<Node> {
    let Some(NodeEnum::FuncCall(it)) = &call.node else { return None };
    let funcname = vec![named("pg_catalog"), named(ELEMENTS)];
    Some(*boxed(NodeEnum::FuncCall(Box::new(FuncCall { funcname, ..(**it).clone() }))))
}

/// Whether [`elements_of`] has made the call, or somebody else has written it so.
pub(super) fn is_elements(call: &FuncCall) -> bool {
    matches!(&call.funcname[..], [namespace, name]
        if text_of(namespace) == Some("pg_catalog") && text_of(name) == Some(ELEMENTS))
}

/// `(element ->> 'column')::type`, the text of a scalar being read by its type's input function.
/// Arrays, jsonb and the like are made of the JSON in other ways.
fn member(element: Node, defined: &ColumnDef) -> Option<Node> {
    let type_name = defined.type_name.clone()?;
    let is_jsonb = is_type(&type_name, "jsonb");
    let scalar = is_plain(&type_name) && !is_jsonb && type_name.array_bounds.is_empty();
    if !scalar || defined.coll_clause.is_some() {
        return None;
    }
    let sval = defined.colname.clone();
    let name = AConst { val: Some(Val::Sval(Text { sval })), isnull: false, location: -1 };
    let text = AExpr {
        kind: AExprKind::AexprOp.into(),
        name: vec![named("->>")],
        lexpr: Some(Box::new(element)),
        rexpr: Some(boxed(NodeEnum::AConst(name))),
        location: -1,
        ..AExpr::default()
    };
    let arg = Some(boxed(NodeEnum::AExpr(Box::new(text))));
    let cast = TypeCast { arg, type_name: Some(type_name), location: -1 };
    Some(*boxed(NodeEnum::TypeCast(Box::new(cast))))
}

/// Whether the value is one of a set.
pub(super) fn has_set(walk: &Walk<'_>, node: &Node) -> bool {
    let here = matches!(&node.node, Some(NodeEnum::FuncCall(it)) if walk.returns_set(it));
    here || children(node).unwrap_or_default().into_iter().any(|it| has_set(walk, it))
}
