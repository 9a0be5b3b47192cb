//! Mapping files while the daemon runs: added, changed, removed, broken; the old keeps serving
//! until the new is whole, and frontends never see a gap.

mod support;

use std::time::Duration;

use elasticsearch::http::Method;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use support::daemon::Daemon;
use support::world::{PATIENCE, Wishes, World};
use support::{eventually, traffic};

const FILE: &str = "city_page.toml";

fn mapping(columns: &str) -> String {
    format!(
        "[[denormalization]]\ncollection_name = \"city_page\"\nkey_to_denormalize_upon = \"id\"\n\
         sql = \"SELECT id, {columns} FROM company_profile\"\n"
    )
}

async fn index_of(world: &World, collection: &str) -> Option<String> {
    let path = format!("/_alias/{}", world.alias(collection));
    let found = world.elastic(Method::Get, &path, None).await.ok()?;
    let names: Vec<String> = found.as_object()?.keys().cloned().collect();
    assert_eq!(names.len(), 1, "an alias has one index");
    names.into_iter().next()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_file_becomes_documents() {
    let world = World::new("reload", Wishes { companies: 40, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    let file = world.mappings.join(FILE);

    // A new collection.
    std::fs::write(&file, mapping("headquarters_city AS city")).expect("the file is written");
    let first = eventually("the new collection is built", PATIENCE, || async {
        index_of(&world, "city_page").await
    })
    .await;
    world.quiet().await;
    world.check_documents().await;

    // A changed one, while traffic goes on: another index, swapped in whole.
    let url = world.database_url.clone();
    let mut running = tokio::task::JoinSet::new();
    running.spawn(async move { traffic::run_all(&url, 7, 2, 40).await });
    std::fs::write(&file, mapping("headquarters_city AS city, name")).expect("written");
    let second = eventually("the alias points to the new index", PATIENCE, || async {
        index_of(&world, "city_page").await.filter(|it| *it != first)
    })
    .await;
    while let Some(ended) = running.join_next().await {
        ended.expect("traffic does not panic");
    }
    world.quiet().await;
    world.check_documents().await;

    // A broken one: said with its place, and the old keeps serving live changes.
    std::fs::write(&file, "[[denormalization]]\ncollection_name = \"city_page\"\nsql = 5\n")
        .expect("written");
    eventually("the mistake is said", Duration::from_secs(20), || async {
        daemon.log_text().contains(&format!("{FILE}:3:")).then_some(())
    })
    .await;
    let (client, _connection) = world.client().await;
    client.batch_execute("UPDATE company_profile SET name = 'Still live'").await.expect("updated");
    world.quiet().await;
    assert_eq!(index_of(&world, "city_page").await, Some(second.clone()));
    let documents = world.documents("city_page").await;
    assert!(!documents.is_empty());
    assert!(documents.values().all(|it| it["name"] == "Still live"), "{documents:?}");

    // SQL that does not run is a mistake with a place too.
    std::fs::write(&file, mapping("no_such_column")).expect("written");
    eventually("the SQL's mistake is said", Duration::from_secs(20), || async {
        daemon.log_text().contains("no_such_column").then_some(())
    })
    .await;
    assert_eq!(index_of(&world, "city_page").await, Some(second.clone()));

    // Removed: the alias stays, an orphan.
    std::fs::remove_file(&file).expect("removed");
    client.batch_execute("UPDATE company_profile SET name = 'After'").await.expect("updated");
    world.quiet().await;
    world.check_documents().await;
    assert_eq!(index_of(&world, "city_page").await, Some(second));
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_builds_nothing_again() {
    let world = World::new("restart", Wishes { companies: 20, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    let before = index_of(&world, "company_details_page").await;
    assert!(daemon.stop().await.success());
    let (client, _connection) = world.client().await;
    client.batch_execute("UPDATE company_profile SET name = name || '!'").await.expect("updated");
    let daemon = world.start();
    world.quiet().await;
    world.check_documents().await;
    assert_eq!(index_of(&world, "company_details_page").await, before);
    assert_eq!(world.metric("onelog_sweep_documents_total").await, Some(0.0), "nothing was swept");
    assert!(daemon.stop().await.success());
}

/// Deletes the world's consumer group, once its last member counts as gone.
async fn forget_positions(world: &World) {
    let brokers = support::server("ONELOG_TEST_KAFKA");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &brokers).create().expect("a client");
    let group = format!("{}.onelog", world.name);
    eventually("the group is deleted", PATIENCE, || async {
        let deleted = admin.delete_groups(&[&group], &AdminOptions::new()).await.ok()?;
        deleted.into_iter().all(|it| it.is_ok()).then_some(())
    })
    .await;
}

/// What is in the log before the place where reading begins anew is seen by a sweep alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_lost_is_a_sweep() {
    let world = World::new("lost", Wishes { companies: 20, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    assert!(daemon.stop().await.success());
    let log = world.folder.path().join("capture.log");
    let capture = Daemon::start_with(&world.config, &log, &["--only", "capture"]);
    let (client, _connection) = world.client().await;
    client.batch_execute("UPDATE company_profile SET name = 'Unread'").await.expect("updated");
    eventually("the change is in the log", PATIENCE, || async {
        (world.metric("onelog_capture_changes_total").await? >= 20.0).then_some(())
    })
    .await;
    assert!(capture.stop().await.success());
    forget_positions(&world).await;
    let daemon = world.start();
    eventually("what was missed is there", PATIENCE, || async {
        let documents = world.documents("company_details_page").await;
        let right = documents.values().all(|it| it["profile_name"] == "Unread");
        (right && !documents.is_empty()).then_some(())
    })
    .await;
    assert!(daemon.stop().await.success());
}

/// The translator's positions are gone with the topic, and the log has lost rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_is_filled_again_and_documents_go_on() {
    let copy = "[copy]\nmode = \"initial\"";
    let wishes = Wishes { companies: 20, kafka: copy, ..Wishes::default() };
    let world = World::new("lost_topic", wishes).await;
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    let rows = || async {
        let (_, text) = world.http("/v1/status").await?;
        let status: serde_json::Value = serde_json::from_str(&text).ok()?;
        let copies = status["copies"].as_array()?.iter();
        let mut of_it = copies.filter(|it| it["table"] == "public.company_profile");
        of_it.find(|it| it["state"] == "done" && it["rows"] == 20).map(drop)
    };
    eventually("the table is copied", PATIENCE, rows).await;

    support::log::delete(&[format!("{}.public.company_profile", world.name)]).await;
    let (client, _connection) = world.client().await;
    client.batch_execute("UPDATE company_profile SET name = name || '!'").await.expect("updated");
    eventually("it is to be copied again", PATIENCE, || async {
        daemon.log_text().contains("the table is copied again").then_some(())
    })
    .await;
    eventually("it is copied again", PATIENCE, rows).await;
    client.batch_execute("UPDATE company_profile SET name = name || '?'").await.expect("updated");
    // Kafka has forgotten the group's position too, so that nothing says when it has caught up.
    eventually("every document is right", PATIENCE, || async {
        world.wrong_documents().await.is_none().then_some(())
    })
    .await;
    client.batch_execute("UPDATE company_profile SET name = name || '.'").await.expect("updated");
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_column_stops_its_collection_alone() {
    let world = World::new("suspended", Wishes { companies: 20, ..Wishes::default() }).await;
    let file = world.mappings.join(FILE);
    std::fs::write(&file, mapping("headquarters_city AS city, tags")).expect("written");
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    let (client, _connection) = world.client().await;
    // Nothing else reads `tags` by name but the company's page, whose file is mended at once.
    let page = world.mappings.join("company_details_page.toml");
    let text = std::fs::read_to_string(&page).expect("the page's mapping");
    std::fs::write(&page, text.replace(", tags, social", ", social")).expect("written");
    eventually("the page is built without the column", PATIENCE, || async {
        let built = world.documents("company_details_page").await;
        built.values().all(|it| it.get("tags").is_none()).then_some(())
    })
    .await;
    let rename =
        "ALTER TABLE company_profile DROP COLUMN tags; UPDATE company_profile SET name = 'B'";
    client.batch_execute(rename).await.expect("dropped");
    eventually("the collection is suspended", PATIENCE, || async {
        daemon.log_text().contains("the collection is suspended").then_some(())
    })
    .await;

    // The others went on, and the log is read to its end.
    world.quiet().await;
    let others = world.documents("company_details_page").await;
    assert!(others.values().all(|it| it["profile_name"] == "B"), "{others:?}");

    // Mended, it catches up by a sweep.
    std::fs::write(&file, mapping("headquarters_city AS city, name")).expect("written");
    eventually("the mended collection is right", PATIENCE, || async {
        let documents = world.documents("city_page").await;
        documents.values().all(|it| it["name"] == "B").then_some(())
    })
    .await;
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_comes_after_its_mapping_needs_no_second_save() {
    let world = World::new("late", Wishes { companies: 5, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    let text = r#"
[[denormalization]]
collection = "late_page"
key = "id"
sql = "SELECT id, name FROM late_table"
"#;
    std::fs::write(world.mappings.join("late.toml"), text).expect("written");
    let met = async |times: f64| {
        let label = "result=\"mistakes\"";
        eventually("the mistake is met again, with nothing saved", PATIENCE, || async {
            let met = world.metric_where("onelog_mapping_reloads_total", label).await?;
            (met >= times).then_some(())
        })
        .await;
    };
    // Saving may count as two changes.
    met(2.0).await;
    let said = daemon.log_text().matches("late.toml:").count();
    assert!(said > 0, "{}", daemon.log_text());
    met(3.0).await;
    assert_eq!(daemon.log_text().matches("late.toml:").count(), said, "said once is enough");
    let (client, _connection) = world.client().await;
    let sql = "CREATE TABLE late_table (id bigint PRIMARY KEY, name text);
               INSERT INTO late_table VALUES (1, 'at last');
               GRANT SELECT ON late_table TO PUBLIC";
    client.batch_execute(sql).await.expect("a table");
    eventually("its documents are there", PATIENCE, || async {
        world.document("late_page", "1").await.filter(|it| it["name"] == "at last")
    })
    .await;
    assert!(daemon.stop().await.success());
}
