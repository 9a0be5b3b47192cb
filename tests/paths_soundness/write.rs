//! Random SQL and random histories.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{COLUMNS, Event, State, TABLES};

/// Writes random SQL. Every source has the columns id, x and y.
pub struct Writer {
    rng: StdRng,
    made: usize,
}

impl Writer {
    pub fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), made: 0 }
    }

    fn chance(&mut self, of_ten: u32) -> bool {
        self.rng.random_range(0..10) < of_ten
    }

    fn pick<'s>(&mut self, from: &[&'s str]) -> &'s str {
        from.choose(&mut self.rng).unwrap()
    }

    fn alias(&mut self) -> String {
        self.made += 1;
        format!("o{}", self.made)
    }

    fn column(&mut self, aliases: &[String]) -> String {
        let alias = aliases.choose(&mut self.rng).unwrap().clone();
        format!("{alias}.{}", self.pick(&COLUMNS))
    }

    fn equality(&mut self, left: &[String], right: &[String]) -> String {
        let (one, other) = (self.column(left), self.column(right));
        if self.chance(7) {
            return format!("{one} = {other}");
        }
        let (also, too) = (self.column(left), self.column(right));
        match self.pick(&["or", "or", "any", "coalesce", "plus", "case", "both", "text"]) {
            "or" => format!("({one} = {other} OR {also} = {too})"),
            "any" => format!("{one} = ANY (ARRAY[{other}, {too}])"),
            "coalesce" => format!("coalesce({one}, 1) = {other}"),
            "plus" => format!("{one} + 1 = {other}"),
            "case" => format!("CASE WHEN {one} > 0 THEN {one} ELSE 0 END = {other}"),
            "both" => format!("abs({one}) = coalesce({other}, 0)"),
            _ => format!("{one}::text || 'a' = {other} || 'a'"),
        }
    }

    /// A table's column by a roundabout way: generated, from JSON, an element of an array.
    fn roundabout(&mut self) -> String {
        let (table, o) = (self.pick(&TABLES), self.alias());
        match self.pick(&[
            "generated",
            "json",
            "unnest",
            "select",
            "any",
            "left",
            "each",
            "records",
            "values",
        ]) {
            "generated" => format!("SELECT {o}.g AS id, {o}.x, {o}.y FROM {table} {o}"),
            "json" => format!(
                "SELECT ({o}.j ->> 'x')::int AS id, ({o}.j -> 'l' ->> 0)::int AS x, {o}.id AS y \
                 FROM {table} {o}"
            ),
            "unnest" => {
                format!("SELECT f.e AS id, {o}.id AS x, {o}.y FROM {table} {o}, unnest({o}.r) f(e)")
            }
            "each" => format!(
                "SELECT f.value::int AS id, length(f.key) AS x, {o}.id AS y \
                 FROM {table} {o}, jsonb_each_text({o}.j -> 'o') f(key, value)"
            ),
            "records" => {
                let lateral = self.pick(&["CROSS JOIN LATERAL", "LEFT JOIN LATERAL"]);
                let on = if lateral.starts_with("LEFT") { " ON f.x > 0" } else { "" };
                format!(
                    "SELECT f.x AS id, f.y AS x, {o}.id AS y FROM {table} {o} \
                     {lateral} jsonb_to_recordset({o}.j -> 's') f(x int, y int){on}"
                )
            }
            "values" => {
                let join = self.pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]);
                format!(
                    "SELECT v.n AS id, v.m AS x, {o}.id AS y FROM (VALUES (1, 2), (2, 0), (2, 3)) v(n, m) \
                     {join} {table} {o} ON {o}.x = v.n"
                )
            }
            "left" => format!(
                "SELECT f.e AS id, {o}.id AS x, f.e + 1 AS y \
                 FROM {table} {o} LEFT JOIN LATERAL unnest({o}.r) f(e) ON f.e > 0"
            ),
            "select" => format!("SELECT unnest({o}.r) AS id, {o}.x, {o}.id AS y FROM {table} {o}"),
            _ => {
                let (other, p) = (self.pick(&TABLES), self.alias());
                format!(
                    "SELECT {p}.id, {o}.id AS x, {p}.y FROM {table} {o} JOIN {other} {p} \
                     ON {p}.id = ANY ({o}.r)"
                )
            }
        }
    }

    /// A FROM item and its alias.
    fn source(&mut self, depth: usize) -> (String, Vec<String>) {
        let alias = self.alias();
        if depth > 1 || self.chance(7) {
            return (format!("{} {alias}", self.pick(&TABLES)), vec![alias]);
        }
        let inner = if self.chance(4) { self.roundabout() } else { self.derived(depth + 1) };
        (format!("({inner}) {alias}"), vec![alias])
    }

    fn derived(&mut self, depth: usize) -> String {
        let (from, aliases) = self.from(depth, 1, 2);
        let mut c = || self.column(&aliases);
        let (k, l, m) = (c(), c(), c());
        let filter = self.filter(&aliases, depth, 3);
        let kind =
            self.pick(&["plain", "distinct", "group", "group2", "set", "on", "window", "sum"]);
        match kind {
            "distinct" => {
                format!("SELECT DISTINCT {k} AS id, {l} AS x, {m} AS y FROM {from}{filter}")
            }
            "group" => format!(
                "SELECT {k} AS id, count(*)::int AS x, max({l}) AS y FROM {from}{filter} GROUP BY {k}"
            ),
            "group2" if k != l => format!(
                "SELECT {k} AS id, {l} AS x, sum({m})::int AS y FROM {from}{filter} GROUP BY {k}, {l}"
            ),
            "set" => {
                let (other, others) = self.from(depth, 1, 2);
                let mut c = || self.column(&others);
                let (n, o, p) = (c(), c(), c());
                let op = self.pick(&["UNION", "UNION ALL", "EXCEPT", "INTERSECT", "EXCEPT ALL"]);
                format!(
                    "SELECT {k} AS id, {l} AS x, {m} AS y FROM {from}{filter} {op} \
                     SELECT {n}, {o}, {p} FROM {other}"
                )
            }
            "on" => format!(
                "SELECT DISTINCT ON ({k}) {k} AS id, {l} AS x, {m} AS y FROM {from}{filter} \
                 ORDER BY {k}, {l}, {m}"
            ),
            "window" => format!(
                "SELECT {k} AS id, {l} AS x, (sum({m}) OVER (PARTITION BY {k}))::int AS y \
                 FROM {from}{filter}"
            ),
            "sum" => {
                format!("SELECT max({k}) AS id, count(*)::int AS x, 1 AS y FROM {from}{filter}")
            }
            _ => format!("SELECT {k} AS id, {l} AS x, {m} AS y FROM {from}{filter}"),
        }
    }

    /// A tree of joins over `least` to `most` sources.
    fn from(&mut self, depth: usize, least: usize, most: usize) -> (String, Vec<String>) {
        let count = self.rng.random_range(least..=most);
        let mut nodes: Vec<_> = (0..count).map(|_| self.source(depth)).collect();
        while nodes.len() > 1 {
            let (left, lefts) = nodes.remove(self.rng.random_range(0..nodes.len()));
            let (right, rights) = nodes.remove(self.rng.random_range(0..nodes.len()));
            let kind = self.pick(&["", "", "LEFT", "LEFT", "RIGHT", "FULL", "CROSS"]);
            let all = [lefts.clone(), rights.clone()].concat();
            let mut on = vec![self.equality(&lefts, &rights)];
            if self.chance(3) {
                on.push(self.equality(&all, &all));
            }
            if self.chance(1) && kind != "FULL" {
                on.push(self.exists(&all, depth + 1));
            }
            let on = match kind {
                "CROSS" => String::new(),
                _ => format!(" ON {}", on.join(" AND ")),
            };
            nodes.push((format!("({left} {kind} JOIN {right}{on})"), all));
        }
        nodes.pop().unwrap()
    }

    /// The FROM and WHERE of a subquery that is linked to the aliases around it.
    fn linked(&mut self, around: &[String], depth: usize) -> (String, Vec<String>) {
        let (from, own) = self.from(depth + 1, 1, 2);
        let mut links = vec![self.equality(&own, around)];
        if self.chance(5) {
            links.push(self.equality(&own, around));
        }
        if self.chance(2) {
            links.push(self.equality(around, around));
        }
        if depth < 2 && self.chance(3) {
            links.push(self.exists(&[own.clone(), around.to_vec()].concat(), depth + 1));
        }
        (format!("FROM {from} WHERE {}", links.join(" AND ")), own)
    }

    fn exists(&mut self, around: &[String], depth: usize) -> String {
        let (body, own) = self.linked(around, depth);
        let column = self.column(&own);
        let outer = self.column(around);
        match self.pick(&["e", "ne", "ne", "in", "nin", "or"]) {
            "e" => format!("EXISTS (SELECT 1 {body})"),
            "ne" => format!("NOT EXISTS (SELECT 1 {body})"),
            "in" => format!("{outer} IN (SELECT {column} {body})"),
            "nin" => format!("{outer} NOT IN (SELECT {column} {body})"),
            _ => format!("({outer} = 1 OR EXISTS (SELECT 1 {body}))"),
        }
    }

    fn filter(&mut self, aliases: &[String], depth: usize, of_ten: u32) -> String {
        let mut parts = Vec::new();
        if self.chance(of_ten) {
            parts.push(self.equality(aliases, aliases));
        }
        if self.chance(of_ten) {
            parts.push(self.exists(aliases, depth + 1));
        }
        if self.chance(1) {
            parts.push(format!("{} IS NULL", self.column(aliases)));
        }
        if parts.is_empty() { String::new() } else { format!(" WHERE {}", parts.join(" AND ")) }
    }

    /// A whole mapping's SQL, its key being k.
    pub fn sql(&mut self) -> String {
        let (mut from, mut aliases) = self.from(0, 1, 4);
        if self.chance(2) {
            let (body, own) = self.linked(&aliases, 1);
            let (c, lateral) = (self.column(&own), self.alias());
            let kind = self.pick(&["LEFT", "INNER"]);
            let tail = self.pick(&["", "ORDER BY 1 LIMIT 1"]);
            from = format!(
                "{from} {kind} JOIN LATERAL (SELECT {c} AS id, {c} AS x, {c} AS y {body} {tail}) \
                 {lateral} ON true"
            );
            aliases.push(lateral);
        }
        let key = self.column(&aliases);
        let mut columns: Vec<String> = aliases.iter().map(|it| format!("{it}.y")).collect();
        if self.chance(4) {
            let (body, own) = self.linked(&aliases, 1);
            columns.push(format!("(SELECT max({}) {body})", self.column(&own)));
        }
        let filter = self.filter(&aliases, 0, 3);
        if self.chance(2) {
            let c = self.column(&aliases);
            return format!(
                "SELECT {key} AS k, count(*) AS n, max({c}) AS m FROM {from}{filter} GROUP BY {key}"
            );
        }
        if self.chance(2) {
            let other = self.derived(1);
            let (op, y) = (self.pick(&["UNION", "EXCEPT", "UNION ALL"]), self.column(&aliases));
            return format!(
                "WITH w AS ({other}) SELECT {key} AS k, {y} AS v FROM {from}{filter} {op} \
                 SELECT w.id, v.x FROM w JOIN w v ON v.id = w.x"
            );
        }
        let named: Vec<_> =
            columns.iter().enumerate().map(|(nth, it)| format!("{it} AS v{nth}")).collect();
        format!("SELECT {key} AS k, {} FROM {from}{filter}", named.join(", "))
    }

    fn value(&mut self) -> Option<i32> {
        *[Some(0), Some(1), Some(1), Some(2), None].choose(&mut self.rng).unwrap()
    }

    pub fn history(&mut self) -> (Vec<State>, Vec<Event>) {
        let mut state = State::new();
        for table in TABLES {
            let rows = state.entry(table).or_default();
            for id in 0..3 {
                if self.chance(4) {
                    rows.insert(id, [Some(id), self.value(), self.value()]);
                }
            }
        }
        let (mut states, mut events) = (vec![state.clone()], Vec::new());
        for commit in 1..=self.rng.random_range(1..5) {
            for _ in 0..self.rng.random_range(1..3) {
                let table = *TABLES.choose(&mut self.rng).unwrap();
                let id = self.rng.random_range(0..3);
                let rows = state.get_mut(table).unwrap();
                let old = rows.remove(&id);
                let new = (old.is_none() || self.chance(5))
                    .then(|| [Some(id), self.value(), self.value()]);
                if let Some(new) = new {
                    state.get_mut(table).unwrap().insert(id, new);
                }
                let images = old.into_iter().chain(new).collect();
                events.push(Event { commit, table, images });
            }
            states.push(state.clone());
        }
        (states, events)
    }
}
