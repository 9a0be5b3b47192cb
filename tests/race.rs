//! The race that leaves half of the documents wrong for ever where owners of a changed row are
//! searched for in Elasticsearch: a child row is inserted, and moved to another parent or deleted
//! some hundred milliseconds later. Here owners come from the row's images and from Postgres.
//!
//! 400 pairs at 50 a second. Audit and polling are off, so that no sweep hides what went wrong.

mod support;

use std::time::Duration;

use support::daemon::Daemon;
use support::world::{Wishes, World};

const PAIRS: u32 = 400;
const PARENTS: u32 = 100;
/// Between two inserts: 50 a second.
const PACE: Duration = Duration::from_millis(20);

const FAMILY: &str = "
    CREATE TABLE parent (id bigint PRIMARY KEY, name text NOT NULL);
    CREATE TABLE child (id bigint PRIMARY KEY, parent_id bigint NOT NULL, note text);
    CREATE INDEX ON child (parent_id);
    ALTER TABLE child REPLICA IDENTITY FULL;
    INSERT INTO parent SELECT n, 'parent ' || n FROM generate_series(1, 100) n;
    INSERT INTO child SELECT -n, 1 + n % 100, 'there before' FROM generate_series(1, 300) n";

const FAMILY_PAGE: &str = r#"
[[denormalization]]
collection = "family_page"
key = "parent_id"
sql = "SELECT id AS parent_id, name FROM parent"

[[denormalization]]
collection = "family_page"
key = "parent_id"
nest_as = "children"
optional = true
sql = "SELECT parent_id, id, note FROM child"
"#;

/// What is done when, in paces of 20 ms: every insert, and 300 or 700 ms later its end.
fn plan() -> Vec<Vec<String>> {
    let mut paces = vec![Vec::new(); usize::try_from(PAIRS).expect("it fits") + 36];
    for nth in 0..PAIRS {
        let at = usize::try_from(nth).expect("it fits");
        let parent = 1 + nth * 7 % PARENTS;
        paces[at].push(format!("INSERT INTO child VALUES ({nth}, {parent}, 'new')"));
        let other = 1 + (parent + 13) % PARENTS;
        let end = match nth % 2 {
            0 => format!("UPDATE child SET parent_id = {other} WHERE id = {nth}"),
            _ => format!("DELETE FROM child WHERE id = {nth}"),
        };
        let later = if nth % 4 < 2 { 15 } else { 35 };
        paces[at + later].push(end);
    }
    paces
}

/// Runs the pairs; `halfway` happens in the middle of them.
async fn run_pairs(world: &World, halfway: impl FnOnce()) {
    let (client, _connection) = world.client().await;
    let mut halfway = Some(halfway);
    let mut pace = tokio::time::interval(PACE);
    let paces = plan();
    let middle = paces.len() / 2;
    for (nth, statements) in paces.iter().enumerate() {
        pace.tick().await;
        for statement in statements {
            client.batch_execute(statement).await.expect("the statement runs");
        }
        if nth == middle
            && let Some(halfway) = halfway.take()
        {
            halfway();
        }
    }
}

async fn built(name: &str, more: &str) -> (World, Daemon) {
    let wishes = Wishes { instead: Some(FAMILY), ..Wishes::default() };
    let world = World::new(name, wishes).await;
    let mapping = format!("{FAMILY_PAGE}\n{more}");
    std::fs::write(world.mappings.join("family_page.toml"), mapping).expect("a mapping file");
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    (world, daemon)
}

async fn none_is_wrong(world: &World, daemon: Daemon) {
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_moves_or_goes_at_once_leaves_no_document_wrong() {
    let (world, daemon) = built("race", "").await;
    run_pairs(&world, || ()).await;
    none_is_wrong(&world, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_when_elasticsearch_shows_writes_to_searches_late() {
    let late = "[collection.family_page]\nsettings = { \"index.refresh_interval\" = \"30s\" }";
    let (world, daemon) = built("race_late", late).await;
    run_pairs(&world, || ()).await;
    none_is_wrong(&world, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_when_the_daemon_is_killed_between() {
    let (world, daemon) = built("race_kill", "").await;
    let mut restarted = None;
    run_pairs(&world, || {
        daemon.kill();
        restarted = Some(world.start());
    })
    .await;
    none_is_wrong(&world, restarted.expect("it was started again")).await;
}
