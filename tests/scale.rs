//! Several translators share the work through the consumer group: they may join, leave and be
//! killed under load, and the documents are right all the same.

mod support;

use std::path::{Path, PathBuf};

use elasticsearch::http::Method;

use support::daemon::Daemon;
use support::eventually;
use support::traffic::Load;
use support::world::{self, PATIENCE, Wishes, World, free_address};

/// A translator besides the world's own daemon: another process of the same group.
struct Translator {
    daemon: Daemon,
    http: String,
}

impl Translator {
    /// With the world's own mappings.
    fn start(world: &World, name: &str) -> Self {
        Self::start_in(world, name, world.folder.path())
    }

    /// With the mappings in `connectors` below the folder. A static member's name must not be
    /// another's: the broker would fence one of them.
    fn start_in(world: &World, name: &str, folder: &Path) -> Self {
        let http = free_address();
        let text = std::fs::read_to_string(&world.config).expect("the world's config");
        let member = format!("\"group.instance.id\" = \"{}\"", world.name);
        assert!(text.contains(&member), "the config names the member");
        let own = format!("\"group.instance.id\" = \"{}-{name}\"", world.name);
        let text = text.replace(&member, &own).replace(&world.http, &http);
        let config: PathBuf = folder.join(format!("{name}.toml"));
        std::fs::write(&config, text).expect("a config");
        let log = world.folder.path().join(format!("{name}.log"));
        let daemon = Daemon::start_with(&config, &log, &["--only", "translate"]);
        Self { daemon, http }
    }

    async fn metric(&self, name: &str) -> Option<f64> {
        world::metric_at(&self.http, name, "").await
    }

    /// Waits until it has handled some records.
    async fn works(&self) {
        eventually("the translator has its share", PATIENCE, || async {
            (self.metric("onelog_translate_records_total").await? >= 20.0).then_some(())
        })
        .await;
    }
}

async fn shared(name: &str) -> (World, Daemon) {
    let wishes = Wishes { companies: 60, kafka: "partitions = 4", ..Wishes::default() };
    let world = World::new(name, wishes).await;
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    (world, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn translators_join_leave_and_die_under_load() {
    let (world, mut first) = shared("scale").await;
    let load = Load::start(&world.database_url, 5, 3);
    let second = Translator::start(&world, "second");
    second.works().await;
    let third = Translator::start(&world, "third");
    third.works().await;

    // One dies with its share in flight: the others take it over.
    second.daemon.kill();
    let fourth = Translator::start(&world, "fourth");
    fourth.works().await;
    // The one that also captures dies, and comes back.
    first.kill();
    first = world.start();
    eventually("the first one works again", PATIENCE, || async {
        (world.metric("onelog_translate_records_total").await? >= 20.0).then_some(())
    })
    .await;
    // One leaves as an operator would have it.
    let restarts = third.metric("onelog_stage_restarts_total").await;
    assert_eq!(restarts, Some(0.0), "a rebalance ends no session");
    assert!(third.daemon.stop().await.success());
    load.stop().await;
    world.quiet().await;
    world.check_documents().await;
    assert_eq!(fourth.metric("onelog_stage_restarts_total").await, Some(0.0));
    assert!(fourth.daemon.stop().await.success());
    assert!(first.stop().await.success());
}

const TWO_TABLES: &str = "
    CREATE TABLE apple (id bigint PRIMARY KEY, name text NOT NULL);
    CREATE TABLE pear (id bigint PRIMARY KEY, name text NOT NULL);
    INSERT INTO apple SELECT n, 'old' FROM generate_series(1, 10) n;
    INSERT INTO pear SELECT n, 'old' FROM generate_series(1, 10) n";

fn page_of(table: &str) -> String {
    format!(
        "[[denormalization]]\ncollection = \"{table}_page\"\nkey = \"id\"\n\
         sql = \"SELECT id, name FROM {table}\"\n"
    )
}

async fn has_alias(world: &World, collection: &str) {
    let path = format!("/_alias/{}", world.alias(collection));
    eventually("the collection is built", PATIENCE, || async {
        world.elastic(Method::Get, &path, None).await.ok().map(|_| ())
    })
    .await;
}

/// Renames a row of the table and waits for its document.
async fn follows(world: &World, table: &str, name: &str) {
    let (client, _connection) = world.client().await;
    let sql = format!("UPDATE {table} SET name = '{name}' WHERE id = 1");
    client.batch_execute(&sql).await.expect("updated");
    eventually("the document follows", PATIENCE, || async {
        let document = world.document(&format!("{table}_page"), "1").await?;
        (document["name"] == name).then_some(())
    })
    .await;
}

/// A rollout: the group is in use, and the new one brings a collection over a topic for which the
/// group has no position. Kafka takes positions from members only.
#[tokio::test(flavor = "multi_thread")]
async fn a_translator_with_one_more_collection_joins_the_others() {
    let wishes = Wishes { instead: Some(TWO_TABLES), ..Wishes::default() };
    let world = World::new("scale_more", wishes).await;
    std::fs::write(world.mappings.join("apple.toml"), page_of("apple")).expect("a mapping");
    world.onelog(&["prepare"]);
    let first = world.start();
    world.built().await;
    follows(&world, "apple", "new").await;

    let folder = world.folder.path().join("second");
    std::fs::create_dir_all(folder.join("connectors")).expect("a folder");
    for table in ["apple", "pear"] {
        let file = folder.join("connectors").join(format!("{table}.toml"));
        std::fs::write(file, page_of(table)).expect("a mapping");
    }
    let second = Translator::start_in(&world, "second", &folder);
    has_alias(&world, "pear_page").await;
    assert_eq!(second.metric("onelog_stage_restarts_total").await, Some(0.0));
    follows(&world, "pear", "new").await;
    follows(&world, "apple", "newer").await;
    world.quiet().await;
    world.check_documents().await;
    assert!(second.daemon.stop().await.success());
    assert!(first.stop().await.success());
}

/// A translator may be there before capture has made a topic: what has topics goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_not_there_yet_holds_up_nobody() {
    let wishes = Wishes { instead: Some(TWO_TABLES), ..Wishes::default() };
    let world = World::new("scale_topic", wishes).await;
    world.onelog(&["prepare"]);
    let (client, _connection) = world.client().await;
    let sql = format!(
        "CREATE TABLE plum (id bigint PRIMARY KEY, name text NOT NULL);
         INSERT INTO plum VALUES (1, 'old');
         ALTER PUBLICATION {} ADD TABLE plum",
        world.name
    );
    client.batch_execute(&sql).await.expect("a table without a topic");
    for table in ["apple", "plum"] {
        let file = world.mappings.join(format!("{table}.toml"));
        std::fs::write(file, page_of(table)).expect("a mapping");
    }
    let early = Translator::start(&world, "early");
    has_alias(&world, "apple_page").await;
    has_alias(&world, "plum_page").await;
    assert_eq!(early.metric("onelog_stage_restarts_total").await, Some(0.0));
    let first = world.start();
    follows(&world, "apple", "new").await;
    follows(&world, "plum", "new").await;
    world.quiet().await;
    world.check_documents().await;
    assert_eq!(early.metric("onelog_stage_restarts_total").await, Some(0.0));
    assert!(early.daemon.stop().await.success());
    assert!(first.stop().await.success());
}

/// Mapping files that are rolled out one translator after another. While one has the new file and
/// the other has not, the new index misses what the other reads from the log; whoever takes over
/// from it must not trust the index's mark.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_translator_with_older_files_read_is_swept_by_its_successor() {
    const MANY: &str = "
        CREATE TABLE apple (id bigint PRIMARY KEY, name text NOT NULL);
        INSERT INTO apple SELECT n, 'old' FROM generate_series(1, 200) n";
    let wishes = Wishes { instead: Some(MANY), kafka: "partitions = 4", ..Wishes::default() };
    let world = World::new("scale_rollout", wishes).await;
    let file = world.mappings.join("apple.toml");
    std::fs::write(&file, page_of("apple")).expect("a mapping");
    world.onelog(&["prepare"]);
    let first = world.start();
    world.built().await;
    follows(&world, "apple", "new").await;

    // The second one has a new definition of the page.
    let newer = page_of("apple").replace("id, name", "id, name, upper(name) AS loud");
    let folder = world.folder.path().join("second");
    std::fs::create_dir_all(folder.join("connectors")).expect("a folder");
    std::fs::write(folder.join("connectors/apple.toml"), &newer).expect("a mapping");
    let second = Translator::start_in(&world, "second", &folder);
    eventually("the new definition serves", PATIENCE, || async {
        (world.document("apple_page", "1").await?["loud"] == "NEW").then_some(())
    })
    .await;
    // Both have partitions: what one of them handles counts once.
    let (client, _connection) = world.client().await;
    let mut round = 0;
    loop {
        round += 1;
        assert!(round < 100, "the work is never shared");
        let sql = format!("UPDATE apple SET name = 'round {round}'");
        client.batch_execute(&sql).await.expect("updated");
        world.quiet().await;
        let stale = world.documents("apple_page").await;
        let expected = format!("round {round}");
        let stale = stale.values().filter(|it| it["name"] != expected.as_str()).count();
        if (1..200).contains(&stale) {
            break;
        }
    }
    assert!(first.stop().await.success());
    // By the old mark it would be trusted now.
    std::fs::write(&file, &newer).expect("a mapping");
    eventually("what the older one read has been swept", PATIENCE, || async {
        let found = world.documents("apple_page").await;
        let expected = format!("round {round}");
        found.values().all(|it| it["name"] == expected.as_str()).then_some(())
    })
    .await;
    let first = world.start();
    follows(&world, "apple", "newest").await;
    world.quiet().await;
    world.check_documents().await;
    assert_eq!(second.metric("onelog_stage_restarts_total").await, Some(0.0));
    assert!(second.daemon.stop().await.success());
    assert!(first.stop().await.success());
}
