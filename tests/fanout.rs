//! Large fan-outs and keys that can't be read: neither holds up anybody else.
//!
//! Nothing here is timed: what must not wait is seen to be there while the other is still far from
//! its end, by the daemon's own counters.

#![allow(clippy::print_stdout, reason = "a figure that the test measures anyway")]

mod support;

use std::cell::Cell;

use elasticsearch::http::Method;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, TopicPartitionList};
use serde_json::Value;
use support::daemon::Daemon;
use support::eventually;
use support::world::{PATIENCE, Wishes, World};

/// Documents of the large category: three pages. The benchmark has more of them.
const LARGE: u32 = 60_000;
/// Documents of the small one.
const SMALL: u32 = 3;

fn shop(large: u32) -> String {
    format!(
        "CREATE TABLE category (id bigint PRIMARY KEY, name text NOT NULL);
         CREATE TABLE product (id bigint PRIMARY KEY, category_id bigint NOT NULL, name text);
         CREATE INDEX ON product (category_id);
         ALTER TABLE product REPLICA IDENTITY FULL;
         INSERT INTO category VALUES (1, 'large'), (2, 'small');
         INSERT INTO product SELECT n, 1, 'p' FROM generate_series(1, {large}) n;
         INSERT INTO product SELECT -n, 2, 'p' FROM generate_series(1, {SMALL}) n;
         ANALYZE"
    )
}

const SHOP: &str = r#"
[[denormalization]]
collection = "product_page"
key = "id"
sql = "SELECT p.id, p.name, c.name AS category FROM product p JOIN category c ON c.id = p.category_id"
"#;

/// A world with these tables and this mapping, its collections built.
async fn built(name: &str, sql: &str, mapping: &str, translate: &str) -> (World, Daemon) {
    let wishes = Wishes { instead: Some(sql), translate, ..Wishes::default() };
    let world = World::new(name, wishes).await;
    std::fs::write(world.mappings.join("mapping.toml"), mapping).expect("a mapping file");
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    (world, daemon)
}

/// How many documents have this value.
async fn count(world: &World, field: &str, value: &str) -> u64 {
    let alias = world.alias("product_page");
    world.elastic(Method::Post, &format!("/{alias}/_refresh"), None).await.expect("a refresh");
    let query = serde_json::json!({"query": {"term": {field: value}}}).to_string();
    let path = format!("/{alias}/_count");
    let found = world.elastic(Method::Post, &path, Some(&query)).await.expect("a count");
    found["count"].as_u64().expect("a count")
}

async fn category_of(world: &World, product: &str) -> Option<Value> {
    Some(world.document("product_page", product).await?["category"].take())
}

async fn metric(world: &World, name: &str) -> f64 {
    eventually("the daemon answers", PATIENCE, || async { world.metric(name).await }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_fan_out_delays_no_other_document() {
    let (world, daemon) = built("fanout", &shop(LARGE), SHOP, "").await;
    let (client, _connection) = world.client().await;
    let before = metric(&world, "onelog_translate_affected_keys_total").await;
    client.batch_execute("UPDATE category SET name = 'huge' WHERE id = 1").await.expect("renamed");
    eventually("the fan-out is under way", PATIENCE, || async {
        (world.metric("onelog_translate_low_keys").await? > 0.0).then_some(())
    })
    .await;

    // Small changes of any path pass by: a lookup, a key in the row, and a document that is
    // itself among the many.
    client
        .batch_execute(
            "UPDATE category SET name = 'tiny' WHERE id = 2;
             UPDATE product SET name = 'mine' WHERE id = -1;
             UPDATE product SET name = 'also mine' WHERE id = 9999",
        )
        .await
        .expect("changed");
    for (product, field, expected) in
        [("-2", "category", "tiny"), ("-1", "name", "mine"), ("9999", "name", "also mine")]
    {
        eventually("a small change is there", PATIENCE, || async {
            let document = world.document("product_page", product).await?;
            (document[field] == expected).then_some(())
        })
        .await;
    }
    let huge = count(&world, "category.keyword", "huge").await;
    assert!(huge < u64::from(LARGE) / 2, "the fan-out was done already: {huge}");

    // Fifty more renames while it is in work are one more fan-out, two if the last come late.
    for nth in 0..50 {
        let sql = format!("UPDATE category SET name = 'huge {nth}' WHERE id = 1");
        client.batch_execute(&sql).await.expect("renamed");
    }
    // The low lane holds no more than it may, however many documents there are.
    let most = Cell::new(0.0_f64);
    eventually("the last document is right", PATIENCE * 2, || async {
        most.set(most.get().max(world.metric("onelog_translate_low_keys").await?));
        (category_of(&world, "9999").await? == "huge 49").then_some(())
    })
    .await;
    world.quiet().await;
    let most = most.get();
    assert_eq!(count(&world, "category.keyword", "huge 49").await, u64::from(LARGE));
    assert!(most <= 40_000.0, "two pages at most, not {most} keys");
    let walks = metric(&world, "onelog_translate_fan_outs_total").await;
    assert!((2.0..=3.0).contains(&walks), "51 renames took {walks} fan-outs");
    let affected = metric(&world, "onelog_translate_affected_keys_total").await - before;
    assert!(affected <= 3.1 * f64::from(LARGE), "{affected} keys for 51 renames");
    println!("peak memory {} MB", daemon.peak_memory() / 1_000_000);
    assert!(daemon.stop().await.success());
}

const NOTES: &str = "CREATE TABLE note (id bigint PRIMARY KEY, name text); \
                     INSERT INTO note VALUES (1, 'before')";

const NOTE_PAGE: &str = r#"
[[denormalization]]
collection = "note_page"
key = "id"
sql = "SELECT id, name FROM note"
"#;

/// How many records of the table's topic the group has committed.
async fn committed(world: &World, table: &str) -> i64 {
    let group = format!("{}.onelog", world.name);
    let topic = format!("{}.public.{table}", world.name);
    let asked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", support::server("ONELOG_TEST_KAFKA"))
            .set("group.id", group)
            .create()
            .expect("a client");
        let mut places = TopicPartitionList::new();
        places.add_partition(&topic, 0);
        let places = consumer.committed_offsets(places, PATIENCE).expect("Kafka answers");
        places.elements().first().and_then(|it| it.offset().to_raw()).unwrap_or(0)
    });
    asked.await.expect("no panic")
}

/// Or a crash in between would lose the documents that it leads to.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_done_once_the_documents_that_it_leads_to_are_written() {
    let tables = format!("{}; {NOTES}", shop(10));
    let (world, daemon) = built("looked_up", &tables, &format!("{SHOP}{NOTE_PAGE}"), "").await;
    let (client, _connection) = world.client().await;
    let before = metric(&world, "onelog_translate_affected_keys_total").await;
    let settings = format!("/{}/_settings", world.alias("product_page"));
    let block = |set: &'static str| {
        let (world, settings) = (&world, &settings);
        let body = format!("{{\"index.blocks.write\": {set}}}");
        async move { world.elastic(Method::Put, settings, Some(&body)).await.expect("it is set") }
    };
    block("true").await;
    let sql = "UPDATE category SET name = 'tiny' WHERE id = 2";
    client.batch_execute(sql).await.expect("renamed");
    eventually("the lookup has answered", PATIENCE, || async {
        let now = world.metric("onelog_translate_affected_keys_total").await?;
        (now >= before + f64::from(SMALL)).then_some(())
    })
    .await;
    // What is committed for one topic is committed for all.
    client.batch_execute("UPDATE note SET name = 'after'").await.expect("updated");
    eventually("a later change is committed", PATIENCE, || async {
        (committed(&world, "note").await > 0).then_some(())
    })
    .await;
    assert_eq!(committed(&world, "category").await, 0, "its documents are not written");
    block("null").await;
    world.quiet().await;
    for product in ["-1", "-2", "-3"] {
        assert_eq!(category_of(&world, product).await, Some("tiny".into()));
    }
    assert!(daemon.stop().await.success());
}

/// A column that takes seconds to compute, if `n` is large; immutable, so that it has a path.
const SLOW: &str = "
    CREATE TABLE item (id bigint PRIMARY KEY, name text NOT NULL, n integer NOT NULL DEFAULT 0);
    INSERT INTO item SELECT n, 'before' FROM generate_series(1, 100) n";

const SLOW_PAGES: &str = r#"
[[denormalization]]
collection = "slow_page"
key = "id"
sql = "SELECT id, name, length(factorial(n)::text) AS digits FROM item"

[[denormalization]]
collection = "plain_page"
key = "id"
sql = "SELECT id, name FROM item"
"#;

/// Each factorial takes some seconds, ten times of what a statement may.
const TOO_SLOW: &str = "statement_timeout = \"300ms\"";

async fn is_named(world: &World, collection: &str, key: &str, name: &str) {
    let what = format!("{collection} {key} is named {name}");
    eventually(&what, PATIENCE, || async {
        (world.document(collection, key).await?["name"] == name).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_too_slow_stops_nobody() {
    let (world, daemon) = built("poison", SLOW, SLOW_PAGES, TOO_SLOW).await;
    let (client, _connection) = world.client().await;
    let sql = "UPDATE item SET name = 'after', n = CASE id WHEN 7 THEN 32000 ELSE 1 END";
    client.batch_execute(sql).await.expect("updated");
    // Offsets get past it, and everybody else is right.
    world.quiet().await;
    for key in ["1", "8", "100"] {
        is_named(&world, "slow_page", key, "after").await;
    }
    is_named(&world, "plain_page", "7", "after").await;
    let document = world.document("slow_page", "7").await.expect("the old document");
    assert_eq!(document["name"], "before");
    let dead = world.metric_where("onelog_dead_letters_total", "reason=\"document\"").await;
    assert_eq!(dead, Some(1.0), "a document that was tried several times is one dead letter");
    assert_eq!(metric(&world, "onelog_stage_restarts_total").await, 0.0);
    let said = daemon.log_text();
    assert!(said.contains("statement_timeout; see `onelog explain`"), "no cure in:\n{said}");

    // The next change of the row repairs it.
    let sql = "UPDATE item SET name = 'mended', n = 2 WHERE id = 7";
    client.batch_execute(sql).await.expect("updated");
    is_named(&world, "slow_page", "7", "mended").await;
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapping_of_which_every_key_is_too_slow_stops_nobody() {
    let (world, daemon) = built("failing", SLOW, SLOW_PAGES, TOO_SLOW).await;
    let (client, _connection) = world.client().await;
    let sql = "UPDATE item SET name = 'after', n = 32000";
    client.batch_execute(sql).await.expect("updated");
    world.quiet().await;
    eventually("the collection is suspended", PATIENCE, || async {
        let live = world.metric_where("onelog_collection_live", "slow_page").await?;
        (live == 0.0).then_some(())
    })
    .await;
    for name in ["once", "twice"] {
        let sql = format!("UPDATE item SET name = '{name}'");
        client.batch_execute(&sql).await.expect("updated");
        world.quiet().await;
        for key in ["1", "100"] {
            is_named(&world, "plain_page", key, name).await;
        }
    }
    // Mended, it comes back by itself.
    client.batch_execute("UPDATE item SET name = 'mended', n = 3").await.expect("updated");
    is_named(&world, "slow_page", "7", "mended").await;
    is_named(&world, "slow_page", "100", "mended").await;
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success());
}
