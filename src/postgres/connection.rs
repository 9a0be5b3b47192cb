//! A walsender session: `replication=database`, commands, and the stream that START_REPLICATION
//! opens.
//!
//! Ours because neither tokio-postgres nor postgres-protocol knows CopyBoth. Never decodes what it
//! carries (`walsender.rs`, `pgoutput.rs` do), and never decides when to try again:
//! [`ConnectionError::is_transient`] says whether that can help.
//!
//! Invariant: [`ReplicationStream`]'s futures may be dropped at any await without losing a byte.
//!
//! <https://www.postgresql.org/docs/current/protocol-replication.html>

use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use postgres_protocol::message::frontend;

use crate::lsn::{Lsn, ParseLsnError};
pub use crate::postgres::connection_error::ConnectionError;
use crate::postgres::framing::Frame;
use crate::postgres::holder::{Holder, ServerClock};
use crate::postgres::server_error::ServerError;
use crate::postgres::session::{Session, unexpected};
use crate::postgres::startup;
use crate::postgres::transport;
use crate::postgres::url::PostgresUrl;
use crate::postgres::walsender::StandbyStatusUpdate;

/// For the log-in, and for IDENTIFY_SYSTEM, which reads memory only.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// For the end of a stream. In the middle of a large transaction the walsender finishes sending it
/// first: then it is better to hang up.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Itself, and its time in the protocol's unit: microseconds since 2000.
const HOLDER_SQL: &str = "SELECT pg_catalog.pg_backend_pid(), pg_catalog.floor(pg_catalog.date_part(\
     'epoch', pg_catalog.clock_timestamp() - '2000-01-01 00:00:00+00'::pg_catalog.timestamptz) \
     OPERATOR(pg_catalog.*) 1000000)::bigint";

/// The answer to IDENTIFY_SYSTEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdentifySystem {
    /// Made by initdb: another one is another cluster.
    pub system_id: u64,
    /// Grows with each promotion.
    pub timeline: u32,
    /// The end of WAL that is flushed.
    pub xlogpos: Lsn,
}

/// A session that takes commands, and plain SQL in the simple protocol.
#[derive(Debug)]
pub struct ReplicationConnection {
    session: Session,
}

impl ReplicationConnection {
    /// Connects and logs in, in at most 20 seconds.
    pub async fn connect(url: &PostgresUrl) -> Result<Self, ConnectionError> {
        let mut session = Session::new(transport::open(url).await?);
        limited(ANSWER_TIMEOUT, "logging in", startup::start(&mut session, url)).await?;
        Ok(Self { session })
    }

    /// Which cluster this is, and where its WAL ends. At most 10 seconds.
    pub async fn identify_system(&mut self) -> Result<IdentifySystem, ConnectionError> {
        let doing = "IDENTIFY_SYSTEM";
        let rows = limited(ANSWER_TIMEOUT, doing, self.simple_query(doing)).await?;
        let column = |nth: usize| rows.first()?.get(nth)?.as_deref();
        let read = || {
            Some(IdentifySystem {
                system_id: column(0)?.parse().ok()?,
                timeline: column(1)?.parse().ok()?,
                xlogpos: column(2)?.parse().ok()?,
            })
        };
        read().ok_or_else(|| malformed("the answer to IDENTIFY_SYSTEM"))
    }

    /// Where the history of `timeline` left `ancestor`; None: it is not in its past. At most 10
    /// seconds.
    pub async fn fork_of(
        &mut self,
        timeline: u32,
        ancestor: u32,
    ) -> Result<Option<Lsn>, ConnectionError> {
        let command = format!("TIMELINE_HISTORY {timeline}");
        let asked = self.simple_query(&command);
        let rows = limited(ANSWER_TIMEOUT, "TIMELINE_HISTORY", asked).await?;
        let history = rows.first().and_then(|it| it.get(1)?.as_deref());
        let history = history.ok_or_else(|| malformed("the answer to TIMELINE_HISTORY"))?;
        fork_in(history, ancestor).map_err(|_| malformed("the history of the timeline"))
    }

    /// Runs a command or SQL and returns its rows, all columns as text; of several statements,
    /// all rows. Has no time limit of its own: creating a slot waits for running transactions.
    /// After an error of the server the session can go on; after any other, and when this future
    /// was dropped, it can't.
    pub async fn simple_query(
        &mut self,
        sql: &str,
    ) -> Result<Vec<Vec<Option<String>>>, ConnectionError> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let frame = match self.session.message().await {
                Ok(frame) => frame,
                // After FATAL the server hangs up; after ERROR it says that it is ready.
                Err(ConnectionError::Server(error)) if error.severity == "ERROR" => {
                    failed = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match frame.tag {
                b'D' => rows.push(data_row(frame.body)?),
                // The row's description, the end of a statement, an empty statement.
                b'T' | b'C' | b'I' => {}
                b'Z' => return failed.map_or(Ok(rows), |it| Err(it.into())),
                _ => return Err(unexpected(&frame, "running a query")),
            }
        }
    }

    /// Opens the stream of a logical slot. `from` is where to begin, or zero for the slot's
    /// confirmed place; the server never begins before that place. The session is given up on an
    /// error: "slot is active" (55006) is transient, a slot that is not there is not.
    pub async fn start_replication(
        mut self,
        slot: &str,
        from: Lsn,
        options: &[(&str, &str)],
    ) -> Result<ReplicationStream, ConnectionError> {
        let holder = limited(ANSWER_TIMEOUT, "asking for the time", self.holder(slot)).await?;
        let command = start_command(slot, from, options);
        self.send_query(&command).await?;
        let frame = self.session.message().await?;
        match frame.tag {
            b'W' => Ok(ReplicationStream { session: self.session, holder, ended: None }),
            _ => Err(unexpected(&frame, "starting replication")),
        }
    }

    async fn holder(&mut self, slot: &str) -> Result<Holder, ConnectionError> {
        let asked = Instant::now();
        let rows = self.simple_query(HOLDER_SQL).await?;
        let mut columns = rows.into_iter().next().unwrap_or_default().into_iter().flatten();
        let mut number = || columns.next().and_then(|it| it.parse::<i64>().ok());
        let (pid, said_us) = (number().and_then(|it| i32::try_from(it).ok()), number());
        let (Some(pid), Some(said_us)) = (pid, said_us) else {
            return Err(malformed("the answer to a query for the backend's number and time"));
        };
        Ok(Holder { slot: slot.to_owned(), pid, clock: ServerClock::new(asked, said_us) })
    }

    async fn send_query(&mut self, sql: &str) -> Result<(), ConnectionError> {
        frontend::query(sql, &mut self.session.outbox).map_err(ConnectionError::Unsendable)?;
        self.session.flush().await
    }
}

/// The stream in both directions: WAL to us, our progress to the server.
#[derive(Debug)]
pub struct ReplicationStream {
    session: Session,
    holder: Holder,
    /// Why the stream is over: said once everything before it was handed out.
    ended: Option<ConnectionError>,
}

impl ReplicationStream {
    /// Who has the slot at the other end.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// Waits for at least one CopyData payload and appends all that have arrived, at most about
    /// 256 KiB of them unless one is larger. `walsender::decode_walsender` reads them. An error is
    /// the end of the stream; it comes after everything that arrived before it.
    pub async fn next_batch(&mut self, batch: &mut Vec<Bytes>) -> Result<(), ConnectionError> {
        let before = batch.len();
        loop {
            while self.ended.is_none() {
                match self.session.buffered() {
                    Ok(Some(Frame { tag: b'd', body })) => batch.push(body),
                    Ok(Some(frame)) => self.ended = end_of_stream(&frame),
                    Ok(None) => break,
                    Err(error) => self.ended = Some(error),
                }
            }
            if batch.len() > before {
                return Ok(());
            }
            if let Some(error) = self.ended.take() {
                // Whoever asks again gets an error again.
                self.ended = Some(ConnectionError::Ended);
                return Err(error);
            }
            self.session.fill().await?;
        }
    }

    /// Tells the server how far we are. If dropped before the end, the rest goes out with the next
    /// message.
    pub async fn send(&mut self, update: &StandbyStatusUpdate) -> Result<(), ConnectionError> {
        let out = &mut self.session.outbox;
        out.put_u8(b'd');
        // Itself, and the update: a type byte, three positions, a time, a flag.
        out.put_u32(4 + 34);
        update.encode(out);
        self.session.flush().await
    }

    /// Ends the stream in an orderly way, so that the slot is free when this returns; what still
    /// comes is dropped. At most 5 seconds. The session ends with it: a walsender of Postgres 15
    /// that was stopped once ends the next logical stream of the same session at once.
    pub async fn stop(mut self) -> Result<(), ConnectionError> {
        limited(STOP_TIMEOUT, "ending the replication stream", self.copy_done()).await
    }

    async fn copy_done(&mut self) -> Result<(), ConnectionError> {
        frontend::copy_done(&mut self.session.outbox);
        self.session.flush().await?;
        loop {
            let frame = self.session.message().await?;
            match frame.tag {
                b'd' | b'c' | b'C' => {}
                b'Z' => return Ok(()),
                _ => return Err(unexpected(&frame, "ending the replication stream")),
            }
        }
    }
}

/// What ends the stream; None for what may be passed over.
fn end_of_stream(frame: &Frame) -> Option<ConnectionError> {
    match frame.tag {
        b'N' => left_out(ServerError::parse(&frame.body)),
        b'S' | b'A' => None,
        b'E' => Some(ConnectionError::from_server(ServerError::parse(&frame.body))),
        // A server that shuts down ends with CommandComplete.
        b'c' | b'C' => Some(ConnectionError::Ended),
        _ => Some(unexpected(frame, "replicating")),
    }
}

/// From 18 on a publication that is not there (at the place in the WAL that is decoded) is only
/// warned of, and the changes are left out. To us that is an error, as it was before. By the code
/// alone, as its words may be translated; nothing else that we could go on after has it.
fn left_out(notice: ServerError) -> Option<ConnectionError> {
    (notice.code == "55000").then_some(ConnectionError::Server(notice))
}

async fn limited<T>(
    limit: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T, ConnectionError>>,
) -> Result<T, ConnectionError> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(ConnectionError::TimedOut { doing, limit }),
    }
}

/// A history has a line for each ancestor: its timeline, where it was left, and why.
fn fork_in(history: &str, ancestor: u32) -> Result<Option<Lsn>, ParseLsnError> {
    for line in history.lines() {
        let mut words = line.split_whitespace();
        if words.next().and_then(|it| it.parse().ok()) == Some(ancestor) {
            return words.next().unwrap_or_default().parse().map(Some);
        }
    }
    Ok(None)
}

fn malformed(what: &str) -> ConnectionError {
    ConnectionError::Protocol(format!("{what} is malformed"))
}

/// Names are identifiers and values literals of the replication grammar, where only the quote
/// itself is special.
fn start_command(slot: &str, from: Lsn, options: &[(&str, &str)]) -> String {
    let name = |it: &str| format!("\"{}\"", it.replace('"', "\"\""));
    let options: Vec<String> = options
        .iter()
        .map(|(option, value)| format!("{} '{}'", name(option), value.replace('\'', "''")))
        .collect();
    format!("START_REPLICATION SLOT {} LOGICAL {from} ({})", name(slot), options.join(", "))
}

/// DataRow: a count of 16 bits, then for each column a length of 32 bits, -1 for NULL, and text.
fn data_row(mut body: Bytes) -> Result<Vec<Option<String>>, ConnectionError> {
    let wrong = || malformed("a DataRow");
    let count = body.try_get_u16().map_err(|_| wrong())?;
    let mut row = Vec::new();
    for _ in 0..count {
        let length = body.try_get_i32().map_err(|_| wrong())?;
        if length == -1 {
            row.push(None);
            continue;
        }
        let length = usize::try_from(length).ok().filter(|&it| it <= body.len());
        let text = body.split_to(length.ok_or_else(wrong)?);
        row.push(Some(String::from_utf8(text.into()).map_err(|_| wrong())?));
    }
    if body.is_empty() { Ok(row) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_values_are_quoted() {
        let command = start_command("a\"b", Lsn(0x1_0000_0002), &[("p", "1"), ("q", "it's")]);
        let expected = "START_REPLICATION SLOT \"a\"\"b\" LOGICAL 1/2 (\"p\" '1', \"q\" 'it''s')";
        assert_eq!(command, expected);
    }

    #[test]
    fn a_warning_that_changes_are_left_out_ends_the_stream() {
        let notice = |code: &str| {
            let body = format!("SWARNING\0C{code}\0Mskipped loading publication \"p\"\0\0");
            end_of_stream(&Frame { tag: b'N', body: body.into() })
        };
        let ended = notice("55000").expect("an end");
        assert!(!ended.is_transient());
        assert!(notice("01000").is_none());
    }

    #[test]
    fn a_history_tells_where_an_ancestor_was_left() {
        let history = "1\t0/3000148\tno recovery target specified\n\n2\t1/5\tbefore 2026-01-01\n";
        assert_eq!(fork_in(history, 1), Ok(Some(Lsn(0x300_0148))));
        assert_eq!(fork_in(history, 2), Ok(Some(Lsn(0x1_0000_0005))));
        assert_eq!(fork_in(history, 3), Ok(None));
        assert!(fork_in("1\tnowhere\n", 1).is_err());
    }

    fn row(columns: &[Option<String>]) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u16(u16::try_from(columns.len()).unwrap());
        for column in columns {
            match column {
                None => out.put_i32(-1),
                Some(text) => {
                    out.put_i32(i32::try_from(text.len()).unwrap());
                    out.put_slice(text.as_bytes());
                }
            }
        }
        out
    }

    proptest! {
        #[test]
        fn only_the_exact_length_is_a_row(columns: Vec<Option<String>>) {
            let bytes = row(&columns);
            for length in 0..bytes.len() {
                prop_assert!(data_row(Bytes::copy_from_slice(&bytes[..length])).is_err());
            }
            prop_assert!(data_row([&bytes[..], &[0]].concat().into()).is_err());
            prop_assert_eq!(data_row(bytes.into()).unwrap(), columns);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            drop(data_row(bytes.into()));
        }
    }
}
