//! `onelog prepare`: creates what the daemon needs, and says what it does.

use std::io::Write;

use crate::capture;
use crate::cli::CommandError;
use crate::config::Config;
use crate::elasticsearch::client::Elasticsearch;
use crate::elasticsearch::index::definition::alias_name;
use crate::elasticsearch::index::note::IndexMeta;
use crate::mapping::catalog;

/// After an adopted slot, changes may be missing from the log for ever: every collection is swept,
/// by the translators that run or at their next start, because its index says that it is not whole.
async fn owe_sweeps(config: &Config, done: &mut Vec<String>) -> Result<(), CommandError> {
    let failed = |error| CommandError::failed("cannot mark the indices to be swept", error);
    let folder = &config.translate.mappings;
    let Ok(loaded) = catalog::load_folder(folder, &catalog::KnownFiles::new()) else {
        return Ok(());
    };
    let elastic = Elasticsearch::new(&config.elasticsearch).map_err(failed)?;
    for collection in loaded.collections {
        let alias = alias_name(&config.elasticsearch, &collection.name);
        let indices = elastic.list_indices(&alias, &collection.name).await.map_err(failed)?;
        for (index, _) in indices {
            elastic.amend(&index, IndexMeta::ask_sweep).await.map_err(failed)?;
            done.push(format!("Index {index} will be swept by `onelog run`."));
        }
    }
    Ok(())
}

/// Prints one line for each thing done, or, with `dry_run`, that would be done.
pub async fn prepare(
    config: &Config,
    dry_run: bool,
    adopt_slot: bool,
    out: &mut dyn Write,
) -> Result<u8, CommandError> {
    let mut done = Vec::new();
    let mut ended = capture::prepare_capture(config, dry_run, adopt_slot, &mut done)
        .await
        .map_err(|error| CommandError::failed("cannot prepare", error));
    if ended.is_ok() && adopt_slot && !dry_run {
        ended = owe_sweeps(config, &mut done).await;
    }
    for sentence in &done {
        writeln!(out, "{sentence}")?;
    }
    ended.map(|()| 0)
}
