//! The topics that tables' changes go to besides, or instead of, the envelope on their own: which
//! there are in a session, and sending to them. A part of the producing stage.

use std::collections::HashMap;
use std::sync::Arc;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::Encoder;
use super::refused::{Written, may_be_too_large};
use crate::change::Change;
use crate::config::KafkaConfig;
use crate::kafka::cloud_events::CloudEvent;
use crate::kafka::delivery::ProduceError;
use crate::kafka::envelope::{ChangeAt, Header, OutRecord, TableShape};
use crate::kafka::extract::Extract;
use crate::kafka::topics::WantedTopic;
use crate::relation::RelationId;

pub(super) struct Extracts {
    config: KafkaConfig,
    all: HashMap<RelationId, Arc<Vec<Extract>>>,
    /// `source-lsn` of the open transaction, and how many events it has had: an event's name.
    transaction: (String, u64),
}

impl Extracts {
    pub fn new(config: &KafkaConfig) -> Self {
        let (config, all) = (config.clone(), HashMap::new());
        Self { config, all, transaction: (String::new(), 0) }
    }

    /// Takes a table's shape; the topics are to be seen to.
    pub fn describe(&mut self, shape: &TableShape) -> Vec<WantedTopic> {
        let extracts = Extract::all(&self.config, shape);
        for it in extracts.iter().filter(|it| !it.missing.is_empty()) {
            let (table, topic) = (shape.relation.qualified_name(), &*it.shape.topic);
            let columns = it.missing.join(", ");
            tracing::error!(
                table,
                topic,
                columns,
                "the table does not have columns that the topic is declared with: they are left out \
                 of its records, and NULL where its filter reads them"
            );
        }
        let wanted = extracts.iter().map(|it| it.wanted.clone()).collect();
        match extracts.is_empty() {
            true => self.all.remove(&shape.relation.id),
            false => self.all.insert(shape.relation.id, Arc::new(extracts)),
        };
        wanted
    }

    /// What the table's rows also go to.
    pub fn of(&self, id: RelationId) -> Option<Arc<Vec<Extract>>> {
        self.all.get(&id).map(Arc::clone)
    }
}

/// Whether the table's own topic has the plain envelopes; else it is among the extracts.
pub(super) fn is_plain(extracts: Option<&Vec<Extract>>, shape: &TableShape) -> bool {
    extracts.is_none_or(|all| all.iter().all(|it| it.shape.topic != shape.topic))
}

impl Encoder {
    /// Sends what a row of a table is in its further topics.
    pub(super) async fn send_extracts(
        &mut self,
        extracts: &[Extract],
        written: Written<'_>,
        at: ChangeAt,
    ) -> Result<(), ProduceError> {
        for extract in extracts {
            match written {
                Written::Change(change) => {
                    let Some(change) = extract.change(change) else { continue };
                    let kind = match &change {
                        Change::Insert { .. } => "onelog.row.created",
                        Change::Update { .. } => "onelog.row.updated",
                        Change::Delete { .. } => "onelog.row.deleted",
                        Change::Truncate { .. } => "onelog.table.truncated",
                    };
                    self.send_one((extract, kind), Written::Change(&change), at).await?;
                }
                Written::Read(row) => {
                    let Some(row) = extract.row(row) else { continue };
                    self.send_one((extract, "onelog.row.read"), Written::Read(&row), at).await?;
                }
            }
        }
        Ok(())
    }

    async fn send_one(
        &mut self,
        (extract, kind): (&Extract, &'static str),
        written: Written<'_>,
        at: ChangeAt,
    ) -> Result<(), ProduceError> {
        let records = written.records(&mut self.writer, &extract.shape, at)?;
        if records.clone().any(may_be_too_large) {
            drop(records);
            // It goes without CloudEvents' headers, as it goes without its largest values.
            return self.send_large(&extract.shape, written, at).await;
        }
        let seq = self.open.expect("records are of a transaction");
        let producer = &self.session.producer;
        for record in records {
            // A tombstone is no event but where it is all that tells of a delete.
            let is_event = record.value.is_some() || extract.shape.is_flat();
            if extract.cloud_events && is_event {
                let mut headers = self.headers.clone();
                let event = (extract, record, kind);
                let Extracts { config, transaction, .. } = &mut self.extracts;
                add_event(config, transaction, event, (&mut headers, self.commit_ms));
                producer.send(seq, record, &headers).await?;
            } else {
                producer.send(seq, record, &self.headers).await?;
            }
        }
        Ok(())
    }
}

fn add_event(
    config: &KafkaConfig,
    (transaction, count): &mut (String, u64),
    (extract, record, kind): (&Extract, OutRecord<'_>, &'static str),
    (headers, commit_ms): (&mut Vec<Header>, i64),
) {
    let lsn = headers.iter().find(|it| it.0 == "source-lsn").map_or("", |it| &it.1);
    if transaction != lsn {
        (*transaction, *count) = (lsn.to_owned(), 0);
    }
    *count += 1;
    let encoded = |it: &str| utf8_percent_encode(it, NON_ALPHANUMERIC).to_string();
    let relation = &extract.shape.relation;
    let (namespace, table) = (encoded(&relation.namespace), encoded(&relation.name));
    CloudEvent {
        id: &format!("{transaction}-{count}"),
        source: &format!("/onelog/{}/{namespace}.{table}", config.topic_prefix),
        kind,
        subject: record.key.and_then(|it| std::str::from_utf8(it).ok()),
        time_ms: commit_ms,
        content_type: record.value.map(|_| "application/json"),
    }
    .add_to(headers);
}
