//! The JSON Schema that editors check mapping files by says the same as the parser: of every file
//! of the cases, and of files put together at random.

use std::path::Path;

use boon::{Compiler, SchemaIndex, Schemas};
use onelog::mapping::file::parse;
use proptest::prelude::*;
use serde_json::Value;

const SCHEMA: &str = include_str!("../connectors/mapping.schema.json");

struct Schema {
    schemas: Schemas,
    index: SchemaIndex,
}

impl Schema {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        let json: Value = serde_json::from_str(SCHEMA).expect("JSON");
        compiler.add_resource("http://onelog/mapping.schema.json", json).expect("a resource");
        let index = compiler
            .compile("http://onelog/mapping.schema.json", &mut schemas)
            .expect("a JSON Schema");
        Self { schemas, index }
    }

    fn accepts(&self, text: &str) -> bool {
        let value: Value = toml::from_str(text).expect("TOML");
        self.schemas.validate(&value, self.index).is_ok()
    }
}

/// Whether the parser takes the file as such; that a table has no entry is for the whole folder.
fn parses(text: &str) -> bool {
    parse(Path::new("page.toml"), text).is_ok()
}

const ENTRY: &str =
    "[[denormalization]]\ncollection = \"page\"\nkey = \"id\"\nsql = \"SELECT 1\"\n";

#[test]
fn the_sample_files_are_accepted_and_name_the_schema() {
    let schema = Schema::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("connectors");
    let mut files = 0;
    for file in std::fs::read_dir(folder).expect("a folder") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|it| it == "toml") {
            let text = std::fs::read_to_string(&path).expect("text");
            assert!(text.starts_with("#:schema ./mapping.schema.json\n"), "{}", path.display());
            assert!(schema.accepts(&text) && parses(&text), "{}", path.display());
            files += 1;
        }
    }
    assert!(files >= 4, "only {files} sample files");
}

#[test]
fn what_the_parser_accepts_the_schema_accepts() {
    let schema = Schema::new();
    let cases = [
        String::new(),
        ENTRY.to_owned(),
        ENTRY
            .replace("collection", "collection_name")
            .replace("key =", "key_to_denormalize_upon ="),
        format!("{ENTRY}nest_as = \"a\"\noptional = true\n"),
        format!("{ENTRY}nest_one_as = \"a\"\n{ENTRY}"),
        format!("{ENTRY}[collection.page]\n"),
        format!("{ENTRY}[collection.page]\npoll_interval = \"2s\"\naudit_interval = \"off\"\n"),
        format!("{ENTRY}[collection.page]\npoll_interval = \"1h 30m\"\naudit_interval = \"0s\"\n"),
        format!(
            "{ENTRY}[collection.page]\nfields = {{ a = \"keyword\", \"b.c\" = {{ type = \"text\" }} }}\n"
        ),
        format!(
            "{ENTRY}[collection.page]\nsettings = {{ number_of_shards = 2, \"index.refresh_interval\" = \"5s\" }}\n"
        ),
    ];
    for text in cases {
        assert!(parses(&text), "the parser refuses\n{text}");
        assert!(schema.accepts(&text), "the schema refuses\n{text}");
    }
}

#[test]
fn what_the_parser_refuses_the_schema_refuses() {
    let schema = Schema::new();
    let settings = |line: &str| format!("{ENTRY}[collection.page]\n{line}\n");
    let cases = [
        ENTRY.replace("sql", "sqll"),
        ENTRY.replace("collection = \"page\"\n", ""),
        ENTRY.replace("key = \"id\"\n", ""),
        ENTRY.replace("sql = \"SELECT 1\"\n", ""),
        ENTRY.replace("SELECT 1", " "),
        ENTRY.replace("\"page\"", "\"Page\""),
        ENTRY.replace("\"page\"", "\"_page\""),
        ENTRY.replace("\"page\"", "3"),
        ENTRY.replace("\"id\"", "[\"id\"]"),
        format!("{ENTRY}collection_name = \"page\"\n"),
        format!("{ENTRY}key_to_denormalize_upon = \"id\"\n"),
        format!("{ENTRY}nest_as = \"a\"\nnest_one_as = \"b\"\n"),
        format!("{ENTRY}nest_as = \"\"\n"),
        format!("{ENTRY}optional = \"yes\"\n"),
        format!("title = \"x\"\n{ENTRY}"),
        ENTRY.replace("[[denormalization]]", "[denormalization]"),
        format!("{ENTRY}[collection.Page]\n"),
        settings("poll_interval = 5"),
        settings("poll_interval = \"5\""),
        settings("poll_interval = \"soon\""),
        settings("poll = \"5s\""),
        settings("fields = { a = 1 }"),
        settings("fields = { a = \"\" }"),
        settings("fields = { a = {} }"),
        settings("settings = { \"index.gc_deletes\" = \"1h\" }"),
        settings("settings = { version = 1 }"),
        settings("settings = 3"),
    ];
    for text in cases {
        assert!(!parses(&text), "the parser accepts\n{text}");
        assert!(!schema.accepts(&text), "the schema accepts\n{text}");
    }
}

/// Lines of a table: some of the known keys and near misses, with values of all kinds.
fn lines(keys: &'static [&'static str]) -> impl Strategy<Value = String> {
    let values = [
        "\"page\"",
        "\"Page\"",
        "\"\"",
        "\"id\"",
        "3",
        "true",
        "[]",
        "{}",
        "\"5s\"",
        "\"off\"",
        "{ a = \"keyword\" }",
        "{ a = { type = \"text\" } }",
        "{ version = 1 }",
    ];
    prop::sample::subsequence(keys, 0..=keys.len()).prop_flat_map(move |keys| {
        let count = keys.len();
        let values = prop::collection::vec(prop::sample::select(values.to_vec()), count);
        (Just(keys), values).prop_map(|(keys, values)| {
            let lines = keys.iter().zip(values).map(|(key, value)| format!("{key} = {value}\n"));
            lines.collect::<String>()
        })
    })
}

const KEYS: &[&str] = &[
    "collection_name",
    "collection",
    "key_to_denormalize_upon",
    "key",
    "sql",
    "nest_as",
    "nest_one_as",
    "optional",
    "other",
];
const SETTINGS: &[&str] = &["poll_interval", "audit_interval", "fields", "settings", "other"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Most files at random are refused by both; those that differ in one line from a good one are
    /// where the two could part, so half of the files begin with a good entry.
    #[test]
    fn parser_and_schema_agree(
        entry in lines(KEYS),
        settings in lines(SETTINGS),
        (good, with_settings) in (any::<bool>(), any::<bool>()),
    ) {
        let mut text = if good { ENTRY.to_owned() } else { format!("[[denormalization]]\n{entry}") };
        if with_settings || good {
            text.push_str(&format!("[collection.page]\n{settings}"));
        }
        let schema = SHARED.with(|it| it.accepts(&text));
        prop_assert_eq!(parses(&text), schema, "parser, schema of\n{}", text);
    }
}

thread_local! {
    /// Compiled once, not for every case.
    static SHARED: Schema = Schema::new();
}
