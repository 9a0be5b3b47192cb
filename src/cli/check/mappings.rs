//! What `check` asks of every mapping: does Postgres run it, does every change reach its documents,
//! and will it be fast.

use std::collections::BTreeSet;

use crate::causes::with_causes;
use crate::cli::check::Findings;
use crate::config::Config;
use crate::document::queries;
use crate::mapping::Collection;
use crate::mapping::plan::{CollectionPlan, Path};
use crate::mapping::resolve::{ResolveError, resolve};
use crate::postgres::client::Client;
use crate::postgres::{publication, query_plan};

/// Checks each collection.
pub async fn check(
    config: &Config,
    client: &Client,
    collections: &[Collection],
    findings: &mut Findings<'_>,
) -> std::io::Result<()> {
    let published = publication::inspect(client, &config.postgres.publication_name).await;
    // Without a publication every table would be a finding; that it is missing says it all.
    let mut said = Said { publication: matches!(published, Ok(Some(_))), tables: BTreeSet::new() };
    for collection in collections {
        match resolve(client, &config.postgres.publication_name, collection).await {
            Ok(plan) => one(client, &plan, &mut said, findings).await?,
            Err(ResolveError::Mistakes(mistakes)) => {
                for mistake in &mistakes.0 {
                    findings.mistake(mistake)?;
                }
            }
            Err(error) => {
                findings.wrong(&format!(
                    "collection {}: {}",
                    collection.name,
                    with_causes(&error)
                ))?;
            }
        }
    }
    Ok(())
}

/// What other collections have already led to.
struct Said {
    /// Whether there is a publication at all.
    publication: bool,
    tables: BTreeSet<String>,
}

async fn one(
    client: &Client,
    plan: &CollectionPlan,
    said: &mut Said,
    findings: &mut Findings<'_>,
) -> std::io::Result<()> {
    let name = &plan.name;
    let mut fine = true;
    for entry in &plan.entries {
        for table in &entry.tables {
            fine &= table.published;
            let news = said.publication && !table.published;
            if news && said.tables.insert(table.name.to_string()) {
                findings.wrong(&format!(
                    "collection {name}: table {} is not published, so its changes are seen by a \
                     timer only; add it to [postgres] tables and run `onelog prepare`",
                    table.name
                ))?;
            }
            let lacks: Vec<&str> = table.identity_lacks.iter().map(String::as_str).collect();
            fine &= lacks.is_empty();
            if !lacks.is_empty() && said.tables.insert(format!("{}?", table.name)) {
                findings.wrong(&format!(
                    "collection {name}: the old row of {} lacks {}, so a row that moves or goes is \
                     seen by a timer only; run:\nALTER TABLE {} REPLICA IDENTITY FULL;",
                    table.name,
                    lacks.join(", "),
                    table.name.quoted()
                ))?;
            }
        }
        // That a table is not published has been said above, with the cure.
        let reasons = entry.poll_reasons.iter().filter(|it| !it.contains("not in the publication"));
        for reason in reasons {
            fine = false;
            let place = &entry.entry.sql_place;
            let at = format!("{}:{}:{}", place.path.display(), place.line, place.column);
            findings.warning(&format!("{at}: {name} is swept on a timer: {reason}"))?;
        }
    }
    for (what, sql, parameters) in statements(plan) {
        let Ok(found) = query_plan::plan(client, &sql, parameters).await else { continue };
        for scan in found.scans {
            fine = false;
            let filter = scan.filter.map(|it| format!(" for {it}")).unwrap_or_default();
            findings.warning(&format!(
                "collection {name}: {what} reads the whole of {}{filter}; an index would serve it",
                scan.table
            ))?;
        }
    }
    if fine {
        findings.fine(&format!("collection {name}: every change reaches its documents"))?;
    }
    Ok(())
}

/// What runs for every change: a description, the SQL, and how many parameters it has.
fn statements(plan: &CollectionPlan) -> Vec<(String, String, usize)> {
    let mut all = Vec::new();
    for (nth, query) in queries::refresh_queries(plan, &[]).into_iter().enumerate() {
        let what = format!("reading a document (entry {})", nth + 1);
        all.push((what, query.sql, query.params.len()));
    }
    for path in plan.entries.iter().flat_map(|it| &it.paths) {
        if let Path::Lookup(lookup) = &path.path {
            let what = format!("finding the documents of a changed {}", path.table);
            all.push((what, lookup.sql.clone(), lookup.columns.len()));
        }
    }
    all
}
