//! Statements sent together, and prepared before.
//!
//! tokio-postgres sends a request when its future is first polled, so the order of first polls is
//! the order of statements. [`run`] fixes that order. Replies come back in it, too.

use std::collections::HashMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;

use futures_util::TryStreamExt;
use futures_util::future::{MaybeDone, maybe_done};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Error, RowStream, Statement};

use crate::document::queries::{Param, Query, Rows};
use crate::postgres::client::Client;

/// Prepared statements by their text, the least recently used going first.
#[derive(Debug)]
pub(super) struct Statements {
    by_sql: HashMap<String, (Statement, u64)>,
    capacity: usize,
    uses: u64,
}

impl Statements {
    pub(super) fn new(capacity: usize) -> Self {
        Self { by_sql: HashMap::new(), capacity: capacity.max(1), uses: 0 }
    }

    /// The statement, prepared now if it is not yet. An evicted one lives on as long as a read
    /// has it.
    pub(super) async fn prepare(&mut self, client: &Client, sql: &str) -> Result<Statement, Error> {
        self.uses += 1;
        if let Some((statement, used)) = self.by_sql.get_mut(sql) {
            *used = self.uses;
            return Ok(statement.clone());
        }
        let statement = client.prepare(sql).await?;
        if self.by_sql.len() >= self.capacity {
            let oldest = self.by_sql.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(sql, _)| sql.clone()) {
                self.by_sql.remove(&oldest);
            }
        }
        self.by_sql.insert(sql.to_owned(), (statement.clone(), self.uses));
        Ok(statement)
    }
}

/// A prepared statement and its values.
pub(super) struct Call<'a> {
    pub(super) statement: Statement,
    pub(super) params: &'a [Param],
}

impl<'a> Call<'a> {
    pub(super) fn bare(statement: &Statement) -> Self {
        Self { statement: statement.clone(), params: &[] }
    }

    pub(super) fn of(statement: Statement, query: &'a Query) -> Self {
        Self { statement, params: &query.params }
    }
}

/// Sends all calls in order in one go and waits for all replies, also after an error: only then
/// is the connection at rest.
pub(super) async fn run(client: &Client, calls: &[Call<'_>]) -> Vec<Result<Rows, Error>> {
    let mut futures: Vec<_> =
        calls.iter().map(|call| Box::pin(maybe_done(execute(client, call)))).collect();
    poll_each_once(&mut futures).await;
    let mut results = Vec::with_capacity(futures.len());
    for mut future in futures {
        future.as_mut().await;
        results.push(future.as_mut().take_output().expect("it was awaited and not yet taken"));
    }
    results
}

async fn poll_each_once<F: Future>(futures: &mut [Pin<Box<MaybeDone<F>>>]) {
    std::future::poll_fn(|context| {
        for future in futures.iter_mut() {
            // Whether it is ready is looked at later.
            if future.as_mut().poll(context).is_ready() {}
        }
        Poll::Ready(())
    })
    .await;
}

async fn execute(client: &Client, call: &Call<'_>) -> Result<Rows, Error> {
    let params = call.params.iter().map(|it| -> &(dyn ToSql + Sync) {
        match it {
            Param::TextArray(it) => it,
            Param::Text(it) => it,
            Param::Int8(it) => it,
        }
    });
    let stream: RowStream = client.query_raw(&call.statement, params).await?;
    let mut stream = pin!(stream);
    let mut rows = Rows::new();
    while let Some(row) = stream.try_next().await? {
        rows.push((0..row.len()).map(|nth| row.try_get(nth)).collect::<Result<_, _>>()?);
    }
    Ok(rows)
}
