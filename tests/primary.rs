//! What the daemon asks of the primary: little, bounded, and out of the way of the application.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::traffic;
use support::world::{PATIENCE, Wishes, World, psql_path};

const PASSWORD: &str = "the-role-of-a-test";

/// Runs a migration as an operator would.
fn migrate(world: &World, role: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/0001_onelog_role.sql");
    let output = Command::new(psql_path())
        .args(["-X", "-q", "-v", &format!("role={role}"), "-f"])
        .arg(file)
        .arg(&world.database_url)
        .output()
        .expect("psql runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_runs_whole_under_the_role_of_the_migration() {
    let world = World::new("role", Wishes { companies: 40, ..Wishes::default() }).await;
    // The publication is for the owner of the tables to make.
    world.onelog(&["prepare"]);
    let role = format!("{}_reader", world.name);
    migrate(&world, &role);
    let text = std::fs::read_to_string(&world.config).expect("the config");
    let user = format!("//{role}:{PASSWORD}@");
    let url = world.database_url.replace("//postgres@", &user);
    assert_ne!(url, world.database_url);
    std::fs::write(&world.config, text.replace(&world.database_url, &url)).expect("a config");

    let (client, _connection) = world.client().await;
    let password = format!("ALTER ROLE {role} PASSWORD '{PASSWORD}'");
    client.batch_execute(&password).await.expect("a password");
    let may = "SELECT bool_or(has_table_privilege($1, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')), \
               bool_and(has_table_privilege($1, c.oid, 'SELECT')), \
               (SELECT rolsuper OR rolcreatedb OR rolcreaterole OR rolbypassrls \
                FROM pg_roles WHERE rolname = $1) \
               FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'";
    let row = client.query_one(may, &[&role]).await.expect("privileges");
    assert_eq!((row.get(0), row.get(1), row.get(2)), (false, true, false));

    let daemon = world.start();
    world.built().await;
    traffic::run_all(&world.database_url, 5, 3, 30).await;
    world.quiet().await;
    world.check_documents().await;
    let users = "SELECT count(*), count(DISTINCT usename) FILTER (WHERE usename <> $1) \
                 FROM pg_stat_activity WHERE datname = current_database() \
                 AND (application_name LIKE 'onelog%' OR backend_type = 'walsender')";
    let row = client.query_one(users, &[&role]).await.expect("sessions");
    assert!(row.get::<_, i64>(0) > 1, "the daemon is connected");
    assert_eq!(row.get::<_, i64>(1), 0, "as nobody else");
    assert!(daemon.stop().await.success());
    let drop = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    client.batch_execute(&drop).await.expect("the role is dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn ddl_under_load_waits_for_a_read_at_most() {
    let world = World::new("ddl", Wishes { companies: 60, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let _daemon = world.start();
    world.built().await;
    let (client, _connection) = world.client().await;
    let mut load = tokio::task::JoinSet::new();
    let url = world.database_url.clone();
    load.spawn(async move { traffic::run_all(&url, 9, 2, 150).await });
    // ACCESS EXCLUSIVE, and changes no document. The limit is a hundred reads of ours or more:
    // whoever keeps a transaction open, or takes locks one after the other, is beyond it.
    client.batch_execute("SET lock_timeout = '2s'").await.expect("a limit");
    let mut altered = 0;
    while load.try_join_next().is_none() {
        for column in ["company_profile ALTER COLUMN name", "company_websites ALTER COLUMN title"] {
            let ddl = format!("ALTER TABLE {column} SET DEFAULT 'Default {altered}'");
            client.batch_execute(&ddl).await.expect("DDL gets its lock in time");
        }
        altered += 1;
    }
    assert!(altered > 20, "only {altered} times: there was no load beside it");
    world.quiet().await;
    world.check_documents().await;
}

/// One transaction that alters two tables, while the daemon wants to read both: whichever it has
/// locked first, a deadlock costs its read and not the application's DDL.
#[tokio::test(flavor = "multi_thread")]
async fn ddl_on_two_tables_never_loses_to_a_read() {
    let world = World::new("locked", Wishes { companies: 20, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let _daemon = world.start();
    world.built().await;
    let (ddl, _one) = world.client().await;
    let (client, _two) = world.client().await;
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'onelog%' \
                 AND datname = current_database() AND wait_event_type = 'Lock'";
    let (one, other) = ("company_profile ALTER COLUMN name", "company_websites ALTER COLUMN title");
    for (nth, order) in [[one, other], [other, one]].into_iter().enumerate() {
        let alter = |table: &str| format!("ALTER TABLE {table} SET DEFAULT 'Default {nth}'");
        ddl.batch_execute(&format!("BEGIN; {}", alter(order[0]))).await.expect("the first lock");
        // A table that stands in the same documents, and that is not locked.
        let change = "UPDATE company_board_members SET role = role || '.'";
        client.batch_execute(change).await.expect("the application goes on");
        support::eventually("a read of ours waits", PATIENCE, || async {
            (client.query_one(waits, &[]).await.ok()?.get::<_, i64>(0) > 0).then_some(())
        })
        .await;
        ddl.batch_execute(&alter(order[1])).await.expect("the second lock, without a deadlock");
        ddl.batch_execute("COMMIT").await.expect("DDL ends");
    }
    world.quiet().await;
    world.check_documents().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_finds_a_table_locked_gives_up() {
    let world = World::new("gives_up", Wishes { companies: 20, ..Wishes::default() }).await;
    world.onelog(&["prepare"]);
    let _daemon = world.start();
    world.built().await;
    let (ddl, _one) = world.client().await;
    let (client, _two) = world.client().await;
    ddl.batch_execute("BEGIN; LOCK TABLE company_profile").await.expect("DDL that takes its time");
    let change = "UPDATE company_board_members SET role = role || '.'";
    client.batch_execute(change).await.expect("the application goes on");
    // Nothing that the daemon waits for stays in the queue for the lock.
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'onelog%' \
                 AND datname = current_database() AND wait_event_type = 'Lock'";
    for (what, waiting) in [("a read of ours waits", true), ("and gives up", false)] {
        support::eventually(what, Duration::from_secs(30), || async {
            let count: i64 = client.query_one(waits, &[]).await.ok()?.get(0);
            ((count > 0) == waiting).then_some(())
        })
        .await;
    }
    ddl.batch_execute("COMMIT").await.expect("DDL ends");
    world.quiet().await;
    world.check_documents().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_session_is_named_and_limited_and_reads_have_a_ceiling() {
    let wishes = Wishes { companies: 60, translate: "connections = 2", ..Wishes::default() };
    let world = World::new("sessions", wishes).await;
    world.onelog(&["prepare"]);
    let _daemon = world.start();
    world.built().await;
    let (client, _connection) = world.client().await;
    let mut load = tokio::task::JoinSet::new();
    let url = world.database_url.clone();
    load.spawn(async move { traffic::run_all(&url, 3, 4, 40).await });
    let sessions = "SELECT application_name FROM pg_stat_activity \
                    WHERE datname = current_database() AND pid <> pg_backend_pid() \
                    AND (application_name LIKE 'onelog%' OR backend_type = 'walsender')";
    let mut most = 0;
    while load.try_join_next().is_none() {
        let found = client.query(sessions, &[]).await.expect("sessions");
        let names: Vec<String> = found.iter().map(|it| it.get(0)).collect();
        assert!(names.iter().all(|it| it.starts_with("onelog")), "{names:?}");
        let reading = names.iter().filter(|it| *it == "onelog read").count();
        most = most.max(reading);
        assert!(reading <= 2, "{names:?}");
    }
    assert!(most > 0, "nobody read");
}

#[tokio::test]
async fn a_session_has_limits_before_it_sets_any() {
    let url = support::server("ONELOG_TEST_POSTGRES").parse().expect("a URL");
    let client = onelog::postgres::client::connect(&url, "onelog test").await.expect("a session");
    for limit in ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"] {
        let row = client.query_one(&format!("SHOW {limit}"), &[]).await.expect("a setting");
        assert_ne!(row.get::<_, &str>(0), "0", "{limit}");
    }
}
