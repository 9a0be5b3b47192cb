//! The slot's fate: a second daemon, a promoted standby, WAL that is lost, privileges that are
//! taken away. Each ends with every document as its SQL says.

mod support;

use std::collections::BTreeMap;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::Value;
use support::clusters::{Plain, bin_of, shared_bin};
use support::daemon::Daemon;
use support::eventually;
use support::traffic::Load;
use support::world::{PATIENCE, Wishes, World, free_address, metric_at};
use tokio_postgres::Client;

/// A world whose collections are built, and its daemon.
async fn built(name: &str, wishes: Wishes<'_>) -> (World, Daemon) {
    let world = World::new(name, wishes).await;
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    ready(&world).await;
    (world, daemon)
}

async fn ready(world: &World) {
    eventually("/readyz answers 200", PATIENCE, || async {
        world.http("/readyz").await.filter(|(status, _)| *status == 200)
    })
    .await;
}

/// Waits until /readyz gives a reason with these words.
async fn red(world: &World, words: &str) {
    let what = format!("/readyz says {words:?}");
    eventually(&what, PATIENCE, || async {
        let (status, body) = world.http("/readyz").await?;
        (status == 503 && body.contains(words)).then_some(())
    })
    .await;
    eventually("the metric says it too", PATIENCE, || async {
        world.metric("onelog_capture_refused").await.filter(|it| *it == 1.0)
    })
    .await;
}

async fn right_and_stopped(world: &World, mut daemon: Daemon) {
    assert!(daemon.is_alive());
    world.quiet().await;
    world.check_documents().await;
    assert!(daemon.stop().await.success(), "SIGTERM drains and exits 0");
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// Every company gets a new name, and one more.
const CHANGE: &str = "UPDATE company_profile SET name = name || '!' WHERE name <> 'in no log'; \
                      INSERT INTO company_profile (id, name) VALUES (gen_random_uuid(), 'one more')";

/// A slot needs WAL from the oldest transaction on that runs and has written something.
const HOLD: &str = "BEGIN; SELECT pg_logical_emit_message(true, 'held', '')";

/// 20 MB of WAL.
const FILLER: &str = "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 20000000))";

/// For when no slot sees it, and nothing changes it afterwards: only a sweep brings its document.
const UNSEEN: &str =
    "INSERT INTO company_profile (id, name) VALUES (gen_random_uuid(), 'in no log')";

/// Waits until sweeps have brought what UNSEEN has made.
async fn swept(world: &World, client: &Client) {
    let sql = "SELECT id::text FROM company_profile WHERE name = 'in no log'";
    let rows = client.query(sql, &[]).await.expect("companies");
    assert!(!rows.is_empty());
    // In each collection that has it: they are swept one after the other.
    for collection in ["company_details_page", "recent_investments_page"] {
        for row in &rows {
            let id: String = row.get(0);
            eventually("a sweep brings what the log lacks", PATIENCE, || async {
                world.document(collection, &id).await
            })
            .await;
        }
    }
    eventually("no sweep is owed any more", PATIENCE, || async {
        world.metric("onelog_sweeps_pending").await.filter(|it| *it == 0.0)
    })
    .await;
}

/// A second daemon, which stands by, and where it answers.
async fn standby(world: &World) -> (Daemon, String) {
    let (http, config) = (free_address(), world.folder.path().join("second.toml"));
    let text = std::fs::read_to_string(&world.config).expect("the config");
    let instance = format!("\"group.instance.id\" = \"{}", world.name);
    let text = text.replace(&world.http, &http);
    let text = text.replace(&instance, &format!("{instance}-second"));
    std::fs::write(&config, text).expect("written");
    let second = Daemon::start(&config, &world.folder.path().join("second.log"));
    eventually("the second stands by", PATIENCE, || async {
        (metric_at(&http, "onelog_capture_standby", "").await? == 1.0).then_some(())
    })
    .await;
    (second, http)
}

/// It was stopped, not killed: what its walsender has sent is still to be read when it goes on, and
/// was published by another long ago.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopped_daemon_reads_late_is_not_published_behind_its_successors() {
    let world = World::new("late", Wishes { companies: 30, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let first = world.start_capture();
    ready(&world).await;
    let (second, http) = standby(&world).await;
    let (client, _connection) = world.client().await;
    let topic = format!("{}.public.company_profile", world.name);
    run(&client, "UPDATE company_profile SET name = 'before'").await;
    world.confirmed_to("pg_current_wal_flush_lsn()").await;

    first.signal("STOP");
    run(&client, "UPDATE company_profile SET name = 'late'").await;
    let sent = "SELECT pid FROM pg_stat_replication JOIN pg_replication_slots ON active_pid = pid \
                WHERE slot_name = $1 AND pg_current_wal_flush_lsn() <= sent_lsn";
    let walsender: i32 = eventually("it lies in the stopped one's buffer", PATIENCE, || async {
        client.query_opt(sent, &[&world.name]).await.ok()?.map(|it| it.get(0))
    })
    .await;
    run(&client, &format!("SELECT pg_terminate_backend({walsender})")).await;
    eventually("the second streams", PATIENCE, || async {
        (metric_at(&http, "onelog_capture_streaming", "").await? == 1.0).then_some(())
    })
    .await;
    run(&client, "UPDATE company_profile SET name = 'newest'").await;
    world.confirmed_to("pg_current_wal_flush_lsn()").await;

    first.signal("CONT");
    // Before that it has waited for the end of all that it had handed to Kafka.
    eventually("the first is back and waits", PATIENCE, || async {
        world.metric("onelog_capture_standby").await.filter(|it| *it == 1.0)
    })
    .await;
    assert!(first.log_text().contains("capture session ended"), "{}", first.log_text());
    for (id, last) in last_values(&topic) {
        assert_eq!(last.expect("a row")["after"]["name"], "newest", "{id}");
    }
    for daemon in [first, second] {
        assert!(daemon.stop().await.success(), "SIGTERM drains and exits 0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_from_a_daemon_that_was_killed() {
    let wishes = Wishes { companies: 30, ..Wishes::default() };
    let (world, first) = built("killed", wishes).await;
    let (second, second_http) = standby(&world).await;
    let gauge = async |name: &str| metric_at(&second_http, name, "").await;
    assert_eq!(gauge("onelog_capture_streaming").await, Some(0.0));
    let load = Load::start(&world.database_url, 11, 2);
    let before = world.metric("onelog_kafka_records_total").await.expect("a metric");
    eventually("the first works", PATIENCE, || async {
        (world.metric("onelog_kafka_records_total").await? > before + 20.0).then_some(())
    })
    .await;
    first.kill();
    eventually("the second streams", PATIENCE, || async {
        (gauge("onelog_capture_streaming").await? == 1.0).then_some(())
    })
    .await;
    assert_eq!(gauge("onelog_capture_standby").await, Some(0.0));
    load.stop().await;
    right_and_stopped(&world, second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_lost_its_wal_is_red_until_the_command_that_it_names() {
    let settings = "max_slot_wal_keep_size = 32MB\nmax_wal_size = 32MB\nmin_wal_size = 32MB";
    let cluster = Plain::start(shared_bin(), settings).await;
    let wishes = Wishes { companies: 20, server: Some(cluster.url()), ..Wishes::default() };
    let (world, daemon) = built("lost_wal", wishes).await;
    let (client, _one) = world.client().await;
    let (holding, _two) = world.client().await;
    run(&holding, HOLD).await;
    let lost = "SELECT wal_status = 'lost' FROM pg_replication_slots WHERE slot_name = $1";
    eventually("the slot has lost WAL", PATIENCE, || async {
        run(&client, FILLER).await;
        run(&client, "SELECT pg_switch_wal(); CHECKPOINT").await;
        let row = client.query_one(lost, &[&world.name]).await.expect("the slot is there");
        row.get::<_, Option<bool>>(0).filter(|it| *it)
    })
    .await;
    red(&world, "has lost WAL that is not yet published").await;
    red(&world, "onelog prepare --adopt-slot").await;
    eventually("the watch says it too", PATIENCE, || async {
        let it = world.metric_where("onelog_slot_wal_status", "status=\"lost\"").await?;
        (it == 1.0).then_some(())
    })
    .await;
    run(&client, UNSEEN).await;
    // A new slot waits for it, too.
    run(&holding, "COMMIT").await;

    let said = world.onelog(&["prepare", "--adopt-slot"]);
    assert!(said.contains("which had lost WAL") && said.contains("will be swept"), "{said}");
    ready(&world).await;
    run(&client, CHANGE).await;
    swept(&world, &client).await;
    right_and_stopped(&world, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_over_its_budget_is_dropped_where_that_is_wanted() {
    let cluster = Plain::start(shared_bin(), "").await;
    let postgres = "wal_budget = \"64MB\"\nwal_budget_action = \"drop-slot\"";
    let server = Some(cluster.url());
    let wishes = Wishes { companies: 5, postgres, server, ..Wishes::default() };
    let (world, daemon) = built("budget", wishes).await;
    let (client, _one) = world.client().await;
    let (holding, _two) = world.client().await;
    run(&holding, HOLD).await;
    let gone = "SELECT count(*) = 0 FROM pg_replication_slots WHERE slot_name = $1";
    let row = client.query_one(gone, &[&world.name]).await.expect("an answer");
    assert!(!row.get::<_, bool>(0), "within its budget it stays");
    for _ in 0..5 {
        run(&client, FILLER).await;
    }
    eventually("the slot is dropped", PATIENCE, || async {
        let row = client.query_one(gone, &[&world.name]).await.expect("an answer");
        row.get::<_, bool>(0).then_some(())
    })
    .await;
    red(&world, "does not exist any more, but changes up to").await;
    assert!(daemon.log_text().contains("kept more WAL than wal_budget and was dropped"));
    run(&client, UNSEEN).await;
    run(&holding, "COMMIT").await;
    world.onelog(&["prepare", "--adopt-slot"]);
    ready(&world).await;
    swept(&world, &client).await;
    right_and_stopped(&world, daemon).await;
}

/// A primary and its standby, which keeps a copy of every failover slot.
async fn pair() -> (Plain, Plain) {
    let primary = Plain::start(bin_of(17), "synchronized_standby_slots = 'standby'").await;
    let (client, _connection) = support::world::connect(&primary.url()).await;
    run(&client, "SELECT pg_create_physical_replication_slot('standby', true)").await;
    let made = tokio::task::spawn_blocking(move || {
        primary.stop();
        let (host, port) = ("127.0.0.1", primary.port);
        let standby = primary.copied(&format!(
            "synchronized_standby_slots = ''\nsync_replication_slots = on\n\
             hot_standby_feedback = on\nprimary_slot_name = 'standby'\n\
             primary_conninfo = 'host={host} port={port} user=postgres dbname=postgres'\n\
             wal_receiver_status_interval = 1s"
        ));
        primary.up();
        standby.up();
        (primary, standby)
    });
    made.await.expect("both run")
}

#[tokio::test(flavor = "multi_thread")]
async fn capture_goes_on_with_a_promoted_standby() {
    let (primary, mut standby) = pair().await;
    let wishes = Wishes { companies: 30, server: Some(primary.url()), ..Wishes::default() };
    let (world, daemon) = built("promoted", wishes).await;
    let load = Load::start(&world.database_url, 21, 2);
    let (on_standby, _connection) = support::world::connect(&standby.url()).await;
    let synced = "SELECT count(*) = 1 FROM pg_replication_slots WHERE slot_name = $1 AND synced \
                  AND NOT temporary AND invalidation_reason IS NULL";
    eventually("the standby has a copy of the slot", PATIENCE, || async {
        let row = on_standby.query_one(synced, &[&world.name]).await.expect("an answer");
        row.get::<_, bool>(0).then_some(())
    })
    .await;
    let said = world.onelog(&["check"]);
    assert!(said.contains("goes on after a promotion"), "{said}");
    let records = world.metric("onelog_kafka_records_total").await.expect("a metric");
    eventually("the daemon works", PATIENCE, || async {
        (world.metric("onelog_kafka_records_total").await? > records + 50.0).then_some(())
    })
    .await;
    let moved = tokio::task::spawn_blocking(move || {
        primary.kill();
        standby.promote();
        standby.stop();
        standby.take_port_of(&primary);
        standby.up();
        (primary, standby)
    });
    let (_primary, _standby) = moved.await.expect("promoted");
    let streaming = async |world: &World| {
        eventually("it streams from the new timeline", PATIENCE, || async {
            daemon.log_text().contains("a standby was promoted").then_some(())
        })
        .await;
        ready(world).await;
    };
    streaming(&world).await;
    load.stop().await;
    let (client, _connection) = world.client().await;
    run(&client, CHANGE).await;
    right_and_stopped(&world, daemon).await;
    log_equals_table(&world, &client).await;
}

/// The last record of each key is the row, and keys without a row have none: what a lost primary
/// had alone is not in the log.
async fn log_equals_table(world: &World, client: &Client) {
    let topic = format!("{}.public.company_profile", world.name);
    let last = last_values(&topic);
    run(client, "SET timezone = 'UTC'").await;
    let rows = client.query("SELECT id::text, to_jsonb(c) FROM company_profile c", &[]).await;
    let rows = rows.expect("the table");
    let mut known = 0;
    for row in &rows {
        let (id, expected): (String, Value) = (row.get(0), row.get(1));
        // A row that was never changed since the slot was made is in no record.
        if let Some(found) = last.get(&id) {
            assert_eq!(found.as_ref().map(|it| &it["after"]), Some(&expected), "{id}");
            known += 1;
        }
    }
    let living = last.values().filter(|it| it.is_some()).count();
    assert_eq!(living, known, "a row that no database has is in the log");
    assert!(known > 20);
}

/// The last value of each key, by its id.
fn last_values(topic: &str) -> BTreeMap<String, Option<Value>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", support::server("ONELOG_TEST_KAFKA"))
        .set("group.id", "slots")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).expect("an offset");
    consumer.assign(&list).expect("assigned");
    let mut last = BTreeMap::new();
    while let Ok(record) = consumer.poll(PATIENCE).expect("a record or the end") {
        let json = |it: &[u8]| serde_json::from_slice::<Value>(it).expect("JSON");
        let key = json(record.key().expect("a key"));
        let id = key["id"].as_str().expect("a uuid").to_owned();
        last.insert(id, record.payload().map(json));
    }
    last
}

/// A role of the test's own, with a password, that the daemon comes as.
async fn as_role(world: &World, client: &Client) -> String {
    let role = format!("{}_role", world.name);
    run(
        client,
        &format!(
            "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'first'; \
             GRANT USAGE ON SCHEMA public TO {role}; GRANT pg_monitor TO {role}; \
             GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
        ),
    )
    .await;
    let text = std::fs::read_to_string(&world.config).expect("the config");
    let url = world.database_url.replace("//postgres@", &format!("//{role}:first@"));
    std::fs::write(&world.config, text.replace(&world.database_url, &url)).expect("a config");
    role
}

#[tokio::test(flavor = "multi_thread")]
async fn privileges_that_are_taken_away_are_waited_for() {
    let world = World::new("revoked", Wishes { companies: 10, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let (client, _connection) = world.client().await;
    let role = as_role(&world, &client).await;
    let daemon = world.start();
    world.built().await;
    ready(&world).await;
    let hang_up =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'");
    for (taken, says, given) in [
        ("PASSWORD 'second'", "authentication failed", "PASSWORD 'first'"),
        ("NOREPLICATION", "SQLSTATE 42501", "REPLICATION"),
    ] {
        run(&client, &format!("ALTER ROLE {role} {taken}")).await;
        run(&client, &hang_up).await;
        red(&world, says).await;
        run(&client, CHANGE).await;
        run(&client, &format!("ALTER ROLE {role} {given}")).await;
        ready(&world).await;
        assert_eq!(world.metric("onelog_capture_refused").await, Some(0.0));
        world.quiet().await;
        world.check_documents().await;
    }
    right_and_stopped(&world, daemon).await;
    run(&client, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

/// The changes that were made meanwhile are in no log: Postgres decodes with the catalog of their
/// time. From 18 on it leaves them out with a warning only.
async fn a_dropped_publication_loses_nothing_in_silence(world: &World, daemon: Daemon) {
    let (client, _connection) = world.client().await;
    let publication = &world.name;
    run(&client, &format!("DROP PUBLICATION {publication}")).await;
    run(&client, UNSEEN).await;
    red(world, "publication").await;
    world.onelog(&["prepare"]);
    red(world, "run SELECT pg_drop_replication_slot(").await;
    let drop = "SELECT pg_drop_replication_slot($1)::text";
    eventually("the slot is dropped", PATIENCE, || async {
        client.query_one(drop, &[&world.name]).await.ok().map(|_| ())
    })
    .await;
    world.onelog(&["prepare", "--adopt-slot"]);
    ready(world).await;
    run(&client, CHANGE).await;
    swept(world, &client).await;
    right_and_stopped(world, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_publication_is_red_until_it_is_back() {
    let wishes = Wishes { companies: 5, ..Wishes::default() };
    let (world, daemon) = built("unpublished", wishes).await;
    a_dropped_publication_loses_nothing_in_silence(&world, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_publication_is_red_also_where_postgres_only_warns() {
    let cluster = Plain::start(bin_of(18), "").await;
    let server = Some(cluster.url());
    let wishes = Wishes { companies: 5, server, ..Wishes::default() };
    let (world, daemon) = built("unpublished18", wishes).await;
    a_dropped_publication_loses_nothing_in_silence(&world, daemon).await;
}
