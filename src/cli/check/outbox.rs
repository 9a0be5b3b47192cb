//! What `check` says of the outbox tables: their columns, and the rights to clean them up.

use std::sync::Arc;

use crate::cli::check::Findings;
use crate::config::Config;
use crate::outbox::row::OutboxTable;
use crate::postgres::cleanup::AGE_COLUMN;
use crate::postgres::client::Client;
use crate::postgres::publication::{TableInfo, published_tables};
use crate::relation::{Column, Relation};

/// A table that the publication lacks has been told where the publication was looked at.
pub async fn check(
    config: &Config,
    client: &Client,
    findings: &mut Findings<'_>,
) -> std::io::Result<()> {
    if config.outbox.tables.is_empty() {
        return Ok(());
    }
    let tables = match published_tables(client, &config.postgres.publication_name).await {
        Ok(tables) => tables,
        Err(error) => return findings.wrong(&format!("outbox: {error}")),
    };
    for name in &config.outbox.tables {
        let of = |it: &&TableInfo| format!("{}.{}", it.root_namespace, it.root_name) == *name;
        let Some(table) = tables.iter().find(of) else { continue };
        match OutboxTable::new(&relation(table), &config.outbox) {
            Err(refusal) => findings.wrong(&format!("outbox {name}: {refusal}"))?,
            Ok(_) => findings.fine(&format!("outbox {name} has its columns"))?,
        }
        if !config.outbox.cleanup_after.is_zero() {
            cleanup(config, client, table, findings).await?;
        }
    }
    Ok(())
}

async fn cleanup(
    config: &Config,
    client: &Client,
    table: &TableInfo,
    findings: &mut Findings<'_>,
) -> std::io::Result<()> {
    let name = format!("{}.{}", table.root_namespace, table.root_name);
    let age = config.outbox.columns.timestamp.as_deref().unwrap_or(AGE_COLUMN);
    if !table.columns.iter().any(|it| it.0 == age) {
        findings.wrong(&format!(
            "outbox {name} has no column {age}, by which cleanup_after knows a row's age; add it, \
             or name another as [outbox] timestamp_column"
        ))?;
    }
    let sql = "SELECT pg_catalog.has_table_privilege($1, 'DELETE'), current_user::text";
    match client.query_one(sql, &[&table.root_oid.0]).await {
        Ok(row) if row.get(0) => Ok(()),
        Ok(row) => findings.wrong(&format!(
            "cleanup_after needs it: GRANT DELETE ON {name} TO \"{}\";",
            row.get::<_, String>(1)
        )),
        Err(error) => findings.wrong(&format!("outbox {name}: {error}")),
    }
}

fn relation(table: &TableInfo) -> Arc<Relation> {
    let column = |(name, type_oid): &(String, u32)| Column {
        name: name.clone(),
        type_oid: *type_oid,
        type_modifier: -1,
        in_identity: false,
    };
    Arc::new(Relation {
        id: table.oid,
        namespace: table.namespace.clone(),
        name: table.name.clone(),
        replica_identity: table.replica_identity,
        columns: table.columns.iter().map(column).collect(),
    })
}
