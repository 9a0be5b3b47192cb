//! `onelog explain FILE`: which changes touch the file's documents, and how; for a reader who does
//! not know Postgres' insides.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path as FilePath;

use crate::cli::CommandError;
use crate::cli::selection::collections_of;
use crate::config::Config;
use crate::document::queries;
use crate::mapping::plan::{CollectionPlan, EntryPlan, Path, TableRead};
use crate::mapping::resolve::resolve;
use crate::postgres::client::{self, Client};
use crate::postgres::query_plan::{self, QueryPlan};

/// Explains every collection of the file. Exit code 1 if one can't be kept live by its changes.
pub async fn explain(
    config: &Config,
    file: &FilePath,
    out: &mut dyn Write,
) -> Result<u8, CommandError> {
    let collections = collections_of(config, file)?;
    let postgres = &config.postgres;
    let client = client::connect(&postgres.url, "onelog explain")
        .await
        .map_err(|it| CommandError::failed(format!("cannot reach {}", postgres.url), it))?;
    let mut code = 0;
    for collection in &collections {
        let plan = resolve(&client, &postgres.publication_name, collection)
            .await
            .map_err(CommandError::resolving)?;
        code = code.max(collection_text(&client, &plan, out).await?);
    }
    Ok(code)
}

async fn collection_text(
    client: &Client,
    plan: &CollectionPlan,
    out: &mut dyn Write,
) -> Result<u8, CommandError> {
    writeln!(out, "collection {}", plan.name)?;
    let refresh = queries::refresh_queries(plan, &[]);
    let mut live = true;
    for (nth, (entry, query)) in plan.entries.iter().zip(&refresh).enumerate() {
        let place = &entry.entry.sql_place;
        writeln!(
            out,
            "\n  entry {} ({}:{}), key {} {}",
            nth + 1,
            place.path.display(),
            place.line,
            entry.entry.key,
            plan.key_type
        )?;
        changes_text(client, entry, out).await?;
        let found = planned(client, &query.sql, query.params.len()).await;
        writeln!(out, "    reading a document {}", index_text(found.as_ref()))?;
        live &= entry.poll_reasons.is_empty();
        for reason in &entry.poll_reasons {
            writeln!(out, "    swept on a timer: {reason}")?;
        }
        live &= identity_text(&entry.tables, out)?;
    }
    let verdict = if live {
        "every change reaches its documents at once"
    } else {
        "not every change reaches its documents at once; the collection is swept on a timer too"
    };
    writeln!(out, "\n  {verdict}\n")?;
    Ok(u8::from(!live))
}

async fn changes_text(
    client: &Client,
    entry: &EntryPlan,
    out: &mut dyn Write,
) -> Result<(), CommandError> {
    let tables: BTreeMap<_, _> = entry.tables.iter().map(|it| (&it.name, it)).collect();
    for occurrence in &entry.paths {
        let named = if occurrence.alias == occurrence.table.name {
            occurrence.table.to_string()
        } else {
            format!("{} as {}", occurrence.table, occurrence.alias)
        };
        match &occurrence.path {
            Path::InRow { column } => writeln!(out, "    {named}: {column} is the key")?,
            Path::Lookup(lookup) => {
                writeln!(out, "    {named}: {}", lookup.steps.join(", then "))?;
                let found = planned(client, &lookup.sql, lookup.columns.len()).await;
                writeln!(out, "      {}{}", index_text(found.as_ref()), fan_out(found.as_ref()))?;
            }
        }
        if let Some(table) = tables.get(&occurrence.table) {
            writeln!(out, "      {}", columns_text(table))?;
        }
    }
    Ok(())
}

async fn planned(client: &Client, sql: &str, parameters: usize) -> Option<QueryPlan> {
    // The explanation stands without the planner's word: a role may lack a privilege that `check`
    // names.
    query_plan::plan(client, sql, parameters).await.ok()
}

fn index_text(plan: Option<&QueryPlan>) -> String {
    let Some(plan) = plan else { return "could not be planned".to_owned() };
    let scans: Vec<String> = plan
        .scans
        .iter()
        .map(|it| match &it.filter {
            Some(filter) => format!("{} as a whole, for {filter}", it.table),
            None => format!("{} as a whole", it.table),
        })
        .collect();
    match (plan.indexes.is_empty(), scans.is_empty()) {
        (_, false) => format!("reads {}: slow, an index is missing", scans.join(" and ")),
        (false, true) => format!("uses {}", plan.indexes.join(", ")),
        (true, true) => "reads small tables as a whole".to_owned(),
    }
}

/// Keys per image: the planner assumes 10 elements in an array that it does not know.
fn fan_out(plan: Option<&QueryPlan>) -> String {
    const ASSUMED_IMAGES: f64 = 10.0;
    let Some(plan) = plan else { return String::new() };
    format!("; about {:.0} documents a change", (plan.rows / ASSUMED_IMAGES).ceil())
}

fn columns_text(table: &TableRead) -> String {
    match &table.columns {
        None => "any column counts".to_owned(),
        Some(columns) if columns.is_empty() => "only new and deleted rows count".to_owned(),
        Some(columns) => {
            let names: Vec<&str> = columns.iter().map(String::as_str).collect();
            format!("columns that count: {}", names.join(", "))
        }
    }
}

/// Says which tables' old images lack a column of a path; false if there is one.
fn identity_text(tables: &[TableRead], out: &mut dyn Write) -> Result<bool, CommandError> {
    let mut fine = true;
    for table in tables.iter().filter(|it| !it.identity_lacks.is_empty()) {
        fine = false;
        let columns: Vec<&str> = table.identity_lacks.iter().map(String::as_str).collect();
        writeln!(
            out,
            "    {}: the old row lacks {}, so a row that moves or goes is missed. Run:\n      \
             ALTER TABLE {} REPLICA IDENTITY FULL;",
            table.name,
            columns.join(", "),
            table.name.quoted()
        )?;
    }
    Ok(fine)
}
