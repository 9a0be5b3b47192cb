//! What works, but hardly as it was meant: documents that depend on the order in which Postgres
//! happens to read rows (B17), and fields that two entries write. Warnings, each at its place.
//!
//! Says nothing where it can't tell. Pure.

mod order;

use std::collections::{BTreeMap, BTreeSet};

use crate::mapping::plan::{CollectionPlan, EntryPlan, TableName};
use crate::mapping::{Nest, Place};
use crate::mistake::Mistake;

/// Sets of columns by which no two rows of a table are equal.
pub type UniqueKeys = BTreeMap<TableName, Vec<BTreeSet<String>>>;

/// All warnings about a collection, by place.
pub fn warnings(plan: &CollectionPlan, unique: &UniqueKeys) -> Vec<Mistake> {
    let mut found = fields_written_twice(plan);
    for entry in &plan.entries {
        found.extend(order::left_to_chance(&entry.entry));
        found.extend(order::ties(entry, unique));
    }
    found.sort();
    found
}

/// The top-level fields that an entry writes, the key left out: it is the same in all.
fn fields(entry: &EntryPlan) -> Vec<&str> {
    match &entry.entry.nest {
        Nest::Top => {
            let columns = entry.columns.iter().map(|it| it.name.as_str());
            columns.filter(|it| *it != entry.entry.key).collect()
        }
        Nest::Many(field) | Nest::One(field) => vec![field],
    }
}

fn place(entry: &EntryPlan) -> &Place {
    entry.entry.nest_place.as_ref().unwrap_or(&entry.entry.sql_place)
}

fn fields_written_twice(plan: &CollectionPlan) -> Vec<Mistake> {
    let mut found = Vec::new();
    for (nth, entry) in plan.entries.iter().enumerate() {
        for before in &plan.entries[..nth] {
            let mut theirs = fields(before);
            theirs.push(&before.entry.key);
            // Two entries that name the key alike agree on its value.
            let ours = fields(entry);
            let both: Vec<&str> = ours.into_iter().filter(|it| theirs.contains(it)).collect();
            if both.is_empty() {
                continue;
            }
            let other = place(before);
            let message = format!(
                "{} also {} from {}:{}: where both entries have a row for a key, this one's value \
                 wins; if that is not meant, name one of them otherwise{}",
                listed(&both),
                if both.len() == 1 { "comes" } else { "come" },
                other.path.display(),
                other.line,
                if entry.entry.nest == Nest::Top { " with AS" } else { "" }
            );
            found.push(at(place(entry), message));
        }
    }
    found
}

fn listed(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let rest = names.len().saturating_sub(SHOWN);
    let more = if rest > 0 { format!(" and {rest} more fields") } else { String::new() };
    format!("{}{more}", names[..names.len().min(SHOWN)].join(", "))
}

fn at(place: &Place, message: String) -> Mistake {
    Mistake { path: place.path.clone(), line: place.line, column: place.column, message }
}
