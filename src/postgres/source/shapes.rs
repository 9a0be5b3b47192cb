//! How the tables of a session are written: keys and types from the catalog, by plain SQL.
//!
//! The stream's Relation message has columns and types, but under REPLICA IDENTITY FULL not the
//! primary key, and never what an enum or a composite type is made of. The catalog is as of now
//! and the stream is behind it, so what the two agree on is used: `TableShape` looks columns up by
//! name. A table that is gone by now is written by its identity.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::SourceError;
use crate::config::KafkaConfig;
use crate::kafka::envelope::TableShape;
use crate::postgres::client::Client;
use crate::postgres::publication::{self, TableInfo};
use crate::postgres::query_error::QueryError;
use crate::postgres::text::{TYPE_ROWS_SQL, TypeKinds, TypeRow};
use crate::relation::{Relation, RelationId};

/// What a session has asked the catalog so far.
pub struct Shapes {
    client: Client,
    config: KafkaConfig,
    publication: String,
    tables: HashMap<RelationId, TableInfo>,
    /// Relations that the stream has described: again means that they have changed.
    described: HashSet<RelationId>,
    types: TypeKinds,
}

impl Shapes {
    /// Asks for the published tables.
    ///
    /// # Errors
    /// If the catalog can't be read.
    pub async fn new(
        client: Client,
        config: &KafkaConfig,
        publication: &str,
    ) -> Result<Self, SourceError> {
        let mut shapes = Self {
            client,
            config: config.clone(),
            publication: publication.to_owned(),
            tables: HashMap::new(),
            described: HashSet::new(),
            types: TypeKinds::new(),
        };
        shapes.read_tables().await?;
        Ok(shapes)
    }

    /// The topics of the tables that are published now, of those with a primary key: what another
    /// table's key is, the stream says with its first change.
    pub fn topics(&self) -> BTreeSet<String> {
        let keyed = self.tables.values().filter(|it| !it.primary_key.is_empty());
        keyed.map(|it| self.config.entity_topic(&it.root_namespace, &it.root_name)).collect()
    }

    /// How the changes of a relation that the stream has just described are written.
    ///
    /// # Errors
    /// If the catalog can't be read.
    pub async fn shape(&mut self, relation: Arc<Relation>) -> Result<Arc<TableShape>, SourceError> {
        let again = !self.described.insert(relation.id);
        let known = self.tables.get(&relation.id);
        if again || !known.is_some_and(|it| describes(it, &relation)) {
            self.read_tables().await?;
        }
        self.read_types(&relation, again).await?;
        let info = self.tables.get(&relation.id);
        let (namespace, name) = info.map_or((&relation.namespace, &relation.name), |it| {
            (&it.root_namespace, &it.root_name)
        });
        let topic: Arc<str> = self.config.entity_topic(namespace, name).into();
        let primary_key = info.map_or(&[][..], |it| &it.primary_key);
        Ok(Arc::new(TableShape::new(relation, topic, primary_key, &self.types)?))
    }

    async fn read_tables(&mut self) -> Result<(), SourceError> {
        let tables = publication::published_tables(&self.client, &self.publication).await?;
        // What is gone from the catalog may still be in the stream: a partition that was detached
        // or dropped since goes on under its root.
        self.tables.extend(tables.into_iter().map(|it| (it.oid, it)));
        Ok(())
    }

    async fn read_types(&mut self, relation: &Relation, again: bool) -> Result<(), SourceError> {
        let built_in = TypeKinds::new();
        let known = if again { &built_in } else { &self.types };
        let unknown: Vec<String> = relation
            .columns
            .iter()
            .filter(|it| known.get(it.type_oid).is_none())
            .map(|it| it.type_oid.to_string())
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let oids = format!("{{{}}}", unknown.join(","));
        let rows = self
            .client
            .query(TYPE_ROWS_SQL, &[&oids])
            .await
            .map_err(QueryError::while_doing("read the types of a table's columns"))?;
        let rows = rows
            .iter()
            .map(|row| {
                let columns: Vec<Option<&str>> = (0..row.len()).map(|nth| row.get(nth)).collect();
                TypeRow::from_columns(&columns)
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.types.add_rows(&rows)?;
        Ok(())
    }
}

/// Whether the catalog's table has the columns that the stream describes.
fn describes(info: &TableInfo, relation: &Relation) -> bool {
    let columns = relation.columns.iter();
    info.namespace == relation.namespace
        && info.name == relation.name
        && columns.clone().all(|it| {
            info.columns.iter().any(|(name, oid)| *name == it.name && *oid == it.type_oid)
        })
}
