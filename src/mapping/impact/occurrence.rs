//! The occurrences that a walk meets: each is a table of its own for the paths (A4).

use std::collections::BTreeSet;

use super::constants::Constants;
use super::facts::TableFacts;
use super::walk::{Region, Walk};
use crate::mapping::plan::TableName;

/// One appearance of a base table in the SQL, views and CTEs inlined at each use.
#[derive(Debug, Clone)]
pub(super) struct Occurrence {
    pub(super) table: TableName,
    pub(super) alias: String,
    pub(super) regions: BTreeSet<Region>,
    /// In the nullable side of some outer join.
    pub(super) nullable: bool,
    /// Of `VALUES`, which is no table and never changes.
    pub(super) constants: Option<Constants>,
}

impl Walk<'_> {
    pub(super) fn add_occurrence(
        &mut self,
        table: TableName,
        alias: &str,
        constants: Option<Constants>,
    ) -> usize {
        let (regions, nullable) = (self.open.iter().copied().collect(), self.nullable > 0);
        let alias = alias.to_owned();
        self.occurrences.push(Occurrence { table, alias, regions, nullable, constants });
        self.occurrences.len() - 1
    }

    /// What is known of an occurrence's table.
    pub(super) fn facts(&self, occurrence: usize) -> Option<&TableFacts> {
        let it = &self.occurrences[occurrence];
        let constants = it.constants.as_ref().map(|it| &it.facts);
        constants.or_else(|| self.input.tables.get(&it.table))
    }
}
