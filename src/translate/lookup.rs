//! One batch of images on one path: find the keys they lead to, in a snapshot that sees the
//! changes they come from.

use std::sync::Arc;

use crate::causes::with_causes;
use crate::document::DocumentKey;
use crate::document::queries;
use crate::document::read::{ReadError, ReadStamp};
use crate::mapping::plan::{Path, TableName};
use crate::snapshot::{Cause, Gate};
use crate::translate::refresh::{Trouble, trouble_of, worst_gate};
use crate::translate::route::PathId;
use crate::translate::{Build, Tools};

/// A row image that waits to be looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The path's columns.
    pub values: Vec<Option<String>>,
    pub cause: Cause,
    /// The record that waits for it.
    pub ticket: u64,
    /// How often in a row the cause was not visible.
    pub attempts: u32,
}

#[derive(Debug)]
pub struct Report {
    pub path: PathId,
    /// The keys that the images in `found` lead to.
    pub keys: Vec<DocumentKey>,
    pub found: Vec<Wanted>,
    /// Not visible yet.
    pub waiting: Vec<Wanted>,
    /// To be looked up again after a while.
    pub again: Vec<Wanted>,
    /// The query itself fails, for a reason that is not an outage: only a sweep can help.
    pub unanswerable: Vec<Wanted>,
    pub trouble: Option<Trouble>,
}

/// Looks the images up.
///
/// The keys found need no gate of their own later: whoever reads them does so in a later snapshot
/// of the same primary, which sees all that this one saw.
pub async fn lookup(
    tools: Arc<Tools>,
    build: Arc<Build>,
    path: PathId,
    mut wanted: Vec<Wanted>,
) -> Report {
    let mut report = Report {
        path,
        keys: Vec::new(),
        found: Vec::new(),
        waiting: Vec::new(),
        again: Vec::new(),
        unanswerable: Vec::new(),
        trouble: None,
    };
    let occurrence = &build.plan.entries[path.entry].paths[path.path];
    let Path::Lookup(lookup) = &occurrence.path else {
        unreachable!("the router sends only lookups here");
    };
    let tables: Vec<TableName> = lookup.hops.clone();
    if wanted.iter().any(|it| it.attempts > 0) {
        wanted = probed(&tools, wanted, &mut report).await;
    }
    // The answer is to all images together. When some are not visible yet, the others are asked
    // for again alone: at most one repeat, as what was visible stays visible.
    while !wanted.is_empty() {
        let images: Vec<_> = wanted.iter().map(|it| it.values.clone()).collect();
        let query = queries::lookup_query(lookup, &images, None);
        let read = match tools.readers.read(&tables, &[query]).await {
            Ok(read) => read,
            Err(ReadError::Query { source, .. }) => {
                let reason = with_causes(&source);
                tracing::error!(collection = build.plan.name, reason, "a key path's query fails");
                report.unanswerable = wanted;
                return report;
            }
            // Fewer at once; one alone that is too slow leads to a sweep, as nobody else can say.
            Err(ReadError::StatementTimeout { .. }) if wanted.len() > 1 => {
                report.again.extend(wanted.split_off(wanted.len() / 2));
                continue;
            }
            Err(ReadError::StatementTimeout { .. }) => {
                report.unanswerable = wanted;
                return report;
            }
            Err(error) => {
                report.trouble = Some(trouble_of(&error));
                report.again.extend(wanted);
                return report;
            }
        };
        if !tools.identity.is_of(&read.stamp) {
            report.trouble = Some(Trouble::Moved);
            report.again.extend(wanted);
            return report;
        }
        let asked = wanted.len();
        wanted = visible(wanted, &read.stamp, &mut report);
        if wanted.len() == asked {
            let rows = read.rows.into_iter().next().unwrap_or_default();
            let keys = rows.into_iter().filter_map(|row| row.into_iter().next().flatten());
            report.keys = keys.map(DocumentKey).collect();
            report.found = wanted;
            return report;
        }
    }
    report
}

/// Those that a new snapshot sees: what was not visible before is probed first, so that a wait of
/// hours does not run the path's query all the time.
async fn probed(tools: &Tools, wanted: Vec<Wanted>, report: &mut Report) -> Vec<Wanted> {
    match tools.readers.read(&[], &[]).await {
        Ok(read) => visible(wanted, &read.stamp, report),
        Err(error) => {
            report.trouble = Some(trouble_of(&error));
            report.again.extend(wanted);
            Vec::new()
        }
    }
}

/// Those whose cause the snapshot sees; the others are reported.
fn visible(wanted: Vec<Wanted>, stamp: &ReadStamp, report: &mut Report) -> Vec<Wanted> {
    let mut seen = Vec::with_capacity(wanted.len());
    for mut it in wanted {
        match worst_gate(&[it.cause], stamp) {
            Gate::Open => seen.push(it),
            Gate::NotYet => {
                it.attempts = it.attempts.saturating_add(1);
                report.waiting.push(it);
            }
            Gate::OldPrimary => {
                report.trouble = Some(Trouble::Moved);
                report.again.push(it);
            }
        }
    }
    seen
}
