//! Proof that the tests watch the rules: each rule is broken by a line or two, in a copy of the
//! sources, and the test that is named for it must fail. `make mutate` does it; `deploy/PROOF.md`
//! has what came of it. The copy has all mutations at once, and is compiled once: each waits for
//! its name in the environment.
//! ONELOG_TEST_MUTATIONS (all): some names, with commas between.

#![allow(clippy::print_stdout, reason = "the table is the answer")]

#[allow(dead_code, reason = "the rest is for tests/tidy.rs")]
#[path = "mutations/list.rs"]
mod list;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use list::Mutation;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Beside the build, so that nothing of it is part of the project.
fn folder() -> PathBuf {
    root().join("target/mutations")
}

/// A copy of the project that may be spoilt. Files keep their times, so that what is the same is
/// not compiled again.
fn copy() -> PathBuf {
    let tree = folder().join("tree");
    std::fs::create_dir_all(&tree).expect("a folder");
    for name in ["src", "tests"] {
        let old = tree.join(name);
        if old.exists() {
            std::fs::remove_dir_all(old).expect("the copy of before is removed");
        }
    }
    let entries = std::fs::read_dir(root()).expect("the project").map(|it| it.expect("an entry"));
    let wanted = entries.filter(|it| !["target", ".git"].iter().any(|not| it.file_name() == *not));
    let copied = Command::new("cp")
        .arg("-a")
        .args(wanted.map(|it| it.path()))
        .arg(&tree)
        .status()
        .expect("cp runs");
    assert!(copied.success(), "the project is copied to {}", tree.display());
    // `deploy/stack` looks for the servers that it runs below target/.
    let link = tree.join("target");
    if !link.exists() {
        std::os::unix::fs::symlink(root().join("target"), link).expect("a link");
    }
    tree
}

/// Puts every mutation into the copy. Each waits for its name in ONELOG_BROKEN.
fn spoil(tree: &Path, mutations: &[Mutation]) {
    for edit in mutations.iter().flat_map(|it| &it.edits) {
        let path = tree.join(&edit.file);
        let text = std::fs::read_to_string(&path).expect("a source");
        let spoilt = edit.applied(&text).unwrap_or_else(|fault| panic!("{fault}"));
        std::fs::write(&path, spoilt).expect("the copy is written");
    }
    let path = tree.join("src/lib.rs");
    let text = std::fs::read_to_string(&path).expect("the library");
    std::fs::write(&path, text + SWITCH).expect("the copy is written");
}

const SWITCH: &str = "
/// Whether this mutation is the one to be tried.
fn broken(name: &str) -> bool {
    std::env::var(\"ONELOG_BROKEN\").is_ok_and(|it| it == name)
}
";

/// The test of a mutation in the copy, with the rule broken or not.
fn tested(tree: &Path, mutation: &Mutation, broken: bool) -> (bool, String) {
    let ran = Command::new("cargo")
        .args(["test", "--locked"])
        .args(mutation.test.split_whitespace())
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", folder().join("build"))
        .env("ONELOG_BROKEN", if broken { &mutation.name } else { "" })
        .stdin(Stdio::null())
        .output()
        .expect("cargo runs");
    let said = [ran.stdout, ran.stderr].concat();
    (ran.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// Whether the test passes, and fails once the rule is broken; Err: what is wrong.
fn shown(tree: &Path, mutation: &Mutation) -> Result<(), String> {
    let log = folder().join(format!("{}.log", mutation.name));
    let kept = |said: &str| std::fs::write(&log, said).expect("what was said is kept");
    let (passed, said) = tested(tree, mutation, false);
    kept(&said);
    if !passed || said.contains("running 0 tests") && !said.contains(" 1 passed") {
        return Err(format!("its test does not pass as it is; see {}", log.display()));
    }
    let (passed, said) = tested(tree, mutation, true);
    kept(&said);
    match (passed, said.contains(&mutation.says)) {
        (true, _) => Err("nobody noticed".to_owned()),
        (false, true) => Ok(()),
        (false, false) => Err(format!("it failed for another reason; see {}", log.display())),
    }
}

#[test]
fn each_mutation_is_told_in_the_proof() {
    let proof = std::fs::read_to_string(root().join("deploy/PROOF.md")).expect("deploy/PROOF.md");
    let untold: Vec<String> = list::read(root())
        .into_iter()
        .map(|it| row(&it))
        .filter(|it| !proof.contains(it))
        .collect();
    assert!(untold.is_empty(), "deploy/PROOF.md lacks these rows:\n{}", untold.join("\n"));
}

fn row(mutation: &Mutation) -> String {
    let Mutation { name, rule, broken, test, says, .. } = mutation;
    format!("| `{name}` | {rule} | {broken} | `{test}` | {} |", says.replace('|', "\\|"))
}

#[test]
#[ignore = "an hour: make mutate"]
fn every_broken_rule_fails_a_test() {
    let wanted = std::env::var("ONELOG_TEST_MUTATIONS").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split(',').filter(|it| !it.is_empty()).collect();
    let (tree, mutations) = (copy(), list::read(root()));
    spoil(&tree, &mutations);
    let mut faults = Vec::new();
    let is_wanted = |it: &Mutation| wanted.is_empty() || wanted.contains(&it.name.as_str());
    for mutation in mutations.iter().filter(|it| is_wanted(it)) {
        let started = Instant::now();
        let ended = shown(&tree, mutation);
        let outcome = ended.as_ref().err().map_or("caught", String::as_str);
        println!("{:4} s  {}: {outcome}", started.elapsed().as_secs(), mutation.name);
        faults.extend(ended.err().map(|it| format!("{}: {it}", mutation.name)));
    }
    assert!(faults.is_empty(), "rules that nobody watches:\n{}", faults.join("\n"));
}
