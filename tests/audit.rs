//! Audits: what was corrupted in the index is found, counted and repaired; what is on its way is
//! not taken for it.

mod support;

use elasticsearch::http::Method;
use onelog::kafka::feedback::Feedback;
use support::daemon::Daemon;
use support::gateway::configure;
use support::log;
use support::world::{PATIENCE, Wishes, World};
use support::{eventually, traffic};

const EVERY_SECOND: &str = "[collection.item]\naudit_interval = \"1s\"\n";

async fn world(name: &str, tables: &str, sql: &str) -> World {
    let wishes = Wishes { instead: Some(tables), ..Wishes::default() };
    let world = World::new(name, wishes).await;
    let mapping = format!(
        "[[denormalization]]\ncollection = \"item\"\nkey = \"id\"\nsql = \"{sql}\"\n{EVERY_SECOND}"
    );
    std::fs::write(world.mappings.join("item.toml"), mapping).expect("a mapping file");
    world.onelog(&["prepare"]);
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_index_is_found_counted_and_repaired() {
    let tables = "CREATE TABLE item (id bigint PRIMARY KEY, name text NOT NULL);
                  INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 50) n";
    let world = world("corrupted", tables, "SELECT id, name FROM item").await;
    configure(&world, "anonymous = true");
    let daemon = world.start();
    world.built().await;
    let alias = world.alias("item");
    let put = |key: &str| format!("/{alias}/_doc/{key}");
    // One changed, one gone, one that no row has.
    let wrong = Some(r#"{"id":7,"name":"by hand"}"#);
    world.elastic(Method::Put, &put("7"), wrong).await.expect("changed");
    world.elastic(Method::Delete, &put("8"), None).await.expect("deleted");
    world.elastic(Method::Put, &put("4000"), wrong).await.expect("added");
    eventually("the drift is counted", PATIENCE, || async {
        (world.metric("onelog_audit_drift_total").await? >= 3.0).then_some(())
    })
    .await;
    world.check_documents().await;
    for key in ["7", "8", "4000"] {
        let line = format!("drift, repaired collection=\"item\" key={key}\n");
        assert!(daemon.log_text().contains(&line), "{key}");
    }
    assert_eq!(world.metric("onelog_audit_drift_total").await, Some(3.0));
    assert_eq!(world.metric("onelog_audit_undetermined_total").await, Some(0.0));
    // Who listens to these documents hears of it, though no change has led to it.
    let told = eventually("the repairs are told", PATIENCE, || async {
        Some(told_of(&world).await).filter(|it| it.len() >= 3)
    })
    .await;
    let expected = [("4000", true), ("7", false), ("8", false)];
    assert_eq!(told, expected.map(|(id, deleted)| (id.to_owned(), deleted)));
    assert!(daemon.stop().await.success());
}

/// The documents that gateways have been told of without a cause, and whether they are gone.
async fn told_of(world: &World) -> Vec<(String, bool)> {
    let config = onelog::config::file::load(&world.config).expect("a config");
    let topic = config.kafka.feedback_topic();
    let records = tokio::task::spawn_blocking(move || log::read(&topic)).await.expect("no panic");
    let said = records.iter().filter_map(|it| {
        Feedback::from_json(it.value.as_deref()?.as_bytes()).expect("a record of ours")
    });
    let mut told: Vec<(String, bool)> = said
        .filter_map(|it| match it {
            Feedback::Document(it) => {
                assert!(it.txids.is_empty() && it.correlation_ids.is_empty(), "{it:?}");
                Some((it.id, it.deleted))
            }
            _ => None,
        })
        .collect();
    told.sort();
    told
}

/// Nobody captures, so that a change can be seen in Postgres and never in the log, however long an
/// audit looks.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_in_the_log_yet_is_no_drift() {
    let tables = "CREATE TABLE item (id bigint PRIMARY KEY, name text NOT NULL);
                  CREATE TABLE clock (id bigint PRIMARY KEY);
                  INSERT INTO item VALUES (1, 'old'); INSERT INTO clock VALUES (1)";
    let world = world("no_drift_yet", tables, "SELECT id, name FROM item").await;
    let clock = "[[denormalization]]\ncollection = \"clock\"\nkey = \"id\"\n\
                 sql = \"SELECT id FROM clock\"\n[collection.clock]\naudit_interval = \"1s\"\n";
    std::fs::write(world.mappings.join("clock.toml"), clock).expect("a mapping file");
    let daemon = world.start();
    world.built().await;
    world.quiet().await;
    assert!(daemon.stop().await.success());

    let log = world.folder.path().join("translator.log");
    let translator = Daemon::start_with(&world.config, &log, &["--only", "translate"]);
    let audits = |of: &str| {
        let line = format!("swept collection=\"{of}\" purpose=\"audit\"");
        translator.log_text().matches(&line).count()
    };
    // The next audit of the items begins after the change.
    eventually("there are audits", PATIENCE, || async { (audits("item") > 0).then_some(()) }).await;
    let (client, _connection) = world.client().await;
    client.batch_execute("UPDATE item SET name = 'new'").await.expect("updated");
    // Other audits tell how long: an audit of the items has met the change meanwhile.
    let before = audits("clock");
    eventually("time goes by", PATIENCE, || async {
        (audits("clock") >= before + 4).then_some(())
    })
    .await;
    assert_eq!(world.metric("onelog_audit_drift_total").await, Some(0.0));
    assert!(translator.stop().await.success());

    let daemon = world.start();
    world.quiet().await;
    world.check_documents().await;
    assert_eq!(world.metric("onelog_audit_drift_total").await, Some(0.0));
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_its_way_is_no_drift() {
    let wishes = Wishes { translate: "", ..Wishes::default() };
    let world = World::new("no_drift", wishes).await;
    let audits: String = world
        .collections()
        .iter()
        .map(|it| format!("[collection.{it}]\naudit_interval = \"200ms\"\n"))
        .collect();
    std::fs::write(world.mappings.join("zz_audits.toml"), audits).expect("written");
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    // Traffic goes on until some audits have ended beside it, however busy the machine is.
    let audits = || daemon.log_text().matches("purpose=\"audit\"").count();
    let mut seed = 11;
    while audits() < 5 {
        assert!(seed < 60, "{} audits", audits());
        traffic::run_all(&world.database_url, seed, 4, 40).await;
        seed += 1;
    }
    world.quiet().await;
    world.check_documents().await;
    assert_eq!(world.metric("onelog_audit_drift_total").await, Some(0.0));
    assert!(daemon.stop().await.success());
}
