//! `onelog preview FILE --key K`: the documents of one key as they would be written, without
//! writing them.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crate::cli::CommandError;
use crate::cli::selection::collections_of;
use crate::config::Config;
use crate::document::{DocumentKey, build, queries};
use crate::mapping::resolve::resolve;
use crate::postgres::client;
use crate::translate::read_limits;
use crate::translate::readers::Readers;

/// Prints a document for each collection of the file. Exit code 1 if none has the key.
pub async fn preview(
    config: &Config,
    file: &Path,
    key: &str,
    out: &mut dyn Write,
) -> Result<u8, CommandError> {
    let collections = collections_of(config, file)?;
    let postgres = &config.postgres;
    let cannot_reach = || format!("cannot read from {}", postgres.url);
    let client = client::connect(&postgres.url, "onelog preview")
        .await
        .map_err(|it| CommandError::failed(cannot_reach(), it))?;
    let readers = Readers::new(postgres.url.clone(), read_limits(config), 1);
    let keys = [DocumentKey(key.to_owned())];
    let mut found = false;
    for collection in &collections {
        let plan = resolve(&client, &postgres.publication_name, collection)
            .await
            .map_err(CommandError::resolving)?;
        let started = Instant::now();
        let read = readers
            .read(&plan.tables(), &queries::refresh_queries(&plan, &keys))
            .await
            .map_err(|it| CommandError::failed(format!("collection {}", plan.name), it))?;
        let took = started.elapsed();
        let built = build::documents(&plan, &keys, &read.rows)
            .map_err(|it| CommandError::failed(format!("collection {}", plan.name), it))?;
        for refused in built.refused {
            writeln!(out, "{} {}: {}", plan.name, refused.key, refused.reason)?;
        }
        for document in built.documents {
            match document.body {
                Some(body) => {
                    found = true;
                    let milliseconds = took.as_secs_f64() * 1_000.0;
                    writeln!(out, "{} {} (read in {milliseconds:.1} ms)", plan.name, document.key)?;
                    writeln!(out, "{}", indented(&body))?;
                }
                None => writeln!(out, "{} {}: no such document", plan.name, document.key)?,
            }
        }
    }
    Ok(u8::from(!found))
}

/// The body over several lines. It is JSON that we spliced; should it not parse, it is shown raw.
fn indented(body: &str) -> String {
    serde_json::from_str::<serde_json::Value>(body)
        .and_then(|it| serde_json::to_string_pretty(&it))
        .unwrap_or_else(|_| body.to_owned())
}
