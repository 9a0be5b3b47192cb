//! How the tables of a session are written: keys and types from the catalog, by plain SQL.
//!
//! The stream's Relation message has columns and types, but under REPLICA IDENTITY FULL not the
//! primary key, and never what an enum or a composite type is made of. The catalog is as of now
//! and the stream is behind it, so what the two agree on is used: `TableShape` looks columns up by
//! name. Whatever was renamed, altered or dropped since is still written: a table that is gone by
//! its identity, a type that is gone as text.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::SourceError;
use crate::config::KafkaConfig;
use crate::kafka::envelope::TableShape;
use crate::postgres::client::Client;
use crate::postgres::publication::{self, DROPPED_TYPE, TableInfo};
use crate::postgres::query_error::QueryError;
use crate::postgres::text::{Kind, TYPE_ROWS_SQL, TypeKinds, TypeRow};
use crate::relation::{Relation, RelationId, ReplicaIdentity};

/// What a session has asked the catalog so far.
pub struct Shapes {
    client: Client,
    config: KafkaConfig,
    tables: HashMap<RelationId, TableInfo>,
    /// Relations that the stream has described: again means that they have changed.
    described: HashSet<RelationId>,
    types: TypeKinds,
    /// Tables with composite types, which may be altered at any time.
    composites: HashMap<RelationId, Arc<TableShape>>,
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
        let tables = publication::published_tables(&client, publication).await?;
        Ok(Self {
            client,
            config: config.clone(),
            tables: tables.into_iter().map(|it| (it.oid, it)).collect(),
            described: HashSet::new(),
            types: TypeKinds::new(),
            composites: HashMap::new(),
        })
    }

    /// The topics of the tables that are published now, of those with a primary key: what another
    /// table's key is, the stream says with its first change.
    pub fn topics(&self) -> BTreeSet<String> {
        let keyed = self.tables.values().filter(|it| !it.primary_key.is_empty());
        keyed.map(|it| self.config.entity_topic(&it.root_namespace, &it.root_name)).collect()
    }

    /// How the changes of a relation that the stream has just described are written. `xid` is the
    /// transaction that they are of; None for what is described from the catalog as it is now.
    ///
    /// # Errors
    /// If the catalog can't be read.
    pub async fn shape(
        &mut self,
        relation: Arc<Relation>,
        xid: Option<u64>,
    ) -> Result<Arc<TableShape>, SourceError> {
        let again = !self.described.insert(relation.id);
        let known = self.tables.get(&relation.id);
        if again || !known.is_some_and(|it| describes(it, &relation)) {
            self.read_table(relation.id).await?;
        }
        self.read_types(&relation, again, xid).await?;
        self.make(relation)
    }

    /// The server's process that has the slot now.
    pub(super) async fn holder_of(&self, slot: &str) -> Result<Option<i32>, SourceError> {
        let sql = "SELECT active_pid FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
        let row = self.client.query_opt(sql, &[&slot]).await;
        let row = row.map_err(QueryError::while_doing("look whose the slot is"))?;
        Ok(row.and_then(|it| it.get(0)))
    }

    /// Whether any table asks for [`Shapes::altered`].
    pub(super) fn any_may_be_altered(&self) -> bool {
        !self.composites.is_empty()
    }

    /// The new shape of a table whose composite types were altered since it was described, of
    /// which the stream says nothing. None: all is as it was, as it always is without such types.
    pub(super) async fn altered(
        &mut self,
        id: RelationId,
        xid: Option<u64>,
    ) -> Result<Option<Arc<TableShape>>, SourceError> {
        let Some(shape) = self.composites.get(&id).map(Arc::clone) else { return Ok(None) };
        self.read_types(&shape.relation, true, xid).await?;
        let mut columns = shape.relation.columns.iter().zip(&shape.kinds);
        if columns.all(|(column, kind)| self.types.get(column.type_oid).as_ref() == Some(kind)) {
            Ok(None)
        } else {
            self.make(Arc::clone(&shape.relation)).map(Some)
        }
    }

    fn make(&mut self, relation: Arc<Relation>) -> Result<Arc<TableShape>, SourceError> {
        let id = relation.id;
        let info = self.tables.get(&id);
        // A partition's changes go to its root. Any other table has the name that the stream
        // gives it, which is that of the time of the change.
        let (namespace, name) = match info.filter(|it| it.root_oid != it.oid) {
            Some(leaf) => (&leaf.root_namespace, &leaf.root_name),
            None => (&relation.namespace, &relation.name),
        };
        let topic: Arc<str> = self.config.entity_topic(namespace, name).into();
        let primary_key = match info {
            Some(info) => primary_key(info, &relation),
            None => key_of_a_table_that_is_gone(&relation),
        };
        let shape = Arc::new(TableShape::new(relation, topic, &primary_key, &self.types)?);
        if shape.kinds.iter().any(Kind::has_composite) {
            self.composites.insert(id, Arc::clone(&shape));
        } else {
            self.composites.remove(&id);
        }
        Ok(shape)
    }

    /// Reads a table anew, whether it is published still or not. It alone: a migration may alter
    /// thousands of them, one by one.
    async fn read_table(&mut self, id: RelationId) -> Result<(), SourceError> {
        // What is gone from the catalog may still be in the stream: a partition that was detached
        // or dropped since goes on under its root.
        if let Some(table) = publication::table(&self.client, id).await? {
            self.tables.insert(id, table);
        }
        Ok(())
    }

    async fn read_types(
        &mut self,
        relation: &Relation,
        again: bool,
        xid: Option<u64>,
    ) -> Result<(), SourceError> {
        let built_in = TypeKinds::new();
        let known = if again { &built_in } else { &self.types };
        let unknown: Vec<u32> = relation
            .columns
            .iter()
            .map(|it| it.type_oid)
            .filter(|&it| known.get(it).is_none())
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        self.ask_for_types(&unknown).await?;
        if unknown.iter().all(|&it| self.types.get(it).is_some()) {
            return Ok(());
        }
        let Some(xid) = xid else { return Ok(()) };
        // A type that the catalog does not have was dropped since, or is not visible yet, as a
        // commit is in the stream before it is seen (rule 2). Once the transaction of its values
        // is seen, so is the type, unless it is gone.
        let visible = "SELECT pg_catalog.pg_visible_in_snapshot($1::text::pg_catalog.xid8, \
                       pg_catalog.pg_current_snapshot())";
        let doing = "look whether a transaction is visible";
        let row = self.client.query_one(visible, &[&xid.to_string()]).await;
        if !row.map_err(QueryError::while_doing(doing))?.get::<_, bool>(0) {
            return Ok(()); // The shape can't be made, and the session starts anew.
        }
        self.ask_for_types(&unknown).await?;
        let gone = unknown.into_iter().filter(|&it| self.types.get(it).is_none());
        for oid in gone.collect::<Vec<_>>() {
            let table = relation.qualified_name();
            tracing::warn!(
                table,
                oid,
                "the type of a column was dropped since: its values are written as strings"
            );
            self.types.insert(oid, Kind::Text);
        }
        Ok(())
    }

    async fn ask_for_types(&mut self, oids: &[u32]) -> Result<(), SourceError> {
        let oids: Vec<String> = oids.iter().map(u32::to_string).collect();
        let rows = self
            .client
            .query(TYPE_ROWS_SQL, &[&format!("{{{}}}", oids.join(","))])
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

/// The primary key's columns under the names that the stream has for them: the catalog's, unless
/// they were renamed since. A table whose key can't be found in an old row is named as a whole.
fn primary_key(info: &TableInfo, relation: &Relation) -> Vec<String> {
    let names = info.primary_key.iter().map(|it| name_in_the_stream(info, relation, it));
    names.collect::<Option<_>>().unwrap_or_else(|| whole_row(relation))
}

/// The stream has the columns of the time of the change in the order of the catalog, which still
/// has a place for those that were dropped since: so a column is at its place there, less as many
/// as were dropped before it at most.
fn name_in_the_stream(info: &TableInfo, relation: &Relation, name: &str) -> Option<String> {
    let columns = &relation.columns;
    if columns.iter().any(|it| it.name == name) {
        return Some(name.to_owned());
    }
    let place = info.columns.iter().position(|it| it.0 == name)?;
    let dropped = info.columns[..place].iter().filter(|it| it.1 == DROPPED_TYPE).count();
    let is_another = |name: &str| info.columns.iter().any(|it| it.0 == name);
    let mut candidates = columns.iter().take(place + 1).skip(place - dropped);
    let renamed =
        candidates.find(|it| it.type_oid == info.columns[place].1 && !is_another(&it.name));
    renamed.map(|it| it.name.clone())
}

/// What to call the rows of a table that was dropped since: the stream does not say which columns
/// were its primary key.
fn key_of_a_table_that_is_gone(relation: &Relation) -> Vec<String> {
    let table = relation.qualified_name();
    tracing::warn!(table, "a table that has changed was dropped since: its key is a guess");
    whole_row(relation)
}

/// Under FULL all columns, as a compacted topic takes no record without a key, and nothing is to
/// be lost. Else none: the columns of the identity are the key then.
fn whole_row(relation: &Relation) -> Vec<String> {
    match relation.replica_identity {
        ReplicaIdentity::Full => relation.columns.iter().map(|it| it.name.clone()).collect(),
        ReplicaIdentity::Default | ReplicaIdentity::Index | ReplicaIdentity::Nothing => Vec::new(),
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
