//! A parsed expression or query as SQL again. Pure.

use pg_query::protobuf::{Node, ParseResult, RawStmt, ResTarget, SelectStmt};
use pg_query::{DeparseOptions, NodeEnum};

/// The expression's text. None: it can't be printed.
pub fn printed(expression: Node) -> Option<String> {
    let target = ResTarget { val: Some(Box::new(expression)), ..ResTarget::default() };
    // Only statements are printed.
    let select = SelectStmt {
        target_list: vec![Node { node: Some(NodeEnum::ResTarget(Box::new(target))) }],
        limit_option: 1,
        op: 1,
        ..SelectStmt::default()
    };
    let sql = printed_select(select)?;
    sql.strip_prefix("SELECT ").map(str::to_owned)
}

/// The statement's text. None: it can't be printed.
pub fn printed_select(select: SelectStmt) -> Option<String> {
    let stmt = Node { node: Some(NodeEnum::SelectStmt(Box::new(select))) };
    let stmts = vec![RawStmt { stmt: Some(Box::new(stmt)), ..RawStmt::default() }];
    ParseResult { version: 0, stmts }.deparse(DeparseOptions::default()).ok()
}
