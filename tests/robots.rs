//! The robots of deploy/robots on real servers: commands go into their topic, and each has one
//! effect and one answer, whatever it says, however often it comes, in whatever order, and whatever
//! happens to the robot. Both robots are held to the same.
#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

mod support;

use std::collections::BTreeMap;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use support::eventually;
use support::log::read;
use support::robot::{self, Kind, Robot};
use support::server;
use support::world::{PATIENCE, Wishes, World};
use tokio_postgres::Client;

/// How many commands a robot gets while it is killed and its connections are cut.
const EDITS: usize = 200;

/// Where commands are put, as the gateway does.
struct Commands {
    producer: FutureProducer,
    topic: String,
}

impl Commands {
    fn new(world: &World) -> Self {
        let mut config = ClientConfig::new();
        let producer = config.set("bootstrap.servers", server("ONELOG_TEST_KAFKA")).create();
        Self { producer: producer.unwrap(), topic: robot::commands(&world.name) }
    }

    /// A command that is named by `name`, in its header `id` and as its correlation id.
    async fn put(&self, name: &str, key: &str, value: &[u8]) {
        let header = |key, value| Header { key, value: Some(value) };
        let headers = OwnedHeaders::new()
            .insert(header("id", name))
            .insert(header("correlation-id", name))
            .insert(header("document-id", key));
        let record = FutureRecord::to(&self.topic).key(key).payload(value).headers(headers);
        self.producer.send(record, PATIENCE).await.unwrap();
    }

    async fn send(&self, name: &str, kind: &str, session: &str, rest: &Value) {
        let mut body = json!({"type": kind, "session_id": session});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let key = rest["document_id"].as_str().unwrap();
        self.put(name, key, body.to_string().as_bytes()).await;
    }
}

/// A world with the profiles' page alone, and the robot's tables.
async fn world(name: &str) -> World {
    let config = robot::config(&format!("{name}_{}", std::process::id()));
    let wishes = Wishes { companies: 1, kafka: &config, ..Wishes::default() };
    let world = World::new(name, wishes).await;
    world.keep_mappings(&["profile_page.toml"]);
    robot::migrate(&world);
    world.onelog(&["prepare"]);
    world
}

/// Correlation id -> the answers with it, as "Type reason".
fn answers(world: &World) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for record in read(&robot::responses(&world.name)) {
        let body = record.json();
        let correlation_id = record.header("correlation-id").unwrap_or("none").to_owned();
        assert_eq!(body["correlation_id"], json!(correlation_id), "header and body agree");
        let kind = record.header("type").unwrap();
        let expected = if kind == "CommandFailed" { "failure" } else { "success" };
        assert_eq!(body["status"], json!(expected), "{body}");
        let said = format!("{kind} {}", body["reason"].as_str().unwrap_or_default());
        found.entry(correlation_id).or_default().push(said.trim().to_owned());
    }
    found
}

/// Everything that a command may be, in one topic, in an order that is against it.
async fn send_all(commands: &Commands) {
    let long = "x".repeat(201);
    let page = |id: &str, name: &str| json!({"document_id": id, "name": name});
    let site = |id: &str, url: &str| json!({"document_id": id, "profile_id": "p1", "url": url});
    // Websites before their profile.
    commands.send("site", "AddWebsite", "ada-1", &site("w1", "https://ada.example/")).await;
    commands.send("foreign-site", "AddWebsite", "bob-1", &site("w2", "https://bob.example/")).await;
    for (name, value) in [
        ("no-json", &b"{\"type\""[..]),
        ("no-object", b"[1]"),
        ("nothing", b""),
        ("deep", "[".repeat(100_000).as_bytes()),
        ("nul", br#"{"type":"CreateProfile","session_id":"ada-1","document_id":"bad","name":"a\u0000"}"#),
        ("half", br#"{"type":"CreateProfile","session_id":"ada-1","document_id":"bad","name":"\ud800"}"#),
        ("number", br#"{"type":"CreateProfile","session_id":"ada-1","document_id":"bad","name":7}"#),
        ("no-id", br#"{"type":"CreateProfile","session_id":"ada-1","document_id":{},"name":"a"}"#),
        ("no-session", br#"{"type":"CreateProfile","document_id":"bad","name":"a"}"#),
    ] {
        commands.put(name, "bad", value).await;
    }
    commands.send("script", "AddWebsite", "ada-1", &site("w3", "javascript:alert(1)")).await;
    commands.send("what", "DropTable", "ada-1", &page("bad", "a")).await;
    commands.send("long", "CreateProfile", "ada-1", &page("bad", &long)).await;
    commands.send("stranger", "CreateProfile", "nobody", &page("bad", "a")).await;
    commands.send("late", "CreateProfile", "old", &page("bad", "a")).await;
    commands.send("early", "UpdateProfile", "ada-1", &page("p1", "a")).await;
    for _ in 0..2 {
        commands.send("create", "CreateProfile", "ada-1", &page("p1", "Ada")).await;
    }
    commands.send("twin", "CreateProfile", "bob-1", &page("p1", "Bob")).await;
    commands.send("theft", "UpdateProfile", "bob-1", &page("p1", "Bob")).await;
    commands.send("edit", "UpdateProfile", "ada-1", &page("p1", "Ada L.")).await;
}

const EXPECTED: &[(&str, &str)] = &[
    ("site", "WebsiteAdded"),
    ("foreign-site", "WebsiteAdded"),
    ("no-json", "CommandFailed invalid"),
    ("no-object", "CommandFailed invalid"),
    ("nothing", "CommandFailed invalid"),
    ("deep", "CommandFailed invalid"),
    ("nul", "CommandFailed invalid"),
    ("half", "CommandFailed invalid"),
    ("number", "CommandFailed invalid"),
    ("no-id", "CommandFailed invalid"),
    ("no-session", "CommandFailed unknown_session"),
    ("script", "CommandFailed invalid"),
    ("what", "CommandFailed unknown_type"),
    ("long", "CommandFailed invalid"),
    ("stranger", "CommandFailed unknown_session"),
    ("late", "CommandFailed unknown_session"),
    ("early", "CommandFailed unknown_profile"),
    ("create", "ProfileCreated"),
    ("twin", "CommandFailed exists"),
    ("theft", "CommandFailed unknown_profile"),
    ("edit", "ProfileUpdated"),
];

async fn revision(client: &Client) -> Option<i32> {
    let row = client.query_opt("SELECT revision FROM profile WHERE id = 'p1'", &[]).await.unwrap();
    row.map(|it| it.get(0))
}

async fn reaches(client: &Client, what: &str, wanted: i32) {
    eventually(what, PATIENCE, || async { revision(client).await.filter(|it| *it >= wanted) })
        .await;
}

/// Edits go on while the robot's connections to Postgres are cut and it is killed.
async fn disturbed(kind: Kind, world: &World, first: Robot, commands: &Commands, client: &Client) {
    for nth in 0..EDITS {
        let edit = json!({"document_id": "p1", "headline": format!("edit {nth}")});
        commands.send(&format!("edit-{nth}"), "UpdateProfile", "ada-1", &edit).await;
    }
    reaches(client, "the robot is at work", 10).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE application_name = 'profile_robot' AND datname = current_database()";
    client.batch_execute(cut).await.unwrap();
    reaches(client, "the robot goes on", 40).await;
    first.kill();
    let second = Robot::start(kind, world);
    reaches(client, "another robot goes on", 2 + i32::try_from(EDITS).unwrap()).await;
    let (ended, log) = second.stop().await;
    assert!(ended.success(), "SIGTERM ends it well: {ended}; {log}");
}

async fn holds(kind: Kind, name: &str) {
    let world = world(name).await;
    let (client, _connection) = world.client().await;
    let old = "INSERT INTO auth.session VALUES ('old', 'ada', now() - interval '1 second'); \
               INSERT INTO robot.handled_command VALUES ('old', now() - interval '9 days'); \
               INSERT INTO profile_website (id, profile_id, owner, url, created_at) \
               VALUES ('lost', 'none', 'ada', 'https://a.example/', now() - interval '9 days')";
    client.batch_execute(old).await.unwrap();
    let daemon = world.start();
    let commands = Commands::new(&world);
    send_all(&commands).await;
    let robot = Robot::start(kind, &world);
    reaches(&client, "the last command is handled", 2).await;
    disturbed(kind, &world, robot, &commands, &client).await;

    // One effect for each command: no edit was lost, and none was made twice.
    assert_eq!(revision(&client).await, Some(2 + i32::try_from(EDITS).unwrap()));
    let left = "SELECT (SELECT count(*) FROM robot.handled_command WHERE id = 'old') \
                + (SELECT count(*) FROM profile_website WHERE id = 'lost')";
    assert_eq!(client.query_one(left, &[]).await.unwrap().get::<_, i64>(0), 0, "debris is pruned");

    world.confirmed_to("pg_current_wal_insert_lsn()").await;
    let mut expected: BTreeMap<String, Vec<String>> = EXPECTED
        .iter()
        .map(|(name, said)| ((*name).to_owned(), vec![(*said).to_owned()]))
        .collect();
    expected.extend((0..EDITS).map(|it| (format!("edit-{it}"), vec!["ProfileUpdated".to_owned()])));
    assert_eq!(answers(&world), expected, "one answer for each command");

    let profiles = read(&format!("{}.public.profile", world.name));
    let first = profiles.iter().find(|it| it.value.is_some()).unwrap();
    assert_eq!(first.header("correlation-id"), Some("create"), "rows carry the command's id");

    let headline = format!("edit {}", EDITS - 1);
    let document = eventually("the page is there", PATIENCE, || async {
        let found = world.document("profile_page", "p1").await;
        found.filter(|it| it["headline"] == json!(headline))
    })
    .await;
    let site = json!([{"website_id": "w1", "url": "https://ada.example/", "title": ""}]);
    assert_eq!(document["websites"], site, "the website that came first, and nobody else's");
    assert_eq!((&document["name"], &document["owner"]), (&json!("Ada L."), &json!("ada")));
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plain_robot_gives_each_command_one_effect_and_one_answer() {
    holds(Kind::Plain, "robots_plain").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_django_robot_gives_each_command_one_effect_and_one_answer() {
    holds(Kind::Django, "robots_django").await;
}
