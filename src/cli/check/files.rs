//! What `check` says of the mapping files as such, before any server is asked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::cli::check::Findings;
use crate::cli::selection::{self, Selection};
use crate::config::Config;
use crate::mapping::{Collection, catalog};

/// The whole folder: its collections.
pub fn folder(config: &Config, findings: &mut Findings<'_>) -> std::io::Result<Vec<Collection>> {
    let folder = &config.translate.mappings;
    let loaded = match catalog::load_folder(folder, &catalog::KnownFiles::new()) {
        Ok(loaded) => loaded,
        Err(error) => {
            let folder = folder.display();
            findings.wrong(&format!(
                "mapping folder {folder}: {error}; create it, or change [translate] mappings"
            ))?;
            return Ok(vec![]);
        }
    };
    for mistake in &loaded.mistakes {
        findings.mistake(mistake)?;
    }
    for name in overlooked(folder) {
        findings.warning(&format!(
            "{}: onelog reads only files whose names end in .toml: rename it if it is a mapping \
             file",
            folder.join(name).display()
        ))?;
    }
    for (path, collections) in &loaded.known {
        let broken = loaded.mistakes.iter().any(|it| it.path == *path);
        if collections.is_empty() && !broken {
            findings.warning(&empty(path))?;
        }
    }
    let count = loaded.collections.len();
    findings.fine(&format!("{count} collections in {}", folder.display()))?;
    Ok(loaded.collections)
}

/// Some files: the collections that they speak of, each whole, so with its entries from others.
pub fn some(
    config: &Config,
    files: &[PathBuf],
    findings: &mut Findings<'_>,
) -> std::io::Result<Vec<Collection>> {
    let (mut collections, mut said, mut names) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for file in files {
        if file.extension().is_none_or(|it| it != "toml") {
            findings.wrong(&format!(
                "{}: onelog reads only files whose names end in .toml: rename it",
                file.display()
            ))?;
            continue;
        }
        let Selection { collections: found, mistakes } = selection::select(config, file);
        if found.is_empty() && mistakes.is_empty() {
            findings.warning(&empty(file))?;
        }
        for mistake in mistakes {
            if said.insert(mistake.clone()) {
                findings.mistake(&mistake)?;
            }
        }
        collections.extend(found.into_iter().filter(|it| names.insert(it.name.clone())));
    }
    Ok(collections)
}

fn empty(file: &Path) -> String {
    format!(
        "{}: it has no [[denormalization]], so it makes no documents: write one with \
         collection_name, key_to_denormalize_upon and sql",
        file.display()
    )
}

/// Names of files that a person may take for mapping files and the daemon does not.
fn overlooked(folder: &Path) -> Vec<String> {
    let Ok(listed) = std::fs::read_dir(folder) else { return vec![] };
    let names = listed.filter_map(|it| it.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|it| looks_like_a_mapping(it)).collect();
    names.sort();
    names
}

fn looks_like_a_mapping(name: &str) -> bool {
    let lower = name.to_lowercase();
    let ends = [".toml.txt", ".tml", ".tom", ".sql", ".toml"];
    !name.starts_with('.') && !name.ends_with(".toml") && ends.iter().any(|it| lower.ends_with(it))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_nearly_right_is_noticed() {
        let near = ["page.TOML", "page.tml", "page.toml.txt", "page.sql"];
        assert!(near.iter().all(|it| looks_like_a_mapping(it)));
        let other = ["page.toml", ".page.toml.swp", "mapping.schema.json", "page.toml~", "README"];
        assert!(!other.iter().any(|it| looks_like_a_mapping(it)));
    }
}
