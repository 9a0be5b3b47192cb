//! Keys of the index that no row has.

use std::collections::{HashMap, HashSet};

use super::audit::Suspect;
use super::{Purpose, SweepError, Sweeper};
use crate::document::queries;
use crate::document::read::ReadError;
use crate::document::{DocumentKey, DocumentVersion};

/// Keys of the index looked up at once.
const PAGE_KEYS: usize = 1_000;

impl Sweeper {
    /// Refreshes every key of the index that no row has: the refresh deletes it.
    pub(super) async fn orphans(&self) -> Result<(), SweepError> {
        let elastic = &self.tools.elastic;
        elastic.refresh(&self.build.index).await.map_err(|it| self.elastic(&it))?;
        let distribution = self.tools.distribution;
        let opened = elastic.open_ids(&self.build.index, distribution).await;
        let mut walk = opened.map_err(|it| self.elastic(&it))?;
        loop {
            let page = elastic.ids_page(&mut walk, PAGE_KEYS).await;
            let page = page.map_err(|it| self.elastic(&it))?;
            if page.is_empty() {
                break;
            }
            let versions: HashMap<DocumentKey, DocumentVersion> = page.into_iter().collect();
            let keys: Vec<DocumentKey> = versions.keys().cloned().collect();
            let queries = queries::existing_queries(&self.build.plan, &keys);
            let orphans: Vec<DocumentKey> = match self.read_patiently(&queries).await {
                Ok(read) => {
                    let there: HashSet<String> =
                        read.rows.into_iter().flatten().flatten().flatten().collect();
                    keys.into_iter().filter(|it| !there.contains(&it.0)).collect()
                }
                // An _id that is no value of the key's type is nobody's row; a refresh finds out.
                Err(ReadError::Query { .. }) => keys,
                Err(error) => return Err(self.read_error(&error)),
            };
            if self.order.purpose == Purpose::Audit {
                let suspect = |key: DocumentKey| {
                    let version = versions.get(&key).copied();
                    Suspect { key, version }
                };
                self.suspect(orphans.into_iter().map(suspect).collect());
                self.judge(false).await?;
                continue;
            }
            let count = u64::try_from(orphans.len()).unwrap_or(u64::MAX);
            let collection = [self.build.plan.name.as_str()];
            self.tools.metrics.sweep_repairs_total.with_label_values(&collection).inc_by(count);
            self.demand(orphans).await?;
        }
        elastic.close_ids(walk).await.map_err(|it| self.elastic(&it))
    }
}
