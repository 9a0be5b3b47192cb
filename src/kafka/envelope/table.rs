//! What is known of a table before its changes come: its topic, its key, how its columns are JSON.

use std::sync::Arc;

use super::EnvelopeError;
use super::connect::{Schemas, schemas};
use super::source::push_text;
use crate::config::topics::Format;
use crate::postgres::text::{Kind, TypeKinds};
use crate::relation::{Relation, ReplicaIdentity};

/// Numbers that have one text each: int8, int2, int4, numeric. A float has two zeros.
const EXACT: [u32; 4] = [20, 21, 23, 1700];

/// A table as its records need it; of one [`Relation`], so that a changed table has a new one.
#[derive(Debug, Clone)]
pub struct TableShape {
    pub relation: Arc<Relation>,
    pub topic: Arc<str>,
    /// The key's columns, in the key's order. Empty: records have no key.
    pub key_columns: Vec<usize>,
    /// How each column is written.
    pub kinds: Vec<Kind>,
    /// The columns of which two values may be the same JSON.
    pub(super) ambiguous: Vec<usize>,
    /// A longer value that is not of the key is left out: the placeholder stands for it.
    pub value_bytes_max: usize,
    /// `"name":` for each column.
    pub(super) names: Vec<Box<[u8]>>,
    /// `"schema":"…","table":"…"`
    pub(super) source: Box<[u8]>,
    pub(super) written: Written,
}

/// How records are written.
#[derive(Debug, Clone)]
pub(super) enum Written {
    Json,
    Flat,
    WithSchema(Arc<Schemas>),
}

impl TableShape {
    /// The key is `primary_key` (column names in the key's order) if an old row has all of it: if
    /// these columns belong to the replica identity, or rows are only ever inserted. Else it is
    /// the columns of the identity's index. A table with neither has no key; that its identity is
    /// FULL does not help, since two of its rows may be equal.
    pub fn new(
        relation: Arc<Relation>,
        topic: Arc<str>,
        primary_key: &[String],
        types: &TypeKinds,
    ) -> Result<Self, EnvelopeError> {
        let kind_of = |column: &crate::relation::Column| {
            types.get(column.type_oid).ok_or_else(|| EnvelopeError::UnknownType {
                relation: relation.qualified_name(),
                column: column.name.clone(),
                oid: column.type_oid,
            })
        };
        let kinds: Vec<Kind> = relation.columns.iter().map(kind_of).collect::<Result<_, _>>()?;
        let is_ambiguous = |nth: &usize| {
            kinds[*nth].is_ambiguous() && !EXACT.contains(&relation.columns[*nth].type_oid)
        };
        let ambiguous = (0..kinds.len()).filter(is_ambiguous).collect();
        let name = |column: &crate::relation::Column| {
            let mut name = Vec::new();
            push_text(&column.name, &mut name);
            name.push(b':');
            name.into_boxed_slice()
        };
        let names = relation.columns.iter().map(name).collect();
        let mut source = br#""schema":"#.to_vec();
        push_text(&relation.namespace, &mut source);
        source.extend_from_slice(br#","table":"#);
        push_text(&relation.name, &mut source);
        let key_columns = key_columns(&relation, primary_key);
        let (source, written, value_bytes_max) = (source.into(), Written::Json, usize::MAX);
        Ok(Self {
            relation,
            topic,
            key_columns,
            kinds,
            ambiguous,
            value_bytes_max,
            names,
            source,
            written,
        })
    }
}

impl TableShape {
    /// Of some of the columns, the key's among them, for another topic.
    ///
    /// # Panics
    /// If the key is not among them.
    pub fn narrowed(&self, topic: Arc<str>, places: &[usize]) -> Self {
        let relation = Relation {
            columns: places.iter().map(|&nth| self.relation.columns[nth].clone()).collect(),
            ..(*self.relation).clone()
        };
        let place = |nth: &usize| {
            places.iter().position(|it| it == nth).expect("a record has the key's columns")
        };
        let has = |nth: &&usize| places.contains(nth);
        Self {
            relation: Arc::new(relation),
            topic,
            key_columns: self.key_columns.iter().map(place).collect(),
            kinds: places.iter().map(|&nth| self.kinds[nth].clone()).collect(),
            ambiguous: self.ambiguous.iter().filter(has).map(place).collect(),
            names: places.iter().map(|&nth| self.names[nth].clone()).collect(),
            source: self.source.clone(),
            value_bytes_max: self.value_bytes_max,
            written: self.written.clone(),
        }
    }

    /// To be written in this format.
    pub fn formatted(mut self, format: Format) -> Self {
        self.written = match format {
            Format::Json => Written::Json,
            Format::Flat => Written::Flat,
            Format::JsonWithSchema => {
                let (kinds, schemas) = schemas(&self);
                self.kinds = kinds;
                Written::WithSchema(Arc::new(schemas))
            }
        };
        self
    }

    /// Whether a tombstone is all that tells of a delete.
    pub fn is_flat(&self) -> bool {
        matches!(self.written, Written::Flat)
    }
}

fn key_columns(relation: &Relation, primary_key: &[String]) -> Vec<usize> {
    let position = |name: &String| relation.columns.iter().position(|it| it.name == *name);
    let only_inserts = relation.replica_identity == ReplicaIdentity::Nothing;
    let in_identity = |nth: usize| relation.columns[nth].in_identity || only_inserts;
    let primary: Option<Vec<usize>> =
        primary_key.iter().map(|name| position(name).filter(|&nth| in_identity(nth))).collect();
    match primary {
        Some(primary) if !primary.is_empty() => primary,
        _ => match relation.replica_identity {
            ReplicaIdentity::Default | ReplicaIdentity::Index => {
                (0..relation.columns.len()).filter(|&nth| in_identity(nth)).collect()
            }
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => Vec::new(),
        },
    }
}
