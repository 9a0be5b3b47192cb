//! What commands must look like: JSON Schemas that whoever takes them writes beside the mappings.
//!
//! `commands/TOPIC.schema.json` is for all commands of a topic, `commands/TOPIC/TYPE.schema.json`
//! for those of one type besides. Draft 2020-12 unless `$schema` says otherwise.
//!
//! A schema is one file: a `$ref` to another file or to the network is a mistake, so that a file
//! in a folder that many may write to reads nothing else and asks no server.
//!
//! All files load or none is taken: a mistake in one keeps what was there before. All mistakes are
//! told at once, each at its place.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use boon::{CompileError, Compiler, Draft, SchemaIndex, Schemas, UrlLoader, ValidationError};
use serde_json::{Value, json};

use crate::gateway::commands::body::is_id;
use crate::json::offset_of;
use crate::mistake::{Mistake, Mistakes};

/// The folder within that of the mappings.
const FOLDER: &str = "commands";
const SUFFIX: &str = ".schema.json";
/// Largest file. A schema is written by a person.
const FILE_BYTES_MAX: u64 = 1_000_000;
/// Most violations that an answer lists: enough to mend a form at once.
const VIOLATIONS_MAX: usize = 50;
/// Longest text of one, as it may quote what the client sent.
const MESSAGE_LENGTH_MAX: usize = 300;

/// What a file is known by: size, modification time, inode.
pub type Look = BTreeMap<PathBuf, (u64, i64, i64, u64)>;

/// Where a body breaks its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// JSON Pointer (RFC 6901); empty: the body itself.
    pub pointer: String,
    pub message: String,
}

impl Violation {
    pub fn to_json(&self) -> Value {
        json!({ "pointer": self.pointer, "detail": self.message })
    }
}

/// Topic and, for one type of commands, its name.
type Place = (String, Option<String>);

/// A file's schema, in a world of its own: two files may have the same `$id`.
struct Compiled {
    all: Schemas,
    top: SchemaIndex,
}

/// All schemas of one look at the folder.
#[derive(Default)]
pub struct CommandSchemas {
    places: HashMap<Place, Compiled>,
}

impl CommandSchemas {
    /// Reads the files of a look.
    ///
    /// # Errors
    /// The first mistake of each file.
    pub fn load(look: &Look) -> Result<Self, Mistakes> {
        let (mut all, mut mistakes) = (Self::default(), Vec::new());
        for path in look.keys() {
            match read(path) {
                Ok((place, schema)) => {
                    all.places.insert(place, schema);
                }
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() { Ok(all) } else { Err(Mistakes(mistakes)) }
    }

    /// The topics that there are schemas for, and that are none of those that take commands.
    pub fn strangers<'s>(&'s self, taken: impl Iterator<Item = &'s str>) -> BTreeSet<&'s str> {
        let topics: BTreeSet<_> = self.places.keys().map(|(topic, _)| topic.as_str()).collect();
        &topics - &taken.collect()
    }

    /// The schemas that speak of these commands.
    fn of(&self, topic: &str, kind: Option<&str>) -> Vec<&Compiled> {
        let find =
            |kind: Option<&str>| self.places.get(&(topic.to_owned(), kind.map(str::to_owned)));
        find(None).into_iter().chain(kind.and_then(|it| find(Some(it)))).collect()
    }

    /// Where a body breaks the schemas of its topic and type; none: it keeps them all, or there
    /// are none.
    pub fn violations(&self, topic: &str, kind: Option<&str>, body: &str) -> Vec<Violation> {
        let schemas = self.of(topic, kind);
        if schemas.is_empty() {
            return Vec::new();
        }
        // The body was walked over before; this is the only place that builds it.
        let Ok(body) = serde_json::from_str::<Value>(body) else {
            let message = "it is not JSON".to_owned();
            return vec![Violation { pointer: String::new(), message }];
        };
        let mut found = Vec::new();
        for schema in schemas {
            if let Err(error) = schema.all.validate(&body, schema.top) {
                leaves(&error, &mut found);
            }
        }
        found
    }
}

/// The innermost errors: those say what to mend.
fn leaves(error: &ValidationError<'_, '_>, found: &mut Vec<Violation>) {
    if found.len() == VIOLATIONS_MAX {
        return;
    }
    if error.causes.is_empty() {
        let message: String = error.kind.to_string().chars().take(MESSAGE_LENGTH_MAX).collect();
        let violation = Violation { pointer: error.instance_location.to_string(), message };
        if !found.contains(&violation) {
            found.push(violation);
        }
    }
    for cause in &error.causes {
        leaves(cause, found);
    }
}

/// Every schema file below the folder of mappings, links followed.
pub fn look(mappings: &Path) -> Look {
    let folder = mappings.join(FOLDER);
    let mut found = Look::new();
    let mut note = |path: PathBuf| {
        if path.to_str().is_some_and(|it| it.ends_with(SUFFIX)) {
            found.extend(look_at(path));
        }
    };
    for path in listed(&folder) {
        // What Kubernetes keeps behind its links begins with dots.
        if path.file_name().is_some_and(|it| it.to_string_lossy().starts_with('.')) {
            continue;
        }
        if path.is_dir() {
            listed(&path).into_iter().for_each(&mut note);
        } else {
            note(path);
        }
    }
    found
}

/// One file, if it is there.
pub fn look_at(path: PathBuf) -> Look {
    let known = fs::metadata(&path);
    let known = known.map(|it| (path, (it.len(), it.mtime(), it.mtime_nsec(), it.ino())));
    known.into_iter().collect()
}

fn listed(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(Result::ok).map(|it| it.path()).collect()
}

fn place(path: &Path) -> Result<Place, String> {
    let name = |it: &Path| it.file_name().and_then(|it| it.to_str()).map(str::to_owned);
    let file = name(path).and_then(|it| it.strip_suffix(SUFFIX).map(str::to_owned));
    let above = path.parent().and_then(name);
    match (file, above) {
        (Some(topic), Some(above)) if above == FOLDER => Ok((topic, None)),
        (Some(kind), Some(topic)) if is_id(&kind) => Ok((topic, Some(kind))),
        _ => Err("a command's type is 1 to 128 of A-Z, a-z, 0-9 and ._:-; rename the file".into()),
    }
}

fn read(path: &Path) -> Result<(Place, Compiled), Mistake> {
    let whole = |reason: String| Mistake::at(path, "", 0..0, reason);
    let place = place(path).map_err(whole)?;
    let size = fs::metadata(path).map_err(|it| whole(it.to_string()))?.len();
    if FILE_BYTES_MAX < size {
        return Err(whole(format!("it is larger than {FILE_BYTES_MAX} bytes; shorten it")));
    }
    let text = fs::read_to_string(path).map_err(|it| whole(it.to_string()))?;
    let schema = serde_json::from_str(&text).map_err(|it| Mistake::in_json(path, &it))?;
    let compiled = compile(schema).map_err(|it| {
        let (offset, message) = told(&it, &text);
        Mistake::at(path, &text, offset..offset, message)
    })?;
    Ok((place, compiled))
}

/// Refuses everything that is not in the file itself.
struct Nothing;

impl UrlLoader for Nothing {
    fn load(&self, url: &str) -> Result<Value, Box<dyn Error>> {
        Err(format!("$ref to {url}: a schema is one file; put it under $defs").into())
    }
}

/// What a file without an `$id` is called in messages.
const OWN: &str = "urn:onelog:command";

fn compile(schema: Value) -> Result<Compiled, Box<CompileError>> {
    let mut compiler = Compiler::new();
    compiler.use_loader(Box::new(Nothing));
    compiler.set_default_draft(Draft::V2020_12);
    // Whoever writes `"format": "email"` means it.
    compiler.enable_format_assertions();
    let mut all = Schemas::new();
    compiler.add_resource(OWN, schema).map_err(Box::new)?;
    let top = compiler.compile(OWN, &mut all).map_err(Box::new)?;
    Ok(Compiled { all, top })
}

/// Where in the text it is wrong, and what is.
fn told(error: &CompileError, text: &str) -> (usize, String) {
    let (offset, message) = match error {
        CompileError::ValidationError { src, .. } => {
            let mut found = Vec::new();
            leaves(src, &mut found);
            // A schema has many forms: the error that is innermost is of the one that was meant.
            let depth = |it: &&Violation| it.pointer.matches('/').count();
            let pointer = found.iter().max_by_key(depth).map_or("", |it| &it.pointer);
            let here = found.iter().filter(|it| it.pointer == pointer);
            // Of a broken pattern, a drawing of the place follows.
            let line = |it: &Violation| it.message.lines().next().unwrap_or_default().to_owned();
            let here: Vec<String> = here.map(line).collect();
            let message = format!("it is no JSON Schema here: {}", here.join(", or "));
            let message = message.trim_end_matches(": regex parse error:").to_owned();
            (offset_of(text, pointer), message)
        }
        CompileError::LoadUrlError { url, src } => {
            // As it was written, unless it is relative: then its last part at least was.
            let last = url.rsplit('/').next().unwrap_or(url);
            let found = text.find(url.as_str()).or_else(|| text.find(last));
            (found.unwrap_or(0), src.to_string())
        }
        other => (0, format!("{other:#}")),
    };
    (offset, message.chars().take(MESSAGE_LENGTH_MAX * 2).collect())
}

/// The schemas that count now.
#[derive(Default)]
pub struct CurrentSchemas {
    /// None: no look has succeeded yet, so that nothing can be said to keep them.
    current: RwLock<Option<Arc<CommandSchemas>>>,
}

impl CurrentSchemas {
    pub fn get(&self) -> Option<Arc<CommandSchemas>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, schemas: CommandSchemas) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(schemas));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(FOLDER).join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn loaded(files: &[(&str, &str)]) -> Result<CommandSchemas, Mistakes> {
        let folder = folder(files);
        CommandSchemas::load(&look(folder.path()))
    }

    fn pointers(found: &[Violation]) -> Vec<&str> {
        found.iter().map(|it| it.pointer.as_str()).collect()
    }

    #[test]
    fn each_violation_is_told_with_its_place() {
        let schemas = loaded(&[
            ("t.schema.json", r#"{"required": ["document_id"]}"#),
            (
                "t/place.schema.json",
                r##"{"properties": {"lines": {"items": {"$ref": "#/$defs/line"}},
                    "mail": {"format": "email"}},
                    "$defs": {"line": {"properties": {"n/m": {"type": "integer"}}}}}"##,
            ),
        ])
        .unwrap();
        let body = r#"{"type":"place","lines":[{"n/m":1},{"n/m":"x"}],"mail":"nobody"}"#;
        let found = schemas.violations("t", Some("place"), body);
        assert_eq!(pointers(&found), ["", "/lines/1/n~1m", "/mail"]);
        assert!(found[0].message.contains("document_id"), "{found:?}");
        assert_eq!(pointers(&schemas.violations("t", Some("other"), body)), [""]);
        assert!(schemas.violations("u", Some("place"), body).is_empty());
        let fine = r#"{"document_id":"d","lines":[],"mail":"a@example.com"}"#;
        assert!(schemas.violations("t", Some("place"), fine).is_empty());
    }

    #[test]
    fn a_schema_reads_no_other_file_and_asks_no_server() {
        let secret = tempfile::NamedTempFile::new().unwrap();
        fs::write(secret.path(), "{}").unwrap();
        let file = format!("file://{}", secret.path().display());
        for target in ["http://127.0.0.1:1/s.json", &file, "other.schema.json", "t/a.schema.json"] {
            let text = format!(r#"{{"$ref": "{target}"}}"#);
            let error = loaded(&[("t.schema.json", &text), ("other.schema.json", "{}")]);
            let error = error.err().expect(target).to_string();
            assert!(error.contains("t.schema.json"), "{error}");
        }
    }

    #[test]
    fn each_mistake_is_told_at_its_place() {
        let files = [
            (
                "a.schema.json",
                "{\n  \"type\": ,\n}",
                "a.schema.json:2:11: it is not JSON: expected value",
            ),
            (
                "b.schema.json",
                "{\n  \"properties\": {\"n\": {\"type\": \"strin\"}}\n}",
                "b.schema.json:2:32: it is no JSON Schema here: value must be one of",
            ),
            (
                "c.schema.json",
                "{\n  \"properties\": {\"n\": {\"pattern\": \"(\"}}\n}",
                "c.schema.json:2:35: it is no JSON Schema here: '(' is not valid regex",
            ),
            (
                "d.schema.json",
                "{\n  \"$ref\": \"file:///a.json\"\n}",
                "d.schema.json:2:12: $ref to file:///a.json: a schema is one file",
            ),
            ("t/a b.schema.json", "{}", "a b.schema.json:1:1: a command's type is"),
        ];
        let written: Vec<(&str, &str)> =
            files.iter().map(|(name, text, _)| (*name, *text)).collect();
        let mistakes = loaded(&written).err().unwrap().0;
        assert_eq!(mistakes.len(), files.len(), "{mistakes:?}");
        for (mistake, (_, _, expected)) in mistakes.iter().zip(files) {
            assert!(mistake.to_string().contains(expected), "{mistake}");
        }
    }

    #[test]
    fn files_with_the_same_id_do_not_disturb_each_other() {
        let schema = |kind: &str| format!(r#"{{"$id":"https://a.example/s","type":"{kind}"}}"#);
        let schemas =
            loaded(&[("t.schema.json", &schema("object")), ("u.schema.json", &schema("array"))]);
        let schemas = schemas.unwrap();
        assert!(schemas.violations("t", None, "{}").is_empty());
        assert_eq!(schemas.violations("u", None, "{}").len(), 1);
    }

    #[test]
    fn a_look_differs_when_a_file_does() {
        let folder = folder(&[("t.schema.json", "{}"), ("notes.txt", "")]);
        let first = look(folder.path());
        assert_eq!(first.len(), 1);
        assert_eq!(look(folder.path()), first);
        fs::write(folder.path().join("commands/t.schema.json"), "{ }").unwrap();
        assert_ne!(look(folder.path()), first);
        assert!(look(&folder.path().join("nowhere")).is_empty());
    }
}
