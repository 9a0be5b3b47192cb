//! `[gateway]`: what it says is checked here; what it means is in `config/gateway.rs`.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use globset::Glob;

use super::{DAY, WAIT, checked, count, required};
use crate::config::gateway::{
    ApiKey, CommandTopic, GatewayConfig, JwtConfig, Search, parse_sha256,
};
use crate::config::search_template::SearchTemplate;
use crate::mapping::file::collection_name;
use crate::mistake::written::{Source, Table};

/// Kafka's limit for a topic's name.
const TOPIC_MAX: usize = 249;
/// Less than a minute would forget a client that reconnects; more than a week is no feedback.
const RETENTION: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(7 * 24 * 60 * 60);

/// The section, if the file has it. `topic_prefix` is that of `[kafka]`.
pub(super) fn gateway(
    source: &Source<'_>,
    top: &mut Table<'_, '_>,
    folder: &Path,
    topic_prefix: &str,
) -> Option<GatewayConfig> {
    let is_there = top.key_span("gateway").is_some();
    let mut table = top.take_table("gateway");
    let listen = checked(source, table.take_string("listen"), |it| {
        it.parse::<SocketAddr>().map_err(|_| {
            format!("listen must be an IP address and a port, such as 127.0.0.1:8081, not \"{it}\"")
        })
    });
    let anonymous = table.take_bool("anonymous");
    let api_keys = api_keys(source, table.take_tables("api_keys"));
    let jwt = jwt(source, &mut table, folder);
    let commands = command_topics(source, table.take_tables("commands"), topic_prefix);
    let searches = searches(source, table.take_tables("searches"));
    let allowed_origins = strings(source, &mut table, "allowed_origins", origin);
    let trusted_proxies = strings(source, &mut table, "trusted_proxies", |it| {
        let address = it.parse::<IpAddr>();
        address.map_err(|_| format!("each of trusted_proxies must be an IP address, not \"{it}\""))
    });
    let collections = strings(source, &mut table, "collections", glob);
    let response_topics = strings(source, &mut table, "response_topics", topic_name);
    let body_bytes_max = count(&mut table, "body_bytes_max", 1024..=10_000_000);
    let command_timeout = table.take_duration("command_timeout", WAIT);
    let wait_max = table.take_duration("wait_max", WAIT);
    let rate_limit = count(&mut table, "rate_limit", 1..=1_000_000);
    let rate_burst = count(&mut table, "rate_burst", 1..=1_000_000);
    let connections_max = count(&mut table, "connections_max", 1..=1_000_000);
    let subscribers_max = count(&mut table, "subscribers_max", 1..=1_000_000);
    let feedback_retention = table.take_duration("feedback_retention", RETENTION);
    let feedback_window = table.take_duration("feedback_window", Duration::from_secs(10)..=DAY);
    let feedback_window_records = count(&mut table, "feedback_window_records", 100..=10_000_000);
    let page = table.take_string("page").map(|it| folder.join(it.value));
    table.finish();
    is_there.then(|| GatewayConfig {
        listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8081))),
        anonymous: anonymous.unwrap_or(false),
        api_keys,
        jwt,
        allowed_origins: allowed_origins.unwrap_or_default(),
        trusted_proxies: trusted_proxies.unwrap_or_default(),
        commands,
        searches,
        collections: collections.unwrap_or_else(|| vec!["*".to_owned()]),
        response_topics: response_topics
            .unwrap_or_else(|| vec!["outbox.event.response".to_owned()]),
        body_bytes_max: body_bytes_max.unwrap_or(1_000_000),
        command_timeout: command_timeout.unwrap_or(Duration::from_secs(5)),
        wait_max: wait_max.unwrap_or(Duration::from_secs(30)),
        rate_limit: rate_limit.unwrap_or(50),
        rate_burst: rate_burst.unwrap_or(100),
        connections_max: connections_max.unwrap_or(10_000),
        subscribers_max: subscribers_max.unwrap_or(10_000),
        feedback_retention: feedback_retention.unwrap_or(Duration::from_secs(60 * 60)),
        feedback_window: feedback_window.unwrap_or(Duration::from_secs(15 * 60)),
        feedback_window_records: feedback_window_records.unwrap_or(100_000),
        page,
    })
}

fn strings<T>(
    source: &Source<'_>,
    table: &mut Table<'_, '_>,
    key: &'static str,
    check: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let list = table.take_strings(key)?;
    let each = list.value.into_iter();
    Some(each.filter_map(|it| checked(source, Some(it), &check)).collect())
}

fn api_keys(source: &Source<'_>, tables: Vec<Table<'_, '_>>) -> Vec<ApiKey> {
    let mut all: Vec<ApiKey> = Vec::new();
    for mut table in tables {
        let span = table.span();
        let name = required(source, &mut table, ("name", "\"web\""), principal_name);
        let example = ("sha256", "\"…\", what `printf %s KEY | sha256sum` prints");
        let hash = required(source, &mut table, example, sha256);
        let commands = strings(source, &mut table, "commands", glob);
        let collections = strings(source, &mut table, "collections", glob);
        table.finish();
        let (Some(name), Some(hash)) = (name, hash) else { continue };
        if all.iter().any(|it| it.name == name || it.sha256 == hash) {
            source.mistake(span, format!("\"{name}\", or its key, is there before: keep one"));
        }
        let all_of_them = || vec!["*".to_owned()];
        all.push(ApiKey {
            name,
            sha256: hash,
            commands: commands.unwrap_or_else(all_of_them),
            collections: collections.unwrap_or_else(all_of_them),
        });
    }
    all
}

fn jwt(source: &Source<'_>, gateway: &mut Table<'_, '_>, folder: &Path) -> Option<JwtConfig> {
    let is_there = gateway.key_span("jwt").is_some();
    let mut table = gateway.take_table("jwt");
    if !is_there {
        table.finish();
        return None;
    }
    let some = |it: &str| match it.is_empty() {
        true => Err("must not be empty: it is what a token is checked against".to_owned()),
        false => Ok(it.to_owned()),
    };
    let file = required(source, &mut table, ("jwks_file", "\"jwks.json\""), some);
    let issuer = required(source, &mut table, ("issuer", "\"https://id.example.com\""), some);
    let audience = required(source, &mut table, ("audience", "\"onelog\""), some);
    let session_claim = checked(source, table.take_string("session_claim"), some);
    let commands = strings(source, &mut table, "commands", glob);
    let collections = strings(source, &mut table, "collections", glob);
    table.finish();
    let all_of_them = || vec!["*".to_owned()];
    Some(JwtConfig {
        jwks_file: folder.join(file?),
        issuer: issuer?,
        audience: audience?,
        session_claim: session_claim.unwrap_or_else(|| "sid".to_owned()),
        commands: commands.unwrap_or_else(all_of_them),
        collections: collections.unwrap_or_else(all_of_them),
    })
}

fn command_topics(
    source: &Source<'_>,
    tables: Vec<Table<'_, '_>>,
    topic_prefix: &str,
) -> Vec<CommandTopic> {
    let mut all: Vec<CommandTopic> = Vec::new();
    for mut table in tables {
        let span = table.key_span("topic").unwrap_or_else(|| table.span());
        let own = format!("{topic_prefix}.");
        let topic = required(source, &mut table, ("topic", "\"commands.profile\""), |it| {
            if it.starts_with(&own) {
                let message = "is where changes of the database go: name another topic";
                return Err(format!("what begins with \"{own}\" {message}"));
            }
            topic_name(it)
        });
        let collections = strings(source, &mut table, "collections", |it| Ok(it.to_owned()));
        table.finish();
        let Some(topic) = topic else { continue };
        if all.iter().any(|it| it.topic == topic) {
            source.mistake(span, format!("\"{topic}\" is there before: keep one of them"));
        }
        all.push(CommandTopic { topic, collections: collections.unwrap_or_default() });
    }
    all
}

fn searches(source: &Source<'_>, tables: Vec<Table<'_, '_>>) -> Vec<Search> {
    let mut all: Vec<Search> = Vec::new();
    for mut table in tables {
        let span = table.span();
        let example = ("collection", "\"profile_page\"");
        let collection =
            required(source, &mut table, example, |it| collection_name(it).map(|()| it.to_owned()));
        let name = required(source, &mut table, ("name", "\"by_name\""), search_name);
        let example = ("body", r#"'''{"query": {"match": {"name": "{{q}}"}}}'''"#);
        let template = required(source, &mut table, example, SearchTemplate::parse);
        table.finish();
        let (Some(collection), Some(name), Some(template)) = (collection, name, template) else {
            continue;
        };
        if all.iter().any(|it| it.collection == collection && it.name == name) {
            source.mistake(span, format!("{collection} has a search \"{name}\" before: keep one"));
        }
        all.push(Search { collection, name, template });
    }
    all
}

/// It is a part of a URL.
fn search_name(text: &str) -> Result<String, String> {
    let valid = |it: u8| it.is_ascii_lowercase() || it.is_ascii_digit() || b"_-".contains(&it);
    match (1..=100).contains(&text.len()) && text.bytes().all(valid) {
        true => Ok(text.to_owned()),
        false => Err(format!("name must be 1 to 100 of a-z, 0-9, \"_\" and \"-\", not \"{text}\"")),
    }
}

fn topic_name(text: &str) -> Result<String, String> {
    let valid = |it: u8| it.is_ascii_alphanumeric() || b"._-".contains(&it);
    let dots = text == "." || text == "..";
    if dots || !(1..=TOPIC_MAX).contains(&text.len()) || !text.bytes().all(valid) {
        return Err(format!(
            "a topic's name is 1 to 249 of a-z, A-Z, 0-9, \".\", \"_\" and \"-\", not \"{text}\""
        ));
    }
    Ok(text.to_owned())
}

/// What may stand in a Kafka header and in a log without being misread.
fn principal_name(text: &str) -> Result<String, String> {
    let valid = |it: u8| it.is_ascii_alphanumeric() || b"._-@".contains(&it);
    if !(1..=100).contains(&text.len()) || !text.bytes().all(valid) {
        return Err(format!(
            "name must be 1 to 100 of a-z, A-Z, 0-9, \".\", \"_\", \"-\" and \"@\", not \"{text}\""
        ));
    }
    Ok(text.to_owned())
}

/// The text may be a key that was put here instead of its hash: it is not shown.
fn sha256(text: &str) -> Result<[u8; 32], String> {
    let wrong = "sha256 must be 64 hexadecimal digits: what `printf %s KEY | sha256sum` prints, never \
                 the key itself";
    parse_sha256(text).ok_or_else(|| wrong.to_owned())
}

fn glob(text: &str) -> Result<String, String> {
    match Glob::new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("\"{text}\" is no pattern: {}", error.kind())),
    }
}

/// As browsers send it: no path, no slash at the end.
fn origin(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let valid = |it: u8| it.is_ascii_alphanumeric() || b".-:[]".contains(&it);
    if text == "*" || rest.is_some_and(|it| !it.is_empty() && it.bytes().all(valid)) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "an origin is \"*\", or scheme, host and port as browsers send them, such as \
         \"https://app.example.com\", not \"{text}\""
    ))
}

#[cfg(test)]
mod tests {
    use crate::config::file::parse;
    use crate::config::topics::Kind;

    const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn read(gateway: &str) -> Result<crate::config::Config, crate::mistake::Mistakes> {
        let text = format!(
            "[postgres]\nurl = \"postgres://onelog@localhost/app\"\ntables = [\"public.*\"]\n\
             [kafka]\nbrokers = \"localhost:9092\"\ntopic_prefix = \"app\"\n\
             [elasticsearch]\nurl = \"http://localhost:9200\"\n{gateway}"
        );
        parse("config.toml".as_ref(), &text, &|_| None)
    }

    #[test]
    fn without_the_section_there_is_no_gateway() {
        assert_eq!(read("").unwrap().gateway, None);
        assert!(!read("[gateway]").unwrap().gateway.unwrap().anonymous);
    }

    #[test]
    fn a_key_is_known_by_its_hash() {
        let text = format!("[[gateway.api_keys]]\nname = \"web\"\nsha256 = \"{HASH}\"");
        let keys = read(&text).unwrap().gateway.unwrap().api_keys;
        assert_eq!(keys[0].sha256[..4], [0x9f, 0x86, 0xd0, 0x81]);
        assert_eq!(
            (&*keys[0].commands, &*keys[0].collections),
            (&["*".into()][..], &["*".into()][..])
        );
    }

    #[test]
    fn the_topics_it_speaks_of_are_made_as_declared_or_by_their_kind() {
        let text = "[gateway]\n[[gateway.commands]]\ntopic = \"commands.a\"\n\
                    [[gateway.commands]]\ntopic = \"other\"\n\
                    [[topics]]\nname = \"commands.*\"\nkind = \"event\"\n";
        let kafka = read(text).unwrap().kafka;
        let made = |topic: &str| kafka.topics.iter().find(|it| it.name == topic).unwrap().kind;
        assert_eq!(made("commands.a"), Kind::Event);
        assert_eq!(made("other"), Kind::Command);
        assert_eq!(made("outbox.event.response"), Kind::Response);
    }

    #[test]
    fn each_mistake_is_told_and_a_key_in_the_wrong_place_is_not_shown() {
        let cases = [
            ("listen = \"8081\"", "an IP address and a port"),
            ("allowed_origins = [\"https://a.example/\"]", "an origin is"),
            ("collections = [\"[\"]", "is no pattern"),
            ("trusted_proxies = [\"proxy\"]", "must be an IP address"),
            ("response_topics = [\"a b\"]", "a topic's name is"),
            ("[[gateway.commands]]\ncollections = []", "topic is missing"),
            ("[[gateway.commands]]\ntopic = \"app.public.t\"", "where changes of the database go"),
            ("[[gateway.searches]]\nname = \"a\"\nbody = \"{}\"", "collection is missing"),
            (
                "[[gateway.searches]]\ncollection = \"c\"\nname = \"A\"\nbody = \"{}\"",
                "name must be 1 to 100",
            ),
            (
                "[[gateway.searches]]\ncollection = \"c\"\nname = \"a\"\nbody = \"{\"",
                "body must be JSON",
            ),
            ("[[gateway.api_keys]]\nname = \"web\"", "sha256 is missing"),
            ("[gateway.jwt]\nissuer = \"i\"\naudience = \"a\"", "jwks_file is missing"),
            ("[gateway.jwt]\njwks_file = \"j\"\nissuer = \"i\"\naudience = \"\"", "not be empty"),
            ("[[gateway.api_keys]]\nname = \"web\"\nsha256 = \"S3cret\"", "64 hexadecimal digits"),
            ("[[gateway.api_keys]]\nname = \"a\\nb\"", "name must be"),
        ];
        for (line, expected) in cases {
            let told: Vec<String> = read(&format!("[gateway]\n{line}"))
                .unwrap_err()
                .0
                .into_iter()
                .map(|it| it.message)
                .collect();
            assert!(told.iter().any(|it| it.contains(expected)), "{line}: {told:?}");
            assert!(!told.iter().any(|it| it.contains("S3cret")), "{told:?}");
        }
    }
}
