//! A slice as it was read, against the index: what differs is written.

use super::audit::Suspect;
use super::{Purpose, SweepError, Sweeper};
use crate::document::build::Built;
use crate::document::read::Read;
use crate::document::{Document, DocumentKey, DocumentVersion};
use crate::translate::news;
use crate::translate::refresh::{KeyEnd, Report, Versioned, write_documents};

fn count(it: usize) -> u64 {
    u64::try_from(it).unwrap_or(u64::MAX)
}

impl Sweeper {
    /// Writes those documents of a slice that the index does not have in this form.
    pub(super) async fn repair(&self, slice: Built, read: &Read) -> Result<(), SweepError> {
        let collection = [self.build.plan.name.as_str()];
        let metrics = &self.tools.metrics;
        let swept = metrics.sweep_documents_total.with_label_values(&collection);
        swept.inc_by(count(slice.documents.len()));
        self.build.tally.swept(&slice.documents);
        let version = read.stamp.version(self.tools.identity.epoch);
        let version = version.ok_or(SweepError::Moved)?;
        let mut demanded: Vec<DocumentKey> = slice.refused.into_iter().map(|it| it.key).collect();
        demanded.retain(|it| !it.0.is_empty());
        let mut documents = self.differing(slice.documents).await?;
        if self.order.purpose == Purpose::Audit && !self.fresh {
            self.suspect(self.suspects_of(documents, version).await?);
            documents = Vec::new();
        } else if !self.fresh {
            let repairs = metrics.sweep_repairs_total.with_label_values(&collection);
            repairs.inc_by(count(documents.len()));
        }
        let documents = documents.into_iter().map(|(document, _)| document).collect();
        let mut report = Report::new(self.build.id);
        let versioned = Versioned { documents, version, read, live: false };
        write_documents(&self.tools, &self.build, versioned, &mut report).await;
        if !self.order.publish {
            news::tell_repaired(&self.tools, &self.build, &report.written);
        }
        let left = report.keys.into_iter().filter(|(_, end)| *end != KeyEnd::Finished);
        demanded.extend(left.map(|(key, _)| key));
        // What an outage or another writer kept us from is a refresh's, which knows how to wait.
        self.demand(demanded).await
    }

    /// Documents that the index does not have in this form, with the version that it has.
    async fn differing(
        &self,
        documents: Vec<Document>,
    ) -> Result<Vec<(Document, Option<DocumentVersion>)>, SweepError> {
        if self.fresh || documents.is_empty() {
            // A key without a document (it has optional rows only) needs no deletion there.
            let there = documents.into_iter().filter(|it| it.body.is_some());
            return Ok(there.map(|it| (it, None)).collect());
        }
        let keys: Vec<DocumentKey> = documents.iter().map(|it| it.key.clone()).collect();
        let found = self.tools.elastic.mget_sources(&self.build.index, &keys).await;
        let found = found.map_err(|it| self.elastic(&it))?;
        let differing = documents.into_iter().zip(found).filter_map(|(document, stored)| {
            let (text, version) = stored.unzip();
            (text != document.body).then_some((document, version))
        });
        Ok(differing.collect())
    }

    /// Those that are not simply newer than the slice. A version that no snapshot of now has
    /// reached is newer too, but not ours.
    async fn suspects_of(
        &self,
        differing: Vec<(Document, Option<DocumentVersion>)>,
        slice: DocumentVersion,
    ) -> Result<Vec<Suspect>, SweepError> {
        let newer = |it: &Option<DocumentVersion>| it.is_some_and(|it| it > slice);
        let newest = match differing.iter().any(|(_, version)| newer(version)) {
            true => self.newest().await?,
            false => slice,
        };
        let suspects = differing
            .into_iter()
            .filter(|(_, version)| !newer(version) || version.is_some_and(|it| it > newest));
        Ok(suspects.map(|(document, version)| Suspect { key: document.key, version }).collect())
    }
}
