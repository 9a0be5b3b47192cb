//! Changes that have no event (A11): the catalog changes, no row of the log says so, and the
//! documents are right all the same. Audit and polling are off, and nothing touches the rows
//! afterwards, so that only the fingerprint can have noticed.

mod support;

use std::time::Duration;

use elasticsearch::http::Method;
use support::daemon::Daemon;
use support::eventually;
use support::oracle;
use support::world::{Wishes, World};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// Some looks at the catalog, a load and a sweep of a few rows, on a machine that others use too.
const SOON: Duration = Duration::from_secs(20);

const SQL: &str = "
CREATE TYPE mood AS ENUM ('calm', 'wild');
CREATE TABLE shop (id int PRIMARY KEY, name text NOT NULL, mood mood NOT NULL DEFAULT 'calm');
CREATE TABLE item (id int PRIMARY KEY, shop_id int NOT NULL, title text, amount int);
CREATE TABLE stock (id int PRIMARY KEY, shop_id int NOT NULL, title text, qty int);
CREATE VIEW open_stock AS SELECT shop_id, id, title FROM stock WHERE qty > 0;
CREATE TABLE reading (id int, shop_id int NOT NULL, at int, value int, PRIMARY KEY (id, at))
  PARTITION BY RANGE (at);
CREATE TABLE reading_0 PARTITION OF reading FOR VALUES FROM (0) TO (10);
CREATE TABLE reading_1 PARTITION OF reading FOR VALUES FROM (10) TO (20);
CREATE TABLE animal (id int PRIMARY KEY, shop_id int, name text);
CREATE TABLE dog (PRIMARY KEY (id)) INHERITS (animal);
CREATE TABLE note (shop_id int PRIMARY KEY, a int,
  total int GENERATED ALWAYS AS (a * 2) STORED);
ALTER TABLE item REPLICA IDENTITY FULL; ALTER TABLE stock REPLICA IDENTITY FULL;
ALTER TABLE reading_0 REPLICA IDENTITY FULL; ALTER TABLE reading_1 REPLICA IDENTITY FULL;
ALTER TABLE animal REPLICA IDENTITY FULL; ALTER TABLE dog REPLICA IDENTITY FULL;
INSERT INTO shop SELECT g, 'shop ' || g FROM generate_series(1, 6) g;
INSERT INTO item SELECT g, 1 + g % 6, 'item ' || g, g FROM generate_series(1, 30) g;
INSERT INTO stock SELECT g, 1 + g % 6, 'stock ' || g, g % 3 FROM generate_series(1, 30) g;
INSERT INTO reading SELECT g, 1 + g % 6, g % 20, g FROM generate_series(1, 60) g;
INSERT INTO animal SELECT g, 1 + g % 6, 'animal ' || g FROM generate_series(1, 12) g;
INSERT INTO dog SELECT g, 1 + g % 6, 'dog ' || g FROM generate_series(100, 112) g;
INSERT INTO note SELECT g, g FROM generate_series(1, 6) g;
";

const COLLECTIONS: [(&str, &str, &str); 6] = [
    (
        "items",
        "shop",
        "SELECT s.id AS shop, s.name, i.id, i.title, i.amount FROM shop s JOIN item i ON i.shop_id = s.id",
    ),
    ("stocks", "shop", "SELECT shop_id AS shop, id, title FROM open_stock"),
    ("readings", "shop", "SELECT shop_id AS shop, id, at, value FROM reading"),
    ("animals", "shop", "SELECT shop_id AS shop, id, name FROM animal"),
    ("notes", "shop", "SELECT shop_id AS shop, total FROM note"),
    ("moods", "shop", "SELECT id AS shop, mood FROM shop"),
];

async fn world(name: &str) -> World {
    let world = World::new(name, Wishes { instead: Some(SQL), ..Wishes::default() }).await;
    for (collection, key, sql) in COLLECTIONS {
        let text = format!(
            "[[denormalization]]\ncollection = \"{collection}\"\nkey = \"{key}\"\n\
             nest_as = \"rows\"\nsql = \"{sql}\"\n"
        );
        let file = world.mappings.join(format!("{collection}.toml"));
        std::fs::write(file, text).expect("the mapping is written");
    }
    world.onelog(&["prepare"]);
    world
}

async fn running(name: &str) -> (World, Daemon, Client, JoinSet<()>) {
    let world = world(name).await;
    let daemon = world.start();
    world.built().await;
    let (client, connection) = world.client().await;
    world.check_documents().await;
    (world, daemon, client, connection)
}

/// The first difference between any collection and its SQL.
async fn difference(world: &World) -> Option<String> {
    let (client, _connection) = world.client().await;
    for collection in world.collections() {
        let expected = oracle::expected(&client, &world.mappings, &collection).await;
        let found = world.documents(&collection).await;
        if let Some(fault) = oracle::difference(&expected, &found) {
            return Some(format!("{collection}: {fault}"));
        }
    }
    None
}

/// Waits until every document is right, and says what was wrong last if that does not come.
async fn right(world: &World, what: &str) {
    let last = std::cell::RefCell::new(None);
    let waiting = eventually("the documents are right", SOON * 2, || async {
        let fault = difference(world).await;
        let fine = fault.is_none();
        *last.borrow_mut() = fault;
        fine.then_some(())
    });
    if tokio::time::timeout(SOON, waiting).await.is_err() {
        panic!("after {what}: {}", last.borrow().as_deref().unwrap_or_default());
    }
}

/// How many looks found something, and how many documents all sweeps have compared.
async fn counters(world: &World) -> (f64, f64) {
    let changed = world.metric_where("onelog_fingerprint_looks_total", "changed").await;
    let swept = world.metric("onelog_sweep_documents_total").await;
    (changed.unwrap_or(0.0), swept.unwrap_or(0.0))
}

/// How many sweeps have ended, as the daemon's log has it.
fn swept(world: &World) -> usize {
    let log = std::fs::read_to_string(world.folder.path().join("onelog.log"));
    let log = log.unwrap_or_default();
    log.lines().filter(|it| it.contains("translate::sweep: swept ")).count()
}

/// Runs the SQL, waits until it was noticed and a sweep has followed, and until the documents are
/// right.
async fn noticed(world: &World, client: &Client, sql: &str) {
    let ((before, _), sweeps) = (counters(world).await, swept(world));
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    eventually(&format!("noticed: {sql}"), SOON, || async {
        (counters(world).await.0 > before).then_some(())
    })
    .await;
    eventually(&format!("swept: {sql}"), SOON, || async { (swept(world) > sweeps).then_some(()) })
        .await;
    right(world, sql).await;
    world.quiet().await;
    idle(world).await;
}

/// No load is under way, as looks find no difference, and no sweep is owed: the next change of a
/// row is followed by its path.
async fn idle(world: &World) {
    for _ in 0..2 {
        looked(world).await;
        eventually("no sweep is pending", SOON, || async {
            (world.metric("onelog_sweeps_pending").await? == 0.0).then_some(())
        })
        .await;
    }
}

/// Waits until the catalog was looked at in a snapshot later than now, and was as it should be.
async fn looked(world: &World) {
    let looks = || world.metric_where("onelog_fingerprint_looks_total", "same");
    let before = looks().await.expect("a daemon");
    eventually("two more looks", SOON, || async {
        looks().await.filter(|it| *it >= before + 2.0).map(|_| ())
    })
    .await;
}

/// The SQL's changes have events, and need no look at the catalog.
async fn followed(world: &World, client: &Client, sql: &str) {
    let before = counters(world).await;
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    world.quiet().await;
    let fault = difference(world).await;
    assert_eq!(fault, None, "after {sql}");
    assert_eq!(counters(world).await, before, "nothing was swept after {sql}");
}

/// What `onelog explain` says of a collection, which ends with 1 when there is something amiss.
fn explained(world: &World, collection: &str, expected: &str) {
    let file = world.mappings.join(format!("{collection}.toml"));
    let (file, config) = (file.to_string_lossy(), world.config.to_string_lossy());
    let output = support::daemon::onelog(&["explain", &file, "--config", &config]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(expected), "{said}");
}

async fn index_of(world: &World, collection: &str) -> String {
    let path = format!("/_alias/{}", world.alias(collection));
    let found = world.elastic(Method::Get, &path, None).await.expect("an alias");
    found.as_object().and_then(|it| it.keys().next().cloned()).expect("an index")
}

#[tokio::test(flavor = "multi_thread")]
async fn retyped_rewritten_and_redefined() {
    let (world, daemon, client, _connection) = running("retyped").await;
    let index = index_of(&world, "items").await;
    noticed(&world, &client, "ALTER TABLE item ALTER amount TYPE int USING amount * 10").await;
    assert_eq!(index_of(&world, "items").await, index, "the same definition, the same index");
    followed(&world, &client, "UPDATE item SET shop_id = 2 WHERE id < 10").await;

    // Another type of result is another definition.
    let text = "ALTER TABLE item ALTER amount TYPE text USING amount || ' EUR'";
    noticed(&world, &client, text).await;
    assert_ne!(index_of(&world, "items").await, index);
    followed(&world, &client, "UPDATE item SET shop_id = 3 WHERE id < 10").await;

    let view =
        "CREATE OR REPLACE VIEW open_stock AS SELECT shop_id, id, title FROM stock WHERE qty > 1";
    noticed(&world, &client, view).await;
    // Names that the view hides from the mapping: of the path's column, and of the topic.
    noticed(&world, &client, "ALTER TABLE stock RENAME shop_id TO place_id").await;
    followed(&world, &client, "UPDATE stock SET place_id = 1 WHERE id < 10").await;
    noticed(&world, &client, "ALTER TABLE stock RENAME TO goods").await;
    followed(&world, &client, "UPDATE goods SET place_id = 4 WHERE id < 10").await;

    noticed(&world, &client, "ALTER TYPE mood RENAME VALUE 'calm' TO 'quiet'").await;
    let generated = "BEGIN; ALTER TABLE note DROP COLUMN total; \
        ALTER TABLE note ADD COLUMN total int GENERATED ALWAYS AS (a * 3) STORED; COMMIT";
    noticed(&world, &client, generated).await;

    // What no document depends on is nobody's business.
    let before = counters(&world).await;
    for sql in [
        "ALTER TABLE item ADD COLUMN more text DEFAULT 'x'",
        "ALTER TYPE mood ADD VALUE 'sad'",
        "GRANT SELECT ON item TO PUBLIC",
        "CREATE INDEX ON item (title)",
        "VACUUM ANALYZE item",
        "UPDATE item SET more = 'y'",
    ] {
        client.batch_execute(sql).await.expect(sql);
    }
    looked(&world).await;
    assert_eq!(counters(&world).await, before, "nothing was swept");
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_and_heirs_come_and_go() {
    let (world, daemon, client, _connection) = running("partitions").await;
    // By way of root and leaves, and from one to another.
    followed(
        &world,
        &client,
        "UPDATE reading SET shop_id = 1 + (shop_id + 1) % 6 WHERE id < 20; \
        UPDATE reading_1 SET value = -1; UPDATE reading SET at = 19 - at WHERE id > 40; \
        INSERT INTO reading VALUES (1000, 1, 5, 5); DELETE FROM reading WHERE id % 7 = 0",
    )
    .await;
    followed(
        &world,
        &client,
        "UPDATE animal SET shop_id = 2 WHERE id IN (3, 103); \
        INSERT INTO dog VALUES (200, 3, 'new'); DELETE FROM animal WHERE id = 104",
    )
    .await;

    noticed(
        &world,
        &client,
        "CREATE TABLE reading_2 (LIKE reading INCLUDING ALL); \
        ALTER TABLE reading_2 REPLICA IDENTITY FULL; \
        INSERT INTO reading_2 SELECT 2000 + g, 1 + g % 6, 25, g FROM generate_series(1, 9) g; \
        ALTER TABLE reading ATTACH PARTITION reading_2 FOR VALUES FROM (20) TO (30)",
    )
    .await;
    followed(&world, &client, "UPDATE reading SET shop_id = 6 WHERE id > 2004").await;
    noticed(&world, &client, "ALTER TABLE reading DETACH PARTITION reading_1").await;
    noticed(
        &world,
        &client,
        "ALTER TABLE reading ATTACH PARTITION reading_1 \
        FOR VALUES FROM (10) TO (20)",
    )
    .await;
    noticed(&world, &client, "DROP TABLE reading_0").await;
    noticed(&world, &client, "TRUNCATE reading_2").await;
    followed(&world, &client, "INSERT INTO reading VALUES (3000, 2, 25, 1)").await;
    noticed(&world, &client, "TRUNCATE reading, note").await;

    // A new heir, whose rows nobody publishes.
    noticed(
        &world,
        &client,
        "CREATE TABLE cat (PRIMARY KEY (id)) INHERITS (animal); \
        INSERT INTO cat VALUES (300, 1, 'cat')",
    )
    .await;
    explained(&world, "animals", "public.cat, which belongs to public.animal, is not published");
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn published_replaced_and_weakened() {
    let (world, daemon, client, _connection) = running("published").await;
    let publication = world.name.clone();
    // The update comes before anyone can notice, and has no event.
    noticed(
        &world,
        &client,
        &format!(
            "ALTER PUBLICATION {publication} DROP TABLE item; \
        UPDATE item SET title = 'unseen' WHERE id < 10"
        ),
    )
    .await;
    client.batch_execute("UPDATE item SET title = 'unseen too'").await.expect("updated");
    noticed(&world, &client, "ALTER TABLE item SET UNLOGGED").await;
    client.batch_execute("UPDATE item SET title = 'not logged'").await.expect("updated");
    noticed(&world, &client, "ALTER TABLE item SET LOGGED").await;
    client.batch_execute("UPDATE item SET title = 'logged'").await.expect("updated");
    noticed(&world, &client, &format!("ALTER PUBLICATION {publication} ADD TABLE item")).await;
    followed(&world, &client, "UPDATE item SET title = 'seen', shop_id = 2 WHERE id < 10").await;

    // A row that moves has no old image any more: its old document is found by the sweep.
    noticed(
        &world,
        &client,
        "ALTER TABLE stock REPLICA IDENTITY DEFAULT; \
        UPDATE stock SET shop_id = 5 WHERE id < 10; DELETE FROM stock WHERE id > 20",
    )
    .await;
    explained(&world, "stocks", "REPLICA IDENTITY FULL");
    noticed(&world, &client, "ALTER TABLE stock REPLICA IDENTITY FULL").await;
    followed(&world, &client, "UPDATE stock SET shop_id = 6 WHERE id < 10").await;
    // Weakened and mended before anyone looked.
    noticed(
        &world,
        &client,
        "BEGIN; ALTER TABLE stock REPLICA IDENTITY DEFAULT; \
        UPDATE stock SET shop_id = 1 WHERE id < 10; DELETE FROM stock WHERE id > 15; \
        ALTER TABLE stock REPLICA IDENTITY FULL; COMMIT",
    )
    .await;

    noticed(
        &world,
        &client,
        "BEGIN; DROP TABLE note; \
        CREATE TABLE note (shop_id int PRIMARY KEY, total int); \
        INSERT INTO note VALUES (3, 33), (9, 99); COMMIT",
    )
    .await;
    client.batch_execute("UPDATE note SET total = 7").await.expect("updated");
    noticed(&world, &client, &format!("ALTER PUBLICATION {publication} ADD TABLE note")).await;
    followed(&world, &client, "UPDATE note SET total = 8").await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_the_daemon_was_down() {
    let (world, daemon, client, _connection) = running("down").await;
    assert!(daemon.stop().await.success());
    client
        .batch_execute(
            "ALTER TABLE item ALTER amount TYPE int USING amount * 10; \
             ALTER TABLE reading DETACH PARTITION reading_1; \
             CREATE OR REPLACE VIEW open_stock AS SELECT shop_id, id, title FROM stock WHERE qty > 1; \
             BEGIN; DROP TABLE note; CREATE TABLE note (shop_id int PRIMARY KEY, total int); \
             INSERT INTO note VALUES (3, 33), (9, 99); COMMIT; \
             BEGIN; ALTER TABLE animal REPLICA IDENTITY DEFAULT; DELETE FROM ONLY animal; \
             ALTER TABLE animal REPLICA IDENTITY FULL; COMMIT",
        )
        .await
        .expect("changed");
    let daemon = world.start();
    right(&world, "a restart").await;
    idle(&world).await;

    // What a sweep has seen once is not swept again.
    daemon.kill();
    let daemon = world.start();
    followed_after_restart(&world, &client).await;
    assert!(daemon.stop().await.success());
}

async fn followed_after_restart(world: &World, client: &Client) {
    client.batch_execute("UPDATE item SET title = 'up'").await.expect("updated");
    world.quiet().await;
    assert_eq!(difference(world).await, None);
    assert_eq!(counters(world).await, (0.0, 0.0), "nothing was swept");
}

/// Writes to all tables until it is stopped; a statement that DDL makes impossible is left out.
async fn write_on(url: String, seed: u32, stopped: CancellationToken) {
    let (client, _connection) = support::world::connect(&url).await;
    let mut nth = seed;
    while !stopped.is_cancelled() {
        nth = nth.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (id, shop) = (nth % 30, 1 + nth % 6);
        let sql = [
            format!("UPDATE item SET shop_id = {shop} WHERE id = {id}"),
            format!("UPDATE stock SET shop_id = {shop}, qty = {id} % 3 WHERE id = {id}"),
            format!("UPDATE reading SET shop_id = {shop}, value = {nth} % 1000 WHERE id = {id}"),
            format!(
                "INSERT INTO reading VALUES ({nth} % 1000000, {shop}, {id} % 20, 1) ON CONFLICT DO NOTHING"
            ),
            format!("DELETE FROM reading WHERE shop_id = {shop} AND id > 100"),
            format!("UPDATE note SET a = {id} WHERE shop_id = {shop}"),
        ];
        for sql in sql {
            // A deadlock with DDL, or a table that is gone for a moment.
            drop(client.batch_execute(&sql).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_under_traffic() {
    let (world, daemon, client, _connection) = running("ddl_traffic").await;
    let stopped = CancellationToken::new();
    let mut writers = JoinSet::new();
    for seed in 1..=3 {
        writers.spawn(write_on(world.database_url.clone(), seed, stopped.clone()));
    }
    let changes = [
        "ALTER TABLE item ALTER amount TYPE int USING amount + 1",
        "ALTER TABLE reading DETACH PARTITION reading_1",
        "CREATE OR REPLACE VIEW open_stock AS SELECT shop_id, id, title FROM stock WHERE qty > 1",
        "TRUNCATE reading_0",
        "ALTER TABLE reading ATTACH PARTITION reading_1 FOR VALUES FROM (10) TO (20)",
        "ALTER TABLE item ALTER amount TYPE text USING amount || '!'",
        "ALTER TABLE stock REPLICA IDENTITY DEFAULT",
        "DROP TABLE reading_0; CREATE TABLE reading_0 PARTITION OF reading FOR VALUES FROM (0) TO (10); \
         ALTER TABLE reading_0 REPLICA IDENTITY FULL",
        "ALTER TABLE stock REPLICA IDENTITY FULL",
        "BEGIN; ALTER TABLE note DROP COLUMN total; \
         ALTER TABLE note ADD COLUMN total int GENERATED ALWAYS AS (a + 1) STORED; COMMIT",
    ];
    for change in changes {
        let (before, _) = counters(&world).await;
        // Behind the writers' locks it may be the one that a deadlock ends.
        eventually(change, SOON, || async {
            let done = client.batch_execute(change).await;
            if done.is_err() {
                drop(client.batch_execute("ROLLBACK").await);
            }
            done.ok()
        })
        .await;
        eventually(&format!("noticed: {change}"), SOON, || async {
            (counters(&world).await.0 > before).then_some(())
        })
        .await;
    }
    stopped.cancel();
    while let Some(ended) = writers.join_next().await {
        ended.expect("a writer does not panic");
    }
    world.quiet().await;
    right(&world, "all changes").await;
    idle(&world).await;
    followed(
        &world,
        &client,
        "UPDATE item SET shop_id = 3; UPDATE stock SET shop_id = 2; \
        UPDATE reading SET shop_id = 4; UPDATE note SET a = 5",
    )
    .await;
    assert!(daemon.stop().await.success());
}
