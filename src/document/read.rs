//! The read of rule 2: what every refresh, path query and slice of a sweep goes through.
//!
//! ```text
//! prepare what is new │ in recovery? · BEGIN · LOCK · snapshot, insert LSN · queries · COMMIT ·
//!                     │ flush LSN                                   (one network round trip)
//! ```
//!
//! - LOCK comes before the snapshot, so that no table is rewritten between the snapshot and the
//!   look at it: it would be seen empty (A2). Hence nothing may be prepared after BEGIN: a type
//!   look-up would take the snapshot early.
//! - The stamp is handed out only once all WAL that the snapshot may rest on is flushed (A1).
//! - `now()` tells transactions apart: it is constant within one. Before, within and after must
//!   differ, or our BEGIN joined a transaction that someone left open, or COMMIT did not end it.
//!
//! Invariant: a [`Read`] is whole, from one snapshot of a primary, or it is an error. A reader is
//! usable again only if every reply to its last read arrived.

mod error;
pub mod flush;
mod lookout;
mod pipeline;
mod session;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Statement;

pub use self::error::ReadError;
use self::error::{At, classify};
pub use self::flush::Flusher;
pub use self::lookout::Lookout;
use self::pipeline::{Call, Statements, run};
pub use self::session::ReadLimits;
use self::session::Server;
use crate::document::DocumentVersion;
pub use crate::document::queries::{Param, Query, Rows};
use crate::lsn::Lsn;
use crate::mapping::plan::TableName;
use crate::postgres::client::Client;
use crate::postgres::url::PostgresUrl;
use crate::snapshot::Snapshot;

/// Which truth a read saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadStamp {
    pub snapshot: Snapshot,
    pub timeline: u32,
    pub system_id: u64,
    /// Just before the statements were sent, so never after the snapshot: its age counts from
    /// here.
    pub taken_at: Instant,
}

impl ReadStamp {
    /// Of what was read. None once the epoch or the number no longer fits.
    pub fn version(&self, epoch: u32) -> Option<DocumentVersion> {
        DocumentVersion::new(epoch, &self.snapshot)
    }
}

/// A read whose WAL may not be on disk yet. It holds no connection.
#[derive(Debug)]
pub struct Unflushed {
    read: Read,
    server: Server,
    /// How far the server must flush; None: it already has.
    target: Option<Lsn>,
}

impl Unflushed {
    pub fn is_flushed(&self) -> bool {
        self.target.is_none()
    }

    /// Returns once all WAL that the snapshot may rest on is on disk (A1).
    pub async fn flushed(self, flusher: &Flusher) -> Result<Read, ReadError> {
        if let Some(target) = self.target {
            flusher.wait(self.server, target).await?;
        }
        Ok(self.read)
    }
}

/// The rows of each query, in the order of the queries, all from one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub stamp: ReadStamp,
    pub rows: Vec<Rows>,
}

/// `now()` in all three is what tells transactions apart.
const BEFORE: &str = "SELECT pg_is_in_recovery()::text, now()::text";
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const STATE: &str = "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, \
     (pg_current_xact_id_if_assigned() IS NULL)::text, \
     current_setting('transaction_isolation'), current_setting('transaction_read_only'), \
     now()::text";
/// As [`STATE`], for reads of a few keys. Postgres would plan each of them anew, as a plan for one
/// key always looks cheaper to it than one for an array of unknown length: on a join of three
/// tables planning takes five times as long as the query. With the generic plan, pages must be
/// taken for cached, or a hash of a whole lookup table wins over three look-ups in it. Both end
/// with the transaction. Here and not before, as `set_config()` takes a snapshot.
const STATE_FEW_KEYS: &str = "SELECT pg_current_snapshot()::text, \
     pg_current_wal_insert_lsn()::text, (pg_current_xact_id_if_assigned() IS NULL)::text, \
     current_setting('transaction_isolation'), current_setting('transaction_read_only'), \
     now()::text, set_config('plan_cache_mode', 'force_generic_plan', true), \
     set_config('random_page_cost', '1.1', true)";
/// Postgres' guess for an array of unknown length is 10. Up to a few times as many its plan for
/// that is right; for more, planning is a small part of the work.
const FEW_KEYS_MAX: usize = 40;
const COMMIT: &str = "COMMIT";
const FLUSHED: &str = "SELECT pg_current_wal_flush_lsn()::text, now()::text";

/// The statements around the queries, prepared once.
struct Frame {
    before: Statement,
    begin: Statement,
    state: Statement,
    state_few_keys: Statement,
    commit: Statement,
    flushed: Statement,
}

/// Reads documents' rows. Owns its connection alone.
pub struct Reader {
    client: Client,
    pid: i32,
    server: Server,
    frame: Frame,
    statements: Statements,
    limits: ReadLimits,
    flusher: Arc<Flusher>,
    /// Set while replies are outstanding; left set by a read that was dropped or lost.
    busy: bool,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("server", &self.server).finish_non_exhaustive()
    }
}

/// What the transaction said of itself.
struct State {
    snapshot: Snapshot,
    insert: Lsn,
    now: String,
}

impl Reader {
    /// Connects to a primary; a standby is [`ReadError::InRecovery`]. `flusher` is the one of
    /// the process for this server.
    pub async fn connect(
        url: &PostgresUrl,
        limits: ReadLimits,
        flusher: Arc<Flusher>,
    ) -> Result<Self, ReadError> {
        let (client, server) = session::connect_reader(url, &limits).await?;
        let preparing = |it| classify(it, At::Frame("preparing to read"));
        let row = client.query_one("SELECT pg_backend_pid()", &[]).await.map_err(preparing)?;
        let pid = row.try_get(0).map_err(preparing)?;
        let frame = Frame {
            before: client.prepare(BEFORE).await.map_err(preparing)?,
            begin: client.prepare(BEGIN).await.map_err(preparing)?,
            state: client.prepare(STATE).await.map_err(preparing)?,
            state_few_keys: client.prepare(STATE_FEW_KEYS).await.map_err(preparing)?,
            commit: client.prepare(COMMIT).await.map_err(preparing)?,
            flushed: client.prepare(FLUSHED).await.map_err(preparing)?,
        };
        let statements = Statements::new(limits.statements_cached);
        Ok(Self { client, pid, server, frame, statements, limits, flusher, busy: false })
    }

    /// False: connect anew.
    pub fn is_usable(&self) -> bool {
        !self.busy && !self.client.is_closed()
    }

    /// The server's process that reads for us.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn timeline(&self) -> u32 {
        self.server.timeline
    }

    pub fn system_id(&self) -> u64 {
        self.server.system_id
    }

    /// As [`Reader::read_ahead`], and waits for the flush.
    pub async fn read(
        &mut self,
        tables: &[TableName],
        queries: &[Query],
    ) -> Result<Read, ReadError> {
        self.read_ahead(tables, queries).await?.flushed(&self.flusher).await
    }

    /// As [`Reader::read_with_ahead`], and waits for the flush.
    pub async fn read_with(
        &mut self,
        tables: &[TableName],
        first: &[Query],
        then: impl FnOnce(&[Rows]) -> Vec<Query>,
    ) -> Result<Read, ReadError> {
        self.read_with_ahead(tables, first, then).await?.flushed(&self.flusher).await
    }

    /// Reads all queries in one snapshot, taken under locks on the tables: all that the queries
    /// read (materialized views, foreign tables and sequences can't be locked; leave them out).
    pub async fn read_ahead(
        &mut self,
        tables: &[TableName],
        queries: &[Query],
    ) -> Result<Unflushed, ReadError> {
        self.guarded(queries.len(), async |this| this.read_at_once(tables, queries).await).await
    }

    /// As [`Reader::read_ahead`], and then in the same snapshot the queries that `then` makes of the
    /// rows: one round trip more. The result has the rows of both, the first ones first; `nth` of
    /// an error counts so too.
    pub async fn read_with_ahead(
        &mut self,
        tables: &[TableName],
        first: &[Query],
        then: impl FnOnce(&[Rows]) -> Vec<Query>,
    ) -> Result<Unflushed, ReadError> {
        self.guarded(first.len() + 1, async |this| this.read_twice(tables, first, then).await).await
    }

    /// Bounds `work` in time, and marks the reader while it runs.
    async fn guarded(
        &mut self,
        queries: usize,
        work: impl AsyncFnOnce(&mut Self) -> Result<Unflushed, ReadError>,
    ) -> Result<Unflushed, ReadError> {
        if !self.is_usable() {
            return Err(ReadError::Lost { doing: "a read before this one", source: None });
        }
        // Postgres ends each statement in time; only a dead network needs this.
        let statements = u32::try_from(queries).unwrap_or(u32::MAX).saturating_add(2);
        let limit = self.limits.statement_timeout.saturating_mul(statements)
            + self.limits.lock_timeout
            + Duration::from_secs(10);
        self.busy = true;
        match tokio::time::timeout(limit, work(self)).await {
            Ok(result) => {
                if matches!(result, Err(ReadError::PlanChanged(_))) {
                    // What was prepared against the old definitions would fail for ever.
                    self.statements = Statements::new(self.limits.statements_cached);
                }
                result
            }
            Err(_) => Err(ReadError::Lost { doing: "waiting for a read's replies", source: None }),
        }
    }

    async fn read_at_once(
        &mut self,
        tables: &[TableName],
        queries: &[Query],
    ) -> Result<Unflushed, ReadError> {
        let lock = self.prepare_lock(tables).await?;
        let statements = self.prepare_all(queries, 0).await?;
        let queries_at = 3 + usize::from(lock.is_some());
        let mut calls = self.opening(lock.as_ref(), queries);
        calls.extend(statements.into_iter().zip(queries).map(|(it, query)| Call::of(it, query)));
        calls.extend([Call::bare(&self.frame.commit), Call::bare(&self.frame.flushed)]);
        let taken_at = Instant::now();
        let mut results = run(&self.client, &calls).await;
        // All replies are here. Should a transaction be open all the same, the next read's check
        // of now() finds out.
        self.busy = self.client.is_closed();

        let mut rest = results.split_off(queries_at);
        let before_and_state = frame_rows(results)?;
        let tail = rest.split_off(queries.len());
        let state = self.state(&before_and_state);
        let mut rows = Vec::with_capacity(queries.len());
        for (nth, result) in rest.into_iter().enumerate() {
            rows.push(result.map_err(|it| classify(it, At::Query(nth)))?);
        }
        let tail = frame_rows(tail)?;
        let state = state?;
        self.finish(state, tail.last(), taken_at, rows)
    }

    async fn read_twice(
        &mut self,
        tables: &[TableName],
        first: &[Query],
        then: impl FnOnce(&[Rows]) -> Vec<Query>,
    ) -> Result<Unflushed, ReadError> {
        let lock = self.prepare_lock(tables).await?;
        let statements = self.prepare_all(first, 0).await?;
        let queries_at = 3 + usize::from(lock.is_some());
        let mut calls = self.opening(lock.as_ref(), first);
        calls.extend(statements.into_iter().zip(first).map(|(it, query)| Call::of(it, query)));
        let taken_at = Instant::now();
        let mut results = run(&self.client, &calls).await;
        let read = results.split_off(queries_at);
        let opened = frame_rows(results).and_then(|it| self.state(&it));
        let mut rows = Vec::new();
        let first_rows = query_rows(read, 0, &mut rows);
        let state = match (opened, first_rows) {
            (Ok(state), Ok(())) => state,
            (Err(err), _) | (_, Err(err)) => return self.abandon(err).await,
        };
        let second = then(&rows);
        // The snapshot is taken and the tables are locked: to prepare now does no harm.
        let statements = match self.prepare_second(&second, first.len()).await {
            Ok(statements) => statements,
            Err(err) => return self.abandon(err).await,
        };
        let mut calls: Vec<Call<'_>> =
            statements.into_iter().zip(&second).map(|(it, query)| Call::of(it, query)).collect();
        calls.extend([Call::bare(&self.frame.commit), Call::bare(&self.frame.flushed)]);
        let mut results = run(&self.client, &calls).await;
        self.busy = self.client.is_closed();
        let tail = results.split_off(second.len());
        query_rows(results, first.len(), &mut rows)?;
        let tail = frame_rows(tail)?;
        self.finish(state, tail.last(), taken_at, rows)
    }

    /// Closes the transaction after an error in its first half, so that the reader is usable.
    async fn abandon(&mut self, err: ReadError) -> Result<Unflushed, ReadError> {
        let closed = run(&self.client, &[Call::bare(&self.frame.commit)]).await;
        self.busy = closed.iter().any(Result::is_err) || self.client.is_closed();
        Err(err)
    }

    fn opening<'a>(&self, lock: Option<&Statement>, queries: &[Query]) -> Vec<Call<'a>> {
        let mut calls = vec![Call::bare(&self.frame.before), Call::bare(&self.frame.begin)];
        calls.extend(lock.map(Call::bare));
        let few_keys = has_few_keys(queries);
        calls.push(Call::bare(if few_keys {
            &self.frame.state_few_keys
        } else {
            &self.frame.state
        }));
        calls
    }

    async fn prepare_lock(&mut self, tables: &[TableName]) -> Result<Option<Statement>, ReadError> {
        if tables.is_empty() {
            return Ok(None);
        }
        let names: Vec<String> = tables.iter().map(TableName::quoted).collect();
        let sql = format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "));
        match self.statements.prepare(&self.client, &sql).await {
            Ok(statement) => Ok(Some(statement)),
            Err(err) => Err(self.not_prepared(classify(err, At::Frame("locking the tables")))),
        }
    }

    /// Before BEGIN.
    async fn prepare_all(
        &mut self,
        queries: &[Query],
        first: usize,
    ) -> Result<Vec<Statement>, ReadError> {
        let prepared = self.prepare_second(queries, first).await;
        prepared.map_err(|err| self.not_prepared(err))
    }

    async fn prepare_second(
        &mut self,
        queries: &[Query],
        first: usize,
    ) -> Result<Vec<Statement>, ReadError> {
        let mut statements = Vec::with_capacity(queries.len());
        for (nth, query) in (first..).zip(queries) {
            let statement = self.statements.prepare(&self.client, &query.sql).await;
            let statement = statement.map_err(|it| classify(it, At::Query(nth)))?;
            // A mismatch would panic in the client.
            if statement.params().len() != query.params.len() {
                let what = format!("query {nth} was given a wrong number of parameters");
                return Err(ReadError::Inconsistent { what });
            }
            statements.push(statement);
        }
        Ok(statements)
    }

    /// Nothing was begun, so the reader stays usable.
    fn not_prepared(&mut self, err: ReadError) -> ReadError {
        self.busy = self.client.is_closed();
        err
    }

    /// Checks what the statements before the queries said.
    fn state(&self, frame: &[Rows]) -> Result<State, ReadError> {
        let text = |rows: Option<&Rows>, nth: usize| -> String {
            let row = rows.and_then(|it| it.first());
            row.and_then(|it| it.get(nth)).cloned().flatten().unwrap_or_default()
        };
        let (before, state) = (frame.first(), frame.last());
        if text(before, 0) != "false" {
            return Err(ReadError::InRecovery);
        }
        let inconsistent = |what: &str| ReadError::Inconsistent { what: what.to_owned() };
        let now = text(state, 5);
        if text(before, 1) == now {
            return Err(inconsistent("a transaction was already open"));
        }
        if text(state, 2) != "true" {
            return Err(inconsistent("the reading transaction has an id of its own"));
        }
        if text(state, 3) != "repeatable read" || text(state, 4) != "on" {
            return Err(inconsistent("the transaction is not repeatable read, read only"));
        }
        let parse =
            |what: &dyn std::fmt::Display| ReadError::Inconsistent { what: what.to_string() };
        let snapshot = text(state, 0).parse().map_err(|it| parse(&it))?;
        let insert = text(state, 1).parse().map_err(|it| parse(&it))?;
        Ok(State { snapshot, insert, now })
    }

    /// Checks the end of the transaction, and hands out the rows.
    fn finish(
        &self,
        state: State,
        last: Option<&Rows>,
        taken_at: Instant,
        rows: Vec<Rows>,
    ) -> Result<Unflushed, ReadError> {
        let (flushed, now) = flushed_and_now(last)?;
        if now == state.now {
            let what = "COMMIT did not end the transaction".to_owned();
            return Err(ReadError::Inconsistent { what });
        }
        let target = self.server.wal.end_of_wal(state.insert);
        let target = (flushed < target).then_some(target);
        let Server { system_id, timeline, .. } = self.server;
        let stamp = ReadStamp { snapshot: state.snapshot, timeline, system_id, taken_at };
        Ok(Unflushed { read: Read { stamp, rows }, server: self.server, target })
    }
}

/// Whether all queries are for keys, and for few of them.
fn has_few_keys(queries: &[Query]) -> bool {
    let most = |it: &Query| {
        let counts = it.params.iter().filter_map(|it| match it {
            Param::TextArray(keys) => Some(keys.len()),
            Param::Text(_) | Param::Int8(_) => None,
        });
        counts.max()
    };
    !queries.is_empty() && queries.iter().all(|it| most(it).is_some_and(|it| it <= FEW_KEYS_MAX))
}

/// The results of our own statements, or the first error: later ones only follow from it.
fn frame_rows(results: Vec<Result<Rows, tokio_postgres::Error>>) -> Result<Vec<Rows>, ReadError> {
    let own = |it| classify(it, At::Frame("reading documents"));
    results.into_iter().map(|it| it.map_err(own)).collect()
}

/// Appends the results of queries, the first of them being query `first`.
fn query_rows(
    results: Vec<Result<Rows, tokio_postgres::Error>>,
    first: usize,
    rows: &mut Vec<Rows>,
) -> Result<(), ReadError> {
    for (nth, result) in (first..).zip(results) {
        rows.push(result.map_err(|it| classify(it, At::Query(nth)))?);
    }
    Ok(())
}

fn flushed_and_now(rows: Option<&Rows>) -> Result<(Lsn, &str), ReadError> {
    let row = rows.and_then(|it| it.first()).map(Vec::as_slice);
    let flushed = match row {
        Some([Some(flushed), Some(now)]) => flushed.parse().ok().map(|it| (it, now.as_str())),
        _ => None,
    };
    let what = "pg_current_wal_flush_lsn() gave no LSN".to_owned();
    flushed.ok_or(ReadError::Inconsistent { what })
}
