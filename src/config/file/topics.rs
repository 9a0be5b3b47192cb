//! `[[topics]]`: what each says is checked here; what follows from it is in `config/topics.rs`.

use std::time::Duration;

use super::{checked, checks, count, required};
use crate::config::topics::{CleanupPolicy, Declaration, Format, Kind, Retention, TableTopic};
use crate::mistake::written::{Source, Table};
use crate::postgres::row_filter::RowFilter;

/// Kafka's limit for a topic's name.
const NAME_MAX: usize = 249;
/// Compaction looks at records that are kept for hours; ten years are as good as for ever.
const LAG: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What of `[kafka]` declarations are held against.
pub(super) struct Ground<'a> {
    pub topic_prefix: &'a str,
    pub min_compaction_lag: Duration,
}

pub(super) fn topics(
    source: &Source<'_>,
    tables: Vec<Table<'_, '_>>,
    ground: &Ground<'_>,
) -> Vec<Declaration> {
    let mut all: Vec<Declaration> = Vec::new();
    for table in tables {
        let span = table.span();
        let Some(declared) = declaration(source, table, ground) else { continue };
        if all.iter().any(|it| it.name == declared.name) {
            let name = &declared.name;
            source.mistake(span, format!("\"{name}\" is declared before: keep one of them"));
        }
        all.push(declared);
    }
    all
}

fn declaration(
    source: &Source<'_>,
    mut table: Table<'_, '_>,
    ground: &Ground<'_>,
) -> Option<Declaration> {
    let example = ("name", "\"outbox.event.*\"");
    let span = table.key_span("name").unwrap_or_else(|| table.span());
    let name = required(source, &mut table, example, |it| name(it, ground.topic_prefix));
    let kind = required(source, &mut table, ("kind", "\"event\""), kind);
    let policy_span = table.key_span("cleanup_policy");
    let cleanup_policy = checked(source, table.take_string("cleanup_policy"), policy);
    let lag_span = table.key_span("min_compaction_lag");
    let min_compaction_lag = table.take_duration("min_compaction_lag", LAG);
    let retention_span = table.key_span("retention");
    let retention = checked(source, table.take_string("retention"), retention);
    let partitions = count(&mut table, "partitions", 1..=10_000);
    let replication_factor = count(&mut table, "replication_factor", 1..=100);
    let extract = extract(source, &mut table);
    let format_span = table.key_span("format");
    let format = checked(source, table.take_string("format"), format);
    let cloudevents = table.take_bool("cloudevents");
    table.finish();
    let declared = Declaration {
        name: name?,
        kind: kind?,
        cleanup_policy,
        min_compaction_lag,
        retention,
        partitions,
        replication_factor,
        extract,
        format: format.unwrap_or(Format::Json),
        cloudevents: cloudevents.unwrap_or(false),
    };
    let is_of_tables = matches!(declared.kind, Kind::Entity | Kind::Event);
    if let (Some(span), false) = (format_span, is_of_tables) {
        source.mistake(span, "format is of a table's changes: an entity or an event");
    }
    of_a_table(source, &declared, (span, ground));
    let compacts = cleanup_policy.map_or(declared.kind == Kind::Entity, CleanupPolicy::compacts);
    let deletes = cleanup_policy.map_or(declared.kind != Kind::Entity, CleanupPolicy::deletes);
    if let (Some(span), false) = (retention_span, deletes) {
        let message = "retention is of topics that are not just compacted: leave it out, or write \
                       cleanup_policy = \"compact,delete\"";
        source.mistake(span, message);
    }
    if let Some(span) = lag_span {
        if !compacts {
            source.mistake(span, "min_compaction_lag is of compacted topics: leave it out");
        } else if declared.extract.is_none()
            && min_compaction_lag.is_some_and(|it| it < ground.min_compaction_lag)
        {
            // A translator that is behind trusts [kafka] min_compaction_lag (B15).
            let least = humantime::format_duration(ground.min_compaction_lag);
            let message = format!(
                "min_compaction_lag must be {least} or more, as [kafka] has it, by which \
                 translators know what may be lost"
            );
            source.mistake(span, message);
        }
    }
    if let (Some(span), Kind::Entity, false) = (policy_span, declared.kind, compacts) {
        let message = "an entity is compacted: write kind = \"event\" for what is not";
        source.mistake(span, message);
    }
    Some(declared)
}

/// `table`, `columns` and `where`.
fn extract(source: &Source<'_>, table: &mut Table<'_, '_>) -> Option<TableTopic> {
    let needed = [("columns", table.key_span("columns")), ("where", table.key_span("where"))];
    let has_table = table.key_span("table").is_some();
    let name = checked(source, table.take_string("table"), checks::table_name);
    let columns = table.take_strings("columns").map_or_else(Vec::new, |list| {
        if list.value.is_empty() {
            source.mistake(list.span, "columns must name one or more; without it all are there");
        }
        list.value.into_iter().map(|it| it.value).collect()
    });
    let filter = checked(source, table.take_string("where"), RowFilter::parse);
    for (key, span) in needed {
        if let (Some(span), false) = (span, has_table) {
            let message = format!("{key} is of a table's rows: write table = \"schema.table\" too");
            source.mistake(span, message);
        }
    }
    Some(TableTopic { table: name?, columns, filter })
}

/// What a topic besides a table's own must be like.
fn of_a_table(
    source: &Source<'_>,
    declared: &Declaration,
    (span, ground): (std::ops::Range<usize>, &Ground<'_>),
) {
    let Some(extract) = &declared.extract else { return };
    let name = &declared.name;
    if !declared.is_exact() {
        source.mistake(span, "the topic of a table's extract has a name, not a pattern");
    } else if *name == format!("{}.{}", ground.topic_prefix, extract.table) {
        let message = format!(
            "{name} is the table's own topic, which stays whole: give what is less another name"
        );
        source.mistake(span, message);
    } else if !matches!(declared.kind, Kind::Entity | Kind::Event) {
        source.mistake(span, "a table's changes are an entity or an event: write kind so");
    }
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "json" => Ok(Format::Json),
        "flat" => Ok(Format::Flat),
        "json-with-schema" => Ok(Format::JsonWithSchema),
        _ => Err(format!(
            "format must be \"json\", \"flat\" or \"json-with-schema\", not \"{text}\""
        )),
    }
}

fn name(text: &str, topic_prefix: &str) -> Result<String, String> {
    let valid = |it: u8| it.is_ascii_alphanumeric() || b"._-*?".contains(&it);
    if !(1..=NAME_MAX).contains(&text.len()) || !text.bytes().all(valid) {
        return Err(format!(
            "name must be 1 to 249 of a-z, A-Z, 0-9, \".\", \"_\" and \"-\", with \"*\" for any \
             characters and \"?\" for one, not \"{text}\""
        ));
    }
    if text.starts_with(&format!("{topic_prefix}.onelog.")) {
        return Err(format!("{text} is for onelog's own topics, which need no declaration"));
    }
    Ok(text.to_owned())
}

fn kind(text: &str) -> Result<Kind, String> {
    Ok(match text {
        "entity" => Kind::Entity,
        "event" => Kind::Event,
        "command" => Kind::Command,
        "request" => Kind::Request,
        "response" => Kind::Response,
        _ => {
            return Err(format!(
                "kind must be \"entity\", \"event\", \"command\", \"request\" or \"response\", not \
                 \"{text}\""
            ));
        }
    })
}

fn policy(text: &str) -> Result<CleanupPolicy, String> {
    match text {
        "compact" => Ok(CleanupPolicy::Compact),
        "delete" => Ok(CleanupPolicy::Delete),
        "compact,delete" => Ok(CleanupPolicy::CompactDelete),
        _ => Err(format!(
            "cleanup_policy must be \"compact\", \"delete\" or \"compact,delete\", not \"{text}\""
        )),
    }
}

fn retention(text: &str) -> Result<Retention, String> {
    if text == "forever" {
        return Ok(Retention::Forever);
    }
    match humantime::parse_duration(text) {
        Ok(time) if LAG.contains(&time) => Ok(Retention::For(time)),
        _ => Err(format!(
            "retention must be \"forever\", or a duration from \"1s\" to \"3650d\", such as \
             \"7d\", not \"{text}\""
        )),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::file::parse;

    const EXAMPLE: &str = include_str!("../../../config.example.toml");

    fn mistakes(topics: &str) -> Vec<String> {
        let text = format!(
            "[postgres]\nurl = \"postgres://onelog@localhost/app\"\ntables = [\"public.*\"]\n\
             [kafka]\nbrokers = \"localhost:9092\"\ntopic_prefix = \"app\"\n\
             [elasticsearch]\nurl = \"http://localhost:9200\"\n{topics}"
        );
        match parse("config.toml".as_ref(), &text, &|_| None) {
            Ok(_) => Vec::new(),
            Err(mistakes) => mistakes.0.into_iter().map(|it| it.message).collect(),
        }
    }

    #[test]
    fn each_mistake_of_a_declaration_is_told() {
        let cases = [
            ("kind = \"event\"", "name is missing in [[topics]]"),
            ("name = \"a\"", "kind is missing in [[topics]]"),
            ("name = \"a b\"\nkind = \"event\"", "not \"a b\""),
            ("name = \"app.onelog.progress\"\nkind = \"event\"", "onelog's own topics"),
            ("name = \"a\"\nkind = \"fact\"", "kind must be \"entity\""),
            ("name = \"a\"\nkind = \"event\"\ncleanup_policy = \"none\"", "cleanup_policy must be"),
            ("name = \"a\"\nkind = \"event\"\nretention = \"soon\"", "retention must be"),
            ("name = \"a\"\nkind = \"entity\"\nretention = \"7d\"", "retention is of topics"),
            (
                "name = \"a\"\nkind = \"entity\"\ncleanup_policy = \"delete\"",
                "an entity is compacted",
            ),
            (
                "name = \"a\"\nkind = \"entity\"\nmin_compaction_lag = \"1h\"",
                "must be 7days or more",
            ),
            ("name = \"a\"\nkind = \"event\"\nmin_compaction_lag = \"8d\"", "of compacted topics"),
            ("name = \"a\"\nkind = \"event\"\npartitions = 0", "partitions must be from 1"),
            ("name = \"a\"\nkind = \"event\"\nparts = 1", "unknown key parts"),
            ("name = \"a\"\nkind = \"event\"\nformat = \"avro\"", "format must be \"json\""),
            ("name = \"a\"\nkind = \"command\"\nformat = \"flat\"", "format is of a table's"),
            ("name = \"a\"\nkind = \"event\"\nwhere = \"b\"", "where is of a table's rows"),
            ("name = \"a\"\nkind = \"event\"\ntable = \"t\"", "as schema.table"),
            (
                "name = \"a\"\nkind = \"event\"\ntable = \"public.t\"\ncolumns = []",
                "columns must name one or more",
            ),
            (
                "name = \"a\"\nkind = \"event\"\ntable = \"public.t\"\nwhere = \"now() > a\"",
                "where compares something but a column",
            ),
            ("name = \"a*\"\nkind = \"event\"\ntable = \"public.t\"", "not a pattern"),
            ("name = \"a\"\nkind = \"command\"\ntable = \"public.t\"", "a table's changes are"),
            (
                "name = \"app.public.t\"\nkind = \"event\"\ntable = \"public.t\"",
                "the table's own topic, which stays whole",
            ),
            (
                "name = \"a\"\nkind = \"event\"\n[[topics]]\nname = \"a\"\nkind = \"event\"",
                "\"a\" is declared before",
            ),
        ];
        for (text, expected) in cases {
            let found = mistakes(&format!("[[topics]]\n{text}\n"));
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].contains(expected), "{text}: {}", found[0]);
        }
    }

    #[test]
    fn what_the_example_file_shows_of_topics_is_right_and_whole() {
        let shown: String = EXAMPLE
            .lines()
            .skip_while(|it| *it != "#[[topics]]")
            .take_while(|it| !it.starts_with('['))
            .filter_map(|it| it.strip_prefix('#'))
            .filter(|it| !it.starts_with(' '))
            .map(|it| format!("{it}\n"))
            .collect();
        assert_eq!(mistakes(&shown), Vec::<String>::new(), "{shown}");
        let known = mistakes("[[topics]]\nname = \"a\"\nkind = \"event\"\nzzzzzzzzzzzzzz = 1\n");
        let known = known[0].split("known are: ").nth(1).expect("a list of keys");
        for key in known.split(", ") {
            assert!(shown.contains(&format!("\n{key} = ")), "config.example.toml lacks {key}");
        }
    }
}
