//! What happens to a table, or to the connection, while it is copied.

use std::collections::BTreeSet;

use super::*;

/// Ends the connections of copies, as an operator or a load balancer would.
const CUT: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                   WHERE application_name = 'onelog copy' AND datname = current_database()";

/// Sessions of capture that had to begin anew.
async fn restarts(world: &World) -> Option<f64> {
    world.metric_where("onelog_stage_restarts_total", "stage=\"capture\"").await
}

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_connection_is_cut_goes_on_where_it_was() {
    let _turn = alone().await;
    let world = world("cut", SMALL, "chunk_rows = 10\nrows_per_second_max = 60").await;
    let daemon = start(&world);
    ready(&world).await;
    let (client, _connection) = client(&world).await;
    said(&copy(&world, &["public.t", "--no-wait"]), 0, "start is noted");
    for rows in [60, 120, 180] {
        rows_copied(&world, rows).await;
        run(&client, &format!("UPDATE t SET v = 'at {rows}' WHERE id % 50 = 0")).await;
        let cut: i64 = client.query_one(CUT, &[]).await.expect("an answer").get(0);
        assert!(0 < cut, "the copy has connections");
    }
    copied(&world).await;
    let log = right(&world, &client, &["id"]).await;
    assert!(log.reads() < 600, "not begun anew each time: {}", log.reads());
    assert!(daemon.log_text().contains("the copy of a table is held up"));
    assert_eq!(restarts(&world).await, Some(0.0), "the stream has not noticed");
    assert!(daemon.stop().await.success());
}

/// Columns that a table had, one definition after the other.
const DEFINITIONS: [&[&str]; 4] =
    [&["id", "v", "gone"], &["id", "v", "gone", "w"], &["id", "v", "w"], &["id", "w", "text"]];

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_altered_during_its_copy_and_neither_waits_for_the_other() {
    let _turn = alone().await;
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text, gone int); \
               INSERT INTO t SELECT g, 'old', g FROM generate_series(1, 300) g";
    let world = world("altered", sql, "chunk_rows = 10\nrows_per_second_max = 30").await;
    let daemon = start(&world);
    ready(&world).await;
    let (client, _connection) = client(&world).await;
    said(&copy(&world, &["public.t", "--no-wait"]), 0, "start is noted");
    rows_copied(&world, 20).await;
    // A chunk is a short transaction: whoever waits for the copy's end would not get this lock.
    let ours = "SET lock_timeout = '4s'; ALTER TABLE t ALTER v SET DEFAULT 'x'; RESET lock_timeout";
    for _ in 0..5 {
        run(&client, ours).await;
    }
    // And it does not queue before the application for long: it gives up, and comes again.
    run(&client, "BEGIN; ALTER TABLE t ADD COLUMN w int DEFAULT 7").await;
    eventually("the copy says that it can't have the lock", PATIENCE, || async {
        let status = status(&world).await?;
        status["waits_for"].as_str().filter(|it| it.contains("lock timeout")).map(|_| ())
    })
    .await;
    run(&client, "COMMIT").await;
    rows_copied(&world, 90).await;
    run(&client, "ALTER TABLE t DROP COLUMN gone").await;
    rows_copied(&world, 160).await;
    // Of another type, in another file.
    run(&client, "ALTER TABLE t ALTER id TYPE bigint").await;
    rows_copied(&world, 220).await;
    run(&client, "ALTER TABLE t RENAME COLUMN v TO text").await;
    copied(&world).await;

    published(&world, &client).await;
    let log = log::read(&world, "t").await;
    let rows = log::table(&client, "t", &["id"]).await;
    assert_eq!(log.rows.keys().collect::<Vec<_>>(), rows.keys().collect::<Vec<_>>());
    let mut seen = BTreeSet::new();
    for (key, row) in &log.rows {
        let row = row.as_object().expect("a row");
        let has = |columns: &&[&str]| {
            row.len() == columns.len() && columns.iter().all(|it| row.contains_key(*it))
        };
        let definition = DEFINITIONS.iter().position(has);
        seen.insert(definition.unwrap_or_else(|| panic!("no definition of {key}: {row:?}")));
        let (now, value) = (&rows[key], row.get("v").or(row.get("text")));
        assert_eq!((value, &row["id"]), (now.get("text"), &now["id"]), "{key}");
        assert!(row.get("w").is_none_or(|it| *it == 7), "{key}: {row:?}");
    }
    assert!(seen.contains(&0) && seen.contains(&3), "before and after: {seen:?}");
    assert_eq!(restarts(&world).await, Some(0.0));
    assert!(daemon.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_published_later_is_copied_and_one_that_is_dropped_is_let_go() {
    let _turn = alone().await;
    let slow = "mode = \"initial\"\nchunk_rows = 10\nrows_per_second_max = 100";
    let world = world("later", SMALL, slow).await;
    let daemon = start(&world);
    copied(&world).await;
    let (client, _connection) = client(&world).await;
    // Rows from before it is published, from while it is copied, and from after.
    run(&client, "CREATE TABLE late (id int PRIMARY KEY, v text)").await;
    run(&client, "INSERT INTO late SELECT g, 'old' FROM generate_series(1, 100) g").await;
    world.onelog(&["prepare"]);
    run(&client, "UPDATE late SET v = 'new' WHERE id % 7 = 0").await;
    eventually("it is copied", PATIENCE, || async {
        status_of(&world, "public.late").await.filter(|it| it["state"] == "done")
    })
    .await;
    run(&client, "DELETE FROM late WHERE id % 9 = 0").await;
    published(&world, &client).await;
    let late = log::read(&world, "late").await;
    log::check(&late, &log::table(&client, "late", &["id"]).await);
    assert!(80 < late.reads(), "{:?}", late.ops);

    said(&copy(&world, &["public.t", "--no-wait"]), 0, "start is noted");
    rows_copied(&world, 20).await;
    run(&client, "DROP TABLE t").await;
    eventually("its copy is let go", PATIENCE, || async {
        let (_, text) = world.http("/v1/status").await?;
        (!text.contains("public.t\"")).then_some(())
    })
    .await;
    run(&client, "INSERT INTO late VALUES (1000, 'after')").await;
    published(&world, &client).await;
    let late = log::read(&world, "late").await;
    log::check(&late, &log::table(&client, "late", &["id"]).await);
    assert_eq!(restarts(&world).await, Some(0.0));
    assert!(daemon.stop().await.success());
}

/// A role's search_path changes how some values are written, and, where an extension is not in
/// it, what `>` means for its types: here that of text, in which the capitals come first.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_reads_as_the_stream_writes_whatever_the_search_path_of_the_role() {
    let _turn = alone().await;
    let sql = "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE SCHEMA app; \
               CREATE FUNCTION app.is_odd(n int) RETURNS bool IMMUTABLE LANGUAGE sql \
               AS 'SELECT n % 2 = 1'; \
               DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = app, public', \
               current_database()); END $$; \
               CREATE TABLE t (id ext.citext PRIMARY KEY, n int, about regclass, v text); \
               CREATE TABLE pairs (n int, id ext.citext, about regclass, v text, \
               PRIMARY KEY (n, id)); \
               INSERT INTO t SELECT CASE g % 2 WHEN 0 THEN 'K' ELSE 'k' END || lpad(g::text, 3, '0'), \
               g, 't'::regclass, 'old' FROM generate_series(1, 40) g; \
               INSERT INTO pairs SELECT n % 3, id, about, v FROM t";
    let world = world("path", sql, "chunk_rows = 7").await;
    let daemon = start(&world);
    ready(&world).await;
    let (client, _connection) = client(&world).await;
    for (table, arguments, rows) in [
        ("t", vec!["public.t"], 40),
        ("pairs", vec!["public.pairs"], 40),
        ("t", vec!["public.t", "--where", "is_odd(n)"], 20),
    ] {
        said(&copy(&world, &arguments), 0, &format!("copied, {rows} rows"));
        published(&world, &client).await;
        let copied = log::read(&world, table).await.rows;
        assert_eq!(copied.len(), 40, "{arguments:?}");
        // What the stream says of the same rows.
        run(&client, &format!("UPDATE {table} SET v = v")).await;
        published(&world, &client).await;
        assert_eq!(copied, log::read(&world, table).await.rows, "{arguments:?}");
    }
    assert!(daemon.stop().await.success());
}
