//! `onelog preview FILE --key K`: the documents of one key as they would be written, without
//! writing them. Standard output has JSON or a diff and nothing else; all remarks go to standard
//! error.

pub mod pretty;

use std::io::{IsTerminal as _, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use similar::{ChangeTag, TextDiff};

use self::pretty::pretty;
use crate::cli::CommandError;
use crate::cli::selection::collections_of;
use crate::config::Config;
use crate::document::{DocumentKey, build, queries};
use crate::elasticsearch::client::Elasticsearch;
use crate::elasticsearch::index::AliasState;
use crate::elasticsearch::index::definition::alias_name;
use crate::mapping::plan::CollectionPlan;
use crate::mapping::resolve::resolve;
use crate::postgres::client;
use crate::translate::read_limits;
use crate::translate::readers::Readers;

/// Lines shown around a difference.
const CONTEXT_LINES: usize = 3;

/// What is to be shown of which document.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub file: &'a Path,
    pub key: &'a str,
    /// Compare with what the alias has, instead of printing.
    pub diff: bool,
    /// How long each entry's query takes.
    pub timings: bool,
}

/// Prints a document for each collection of the file. Exit code 1 if none has the key, or with
/// `diff` if one differs from what is live.
pub async fn preview(
    config: &Config,
    wanted: Wanted<'_>,
    out: &mut dyn Write,
) -> Result<u8, CommandError> {
    let collections = collections_of(config, wanted.file)?;
    let postgres = &config.postgres;
    let cannot_reach = || format!("cannot read from {}", postgres.url);
    let client = client::connect(&postgres.url, "onelog preview")
        .await
        .map_err(|it| CommandError::failed(cannot_reach(), it))?;
    let readers = Readers::new(postgres.url.clone(), read_limits(config), 1);
    let (mut found, mut differs) = (false, false);
    for collection in &collections {
        let plan = resolve(&client, &postgres.publication_name, collection)
            .await
            .map_err(CommandError::resolving)?;
        let body = document(&readers, &plan, wanted).await?;
        found |= body.is_some();
        if wanted.diff {
            differs |= compare(config, &plan, (wanted.key, body), out).await?;
        } else if let Some(body) = body {
            writeln!(out, "{}", pretty(&body))?;
        }
    }
    Ok(u8::from(if wanted.diff { differs } else { !found }))
}

/// A remark, which is no part of the output.
fn remark(text: &str) -> Result<(), CommandError> {
    Ok(writeln!(std::io::stderr().lock(), "{text}")?)
}

/// The document's text as it would be written; None: there is no such document.
async fn document(
    readers: &Readers,
    plan: &CollectionPlan,
    wanted: Wanted<'_>,
) -> Result<Option<String>, CommandError> {
    let (name, key) = (&plan.name, wanted.key);
    let keys = [DocumentKey(key.to_owned())];
    let wrong = || format!("collection {name}: {key} can't be read as its key, {}", plan.key_type);
    let all = queries::refresh_queries(plan, &keys);
    let tables = plan.tables();
    let read = readers.read(&tables, &all).await.map_err(|it| CommandError::failed(wrong(), it))?;
    let built = build::documents(plan, &keys, &read.rows)
        .map_err(|it| CommandError::failed(format!("collection {name}"), it))?;
    for refused in &built.refused {
        remark(&format!("{name} {}: {}", refused.key, refused.reason))?;
    }
    if built.rows_left_out > 0 {
        let count = built.rows_left_out;
        remark(&format!(
            "{name} {key}: {count} rows of a nest_one_as are left out, which takes the first; add \
             an ORDER BY that says which, or use nest_as"
        ))?;
    }
    if wanted.timings {
        let rows: Vec<usize> = read.rows.iter().map(Vec::len).collect();
        timings(readers, plan, (&all, &rows)).await?;
    }
    let body = built.documents.into_iter().find(|it| it.key == keys[0]).and_then(|it| it.body);
    if body.is_none() {
        remark(&format!("{name} {key}: no such document"))?;
    }
    Ok(body)
}

/// Reads each entry alone, now that its statement is prepared, and then all at once, as the daemon
/// does. Each time has the round trip and the transaction around it.
async fn timings(
    readers: &Readers,
    plan: &CollectionPlan,
    (all, rows): (&[queries::Query], &[usize]),
) -> Result<(), CommandError> {
    let tables = plan.tables();
    for ((entry, query), rows) in plan.entries.iter().zip(all).zip(rows) {
        let took = timed(readers, &tables, std::slice::from_ref(query)).await?;
        let place = &entry.entry.sql_place;
        let (path, line) = (place.path.display(), place.line);
        remark(&format!("{took:>8}  {path}:{line}, {rows} rows"))?;
    }
    let took = timed(readers, &tables, all).await?;
    remark(&format!("{took:>8}  {}, all in one round trip", plan.name))
}

async fn timed(
    readers: &Readers,
    tables: &[crate::mapping::plan::TableName],
    queries: &[queries::Query],
) -> Result<String, CommandError> {
    let started = Instant::now();
    let read = readers.read(tables, queries).await;
    read.map_err(|it| CommandError::failed("cannot read again for the timings", it))?;
    Ok(milliseconds(started.elapsed()))
}

fn milliseconds(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1_000.0)
}

/// Prints what differs between the live document and ours; true if anything does.
async fn compare(
    config: &Config,
    plan: &CollectionPlan,
    (key, ours): (&str, Option<String>),
    out: &mut dyn Write,
) -> Result<bool, CommandError> {
    let alias = alias_name(&config.elasticsearch, &plan.name);
    let failed = |it| CommandError::failed(format!("cannot read {key} from {alias}"), it);
    let elastic = Elasticsearch::new(&config.elasticsearch).map_err(failed)?;
    let live = match elastic.alias_state(&alias).await.map_err(failed)? {
        AliasState::On(_) => {
            let keys = [DocumentKey(key.to_owned())];
            let mut stored = elastic.mget_sources(&alias, &keys).await.map_err(failed)?;
            stored.pop().flatten().map(|(text, _)| text)
        }
        AliasState::Missing | AliasState::IsAnIndex => {
            remark(&format!("{alias}: no such alias: the collection is not live yet"))?;
            None
        }
    };
    let text = |it: Option<String>| it.map(|it| pretty(&it) + "\n").unwrap_or_default();
    let (live, ours) = (text(live), text(ours));
    if live == ours {
        remark(&format!("{} {key}: as it is live", plan.name))?;
        return Ok(false);
    }
    let plain = !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some();
    let colour = if plain { Colour::None } else { Colour::Terminal };
    let differences = diff(&live, &ours, colour);
    write!(out, "--- {alias} {key}, live\n+++ as the file says\n{differences}")?;
    Ok(true)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colour {
    None,
    Terminal,
}

/// A unified diff: `-` is only live, `+` only ours.
fn diff(live: &str, ours: &str, colour: Colour) -> String {
    let compared = TextDiff::from_lines(live, ours);
    let mut text = String::new();
    for group in compared.grouped_ops(CONTEXT_LINES) {
        text.push_str("@@\n");
        for change in group.iter().flat_map(|it| compared.iter_changes(it)) {
            let (sign, on) = match change.tag() {
                ChangeTag::Delete => ('-', "\x1b[31m"),
                ChangeTag::Insert => ('+', "\x1b[32m"),
                ChangeTag::Equal => (' ', ""),
            };
            let line = change.value().trim_end_matches('\n');
            let (on, off) = match colour {
                Colour::Terminal if !on.is_empty() => (on, "\x1b[0m"),
                Colour::Terminal | Colour::None => ("", ""),
            };
            text.push_str(&format!("{on}{sign}{line}{off}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_shows_what_is_live_and_what_would_be() {
        let (live, ours) = ("{\n  \"a\": 1,\n  \"b\": 2\n}\n", "{\n  \"a\": 1,\n  \"b\": 3\n}\n");
        let plain = diff(live, ours, Colour::None);
        assert_eq!(plain, "@@\n {\n   \"a\": 1,\n-  \"b\": 2\n+  \"b\": 3\n }\n");
        let coloured = diff(live, ours, Colour::Terminal);
        assert!(coloured.contains("\x1b[31m-  \"b\": 2\x1b[0m\n\x1b[32m+  \"b\": 3\x1b[0m\n"));
        assert_eq!(diff("", ours, Colour::None).matches("\n+").count(), 4);
    }
}
