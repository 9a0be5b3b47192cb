//! The life of indices: verified before they serve, kept for a rollback, rebuilt, dropped; and what
//! is done to them by others while the daemon runs is healed, or said.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use elasticsearch::http::Method;
use support::daemon::{Daemon, onelog};
use support::world::{PATIENCE, Wishes, World};
use support::{eventually, traffic};

const FILE: &str = "city_page.toml";
/// "Within seconds", on a busy machine.
const SECONDS: Duration = Duration::from_secs(30);

fn mapping(columns: &str, more: &str) -> String {
    format!(
        "[[denormalization]]\ncollection_name = \"city_page\"\nkey_to_denormalize_upon = \"id\"\n\
         sql = \"SELECT id, {columns} FROM company_profile\"\n{more}\n"
    )
}

fn write(world: &World, columns: &str, more: &str) {
    std::fs::write(world.mappings.join(FILE), mapping(columns, more)).expect("the file is written");
}

/// Every index that an alias leads to.
async fn behind(world: &World, collection: &str) -> BTreeSet<String> {
    let path = format!("/_alias/{}", world.alias(collection));
    let found = world.elastic(Method::Get, &path, None).await.unwrap_or_default();
    found.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

/// Waits until the alias leads to one index alone, other than `before`.
async fn swapped(world: &World, before: &str) -> String {
    eventually("the alias leads to another index", PATIENCE, || async {
        let indices = behind(world, "city_page").await;
        let mut names = indices.into_iter();
        names.next().filter(|it| it != before && names.next().is_none())
    })
    .await
}

/// Waits until the alias leads to this index alone.
async fn leads_to(world: &World, index: &str, limit: Duration) {
    let what = format!("the alias leads to {index} alone");
    eventually(&what, limit, || async {
        let indices = behind(world, "city_page").await;
        indices.iter().eq([index]).then_some(())
    })
    .await;
}

async fn exists(world: &World, index: &str) -> bool {
    world.elastic(Method::Get, &format!("/{index}/_mapping"), None).await.is_ok()
}

async fn put(world: &World, path: &str, body: &str) {
    world.elastic(Method::Put, path, Some(body)).await.expect("Elasticsearch takes it");
}

async fn rename(world: &World, name: &str) {
    let (client, _connection) = world.client().await;
    let sql = format!("UPDATE company_profile SET name = '{name}'");
    client.batch_execute(&sql).await.expect("updated");
}

/// A world with the collection built, and its index.
async fn begin(name: &str, wishes: Wishes<'_>) -> (World, Daemon, String) {
    let world = World::new(name, Wishes { companies: 20, ..wishes }).await;
    write(&world, "headquarters_city AS city, name", "");
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    let index = swapped(&world, "").await;
    (world, daemon, index)
}

/// Whether every document has this name, and there are some.
async fn all_named(world: &World, name: Option<&str>) -> bool {
    let documents = world.documents("city_page").await;
    let named = |it: &serde_json::Value| it.get("name").and_then(|it| it.as_str()) == name;
    !documents.is_empty() && documents.values().all(named)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_serves_the_definition_before_and_keeps_it_live() {
    let (world, daemon, first) = begin("rollback", Wishes::default()).await;
    write(&world, "headquarters_city AS city", "");
    let second = swapped(&world, &first).await;
    // What the first index did not see.
    rename(&world, "missed").await;
    world.quiet().await;

    let said = world.onelog(&["rollback", "city_page"]);
    assert!(said.contains(&first) && said.contains("onelog rebuild city_page"), "{said}");
    leads_to(&world, &first, PATIENCE).await;
    assert!(all_named(&world, Some("missed")).await, "it was brought up to date before it served");
    rename(&world, "live").await;
    world.quiet().await;
    assert!(all_named(&world, Some("live")).await, "and is kept up to date");

    // A restart changes nothing about it, although the mapping file says otherwise.
    assert!(daemon.stop().await.success());
    rename(&world, "after").await;
    let daemon = world.start();
    world.quiet().await;
    leads_to(&world, &first, SECONDS).await;
    assert!(all_named(&world, Some("after")).await);
    let checked = onelog(&["check", "--config", &world.config.to_string_lossy()]);
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains(&format!("rolled back to {first}")), "{checked}");

    // Rolled back again is undone; at once, and then brought up to date.
    let said = world.onelog(&["rollback", "city_page", "--now"]);
    assert_eq!(behind(&world, "city_page").await, BTreeSet::from([second.clone()]), "{said}");
    world.quiet().await;
    eventually("it is right", PATIENCE, || async { all_named(&world, None).await.then_some(()) })
        .await;
    world.onelog(&["rollback", "city_page", "--to", &first]);
    leads_to(&world, &first, PATIENCE).await;

    // The mapping file counts again once it is changed; what served before is kept.
    write(&world, "headquarters_city AS city, name, name AS title", "");
    let third = swapped(&world, &first).await;
    world.quiet().await;
    world.check_documents().await;
    for index in [&first, &second, &third] {
        assert!(exists(&world, index).await, "{index} is kept for its window");
    }
    let absurd =
        ["rollback", "city_page", "--to", "x", "--config", &world.config.to_string_lossy()];
    let refused = onelog(&absurd);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stdout).contains(&second), "it names what there is");
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_fills_a_new_index_and_old_ones_are_deleted_in_time() {
    let wishes = Wishes { elasticsearch: "rollback_window = \"2s\"", ..Wishes::default() };
    let (world, daemon, first) = begin("rebuild", wishes).await;
    let url = world.database_url.clone();
    let mut running = tokio::task::JoinSet::new();
    running.spawn(async move { traffic::run_all(&url, 3, 2, 30).await });
    let said = world.onelog(&["rebuild", "city_page"]);
    assert!(said.contains(&first), "{said}");
    let second = swapped(&world, &first).await;
    assert_eq!(second, format!("{first}-1"));
    while let Some(ended) = running.join_next().await {
        ended.expect("traffic does not panic");
    }
    world.quiet().await;
    world.check_documents().await;
    eventually("the index before is deleted", SECONDS, || async {
        (!exists(&world, &first).await).then_some(())
    })
    .await;
    leads_to(&world, &second, SECONDS).await;

    // The wish outlives a daemon that is not there to hear it.
    assert!(daemon.stop().await.success());
    world.onelog(&["rebuild", "city_page"]);
    let daemon = world.start();
    let third = swapped(&world, &second).await;
    assert_eq!(third, format!("{first}-2"));
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_collection_must_be_an_orphan() {
    let (world, daemon, index) = begin("drop", Wishes::default()).await;
    let config = world.config.to_string_lossy().into_owned();
    let refused = onelog(&["drop", "city_page", "--config", &config]);
    let said = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains(FILE), "{said}");
    assert!(exists(&world, &index).await);

    std::fs::remove_file(world.mappings.join(FILE)).expect("removed");
    eventually("the orphan is seen", SECONDS, || async {
        (world.metric("onelog_collections_orphaned").await? > 0.0).then_some(())
    })
    .await;
    assert!(exists(&world, &index).await, "a lost file takes nothing down");
    let checked = onelog(&["check", "--config", &config]);
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("onelog drop city_page"), "{checked}");
    let said = world.onelog(&["drop", "city_page", "--dry-run"]);
    assert!(said.contains(&index) && exists(&world, &index).await, "{said}");
    world.onelog(&["drop", "city_page"]);
    assert!(!exists(&world, &index).await);
    assert_eq!(behind(&world, "city_page").await, BTreeSet::new());
    eventually("there is no orphan", SECONDS, || async {
        (world.metric("onelog_collections_orphaned").await? < 1.0).then_some(())
    })
    .await;
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_aliases_and_indices_come_back() {
    let (world, daemon, first) = begin("heal", Wishes::default()).await;
    write(&world, "headquarters_city AS city, name, name AS title", "");
    let index = swapped(&world, &first).await;
    let alias = world.alias("city_page");
    let delete = |path: String| {
        let world = &world;
        async move { world.elastic(Method::Delete, &path, None).await.expect("deleted") }
    };

    delete(format!("/{index}/_alias/{alias}")).await;
    leads_to(&world, &index, SECONDS).await;

    // Several indices under the alias: frontends would find every document twice.
    put(&world, &format!("/{first}/_alias/{alias}"), "{}").await;
    leads_to(&world, &index, SECONDS).await;

    delete(format!("/{index}/_alias/{index}-WRITE")).await;
    rename(&world, "through").await;
    eventually("no change is lost by it", SECONDS, || async {
        all_named(&world, Some("through")).await.then_some(())
    })
    .await;

    delete(format!("/{index}")).await;
    leads_to(&world, &index, PATIENCE).await;
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_index_is_waited_for_and_said() {
    let (world, daemon, index) = begin("blocked", Wishes::default()).await;
    let settings = format!("/{index}/_settings");
    let blocks = [
        ("index.blocks.read_only_allow_delete", "disk"),
        ("index.blocks.write", "somebody has set the block"),
    ];
    for (nth, (block, cure)) in blocks.into_iter().enumerate() {
        put(&world, &settings, &format!("{{\"{block}\": true}}")).await;
        let name = format!("Behind {nth}");
        rename(&world, &name).await;
        eventually("it is said, with its cure", SECONDS, || async {
            let (status, text) = world.http("/readyz").await?;
            (status == 503 && text.contains(&index) && text.contains(cure)).then_some(())
        })
        .await;
        put(&world, &settings, &format!("{{\"{block}\": null}}")).await;
        eventually("it goes on by itself", SECONDS, || async {
            let (status, _) = world.http("/readyz").await?;
            (status == 200 && all_named(&world, Some(&name)).await).then_some(())
        })
        .await;
    }
    world.elastic(Method::Post, &format!("/{index}/_close"), None).await.expect("closed");
    rename(&world, "Closed").await;
    eventually("it is said", SECONDS, || async {
        let (status, text) = world.http("/readyz").await?;
        (status == 503 && text.contains("_open")).then_some(())
    })
    .await;
    world.elastic(Method::Post, &format!("/{index}/_open"), None).await.expect("opened");
    world.quiet().await;
    world.check_documents().await;
    assert_eq!(world.metric("onelog_dead_letters_total").await, Some(0.0), "no document's fault");
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_not_what_its_sql_says_does_not_serve() {
    let (world, daemon, first) = begin("verify", Wishes::default()).await;

    // Elasticsearch refuses every document of the new definition.
    write(
        &world,
        "headquarters_city AS city, name",
        "[collection.city_page]\nfields = { name = \"integer\" }",
    );
    let said = |what: String| {
        let daemon = &daemon;
        eventually("it is said", PATIENCE, move || {
            let said = daemon.log_text().contains(&what);
            async move { said.then_some(()) }
        })
    };
    said("of 20 documents were refused".to_owned()).await;
    leads_to(&world, &first, Duration::ZERO).await;

    // Somebody's template changes every document on its way.
    let template = format!("/_index_template/{}", world.name);
    let body = format!(
        "{{\"index_patterns\":[\"{}-*\"],\"template\":{{\"mappings\":{{\"_source\":\
         {{\"excludes\":[\"city\"]}}}}}}}}",
        world.alias("city_page")
    );
    put(&world, &template, &body).await;
    write(&world, "headquarters_city AS city, name AS title", "");
    said("sampled documents differ".to_owned()).await;
    leads_to(&world, &first, Duration::ZERO).await;
    let failures = world.metric("onelog_verification_failures_total").await;
    assert!(failures.is_some_and(|it| it >= 2.0), "{failures:?}");

    world.elastic(Method::Delete, &template, None).await.expect("deleted");
    world.onelog(&["rebuild", "city_page"]);
    swapped(&world, &first).await;
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success());
}

const THINGS: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'happy');
    CREATE DOMAIN code AS uuid;
    CREATE DOMAIN price AS numeric CHECK (VALUE >= 0);
    CREATE DOMAIN prices AS price[];
    CREATE TYPE pair AS (a int, b text);
    CREATE TABLE thing (id bigint PRIMARY KEY, mood mood, moods mood[], code code, price price,
        prices prices, pair pair, span int4range, spans int4multirange, title text);
    INSERT INTO thing VALUES (1, 'happy', '{sad,happy}', gen_random_uuid(), 1.5, '{1,2.25}',
        '(1,x)', '[1,5)', '{[1,2),[7,9)}', 'Loud');";

const THING_PAGE: &str = "
[[denormalization]]
collection_name = \"thing\"
key_to_denormalize_upon = \"id\"
sql = \"SELECT * FROM thing\"

[collection.thing]
fields = { title = { type = \"text\", analyzer = \"short\" }, \"pair.b\" = \"keyword\" }

[collection.thing.settings]
number_of_shards = 2
refresh_interval = \"5s\"
analysis.analyzer.short = { type = \"standard\", max_token_length = 2 }
";

#[tokio::test(flavor = "multi_thread")]
async fn types_and_settings_reach_the_index() {
    let wishes = Wishes { instead: Some(THINGS), ..Wishes::default() };
    let world = World::new("types", wishes).await;
    let file = world.mappings.join("thing.toml");
    std::fs::write(&file, THING_PAGE.replace("title = {", "titel = {")).expect("written");
    let checked = onelog(&["check", "--config", &world.config.to_string_lossy()]);
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("thing.toml:8:12: fields: no entry yields titel"), "{checked}");
    assert!(checked.contains("did you mean title?"), "{checked}");
    std::fs::write(&file, THING_PAGE).expect("written");
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    world.quiet().await;
    world.check_documents().await;
    let path = format!("/{}", world.alias("thing"));
    let found = world.elastic(Method::Get, &path, None).await.expect("the index");
    let index = found.as_object().and_then(|it| it.values().next()).expect("one index");
    let fields = &index["mappings"]["properties"];
    for (field, kind) in [
        ("mood", "keyword"),
        ("moods", "keyword"),
        ("code", "keyword"),
        ("price", "double"),
        ("prices", "double"),
        ("span", "keyword"),
        ("spans", "keyword"),
        ("title", "text"),
    ] {
        assert_eq!(fields[field]["type"], kind, "{field} of {fields}");
    }
    assert_eq!(fields["pair"]["properties"]["b"]["type"], "keyword", "{fields}");
    assert_eq!(fields["pair"]["properties"]["a"]["type"], "long", "{fields}");
    let settings = &index["settings"]["index"];
    assert_eq!(settings["number_of_shards"], "2");
    assert_eq!(settings["refresh_interval"], "5s");
    assert_eq!(settings["gc_deletes"], "1h", "ours, whatever else is set");
    let query = r#"{"query":{"term":{"title":"lo"}}}"#;
    let search = format!("{path}/_search");
    let found = world.elastic(Method::Post, &search, Some(query)).await.expect("a search");
    assert_eq!(found["hits"]["total"]["value"], 1, "{found}");
    assert!(daemon.stop().await.success());
}
