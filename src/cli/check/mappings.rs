//! What `check` asks of every mapping: does Postgres run it, does every change reach its documents,
//! will it be fast, and will it be the same each time.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::causes::with_causes;
use crate::cli::account::{self, CollectionAccount, EntryAccount, QueryAccount};
use crate::cli::check::Findings;
use crate::cli::explain::text;
use crate::config::Config;
use crate::document::queries;
use crate::mapping::plan::CollectionPlan;
use crate::mapping::resolve::{ResolveError, resolve};
use crate::mapping::{Collection, Place};
use crate::mistake::Mistake;
use crate::postgres::client::Client;
use crate::postgres::publication;
use crate::translate::load::unreadable;

/// A table of fewer rows is read whole in no time, and stays small as a rule: `explain` tells.
const SMALL_TABLE_ROWS: f64 = 1_000.0;

/// Rows with a NULL key are counted in this time or not at all: it is a scan of the whole table.
const COUNT_LIMIT: &str = "SET LOCAL statement_timeout = '3s'";

type Written = std::io::Result<()>;

/// Checks each collection.
pub async fn check(
    config: &Config,
    client: &Client,
    collections: &[Collection],
    findings: &mut Findings<'_>,
) -> Written {
    let published = publication::inspect(client, &config.postgres.publication_name).await;
    // Without a publication every table would be a finding; that it is missing says it all.
    let mut said = Said { publication: matches!(published, Ok(Some(_))), ..Said::default() };
    for collection in collections {
        match resolve(client, &config.postgres.publication_name, collection).await {
            Ok(plan) => {
                if let Some(mistake) = unreadable(&config.kafka, &plan) {
                    findings.mistake(&mistake)?;
                }
                one(client, &plan, &mut said, findings).await?;
            }
            Err(ResolveError::Mistakes(mistakes)) => {
                for mistake in &mistakes.0 {
                    findings.mistake(mistake)?;
                }
            }
            Err(error) => {
                let name = &collection.name;
                findings.wrong(&format!("collection {name}: {}", with_causes(&error)))?;
            }
        }
    }
    Ok(())
}

/// What other collections have already led to.
#[derive(Default)]
struct Said {
    /// Whether there is a publication at all.
    publication: bool,
    tables: BTreeSet<String>,
    indexes: BTreeSet<String>,
}

async fn one(
    client: &Client,
    plan: &CollectionPlan,
    said: &mut Said,
    findings: &mut Findings<'_>,
) -> Written {
    let account = match account::of(client, plan).await {
        Ok(account) => account,
        Err(error) => {
            return findings.wrong(&format!("collection {}: {}", plan.name, with_causes(&error)));
        }
    };
    for (entry, place) in account.entries.iter().zip(places(plan)) {
        tables(plan, (&account, &place), said, findings)?;
        // That a table is not published has been said above, with the cure.
        let swept = entry.swept_because.iter().filter(|it| !it.reason.contains("is not published"));
        for it in swept {
            let cure = it.cure.as_ref().map(|it| format!("; {it}")).unwrap_or_default();
            let message = format!("{} is swept on a timer: {}{cure}", plan.name, it.reason);
            findings.warning_at(&at(&place, message))?;
        }
        indexes(entry, &place, said, findings)?;
    }
    for it in &account.warnings {
        let place = Place { path: PathBuf::from(&it.file), line: it.line, column: it.column };
        findings.warning_at(&at(&place, it.message.clone()))?;
    }
    null_keys(client, plan, findings).await?;
    if account.live {
        findings.fine(&format!("collection {}: every change reaches its documents", plan.name))?;
    }
    Ok(())
}

fn places(plan: &CollectionPlan) -> impl Iterator<Item = Place> {
    plan.entries.iter().map(|it| it.entry.sql_place.clone())
}

fn at(place: &Place, message: String) -> Mistake {
    Mistake { path: place.path.clone(), line: place.line, column: place.column, message }
}

/// Tables whose changes can't be followed, each said once, at the first entry that reads it.
fn tables(
    plan: &CollectionPlan,
    (account, place): (&CollectionAccount, &Place),
    said: &mut Said,
    findings: &mut Findings<'_>,
) -> Written {
    let reads = plan.entries.iter().filter(|it| it.entry.sql_place == *place);
    let names: BTreeSet<String> =
        reads.flat_map(|it| &it.tables).map(|it| it.name.to_string()).collect();
    for table in account.tables.iter().filter(|it| names.contains(&it.table)) {
        if said.publication && !table.published && said.tables.insert(table.table.clone()) {
            let message = format!(
                "table {} is not published, so its changes are seen by a timer only; add it to \
                 [postgres] tables and run `onelog prepare`",
                table.table
            );
            findings.mistake(&at(place, message))?;
        }
        if let Some(cure) = &table.cure
            && said.tables.insert(format!("{}?", table.table))
        {
            let message = format!(
                "the old row of {} lacks {}, so a row that moves or goes is seen by a timer only",
                table.table,
                table.old_row_lacks.join(", ")
            );
            findings.wrong(&format!("{}; run:\n{cure}", at(place, message)))?;
        }
    }
    Ok(())
}

/// Indexes that are missing, and WITH queries that are computed whole.
fn indexes(
    entry: &EntryAccount,
    place: &Place,
    said: &mut Said,
    findings: &mut Findings<'_>,
) -> Written {
    let reading = [("reading a document".to_owned(), &entry.read)];
    let finding = entry.changes.iter().filter_map(|it| {
        Some((format!("finding the documents of a changed {}", it.table), it.query.as_ref()?))
    });
    for (what, query) in reading.into_iter().chain(finding) {
        slow_parts(&what, query, place, (said, &mut *findings))?;
    }
    Ok(())
}

fn slow_parts(
    what: &str,
    query: &QueryAccount,
    place: &Place,
    (said, findings): (&mut Said, &mut Findings<'_>),
) -> Written {
    for missing in &query.missing_indexes {
        let small = !missing.slow && missing.rows.is_some_and(|it| it < SMALL_TABLE_ROWS);
        let once = missing.create_index.clone().unwrap_or(format!("{what} {}", missing.table));
        if !small && said.indexes.insert(once) {
            let message = format!("{what} reads {}", text::missing_index(missing));
            findings.warning(&at(place, message).to_string())?;
        }
    }
    for name in &query.computed_whole {
        findings.warning_at(&at(place, text::computed_whole(name)))?;
    }
    Ok(())
}

/// Rows that are in no document, because their key is NULL.
async fn null_keys(client: &Client, plan: &CollectionPlan, findings: &mut Findings<'_>) -> Written {
    for (entry, query) in plan.entries.iter().zip(queries::null_key_queries(plan)) {
        let begun = client.batch_execute(&format!("BEGIN READ ONLY; {COUNT_LIMIT}")).await;
        let counted = match begun {
            Ok(()) => client.query_one(&query.sql, &[]).await.ok(),
            Err(_) => None,
        };
        // Too slow to count, or the connection went: the next statement tells the latter.
        let _ended = client.batch_execute("ROLLBACK").await;
        let count = counted.and_then(|it| it.try_get::<_, String>(0).ok());
        if let Some(count) = count.filter(|it| it != "0") {
            let key = &entry.entry.key;
            let rows = if count == "1" { "1 row has" } else { &format!("{count} rows have") };
            let message = format!(
                "{rows} NULL as {key} and so no document; if that is meant, let the sql leave them \
                 out with WHERE … IS NOT NULL"
            );
            findings.warning_at(&at(&entry.entry.key_place, message))?;
        }
    }
    Ok(())
}
