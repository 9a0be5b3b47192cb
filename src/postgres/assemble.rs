//! pgoutput's messages put together: changes that know their relation, in a checked order.
//!
//! A session's Relation messages describe the tables of the rows that follow, so an [`Assembler`]
//! lives exactly as long as a session. It holds no rows: what it is given it returns at once, so
//! that a transaction of ten million rows costs no memory. The relations it remembers are at most
//! the tables published, and cannot be forgotten, for Postgres does not send them twice.
//!
//! Why open transactions are not streamed to us (pgoutput's `streaming`, from protocol 2 on). What
//! is not committed yet may be aborted, and must not be in the log: it would have to wait somewhere
//! for its commit. In memory it has no bound. On our disk it would be what the walsender does on the
//! primary's (it spills beyond `logical_decoding_work_mem`), written and read once more, and the
//! daemon would have a state of its own. Not reading on until the commit comes is no choice either,
//! since other transactions' changes are between. It would only begin earlier to decode a transaction
//! that is still running; what follows its commit is bound by how fast we publish, not by the spill.
//! The spill itself is spared by more memory for the walsender, which is an operator's choice, by
//! `ALTER ROLE … SET logical_decoding_work_mem`: nothing that we send overrides it.
//!
//! Invariant: what it returns is Begin, changes, Commit, Begin, and so on; a Commit ends the
//! transaction of its Begin. Only messages that are not transactional may stand between.

use std::collections::HashMap;
use std::sync::Arc;

use super::pgoutput::Message;
use crate::change::{Change, Commit, OldRow, Step, Tuple};
use crate::lsn::Lsn;
use crate::relation::{Relation, RelationId};

/// Messages in an order that pgoutput does not have. Each variant is a mistake of ours or of the
/// server's, so that the session must halt: reading on could assign rows to a wrong transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    #[error("a transaction begins (commit at {next}) before the one at {open} has ended")]
    BeginInside { open: Lsn, next: Lsn },
    #[error("a {what} arrived outside of a transaction")]
    OutsideTransaction { what: &'static str },
    #[error("the commit at {commit} ending at {end} does not end the transaction of {begin}")]
    WrongCommit { begin: Lsn, commit: Lsn, end: Lsn },
    #[error("a change of relation {id} arrived before the relation's description")]
    UnknownRelation { id: RelationId },
    #[error("a row of {relation} has {found} values, but its relation {expected} columns")]
    WrongArity { relation: String, expected: usize, found: usize },
}

impl AssembleError {
    /// Whether a new session could do better. The server would send the same again.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::BeginInside { .. }
            | Self::OutsideTransaction { .. }
            | Self::WrongCommit { .. }
            | Self::UnknownRelation { .. }
            | Self::WrongArity { .. } => false,
        }
    }
}

/// Turns a session's messages into steps, one at a time.
#[derive(Debug, Default)]
pub struct Assembler {
    relations: HashMap<RelationId, Arc<Relation>>,
    /// The final LSN of the transaction that we are in.
    open: Option<Lsn>,
}

impl Assembler {
    pub fn new() -> Self {
        Self::default()
    }

    /// The latest description of a relation in this session.
    pub fn relation(&self, id: RelationId) -> Option<&Arc<Relation>> {
        self.relations.get(&id)
    }

    /// Takes the next message. None: it only told us something (Relation, Type, Origin).
    ///
    /// After an error the assembler must not be used again.
    pub fn push(&mut self, message: Message) -> Result<Option<Step>, AssembleError> {
        let change = match message {
            Message::Begin(begin) => {
                if let Some(open) = self.open {
                    return Err(AssembleError::BeginInside { open, next: begin.final_lsn });
                }
                self.open = Some(begin.final_lsn);
                return Ok(Some(Step::Begin(begin)));
            }
            Message::Commit(commit) => return self.commit(commit).map(Some),
            Message::Origin { .. } | Message::Type { .. } => return Ok(None),
            Message::Relation(relation) => {
                self.relations.insert(relation.id, Arc::new(relation));
                return Ok(None);
            }
            Message::Insert { relation, new } => {
                let relation = self.relation_of("row", relation, [Some(&new), None])?;
                Change::Insert { relation, new }
            }
            Message::Update { relation, old, new } => {
                let rows = [Some(&new), old.as_ref().map(tuple_of)];
                let relation = self.relation_of("row", relation, rows)?;
                Change::Update { relation, old, new }
            }
            Message::Delete { relation, old } => {
                let relation = self.relation_of("row", relation, [Some(tuple_of(&old)), None])?;
                Change::Delete { relation, old }
            }
            Message::Truncate { relations, cascade, restart_identity } => {
                self.inside("truncation")?;
                let relations = relations
                    .into_iter()
                    .map(|id| self.relation_of("truncation", id, [None, None]))
                    .collect::<Result<_, _>>()?;
                Change::Truncate { relations, cascade, restart_identity }
            }
            Message::Message(message) => {
                // One that is not transactional is sent as soon as it is read from the WAL,
                // wherever that is.
                if message.transactional {
                    self.inside("transactional message")?;
                }
                return Ok(Some(Step::Message(message)));
            }
        };
        Ok(Some(Step::Change(change)))
    }

    fn commit(&mut self, commit: Commit) -> Result<Step, AssembleError> {
        self.inside("commit")?;
        let begin = self.open.take().unwrap_or_default();
        // The end is what will be confirmed, so that it lies after the commit is checked too.
        if commit.commit_lsn != begin || commit.end_lsn <= commit.commit_lsn {
            let Commit { commit_lsn, end_lsn, .. } = commit;
            return Err(AssembleError::WrongCommit { begin, commit: commit_lsn, end: end_lsn });
        }
        Ok(Step::Commit(commit))
    }

    fn inside(&self, what: &'static str) -> Result<(), AssembleError> {
        match self.open {
            Some(_) => Ok(()),
            None => Err(AssembleError::OutsideTransaction { what }),
        }
    }

    fn relation_of(
        &self,
        what: &'static str,
        id: RelationId,
        rows: [Option<&Tuple>; 2],
    ) -> Result<Arc<Relation>, AssembleError> {
        self.inside(what)?;
        let relation = self.relations.get(&id).ok_or(AssembleError::UnknownRelation { id })?;
        let expected = relation.columns.len();
        if let Some(row) = rows.into_iter().flatten().find(|row| row.len() != expected) {
            let relation = relation.qualified_name();
            return Err(AssembleError::WrongArity { relation, expected, found: row.len() });
        }
        Ok(Arc::clone(relation))
    }
}

fn tuple_of(old: &OldRow) -> &Tuple {
    match old {
        OldRow::Identity(tuple) | OldRow::Full(tuple) => tuple,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::change::{Begin, Datum, LogicalMessage};
    use crate::relation::{Column, ReplicaIdentity};

    fn begin(lsn: u64) -> Message {
        Message::Begin(Begin { final_lsn: Lsn(lsn), commit_time_us: 7, xid: 3 })
    }

    fn commit(lsn: u64, end: u64) -> Message {
        let (commit_lsn, end_lsn) = (Lsn(lsn), Lsn(end));
        Message::Commit(Commit { commit_lsn, end_lsn, commit_time_us: 7 })
    }

    fn relation(columns: &[&str]) -> Message {
        let column = |name: &&str| Column {
            name: (*name).to_owned(),
            type_oid: 25,
            type_modifier: -1,
            in_identity: true,
        };
        Message::Relation(Relation {
            id: RelationId(1),
            namespace: "public".to_owned(),
            name: "t".to_owned(),
            replica_identity: ReplicaIdentity::Default,
            columns: columns.iter().map(column).collect(),
        })
    }

    fn row(values: usize) -> Tuple {
        Tuple::from_datums(std::iter::repeat_n(Datum::Text(b"x"), values))
    }

    fn insert(id: u32, values: usize) -> Message {
        Message::Insert { relation: RelationId(id), new: row(values) }
    }

    fn message(transactional: bool) -> Message {
        let (prefix, content) = ("p".to_owned(), Bytes::new());
        Message::Message(LogicalMessage { transactional, lsn: Lsn(1), prefix, content })
    }

    /// One letter for each step returned, and the error that ended it.
    #[track_caller]
    fn check(messages: Vec<Message>, steps: &str, error: Option<AssembleError>) {
        let mut assembler = Assembler::new();
        let mut seen = String::new();
        for message in messages {
            match assembler.push(message) {
                Ok(None) => seen.push('-'),
                Ok(Some(Step::Begin(_))) => seen.push('('),
                Ok(Some(Step::Commit(_))) => seen.push(')'),
                Ok(Some(Step::Change(_))) => seen.push('c'),
                Ok(Some(Step::Message(_))) => seen.push('m'),
                Ok(Some(Step::Keepalive { .. })) => panic!("pgoutput has no keepalives"),
                Err(found) => {
                    assert_eq!((seen.as_str(), Some(found)), (steps, error));
                    return;
                }
            }
        }
        assert_eq!((seen.as_str(), None), (steps, error));
    }

    #[test]
    fn transactions_pass() {
        let origin = Message::Origin { lsn: Lsn(9), name: "o".to_owned() };
        let kind = Message::Type { oid: 1, namespace: "public".to_owned(), name: "k".to_owned() };
        let truncate = Message::Truncate {
            relations: vec![RelationId(1)],
            cascade: false,
            restart_identity: false,
        };
        let messages = vec![
            message(false),
            begin(5),
            origin,
            kind,
            relation(&["a"]),
            insert(1, 1),
            message(true),
            relation(&["a", "b"]),
            insert(1, 2),
            truncate,
            commit(5, 6),
            message(false),
            begin(7),
            commit(7, 9),
        ];
        check(messages, "m(---cm-cc)m()", None);
    }

    #[test]
    fn disorder_is_refused() {
        use AssembleError::*;
        let lsn = Lsn;
        check(vec![begin(5), begin(8)], "(", Some(BeginInside { open: lsn(5), next: lsn(8) }));
        check(vec![relation(&["a"]), insert(1, 1)], "-", Some(OutsideTransaction { what: "row" }));
        check(vec![commit(5, 6)], "", Some(OutsideTransaction { what: "commit" }));
        check(vec![message(true)], "", Some(OutsideTransaction { what: "transactional message" }));
        let wrong =
            |commit, end| Some(WrongCommit { begin: lsn(5), commit: lsn(commit), end: lsn(end) });
        check(vec![begin(5), commit(6, 7)], "(", wrong(6, 7));
        check(vec![begin(5), commit(5, 5)], "(", wrong(5, 5));
        check(vec![begin(5), insert(1, 1)], "(", Some(UnknownRelation { id: RelationId(1) }));
        let arity = WrongArity { relation: "public.t".to_owned(), expected: 2, found: 1 };
        check(vec![begin(5), relation(&["a", "b"]), insert(1, 1)], "(-", Some(arity.clone()));
        let update = Message::Update {
            relation: RelationId(1),
            old: Some(OldRow::Identity(row(1))),
            new: row(2),
        };
        check(vec![begin(5), relation(&["a", "b"]), update], "(-", Some(arity));
    }

    #[test]
    fn a_new_description_replaces_the_old_one_only_for_what_follows() {
        let mut assembler = Assembler::new();
        let mut push = |it| assembler.push(it).unwrap();
        push(begin(5));
        push(relation(&["a"]));
        let first = push(insert(1, 1));
        push(relation(&["a", "b"]));
        let second = push(insert(1, 2));
        let columns = |step: Option<Step>| match step {
            Some(Step::Change(Change::Insert { relation, .. })) => relation.columns.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!((columns(first), columns(second)), (1, 2));
        assert_eq!(assembler.relation(RelationId(1)).unwrap().columns.len(), 2);
    }
}
