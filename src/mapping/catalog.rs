//! All mapping files of a folder -> collections.
//!
//! A file with a mistake takes nothing down: the collections that it had at its last good load, and
//! those that its text still names, are *frozen*, which means that what served before goes on. A
//! frozen collection is left out of the new list even if other files speak of it, as it would be
//! only half of itself.
//!
//! **Invariant:** a collection is in `collections` or in `frozen`, never in both.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::mapping::{Collection, Mapping, Place, file};
use crate::mistake::written::nearest;
use crate::mistake::{Mistake, Mistakes};

/// A mapping file is written by hand; a larger one is something else that was put there.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// File -> the collections that it spoke of when it was last read without mistakes.
pub type KnownFiles = BTreeMap<PathBuf, BTreeSet<String>>;

/// What a folder holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// By name.
    pub collections: Vec<Collection>,
    pub mistakes: Vec<Mistake>,
    /// Collections that a broken file speaks of, or spoke of before it broke: keep what serves.
    pub frozen: BTreeSet<String>,
    /// To be given to the next load.
    pub known: KnownFiles,
}

/// Reads every `*.toml` of a folder, by file name. Hidden files are left out, as editors' and
/// Kubernetes' own are.
///
/// # Errors
/// The folder itself can't be listed. A file that can't be read is a mistake at its place.
pub fn load_folder(folder: &Path, known: &KnownFiles) -> std::io::Result<Loaded> {
    let mut paths = Vec::new();
    for item in std::fs::read_dir(folder)? {
        let path = item?.path();
        let hidden = path.file_name().is_some_and(|it| it.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|it| it == "toml") && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    let texts = paths.into_iter().map(|path| {
        let text = read_text(&path);
        (path, text)
    });
    Ok(merge(texts.collect(), known))
}

/// Reads one file, as if its folder had no other.
pub fn load_file(path: &Path) -> Loaded {
    merge(vec![(path.to_owned(), read_text(path))], &KnownFiles::new())
}

/// A file's text; Err: why it can't be read.
fn read_text(path: &Path) -> Result<String, String> {
    let opened = std::fs::File::open(path).map_err(|error| format!("can't open: {error}"))?;
    let mut text = String::new();
    let read = opened.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    match read.map_err(|error| format!("can't read: {error}"))? {
        bytes if u64::try_from(bytes).is_ok_and(|it| it <= FILE_BYTES_MAX) => Ok(text),
        _ => Err("the file is larger than 1 MiB: split it".to_owned()),
    }
}

/// The pure part of a load: files in order, with their texts or why these can't be read.
pub fn merge(files: Vec<(PathBuf, Result<String, String>)>, known: &KnownFiles) -> Loaded {
    let mut loaded = Loaded::default();
    let mut mappings = Vec::new();
    for (path, text) in files {
        let before = known.get(&path).cloned().unwrap_or_default();
        let (mistakes, mentioned) = match text {
            Ok(text) => match file::parse(&path, &text) {
                Ok(mapping) => {
                    loaded.known.insert(path, names(&mapping));
                    mappings.push(mapping);
                    continue;
                }
                Err(Mistakes(mistakes)) => (mistakes, mentioned(&text)),
            },
            Err(message) => {
                (vec![Mistake { path: path.clone(), line: 1, column: 1, message }], BTreeSet::new())
            }
        };
        loaded.mistakes.extend(mistakes);
        loaded.frozen.extend(before.iter().cloned());
        loaded.frozen.extend(mentioned);
        // Kept under what it had when it was good: a file may stay broken over many loads.
        loaded.known.insert(path, before);
    }
    collect(mappings, &mut loaded);
    loaded
}

fn names(mapping: &Mapping) -> BTreeSet<String> {
    let entries = mapping.entries.iter().map(|it| it.collection.clone());
    entries.chain(mapping.settings.iter().map(|it| it.0.clone())).collect()
}

/// Puts the mappings' entries and settings together by collection.
fn collect(mappings: Vec<Mapping>, loaded: &mut Loaded) {
    let mut collections: BTreeMap<String, Collection> = BTreeMap::new();
    let mut settings = BTreeMap::new();
    for mapping in mappings {
        for entry in mapping.entries {
            let collection =
                collections.entry(entry.collection.clone()).or_insert_with_key(|name| Collection {
                    name: name.clone(),
                    entries: vec![],
                    settings: no_settings(),
                });
            collection.entries.push(entry);
        }
        for (name, written, place) in mapping.settings {
            if let Some((_, first)) = settings.get(&name) {
                let first: &Place = first;
                let message = format!(
                    "[collection.{name}] is also written at {}:{}: keep one of them",
                    first.path.display(),
                    first.line
                );
                loaded.mistakes.push(mistake(place, message));
                loaded.frozen.insert(name);
                continue;
            }
            settings.insert(name, (written, place));
        }
    }
    for (name, (written, place)) in settings {
        match collections.get_mut(&name) {
            Some(collection) => collection.settings = written,
            // Its entries may be in the file that is broken.
            None if loaded.frozen.contains(&name) || !loaded.mistakes.is_empty() => {}
            None => {
                let known: Vec<&str> = collections.keys().map(String::as_str).collect();
                let meant = nearest(&name, &known)
                    .map_or_else(String::new, |it| format!("; did you mean [collection.{it}]?"));
                let message = format!(
                    "[collection.{name}] has no [[denormalization]] in any file: write one with \
                     collection_name = \"{name}\", or take this away{meant}"
                );
                loaded.mistakes.push(mistake(place, message));
            }
        }
    }
    collections.retain(|name, _| !loaded.frozen.contains(name));
    loaded.collections = collections.into_values().collect();
}

fn no_settings() -> crate::mapping::CollectionSettings {
    crate::mapping::CollectionSettings { index_settings: "{}".to_owned(), ..Default::default() }
}

fn mistake(place: Place, message: String) -> Mistake {
    Mistake { path: place.path, line: place.line, column: place.column, message }
}

/// The collections that a broken file's text still names, line by line: `collection = "…"` and
/// `[collection.…]`. A guess: one name too many only keeps what serves for longer.
fn mentioned(text: &str) -> BTreeSet<String> {
    let named = |line: &str| -> Option<String> {
        let line = line.trim();
        if let Some(header) = line.strip_prefix("[collection.") {
            let name = header.split([']', '.']).next()?;
            return Some(name.trim_matches(['"', '\'', ' ']).to_owned());
        }
        let (key, value) = line.split_once('=')?;
        if !["collection_name", "collection"].contains(&key.trim().trim_matches(['"', '\''])) {
            return None;
        }
        let value = value.trim().trim_start_matches(['"', '\'']);
        Some(value.split(['"', '\'', '#', ' ']).next()?.to_owned())
    };
    text.lines().filter_map(named).filter(|it| !it.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(collection: &str, sql: &str) -> String {
        format!(
            "[[denormalization]]\ncollection = \"{collection}\"\nkey = \"k\"\nsql = \"{sql}\"\n"
        )
    }

    fn load(files: &[(&str, &str)], known: &KnownFiles) -> Loaded {
        let files = files.iter().map(|(path, text)| (path.into(), Ok((*text).to_owned())));
        merge(files.collect(), known)
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|it| (*it).to_owned()).collect()
    }

    #[test]
    fn entries_merge_over_files_in_order() {
        let a = entry("page", "one") + &entry("other", "x");
        let b = entry("page", "two") + "[collection.page]\npoll_interval = \"1s\"";
        let loaded = load(&[("a.toml", &a), ("b.toml", &b)], &KnownFiles::new());
        assert_eq!(loaded.mistakes, []);
        let names: Vec<_> = loaded.collections.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["other", "page"]);
        let sqls: Vec<_> = loaded.collections[1].entries.iter().map(|it| it.sql.as_str()).collect();
        assert_eq!(sqls, ["one", "two"]);
        assert!(loaded.collections[1].settings.poll_interval.is_some());
    }

    #[test]
    fn a_broken_file_freezes_what_it_had_and_what_it_names() {
        let good = entry("a", "1") + &entry("b", "1");
        let shared = entry("b", "2") + &entry("c", "1");
        let first = load(&[("1.toml", &good), ("2.toml", &shared)], &KnownFiles::new());
        let broken = entry("a", "1").replace("key", "kee") + "[collection.d]\n";
        for broken in [broken.as_str(), "[[[", "collection = \"d\"\nx ="] {
            let second = load(&[("1.toml", broken), ("2.toml", &shared)], &first.known);
            assert!(!second.mistakes.is_empty());
            assert!(second.frozen.is_superset(&set(&["a", "b"])), "{broken}");
            assert_eq!(second.frozen.contains("d"), broken.contains('d'), "{broken}");
            let names: Vec<_> = second.collections.iter().map(|it| it.name.as_str()).collect();
            assert_eq!(names, ["c"], "{broken}");
            let third = load(&[("1.toml", "[[["), ("2.toml", &shared)], &second.known);
            assert!(third.frozen.is_superset(&set(&["a", "b"])), "it stays frozen");
        }
    }

    #[test]
    fn settings_are_written_once_and_for_someone() {
        let settings = "[collection.a]\npoll_interval = \"1s\"\n";
        let a = entry("a", "1") + settings;
        let loaded = load(&[("1.toml", &a), ("2.toml", settings)], &KnownFiles::new());
        let text = loaded.mistakes[0].to_string();
        assert_eq!(
            text,
            "2.toml:1:13: [collection.a] is also written at 1.toml:5: keep one of them"
        );
        assert_eq!((loaded.frozen, loaded.collections), (set(&["a"]), vec![]));
        let loaded = load(&[("2.toml", settings)], &KnownFiles::new());
        assert!(loaded.mistakes[0].message.contains("has no [[denormalization]]"));
    }

    #[test]
    fn a_folder_is_read_by_file_name_without_what_is_hidden() {
        let folder = tempfile::tempdir().unwrap();
        for (name, sql) in [("b.toml", "2"), ("a.toml", "1"), (".c.toml", "3"), ("d.toml~", "4")] {
            std::fs::write(folder.path().join(name), entry("x", sql)).unwrap();
        }
        std::fs::write(folder.path().join("e.toml"), [0xFF]).unwrap();
        let loaded = load_folder(folder.path(), &KnownFiles::new()).unwrap();
        let sqls: Vec<_> = loaded.collections[0].entries.iter().map(|it| it.sql.as_str()).collect();
        assert_eq!(sqls, ["1", "2"]);
        assert!(loaded.mistakes[0].message.starts_with("can't read"), "{:?}", loaded.mistakes);
    }
}
