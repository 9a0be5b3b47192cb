//! The oracle: after any traffic, once quiet, every document of every sample collection equals
//! what its SQL yields from scratch, and there are no others. Audit and polling are off, so that
//! no sweep hides a missed change.

mod support;

use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use support::traffic;
use support::world::{PATIENCE, Wishes, World};

#[tokio::test(flavor = "multi_thread")]
async fn documents_follow_any_traffic() {
    let world = World::new("documents", Wishes::default()).await;
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    world.check_documents().await;
    for seed in 1..=3 {
        traffic::run_all(&world.database_url, seed, 4, 40).await;
        world.quiet().await;
        world.check_documents().await;
    }
    assert!(daemon.stop().await.success(), "SIGTERM drains and exits 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_survive_ten_kills() {
    let world = World::new("kills", Wishes { companies: 60, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let mut daemon = world.start();
    world.built().await;
    let mut random = StdRng::seed_from_u64(42);
    let url = world.database_url.clone();
    let mut running = tokio::task::JoinSet::new();
    for kill in 0..10 {
        running.spawn({
            let url = url.clone();
            async move { traffic::run_all(&url, 1_000 + kill, 2, 15).await }
        });
        // A random moment of the work, by how much of it is done: at least one record since the
        // start, so that the session is past its fence.
        let wanted = f64::from(random.random_range(1u32..60));
        support::eventually("the daemon works", PATIENCE, || async {
            let records = world.metric("onelog_translate_records_total").await?;
            let idle = world.metric("onelog_capture_streaming").await? > 0.0 && running.is_empty();
            (records >= wanted || idle).then_some(())
        })
        .await;
        daemon.kill();
        daemon = world.start();
        while let Some(ended) = running.try_join_next() {
            ended.expect("traffic does not panic");
        }
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("traffic does not panic");
    }
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_row_leaves_one_document_and_enters_another() {
    let world = World::new("moved", Wishes { companies: 20, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let _daemon = world.start();
    world.built().await;
    let (client, _connection) = world.client().await;
    let row = client
        .query_one(
            "SELECT w.id::text, w.profile_id::text, (SELECT c.id::text FROM company_profile c \
             WHERE c.id <> w.profile_id AND c.name <> '' ORDER BY c.id LIMIT 1) \
             FROM company_websites w JOIN company_profile o ON o.id = w.profile_id \
             WHERE o.name <> '' ORDER BY w.id LIMIT 1",
            &[],
        )
        .await
        .expect("a website");
    let (website, from, to): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    let sql = format!("UPDATE company_websites SET profile_id = '{to}' WHERE id = '{website}'");
    client.batch_execute(&sql).await.expect("the website moves");
    let has = |key: String| {
        let (world, website) = (&world, website.clone());
        async move {
            let document = world.document("company_details_page", &key).await?;
            let list = document["websites"].as_array()?.clone();
            Some(list.iter().any(|it| it["id"] == website.as_str()))
        }
    };
    support::eventually("it left its old document", Duration::from_secs(10), || async {
        has(from.clone()).await.filter(|it| !it)
    })
    .await;
    support::eventually("it is in its new document", Duration::from_secs(10), || async {
        has(to.clone()).await.filter(|it| *it)
    })
    .await;
    world.quiet().await;
    world.check_documents().await;
}

/// SQL tells apart what is the same JSON, and so the same in both images of an update.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_images_do_not_show_is_followed() {
    let table = "CREATE TABLE item (id int PRIMARY KEY, j jsonb, t json, f float8, a int[]);
                 ALTER TABLE item REPLICA IDENTITY FULL;
                 INSERT INTO item VALUES (1, 'null', '{}', 0, '{1,2}')";
    let world = World::new("unseen", Wishes { instead: Some(table), ..Wishes::default() }).await;
    let mapping = "[[denormalization]]\ncollection = \"item\"\nkey = \"id\"\nsql = \"SELECT id, \
                   j IS NULL AS j, t::text AS t, f::text AS f, a[1] AS a FROM item\"";
    std::fs::write(world.mappings.join("item.toml"), mapping).expect("a mapping file");
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    let (client, _connection) = world.client().await;
    for change in ["j = NULL", "j = 'null'", "t = '{} '", "f = '-0'", "a = '[0:1]={1,2}'"] {
        let sql = format!("UPDATE item SET {change}");
        client.batch_execute(&sql).await.expect("the row changes");
        world.quiet().await;
        world.check_documents().await;
    }
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sample_entry_has_a_path() {
    let world = World::new("paths_of_sample", Wishes { companies: 5, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    for file in std::fs::read_dir(&world.mappings).expect("mappings") {
        let file = file.expect("an entry").path();
        let said = world.onelog(&["explain", &file.to_string_lossy()]);
        assert!(!said.contains("swept on a timer"), "{}:\n{said}", file.display());
        assert!(said.contains("every change reaches its documents at once"), "{said}");
    }
    let checked = world.onelog(&["check"]);
    assert!(!checked.contains("WRONG"), "{checked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn preview_is_what_is_written() {
    let world = World::new("preview", Wishes { companies: 5, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let _daemon = world.start();
    world.built().await;
    let documents = world.documents("company_details_page").await;
    let (key, document) = documents.iter().next().expect("a document");
    let file = world.mappings.join("company_details_page.toml");
    let said = world.onelog(&["preview", &file.to_string_lossy(), "--key", key]);
    let shown: serde_json::Value = serde_json::from_str(&said).expect("a document alone");
    assert_eq!(&shown, document);
    assert!(Path::new(&file).exists());
}
