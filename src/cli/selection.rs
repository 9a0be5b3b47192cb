//! Which collections a command's FILE means: those that it has entries of, each with all its
//! entries, also those from other files of the mappings folder.

use std::collections::BTreeSet;
use std::path::Path;

use crate::cli::CommandError;
use crate::config::Config;
use crate::mapping::{Collection, catalog, file};
use crate::mistake::Mistakes;

/// The collections of the mapping file at `path`.
pub fn collections_of(config: &Config, path: &Path) -> Result<Vec<Collection>, CommandError> {
    let cannot_read =
        |source| CommandError::failed(format!("cannot read {}", path.display()), source);
    let text = std::fs::read_to_string(path).map_err(cannot_read)?;
    let parsed = file::parse(path, &text);
    let mapping = parsed.map_err(|it| CommandError::failed("the mapping file has mistakes", it))?;
    let names: BTreeSet<String> = mapping.entries.into_iter().map(|it| it.collection).collect();

    let folder = &config.translate.mappings;
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let inside = matches!((parent.canonicalize(), folder.canonicalize()), (Ok(a), Ok(b)) if a == b);
    let loaded = if inside {
        catalog::load_folder(folder, &catalog::KnownFiles::new()).map_err(cannot_read)?
    } else {
        catalog::merge(vec![(path.to_owned(), Ok(text))], &catalog::KnownFiles::new())
    };
    let ours: Vec<Collection> =
        loaded.collections.into_iter().filter(|it| names.contains(&it.name)).collect();
    if ours.len() < names.len() {
        let reason = "other files of the folder spoil the file's collections";
        return Err(CommandError::failed(reason, Mistakes(loaded.mistakes)));
    }
    Ok(ours)
}
