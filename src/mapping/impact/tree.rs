//! The tree of paths, built outward from the key (A4): every occurrence that can be reached gets
//! one route, and the tail of a route is the route of the next occurrence.

use pg_query::protobuf::Node;

use super::facts::ColumnFacts;
use super::key::columns_of;
use super::scope::Origin;
use super::walk::{Constraint, Equality, Walk};

/// How a row of an occurrence leads to the key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Route {
    /// This column is the key, or is identical to it (A8).
    InRow(String),
    /// The key is this expression over the row.
    Evaluate(Box<Node>),
    /// The rows of another occurrence whose second columns equal our first ones.
    Hop { to: usize, pairs: Vec<(String, String)> },
}

/// One route for each occurrence, by its index; None: it has no path.
pub(super) fn build(walk: &Walk<'_>, key: &Origin) -> Vec<Option<Route>> {
    let mut routes: Vec<Option<Route>> = vec![None; walk.occurrences.len()];
    let home = match key {
        Origin::Column(of) => {
            if carries(walk, of.occurrence, &of.column) {
                routes[of.occurrence] = Some(Route::InRow(of.column.clone()));
            }
            of.occurrence
        }
        Origin::Expression { occurrence, node } => {
            if columns_of(node).iter().all(|it| carries(walk, *occurrence, it)) {
                routes[*occurrence] = Some(Route::Evaluate(node.clone()));
            }
            *occurrence
        }
        Origin::OneOf { .. } | Origin::Opaque => return routes,
    };
    loop {
        let found: Vec<(usize, Route)> = (0..routes.len())
            .filter(|it| routes[*it].is_none())
            .filter_map(|it| Some((it, route(walk, &routes, it, home)?)))
            .collect();
        if found.is_empty() {
            return routes;
        }
        for (occurrence, route) in found {
            routes[occurrence] = Some(route);
        }
    }
}

/// The best route of one occurrence over those that have one already.
fn route(
    walk: &Walk<'_>,
    routes: &[Option<Route>],
    occurrence: usize,
    home: usize,
) -> Option<Route> {
    let mut hops: Vec<(usize, Vec<(String, String)>)> = Vec::new();
    for (column, to, other) in edges(walk, occurrence, home) {
        let Some(next) = &routes[to] else { continue };
        if matches!(next, Route::InRow(key) if *key == other)
            && identical(facts(walk, occurrence, &column), facts(walk, to, &other))
        {
            return Some(Route::InRow(column));
        }
        let pair = (column, other);
        match hops.iter_mut().find(|(it, _)| *it == to) {
            Some((_, pairs)) if pairs.contains(&pair) => {}
            Some((_, pairs)) => pairs.push(pair),
            None => hops.push((to, vec![pair])),
        }
    }
    // All equalities with one neighbour together: `tenant_id` alone would reach a whole tenant.
    let (to, pairs) = hops.into_iter().next()?;
    Some(Route::Hop { to, pairs })
}

/// The edges that may leave an occurrence: our column, the other occurrence, its column.
fn edges(walk: &Walk<'_>, from: usize, home: usize) -> Vec<(String, usize, String)> {
    let mut edges = Vec::new();
    for equality in &walk.equalities {
        for (near, far) in [(&equality.u, &equality.v), (&equality.v, &equality.u)] {
            if near.occurrence == from
                && carries(walk, from, &near.column)
                && facts(walk, far.occurrence, &far.column).is_some_and(|it| it.carrier)
                && holds(walk, equality, from, home)
            {
                edges.push((near.column.clone(), far.occurrence, far.column.clone()));
            }
        }
    }
    edges
}

/// Rule A3: whether the equality may be an edge that leaves `from`, the key being in `home`.
pub(super) fn holds(walk: &Walk<'_>, equality: &Equality, from: usize, home: usize) -> bool {
    let within = |occurrence: usize, region| walk.occurrences[occurrence].regions.contains(region);
    equality.constraints.iter().all(|it| match it {
        Constraint::Touches(region) => within(from, region) || within(home, region),
        Constraint::Inside(region) => within(from, region),
        Constraint::Opposite(left, right) => {
            (within(from, left) && within(home, right))
                || (within(from, right) && within(home, left))
        }
        Constraint::Ends(occurrence) => from == *occurrence || home == *occurrence,
    })
}

fn facts<'w>(walk: &'w Walk<'_>, occurrence: usize, column: &str) -> Option<&'w ColumnFacts> {
    walk.input.tables.get(&walk.occurrences[occurrence].table)?.column(column)
}

/// Whether a changed row's image holds the column in a form that a query can start from.
fn carries(walk: &Walk<'_>, occurrence: usize, column: &str) -> bool {
    facts(walk, occurrence, column).is_some_and(|it| it.carrier && !it.generated)
}

/// A8: equal values of the two columns are identical texts.
fn identical(one: Option<&ColumnFacts>, other: Option<&ColumnFacts>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return false };
    one.type_oid == other.type_oid && one.equal_image && other.equal_image
}

/// Why an occurrence has no path, as a sentence for the person who wrote the SQL.
pub(super) fn reason(walk: &Walk<'_>, occurrence: usize, routes: &[Option<Route>]) -> String {
    let it = &walk.occurrences[occurrence];
    let (table, alias) = (&it.table, &it.alias);
    let who =
        if *alias == table.name { table.to_string() } else { format!("{table} (as {alias})") };
    let mine: Vec<&Equality> = walk
        .equalities
        .iter()
        .filter(|it| it.u.occurrence == occurrence || it.v.occurrence == occurrence)
        .collect();
    let Some(first) = mine.first() else {
        return format!(
            "no key path for {who}: no plain \"=\" links one of its columns to a table that \
             leads to the key; link it by a column = column condition, on columns that GROUP BY, \
             PARTITION BY or LIMIT do not hide"
        );
    };
    let shown = |of: &super::scope::ColumnOf| {
        format!("{}.{}", walk.occurrences[of.occurrence].alias, of.column)
    };
    let condition = format!("{} = {}", shown(&first.u), shown(&first.v));
    let other = if first.u.occurrence == occurrence { &first.v } else { &first.u };
    if routes[other.occurrence].is_none() {
        return format!(
            "no key path for {who}: {condition} leads to {}, which has no path to the key itself",
            walk.occurrences[other.occurrence].alias
        );
    }
    format!(
        "no key path for {who}: {condition} cannot be followed, as rows without a match count too \
         (an outer join, NOT EXISTS, NOT IN or a scalar subquery), or a column's type or \
         generation rule forbids it; link {alias} to the key's table by an inner join or WHERE"
    )
}
