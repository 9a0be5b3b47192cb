//! The tree of paths, built outward from the key (A4): every occurrence that can be reached gets
//! one route, and the tail of a route is the route of the next occurrence.

use super::carried::{self, obstacle};
use super::facts::ColumnFacts;
use super::link::{Arms, Link, Value};
use super::lookup;
use super::scope::Origin;
use super::walk::{Constraint, Walk};

/// How a row of an occurrence leads to the key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Route {
    /// This column is the key, or is identical to it (A8).
    InRow(String),
    /// The key is this value of the row.
    Evaluate(Value),
    /// The rows of another occurrence whose second values equal our first ones, in all links.
    Hop { to: usize, links: Vec<Arms> },
}

/// One route for each occurrence, by its index; None: it has no path.
pub(super) fn build(walk: &Walk<'_>, key: &Origin) -> Vec<Option<Route>> {
    let mut routes: Vec<Option<Route>> = vec![None; walk.occurrences.len()];
    let (home, value) = match key {
        Origin::Column(of) => (of.occurrence, Value::Column(of.column.clone())),
        Origin::Expression { occurrence, node } => (*occurrence, Value::Computed(node.clone())),
        Origin::OneOf { .. } | Origin::Opaque => return routes,
    };
    if obstacle(walk, home, &value).is_none() {
        routes[home] = Some(match value {
            Value::Column(column) => Route::InRow(column),
            value @ Value::Computed(_) => Route::Evaluate(value),
        });
    }
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
    let mut hops: Vec<(usize, Vec<Arms>)> = Vec::new();
    for (to, arms) in edges(walk, occurrence, home) {
        let Some(next) = &routes[to] else { continue };
        if let (Some((column, other)), Route::InRow(key)) = (columns(&arms), next)
            && key == other
            && identical(facts(walk, occurrence, column), facts(walk, to, other))
        {
            return Some(Route::InRow(column.to_owned()));
        }
        match hops.iter_mut().find(|(it, _)| *it == to) {
            Some((_, links)) if links.contains(&arms) => {}
            Some((_, links)) => links.push(arms),
            None => hops.push((to, vec![arms])),
        }
    }
    let plain = |links: &[Arms]| links.iter().any(|it| columns(it).is_some());
    let best = hops.iter().position(|(_, links)| plain(links)).unwrap_or(0);
    // All links with one neighbour together: `tenant_id` alone would reach a whole tenant. But
    // what is not in the old image is better done without, where something else is there.
    let (to, mut links) = hops.into_iter().nth(best)?;
    let held = |it: &Arms| columns(it).is_some() || held(walk, occurrence, it);
    if links.iter().any(held) {
        links.retain(held);
    }
    Some(Route::Hop { to, links })
}

/// The two columns, when that is all.
fn columns(arms: &Arms) -> Option<(&str, &str)> {
    match &arms[..] {
        [arm] => match &arm[..] {
            [(Value::Column(ours), Value::Column(theirs))] => Some((ours, theirs)),
            _ => None,
        },
        _ => None,
    }
}

/// Whether the old image has all that our side of the link is made of.
fn held(walk: &Walk<'_>, occurrence: usize, arms: &Arms) -> bool {
    let Some(table) = walk.facts(occurrence) else { return false };
    let values = arms.iter().flatten().map(|(ours, _)| ours);
    let mut columns = values.flat_map(|it| carried::columns(walk, occurrence, it));
    columns.all(|it| table.identity.contains(&it))
}

/// The edges that may leave an occurrence: the other one, and what links them.
fn edges(walk: &Walk<'_>, from: usize, home: usize) -> Vec<(usize, Arms)> {
    let mut edges = Vec::new();
    for link in &walk.links {
        if let Some((to, arms)) = link.from(from)
            && holds(walk, link, from, home)
            && arms.iter().flatten().all(|pair| followed(walk, from, to, pair).is_none())
        {
            edges.push((to, arms));
        }
    }
    edges
}

/// What keeps a pair from being followed.
fn followed(
    walk: &Walk<'_>,
    from: usize,
    to: usize,
    (ours, theirs): &(Value, Value),
) -> Option<String> {
    if let Some(obstacle) = obstacle(walk, from, ours) {
        return Some(obstacle.to_string());
    }
    match theirs {
        Value::Column(column) if !facts(walk, to, column).is_some_and(|it| it.carrier) => {
            Some(format!("{column}, whose type's \"=\" onelog does not trust"))
        }
        Value::Column(_) | Value::Computed(_) => None,
    }
}

/// Rule A3: whether the link may be an edge that leaves `from`, the key being in `home`.
fn holds(walk: &Walk<'_>, link: &Link, from: usize, home: usize) -> bool {
    let within = |occurrence: usize, region| walk.occurrences[occurrence].regions.contains(region);
    link.constraints.iter().all(|it| match it {
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
    walk.facts(occurrence)?.column(column)
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
    let mine: Vec<(&Link, usize, Arms)> = walk
        .links
        .iter()
        .filter_map(|it| it.from(occurrence).map(|(to, arms)| (it, to, arms)))
        .collect();
    let Some((_, other, arms)) = mine.iter().find(|it| routes[it.1].is_some()).or(mine.first())
    else {
        return format!(
            "no key path for {who}: no plain \"=\" links one of its rows to a table that leads to \
             the key; link it by an = between what is computed from one row of each (a column, a \
             cast, lower(), ->>, an element of an array), that GROUP BY, PARTITION BY or LIMIT do \
             not hide"
        );
    };
    let condition = lookup::condition(walk, (occurrence, *other), arms);
    if routes[*other].is_none() {
        return format!(
            "no key path for {who}: {condition} leads to {}, which has no path to the key itself",
            walk.occurrences[*other].alias
        );
    }
    let in_the_way = |pair| followed(walk, occurrence, *other, pair);
    if let Some(why) = arms.iter().flatten().find_map(in_the_way) {
        return format!("no key path for {who}: {condition} cannot be followed: it needs {why}");
    }
    format!(
        "no key path for {who}: {condition} cannot be followed, as rows without a match count too \
         (an outer join, NOT EXISTS, NOT IN or a scalar subquery); link {alias} to the key's table \
         by an inner join or WHERE"
    )
}
