//! The envelope's `source`: where and when a change was committed.
//!
//! It has four parts that change at different rates: the session's, the transaction's, the table's
//! and the change's own LSN. All but the last are rendered ahead.

use crate::lsn::Lsn;
use crate::postgres::text::write_string;

/// From the Unix epoch to the Postgres epoch, 2000-01-01 00:00:00 UTC, in microseconds.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// What is the same for a whole session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceContext {
    /// Debezium's `name`: the topic prefix.
    pub name: String,
    /// The database's name.
    pub db: String,
    pub timeline: u32,
    /// Of IDENTIFY_SYSTEM.
    pub system_id: u64,
}

/// What is the same for a whole transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionContext {
    /// LSN of the transaction's commit record.
    pub final_lsn: Lsn,
    /// LSN of the commit before it in this session, for Debezium's `sequence`.
    pub last_commit_lsn: Option<Lsn>,
    /// Microseconds since the Postgres epoch, as in Begin.
    pub commit_time_us: i64,
    /// Debezium's `txId`.
    pub xid: u32,
    /// The same, widened to 64 bits, for the gate.
    pub xid_wide: u64,
    /// From a message `onelog.context`: header names with their values.
    pub correlation: Vec<(String, String)>,
}

/// The rendered parts of `source`.
#[derive(Debug, Default)]
pub(super) struct SourceParts {
    /// `"version":…,"name":"…",`
    session_head: Vec<u8>,
    /// `"db":"…",`
    session_db: Vec<u8>,
    /// `,"source":{…,"sequence":"[…,\"`
    head: Vec<u8>,
    /// `\"]","ts_us":…,"ts_ns":…,`
    middle: Vec<u8>,
    /// `,"txId":…,"lsn":`
    tail: Vec<u8>,
}

impl SourceParts {
    pub(super) fn new(context: &SourceContext) -> Self {
        let mut parts = Self::default();
        let head = &mut parts.session_head;
        head.extend_from_slice(br#""version":"#);
        push_text(env!("CARGO_PKG_VERSION"), head);
        head.extend_from_slice(br#","connector":"onelog","name":"#);
        push_text(&context.name, head);
        head.push(b',');
        let db = &mut parts.session_db;
        db.extend_from_slice(br#""db":"#);
        push_text(&context.db, db);
        db.push(b',');
        parts
    }

    /// Renders what a transaction's changes share. `snapshot` is Debezium's: `false` for changes,
    /// `incremental` for rows of a copy beside the stream. None: a message outside of any
    /// transaction, whose time is `now_us`.
    pub(super) fn begin(
        &mut self,
        transaction: Option<&TransactionContext>,
        snapshot: &str,
        now_us: i64,
    ) {
        let time_us = transaction.map_or(now_us, |it| unix_us(it.commit_time_us));
        let Self { session_head, session_db, head, middle, tail } = self;
        head.clear();
        head.extend_from_slice(br#","source":{"#);
        head.extend_from_slice(session_head);
        head.extend_from_slice(br#""ts_ms":"#);
        push_integer(time_us.div_euclid(1000), head);
        head.extend_from_slice(br#","snapshot":"#);
        push_text(snapshot, head);
        head.push(b',');
        head.extend_from_slice(session_db);
        head.extend_from_slice(br#""sequence":"["#);
        match transaction.and_then(|it| it.last_commit_lsn) {
            None => head.extend_from_slice(b"null"),
            Some(lsn) => {
                head.extend_from_slice(br#"\""#);
                push_integer(lsn.0, head);
                head.extend_from_slice(br#"\""#);
            }
        }
        head.extend_from_slice(br#",\""#);

        middle.clear();
        middle.extend_from_slice(br#"\"]","ts_us":"#);
        push_integer(time_us, middle);
        middle.extend_from_slice(br#","ts_ns":"#);
        push_integer(time_us.saturating_mul(1000), middle);
        middle.push(b',');

        tail.clear();
        tail.extend_from_slice(br#","txId":"#);
        match transaction {
            None => tail.extend_from_slice(b"null"),
            Some(it) => push_integer(it.xid, tail),
        }
        tail.extend_from_slice(br#","lsn":"#);
    }

    /// `,"source":{…}`. `table` is `"schema":"…","table":"…"`.
    pub(super) fn write(&self, lsn: Lsn, table: &[u8], out: &mut Vec<u8>) {
        let mut digits = itoa::Buffer::new();
        let lsn = digits.format(lsn.0).as_bytes();
        out.extend_from_slice(&self.head);
        out.extend_from_slice(lsn);
        out.extend_from_slice(&self.middle);
        out.extend_from_slice(table);
        out.extend_from_slice(&self.tail);
        out.extend_from_slice(lsn);
        out.extend_from_slice(br#","xmin":null}"#);
    }
}

/// `,"transaction":null,"op":"…","ts_ms":…,"ts_us":…,"ts_ns":…` without a closing brace.
pub(super) fn write_tail(op: u8, now_us: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(br#","transaction":null,"op":""#);
    out.push(op);
    out.extend_from_slice(br#"","ts_ms":"#);
    push_integer(now_us.div_euclid(1000), out);
    out.extend_from_slice(br#","ts_us":"#);
    push_integer(now_us, out);
    out.extend_from_slice(br#","ts_ns":"#);
    push_integer(now_us.saturating_mul(1000), out);
}

pub(super) fn push_integer(value: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// A JSON string.
pub(super) fn push_text(text: &str, out: &mut Vec<u8>) {
    write_string(text.as_bytes(), out).expect("a str is UTF-8");
}

/// Microseconds since the Unix epoch, of such since the Postgres epoch.
fn unix_us(postgres_us: i64) -> i64 {
    postgres_us.saturating_add(POSTGRES_EPOCH_US)
}
