//! Verification before a swap: what is there is compared with the SQL once more, by other means
//! than those that have filled the index. If it differs, what served goes on serving.
//!
//! - *Counts*, after a fill of an empty index: the documents that the sweep read against those
//!   that are searchable. Live changes that came meanwhile explain as much as they created and
//!   deleted. A sweep that compares has looked at every document and every key of the index, so
//!   that counts would say less.
//! - *Samples*: some dozens of random keys are read anew behind the gate. A document that is newer
//!   in the index than our read is fine, and so is one that follows within a while.
//! - *Refusals*: where something serves, an index that lacks a good part of its documents because
//!   Elasticsearch refused them (a field type that does not fit) must not take its place.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::causes::with_causes;
use crate::document::read::ReadError;
use crate::document::{Document, DocumentKey, DocumentVersion, build, queries};
use crate::elasticsearch::client::ElasticError;
use crate::translate::{Build, Tools};

/// Random keys that are compared: a fault in one document of twenty is found nine times of ten.
const SAMPLE_KEYS: usize = 48;
/// How long a difference may wait for the change that explains it. A translator that is further
/// behind sweeps once more, which costs reads and harms nobody.
const EXPLAINED_MAX: Duration = Duration::from_secs(20);
/// Between two looks at what differs.
const LOOK_PAUSE: Duration = Duration::from_millis(250);
/// Refused keys that are remembered one by one; beyond it the share alone decides.
const BURIED_KEYS_MAX: usize = 10_000;
/// One refused document in so many is a poison document or two, and no reason not to serve.
const REFUSED_SHARE: u64 = 10;

/// What the writers of a build tell its verification.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Documents that the sweep has read.
    swept: u64,
    /// Documents that live changes created or deleted since the sweep began.
    moved: u64,
    /// Keys that went to the dead letters, and why the last did.
    buried: HashSet<DocumentKey>,
    buried_why: String,
    /// The keys with the smallest hashes of all that were swept: a fair sample of any number.
    sample: BTreeMap<u64, DocumentKey>,
    hasher: RandomState,
}

impl Tally {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sweep begins.
    pub fn begin(&self) {
        *self.inner() = Inner::default();
    }

    /// The sweep has read these.
    pub fn swept(&self, documents: &[Document]) {
        let mut inner = self.inner();
        for document in documents.iter().filter(|it| it.body.is_some()) {
            inner.swept += 1;
            let place = inner.hasher.hash_one(&document.key);
            inner.sample.insert(place, document.key.clone());
            if inner.sample.len() > SAMPLE_KEYS {
                inner.sample.pop_last();
            }
        }
    }

    /// A live change created or deleted a document.
    pub fn moved(&self) {
        self.inner().moved += 1;
    }

    pub fn buried(&self, key: &DocumentKey, why: &str) {
        let mut inner = self.inner();
        why.clone_into(&mut inner.buried_why);
        if inner.buried.len() < BURIED_KEYS_MAX {
            inner.buried.insert(key.clone());
        }
    }
}

/// What is wrong with `found` documents after a fill, if anything.
fn count_fault(swept: u64, found: u64, explained: u64) -> Option<String> {
    let difference = swept.abs_diff(found);
    (difference > explained).then(|| {
        format!(
            "the SQL has {swept} documents and the index {found}, and changes meanwhile explain \
             only {explained} of the difference"
        )
    })
}

fn refusal_fault(swept: u64, refused: u64, why: &str) -> Option<String> {
    (refused > 1 && refused > swept / REFUSED_SHARE).then(|| {
        format!(
            "{refused} of {swept} documents were refused, the last because of {why}; mend the \
             mapping file, or take the cause away and run `onelog rebuild`"
        )
    })
}

/// Why an index may not serve yet.
#[derive(Debug)]
pub enum Fault {
    /// It is not what the SQL says.
    Differs(String),
    Elastic(ElasticError),
    Read(ReadError),
    /// Another database answers now.
    Moved,
    /// Another sweep of the whole is owed meanwhile.
    Void,
}

/// Compares the build's index, which has been refreshed, with its SQL.
///
/// `filled`: it was empty when the sweep began. `replaces`: another index serves.
pub async fn verify(
    tools: &Tools,
    build: &Build,
    filled: bool,
    replaces: bool,
) -> Result<(), Fault> {
    let found = tools.elastic.count(&build.index).await.map_err(Fault::Elastic)?;
    let (fault, sample, buried) = {
        let inner = build.tally.inner();
        let refused = u64::try_from(inner.buried.len()).unwrap_or(u64::MAX);
        let counts = || count_fault(inner.swept, found, inner.moved.saturating_add(refused));
        let refusals = || refusal_fault(inner.swept, refused, &inner.buried_why);
        let fault = replaces.then(refusals).flatten();
        let fault = fault.or_else(|| filled.then(counts).flatten());
        let sample: Vec<DocumentKey> = inner.sample.values().cloned().collect();
        (fault, sample, inner.buried.clone())
    };
    if let Some(fault) = fault {
        return Err(Fault::Differs(fault));
    }
    let sample = sample.into_iter().filter(|it| !buried.contains(it)).collect();
    samples_agree(tools, build, sample).await
}

async fn samples_agree(
    tools: &Tools,
    build: &Build,
    mut keys: Vec<DocumentKey>,
) -> Result<(), Fault> {
    let deadline = Instant::now() + EXPLAINED_MAX;
    let mut pause = tokio::time::interval(LOOK_PAUSE);
    while !keys.is_empty() {
        pause.tick().await;
        keys = differing(tools, build, keys).await?;
        if let Some(key) = keys.first()
            && Instant::now() > deadline
        {
            let count = keys.len();
            return Err(Fault::Differs(format!(
                "{count} of {SAMPLE_KEYS} sampled documents differ from their SQL, for instance \
                 {key}; if an index template or an ingest pipeline changes documents on their way, \
                 take it away and run `onelog rebuild`"
            )));
        }
    }
    Ok(())
}

/// Those keys whose documents are not what a read yields now, nor newer.
async fn differing(
    tools: &Tools,
    build: &Build,
    keys: Vec<DocumentKey>,
) -> Result<Vec<DocumentKey>, Fault> {
    let queries = queries::refresh_queries(&build.plan, &keys);
    let read = match tools.readers.read(&build.tables, &queries).await {
        Ok(read) => read,
        // A row that came to fail since the sweep: its own refresh finds it, and buries it.
        Err(ReadError::Query { source, .. }) => {
            tracing::warn!(reason = with_causes(&source), "sampled documents can't be read");
            return Ok(Vec::new());
        }
        Err(error) => return Err(Fault::Read(error)),
    };
    let version = read.stamp.version(tools.identity.epoch);
    let (true, Some(version)) = (tools.identity.is_of(&read.stamp), version) else {
        return Err(Fault::Moved);
    };
    let built = build::documents(&build.plan, &keys, &read.rows)
        .map_err(|error| Fault::Differs(error.to_string()))?;
    let bodies: HashMap<&DocumentKey, Option<&str>> =
        built.documents.iter().map(|it| (&it.key, it.body.as_deref())).collect();
    let found = tools.elastic.mget_sources(&build.index, &keys).await.map_err(Fault::Elastic)?;
    let agrees = |key: &DocumentKey, found: Option<&(String, DocumentVersion)>| {
        let body = bodies.get(key).copied().flatten();
        match found {
            Some((_, there)) if *there > version => true,
            found => found.map(|it| it.0.as_str()) == body,
        }
    };
    let pairs = keys.iter().zip(&found);
    Ok(pairs.filter(|(key, it)| !agrees(key, it.as_ref())).map(|(key, _)| key.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(key: usize) -> Document {
        Document { key: DocumentKey(key.to_string()), body: Some("{}".to_owned()) }
    }

    #[test]
    fn live_changes_explain_as_much_as_they_moved() {
        for (swept, found, explained, fine) in [
            (1_000, 1_000, 0, true),
            (1_000, 999, 0, false),
            (1_000, 1_001, 0, false),
            (1_000, 990, 10, true),
            (1_000, 1_011, 10, false),
            (0, 0, 0, true),
        ] {
            assert_eq!(count_fault(swept, found, explained).is_none(), fine, "{swept} {found}");
        }
    }

    #[test]
    fn a_few_refusals_are_poison_and_many_a_wrong_mapping() {
        for (swept, refused, fine) in
            [(1_000, 0, true), (1_000, 100, true), (1_000, 101, false), (3, 1, true), (3, 2, false)]
        {
            assert_eq!(refusal_fault(swept, refused, "").is_none(), fine, "{refused} of {swept}");
        }
    }

    #[test]
    fn the_sample_is_drawn_from_all_that_was_swept() {
        let tally = Tally::default();
        let all: Vec<Document> = (0..10_000).map(document).collect();
        for slice in all.chunks(1_000) {
            tally.swept(slice);
        }
        let inner = tally.inner();
        assert_eq!((inner.swept, inner.sample.len()), (10_000, SAMPLE_KEYS));
        let late = inner.sample.values().filter(|it| it.0.len() == 4 && it.0.as_str() >= "5000");
        // Half of all keys; that fewer than 5 of 48 are of them has a chance below 1 in 10^9.
        assert!(late.count() >= 5);
    }
}
