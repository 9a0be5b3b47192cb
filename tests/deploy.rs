//! Checks that `deploy/compose.yaml` and `deploy/Dockerfile` agree with what `deploy/stack` runs.
//!
//! The compose file can't be run where the tests run, so nothing else would notice when a version
//! or setting is changed in one place only. Reads files, needs no server.
//!
//! Invariant: every line of the settings files is compared, so a new setting is covered unasked.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

type Settings = BTreeMap<String, String>;

/// What each service of the compose file says: `image`, the items of `environment`, and the
/// `-cNAME=VALUE` words of `command`.
type Services = BTreeMap<String, Settings>;

#[test]
fn compose_repeats_versions_and_settings() {
    let differences = compare(&expected(), &services(&read("deploy/compose.yaml")));
    assert!(differences.is_empty(), "deploy/compose.yaml:\n{}", differences.join("\n"));
}

#[test]
fn the_settings_that_tests_rely_on_are_there() {
    let expected = expected();
    for (service, key, value) in [
        ("postgres", "wal_level", "logical"),
        ("postgres", "fsync", "on"),
        ("kafka", "KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false"),
        ("elasticsearch", "action.auto_create_index", "false"),
    ] {
        assert_eq!(expected[service].get(key).map(String::as_str), Some(value), "{service} {key}");
    }
}

#[test]
fn dockerfile_uses_the_rust_version() {
    let version = &settings(&read("deploy/versions.env"), '=')["RUST_VERSION"];
    let from = format!("FROM rust:{version}-");
    assert!(read("deploy/Dockerfile").contains(&from), "deploy/Dockerfile lacks {from}");
}

#[test]
fn every_difference_is_reported() {
    let good = read("deploy/compose.yaml");
    for (says, instead, reported) in [
        ("image: postgres:15", "image: postgres:16", "postgres: image"),
        ("image: apache/kafka:4.1.0", "image: apache/kafka:latest", "kafka: image"),
        ("image: elasticsearch:9.5.3", "image: elasticsearch:9.5.2", "elasticsearch: image"),
        ("-cwal_level=logical", "-cwal_level=replica", "postgres: wal_level"),
        ("      - -cfsync=on\n", "", "postgres: fsync"),
        ("-cmax_wal_size=2GB", "-cmax_wal_size=2GB\n      - -cfull_page_writes=off", "full_page"),
        ("TOPICS_ENABLE: \"false\"", "TOPICS_ENABLE: \"true\"", "KAFKA_AUTO_CREATE_TOPICS_ENABLE"),
        ("auto_create_index: \"false\"", "auto_create_index: \"true\"", "action.auto_create_index"),
    ] {
        assert!(good.contains(says), "the compose file no longer says {says}");
        let differences = compare(&expected(), &services(&good.replacen(says, instead, 1)));
        assert_eq!(differences.len(), 1, "{says} -> {instead}: {differences:?}");
        assert!(differences[0].contains(reported), "{says} -> {instead}: {differences:?}");
    }
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The `key SEPARATOR value` lines of a settings file.
fn settings(text: &str, separator: char) -> Settings {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .filter_map(|line| line.split_once(separator))
        .map(|(key, value)| (key.trim().to_owned(), unquoted(value)))
        .collect()
}

fn unquoted(value: &str) -> String {
    value.trim().trim_matches('"').to_owned()
}

/// What the compose file must say, from the files that `deploy/stack` uses.
fn expected() -> Services {
    let versions = settings(&read("deploy/versions.env"), '=');
    let kafka = settings(&read("deploy/kafka/server.properties"), '=')
        .into_iter()
        .map(|(key, value)| (format!("KAFKA_{}", key.replace('.', "_").to_uppercase()), value))
        .collect();
    let mut services = Services::from([
        ("postgres".to_owned(), settings(&read("deploy/postgres/postgresql.conf"), '=')),
        ("kafka".to_owned(), kafka),
        (
            "elasticsearch".to_owned(),
            settings(&read("deploy/elasticsearch/elasticsearch.yml"), ':'),
        ),
    ]);
    for (service, image, version) in [
        ("postgres", "postgres", "POSTGRES_VERSION"),
        ("kafka", "apache/kafka", "KAFKA_VERSION"),
        ("elasticsearch", "elasticsearch", "ELASTICSEARCH_VERSION"),
    ] {
        let image = format!("{image}:{}", versions[version]);
        services.entry(service.to_owned()).or_default().insert("image".to_owned(), image);
    }
    services
}

/// Reads the plain subset of YAML that the compose file keeps to: two spaces a level, one line an
/// item.
fn services(compose: &str) -> Services {
    let mut services = Services::new();
    let (mut service, mut block) = (String::new(), String::new());
    let lines = compose.lines().skip_while(|line| *line != "services:").skip(1);
    for line in lines.filter(|line| !line.trim().is_empty()) {
        let depth = line.len() - line.trim_start().len();
        let (key, value) = line.trim().split_once(": ").unwrap_or((line.trim(), ""));
        match depth {
            2 => service = key.trim_end_matches(':').to_owned(),
            4 => block = key.trim_end_matches(':').to_owned(),
            _ => {}
        }
        let setting = match depth {
            4 if key == "image" => Some((key, value)),
            6 if block == "environment" => Some((key, value)),
            6 => line.trim().strip_prefix("- -c").and_then(|word| word.split_once('=')),
            _ => None,
        };
        if let Some((key, value)) = setting {
            let found = services.entry(service.clone()).or_default();
            found.insert(key.to_owned(), unquoted(value));
        }
    }
    services
}

/// One line for each setting of `expected` that `compose` lacks or says otherwise, and for each
/// Postgres setting that only `compose` has (the others have addresses and names of their own).
fn compare(expected: &Services, compose: &Services) -> Vec<String> {
    let none = Settings::new();
    let mut differences = Vec::new();
    for (service, settings) in expected {
        let found = compose.get(service).unwrap_or(&none);
        for (key, value) in settings {
            if found.get(key) != Some(value) {
                let says = found.get(key).map_or("nothing", String::as_str);
                differences.push(format!("{service}: {key} is {value} in deploy/, here {says}"));
            }
        }
        if service == "postgres" {
            let extra =
                found.keys().filter(|key| key.contains('_') && !key.starts_with("POSTGRES_"));
            differences.extend(
                extra
                    .filter(|key| !settings.contains_key(*key))
                    .map(|key| format!("{service}: {key} is only here")),
            );
        }
    }
    differences
}
