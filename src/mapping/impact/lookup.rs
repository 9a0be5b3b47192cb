//! Routes as what runs: a column of the row, or a query over the tables on the way.
//!
//! The changed rows' columns come as parallel `text[]` parameters, cast to the columns' types
//! (A13). Only the tables on the way are joined: other filters are dropped, as too many keys is
//! only work.

use super::key::{columns_of, print};
use super::tree::Route;
use super::walk::Walk;
use crate::mapping::plan::{Lookup, Path, TableName, quote_identifier};

/// The path of an occurrence. None: a part of it cannot be written as SQL.
pub(super) fn path(walk: &Walk<'_>, routes: &[Option<Route>], occurrence: usize) -> Option<Path> {
    let route = routes[occurrence].as_ref()?;
    if let Route::InRow(column) = route {
        let table = walk.input.tables.get(&walk.occurrences[occurrence].table)?;
        if table.column(column)?.same_text {
            return Some(Path::InRow { column: column.clone() });
        }
    }
    Writer { walk, routes }.lookup(occurrence).map(Path::Lookup)
}

struct Writer<'w, 'a> {
    walk: &'w Walk<'a>,
    routes: &'w [Option<Route>],
}

/// Where a row of the chain is in the query: the changed one, or the nth hop.
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

    fn sql(self, column: &str) -> Option<String> {
        let [range, column] = self.parts(column)?;
        Some(match self {
            At::Changed(_) => format!("{range}.{column}"),
            At::Hop(_) => format!("{range}.{}", quote_identifier(&column)),
        })
    }
}

impl Writer<'_, '_> {
    fn lookup(&self, occurrence: usize) -> Option<Lookup> {
        let columns = start_columns(self.routes[occurrence].as_ref()?);
        let table = self.walk.input.tables.get(&self.walk.occurrences[occurrence].table)?;
        let (mut arrays, mut names) = (Vec::new(), Vec::new());
        for (nth, column) in columns.iter().enumerate() {
            let type_name = qualified_type(&table.column(column)?.type_name);
            arrays
                .push(format!("pg_catalog.unnest(${}::pg_catalog.text[]::{type_name}[])", nth + 1));
            names.push(format!("c{}", nth + 1));
        }
        // Parallel arrays of one length; a qualified unnest() takes one array only.
        let mut from =
            format!("ROWS FROM ({}) AS changed({})", arrays.join(", "), names.join(", "));
        let (mut hops, mut steps) = (Vec::new(), Vec::new());
        let (mut here, mut at) = (occurrence, At::Changed(&columns));
        // The routes are a tree, so that no chain is longer than the occurrences.
        for nth in 1..=self.routes.len() {
            let Some(Route::Hop { to, pairs }) = &self.routes[here] else { break };
            let next = At::Hop(nth);
            let mut conditions = Vec::new();
            for (ours, theirs) in pairs {
                conditions.push(format!("{} = {}", next.sql(theirs)?, at.sql(ours)?));
                steps.push(format!("{} = {}", self.shown(here, ours), self.shown(*to, theirs)));
            }
            let table = &self.walk.occurrences[*to].table;
            let on = conditions.join(" AND ");
            from.push_str(&format!(" JOIN {} AS h{nth} ON {on}", table.quoted()));
            add(&mut hops, table);
            (here, at) = (*to, next);
        }
        let key = match self.routes[here].as_ref()? {
            Route::InRow(column) => at.sql(column)?,
            Route::Evaluate(node) => format!("({})", print(node, &|it| at.parts(it))?),
            Route::Hop { .. } => return None,
        };
        let sql = format!(
            "SELECT DISTINCT {key}::pg_catalog.text AS key FROM {from} WHERE {key} IS NOT NULL"
        );
        Some(Lookup { columns, sql, hops, steps })
    }

    fn shown(&self, occurrence: usize, column: &str) -> String {
        format!("{}.{column}", self.walk.occurrences[occurrence].alias)
    }
}

/// Built-in types are safe as they are under any search_path: `format_type` prints SQL's own
/// words for them (`integer`, `character varying`) or a bare name of `pg_catalog`.
fn qualified_type(name: &str) -> String {
    let bare = ["uuid", "text", "date"];
    if bare.contains(&name) { format!("pg_catalog.{name}") } else { name.to_owned() }
}

fn start_columns(route: &Route) -> Vec<String> {
    match route {
        Route::InRow(column) => vec![column.clone()],
        Route::Evaluate(node) => columns_of(node),
        Route::Hop { pairs, .. } => {
            let mut columns: Vec<String> = Vec::new();
            for (column, _) in pairs {
                if !columns.contains(column) {
                    columns.push(column.clone());
                }
            }
            columns
        }
    }
}

fn add(hops: &mut Vec<TableName>, table: &TableName) {
    if !hops.contains(table) {
        hops.push(table.clone());
    }
}
