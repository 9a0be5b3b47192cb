//! pgoutput's messages, protocol version 1: the bytes inside an XLogData, decoded.
//!
//! Version 1 is asked for because it sends a transaction once it has committed, whole and in
//! commit order: no aborted or half-sent transaction ever reaches us. The messages of later
//! versions (stream, prepare) are therefore unknown here, and an error.
//!
//! A row's values are not copied: a [`Tuple`] shares the message's buffer and has only the places
//! of the values in it. Nothing here looks at a value's text, or knows which relation it is of;
//! that is for [`super::assemble`].
//!
//! Invariant: a message is decoded from exactly its own bytes, or refused.

use bytes::Bytes;

use super::decode::{DecodeError, Reader};
use crate::change::{Begin, Commit, LogicalMessage, OldRow, Span, Tuple};
use crate::lsn::Lsn;
use crate::relation::{Column, Relation, RelationId, ReplicaIdentity};

#[cfg(test)]
pub(crate) mod tests;

/// One message of pgoutput.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Begin(Begin),
    Commit(Commit),
    /// The transaction came to the server by replication from elsewhere.
    Origin {
        /// LSN of the commit *on the origin*: not a place in our WAL.
        lsn: Lsn,
        name: String,
    },
    Relation(Relation),
    /// A type that is not built in, before the relation that uses it.
    Type {
        oid: u32,
        namespace: String,
        name: String,
    },
    Insert {
        relation: RelationId,
        new: Tuple,
    },
    Update {
        relation: RelationId,
        old: Option<OldRow>,
        new: Tuple,
    },
    Delete {
        relation: RelationId,
        old: OldRow,
    },
    Truncate {
        relations: Vec<RelationId>,
        cascade: bool,
        restart_identity: bool,
    },
    /// `pg_logical_emit_message`.
    Message(LogicalMessage),
}

/// Decodes one message of the manual's section "Logical Replication Message Formats".
pub fn decode(body: Bytes) -> Result<Message, DecodeError> {
    let mut reader = Reader::new(body);
    let letter = reader.u8("the message's type")?;
    let (message, what) = match letter {
        b'B' => (begin(&mut reader)?, "Begin"),
        b'C' => (commit(&mut reader)?, "Commit"),
        b'D' => (delete(&mut reader)?, "Delete"),
        b'I' => (insert(&mut reader)?, "Insert"),
        b'M' => (logical_message(&mut reader)?, "Message"),
        b'O' => (origin(&mut reader)?, "Origin"),
        b'R' => (relation(&mut reader)?, "Relation"),
        b'T' => (truncate(&mut reader)?, "Truncate"),
        b'U' => (update(&mut reader)?, "Update"),
        b'Y' => (type_name(&mut reader)?, "Type"),
        letter => return Err(DecodeError::UnknownType { what: "pgoutput message", letter }),
    };
    reader.finish(what)?;
    Ok(message)
}

/// "Logical Replication Message Formats", Begin.
fn begin(reader: &mut Reader) -> Result<Message, DecodeError> {
    Ok(Message::Begin(Begin {
        final_lsn: reader.lsn("Begin's final LSN")?,
        commit_time_us: reader.i64("Begin's commit time")?,
        xid: reader.u32("Begin's transaction id")?,
    }))
}

/// "Logical Replication Message Formats", Commit. Its flags are unused so far.
fn commit(reader: &mut Reader) -> Result<Message, DecodeError> {
    reader.u8("Commit's flags")?;
    Ok(Message::Commit(Commit {
        commit_lsn: reader.lsn("Commit's LSN")?,
        end_lsn: reader.lsn("Commit's end LSN")?,
        commit_time_us: reader.i64("Commit's time")?,
    }))
}

/// "Logical Replication Message Formats", Origin.
fn origin(reader: &mut Reader) -> Result<Message, DecodeError> {
    Ok(Message::Origin { lsn: reader.lsn("Origin's LSN")?, name: reader.string("Origin's name")? })
}

/// "Logical Replication Message Formats", Type.
fn type_name(reader: &mut Reader) -> Result<Message, DecodeError> {
    Ok(Message::Type {
        oid: reader.u32("Type's OID")?,
        namespace: namespace(reader, "Type's namespace")?,
        name: reader.string("Type's name")?,
    })
}

/// "Logical Replication Message Formats", Message. Its transaction id is there only when
/// transactions are streamed, which version 1 does not do.
fn logical_message(reader: &mut Reader) -> Result<Message, DecodeError> {
    let transactional = reader.u8("Message's flags")? & 1 != 0;
    let lsn = reader.lsn("Message's LSN")?;
    let prefix = reader.string("Message's prefix")?;
    let length = reader.count32(1, "Message's length")?;
    let content = reader.bytes(length, "Message's content")?;
    Ok(Message::Message(LogicalMessage { transactional, lsn, prefix, content }))
}

/// "Logical Replication Message Formats", Relation.
fn relation(reader: &mut Reader) -> Result<Message, DecodeError> {
    let id = RelationId(reader.u32("Relation's OID")?);
    let namespace = namespace(reader, "Relation's namespace")?;
    let name = reader.string("Relation's name")?;
    let letter = reader.u8("Relation's replica identity")?;
    let replica_identity = ReplicaIdentity::from_letter(letter)
        .ok_or(DecodeError::UnknownType { what: "replica identity", letter })?;
    // A column is at least its flags, an empty name, an OID and a modifier.
    let count = reader.count16(10, "Relation's count of columns")?;
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        columns.push(Column {
            in_identity: reader.u8("a column's flags")? & 1 != 0,
            name: reader.string("a column's name")?,
            type_oid: reader.u32("a column's type")?,
            type_modifier: reader.i32("a column's type modifier")?,
        });
    }
    Ok(Message::Relation(Relation { id, namespace, name, replica_identity, columns }))
}

/// "Logical Replication Message Formats", Insert.
fn insert(reader: &mut Reader) -> Result<Message, DecodeError> {
    let relation = RelationId(reader.u32("Insert's relation")?);
    match reader.u8("Insert's kind of row")? {
        b'N' => Ok(Message::Insert { relation, new: tuple(reader)? }),
        letter => Err(DecodeError::UnknownType { what: "kind of row in Insert", letter }),
    }
}

/// "Logical Replication Message Formats", Update.
fn update(reader: &mut Reader) -> Result<Message, DecodeError> {
    let relation = RelationId(reader.u32("Update's relation")?);
    let mut letter = reader.u8("Update's kind of row")?;
    let old = match letter {
        b'K' => Some(OldRow::Identity(tuple(reader)?)),
        b'O' => Some(OldRow::Full(tuple(reader)?)),
        _ => None,
    };
    if old.is_some() {
        letter = reader.u8("Update's kind of row")?;
    }
    match letter {
        b'N' => Ok(Message::Update { relation, old, new: tuple(reader)? }),
        letter => Err(DecodeError::UnknownType { what: "kind of row in Update", letter }),
    }
}

/// "Logical Replication Message Formats", Delete.
fn delete(reader: &mut Reader) -> Result<Message, DecodeError> {
    let relation = RelationId(reader.u32("Delete's relation")?);
    let old = match reader.u8("Delete's kind of row")? {
        b'K' => OldRow::Identity(tuple(reader)?),
        b'O' => OldRow::Full(tuple(reader)?),
        letter => {
            return Err(DecodeError::UnknownType { what: "kind of row in Delete", letter });
        }
    };
    Ok(Message::Delete { relation, old })
}

/// "Logical Replication Message Formats", Truncate.
fn truncate(reader: &mut Reader) -> Result<Message, DecodeError> {
    let count = reader.i32("Truncate's count of relations")?;
    let options = reader.u8("Truncate's options")?;
    let what = "Truncate's count of relations";
    let count = usize::try_from(count)
        .map_err(|_| DecodeError::InvalidCount { what, count: i64::from(count) })?;
    let (needed, left) = (count.saturating_mul(4), reader.left());
    if needed > left {
        return Err(DecodeError::Truncated { what, needed, left });
    }
    let mut relations = Vec::with_capacity(count);
    for _ in 0..count {
        relations.push(RelationId(reader.u32("Truncate's relation")?));
    }
    Ok(Message::Truncate {
        relations,
        cascade: options & 1 != 0,
        restart_identity: options & 2 != 0,
    })
}

/// "Logical Replication Message Formats", TupleData.
fn tuple(reader: &mut Reader) -> Result<Tuple, DecodeError> {
    // A value is at least its kind.
    let count = reader.count16(1, "a row's count of columns")?;
    let mut spans = Vec::with_capacity(count);
    for _ in 0..count {
        spans.push(match reader.u8("a value's kind")? {
            b'n' => Span::Null,
            b'u' => Span::UnchangedToast,
            b't' => {
                let length = reader.count32(1, "a value's length")?;
                let start = reader.skip(length, "a value")?;
                Span::Text(place(start)?..place(start + length)?)
            }
            b'b' => return Err(DecodeError::BinaryValue),
            letter => return Err(DecodeError::UnknownType { what: "kind of value", letter }),
        });
    }
    Ok(Tuple { data: reader.data().clone(), spans })
}

/// A place in a message. Postgres cannot send one of 4 GiB, the protocol's lengths being signed.
fn place(at: usize) -> Result<u32, DecodeError> {
    let count = i64::try_from(at).unwrap_or(i64::MAX);
    u32::try_from(at).map_err(|_| DecodeError::InvalidCount { what: "a value's place", count })
}

/// pgoutput writes an empty name for `pg_catalog`.
fn namespace(reader: &mut Reader, what: &'static str) -> Result<String, DecodeError> {
    let name = reader.string(what)?;
    Ok(if name.is_empty() { "pg_catalog".to_owned() } else { name })
}
