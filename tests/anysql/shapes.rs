//! SQL of the shapes that people write, each in random clothes. The key is k.
//!
//! Rows of one key are a set or have one order: no ORDER BY with ties, no unordered aggregate.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::tables::Tables;

#[rustfmt::skip]
/// The shapes of the list, all of which have a path.
pub const SHAPES: &[&str] = &[
    "inner join", "left join", "right join", "full join", "join using", "left join using",
    "full join using", "full join using, three", "self join", "self join, two levels",
    "two paths to one table", "view", "view of views", "cte", "cte used twice", "union",
    "union all", "intersect", "except", "except all", "group by with json_agg",
    "filter and order by in aggregates", "having", "distinct", "distinct on", "window",
    "named window", "exists", "not exists", "in", "row in", "correlated not in",
    "scalar subquery with limit", "scalar subquery with aggregate", "array subquery", "lateral",
    "lateral with limit", "values", "cast key", "concatenated key", "lower key", "coalesce key",
    "coalesce key of two tables", "case key", "format key", "group by expression", "date key",
    "composite key", "composite group key", "generated column", "unnest", "unnest lateral",
    "jsonb_array_elements", "generate_series", "jsonb operators", "whole row", "numeric key",
    "text join of varchars", "anti-join", "or of exists", "in as a value",
    "join on expressions", "join on a cast", "jsonb key", "jsonb join", "any of an array",
    "unnest key", "jsonb elements as the key", "generated key", "join on a generated column",
    "or of columns", "jsonb_each key", "jsonb_to_recordset", "jsonb_to_recordset key",
    "values as the key",
];

pub struct Sql<'a> {
    pub tables: &'a Tables,
    pub random: &'a mut StdRng,
}

impl Sql<'_> {
    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from.choose(self.random).unwrap()
    }

    fn of_p(&mut self) -> &'static str {
        self.pick(&[
            "p.name",
            "p.n",
            "p.slug",
            "p.at",
            "p.tags",
            "p.body",
            "p.loud",
            "p.up_id",
            "p.t_id",
            "p.tags[1]",
        ])
    }

    fn of_c(&mut self) -> &'static str {
        self.pick(&["c.label", "c.amount", "c.flag", "c.p_slug", "c.t_id", "c.id"])
    }

    /// One more condition, or none, on p or c.
    fn and_p(&mut self) -> &'static str {
        self.pick(&[
            "true",
            "p.name <> ''",
            "p.n > 1",
            "p.slug IS NOT NULL",
            "p.body ? 's'",
            "p.body IS NOT NULL",
        ])
    }

    fn and_c(&mut self) -> &'static str {
        self.pick(&[
            "true",
            "c.flag",
            "c.amount > 1",
            "c.label IS DISTINCT FROM 'a'",
            "c.amount IN (0, 2)",
        ])
    }

    #[rustfmt::skip]
    pub fn of(&mut self, shape: &str) -> String {
        let (p, c, of_p, of_c) = (self.and_p(), self.and_c(), self.of_p(), self.of_c());
        let k = self.tables.key.name();
        let one = self.tables.key.value(1);
        match shape {
            "inner join" => format!("SELECT p.id AS k, {of_p} AS a, {of_c} AS b FROM p JOIN c ON c.p_id = p.id AND {c} WHERE {p}"),
            "left join" => format!("SELECT p.id AS k, {of_p} AS a, {of_c} AS b, t.label FROM p LEFT JOIN c ON c.p_id = p.id AND {c} LEFT JOIN t ON t.id = c.t_id WHERE {p}"),
            "right join" => format!("SELECT p.id AS k, {of_c} AS b, g.label FROM g RIGHT JOIN c ON g.c_id = c.id RIGHT JOIN p ON c.p_id = p.id AND {c} WHERE {p}"),
            "full join" => format!("SELECT p.id AS k, {of_p} AS a, {of_c} AS b, t.label FROM p FULL JOIN c ON c.p_id = p.id LEFT JOIN t ON t.id = c.t_id WHERE {p}"),
            "join using" => format!("SELECT p_id AS k, l.note, {of_c} AS b FROM l JOIN c USING (p_id) WHERE {c}"),
            "left join using" => format!("SELECT p_id AS k, l.note, {of_c} AS b FROM c LEFT JOIN l USING (p_id) WHERE {c}"),
            "full join using" => format!("SELECT p_id AS k, l.note, {of_c} AS b FROM l FULL JOIN c USING (p_id) WHERE {c} OR c.id IS NULL"),
            "full join using, three" => "SELECT t_id AS k, l.note, c.label AS b, g.label AS d FROM l FULL JOIN c USING (t_id) FULL JOIN g USING (t_id)".to_owned(),
            "self join" => format!("SELECT p.id AS k, {of_p} AS a, u.name AS up FROM p LEFT JOIN p u ON u.id = p.up_id WHERE {p}"),
            "self join, two levels" => format!("SELECT p.id AS k, {of_p} AS a, u.name AS up, w.name AS upup FROM p JOIN p u ON u.id = p.up_id LEFT JOIN p w ON w.id = u.up_id"),
            "two paths to one table" => format!("SELECT p.id AS k, a.label AS own, b.label AS of_c FROM p JOIN t a ON a.id = p.t_id JOIN c ON c.p_id = p.id JOIN t b ON b.id = c.t_id WHERE {c}"),
            "view" => "SELECT p_id AS k, label, tag FROM v1".to_owned(),
            "view of views" => format!("SELECT p.id AS k, {of_p} AS a, v2.tag, v2.deep FROM p LEFT JOIN v2 ON v2.p_id = p.id"),
            "cte" => format!("WITH w AS (SELECT c.p_id, {of_c} AS b FROM c WHERE {c}) SELECT p.id AS k, w.b FROM p JOIN w ON w.p_id = p.id"),
            "cte used twice" => "WITH w AS (SELECT p_id, count(*) AS n, max(amount) AS m FROM c GROUP BY p_id) SELECT p.id AS k, a.n, b.n AS up_n, b.m FROM p LEFT JOIN w a ON a.p_id = p.id LEFT JOIN w b ON b.p_id = p.up_id".to_owned(),
            "union" => "SELECT p.id AS k, p.name AS v FROM p UNION SELECT c.p_id, c.label FROM c UNION SELECT l.p_id, t.label FROM l JOIN t ON t.id = l.t_id".to_owned(),
            "union all" => format!("SELECT c.p_id AS k, c.label AS v FROM c WHERE {c} UNION ALL SELECT c.p_id, g.label FROM c JOIN g ON g.c_id = c.id"),
            "intersect" => "SELECT c.p_id AS k, c.t_id AS v FROM c INTERSECT SELECT l.p_id, l.t_id FROM l".to_owned(),
            "except" => format!("SELECT p.id AS k, p.t_id AS v FROM p WHERE {p} EXCEPT SELECT l.p_id, l.t_id FROM l"),
            "except all" => "SELECT c.p_id AS k, c.t_id AS v FROM c EXCEPT ALL SELECT l.p_id, l.t_id FROM l".to_owned(),
            "group by with json_agg" => format!("SELECT c.p_id AS k, json_agg(c.label ORDER BY c.id) AS labels, count(DISTINCT t.label) AS n FROM c LEFT JOIN t ON t.id = c.t_id WHERE {c} GROUP BY c.p_id"),
            "filter and order by in aggregates" => "SELECT p.id AS k, count(*) FILTER (WHERE c.flag) AS n, string_agg(c.label, ',' ORDER BY c.id) FILTER (WHERE c.amount > 0) AS list, jsonb_object_agg(c.id, g.label ORDER BY g.id) FILTER (WHERE c.id IS NOT NULL) AS o FROM p LEFT JOIN c ON c.p_id = p.id LEFT JOIN g ON g.c_id = c.id GROUP BY p.id".to_owned(),
            "having" => "SELECT c.p_id AS k, sum(c.amount) AS s FROM c GROUP BY c.p_id HAVING count(*) > 1 AND bool_or(c.flag)".to_owned(),
            "distinct" => format!("SELECT DISTINCT c.p_id AS k, t.label FROM c JOIN t ON t.id = c.t_id WHERE {c}"),
            "distinct on" => format!("SELECT DISTINCT ON (c.p_id) c.p_id AS k, {of_c} AS b, t.label FROM c LEFT JOIN t ON t.id = c.t_id ORDER BY c.p_id, c.amount DESC NULLS LAST, c.id"),
            "window" => "SELECT c.p_id AS k, c.label, row_number() OVER (PARTITION BY c.p_id ORDER BY c.id) AS n, sum(c.amount) OVER (PARTITION BY c.p_id) AS s FROM c".to_owned(),
            "named window" => "SELECT p.id AS k, c.id AS c, rank() OVER w AS r, lag(g.label) OVER w AS before FROM p JOIN c ON c.p_id = p.id JOIN g ON g.c_id = c.id WINDOW w AS (PARTITION BY p.id ORDER BY c.id, g.id)".to_owned(),
            "exists" => format!("SELECT p.id AS k, {of_p} AS a FROM p WHERE {p} AND EXISTS (SELECT 1 FROM c JOIN g ON g.c_id = c.id WHERE c.p_id = p.id AND {c})"),
            "not exists" => format!("SELECT p.id AS k, {of_p} AS a FROM p WHERE NOT EXISTS (SELECT 1 FROM c JOIN t ON t.id = c.t_id WHERE c.p_id = p.id AND {c})"),
            "in" => format!("SELECT p.id AS k, {of_p} AS a FROM p WHERE p.id IN (SELECT c.p_id FROM c JOIN g ON g.c_id = c.id WHERE {c})"),
            "row in" => format!("SELECT p.id AS k, {of_p} AS a FROM p WHERE (p.id, p.t_id) IN (SELECT l.p_id, l.t_id FROM l)"),
            "correlated not in" => format!("SELECT p.id AS k, {of_p} AS a FROM p WHERE p.t_id NOT IN (SELECT c.t_id FROM c WHERE c.p_id = p.id)"),
            "scalar subquery with limit" => format!("SELECT p.id AS k, (SELECT {of_c} FROM c WHERE c.p_id = p.id AND {c} ORDER BY c.id DESC LIMIT 1) AS last FROM p"),
            "scalar subquery with aggregate" => format!("SELECT p.id AS k, (SELECT count(*) FROM c JOIN g ON g.c_id = c.id WHERE c.p_id = p.id) AS n, (SELECT max(t.label) FROM t WHERE t.id = p.t_id) AS t FROM p WHERE {p}"),
            "array subquery" => format!("SELECT p.id AS k, ARRAY(SELECT c.label FROM c WHERE c.p_id = p.id AND {c} ORDER BY c.id) AS labels FROM p"),
            "lateral" => format!("SELECT p.id AS k, x.n, x.labels FROM p, LATERAL (SELECT count(*) AS n, json_agg(t.label ORDER BY c.id) AS labels FROM c LEFT JOIN t ON t.id = c.t_id WHERE c.p_id = p.id AND {c}) x"),
            "lateral with limit" => format!("SELECT p.id AS k, x.b FROM p LEFT JOIN LATERAL (SELECT {of_c} AS b FROM c WHERE c.p_id = p.id ORDER BY c.amount, c.id LIMIT 2) x ON true"),
            "values" => format!("SELECT p.id AS k, v.word FROM p JOIN (VALUES (0, 'none'), (1, 'one'), (2, 'two')) v(n, word) ON v.n = p.n WHERE {p}"),
            "cast key" => format!("SELECT p.id::text AS k, {of_p} AS a, {of_c} AS b FROM p LEFT JOIN c ON c.p_id = p.id"),
            "concatenated key" => format!("SELECT 'p-' || p.id AS k, {of_p} AS a FROM p WHERE {p}"),
            "lower key" => format!("SELECT lower(p.name) AS k, {of_p} AS a FROM p WHERE p.name <> ''"),
            "coalesce key" => format!("SELECT coalesce(p.slug, 'none') AS k, p.id, {of_c} AS b FROM p LEFT JOIN c ON c.p_id = p.id"),
            "coalesce key of two tables" => "SELECT coalesce(c.t_id, p.t_id) AS k, p.id AS p, c.id AS c FROM p LEFT JOIN c ON c.p_id = p.id".to_owned(),
            "case key" => "SELECT CASE WHEN c.flag THEN c.p_id ELSE c.t_id END AS k, c.label, t.label AS tag FROM c LEFT JOIN t ON t.id = c.t_id".to_owned(),
            "format key" => "SELECT format('%s/%s', l.p_id, l.t_id) AS k, l.note, t.label FROM l LEFT JOIN t ON t.id = l.t_id".to_owned(),
            "group by expression" => "SELECT lower(p.slug) AS k, count(*) AS n, array_agg(p.id ORDER BY p.id) AS ids FROM p GROUP BY lower(p.slug)".to_owned(),
            "date key" => "SELECT p.at::date AS k, count(*) AS n FROM p GROUP BY 1".to_owned(),
            "composite key" => format!("SELECT c.p_id || ':' || c.t_id AS k, {of_c} AS b, p.name FROM c LEFT JOIN p ON p.id = c.p_id"),
            "composite group key" => "SELECT concat(c.p_id, ':', c.t_id) AS k, count(*) AS n, min(t.label) AS tag FROM c LEFT JOIN t ON t.id = c.t_id GROUP BY c.p_id, c.t_id".to_owned(),
            "generated column" => format!("SELECT p.id AS k, p.loud, {of_c} AS b FROM p LEFT JOIN c ON c.p_id = p.id"),
            "unnest" => "SELECT p.id AS k, unnest(p.tags) AS tag FROM p".to_owned(),
            "unnest lateral" => format!("SELECT p.id AS k, x.tag, {of_c} AS b FROM p LEFT JOIN c ON c.p_id = p.id CROSS JOIN LATERAL unnest(p.tags) WITH ORDINALITY AS x(tag, nth)"),
            "jsonb_array_elements" => "SELECT p.id AS k, x.value ->> 'n' AS n FROM p, jsonb_array_elements(p.body -> 'items') AS x(value)".to_owned(),
            "generate_series" => "SELECT c.id AS k, x.n FROM c, generate_series(1, c.amount) AS x(n)".to_owned(),
            "jsonb operators" => format!("SELECT p.id AS k, p.body ->> 's' AS s, p.body #> '{{items,0}}' AS item, p.body @> '{{\"s\": \"x\"}}' AS x, jsonb_path_query_array(p.body, '$.items[*].n') AS ns FROM p WHERE {p}"),
            "whole row" => "SELECT p.id AS k, to_jsonb(p) AS p, (SELECT json_agg(c.* ORDER BY c.id) FROM c WHERE c.p_id = p.id) AS cs FROM p".to_owned(),
            "numeric key" => format!("SELECT p.n AS k, {of_p} AS a, {of_c} AS b FROM p LEFT JOIN c ON c.p_id = p.id"),
            "text join of varchars" => format!("SELECT p.id AS k, {of_c} AS b FROM p JOIN c ON c.p_slug = p.slug WHERE {c}"),
            "anti-join" => format!("SELECT p.id AS k, {of_p} AS a FROM p LEFT JOIN c ON c.p_id = p.id AND {c} WHERE c.id IS NULL"),
            "or of exists" => format!("SELECT p.id AS k, {of_p} AS a FROM p WHERE p.t_id = {one} OR EXISTS (SELECT 1 FROM c WHERE c.p_id = p.id AND {c})"),
            "in as a value" => format!("SELECT p.id AS k, {one} IN (SELECT c.t_id FROM c WHERE c.p_id = p.id) AS has, {one}::{k} AS one FROM p"),
            other => computed(other, (of_p, of_c, c)),
        }
    }
}

/// Shapes whose keys and links are computed from one row.
#[rustfmt::skip]
fn computed(shape: &str, (of_p, of_c, c): (&str, &str, &str)) -> String {
    match shape {
        "join on expressions" => format!("SELECT p.id AS k, {of_p} AS a, c.id AS c, {of_c} AS b FROM p JOIN c ON lower(c.label) = lower(p.name) || '' WHERE {c}"),
        "join on a cast" => "SELECT p.id AS k, c.id AS c, c.label FROM p LEFT JOIN c ON c.amount::text = p.body -> 'items' -> 0 ->> 'n'".to_owned(),
        "jsonb key" => "SELECT p.body ->> 's' AS k, count(*) AS n, array_agg(p.id ORDER BY p.id) AS ids FROM p GROUP BY p.body ->> 's'".to_owned(),
        "jsonb join" => format!("SELECT c.id AS k, p.id AS p, p.name FROM c JOIN p ON p.body ->> 's' = c.p_slug WHERE {c}"),
        "any of an array" => "SELECT p.id AS k, t.id AS t, t.label FROM p JOIN t ON t.label = ANY (p.tags)".to_owned(),
        "unnest key" => "SELECT x.tag AS k, array_agg(p.id ORDER BY p.id) AS ids, min(t.label) AS t FROM p LEFT JOIN t ON t.id = p.t_id, unnest(p.tags) x(tag) GROUP BY x.tag".to_owned(),
        "jsonb elements as the key" => "SELECT e.value ->> 'n' AS k, p.id, p.name FROM p, jsonb_array_elements(p.body -> 'items') e(value)".to_owned(),
        "generated key" => "SELECT p.loud AS k, p.id, t.label FROM p LEFT JOIN t ON t.id = p.t_id WHERE p.name <> ''".to_owned(),
        "join on a generated column" => format!("SELECT c.id AS k, p.id AS p, p.n FROM c JOIN p ON p.loud = upper(c.label) WHERE {c}"),
        "jsonb_each key" => "SELECT e.key || ':' || e.value AS k, array_agg(p.id ORDER BY p.id) AS ids, min(t.label) AS t FROM p LEFT JOIN t ON t.id = p.t_id, jsonb_each_text(p.body -> 'items' -> 0) e(key, value) GROUP BY 1".to_owned(),
        "jsonb_to_recordset" => format!("SELECT p.id AS k, i.n, c.id AS c, {of_c} AS b FROM p, jsonb_to_recordset(p.body -> 'items') i(n int, s text) JOIN c ON c.amount = i.n WHERE {c}"),
        "jsonb_to_recordset key" => "SELECT i.n AS k, p.id, p.name FROM p CROSS JOIN LATERAL jsonb_to_recordset(p.body -> 'items') i(n int)".to_owned(),
        "values as the key" => format!("SELECT v.n AS k, count(c.id) AS n, array_agg(c.id ORDER BY c.id) AS ids, min(v.word) AS word FROM (VALUES (0, 'none'), (1, 'one'), (2, 'two')) v(n, word) LEFT JOIN c ON c.amount = v.n AND {c} GROUP BY v.n"),
        "or of columns" => format!("SELECT p.id AS k, c.id AS c, {of_c} AS b FROM p JOIN c ON c.p_id = p.id OR c.p_slug = p.slug AND {c}"),
        other => panic!("no SQL for {other}"),
    }
}
