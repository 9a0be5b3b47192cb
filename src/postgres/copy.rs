//! Chunks of a table, read for a copy beside the stream: by key where the table has one, else by
//! place (`ctid`, B10).
//!
//! Every chunk is a short transaction of its own, so that a copy of days holds back neither vacuum
//! nor DDL. It says which snapshot read it, and that is all that it says of its age: what may be
//! done with its rows is decided where they meet the stream (`kafka::overlap`).
//!
//! A connection is used again only if every reply to its last chunk arrived.

mod describe;
mod sql;

use std::pin::pin;
use std::sync::Arc;

use futures_util::TryStreamExt as _;
use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

pub use describe::describe;

use crate::change::{Datum, Tuple};
use crate::kafka::copy_record::After;
use crate::postgres::client::Client;
use crate::postgres::query_error::QueryError;
use crate::relation::Relation;
use crate::snapshot::{ParseSnapshotError, Snapshot};

/// An ordinary table, or a leaf of a partitioned one, as a copy reads it.
#[derive(Debug, Clone)]
pub struct CopyTable {
    /// As the stream would describe it.
    pub relation: Arc<Relation>,
    /// In the key's order; empty: there is none.
    pub key: Vec<KeyColumn>,
    fingerprint: String,
}

/// A column of the key that chunks go by.
#[derive(Debug, Clone)]
pub struct KeyColumn {
    name: String,
    type_name: String,
    /// The index's, where it is not sure to be the column's.
    collation: Option<String>,
    /// The namespace of the type's own comparisons: an extension's type has them where it is
    /// installed.
    operators: String,
}

impl KeyColumn {
    fn expression(&self) -> String {
        let name = sql::identifier(&self.name);
        match &self.collation {
            Some(collation) => format!("{name} COLLATE {collation}"),
            None => name,
        }
    }
}

impl CopyTable {
    fn quoted_name(&self) -> String {
        let (namespace, name) = (&self.relation.namespace, &self.relation.name);
        format!("{}.{}", sql::identifier(namespace), sql::identifier(name))
    }

    /// Whether a position was written for this table's key.
    fn fits(&self, after: &After) -> bool {
        match after {
            After::Key { columns, .. } => self.key.iter().map(|it| &it.name).eq(columns),
            After::Place { .. } => self.key.is_empty(),
        }
    }
}

/// Which chunk is to be read.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// None: from the beginning.
    pub after: Option<&'a After>,
    pub condition: Option<&'a str>,
    /// Most rows of a table with a key.
    pub rows: u32,
    /// A chunk ends early, after the row that exceeds this.
    pub bytes_max: usize,
}

/// Rows of a table, from one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkRead {
    pub snapshot: Snapshot,
    pub rows: Vec<Tuple>,
    pub bytes: usize,
    /// Where the next one begins; None: the table is at its end.
    pub next: Option<After>,
}

/// What came of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunked {
    Rows(ChunkRead),
    /// The table is not what was described.
    Redefined,
    /// The position is not one of this table any more: the table is to be begun anew.
    Moved,
}

/// Why a chunk can't be read. Every one of them is tried again.
#[derive(Debug, thiserror::Error)]
pub enum CopyReadError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Snapshot(#[from] ParseSnapshotError),
    #[error("the server is a standby; point [postgres] url to the primary")]
    InRecovery,
    #[error("Postgres answers a chunk's query with what we do not understand: {0}")]
    Malformed(&'static str),
}

/// What the transaction says before the rows.
struct State {
    snapshot: Snapshot,
    file: u32,
    pages: u32,
}

/// Reads one chunk. False: the connection must not be used again.
///
/// # Errors
/// See [`CopyReadError`]; then the connection must not be used again either.
pub async fn read_chunk(
    client: &Client,
    table: &CopyTable,
    wanted: &Wanted<'_>,
) -> Result<(Chunked, bool), CopyReadError> {
    if wanted.after.is_some_and(|it| !table.fits(it)) {
        return Ok((Chunked::Moved, true));
    }
    let text = sql::transaction(table, wanted);
    let failed = QueryError::while_doing("read a chunk of a table");
    let mut replies = pin!(client.simple_query_raw(&text).await.map_err(&failed)?);
    let (mut nth, mut state) = (0, None);
    let mut taken = Taken::default();
    while let Some(reply) = replies.try_next().await.map_err(&failed)? {
        let row = match reply {
            SimpleQueryMessage::RowDescription(_) => {
                nth += 1;
                continue;
            }
            SimpleQueryMessage::Row(row) => row,
            _ => continue,
        };
        match (nth, wanted.condition.is_some() && !table.key.is_empty()) {
            (1, _) => match begun(table, &row)? {
                Some(begun) => state = Some(begun),
                None => return Ok((Chunked::Redefined, false)),
            },
            (2, true) => taken.range = Some(range_of(table, &row)?),
            _ => {
                taken.row(table, &row);
                if wanted.bytes_max < taken.bytes {
                    taken.cut = true;
                    break;
                }
            }
        }
    }
    let state = state.ok_or(CopyReadError::Malformed("no state"))?;
    if let Some(After::Place { file, .. }) = wanted.after
        && *file != state.file
    {
        return Ok((Chunked::Moved, !taken.cut));
    }
    let usable = !taken.cut;
    Ok((Chunked::Rows(taken.finish(table, wanted, state)?), usable))
}

/// None: the table is not what was described.
fn begun(table: &CopyTable, row: &SimpleQueryRow) -> Result<Option<State>, CopyReadError> {
    let text = |nth| row.get(nth).unwrap_or_default();
    if text(1) != "false" {
        return Err(CopyReadError::InRecovery);
    }
    if text(2) != table.relation.id.to_string() || text(3) != table.fingerprint {
        return Ok(None);
    }
    let number = |nth| text(nth).parse().map_err(|_| CopyReadError::Malformed("file or pages"));
    Ok(Some(State { snapshot: text(0).parse()?, file: number(4)?, pages: number(5)? }))
}

/// How many rows the range of a chunk with a condition has, and the key of the last.
fn range_of(table: &CopyTable, row: &SimpleQueryRow) -> Result<(u32, Vec<String>), CopyReadError> {
    let malformed = CopyReadError::Malformed("a range");
    let Some(count) = row.get(0).and_then(|it| it.parse().ok()) else { return Err(malformed) };
    let values = (1..=table.key.len()).map(|nth| row.get(nth).map(str::to_owned));
    Ok((count, values.collect::<Option<_>>().ok_or(malformed)?))
}

/// Rows as they arrive.
#[derive(Default)]
struct Taken {
    rows: Vec<Tuple>,
    bytes: usize,
    cut: bool,
    range: Option<(u32, Vec<String>)>,
    /// Of the last row of a table without a key.
    place: Option<String>,
}

impl Taken {
    fn row(&mut self, table: &CopyTable, row: &SimpleQueryRow) {
        let columns = table.relation.columns.len();
        let datum = |nth| row.get(nth).map_or(Datum::Null, |it| Datum::Text(it.as_bytes()));
        let tuple = Tuple::from_datums((0..columns).map(datum));
        self.bytes += tuple.data.len() + tuple.spans.len();
        self.rows.push(tuple);
        if table.key.is_empty() {
            self.place = row.get(columns).map(str::to_owned);
        }
    }

    fn finish(
        self,
        table: &CopyTable,
        wanted: &Wanted<'_>,
        state: State,
    ) -> Result<ChunkRead, CopyReadError> {
        let next = match (table.key.is_empty(), self.cut) {
            (true, true) => Some(place(self.place.as_deref(), state.file)?),
            (true, false) => {
                let page = sql::place_of(wanted).0.saturating_add(sql::PAGES);
                let more = page < state.pages;
                more.then_some(After::Place { file: state.file, page, tuple: 0 })
            }
            (false, true) => Some(last_key(table, &self.rows)?),
            (false, false) if wanted.condition.is_some() => {
                let full = self.range.filter(|(count, _)| *count == wanted.rows);
                full.map(|(_, values)| After::Key { columns: names(table), values })
            }
            (false, false) => {
                let full = u32::try_from(self.rows.len()).is_ok_and(|it| it == wanted.rows);
                full.then(|| last_key(table, &self.rows)).transpose()?
            }
        };
        Ok(ChunkRead { snapshot: state.snapshot, rows: self.rows, bytes: self.bytes, next })
    }
}

fn names(table: &CopyTable) -> Vec<String> {
    table.key.iter().map(|it| it.name.clone()).collect()
}

fn last_key(table: &CopyTable, rows: &[Tuple]) -> Result<After, CopyReadError> {
    let value = |key: &KeyColumn| {
        let nth = table.relation.columns.iter().position(|it| it.name == key.name)?;
        match rows.last()?.get(nth)? {
            Datum::Text(text) => String::from_utf8(text.to_vec()).ok(),
            Datum::Null | Datum::UnchangedToast => None,
        }
    };
    let values: Option<Vec<String>> = table.key.iter().map(value).collect();
    let values = values.ok_or(CopyReadError::Malformed("a row without a key"))?;
    Ok(After::Key { columns: names(table), values })
}

/// `(page,tuple)`
fn place(text: Option<&str>, file: u32) -> Result<After, CopyReadError> {
    let parse = || {
        let (page, tuple) = text?.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
        Some(After::Place { file, page: page.parse().ok()?, tuple: tuple.parse().ok()? })
    };
    parse().ok_or(CopyReadError::Malformed("a ctid"))
}

/// What Postgres says of a condition; it is run by nobody here.
///
/// # Errors
/// With Postgres' own words.
pub async fn check_condition(
    client: &Client,
    (namespace, name): (&str, &str),
    condition: &str,
) -> Result<(), QueryError> {
    let quoted = format!("{}.{}", sql::identifier(namespace), sql::identifier(name));
    let text = sql::with_condition(&quoted, name, condition);
    client.prepare(&text).await.map_err(QueryError::while_doing("use this condition"))?;
    Ok(())
}
