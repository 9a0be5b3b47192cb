//! Laws of `config.toml`: the smallest file works, every mistake is found, nothing leaks.

use std::path::Path;

use super::*;

const SMALLEST: &str = r#"
[postgres]
url = "postgres://onelog@localhost:5432/app"
tables = ["public.orders", "public.order_items"]
[kafka]
brokers = "localhost:9092"
topic_prefix = "app"
[elasticsearch]
url = "http://localhost:9200"
"#;

const EXAMPLE: &str = include_str!("../../../config.example.toml");

/// Every key of the config, section by section.
const KEYS: [(&str, &[&str]); 8] = [
    (
        "postgres",
        &[
            "url",
            "slot_name",
            "publication_name",
            "tables",
            "slot_failover",
            "wal_budget",
            "wal_budget_action",
        ],
    ),
    (
        "kafka",
        &[
            "brokers",
            "topic_prefix",
            "delivery",
            "transaction_interval",
            "transaction_timeout",
            "delivery_timeout",
            "socket_timeout",
            "partitions",
            "replication_factor",
            "min_compaction_lag",
            "group_id",
            "properties",
        ],
    ),
    (
        "outbox",
        &[
            "tables",
            "topic",
            "id_column",
            "aggregatetype_column",
            "aggregateid_column",
            "type_column",
            "payload_column",
            "headers_column",
            "timestamp_column",
            "partition_column",
            "header_columns",
            "tombstones",
            "allow_null_key",
            "cleanup_after",
        ],
    ),
    (
        "elasticsearch",
        &[
            "url",
            "username",
            "password",
            "api_key",
            "ca_file",
            "index_prefix",
            "request_timeout",
            "number_of_shards",
            "number_of_replicas",
            "rollback_window",
        ],
    ),
    (
        "translate",
        &[
            "mappings",
            "poll_interval",
            "audit_interval",
            "fingerprint_interval",
            "connections",
            "keys_per_read",
            "pending_keys_max",
            "statement_timeout",
            "lock_timeout",
        ],
    ),
    ("http", &["listen"]),
    (
        "gateway",
        &[
            "listen",
            "anonymous",
            "api_keys",
            "jwt",
            "commands",
            "searches",
            "allowed_origins",
            "trusted_proxies",
            "collections",
            "response_topics",
            "body_bytes_max",
            "command_timeout",
            "wait_max",
            "rate_limit",
            "rate_burst",
            "connections_max",
            "subscribers_max",
            "feedback_retention",
            "feedback_window",
            "feedback_window_records",
            "page",
        ],
    ),
    ("log", &["level", "format"]),
];

fn env(name: &str) -> Option<String> {
    (name == "SECRET").then(|| "p$w".to_owned())
}

fn read(text: &str) -> Result<Config, Mistakes> {
    parse(Path::new("/etc/onelog/config.toml"), text, &env)
}

/// The smallest file with one line put into a section.
fn with(section: &str, line: &str) -> Result<Config, Mistakes> {
    let head = format!("[{section}]\n");
    if SMALLEST.contains(&head) {
        return read(&SMALLEST.replace(&head, &format!("{head}{line}\n")));
    }
    read(&format!("{SMALLEST}{head}{line}\n"))
}

#[test]
fn the_designs_example_loads_as_it_is() {
    let config = read(
        r#"
[postgres]
url = "postgres://onelog@localhost:5432/app"
slot_name = "onelog"
publication_name = "onelog"
tables = ["public.orders", "public.order_items"]   # schema-qualified, globs allowed
[kafka]
brokers = "localhost:9092"                          # "host:port,host:port"
topic_prefix = "app"                                # also: delivery, properties = { … }
[elasticsearch]
url = "http://localhost:9200"
index_prefix = ""
[translate]
mappings = "connectors"                             # a folder
[http]
listen = "127.0.0.1:8080"
"#,
    )
    .unwrap();
    assert_eq!(config, read(SMALLEST).unwrap(), "what it writes out are the defaults");
    assert_eq!(config.translate.mappings, Path::new("/etc/onelog/connectors"));
    assert_eq!(config.kafka.group_id, "app.onelog");
    assert_eq!(config.elasticsearch.url, "http://localhost:9200");
}

#[test]
fn the_example_file_has_every_key_with_its_default() {
    assert_eq!(read(EXAMPLE).unwrap(), read(SMALLEST).unwrap());
    let mut section = "";
    let mut found = std::collections::BTreeSet::new();
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some((name, _)) = line.strip_prefix('[').and_then(|it| it.split_once(']')) {
            section = name.trim_start_matches('[');
            if let Some((section, key)) = section.split_once('.') {
                found.insert((section, key));
            }
        } else if let Some((key, _)) = line.split_once(" = ") {
            found.insert((section, key.trim()));
        }
    }
    for (section, keys) in KEYS {
        for key in keys {
            assert!(found.contains(&(section, key)), "config.example.toml lacks {section}.{key}");
        }
    }
}

#[test]
fn no_key_of_the_sections_is_left_out_of_the_list_of_keys() {
    // An unknown key's mistake lists what is known when nothing is near.
    for (section, keys) in KEYS {
        let Mistakes(mistakes) = with(section, "zzzzzzzzzzzzzzzz = 1").unwrap_err();
        let known = mistakes[0].message.split("known are: ").nth(1).unwrap();
        let known: std::collections::BTreeSet<&str> = known.split(", ").collect();
        assert_eq!(known, keys.iter().copied().collect(), "{section}");
    }
}

#[test]
fn all_mistakes_are_found_at_once_at_their_places() {
    let text = r#"
[postgres]
url = "postgres://onelog@localhost/app"
slot_name = "One Log"
tables = []
[kafka]
borkers = "localhost:9092"
topic_prefix = "a b"
delivery_timeout = "soon"
partitions = 0
[elasticsearch]
url = "localhost:9200"
[translat]
"#;
    let Mistakes(mistakes) = read(text).unwrap_err();
    let found: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
    let expected = [
        "/etc/onelog/config.toml:4:13: slot_name must be 1 to 63 of a-z",
        "/etc/onelog/config.toml:5:10: tables must name one or more",
        "/etc/onelog/config.toml:6:2: brokers is missing in [kafka]: write brokers = ",
        "/etc/onelog/config.toml:7:1: unknown key borkers in [kafka]; did you mean brokers?",
        "/etc/onelog/config.toml:8:16: topic_prefix must be 1 to 100",
        "/etc/onelog/config.toml:9:20: delivery_timeout must be a duration such as",
        "/etc/onelog/config.toml:10:14: partitions must be from 1 to 10000, not 0",
        "/etc/onelog/config.toml:12:7: url must be such as http://localhost:9200",
        "/etc/onelog/config.toml:13:2: unknown key translat; did you mean translate?",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
}

#[test]
fn single_mistakes_say_what_to_write() {
    let cases = [
        ("kafka", "delivery = \"never\"", "must be \"at-least-once\" or"),
        ("kafka", "transaction_interval = \"1m\"", "to 10s"),
        ("kafka", "transaction_timeout = \"10s\"", "must be longer than delivery_timeout"),
        ("kafka", "properties = { acks = 0 }", "property acks is onelog's own"),
        ("kafka", "group_id = \"\"", "1 to 249"),
        ("kafka", "group_id = 7", "must be a string, not integer"),
        ("kafka", "group_id = \"${NO_SUCH}\"", "variable NO_SUCH is not set"),
        ("kafka", "group_id = \"${\"", "for the two characters"),
        ("elasticsearch", "username = \"a\"", "password is missing"),
        ("elasticsearch", "password = \"a\"", "username is missing"),
        ("elasticsearch", "username = \"a\"\napi_key = \"b\"", "username and api_key contradict"),
        ("elasticsearch", "password = \"a\"\napi_key = \"b\"", "password and api_key contradict"),
        ("elasticsearch", "api_key = \"a\\nb\"", "must be the encoded key"),
        ("elasticsearch", "index_prefix = \"App-\"", "must be up to 64"),
        ("elasticsearch", "index_prefix = \"_a\"", "begin with a letter"),
        ("translate", "poll_interval = \"1ns\"", "must be \"off\", or a duration"),
        ("translate", "connections = 1_001", "from 1 to 1000"),
        ("translate", "connections = -1", "from 1 to 1000"),
        ("http", "listen = \"localhost:80\"", "must be an IP address and a port"),
        ("log", "level = \"loud=loud\"", "must be error, warn"),
        ("log", "format = \"xml\"", "must be \"text\" or \"json\""),
        ("log", "format = ", "this is not TOML"),
    ];
    for (section, line, expected) in cases {
        let Mistakes(mistakes) = with(section, line).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{line}: {mistakes:?}");
        assert!(mistakes[0].message.contains(expected), "{line}: {}", mistakes[0].message);
    }
}

#[test]
fn strings_take_variables_and_intervals_may_be_off() {
    let config = with("kafka", "group_id = \"a${SECRET}$$b$c\"").unwrap();
    assert_eq!(config.kafka.group_id, "ap$w$b$c");
    for (written, expected) in [("off", 0), ("0s", 0), ("2m", 120)] {
        let config = with("translate", &format!("poll_interval = \"{written}\"")).unwrap();
        assert_eq!(config.translate.poll_interval, Duration::from_secs(expected));
    }
    let line = "properties = { security.protocol = \"ssl\", \"linger.ms\" = 5, a.b = true }";
    let pairs = [("security.protocol", "ssl"), ("linger.ms", "5"), ("a.b", "true")];
    let expected = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(with("kafka", line).unwrap().kafka.properties, expected);
}

#[test]
fn credentials_leave_the_url_and_are_never_shown() {
    let url = |url: &str, more: &str| {
        let line = format!("url = \"{url}\"{more}");
        read(&SMALLEST.replace("url = \"http://localhost:9200\"", &line))
    };
    let config = url("https://me:p%40${SECRET}@es.example:9243/es/", "").unwrap();
    assert_eq!(config.elasticsearch.url, "https://es.example:9243/es");
    let expected = Credentials::Basic { username: "me".to_owned(), password: "p@p$w".to_owned() };
    assert_eq!(config.elasticsearch.credentials, expected);
    assert!(!format!("{config:?}").contains("p$w"));
    for key in ["username", "password", "api_key"] {
        let text = url("http://me:topsecret@h", &format!("\n{key} = \"x\"")).unwrap_err();
        let text = text.to_string();
        assert!(text.contains(&format!("url has credentials, and so has {key}")), "{text}");
        assert!(!text.contains("topsecret"));
    }
    assert!(!url("ftp://me:topsecret@h", "").unwrap_err().to_string().contains("topsecret"));
}
