//! Changes in, records out.

mod formats;

use std::sync::Arc;

use super::row::Row;
use super::source::{SourceContext, SourceParts, TransactionContext, write_tail};
use super::{
    EnvelopeError, NEW_KEY_HEADER, OLD_KEY_HEADER, TRUNCATE_KEY, TableShape, UNSEEN_HEADER, message,
};
use crate::change::{Change, LogicalMessage, OldRow, Tuple};
use crate::lsn::Lsn;

/// A buffer that grew beyond this for one large row gives its memory back: the whole daemon is to
/// stay below 60 MB.
const BUFFER_KEPT_BYTES: usize = 1 << 20;

/// When and where a change was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeAt {
    /// LSN of the change itself (XLogData's start): Debezium's `source.lsn`, for consumers that
    /// order or show by it. Never to be confirmed.
    pub lsn: Lsn,
    /// Microseconds since the Unix epoch: the time of processing.
    pub now_us: i64,
}

/// One record to publish. The transaction's headers belong to it as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutRecord<'a> {
    pub topic: &'a str,
    pub key: Option<&'a [u8]>,
    /// None: a tombstone.
    pub value: Option<&'a [u8]>,
    /// A header of this record alone.
    pub header: Option<(&'static str, &'a [u8])>,
}

/// The records of one change, in the order in which they are to be published.
pub type Records<'a> = std::iter::Flatten<std::array::IntoIter<Option<OutRecord<'a>>, 3>>;

/// Writes envelopes into buffers of its own.
#[derive(Debug)]
pub struct EnvelopeWriter {
    /// Of the transaction that [`EnvelopeWriter::begin`] named last.
    source: SourceParts,
    /// Of messages outside of transactions.
    outside: SourceParts,
    begun: bool,
    key: Vec<u8>,
    old_key: Vec<u8>,
    value: Vec<u8>,
    /// The `d` of a row whose key changed.
    delete_value: Vec<u8>,
}

/// Which records the filled buffers are.
enum Outcome {
    Row,
    /// A row of which the images do not show all that changed.
    Unseen,
    Delete,
    /// The key changed: a delete in `old_key` and `delete_value`, a row in `key` and `value`.
    Move,
    Truncate,
}

impl EnvelopeWriter {
    pub fn new(context: &SourceContext) -> Self {
        Self {
            source: SourceParts::new(context),
            outside: SourceParts::new(context),
            begun: false,
            key: Vec::new(),
            old_key: Vec::new(),
            value: Vec::new(),
            delete_value: Vec::new(),
        }
    }

    /// To be called before the changes of each transaction.
    pub fn begin(&mut self, transaction: &TransactionContext) {
        self.source.begin(Some(transaction), "false", 0);
        self.begun = true;
    }

    /// To be called before the rows of a copy beside the stream, with what is said of the read
    /// instead of a transaction.
    pub fn begin_copy(&mut self, read: &TransactionContext) {
        self.source.begin(Some(read), "incremental", 0);
        self.begun = true;
    }

    /// The records of a change of `shape`'s table. A TRUNCATE of several tables is to be given
    /// once with the shape of each. The records borrow the writer's buffers until its next call.
    ///
    /// # Panics
    /// Before the first [`EnvelopeWriter::begin`].
    pub fn write<'a>(
        &'a mut self,
        shape: &'a TableShape,
        change: &Change,
        at: ChangeAt,
    ) -> Result<Records<'a>, EnvelopeError> {
        let outcome = self.fill(shape, change, at)?;
        Ok(self.records(shape, &outcome))
    }

    /// The record of a row that a copy read: op `r`.
    ///
    /// # Panics
    /// Before the first [`EnvelopeWriter::begin_copy`].
    pub fn write_read<'a>(
        &'a mut self,
        shape: &'a TableShape,
        row: &Tuple,
        at: ChangeAt,
    ) -> Result<Records<'a>, EnvelopeError> {
        let outcome = self.fill_read(shape, row, at)?;
        Ok(self.records(shape, &outcome))
    }

    /// The record of a logical message, which is not of any table: op `m`.
    ///
    /// # Panics
    /// If it is transactional, before the first [`EnvelopeWriter::begin`].
    pub fn write_message<'a>(
        &'a mut self,
        topic: &'a str,
        it: &LogicalMessage,
        at: ChangeAt,
    ) -> OutRecord<'a> {
        const NO_TABLE: &[u8] = br#""schema":"","table":"""#;
        if !it.transactional {
            self.outside.begin(None, "false", at.now_us);
        }
        assert!(self.begun || !it.transactional, "begin() comes before transactional messages");
        self.clear_buffers();
        message::write_key(&it.prefix, &mut self.key);
        let source = if it.transactional { &self.source } else { &self.outside };
        self.value.extend_from_slice(br#"{"before":null,"after":null"#);
        source.write(at.lsn, NO_TABLE, &mut self.value);
        write_tail(b'm', at.now_us, &mut self.value);
        message::write(&it.prefix, &it.content, &mut self.value);
        self.value.push(b'}');
        OutRecord { topic, key: Some(&self.key), value: Some(&self.value), header: None }
    }

    /// Writes a change into the buffers.
    fn fill(
        &mut self,
        shape: &TableShape,
        change: &Change,
        at: ChangeAt,
    ) -> Result<Outcome, EnvelopeError> {
        check_shape(shape, change)?;
        self.clear();
        Ok(match change {
            Change::Insert { new, .. } => self.row(Row::new(shape, new), b'c', at)?,
            Change::Update { old, new, .. } => {
                let new = Row { old: old.as_ref(), ..Row::new(shape, new) };
                self.update(new, at)?
            }
            Change::Delete { old, .. } => {
                let old = Row::old(shape, old);
                old.write_key(&mut self.key)?;
                write_envelope(&self.source, (b'd', at), (Some(old), None), &mut self.value)?;
                Outcome::Delete
            }
            Change::Truncate { .. } => {
                self.value.extend_from_slice(br#"{"before":null,"after":null"#);
                self.source.write(at.lsn, &shape.source, &mut self.value);
                write_tail(b't', at.now_us, &mut self.value);
                self.value.push(b'}');
                Outcome::Truncate
            }
        })
    }

    fn fill_read(
        &mut self,
        shape: &TableShape,
        row: &Tuple,
        at: ChangeAt,
    ) -> Result<Outcome, EnvelopeError> {
        if row.len() != shape.kinds.len() {
            return Err(EnvelopeError::StaleShape { id: shape.relation.id });
        }
        self.clear();
        self.row(Row::new(shape, row), b'r', at)
    }

    fn row(&mut self, row: Row<'_>, op: u8, at: ChangeAt) -> Result<Outcome, EnvelopeError> {
        row.write_key(&mut self.key)?;
        write_envelope(&self.source, (op, at), (None, Some(row)), &mut self.value)?;
        Ok(Outcome::Row)
    }

    fn update(&mut self, new: Row<'_>, at: ChangeAt) -> Result<Outcome, EnvelopeError> {
        new.write_key(&mut self.key)?;
        let old = new.old.map(|it| Row::old(new.shape, it));
        if let Some(old) = old {
            old.write_key(&mut self.old_key)?;
            if self.old_key != self.key {
                let deleted = (Some(old), None);
                write_envelope(&self.source, (b'd', at), deleted, &mut self.delete_value)?;
                write_envelope(&self.source, (b'c', at), (None, Some(new)), &mut self.value)?;
                return Ok(Outcome::Move);
            }
        }
        write_envelope(&self.source, (b'u', at), (old, Some(new)), &mut self.value)?;
        match old {
            Some(old) if new.differs_unseen(old)? => Ok(Outcome::Unseen),
            Some(_) | None => Ok(Outcome::Row),
        }
    }

    fn records<'a>(&'a self, shape: &'a TableShape, outcome: &Outcome) -> Records<'a> {
        let keyed = !shape.key_columns.is_empty();
        let record = |key: &'a [u8], value: Option<&'a Vec<u8>>, header| OutRecord {
            topic: &shape.topic,
            key: keyed.then_some(key),
            value: value.map(Vec::as_slice),
            header,
        };
        let Self { key, old_key, value, delete_value, .. } = self;
        let all = match outcome {
            Outcome::Row => [Some(record(key, Some(value), None)), None, None],
            Outcome::Unseen => {
                let said = Some((UNSEEN_HEADER, &b"true"[..]));
                [Some(record(key, Some(value), said)), None, None]
            }
            Outcome::Delete => {
                let tombstone = keyed.then(|| record(key, None, None));
                [Some(record(key, Some(value), None)), tombstone, None]
            }
            // Keys that differ are keys.
            Outcome::Move => {
                let gone = Some((NEW_KEY_HEADER, key.as_slice()));
                [
                    Some(record(old_key, Some(delete_value), gone)),
                    Some(record(old_key, None, gone)),
                    Some(record(key, Some(value), Some((OLD_KEY_HEADER, old_key.as_slice())))),
                ]
            }
            Outcome::Truncate => [Some(record(TRUNCATE_KEY, Some(value), None)), None, None],
        };
        all.into_iter().flatten()
    }

    fn clear(&mut self) {
        assert!(self.begun, "begin() comes before a transaction's changes");
        self.clear_buffers();
    }

    fn clear_buffers(&mut self) {
        let Self { key, old_key, value, delete_value, .. } = self;
        for buffer in [key, old_key, value, delete_value] {
            buffer.clear();
            if buffer.capacity() > BUFFER_KEPT_BYTES {
                buffer.shrink_to(BUFFER_KEPT_BYTES);
            }
        }
    }
}

/// `{"before":…,"after":…,"source":{…},"transaction":null,"op":"…",…}`
fn write_envelope(
    source: &SourceParts,
    (op, at): (u8, ChangeAt),
    (before, after): (Option<Row<'_>>, Option<Row<'_>>),
    out: &mut Vec<u8>,
) -> Result<(), EnvelopeError> {
    let shape = before.or(after).map(|it| it.shape);
    for (name, row) in [(&br#"{"before":"#[..], before), (br#","after":"#, after)] {
        out.extend_from_slice(name);
        match row {
            Some(row) => row.write(out)?,
            None => out.extend_from_slice(b"null"),
        }
    }
    source.write(at.lsn, shape.map_or(b"", |it| &it.source), out);
    write_tail(op, at.now_us, out);
    out.push(b'}');
    Ok(())
}

/// A row is written with the kinds of its own relation only.
fn check_shape(shape: &TableShape, change: &Change) -> Result<(), EnvelopeError> {
    let same = |it: &Arc<crate::relation::Relation>| {
        Arc::ptr_eq(it, &shape.relation) || **it == *shape.relation
    };
    let count = shape.kinds.len();
    let whole = |row: &Tuple| row.len() == count;
    let whole_old = |old: &OldRow| match old {
        OldRow::Identity(row) | OldRow::Full(row) => whole(row),
    };
    let fits = match change {
        Change::Insert { relation, new } => same(relation) && whole(new),
        Change::Update { relation, old, new } => {
            same(relation) && whole(new) && old.as_ref().is_none_or(whole_old)
        }
        Change::Delete { relation, old } => same(relation) && whole_old(old),
        Change::Truncate { relations, .. } => relations.iter().any(same),
    };
    if fits { Ok(()) } else { Err(EnvelopeError::StaleShape { id: shape.relation.id }) }
}
