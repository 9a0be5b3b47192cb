//! What single values of `config.toml` must look like; each check says what to write instead.

use elasticsearch::http::Url;
use percent_encoding::percent_decode_str;

use crate::config::Credentials;
use crate::postgres::url::PostgresUrl;

/// Kafka allows 249 characters for a topic's name, and `.namespace.table` may take 128 of them.
const TOPIC_PREFIX_MAX: usize = 100;
/// NAMEDATALEN - 1.
const POSTGRES_NAME_MAX: usize = 63;
/// An index name may have 255 bytes; the collection's name and the hash follow.
const INDEX_PREFIX_MAX: usize = 64;

/// Replaces `${NAME}` by the environment's variable and `$$` by `$`. Any other `$` stays.
///
/// # Errors
/// The variable is not set, or the brace is not closed.
pub fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let closed = after.split_once('}').filter(|(name, _)| !name.is_empty());
            let (name, after) =
                closed.ok_or("\"${\" begins ${NAME}; for the two characters write $${")?;
            let value = env(name).ok_or_else(|| {
                format!("the environment variable {name} is not set (for a plain $ write $$)")
            })?;
            expanded.push_str(&value);
            rest = after;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

pub(super) fn postgres_url(text: &str) -> Result<PostgresUrl, String> {
    text.parse::<PostgresUrl>().map_err(|error| error.to_string())
}

/// A segment is 16 MB, and a slot keeps two in passing: less than this is no budget.
const WAL_BUDGET_MIN: u64 = 64 << 20;

/// Bytes with one of Postgres' units, or "off".
pub(super) fn wal_budget(text: &str) -> Result<Option<u64>, String> {
    if text == "off" {
        return Ok(None);
    }
    let digits = text.trim_end_matches(|it: char| it.is_ascii_alphabetic());
    let unit: Option<u64> = match &text[digits.len()..] {
        "MB" => Some(1 << 20),
        "GB" => Some(1 << 30),
        "TB" => Some(1 << 40),
        _ => None,
    };
    let bytes = digits.trim_end().parse::<u64>().ok().zip(unit).and_then(|(n, u)| n.checked_mul(u));
    let valid = bytes.filter(|it| *it >= WAL_BUDGET_MIN);
    valid.map(Some).ok_or_else(|| {
        format!("wal_budget must be 64MB or more, such as \"20GB\", or \"off\", not \"{text}\"")
    })
}

/// Slots allow just these characters (manual, 9.27.6); publications, which allow more, are held
/// to the same so that their names never need quotes.
pub(super) fn postgres_name(key: &str, text: &str) -> Result<String, String> {
    let valid = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'_';
    if (1..=POSTGRES_NAME_MAX).contains(&text.len()) && text.bytes().all(valid) {
        return Ok(text.to_owned());
    }
    Err(format!("{key} must be 1 to 63 of a-z, 0-9 and _, not \"{text}\""))
}

/// `namespace.table`, globs allowed in both.
pub(super) fn table_pattern(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('.').collect();
    let whole = parts.len() == 2 && parts.iter().all(|it| !it.is_empty());
    if !whole {
        return Err(format!("write \"{text}\" as schema.table, such as public.orders or public.*"));
    }
    globset::Glob::new(text)
        .map(|_| text.to_owned())
        .map_err(|error| format!("\"{text}\" is no pattern: {}", error.kind()))
}

/// `namespace.table`, each as it is in the catalog.
pub(super) fn table_name(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('.').collect();
    if parts.len() == 2 && parts.iter().all(|it| !it.is_empty()) && !text.contains(['*', '?']) {
        return Ok(text.to_owned());
    }
    Err(format!("write \"{text}\" as schema.table, such as public.outbox, without globs"))
}

/// `column` or `column:header`.
pub(super) fn header_column(text: &str) -> Result<(String, String), String> {
    let (column, header) = text.split_once(':').unwrap_or((text, text));
    if column.is_empty() || header.is_empty() {
        return Err(format!("write \"{text}\" as \"column\" or \"column:header\""));
    }
    if header == "id" || header == "type" || header.starts_with("source-") {
        return Err(format!(
            "\"{header}\" is a header of onelog's own: write \"{column}:another name\""
        ));
    }
    Ok((column.to_owned(), header.to_owned()))
}

pub(super) fn brokers(text: &str) -> Result<String, String> {
    let valid = |broker: &str| {
        broker.rsplit_once(':').is_some_and(|(host, port)| {
            let bare_ipv6 = host.contains(':') && !host.starts_with('[');
            !host.is_empty() && !bare_ipv6 && port.parse::<u16>().is_ok_and(|it| it > 0)
        })
    };
    let brokers: Vec<&str> = text.split(',').map(str::trim).collect();
    match brokers.iter().find(|it| !valid(it)) {
        None => Ok(brokers.join(",")),
        Some(wrong) => {
            Err(format!("brokers must be \"host:port,host:port\"; \"{wrong}\" is no host:port"))
        }
    }
}

pub(super) fn topic_prefix(text: &str) -> Result<String, String> {
    let valid = |it: u8| it.is_ascii_alphanumeric() || b"._-".contains(&it);
    if (1..=TOPIC_PREFIX_MAX).contains(&text.len()) && text.bytes().all(valid) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "topic_prefix must be 1 to 100 of a-z, A-Z, 0-9, \".\", \"_\" and \"-\", not \"{text}\""
    ))
}

pub(super) fn group_id(text: &str) -> Result<String, String> {
    if (1..=249).contains(&text.len()) && !text.contains(char::is_control) {
        return Ok(text.to_owned());
    }
    Err("group_id must be 1 to 249 bytes without control characters".to_owned())
}

/// Why a librdkafka property can't be set by the operator: our promises rest on it.
pub(super) fn property_of_ours(name: &str) -> Option<String> {
    let instead = match name {
        "bootstrap.servers" | "metadata.broker.list" => "write it as brokers",
        "group.id" => "write it as group_id",
        "delivery.timeout.ms" | "message.timeout.ms" => "write it as delivery_timeout",
        "socket.timeout.ms" => "write it as socket_timeout",
        "acks"
        | "request.required.acks"
        | "enable.idempotence"
        | "transactional.id"
        | "enable.auto.commit"
        | "enable.auto.offset.store"
        | "auto.offset.reset"
        | "max.in.flight"
        | "max.in.flight.requests.per.connection"
        | "isolation.level"
        | "partitioner" => "nothing would be safe with another value: leave it out",
        _ => return None,
    };
    Some(format!("property {name} is onelog's own; {instead}"))
}

/// The URL without its credentials and a final slash, and the credentials.
pub(super) fn elasticsearch_url(text: &str) -> Result<(String, Option<Credentials>), String> {
    // The text may hold a password, so it is not shown.
    let example = "url must be such as http://localhost:9200 or https://user:password@host:9200";
    let mut url = Url::parse(text).map_err(|error| format!("{example}: {error}"))?;
    let right = matches!(url.scheme(), "http" | "https") && url.host_str().is_some();
    if !right || url.query().is_some() || url.fragment().is_some() {
        return Err(example.to_owned());
    }
    let decoded = |it: &str| {
        let text = percent_decode_str(it).decode_utf8();
        text.map(|it| it.into_owned()).map_err(|_| "url: credentials must be UTF-8".to_owned())
    };
    let credentials = match (url.username(), url.password()) {
        ("", None) => None,
        (_, None) | ("", Some(_)) => {
            return Err("url has half of user:password@: write both, or none".to_owned());
        }
        (username, Some(password)) => {
            Some(Credentials::Basic { username: decoded(username)?, password: decoded(password)? })
        }
    };
    let cleared = url.set_username("").is_ok() && url.set_password(None).is_ok();
    assert!(cleared, "a URL with a host can be without credentials");
    Ok((url.as_str().trim_end_matches('/').to_owned(), credentials))
}

/// An HTTP header is what carries it.
pub(super) fn api_key(text: &str) -> Result<Credentials, String> {
    if !text.is_empty() && text.bytes().all(|it| it.is_ascii_graphic()) {
        return Ok(Credentials::ApiKey(text.to_owned()));
    }
    Err("api_key must be the encoded key (base64), as Elasticsearch shows it once".to_owned())
}

/// What an index name may begin with (Elasticsearch reference, Create index API).
pub(super) fn index_prefix(text: &str) -> Result<String, String> {
    let valid = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || b"._-".contains(&it);
    let begins_well = text.is_empty() || text.starts_with(|it: char| it.is_ascii_alphanumeric());
    if text.len() <= INDEX_PREFIX_MAX && text.bytes().all(valid) && begins_well {
        return Ok(text.to_owned());
    }
    Err(format!(
        "index_prefix must be up to 64 of a-z, 0-9, \".\", \"_\" and \"-\", and begin with a letter or digit, not \"{text}\""
    ))
}

pub(super) fn log_level(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) if !text.trim().is_empty() => Ok(text.to_owned()),
        _ => Err(format!(
            "level must be error, warn, info, debug or trace, or directives such as \
             \"info,onelog::kafka=debug\", not \"{text}\""
        )),
    }
}
