//! The house rules that a program can check: layers, sizes, heads, words, metrics in README.md.
//!
//! rustfmt has been run (`.ci/run` checks it first), so an item ends at the first line that is a
//! closing brace with the item's own indentation.

#[allow(dead_code, reason = "the rest is for tests/mutations.rs")]
#[path = "mutations/list.rs"]
mod mutations;

use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const PARAMETERS_MAX: usize = 5;

/// Values and rules: no clock, no I/O, no async, no logging (style of the house, "who may import
/// whom"). Their tests may use what they like.
const PURE: &[&str] = &[
    "lsn.rs",
    "relation.rs",
    "change.rs",
    "snapshot.rs",
    "document.rs",
    "mapping.rs",
    "mapping/advice.rs",
    "mapping/advice/",
    "mapping/expression_sql.rs",
    "mapping/plan.rs",
    "mapping/file.rs",
    "mapping/impact.rs",
    "mapping/key_sql.rs",
    "mapping/impact/",
    "mapping/resolve/fields.rs",
    "mistake.rs",
    "mistake/",
    "outbox.rs",
    "outbox/",
    "progress.rs",
    "json.rs",
    "config/search_template.rs",
    "gateway/fields.rs",
    "postgres/walsender.rs",
    "postgres/decode.rs",
    "postgres/pgoutput.rs",
    "postgres/assemble.rs",
    "postgres/copy/sql.rs",
    "postgres/row_filter.rs",
    "postgres/row_filter/",
    "postgres/text.rs",
    "postgres/text/",
    "postgres/url.rs",
    "kafka/envelope.rs",
    "kafka/envelope/",
    "kafka/cloud_events.rs",
    "kafka/extract.rs",
    "kafka/feedback.rs",
    "gateway/window.rs",
    "kafka/record.rs",
    "kafka/offsets.rs",
    "kafka/copy_record.rs",
    "kafka/overlap.rs",
    "document/build.rs",
    "document/build/",
    "document/pending.rs",
    "document/queries.rs",
    "elasticsearch/block.rs",
    "elasticsearch/bulk.rs",
    "elasticsearch/conflict.rs",
    "elasticsearch/index/note.rs",
    "elasticsearch/index/survey.rs",
    "gateway/claims.rs",
    "gateway/commands/body.rs",
    "gateway/commands/headers.rs",
    "translate/filled.rs",
    "translate/tickets.rs",
    "translate/lookups.rs",
    "translate/route.rs",
    "translate/sweep/frontier.rs",
    "translate/sweep/pace.rs",
];

const IMPURE_WORDS: &[&str] = &[
    "async fn",
    "tokio::",
    "tracing::",
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "TcpStream",
    "TcpListener",
    "std::env",
];

/// Who may not be imported from where: a path prefix below src/, and prefixes of `crate::` paths.
const FORBIDDEN_IMPORTS: &[(&str, &[&str])] = &[
    (
        "postgres",
        &["kafka::producer", "kafka::consumer", "elasticsearch", "translate", "supervisor", "cli"],
    ),
    ("kafka", &["elasticsearch", "translate", "supervisor", "cli", "document::read"]),
    ("mapping", &["kafka", "elasticsearch", "translate", "capture", "supervisor", "cli"]),
    ("document", &["kafka", "elasticsearch", "translate", "capture", "supervisor", "cli"]),
    ("elasticsearch", &["kafka", "postgres", "translate", "capture", "supervisor", "cli"]),
    ("capture", &["elasticsearch", "document", "mapping", "translate", "supervisor", "cli"]),
    ("translate", &["capture", "gateway", "supervisor", "cli"]),
    ("gateway", &["capture", "translate", "supervisor", "cli", "document::read"]),
    (
        "http",
        &[
            "kafka",
            "elasticsearch",
            "postgres",
            "translate",
            "capture",
            "gateway",
            "supervisor",
            "cli",
        ],
    ),
    ("supervisor", &["cli"]),
];

const BANNED_FILE_NAMES: &[&str] =
    &["utils.rs", "common.rs", "types.rs", "helpers.rs", "manager.rs"];

struct Source {
    /// Below src/ or tests/, with slashes.
    name: String,
    text: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<Source> {
    let base = root().join(folder);
    let mut found = Vec::new();
    collect(&base, &base, &mut found);
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!found.is_empty(), "no source below {folder}");
    found
}

fn collect(base: &Path, folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(base, &path, found);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let name = path.strip_prefix(base).expect("below base").to_string_lossy().into_owned();
            found.push(Source { name, text: fs::read_to_string(&path).expect("UTF-8") });
        }
    }
}

/// The part before the unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// (line number, name, lines, parameters) of every function.
fn functions(text: &str) -> Vec<(usize, String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let bare = line.trim_start();
        let words = ["pub ", "pub(crate) ", "pub(super) ", "const ", "async "];
        let mut rest = bare;
        while let Some(next) = words.iter().find_map(|it| rest.strip_prefix(it)) {
            rest = next;
        }
        let Some(rest) = rest.strip_prefix("fn ") else { continue };
        // A trait of somebody else's says how many parameters its functions have.
        let owner = lines[..at].iter().rev().find(|it| indentation(it) < indentation(line));
        let foreign = owner.is_some_and(|it| it.starts_with("impl") && it.contains(" for "));
        let name: String =
            rest.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect();
        let end = lines[at..].iter().position(|it| {
            let closes = it.trim_start() == "}" && indentation(it) == indentation(line);
            closes
                || (it.trim_end().ends_with(';') && indentation(it) == indentation(line))
                || (it.trim_end().ends_with('}') && it.contains("fn ") && it.contains('{'))
        });
        let length = end.map_or(1, |it| it + 1);
        let count = parameters(&lines[at..at + length].join("\n"));
        found.push((at + 1, name, length, if foreign { 0 } else { count }));
    }
    found
}

/// How many parameters a function has, `self` included.
fn parameters(function: &str) -> usize {
    let after_fn = &function[function.find("fn ").expect("a function") + 3..];
    // Generics may hold parentheses (`impl Fn(u8)`), so the list starts at the first parenthesis
    // outside angle brackets.
    let mut angle = 0i32;
    let mut depth = 0i32;
    let mut count = 0;
    let mut pending = false;
    let mut previous = ' ';
    for letter in after_fn.chars() {
        match letter {
            '<' if depth <= 1 => angle += 1,
            '>' if depth <= 1 && previous != '-' && previous != '=' => angle -= 1,
            '(' | '[' if angle == 0 || depth > 0 => depth += 1,
            ')' | ']' if depth > 0 => {
                depth -= 1;
                if depth == 0 {
                    return count + usize::from(pending);
                }
            }
            ',' if depth == 1 && angle == 0 => {
                count += 1;
                pending = false;
            }
            it if depth >= 1 && !it.is_whitespace() => pending = true,
            _ => {}
        }
        previous = letter;
    }
    count
}

#[test]
fn files_and_functions_are_small_enough_to_hold() {
    let mut faults = Vec::new();
    for folder in ["src", "tests"] {
        for source in sources(folder) {
            let lines = source.text.lines().count();
            if lines > FILE_LINES_MAX {
                faults.push(format!("{folder}/{}: {lines} lines", source.name));
            }
            for (line, name, length, parameters) in functions(&source.text) {
                if length > FUNCTION_LINES_MAX {
                    faults.push(format!(
                        "{folder}/{}:{line}: {name} has {length} lines",
                        source.name
                    ));
                }
                if parameters > PARAMETERS_MAX {
                    let place = format!("{folder}/{}:{line}", source.name);
                    faults.push(format!("{place}: {name} has {parameters} parameters"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "split by idea:\n{}", faults.join("\n"));
}

#[test]
fn every_file_has_a_head() {
    let missing: Vec<String> = ["src", "tests"]
        .iter()
        .flat_map(|folder| sources(folder).into_iter().map(move |it| (folder, it)))
        .filter(|(_, it)| !it.text.starts_with("//! ") || it.text.starts_with("//! To come"))
        .map(|(folder, it)| format!("{folder}/{}", it.name))
        .collect();
    assert!(missing.is_empty(), "say what the file is for, in a //! head:\n{}", missing.join("\n"));
}

#[test]
fn values_and_rules_stay_pure() {
    let mut faults = Vec::new();
    for source in sources("src") {
        let pure = PURE
            .iter()
            .any(|it| source.name == *it || it.ends_with('/') && source.name.starts_with(it));
        if !pure || source.name.ends_with("/tests.rs") {
            continue;
        }
        for (nth, line) in without_tests(&source.text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or(line);
            for word in IMPURE_WORDS.iter().filter(|it| code.contains(**it)) {
                faults.push(format!("src/{}:{}: {word}", source.name, nth + 1));
            }
        }
    }
    assert!(faults.is_empty(), "values and rules return, they don't do:\n{}", faults.join("\n"));
}

#[test]
fn imports_point_downwards() {
    let mut faults = Vec::new();
    for source in sources("src") {
        for (place, forbidden) in FORBIDDEN_IMPORTS {
            let own = source.name == format!("{place}.rs")
                || source.name.starts_with(&format!("{place}/"));
            if !own {
                continue;
            }
            for (nth, line) in without_tests(&source.text).lines().enumerate() {
                let code = line.split("//").next().unwrap_or(line);
                for target in *forbidden {
                    if code.contains(&format!("crate::{target}")) {
                        faults.push(format!("src/{}:{}: crate::{target}", source.name, nth + 1));
                    }
                }
            }
        }
    }
    assert!(faults.is_empty(), "imports point downwards:\n{}", faults.join("\n"));
}

#[test]
fn names_say_what_is_inside() {
    for folder in ["src", "tests"] {
        for source in sources(folder) {
            let file = source.name.rsplit('/').next().unwrap_or_default();
            assert!(
                !BANNED_FILE_NAMES.contains(&file),
                "{folder}/{}: say what is inside",
                source.name
            );
            assert!(
                folder == "tests" || file != "mod.rs",
                "src/{}: foo.rs beside foo/",
                source.name
            );
        }
    }
}

#[test]
fn readme_lists_every_metric() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let missing: Vec<&str> =
        onelog::metrics::Metrics::names().into_iter().filter(|it| !readme.contains(it)).collect();
    assert!(missing.is_empty(), "README.md lacks: {missing:?}");
}

#[test]
fn each_mutation_still_finds_its_place() {
    let outgrown = mutations::outgrown(&root());
    let cure = "the sources have outgrown these; make the same mistakes in the new text, in \
                deploy/mutations.toml (or leave a rule out that is gone, there and in PROOF.md)";
    assert!(outgrown.is_empty(), "{cure}:\n{}", outgrown.join("\n"));
}

#[test]
fn the_checks_can_fail() {
    let long = format!("fn long() {{\n{}}}\n", "    step();\n".repeat(80));
    assert_eq!(functions(&long)[0].2, 82);
    let many =
        "pub async fn f<F: Fn(u8) -> u8>(a: u8, b: (u8, u8), c: F, d: &[u8], e: u8, g: u8) {}";
    assert_eq!(functions(many)[0].3, 6);
    assert_eq!(functions("fn none() {}")[0].3, 0);
    assert_eq!(functions("    fn me(&self, map: Map<u8, u8>,) -> u8;")[0].3, 2);
}
