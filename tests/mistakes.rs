//! The mistakes that a frontend developer is most likely to make, each with the whole text that
//! `onelog check FILE` answers: the place, what is wrong, the cure, and the line with a mark.
//!
//! The texts are of Postgres 15, whose own words are part of some.

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

const OFFLINE: &[(&str, &str)] = &[
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
nest_ass = "shops"
sql = '''SELECT id FROM shop'''
"##,
        r##"
WRONG    page.toml:4:1: unknown key nest_ass in [[denormalization]]; did you mean nest_as?
             nest_ass = "shops"
             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
sql = "SELECT id FROM shop"
"##,
        r##"
WRONG    page.toml:1:1: key_to_denormalize_upon is missing in [[denormalization]]: write key_to_denormalize_upon = "id"
             [[denormalization]]
             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = "SELECT id AS "userId" FROM shop"
"##,
        r##"
WRONG    page.toml:4:22: this is not TOML: unexpected key or value, expected newline, `#`; a text with double quotes in it, or of several lines, goes between ''' and '''
             sql = "SELECT id AS "userId" FROM shop"
                                  ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = page
key_to_denormalize_upon = "id"
sql = "SELECT id FROM shop"
"##,
        r##"
WRONG    page.toml:2:19: this is not TOML: string values must be quoted, expected literal string
             collection_name = page
                               ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = "SELECT id
  FROM shop"
"##,
        r##"
WRONG    page.toml:4:17: this is not TOML: invalid basic string, expected `"`; a text with double quotes in it, or of several lines, goes between ''' and '''
             sql = "SELECT id
                             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
nest_as = "a"
nest_one_as = "b"
sql = '''SELECT id FROM shop'''
"##,
        r##"
WRONG    page.toml:5:15: nest_as (an array) and nest_one_as (one object) contradict: keep one
             nest_one_as = "b"
                           ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[collection.page]
poll_interval = 5
"##,
        r##"
WRONG    page.toml:7:17: poll_interval must be a time with its unit, such as "30s", "2m" or "1h", or "off", not integer
             poll_interval = 5
                             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[collection.page]
poll_interval = "5"
"##,
        r##"
WRONG    page.toml:7:17: poll_interval must be "off", or a duration from "100ms" to "365d", such as "30s"
             poll_interval = "5"
                             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[collection.page]
poll_interval = "5s"

[collection.page]
audit_interval = "1h"
"##,
        r##"
WRONG    page.toml:9:13: this is not TOML: duplicate key; it stands in this file already: keep one
             [collection.page]
                         ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[collection.pages]
poll_interval = "5s"
"##,
        r##"
WRONG    page.toml:6:13: [collection.pages] has no [[denormalization]] in any file: write one with collection_name = "pages", or take this away; did you mean [collection.page]?
             [collection.pages]
                         ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[collection.page]
poll_intervall = "5s"
"##,
        r##"
WRONG    page.toml:7:1: unknown key poll_intervall in [collection.page]; did you mean poll_interval?
             poll_intervall = "5s"
             ^

1 to mend
"##,
    ),
    (
        r##""##,
        r##"
warning  page.toml: it has no [[denormalization]], so it makes no documents: write one with collection_name, key_to_denormalize_upon and sql
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "Shop Page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM shop'''
"##,
        r##"
WRONG    page.toml:2:19: a collection's name must be 1 to 150 of a-z, 0-9, "_" and "-", and begin with a letter or digit, not "Shop Page"
             collection_name = "Shop Page"
                               ^

1 to mend
"##,
    ),
    (
        r##"[denormalization]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = "SELECT id FROM shop"
"##,
        r##"
WRONG    page.toml:1:1: denormalization must be written as [[denormalization]], in double brackets, not table
             [denormalization]
             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''   '''
"##,
        r##"
WRONG    page.toml:4:7: sql is empty: write one SELECT
             sql = '''   '''
                   ^

1 to mend
"##,
    ),
];

#[tokio::test]
async fn mistakes_in_the_file_are_said_whole() {
    check(&shop("mistakes_offline").await, OFFLINE, &["--offline"]);
}

const ONLINE: &[(&str, &str)] = &[
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop;
'''
"##,
        r##"
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM shop; SELECT id FROM item'''
"##,
        r##"
WRONG    page.toml:4:31: the sql has 2 statements: keep one SELECT, and give the others entries of their own
             sql = '''SELECT id FROM shop; SELECT id FROM item'''
                                           ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop WHERE id = $1'''
"##,
        r##"
WRONG    page.toml:4:47: there is no parameter $1; write no parameters: the sql says what all documents hold, and onelog itself adds the condition for one key
             sql = '''SELECT id, name FROM shop WHERE id = $1'''
                                                           ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''INSERT INTO shop VALUES (1) RETURNING id'''
"##,
        r##"
WRONG    page.toml:4:10: the sql is an INSERT: write one SELECT, as onelog only reads
             sql = '''INSERT INTO shop VALUES (1) RETURNING id'''
                      ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "shop_id"
sql = '''SELECT id, name FROM shop'''
"##,
        r##"
WRONG    page.toml:3:28: the key shop_id is not among the sql's columns, which are id, name; select it too, or choose one of them
             key_to_denormalize_upon = "shop_id"
                                        ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id::text AS id, title FROM item'''
"##,
        r##"
WRONG    page.toml:8:28: the key id is text here, but id of page.toml:3 is integer: all entries of collection page need the same key type; cast one of them, as in id::integer
             key_to_denormalize_upon = "id"
                                        ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id,
       title, upper(title) AS title
FROM item'''
"##,
        r##"
WRONG    page.toml:5:15: column "title" specified more than once; give each column its own name with AS
                    title, upper(title) AS title
                           ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM shops'''
"##,
        r##"
WRONG    page.toml:4:25: relation "shops" does not exist; did you mean shop?
             sql = '''SELECT id FROM shops'''
                                     ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM entry'''
"##,
        r##"
WRONG    page.toml:4:25: relation "entry" does not exist; did you mean audit.entry?
             sql = '''SELECT id FROM entry'''
                                     ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM customers'''
"##,
        r##"
WRONG    page.toml:4:25: relation "customers" does not exist; no table is called so in this database that onelog may see: audit.entry, item, shop, visit
             sql = '''SELECT id FROM customers'''
                                     ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT i.id FROM item'''
"##,
        r##"
WRONG    page.toml:4:17: missing FROM-clause entry for table "i"; no table or alias in FROM is called i: add it there, or write the alias that it has
             sql = '''SELECT i.id FROM item'''
                             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''
SELECT id,
  nam FROM shop'''
"##,
        r##"
WRONG    page.toml:6:3: column "nam" does not exist; did you mean name?
               nam FROM shop'''
               ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, colour FROM shop'''
"##,
        r##"
WRONG    page.toml:4:21: column "colour" does not exist; its tables have id, name, userId
             sql = '''SELECT id, colour FROM shop'''
                                 ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, userId FROM shop'''
"##,
        r##"
WRONG    page.toml:4:21: column "userid" does not exist; did you mean "userId"? Postgres reads a name without double quotes in lower case. Put the sql between ''' and ''', where double quotes may stand
             sql = '''SELECT id, userId FROM shop'''
                                 ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = "SELECT id, \"userID\"\n, name FROM shop"
"##,
        r##"
WRONG    page.toml:4:19: column "userID" does not exist; did you mean "userId"? Postgres reads a name without double quotes in lower case. Put the sql between ''' and ''', where double quotes may stand
             sql = "SELECT id, \"userID\"\n, name FROM shop"
                               ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id,, name FROM shop'''
"##,
        r##"
WRONG    page.toml:4:20: syntax error at or near ","; there is a comma too many
             sql = '''SELECT id,, name FROM shop'''
                                ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name, FROM shop'''
"##,
        r##"
WRONG    page.toml:4:27: syntax error at or near "FROM"; there is a comma too many
             sql = '''SELECT id, name, FROM shop'''
                                       ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id name title FROM item'''
"##,
        r##"
WRONG    page.toml:4:25: syntax error at or near "title"; Postgres did not expect this word here: is a comma, an operator or a keyword missing before it, or is one misspelled?
             sql = '''SELECT id name title FROM item'''
                                     ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM shop WHERE'''
"##,
        r##"
WRONG    page.toml:4:35: syntax error at end of input; the sql ends too early: see what is missing at its end
             sql = '''SELECT id FROM shop WHERE'''
                                               ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM shop, item'''
"##,
        r##"
WRONG    page.toml:4:17: column reference "id" is ambiguous; several of its tables have this column: write which one you mean, as in table.column
             sql = '''SELECT id FROM shop, item'''
                             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "spec"
sql = '''SELECT spec, id FROM item'''
"##,
        r##"
WRONG    page.toml:3:28: the key spec has type json, which has no equality and order: cast it, for instance to text
             key_to_denormalize_upon = "spec"
                                        ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "shop_id"
sql = '''SELECT shop_id, count(*) AS visits FROM visit GROUP BY shop_id'''
"##,
        r##"
WRONG    collection page: table public.visit is not published, so its changes are seen by a timer only; add it to [postgres] tables and run `onelog prepare`
WRONG    collection page: the old row of public.visit lacks shop_id, so a row that moves or goes is seen by a timer only; run:
         ALTER TABLE "public"."visit" REPLICA IDENTITY FULL;
warning  page.toml:4:10: page is swept on a timer: public.visit is not published, so its changes are not seen; add it to [postgres] tables and run `onelog prepare`

2 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop WHERE now() > '2020-01-01''''
"##,
        r##"
warning  page.toml:4:10: page is swept on a timer: it calls now(), whose value depends on the time, on settings or on other tables
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, random() AS luck FROM shop'''
"##,
        r##"
warning  page.toml:4:10: page is swept on a timer: it calls random(), which may give another value each time
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "shop_id"
nest_as = "items"
sql = '''SELECT shop_id, title FROM item'''
"##,
        r##"
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
nest_as = "name"
sql = '''SELECT shop_id AS id, title FROM item'''
"##,
        r##"
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, title AS name FROM item'''
"##,
        r##"
ok       collection page: every change reaches its documents
"##,
    ),
];

#[tokio::test]
async fn mistakes_in_the_sql_are_said_whole() {
    check(&shop("mistakes_online").await, ONLINE, &[]);
}
