//! One read of a path: find the keys that images lead to, in a snapshot that sees the changes they
//! come from.
//!
//! A read asks for a bounded number of keys. Images that lead to more are asked for one by one,
//! and one image that does so alone is walked, page by page, each page a read of its own. Keys
//! that leave or enter between two pages are not lost: the change that moved them finds them
//! itself, at whatever time it is handled (design, section 4).

use std::sync::Arc;

use crate::causes::with_causes;
use crate::document::DocumentKey;
use crate::document::queries::{self, Page};
use crate::document::read::{Read, ReadError, ReadStamp};
use crate::mapping::plan::{Lookup, Path};
use crate::snapshot::{Cause, Gate};
use crate::translate::lookups::{Ask, Values, Wanted};
use crate::translate::refresh::{Trouble, trouble_of, worst_gate};
use crate::translate::route::PathId;
use crate::translate::{Build, Tools};

/// Each image that was asked for is in one of the lists.
#[derive(Debug)]
pub struct Report {
    pub path: PathId,
    pub walk: bool,
    /// The keys that the images in `found` lead to.
    pub keys: Vec<DocumentKey>,
    pub found: Vec<Wanted>,
    /// The page is full: what is found is a single image, with more keys above this one.
    pub more: Option<String>,
    /// Not visible yet.
    pub waiting: Vec<Wanted>,
    /// To be looked up again after a while.
    pub again: Vec<Wanted>,
    /// To be looked up at once, but fewer together.
    pub rest: Vec<Wanted>,
    /// The query itself fails, for a reason that is not an outage: only a sweep can help.
    pub unanswerable: Vec<Wanted>,
    pub trouble: Option<Trouble>,
}

impl Report {
    fn new(ask: &Ask) -> Self {
        Self {
            path: ask.path,
            walk: ask.walk,
            keys: Vec::new(),
            found: Vec::new(),
            more: None,
            waiting: Vec::new(),
            again: Vec::new(),
            rest: Vec::new(),
            unanswerable: Vec::new(),
            trouble: None,
        }
    }
}

/// Looks the images up.
///
/// The keys found need no gate of their own later: whoever reads them does so in a later snapshot
/// of the same primary, which sees all that this one saw.
pub async fn lookup(tools: Arc<Tools>, build: Arc<Build>, ask: Ask) -> Report {
    let mut report = Report::new(&ask);
    let occurrence = &build.plan.entries[ask.path.entry].paths[ask.path.path];
    let Path::Lookup(lookup) = &occurrence.path else {
        unreachable!("the router sends only lookups here");
    };
    let (mut wanted, page) = (ask.wanted, ask.page);
    if wanted.iter().any(|it| it.attempts > 0) {
        wanted = probed(&tools, wanted, &mut report).await;
    }
    // The answer is to all images together. When some are not visible yet, the others are asked
    // for again alone: at most one such repeat, as what was visible stays visible.
    while !wanted.is_empty() {
        let read = match read(&tools, lookup, &wanted, &page).await {
            Ok(read) => read,
            // Fewer at once; one alone that is too slow leads to a sweep, as nobody else can say.
            Err(ReadError::StatementTimeout { .. }) if wanted.len() > 1 => {
                report.rest.extend(wanted.split_off(wanted.len() / 2));
                continue;
            }
            Err(error @ (ReadError::StatementTimeout { .. } | ReadError::Query { .. })) => {
                let reason = with_causes(&error);
                let collection = &build.plan.name;
                tracing::error!(collection, reason, "a key path's query fails: sweeping instead");
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
        if wanted.len() < asked {
            continue;
        }
        let rows = read.rows.into_iter().next().unwrap_or_default();
        let keys: Vec<String> =
            rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
        let full = i64::try_from(keys.len()).is_ok_and(|it| it >= page.keys_max);
        if full && wanted.len() > 1 {
            report.rest.extend(wanted.split_off(wanted.len() / 2));
            continue;
        }
        report.more = keys.last().filter(|_| full).cloned();
        report.keys = keys.into_iter().map(DocumentKey).collect();
        report.found = wanted;
        return report;
    }
    report
}

async fn read(
    tools: &Tools,
    lookup: &Lookup,
    wanted: &[Wanted],
    page: &Page,
) -> Result<Read, ReadError> {
    let images: Vec<Values> = wanted.iter().map(|it| it.values.clone()).collect();
    let query = queries::lookup_query(lookup, &images, Some(page));
    tools.readers.read(&lookup.hops, &[query]).await
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

/// Those whose causes the snapshot sees; the others are reported.
fn visible(wanted: Vec<Wanted>, stamp: &ReadStamp, report: &mut Report) -> Vec<Wanted> {
    let mut seen = Vec::with_capacity(wanted.len());
    for mut it in wanted {
        let causes: Vec<Cause> = it.causes.iter().copied().collect();
        match worst_gate(&causes, stamp) {
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
