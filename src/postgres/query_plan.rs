//! What Postgres' planner says of a query: the indexes it uses, the tables that it has to read
//! whole, and how many rows it expects. For `check` and `explain`; nothing is executed.
//!
//! A table of a hundred rows is read whole because that is faster, so the plan of a developer's
//! database hides that an index is missing. Hence two plans: the planner's own, and one in which
//! reading whole is forbidden wherever there is another way. What is read whole in the second has
//! no index that could serve, whatever the table's size.

mod conditions;
mod expression;

use serde_json::Value;
use tokio_postgres::{Client, Error};

use self::conditions::{Equality, Indexed};
use crate::mapping::plan::{TableName, quote_identifier};

/// From this cost on (the planner's pages) a read is slow today, not only when the table grows.
const SLOW_COST: f64 = 2_000.0;

/// The planner's answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QueryPlan {
    /// Rows that the planner expects.
    pub rows: f64,
    /// Names of the indexes used, sorted, without repeats.
    pub indexes: Vec<String>,
    /// Tables that no index serves.
    pub whole: Vec<WholeRead>,
    /// WITH queries that are computed whole before the key is looked at.
    pub computed: Vec<String>,
}

/// A table that is read as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeRead {
    /// A partition's root.
    pub table: TableName,
    /// None: never counted by ANALYZE.
    pub rows: Option<f64>,
    /// Whether it costs much today.
    pub slow: bool,
    /// What would serve it; None: no index can, as the SQL is.
    pub create_index: Option<String>,
}

/// Plans `sql`, whose parameters are all `text[]`, as the daemon's prepared statements run it.
///
/// # Errors
/// What Postgres says of the statement, or a lost connection.
pub async fn plan(client: &Client, sql: &str, parameters: usize) -> Result<QueryPlan, Error> {
    let own = explained(client, sql, parameters, "").await?;
    // Nested loops find rows by an index where there is one; the other joins read tables whole.
    let forbid = "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; \
                  SET LOCAL enable_mergejoin = off;";
    let strict = explained(client, sql, parameters, forbid).await?;
    let mut found = QueryPlan {
        rows: number(&own, "Plan Rows"),
        indexes: strict.indexes(),
        ..QueryPlan::default()
    };
    for name in strict.computed() {
        found.computed.push(name);
    }
    for scan in strict.scans() {
        let slow = own.scans().iter().any(|it| it.relation == scan.relation && it.cost > SLOW_COST);
        if let Some(read) = whole_read(client, &strict, &scan, slow).await?
            && !found
                .whole
                .iter()
                .any(|it| it.create_index == read.create_index && it.table == read.table)
        {
            found.whole.push(read);
        }
    }
    Ok(found)
}

/// EXPLAIN's answer: the tree of plan nodes, in JSON.
struct Explained(Value);

fn number(explained: &Explained, name: &str) -> f64 {
    explained.0.get(name).and_then(Value::as_f64).unwrap_or(0.0)
}

/// A node that reads a table without an index condition.
#[derive(Debug, Clone, PartialEq)]
struct ScanNode {
    relation: TableName,
    alias: String,
    cost: f64,
}

async fn explained(
    client: &Client,
    sql: &str,
    parameters: usize,
    settings: &str,
) -> Result<Explained, Error> {
    let listed = |what: &str| match parameters {
        0 => String::new(),
        count => format!("({})", vec![what; count].join(", ")),
    };
    // The generic plan: with the values known (NULL) the planner would answer "no rows" at once.
    let begin = format!(
        "BEGIN READ ONLY; SET LOCAL plan_cache_mode = force_generic_plan; \
         SET LOCAL max_parallel_workers_per_gather = 0; {settings} \
         PREPARE onelog_plan{} AS {sql}",
        listed("text[]")
    );
    let explain = format!("EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE onelog_plan{}", listed("NULL"));
    let answered = match client.batch_execute(&begin).await {
        Ok(()) => client.query_one(&explain, &[]).await,
        Err(error) => Err(error),
    };
    client.batch_execute("ROLLBACK").await?;
    // A prepared statement outlives the transaction; there is none if PREPARE failed.
    let _may_be_missing = client.batch_execute("DEALLOCATE onelog_plan").await;
    let mut json: Value = answered?.try_get(0)?;
    let top = json.get_mut(0).and_then(|it| it.get_mut("Plan")).map(Value::take);
    Ok(Explained(top.unwrap_or_default()))
}

impl Explained {
    fn nodes(&self) -> Vec<&Value> {
        let mut nodes = vec![&self.0];
        let mut at = 0;
        while let Some(node) = nodes.get(at).copied() {
            nodes.extend(node.get("Plans").and_then(Value::as_array).into_iter().flatten());
            at += 1;
        }
        nodes
    }

    fn indexes(&self) -> Vec<String> {
        let with_condition = self.nodes().into_iter().filter(|it| it.get("Index Cond").is_some());
        let names = with_condition.filter_map(|it| it.get("Index Name")?.as_str());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        names.dedup();
        names
    }

    fn scans(&self) -> Vec<ScanNode> {
        let scan = |node: &&Value| {
            let text = |name: &str| node.get(name).and_then(Value::as_str);
            let by_index = ["Index Scan", "Index Only Scan"];
            let kind = text("Node Type")?;
            let whole =
                kind == "Seq Scan" || by_index.contains(&kind) && node.get("Index Cond").is_none();
            let name = text("Relation Name").filter(|_| whole)?;
            let namespace = text("Schema")?.to_owned();
            Some(ScanNode {
                relation: TableName { namespace, name: name.to_owned() },
                alias: text("Alias").unwrap_or(name).to_owned(),
                cost: node.get("Total Cost").and_then(Value::as_f64).unwrap_or(0.0),
            })
        };
        self.nodes().iter().filter_map(scan).collect()
    }

    /// WITH queries that stand for themselves and read a table, by name.
    fn computed(&self) -> Vec<String> {
        let name = |node: &&Value| {
            let name = node.get("Subplan Name")?.as_str()?.strip_prefix("CTE ")?.to_owned();
            let inside = Self((*node).clone());
            (!inside.scans().is_empty()).then_some(name)
        };
        self.nodes().iter().filter_map(name).collect()
    }

    /// Every equality that a node of the plan applies.
    fn equalities(&self) -> Vec<Equality> {
        let names = ["Filter", "Join Filter", "Hash Cond", "Merge Cond", "Index Cond"];
        let conditions =
            self.nodes().into_iter().flat_map(|node| names.map(|it| node.get(it)?.as_str()));
        conditions.flatten().flat_map(conditions::equalities).collect()
    }
}

const TABLE_SQL: &str = "\
    SELECT n.nspname::text, r.relname::text, nullif(r.reltuples, -1)::float8, r.relkind = 'p', \
      ARRAY(SELECT a.attname::text FROM pg_catalog.pg_index i \
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] \
        WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL) \
    FROM pg_catalog.pg_class c \
    JOIN pg_catalog.pg_class r ON r.oid = coalesce(pg_catalog.pg_partition_root(c.oid), c.oid) \
    JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace \
    WHERE c.oid = pg_catalog.to_regclass($1)";

/// None: the planner passes by an index that is there, which is its own affair.
async fn whole_read(
    client: &Client,
    strict: &Explained,
    scan: &ScanNode,
    slow: bool,
) -> Result<Option<WholeRead>, Error> {
    let Some(row) = client.query_opt(TABLE_SQL, &[&scan.relation.quoted()]).await? else {
        return Ok(None);
    };
    let table = TableName { namespace: row.get(0), name: row.get(1) };
    let (rows, partitioned): (Option<f64>, bool) = (row.get(2), row.get(3));
    let leading: Vec<String> = row.get(4);
    let equalities = strict.equalities();
    let mut asked = index_values(&equalities, &scan.alias);
    if let [Indexed::Column(first), ..] = &asked[..]
        && leading.contains(first)
    {
        return Ok(None);
    }
    let times = timed_columns(client, &scan.relation).await?;
    asked.retain(|it| match it {
        Indexed::Column(_) | Indexed::Elements(_) => true,
        Indexed::Expression { columns, .. } => !columns.iter().any(|it| times.contains(it)),
    });
    let how = if partitioned { "" } else { " CONCURRENTLY" };
    let on = format!("CREATE INDEX{how} ON {}", table.quoted());
    let alternatives = equalities.iter().any(|it| it.alternative && asked.contains(&it.value));
    let create_index = match alternatives {
        true => {
            let missing = asked
                .iter()
                .filter(|it| !matches!(it, Indexed::Column(column) if leading.contains(column)));
            let each: Vec<String> =
                missing.map(|it| create(&on, std::slice::from_ref(it))).collect();
            each.join("\n")
        }
        false => create(&on, &asked),
    };
    let create_index = (!create_index.is_empty()).then_some(create_index);
    Ok(Some(WholeRead { table, rows, slow, create_index }))
}

/// Of dates and times: their text depends on settings, so that no index can be on it.
async fn timed_columns(client: &Client, relation: &TableName) -> Result<Vec<String>, Error> {
    let sql = "SELECT a.attname::text FROM pg_catalog.pg_attribute a \
        JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
        WHERE a.attrelid = pg_catalog.to_regclass($1) AND t.typcategory IN ('D', 'T')";
    let rows = client.query(sql, &[&relation.quoted()]).await?;
    Ok(rows.iter().map(|it| it.get(0)).collect())
}

/// One statement for an index on all values; empty when there is none.
fn create(on: &str, values: &[Indexed]) -> String {
    let value = |it: &Indexed| match it {
        Indexed::Column(column) | Indexed::Elements(column) => quote_identifier(column),
        Indexed::Expression { sql, .. } => format!("({sql})"),
    };
    let list =
        |values: &[&Indexed]| values.iter().map(|it| value(it)).collect::<Vec<_>>().join(", ");
    let (elements, others): (Vec<&Indexed>, Vec<&Indexed>) =
        values.iter().partition(|it| matches!(it, Indexed::Elements(_)));
    match (others.is_empty(), elements.is_empty()) {
        (false, _) => format!("{on} ({});", list(&others)),
        (true, false) => format!("{on} USING gin ({});", list(&elements)),
        (true, true) => String::new(),
    }
}

/// The values by which rows of `alias` are looked for: those that are compared with what changes
/// from read to read, else with constants.
fn index_values(equalities: &[Equality], alias: &str) -> Vec<Indexed> {
    /// More make an index larger and hardly better.
    const VALUES_MAX: usize = 3;
    let of = |constant: bool| {
        let mut values: Vec<Indexed> = Vec::new();
        for it in equalities.iter().filter(|it| it.alias == alias && it.constant == constant) {
            if !values.contains(&it.value) && values.len() < VALUES_MAX {
                values.push(it.value.clone());
            }
        }
        values
    };
    let varying = of(false);
    if varying.is_empty() { of(true) } else { varying }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nested(inner: Value) -> Explained {
        Explained(json!({
            "Node Type": "Nested Loop", "Plan Rows": 4, "Join Filter": "(i.shop_id = s.id)",
            "Plans": [
                {"Node Type": "Index Scan", "Index Name": "shop_pkey", "Alias": "s",
                 "Schema": "public", "Relation Name": "shop",
                 "Index Cond": "(s.id = ANY (($1)::integer[]))"},
                inner,
            ],
        }))
    }

    #[test]
    fn a_table_without_a_condition_on_an_index_is_read_whole() {
        for kind in ["Seq Scan", "Index Scan", "Index Only Scan"] {
            let inner = json!({"Node Type": kind, "Schema": "public", "Relation Name": "item",
                               "Alias": "i", "Total Cost": 9000.0, "Filter": "(i.kind = 'a'::text)"});
            let plan = nested(inner);
            let scans = plan.scans();
            assert_eq!((scans.len(), scans[0].alias.as_str()), (1, "i"), "{kind}");
            assert_eq!(plan.indexes(), ["shop_pkey"]);
            let expected = [Indexed::Column("shop_id".to_owned())];
            assert_eq!(index_values(&plan.equalities(), "i"), expected);
        }
        let inner = json!({"Node Type": "Index Scan", "Index Name": "item_shop_id_idx",
                           "Schema": "public", "Relation Name": "item", "Alias": "i",
                           "Index Cond": "(i.shop_id = s.id)"});
        assert_eq!(nested(inner).scans(), []);
    }

    #[test]
    fn a_with_query_counts_when_it_reads_a_table() {
        let scan = json!({"Node Type": "Seq Scan", "Schema": "s", "Relation Name": "t"});
        for (kind, expected) in
            [(scan, vec!["x".to_owned()]), (json!({"Node Type": "Result"}), vec![])]
        {
            let cte = json!({"Node Type": "Sort", "Subplan Name": "CTE x", "Plans": [kind]});
            assert_eq!(nested(cte).computed(), expected);
        }
    }
}
