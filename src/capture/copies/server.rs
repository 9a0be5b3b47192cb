//! What the copies of tables ask of the server, and why that can fail.

use super::Session;
use crate::kafka::chunk::{MARK_PREFIX, Mark};
use crate::kafka::side::SideError;
use crate::postgres::client::{self, Client, ConnectError};
use crate::postgres::copy::CopyReadError;
use crate::postgres::publication::{PublicationError, TableInfo};
use crate::postgres::query_error::QueryError;
use crate::postgres::source::SourceError;

/// Why a try ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error("can't connect to Postgres")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Read(#[from] CopyReadError),
    #[error(transparent)]
    Publication(#[from] PublicationError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Side(#[from] SideError),
    #[error("a row can't be published: {0}")]
    Refused(String),
    #[error("this is not the server that the stream comes from; waiting until it is")]
    OtherServer,
    #[error("the table is not published any more")]
    NotPublished,
    #[error("the session is over")]
    SessionOver,
}

/// A connection that reads chunks and emits watermarks: to the server of the stream, seeing all
/// rows, not queueing for long before the application's own statements, not waiting for a standby
/// (B9), and with the walsender's search_path, so that values are written alike (B17).
pub(super) async fn connect(session: &Session) -> Result<Client, CopyError> {
    const SETTINGS: &str = "SET lock_timeout = '500ms'; SET synchronous_commit = local; \
                            SET row_security = off; SET default_transaction_read_only = off; \
                            SET jit = off; SET search_path = pg_catalog";
    const WHO: &str = "SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system()), \
                       CASE WHEN pg_catalog.pg_is_in_recovery() THEN '' ELSE \
                       left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END";
    let client = client::connect(&session.config.postgres.url, "onelog copy").await?;
    let failed = QueryError::while_doing("set up a session for copies");
    client.batch_execute(SETTINGS).await.map_err(&failed)?;
    let row = client.query_one(WHO, &[]).await.map_err(&failed)?;
    let (system_id, timeline): (i64, String) = (row.get(0), row.get(1));
    let same = system_id.cast_unsigned() == session.system.system_id
        && u32::from_str_radix(&timeline, 16) == Ok(session.system.timeline);
    if same { Ok(client) } else { Err(CopyError::OtherServer) }
}

/// Emits a watermark; its commit is durable when this returns.
pub(super) async fn emit(client: &Client, mark: &Mark) -> Result<(), QueryError> {
    let sql = "SELECT pg_catalog.pg_logical_emit_message(true, $1, $2)::text";
    let sent = client.query_one(sql, &[&MARK_PREFIX, &mark.to_text()]).await;
    sent.map(|_| ()).map_err(QueryError::while_doing("emit a watermark"))
}

/// By Postgres' own estimate; 0 for what was never analyzed.
pub(super) async fn expected_rows(
    client: &Client,
    leaves: &[TableInfo],
) -> Result<u64, QueryError> {
    let oids: Vec<String> = leaves.iter().map(|it| it.oid.to_string()).collect();
    let oids = format!("{{{}}}", oids.join(","));
    let sql = "SELECT coalesce(sum(greatest(reltuples, 0)), 0)::pg_catalog.int8 \
               FROM pg_catalog.pg_class WHERE oid = ANY ($1::text::pg_catalog.oid[])";
    let row = client.query_one(sql, &[&oids]).await;
    let rows: i64 = row.map_err(QueryError::while_doing("estimate a table's rows"))?.get(0);
    Ok(u64::try_from(rows).unwrap_or(0))
}
