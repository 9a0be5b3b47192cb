//! `onelog explain FILE`: which changes touch the file's documents, and how; as text or as JSON.

pub mod text;

use std::io::Write;
use std::path::Path;

use crate::cli::selection::collections_of;
use crate::cli::{CommandError, account};
use crate::config::Config;
use crate::mapping::resolve::resolve;
use crate::postgres::client;

/// Explains every collection of the file. Exit code 1 if one can't be kept live by its changes.
pub async fn explain(
    config: &Config,
    file: &Path,
    json: bool,
    out: &mut dyn Write,
) -> Result<u8, CommandError> {
    let collections = collections_of(config, file)?;
    let postgres = &config.postgres;
    let client = client::connect(&postgres.url, "onelog explain")
        .await
        .map_err(|it| CommandError::failed(format!("cannot reach {}", postgres.url), it))?;
    let mut accounts = Vec::with_capacity(collections.len());
    for collection in &collections {
        let plan = resolve(&client, &postgres.publication_name, collection)
            .await
            .map_err(CommandError::resolving)?;
        let account = account::of(&client, &plan)
            .await
            .map_err(|it| CommandError::failed("cannot read the catalog", it))?;
        accounts.push(account);
    }
    if json {
        let whole = serde_json::json!({ "collections": accounts });
        writeln!(out, "{whole:#}")?;
    } else {
        let mut said = String::new();
        for account in &accounts {
            let written = text::write(account, &mut said);
            debug_assert!(written.is_ok(), "a String takes all");
        }
        out.write_all(said.as_bytes())?;
    }
    Ok(u8::from(!accounts.iter().all(|it| it.live)))
}
