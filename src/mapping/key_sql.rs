//! An entry's SQL for those who want its keys alone. Pure.
//!
//! Here and not in `document/`, as both librdkafka and libpg_query bring an xxhash: which of them
//! the linker sees first follows from the first module that names either crate, and only one of
//! the two orders links.

use pg_query::{DeparseOptions, ParserOptions};

/// The SQL without an ORDER BY that only sorts its rows: which keys there are does not depend on
/// it, and it would have Postgres compute the whole collection for the first few keys.
pub fn without_order(sql: &str) -> String {
    let stripped = || {
        let mut parsed = pg_query::parse(sql, ParserOptions::default()).ok()?.protobuf;
        let [statement] = parsed.stmts.as_mut_slice() else { return None };
        let node = statement.stmt.as_mut()?.node.as_mut()?;
        let pg_query::NodeEnum::SelectStmt(select) = node else { return None };
        let bare = select.limit_count.is_none()
            && select.limit_offset.is_none()
            && select.distinct_clause.is_empty();
        if !bare || select.sort_clause.is_empty() {
            return None;
        }
        select.sort_clause.clear();
        parsed.deparse(DeparseOptions::default()).ok()
    };
    stripped().unwrap_or_else(|| sql.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_order_that_sorts_is_left_out() {
        let cases = [
            ("SELECT a FROM t ORDER BY a", "SELECT a FROM t"),
            (
                "SELECT a FROM t UNION SELECT b FROM u ORDER BY 1",
                "SELECT a FROM t UNION SELECT b FROM u",
            ),
            ("SELECT a FROM t ORDER BY a LIMIT 3", "SELECT a FROM t ORDER BY a LIMIT 3"),
            ("SELECT a FROM t ORDER BY a OFFSET 3", "SELECT a FROM t ORDER BY a OFFSET 3"),
            (
                "SELECT DISTINCT ON (b) a FROM t ORDER BY b, a",
                "SELECT DISTINCT ON (b) a FROM t ORDER BY b, a",
            ),
            (
                "SELECT a, array_agg(b ORDER BY b) FROM t GROUP BY a ORDER BY 1",
                "SELECT a, array_agg(b ORDER BY b) FROM t GROUP BY a",
            ),
            ("no SQL", "no SQL"),
        ];
        for (sql, expected) in cases {
            assert_eq!(without_order(sql), expected);
        }
    }
}
