//! Bad input: each is said in one screen, at its place, with its cure, and by the exit code of the
//! design (0 fine, 1 a finding or failure, 2 usage). And no output ever holds a secret.

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use support::cluster::Cluster;
use support::daemon::Daemon;
use support::world::{PATIENCE, Wishes, World, free_address};
use support::{eventually, server};

/// Longer than any command of these takes, and shorter than a person waits.
const COMMAND_MAX: Duration = Duration::from_secs(45);

/// What a person sees at once.
const SCREEN_LINES: usize = 24;

const SECRET: &str = "s3cr3t-w0rd";

const SHOP: &str = "CREATE TABLE shop (id int PRIMARY KEY, name text); \
                    CREATE TABLE item (id int PRIMARY KEY, shop_id int NOT NULL, title text); \
                    CREATE INDEX ON item (shop_id); \
                    INSERT INTO shop VALUES (1, 'One'); INSERT INTO item VALUES (1, 1, 'Thing')";

struct Said {
    code: Option<i32>,
    text: String,
}

/// `onelog` with these words, to its end; it may not hang, panic, or tell a secret.
async fn onelog(words: &[&str]) -> Said {
    let running = tokio::process::Command::new(env!("CARGO_BIN_EXE_onelog"))
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let ended = tokio::time::timeout(COMMAND_MAX, running).await;
    let output = ended.unwrap_or_else(|_| panic!("{words:?} hangs")).expect("onelog starts");
    let all = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(all).expect("UTF-8");
    assert!(!text.contains("panicked"), "{words:?}: {text}");
    assert!(!text.contains(SECRET), "{words:?} tells a secret: {text}");
    Said { code: output.status.code(), text }
}

impl Said {
    /// A failure that is said in one screen, in these words.
    #[track_caller]
    fn fails_with(&self, words: &[&str]) {
        assert_eq!(self.code, Some(1), "{}", self.text);
        assert!(self.text.lines().count() <= SCREEN_LINES, "too long:\n{}", self.text);
        for word in words {
            assert!(self.text.contains(word), "it does not say {word:?}:\n{}", self.text);
        }
    }
}

async fn shop(name: &str, tables: &str) -> World {
    World::new(name, Wishes { instead: Some(SHOP), tables, ..Wishes::default() }).await
}

/// A copy of the world's config with one text replaced by another.
fn config_with(world: &World, old: &str, new: &str) -> String {
    let text = std::fs::read_to_string(&world.config).expect("the config");
    assert!(text.contains(old), "the config has {old}");
    let path = world.folder.path().join("other.toml");
    std::fs::write(&path, text.replace(old, new)).expect("written");
    path.to_string_lossy().into_owned()
}

/// Writes the mapping file; its name.
fn mapping(world: &World, text: &str) -> String {
    let path = world.mappings.join("shop_page.toml");
    std::fs::write(&path, text).expect("written");
    path.to_string_lossy().into_owned()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test]
async fn usage_errors_exit_with_two() {
    for words in [&[][..], &["fly"], &["run", "--speed"], &["preview", "a.toml"], &["explain"]] {
        let said = onelog(words).await;
        assert_eq!(said.code, Some(2), "{words:?}: {}", said.text);
        assert!(said.text.contains("Usage"), "{words:?}: {}", said.text);
    }
    for command in ["run", "check", "prepare", "explain", "preview"] {
        let said = onelog(&[command, "--help"]).await;
        assert_eq!(said.code, Some(0), "{command}: {}", said.text);
    }
}

#[tokio::test]
async fn a_config_that_is_missing_or_misspelled_is_said_with_its_place() {
    let world = shop("config", "public.shop").await;
    for command in [&["check"][..], &["check", "--offline"], &["run"], &["prepare"]] {
        let missing = [command, &["--config", "/nowhere/config.toml"]].concat();
        onelog(&missing).await.fails_with(&["/nowhere/config.toml", "--config"]);

        let config = config_with(&world, "slot_name", "slot_nam");
        let misspelled = [command, &["--config", &config]].concat();
        let place = "other.toml:4:1: ";
        onelog(&misspelled).await.fails_with(&[place, "slot_nam", "did you mean slot_name?"]);
    }
    let config = config_with(&world, "number_of_replicas = 0", "number_of_replicas = \"many\"");
    onelog(&["check", "--offline", "--config", &config]).await.fails_with(&["other.toml:"]);
    let good = onelog(&["check", "--offline", "--config", path(&world.config)]).await;
    assert_eq!(good.code, Some(0), "{}", good.text);
}

#[tokio::test]
async fn check_says_who_may_come_in_at_the_gateway_and_where_links_lead_to_nothing() {
    let world = shop("gateway_check", "public.shop").await;
    let command =
        "[[gateway.commands]]\ntopic = \"commands.shop\"\ncollections = [\"shop_page\"]\n";
    let cases: [(&str, i32, &str); 4] = [
        ("[gateway]\n", 1, "nobody may come in"),
        ("[gateway]\nanonymous = true\n", 0, "gateway, to listen on 127.0.0.1:8081"),
        ("[gateway]\nanonymous = true\nlisten = \"0.0.0.0:1\"\n", 0, "whoever reaches it"),
        ("[gateway]\nanonymous = true\ncollections = [\"other\"]\n", 0, "no mapping file fills"),
    ];
    for (section, code, words) in cases {
        let config = config_with(&world, "[http]", &format!("{section}{command}[http]"));
        let said = onelog(&["check", "--offline", "--config", &config]).await;
        assert_eq!(said.code, Some(code), "{section}: {}", said.text);
        assert!(said.text.contains(words), "{section}: {}", said.text);
    }
    onelog(&["run", "--only", "gateway", "--config", path(&world.config)])
        .await
        .fails_with(&["--only gateway needs a section [gateway]"]);
}

#[tokio::test]
async fn check_reads_the_gateways_own_files_as_the_gateway_does() {
    let world = shop("gateway_files", "public.shop").await;
    let section = "[gateway]\n[[gateway.commands]]\ntopic = \"commands.shop\"\n[gateway.jwt]\n\
                   jwks_file = \"keys.json\"\nissuer = \"https://id\"\naudience = \"onelog\"\n";
    let config = config_with(&world, "[http]", &format!("{section}[http]"));
    let schemas = world.mappings.join("commands");
    std::fs::create_dir_all(schemas.join("commands.shop")).expect("a folder");
    let keys = world.folder.path().join("keys.json");
    let check = ["check", "--offline", "--config", &config];
    let write = |topic: &str, kind: &str, set: &str| {
        std::fs::write(schemas.join("commands.shop.schema.json"), topic).expect("written");
        std::fs::write(schemas.join("commands.shop/open.schema.json"), kind).expect("written");
        std::fs::write(&keys, set).expect("written");
    };

    let broken = format!("{{\"keys\": [\n  {{\"kty\": \"oct\", \"k\": \"{SECRET}\"}}\n]}}");
    write("{\n  \"type\": \"objekt\"\n}", "{\"type\": \"object\"", &broken);
    let said = onelog(&check).await;
    said.fails_with(&[
        "commands.shop.schema.json:2:11: it is no JSON Schema here: value must be one of",
        "      \"type\": \"objekt\"\n",
        "commands.shop/open.schema.json:1:17: it is not JSON: EOF while parsing an object",
        "keys.json:2:3: this is a shared secret (kty \"oct\"): use a key pair",
        "3 to mend",
    ]);
    let key = "{\"keys\": [{\"kty\": \"OKP\", \"crv\": \"Ed25519\", \
               \"x\": \"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}]}";
    write("{}", "{}", key);
    let said = onelog(&check).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    for words in ["2 JSON Schemas of commands", "keys for tokens in"] {
        assert!(said.text.contains(words), "{}", said.text);
    }
    std::fs::write(schemas.join("other.schema.json"), "{}").expect("written");
    let said = onelog(&check).await;
    assert_eq!(said.code, Some(0), "{}", said.text);
    assert!(said.text.contains("of topic other, which no [[gateway.commands]]"), "{}", said.text);
}

/// What `/readyz` says first, asked from before the daemon listens.
fn first_answer(daemon: &mut Daemon, http: &str) -> String {
    loop {
        assert!(daemon.is_alive(), "it has ended: {}", daemon.log_text());
        let Ok(mut stream) = TcpStream::connect(http) else { continue };
        let request = "GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        return answer;
    }
}

/// Who starts it asks at once and sends it work as soon as it is ready. Where no role had been made
/// known yet, one of a dozen starts said that it was.
#[test]
fn a_daemon_that_has_just_started_is_not_ready() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (config, log) = (folder.path().join("config.toml"), folder.path().join("log"));
    for _ in 0..40 {
        let (http, listen) = (free_address(), free_address());
        let text = format!(
            "[postgres]\nurl = \"postgres://nobody@localhost/none\"\ntables = [\"public.*\"]\n\
             [kafka]\nbrokers = \"127.0.0.1:9\"\ntopic_prefix = \"own\"\n\
             [elasticsearch]\nurl = \"http://127.0.0.1:9\"\n\
             [translate]\nmappings = \".\"\n\
             [http]\nlisten = \"{http}\"\n\
             [gateway]\nlisten = \"{listen}\"\n\
             [[gateway.api_keys]]\nname = \"web\"\nsha256 = \"{}\"\n\
             [[gateway.commands]]\ntopic = \"a.b\"\ncollections = [\"c\"]\n",
            "ab".repeat(32)
        );
        std::fs::write(&config, text).expect("written");
        let mut daemon = Daemon::start_with(&config, &log, &["--only", "gateway"]);
        let answer = first_answer(&mut daemon, &http);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        daemon.kill();
    }
}

/// A copy of the world's config whose servers are nowhere, with secrets.
fn nowhere(world: &World) -> String {
    let text = std::fs::read_to_string(&world.config).expect("the config");
    let user = format!("postgres://onelog:{SECRET}@{}/", free_address());
    let postgres = world.database_url.rsplit_once('/').expect("a database").0.to_owned() + "/";
    let properties = format!("\"sasl.password\" = \"{SECRET}\", \"group.instance.id\"");
    let elastic = format!("http://onelog:{SECRET}@{}", free_address());
    let text = text
        .replace(&postgres, &user)
        .replace(&server("ONELOG_TEST_KAFKA"), &free_address())
        .replace("\"group.instance.id\"", &properties)
        .replace(&server("ONELOG_TEST_ELASTICSEARCH"), &elastic);
    let config = world.folder.path().join("nowhere.toml");
    std::fs::write(&config, text).expect("written");
    path(&config).to_owned()
}

#[tokio::test]
async fn unreachable_servers_are_all_said_and_no_secret_is() {
    let world = shop("nowhere", "public.shop").await;
    let file = mapping(
        &world,
        "[[denormalization]]\ncollection = \"shop_page\"\nkey = \"id\"\n\
         sql = \"SELECT id, name FROM shop\"\n",
    );
    let config = nowhere(&world);
    let said = onelog(&["check", "--config", &config]).await;
    said.fails_with(&["Postgres at ", "Kafka at ", "Elasticsearch at ", "3 to mend"]);
    for command in [&["prepare"][..], &["explain", &file], &["preview", &file, "--key", "1"]] {
        onelog(&[command, &["--config", &config]].concat()).await.fails_with(&["Postgres"]);
    }
    // The daemon waits for them, and says for whom, without the secrets.
    let mut daemon = Daemon::start(Path::new(&config), &world.folder.path().join("nowhere.log"));
    let (status, body) = eventually("both roles wait", PATIENCE, || async {
        let (status, body) = world.http("/readyz").await?;
        (!body.contains("starting")).then_some((status, body))
    })
    .await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("capture: ") && body.contains("translate: "), "{body}");
    assert!(daemon.is_alive());
    let said = format!("{body}{}", daemon.log_text());
    assert!(!said.contains(SECRET), "{said}");
    assert!(daemon.stop().await.success());
}

#[tokio::test]
async fn a_server_without_logical_wal_and_a_wrong_password_are_said() {
    let cluster = Cluster::new("wal_level = replica").await;
    let world = shop("unfit", "public.shop").await;
    let config = config_with(&world, &world.database_url, &cluster.url("postgres"));
    for command in ["check", "prepare"] {
        let said = onelog(&[command, "--config", &config]).await;
        said.fails_with(&["wal_level", "logical", "restart"]);
    }
    // There is no slot without logical WAL, so this is what is missing first.
    onelog(&["run", "--config", &config]).await.fails_with(&["run `onelog prepare`"]);
    let address = cluster.address("127.0.0.1");
    let url = format!("postgres://scrammed:{SECRET}@{address}/postgres?sslmode=disable");
    let config = config_with(&world, &world.database_url, &url);
    for command in ["check", "prepare", "run"] {
        let said = onelog(&[command, "--config", &config]).await;
        said.fails_with(&["scrammed", "password"]);
    }
}

#[tokio::test]
async fn a_privilege_that_is_missing_is_said_with_its_grant() {
    let world = shop("privileges", "public.shop").await;
    mapping(
        &world,
        "[[denormalization]]\ncollection = \"shop_page\"\nkey = \"id\"\n\
         sql = \"SELECT id, name FROM shop\"\n",
    );
    world.onelog(&["prepare"]);
    let (client, _connection) = world.client().await;
    let name = &world.name;
    let make = format!(
        "REVOKE TEMP ON DATABASE {name} FROM PUBLIC; \
         CREATE ROLE {name}_still LOGIN PASSWORD '{SECRET}'; \
         CREATE ROLE {name}_blind LOGIN REPLICATION PASSWORD '{SECRET}'; \
         CREATE ROLE {name}_fixed LOGIN REPLICATION PASSWORD '{SECRET}'; \
         GRANT TEMP ON DATABASE {name} TO {name}_still, {name}_blind; \
         GRANT SELECT ON shop TO {name}_still, {name}_fixed"
    );
    client.batch_execute(&make).await.expect("three roles");
    let cases = [
        ("still", format!("ALTER ROLE \"{name}_still\" REPLICATION")),
        ("blind", "GRANT SELECT ON ".to_owned()),
        ("fixed", format!("GRANT TEMP ON DATABASE \"{name}\" TO \"{name}_fixed\"")),
    ];
    for (role, cure) in cases {
        let user = format!("//{name}_{role}:{SECRET}@");
        let url = world.database_url.replace("//postgres@", &user);
        let config = config_with(&world, &world.database_url, &url);
        onelog(&["check", "--config", &config]).await.fails_with(&[&cure, " to mend"]);
    }
    for role in ["still", "blind", "fixed"] {
        let drop = format!("DROP OWNED BY {name}_{role}; DROP ROLE {name}_{role}");
        client.batch_execute(&drop).await.expect("the role is dropped");
    }
}

#[tokio::test]
async fn a_mapping_that_cannot_work_is_said_with_its_place() {
    let world = shop("mapping", "public.shop").await;
    world.onelog(&["prepare"]);
    let config = path(&world.config);
    let cases: [(&str, &str, &[&str]); 5] = [
        ("id", "SELECT id,, name\nFROM shop", &["shop_page.toml:5:11: ", "syntax error"]),
        ("id", "SELECT id, name\nFROM no_such", &["shop_page.toml:6:6: ", "no_such"]),
        ("id", "SELECT id,\n nam FROM shop", &["shop_page.toml:6:2: ", "nam"]),
        ("key", "SELECT id, name\nFROM shop", &["shop_page.toml:3:", "key", "id", "name"]),
        ("id", "DELETE FROM shop", &["shop_page.toml:", "SELECT"]),
    ];
    for (key, sql, words) in cases {
        let text = format!(
            "[[denormalization]]\ncollection = \"shop_page\"\nkey = \"{key}\"\nsql = \"\"\"\n\
             {sql}\n\"\"\"\n"
        );
        let file = mapping(&world, &text);
        onelog(&["check", "--config", config]).await.fails_with(words);
        onelog(&["explain", &file, "--config", config]).await.fails_with(words);
        onelog(&["preview", &file, "--key", "1", "--config", config]).await.fails_with(words);
    }
    let file = mapping(&world, "[[denormalization]]\ncolection = \"shop_page\"\n");
    let words = ["shop_page.toml:2:1: ", "did you mean collection"];
    onelog(&["check", "--offline", "--config", config]).await.fails_with(&words);
    onelog(&["explain", &file, "--config", config]).await.fails_with(&words);
}

const ITEMS: &str = "[[denormalization]]\ncollection = \"shop_page\"\nkey = \"shop_id\"\n\
                     nest_as = \"items\"\nsql = \"SELECT shop_id, title FROM item\"\n";

#[tokio::test]
async fn a_table_that_is_not_published_is_named() {
    let world = shop("unpublished", "public.shop").await;
    let file = mapping(&world, ITEMS);
    world.onelog(&["prepare"]);
    let config = path(&world.config);
    let words = ["public.item", "not published"];
    onelog(&["check", "--config", config]).await.fails_with(&words);
    onelog(&["explain", &file, "--config", config]).await.fails_with(&words);
}

#[tokio::test]
async fn an_identity_that_is_too_weak_is_named_with_its_cure() {
    let world = shop("identity", "public.*").await;
    let file = mapping(&world, ITEMS);
    world.onelog(&["prepare"]);
    let config = path(&world.config);
    for words in [&["check"][..], &["explain", &file]] {
        let said = onelog(&[words, &["--config", config]].concat()).await;
        said.fails_with(&["public.item", "lacks shop_id", "ALTER TABLE ", "REPLICA IDENTITY FULL"]);
        let cure = said.text.lines().find(|it| it.contains("ALTER TABLE ")).expect("a cure");
        let (client, _connection) = world.client().await;
        client.batch_execute(cure.trim()).await.expect("the cure runs as it is printed");
        let cured = onelog(&[words, &["--config", config]].concat()).await;
        assert_eq!(cured.code, Some(0), "{}", cured.text);
        client.batch_execute("ALTER TABLE item REPLICA IDENTITY DEFAULT").await.expect("again");
    }
}

/// What `prepare` makes: slots, publications and topics of this world's name.
async fn made(world: &World) -> (i64, i64, usize) {
    let (client, _connection) = world.client().await;
    let sql = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1), \
               (SELECT count(*) FROM pg_publication WHERE pubname = $1)";
    let row = client.query_one(sql, &[&world.name]).await.expect("the catalog");
    let (brokers, prefix) = (server("ONELOG_TEST_KAFKA"), world.name.clone());
    let topics = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a consumer");
        let metadata = consumer.fetch_metadata(None, COMMAND_MAX).expect("Kafka answers");
        metadata.topics().iter().filter(|it| it.name().starts_with(&prefix)).count()
    });
    (row.get(0), row.get(1), topics.await.expect("no panic"))
}

#[tokio::test]
async fn prepare_is_idempotent_and_a_dry_run_does_nothing() {
    let world = shop("prepare", "public.*").await;
    let dry = world.onelog(&["prepare", "--dry-run"]);
    assert!(dry.contains("Would run: CREATE PUBLICATION"), "{dry}");
    assert_eq!(made(&world).await, (0, 0, 0), "{dry}");

    let first = world.onelog(&["prepare"]);
    assert!(first.contains("Ran: CREATE PUBLICATION"), "{first}");
    let after = made(&world).await;
    assert_eq!((after.0, after.1), (1, 1), "{first}");
    assert!(after.2 >= 4, "two tables, dead letters and progress: {after:?}");
    for arguments in [&["prepare"][..], &["prepare", "--dry-run"]] {
        let again = world.onelog(arguments);
        for word in ["Ran", "Created", "Would"] {
            assert!(!again.contains(word), "{arguments:?}: {again}");
        }
        assert_eq!(made(&world).await, after);
    }
    let checked = world.onelog(&["check"]);
    assert!(!checked.contains("WRONG"), "{checked}");
}
