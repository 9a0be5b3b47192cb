//! Routes as what runs: a column of the row, or a query over the tables on the way.
//!
//! The changed rows' columns come as parallel `text[]` parameters, cast to the columns' types
//! (A13), under the columns' collations. Only the tables on the way are joined: other filters are
//! dropped, as too many keys is only work.

use std::collections::BTreeSet;

use super::carried::{self, elements_of, generated_from};
use super::facts::{ColumnFacts, Nested, TableFacts};
use super::function::has_set;
use super::key::print;
use super::link::{Arms, Value};
use super::occurrence::Occurrence;
use super::tree::Route;
use super::walk::Walk;
use super::{allowed::allowed, key::reference};
use crate::mapping::plan::{Lookup, Path, TableName, quote_identifier};

/// The path of an occurrence. None: a part of it cannot be written as SQL.
pub(super) fn path(walk: &Walk<'_>, routes: &[Option<Route>], occurrence: usize) -> Option<Path> {
    let route = routes[occurrence].as_ref()?;
    if let Route::InRow(column) = route {
        let table = walk.facts(occurrence)?;
        let facts = table.column(column)?;
        if facts.same_text && !facts.generated {
            return Some(Path::InRow { column: column.clone() });
        }
    }
    Writer { walk, routes, from: String::new(), sets: 0 }.lookup(occurrence).map(Path::Lookup)
}

/// A link as a person reads it.
pub(super) fn condition(walk: &Walk<'_>, (ours, theirs): (usize, usize), arms: &Arms) -> String {
    let shown = |occurrence: usize, value: &Value| {
        let alias = &walk.occurrences[occurrence].alias;
        match value {
            Value::Column(column) => format!("{alias}.{column}"),
            Value::Computed(node) => {
                let text = print(node, &|it| Some([alias.clone(), it.to_owned()]));
                text.unwrap_or_else(|| alias.clone()).replace("pg_catalog.", "")
            }
        }
    };
    let arm = |arm: &Vec<(Value, Value)>| {
        let pairs = arm.iter().map(|(u, v)| format!("{} = {}", shown(ours, u), shown(theirs, v)));
        pairs.collect::<Vec<_>>().join(" and ")
    };
    arms.iter().map(arm).collect::<Vec<_>>().join(" or ")
}

struct Writer<'w, 'a> {
    walk: &'w Walk<'a>,
    routes: &'w [Option<Route>],
    /// The FROM clause so far.
    from: String,
    /// Set-returning values among it.
    sets: usize,
}

/// Where a row of the chain is in the query: the changed one, of these columns, or the nth hop.
#[derive(Clone, Copy)]
enum At<'c> {
    Changed(&'c [String]),
    Hop(usize),
}

impl At<'_> {
    fn parts(self, column: &str) -> Option<[String; 2]> {
        Some(match self {
            At::Changed(columns) => {
                let nth = columns.iter().position(|it| it == column)? + 1;
                ["changed".to_owned(), format!("c{nth}")]
            }
            At::Hop(nth) => [format!("h{nth}"), column.to_owned()],
        })
    }

    fn sql(self, value: &Value) -> Option<String> {
        let column = match value {
            Value::Column(column) => column,
            Value::Computed(node) => {
                return Some(format!("({})", print(node, &|it| self.parts(it))?));
            }
        };
        let [range, column] = self.parts(column)?;
        Some(match self {
            At::Changed(_) => format!("{range}.{column}"),
            At::Hop(_) => format!("{range}.{}", quote_identifier(&column)),
        })
    }
}

impl Writer<'_, '_> {
    fn lookup(mut self, occurrence: usize) -> Option<Lookup> {
        let values = start_values(self.routes[occurrence].as_ref()?);
        let mut needed: Vec<String> = Vec::new();
        for column in values.iter().flat_map(Value::columns) {
            if !needed.contains(&column) {
                needed.push(column);
            }
        }
        let (columns, json) = self.changed(occurrence, &values, &needed)?;
        let (mut hops, mut steps) = (Vec::new(), Vec::new());
        let (mut here, mut at) = (occurrence, At::Changed(&needed));
        // The routes are a tree, so that no chain is longer than the occurrences.
        for nth in 1..=self.routes.len() {
            let Some(Route::Hop { to, links }) = &self.routes[here] else { break };
            let next = At::Hop(nth);
            let mut conditions = Vec::new();
            for arms in links {
                conditions.push(self.link((here, at), (*to, next), arms)?);
                steps.push(condition(self.walk, (here, *to), arms));
            }
            let Occurrence { table, constants, .. } = &self.walk.occurrences[*to];
            let rows = match constants {
                Some(it) => format!("({})", it.sql),
                None => {
                    add(&mut hops, table);
                    table.quoted()
                }
            };
            let on = conditions.join(" AND ");
            self.from.push_str(&format!(" JOIN {rows} AS h{nth} ON {on}"));
            (here, at) = (*to, next);
        }
        let key = match self.routes[here].as_ref()? {
            Route::InRow(column) => at.sql(&Value::Column(column.clone()))?,
            Route::Evaluate(value) => self.single(at, value)?,
            Route::Hop { .. } => return None,
        };
        let sql = format!(
            "SELECT DISTINCT {key}::pg_catalog.text AS key FROM {} WHERE {key} IS NOT NULL",
            self.from
        );
        Some(Lookup { columns, json, strict: self.strict(occurrence), sql, hops, steps })
    }

    /// Starts the FROM clause with the changed rows. Which columns it takes as parameters, and
    /// which of these as JSON.
    fn changed(
        &mut self,
        occurrence: usize,
        values: &[Value],
        needed: &[String],
    ) -> Option<(Vec<String>, BTreeSet<String>)> {
        let table = self.walk.facts(occurrence)?;
        let mut columns: Vec<String> = Vec::new();
        for column in values.iter().flat_map(|it| carried::columns(self.walk, occurrence, it)) {
            if !columns.contains(&column) {
                columns.push(column);
            }
        }
        let facts = |it: &String| table.column(it);
        let is_plain = |it: &String| {
            facts(it)
                .is_some_and(|it| !it.generated && !matches!(it.nested, Some(Nested::Array { .. })))
        };
        let mut arrays = Vec::new();
        for (nth, column) in columns.iter().enumerate() {
            arrays.push(parameter(nth + 1, facts(column)?));
        }
        let arrays = arrays.join(", ");
        let names = |letter: &str, count: usize| {
            (1..=count).map(|nth| format!("{letter}{nth}")).collect::<Vec<_>>().join(", ")
        };
        // Parallel arrays of one length; a qualified unnest() takes one array only.
        self.from = if needed.iter().all(is_plain) {
            format!("ROWS FROM ({arrays}) AS changed({})", names("c", columns.len()))
        } else {
            let mut made = Vec::new();
            for (nth, column) in needed.iter().enumerate() {
                made.push(format!("{} AS c{}", remade(table, &columns, column)?, nth + 1));
            }
            let raw = names("p", columns.len());
            format!(
                "(SELECT {} FROM ROWS FROM ({arrays}) AS raw({raw})) AS changed",
                made.join(", ")
            )
        };
        let json = columns.iter().filter(|it| facts(it).is_some_and(|it| it.nested.is_some()));
        let json = json.cloned().collect();
        Some((columns, json))
    }

    /// The condition of a link between a row that is there and the next one.
    fn link(
        &mut self,
        (here, at): (usize, At<'_>),
        (to, next): (usize, At<'_>),
        arms: &Arms,
    ) -> Option<String> {
        let mut written = Vec::new();
        for arm in arms {
            let mut pairs = Vec::new();
            for (ours, theirs) in arm {
                let near = self.single(at, ours)?;
                pairs.push(match theirs {
                    Value::Computed(node) if has_set(self.walk, node) => {
                        match self.same_elements((here, ours), (to, theirs)) {
                            // As an index on the array understands it.
                            Some(array) => format!(
                                "{} @> ARRAY[{near}]",
                                next.sql(&Value::Column(array.to_owned()))?
                            ),
                            None => format!(
                                "EXISTS (SELECT FROM (SELECT {} AS v) AS e WHERE e.v = {near})",
                                next.sql(theirs)?
                            ),
                        }
                    }
                    Value::Column(_) | Value::Computed(_) => {
                        format!("{} = {near}", next.sql(theirs)?)
                    }
                });
            }
            written.push(pairs.join(" AND "));
        }
        Some(match &written[..] {
            [one] => one.clone(),
            _ => format!("({})", written.join(" OR ")),
        })
    }

    /// The array column whose elements are of our column's very type.
    fn same_elements<'v>(
        &self,
        (here, ours): (usize, &Value),
        (to, theirs): (usize, &'v Value),
    ) -> Option<&'v str> {
        let Value::Column(column) = ours else { return None };
        let array = elements_of(theirs)?;
        let Some(Nested::Array { type_oid, .. }) = &self.facts(to, array)?.nested else {
            return None;
        };
        (self.facts(here, column)?.type_oid == *type_oid).then_some(array)
    }

    fn facts(&self, occurrence: usize, column: &str) -> Option<&ColumnFacts> {
        self.walk.facts(occurrence)?.column(column)
    }

    /// A value of a row as one value: those of a set come by rows of their own. A row stays when
    /// there are none, for another arm of an OR.
    fn single(&mut self, at: At<'_>, value: &Value) -> Option<String> {
        let sql = at.sql(value)?;
        match value {
            Value::Computed(node) if has_set(self.walk, node) => {
                self.sets += 1;
                let nth = self.sets;
                let set = format!(" LEFT JOIN LATERAL (SELECT {sql} AS v) AS s{nth} ON true");
                self.from.push_str(&set);
                Some(format!("s{nth}.v"))
            }
            Value::Column(_) | Value::Computed(_) => Some(sql),
        }
    }

    /// Whether a NULL in the image leads nowhere: each of its columns is joined on, and every
    /// value of it is NULL then.
    fn strict(&self, occurrence: usize) -> bool {
        let Some(Route::Hop { links, .. }) = &self.routes[occurrence] else { return false };
        links.iter().all(|arms| match &arms[..] {
            [arm] => arm.iter().all(|(ours, _)| match ours {
                Value::Column(it) => self.facts(occurrence, it).is_some_and(|it| !it.generated),
                Value::Computed(node) => allowed(self.walk, node, true),
            }),
            _ => false,
        })
    }
}

/// A column's values in all images, as a set-returning function of one column.
fn parameter(nth: usize, facts: &ColumnFacts) -> String {
    let type_name = match &facts.nested {
        Some(_) => "pg_catalog.jsonb".to_owned(),
        None => qualified_type(&facts.type_name),
    };
    let collate = facts.collation.as_ref().map(|it| format!(" COLLATE {it}")).unwrap_or_default();
    let collate = if facts.nested.is_some() { String::new() } else { collate };
    format!("pg_catalog.unnest(${nth}::pg_catalog.text[]::{type_name}[]{collate})")
}

/// A column of the changed row, made of the parameters `raw.p1` and so on.
fn remade(table: &TableFacts, parameters: &[String], column: &str) -> Option<String> {
    let raw = |it: &str| {
        let nth = parameters.iter().position(|parameter| parameter == it)?;
        Some(["raw".to_owned(), format!("p{}", nth + 1)])
    };
    let facts = table.column(column)?;
    let collate = facts.collation.as_ref().map(|it| format!(" COLLATE {it}")).unwrap_or_default();
    if facts.generated {
        let node = generated_from(facts)?;
        let made = print(&node, &raw)?;
        return Some(format!("({made})::{}{collate}", qualified_type(&facts.type_name)));
    }
    let parameter = print(&reference(vec![column.to_owned()]), &raw)?;
    let Some(Nested::Array { type_name, .. }) = &facts.nested else { return Some(parameter) };
    // An array as JSON, of any depth: its elements are what is no array itself.
    let element = qualified_type(type_name);
    Some(format!(
        "CASE WHEN {parameter} IS NOT NULL THEN ARRAY(SELECT (e.v #>> '{{}}')::{element} FROM \
         pg_catalog.jsonb_path_query({parameter}, 'strict $.** ? (@.type() <> \"array\")') AS e(v)) \
         END{collate}"
    ))
}

/// Built-in types are safe as they are under any search_path: `format_type` prints SQL's own
/// words for them (`integer`, `character varying`) or a bare name of `pg_catalog`.
fn qualified_type(name: &str) -> String {
    let bare = ["uuid", "text", "date"];
    if bare.contains(&name) { format!("pg_catalog.{name}") } else { name.to_owned() }
}

/// The values of the changed row that the query starts from.
fn start_values(route: &Route) -> Vec<Value> {
    match route {
        Route::InRow(column) => vec![Value::Column(column.clone())],
        Route::Evaluate(value) => vec![value.clone()],
        Route::Hop { links, .. } => {
            links.iter().flatten().flatten().map(|(ours, _)| ours.clone()).collect()
        }
    }
}

fn add(hops: &mut Vec<TableName>, table: &TableName) {
    if !hops.contains(table) {
        hops.push(table.clone());
    }
}
