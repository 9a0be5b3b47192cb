//! What Postgres' planner says of a query: the indexes it uses, the tables it scans whole, and how
//! many rows it expects. For `check` and `explain`; nothing is executed.

use serde_json::Value;
use tokio_postgres::Client;

/// Smaller tables are read whole because that is faster: no finding.
const SMALL_TABLE_ROWS: f64 = 20_000.0;

/// The planner's answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueryPlan {
    /// Rows that the planner expects.
    pub rows: f64,
    /// Names of the indexes used, sorted, without repeats.
    pub indexes: Vec<String>,
    /// Tables of some size that are read whole, each with the condition that no index served.
    pub scans: Vec<Scan>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Scan {
    pub table: String,
    pub filter: Option<String>,
}

/// Plans `sql`, whose parameters are all `text[]`, as the daemon's prepared statements run it.
///
/// # Errors
/// What Postgres says of the statement, or a lost connection.
pub async fn plan(
    client: &Client,
    sql: &str,
    parameters: usize,
) -> Result<QueryPlan, tokio_postgres::Error> {
    let types = vec!["text[]"; parameters].join(", ");
    let types = if parameters == 0 { String::new() } else { format!("({types})") };
    let values = vec!["NULL"; parameters].join(", ");
    let values = if parameters == 0 { String::new() } else { format!("({values})") };
    // The generic plan: with the values known (NULL) the planner would answer "no rows" at once.
    client
        .batch_execute(&format!(
            "SET plan_cache_mode = force_generic_plan; PREPARE onelog_plan{types} AS {sql}"
        ))
        .await?;
    let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE onelog_plan{values}");
    let answered = client.query_one(&explain, &[]).await;
    client.batch_execute("DEALLOCATE onelog_plan; RESET plan_cache_mode").await?;
    let json: Value = answered?.try_get(0)?;
    let mut found = QueryPlan::default();
    if let Some(top) = json.get(0).and_then(|it| it.get("Plan")) {
        found.rows = top.get("Plan Rows").and_then(Value::as_f64).unwrap_or(0.0);
        walk(top, &mut found);
    }
    found.indexes.sort();
    found.indexes.dedup();
    Ok(found)
}

fn walk(node: &Value, found: &mut QueryPlan) {
    let text = |name: &str| node.get(name).and_then(Value::as_str);
    if let Some(index) = text("Index Name") {
        found.indexes.push(index.to_owned());
    }
    let rows = node.get("Plan Rows").and_then(Value::as_f64).unwrap_or(0.0);
    let whole = text("Node Type") == Some("Seq Scan");
    if let (true, Some(table)) = (whole, text("Relation Name"))
        && (rows > SMALL_TABLE_ROWS
            || node.get("Total Cost").and_then(Value::as_f64) > Some(2_000.0))
    {
        let filter = text("Filter").map(str::to_owned);
        found.scans.push(Scan { table: table.to_owned(), filter });
    }
    for child in node.get("Plans").and_then(Value::as_array).into_iter().flatten() {
        walk(child, found);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scans_of_small_tables_are_fine() {
        let plan = json!({
            "Node Type": "Nested Loop", "Plan Rows": 4, "Plans": [
                {"Node Type": "Index Scan", "Index Name": "b_pkey", "Plan Rows": 1},
                {"Node Type": "Seq Scan", "Relation Name": "small", "Plan Rows": 30, "Total Cost": 2.0},
                {"Node Type": "Seq Scan", "Relation Name": "large", "Plan Rows": 1,
                 "Total Cost": 9000.0, "Filter": "(x = 1)"},
            ],
        });
        let mut found = QueryPlan::default();
        walk(&plan, &mut found);
        assert_eq!(found.indexes, ["b_pkey"]);
        let large = Scan { table: "large".to_owned(), filter: Some("(x = 1)".to_owned()) };
        assert_eq!(found.scans, [large]);
    }
}
