//! The list of mutations, `deploy/mutations.toml`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutation: Vec<Mutation>,
}

/// One rule, broken.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutation {
    pub name: String,
    pub rule: String,
    /// What is broken, in words.
    pub broken: String,
    pub edits: Vec<Edit>,
    /// Arguments of `cargo test`: which test must fail.
    pub test: String,
    /// Part of what it says then, so that a server that is away is not taken for a catch.
    pub says: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    pub file: String,
    /// Text that is in the file once.
    pub find: String,
    pub replace: String,
}

impl Edit {
    /// The file's text with the mistake in it.
    pub fn applied(&self, text: &str) -> Result<String, String> {
        match text.matches(&self.find).count() {
            1 => Ok(text.replace(&self.find, &self.replace)),
            count => Err(format!("{} has this {count} times, not once: {}", self.file, self.find)),
        }
    }
}

pub fn read(root: &Path) -> Vec<Mutation> {
    let text = std::fs::read_to_string(root.join("deploy/mutations.toml")).expect("the list");
    let list: List = toml::from_str(&text).expect("deploy/mutations.toml is as list.rs has it");
    list.mutation
}

/// The mutations that the sources have outgrown. All of them are put into one copy, so that each
/// must find its place after those before it.
pub fn outgrown(root: &Path) -> Vec<String> {
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    let mut faults = Vec::new();
    for (mutation, edit) in read(root).iter().flat_map(|it| it.edits.iter().map(move |e| (it, e))) {
        let stored = || std::fs::read_to_string(root.join(&edit.file)).unwrap_or_default();
        let text = texts.entry(edit.file.clone()).or_insert_with(stored);
        match edit.applied(text) {
            Ok(spoilt) => *text = spoilt,
            Err(fault) => faults.push(format!("{}: {fault}", mutation.name)),
        }
    }
    faults
}
