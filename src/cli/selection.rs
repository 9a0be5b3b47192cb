//! Which collections a command's FILE means: those that it has entries of, each with all its
//! entries, also those from other files of the mappings folder.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::cli::CommandError;
use crate::config::Config;
use crate::mapping::{Collection, catalog};
use crate::mistake::{Mistake, Mistakes};

/// What a file means, and what keeps some of it from being understood.
#[derive(Debug)]
pub struct Selection {
    pub collections: Vec<Collection>,
    /// Of the file, and of others of its folder that spoil its collections.
    pub mistakes: Vec<Mistake>,
}

/// The collections of the mapping file at `path`.
pub fn select(config: &Config, path: &Path) -> Selection {
    let folder = &config.translate.mappings;
    let parent = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let inside = matches!((parent.canonicalize(), folder.canonicalize()), (Ok(a), Ok(b)) if a == b);
    let alone = catalog::load_file(path);
    let names: BTreeSet<&String> = alone.known.values().flatten().chain(&alone.frozen).collect();
    let mut loaded = match inside.then(|| catalog::load_folder(folder, &alone.known)) {
        Some(Ok(loaded)) => as_written(loaded, folder, path),
        // A file outside of the folder stands for itself.
        Some(Err(_)) | None => catalog::load_file(path),
    };
    loaded.collections.retain(|it| names.contains(&it.name));
    let spoilt = names.iter().any(|it| loaded.frozen.contains(*it));
    loaded.mistakes.retain(|it| it.path == path || spoilt);
    Selection { collections: loaded.collections, mistakes: loaded.mistakes }
}

/// The folder's files under the name by which the command was given theirs, so that what is said
/// of the file begins as the person wrote it.
fn as_written(mut loaded: catalog::Loaded, folder: &Path, path: &Path) -> catalog::Loaded {
    let Some(listed) = path.file_name().map(|it| folder.join(it)) else { return loaded };
    let rename = |it: &mut PathBuf| {
        if *it == listed {
            *it = path.to_owned();
        }
    };
    loaded.mistakes.iter_mut().for_each(|it| rename(&mut it.path));
    for entry in loaded.collections.iter_mut().flat_map(|it| &mut it.entries) {
        rename(&mut entry.sql_place.path);
        rename(&mut entry.key_place.path);
        entry.nest_place.iter_mut().for_each(|it| rename(&mut it.path));
    }
    loaded
}

/// The same for a command that cannot go on with mistakes.
pub fn collections_of(config: &Config, path: &Path) -> Result<Vec<Collection>, CommandError> {
    let Selection { collections, mistakes } = select(config, path);
    if !mistakes.is_empty() {
        return Err(CommandError::Mapping(Mistakes(mistakes)));
    }
    Ok(collections)
}
