//! `config.toml` as written -> [`Config`] as relied on, or every mistake in it.
//!
//! Each section is a function that takes its keys out of its table: what it does not take is
//! unknown and reported. Defaults are here and nowhere else; `config.example.toml` shows them all,
//! and a test holds the two together.
//!
//! **Invariant:** a secret never enters a mistake's message: values are shown only where they
//! can't hold one.

pub mod checks;
mod gateway;
mod outbox;
#[cfg(test)]
mod tests;
mod topics;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::topics::Kind;
use crate::config::{
    BudgetAction, Config, CopyConfig, CopyMode, Credentials, Delivery, ElasticsearchConfig,
    HttpConfig, KafkaConfig, LogConfig, LogFormat, PostgresConfig, TransactionConfig,
    TranslateConfig,
};
use crate::mistake::Mistakes;
use crate::mistake::written::{Source, Table, Written};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Waits of milliseconds would only fail; waits of an hour would only hide that something is down.
const WAIT: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(60 * 60);
/// Each end of a Kafka transaction costs the brokers some writes; consumers wait for it.
const TRANSACTION_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(10);
/// Shorter than a second is no window; what is kept for a year is a backup's to keep.
const ROLLBACK_WINDOW: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 60 * 60);

/// Why there is no config.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("can't read {}: name another file with --config", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error(transparent)]
    Mistakes(#[from] Mistakes),
}

/// Reads and checks a config file; `${NAME}` is the process' environment variable.
///
/// # Errors
/// The file can't be read, or has mistakes.
pub fn load(path: &Path) -> Result<Config, LoadError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| LoadError::Io { path: path.to_owned(), source })?;
    Ok(parse(path, &text, &|name| std::env::var(name).ok())?)
}

/// Checks a config file's text. `env` looks up an environment variable.
///
/// # Errors
/// All mistakes of the file, in its order.
pub fn parse(
    path: &Path,
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, Mistakes> {
    let expand = |text: &str| checks::expand(text, env);
    let source = Source::new(path, text, Some(&expand));
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut top = source.top();
    let postgres = postgres(&source, top.take_table("postgres"));
    let mut kafka = kafka(&source, top.take_table("kafka"));
    let copy = copy(&source, top.take_table("copy"));
    let prefix = kafka.as_ref().map_or("app", |it| &it.topic_prefix);
    let outbox = outbox::outbox(&source, top.take_table("outbox"), prefix);
    let gateway = gateway::gateway(&source, &mut top, folder, prefix);
    let ground = topics::Ground {
        topic_prefix: prefix,
        min_compaction_lag: kafka.as_ref().map_or(Duration::ZERO, |it| it.min_compaction_lag),
    };
    let declared = topics::topics(&source, top.take_tables("topics"), &ground);
    if let Some(kafka) = &mut kafka {
        kafka.topics = declared;
        for command in gateway.iter().flat_map(|it| &it.commands) {
            kafka.declare(&command.topic, Kind::Command);
        }
        for topic in gateway.iter().flat_map(|it| &it.response_topics) {
            kafka.declare(topic, Kind::Response);
        }
    }
    let elasticsearch = elasticsearch(&source, top.take_table("elasticsearch"), folder);
    let translate = translate(&source, top.take_table("translate"), folder);
    let http = http(&source, top.take_table("http"));
    let log = log(&source, top.take_table("log"));
    top.finish();
    source.finish()?;
    let kept = "a section without a value has kept a mistake";
    Ok(Config {
        postgres: postgres.expect(kept),
        kafka: kafka.expect(kept),
        copy,
        outbox,
        elasticsearch: elasticsearch.expect(kept),
        translate,
        http,
        gateway,
        log,
    })
}

/// A string that a check accepts; None: it is missing, or a mistake has been kept.
fn checked<T>(
    source: &Source<'_>,
    written: Option<Written<String>>,
    check: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    let Written { value, span } = written?;
    match check(&value) {
        Ok(it) => Some(it),
        Err(message) => {
            source.mistake(span, message);
            None
        }
    }
}

/// As `checked`, for a key that must be there.
fn required<T>(
    source: &Source<'_>,
    table: &mut Table<'_, '_>,
    (key, example): (&'static str, &str),
    check: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    if table.key_span(key).is_none() {
        table.missing(key, example);
    }
    checked(source, table.take_string(key), check)
}

fn postgres(source: &Source<'_>, mut table: Table<'_, '_>) -> Option<PostgresConfig> {
    let example = ("url", "\"postgres://onelog@localhost:5432/app\"");
    let url = required(source, &mut table, example, checks::postgres_url);
    let name = |key| move |it: &str| checks::postgres_name(key, it);
    let slot_name = checked(source, table.take_string("slot_name"), name("slot_name"));
    let publication_name =
        checked(source, table.take_string("publication_name"), name("publication_name"));
    if table.key_span("tables").is_none() {
        table.missing("tables", "[\"public.orders\"]");
    }
    let tables = table.take_strings("tables").map(|list| {
        if list.value.is_empty() {
            source.mistake(list.span, "tables must name one or more: [\"public.*\"] is all of one");
        }
        let each = list.value.into_iter();
        each.filter_map(|it| checked(source, Some(it), checks::table_pattern)).collect()
    });
    let slot_failover = table.take_bool("slot_failover");
    let wal_budget = checked(source, table.take_string("wal_budget"), checks::wal_budget);
    let action = checked(source, table.take_string("wal_budget_action"), |it| match it {
        "warn" => Ok(BudgetAction::Warn),
        "drop-slot" => Ok(BudgetAction::DropSlot),
        _ => Err(format!("wal_budget_action must be \"warn\" or \"drop-slot\", not \"{it}\"")),
    });
    table.finish();
    Some(PostgresConfig {
        slot_failover: slot_failover.unwrap_or(true),
        wal_budget: wal_budget.flatten(),
        wal_budget_action: action.unwrap_or(BudgetAction::Warn),
        url: url?,
        slot_name: slot_name.unwrap_or_else(|| "onelog".to_owned()),
        publication_name: publication_name.unwrap_or_else(|| "onelog".to_owned()),
        tables: tables?,
    })
}

fn kafka(source: &Source<'_>, mut table: Table<'_, '_>) -> Option<KafkaConfig> {
    let example = ("brokers", "\"localhost:9092\"");
    let brokers = required(source, &mut table, example, checks::brokers);
    let example = ("topic_prefix", "\"app\"");
    let topic_prefix = required(source, &mut table, example, checks::topic_prefix);
    let delivery_timeout = table.take_duration("delivery_timeout", WAIT);
    let socket_timeout = table.take_duration("socket_timeout", WAIT);
    let delivery_timeout = delivery_timeout.unwrap_or(Duration::from_secs(10));
    let socket_timeout = socket_timeout.unwrap_or(Duration::from_secs(5));
    let delivery = delivery(source, &mut table, delivery_timeout.max(socket_timeout));
    let partitions = count(&mut table, "partitions", 1..=10_000);
    let replication_factor = count(&mut table, "replication_factor", 1..=100);
    let min_compaction_lag = table.take_duration("min_compaction_lag", Duration::ZERO..=3650 * DAY);
    let group_id = checked(source, table.take_string("group_id"), checks::group_id);
    let mut properties = Vec::new();
    for (name, value) in table.take_table("properties").take_properties() {
        if let Some(message) = checks::property_of_ours(&name.value) {
            source.mistake(name.span, message);
        }
        properties.push((name.value, value));
    }
    table.finish();
    let topic_prefix = topic_prefix?;
    Some(KafkaConfig {
        brokers: brokers?,
        delivery,
        delivery_timeout,
        socket_timeout,
        partitions: partitions.unwrap_or(1),
        replication_factor: replication_factor.unwrap_or(1),
        min_compaction_lag: min_compaction_lag.unwrap_or(7 * DAY),
        group_id: group_id.unwrap_or_else(|| format!("{topic_prefix}.onelog")),
        topic_prefix,
        topics: Vec::new(),
        properties,
    })
}

/// `longest`: of the waits within a transaction.
fn delivery(source: &Source<'_>, table: &mut Table<'_, '_>, longest: Duration) -> Delivery {
    let exactly_once = checked(source, table.take_string("delivery"), |it| match it {
        "at-least-once" => Ok(false),
        "exactly-once" => Ok(true),
        _ => Err(format!("delivery must be \"at-least-once\" or \"exactly-once\", not \"{it}\"")),
    });
    let interval = table.take_duration("transaction_interval", TRANSACTION_INTERVAL);
    let span = table.key_span("transaction_timeout");
    let timeout = table.take_duration("transaction_timeout", WAIT);
    let timeout = timeout.unwrap_or(Duration::from_secs(15 * 60));
    if let Some(span) = span
        && timeout <= longest
    {
        source.mistake(
            span,
            "transaction_timeout must be longer than delivery_timeout and socket_timeout",
        );
    }
    match exactly_once {
        Some(true) => Delivery::ExactlyOnce(TransactionConfig {
            interval: interval.unwrap_or(Duration::from_millis(100)),
            timeout,
        }),
        Some(false) | None => Delivery::AtLeastOnce,
    }
}

fn copy(source: &Source<'_>, mut table: Table<'_, '_>) -> CopyConfig {
    let mode = checked(source, table.take_string("mode"), |it| match it {
        "on-demand" => Ok(CopyMode::OnDemand),
        "initial" => Ok(CopyMode::Initial),
        _ => Err(format!("mode must be \"on-demand\" or \"initial\", not \"{it}\"")),
    });
    let chunk_rows = count(&mut table, "chunk_rows", 1..=100_000);
    let tables_at_once = count(&mut table, "tables_at_once", 1..=32);
    let rows_per_second_max = count(&mut table, "rows_per_second_max", 0..=4_000_000_000);
    table.finish();
    let default = CopyConfig::default();
    CopyConfig {
        mode: mode.unwrap_or(default.mode),
        chunk_rows: chunk_rows.unwrap_or(default.chunk_rows),
        tables_at_once: tables_at_once.unwrap_or(default.tables_at_once),
        rows_per_second_max: rows_per_second_max.unwrap_or(default.rows_per_second_max),
    }
}

fn elasticsearch(
    source: &Source<'_>,
    mut table: Table<'_, '_>,
    folder: &Path,
) -> Option<ElasticsearchConfig> {
    let url_span = table.key_span("url");
    let example = ("url", "\"http://localhost:9200\"");
    let url = required(source, &mut table, example, checks::elasticsearch_url);
    let written = WrittenCredentials {
        in_url: url_span.zip(url.as_ref().and_then(|(_, it)| it.clone())),
        username: table.take_string("username"),
        password: table.take_string("password"),
        api_key: table.take_string("api_key"),
    };
    let credentials = credentials(source, written);
    let ca_file = table.take_string("ca_file").map(|it| folder.join(it.value));
    let index_prefix = checked(source, table.take_string("index_prefix"), checks::index_prefix);
    let request_timeout = table.take_duration("request_timeout", WAIT);
    let number_of_shards = count(&mut table, "number_of_shards", 1..=1024);
    let number_of_replicas = count(&mut table, "number_of_replicas", 0..=100);
    let rollback_window = table.take_duration("rollback_window", ROLLBACK_WINDOW);
    table.finish();
    Some(ElasticsearchConfig {
        url: url?.0,
        credentials,
        ca_file,
        index_prefix: index_prefix.unwrap_or_default(),
        request_timeout: request_timeout.unwrap_or(Duration::from_secs(60)),
        number_of_shards: number_of_shards.unwrap_or(1),
        number_of_replicas: number_of_replicas.unwrap_or(1),
        rollback_window: rollback_window.unwrap_or(DAY),
    })
}

struct WrittenCredentials {
    in_url: Option<(std::ops::Range<usize>, Credentials)>,
    username: Option<Written<String>>,
    password: Option<Written<String>>,
    api_key: Option<Written<String>>,
}

/// One way of saying who we are; two ways are a mistake, as one of them would silently lose.
fn credentials(source: &Source<'_>, written: WrittenCredentials) -> Credentials {
    let WrittenCredentials { in_url, username, password, api_key } = written;
    if let Some((_, it)) = &in_url {
        let keys = [("username", &username), ("password", &password), ("api_key", &api_key)];
        for (key, written) in keys {
            if let Some(written) = written {
                let message = format!("url has credentials, and so has {key}: keep one of them");
                source.mistake(written.span.clone(), message);
            }
        }
        return it.clone();
    }
    match (username, password, api_key) {
        (Some(username), _, Some(_)) => {
            source.mistake(username.span, "username and api_key contradict: keep one of them");
            Credentials::None
        }
        (None, Some(password), Some(_)) => {
            source.mistake(password.span, "password and api_key contradict: keep one of them");
            Credentials::None
        }
        (Some(username), Some(password), None) => {
            Credentials::Basic { username: username.value, password: password.value }
        }
        (Some(username), None, None) => {
            source.mistake(username.span, "username is there and password is missing");
            Credentials::None
        }
        (None, Some(password), None) => {
            source.mistake(password.span, "password is there and username is missing");
            Credentials::None
        }
        (None, None, Some(key)) => {
            checked(source, Some(key), checks::api_key).unwrap_or(Credentials::None)
        }
        (None, None, None) => Credentials::None,
    }
}

fn translate(source: &Source<'_>, mut table: Table<'_, '_>, folder: &Path) -> TranslateConfig {
    let mappings = checked(source, table.take_string("mappings"), |it| match it {
        "" => Err("mappings must name a folder, such as \"connectors\"".to_owned()),
        folder => Ok(folder.to_owned()),
    });
    let poll_interval = table.take_interval("poll_interval");
    let audit_interval = table.take_interval("audit_interval");
    let fingerprint_interval = table.take_duration("fingerprint_interval", WAIT);
    let connections = count(&mut table, "connections", 1..=1000);
    let keys_per_read = count(&mut table, "keys_per_read", 1..=100_000);
    let pending_keys_max = count(&mut table, "pending_keys_max", 1..=100_000_000);
    let statement_timeout = table.take_duration("statement_timeout", WAIT);
    let lock_timeout = table.take_duration("lock_timeout", WAIT);
    table.finish();
    TranslateConfig {
        mappings: folder.join(mappings.unwrap_or_else(|| "connectors".to_owned())),
        poll_interval: poll_interval.unwrap_or(Duration::from_secs(30)),
        audit_interval: audit_interval.unwrap_or(Duration::from_secs(60 * 60)),
        fingerprint_interval: fingerprint_interval.unwrap_or(Duration::from_secs(5)),
        connections: connections.unwrap_or(4),
        keys_per_read: keys_per_read.unwrap_or(500),
        pending_keys_max: pending_keys_max.unwrap_or(100_000),
        statement_timeout: statement_timeout.unwrap_or(Duration::from_secs(30)),
        // Below Postgres' deadlock_timeout of 1 s: in a deadlock with DDL on several tables
        // it is the read that gives way.
        lock_timeout: lock_timeout.unwrap_or(Duration::from_millis(500)),
    }
}

fn http(source: &Source<'_>, mut table: Table<'_, '_>) -> HttpConfig {
    let listen = checked(source, table.take_string("listen"), |it| {
        it.parse::<SocketAddr>().map_err(|_| {
            format!("listen must be an IP address and a port, such as 127.0.0.1:8080, not \"{it}\"")
        })
    });
    table.finish();
    HttpConfig { listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))) }
}

fn log(source: &Source<'_>, mut table: Table<'_, '_>) -> LogConfig {
    let level = checked(source, table.take_string("level"), checks::log_level);
    let format = checked(source, table.take_string("format"), |it| match it {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("format must be \"text\" or \"json\", not \"{it}\"")),
    });
    table.finish();
    LogConfig {
        level: level.unwrap_or_else(|| "info".to_owned()),
        format: format.unwrap_or(LogFormat::Text),
    }
}

/// A count within `range`, which must be within `T`'s.
fn count<T: TryFrom<u64>>(
    table: &mut Table<'_, '_>,
    key: &'static str,
    range: std::ops::RangeInclusive<u64>,
) -> Option<T> {
    let number = table.take_number(key, range)?.value;
    T::try_from(number).ok()
}
