//! The mistakes that a frontend developer is most likely to make, each with the whole text that
//! `onelog check FILE` answers: the place, what is wrong, the cure, and the line with a mark.
//!
//! The texts are of Postgres 15, whose own words are part of some.

#[path = "mistakes/in_file.rs"]
mod in_file;
#[path = "mistakes/in_sql.rs"]
mod in_sql;
#[path = "mistakes/left_to_chance.rs"]
mod left_to_chance;
mod support;

use std::fmt::Write as _;

use support::daemon::onelog;
use support::world::{Wishes, World};

const SHOP: &str = "CREATE TABLE shop (id int PRIMARY KEY, name text, \"userId\" int); \
     CREATE TABLE item (id int PRIMARY KEY, shop_id int, title text, price numeric, spec json); \
     CREATE INDEX ON item (shop_id); \
     CREATE TABLE visit (id int PRIMARY KEY, shop_id int); \
     CREATE SCHEMA audit; CREATE TABLE audit.entry (id int PRIMARY KEY); \
     ALTER TABLE item REPLICA IDENTITY FULL; \
     INSERT INTO item VALUES (1, 1, 'Thing'), (2, NULL, 'Lost')";

/// A world whose publication has all tables but `visit`, and nothing else: `check FILE` asks
/// Postgres alone.
async fn shop(name: &str) -> World {
    let world = World::new(name, Wishes { instead: Some(SHOP), ..Wishes::default() }).await;
    let (client, _connection) = world.client().await;
    let publish = format!("CREATE PUBLICATION {} FOR TABLE shop, item, audit.entry", world.name);
    client.batch_execute(&publish).await.expect("a publication");
    world
}

/// What `check` says of the file with this name and text, its own name shortened.
fn said(world: &World, name: &str, text: &str, more: &[&str]) -> String {
    let path = world.mappings.join(name);
    std::fs::write(&path, text).expect("written");
    let config = world.config.to_string_lossy().into_owned();
    let file = path.to_string_lossy().into_owned();
    let output = onelog(&[&["check", &file, "--config", &config], more].concat());
    std::fs::remove_file(&path).expect("removed");
    let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
    let text = text.replace(&file, name);
    let (config, rest) = text.split_once('\n').expect("lines");
    assert!(config.starts_with("ok       config "), "{text}");
    assert!(rest.lines().count() <= 24, "more than a screen:\n{rest}");
    assert_eq!(output.status.code(), Some(i32::from(rest.contains("WRONG"))), "{text}");
    rest.trim_end().to_owned()
}

/// All cases that differ, so that one run shows them all.
fn check(world: &World, cases: &[(&str, &str)], more: &[&str]) {
    let mut different = String::new();
    for (text, expected) in cases {
        let found = said(world, "page.toml", text, more);
        if found != expected.trim_matches('\n') {
            writeln!(different, "### {text}\n--- expected\n{expected}\n--- found\n{found}\n")
                .expect("written");
        }
    }
    assert!(different.is_empty(), "{different}");
}

#[tokio::test]
async fn mistakes_in_the_file_are_said_whole() {
    check(&shop("mistakes_offline").await, in_file::CASES, &["--offline"]);
}

#[tokio::test]
async fn mistakes_in_the_sql_are_said_whole() {
    check(&shop("mistakes_online").await, in_sql::CASES, &[]);
}

#[tokio::test]
async fn what_is_left_to_chance_is_warned_of() {
    check(&shop("mistakes_chance").await, left_to_chance::CASES, &[]);
}

/// A role that may not read a table, and one that may not look into a namespace.
#[tokio::test]
async fn missing_privileges_are_said_whole() {
    let world = shop("mistakes_grants").await;
    let (client, _connection) = world.client().await;
    let role = format!("{}_poor", world.name);
    let make =
        format!("CREATE ROLE {role} LOGIN PASSWORD 'poor'; GRANT SELECT ON audit.entry TO {role}");
    client.batch_execute(&make).await.expect("a role");
    let config = std::fs::read_to_string(&world.config).expect("the config");
    let poor = config.replace("//postgres@", &format!("//{role}:poor@"));
    assert_ne!(config, poor, "the URL has a user");
    std::fs::write(&world.config, poor).expect("written");
    let cases = [("SELECT id FROM shop", IN_TABLE), ("SELECT id FROM audit.entry", IN_NAMESPACE)];
    let mut said_all = Vec::new();
    for (sql, expected) in cases {
        let text =
            format!("[[denormalization]]\ncollection = \"page\"\nkey = \"id\"\nsql = \"{sql}\"\n");
        let found = said(&world, "page.toml", &text, &[]).replace(&role, "ROLE");
        said_all.push((found, expected));
    }
    let drop = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    client.batch_execute(&drop).await.expect("the role is dropped");
    for (found, expected) in said_all {
        assert_eq!(found, expected);
    }
}

const IN_TABLE: &str = "\
WRONG    page.toml:4:8: onelog's role may not read what the sql reads; run as the owner: GRANT SELECT ON \"public\".\"shop\" TO ROLE;
             sql = \"SELECT id FROM shop\"
                    ^

1 to mend";

const IN_NAMESPACE: &str = "\
WRONG    page.toml:4:23: permission denied for schema audit; run as its owner: GRANT USAGE ON SCHEMA \"audit\" TO ROLE;
             sql = \"SELECT id FROM audit.entry\"
                                   ^

1 to mend";
