//! What a read's version is worth: of two reads the one that sees more has the higher version,
//! also where no WAL lies between them (rules 2 and 3).
//!
//! A commit that waits for its standby is in the WAL, and flushed, and no snapshot sees it. When
//! the wait is given up it is visible, and the WAL stands where it stood. Of such two reads an
//! LSN says that they are equal, and lets the older one be written over the newer.

use onelog::document::read::Read;
use onelog::snapshot::{Cause, Gate, gate};
use tokio::task::JoinSet;

use super::{column, connect, query, reader, table, until};

#[allow(dead_code, reason = "the other tests' part")]
#[path = "../support/cluster.rs"]
mod cluster;

/// A checkpoint or a vacuum may write WAL between the two reads: then the round shows nothing.
const ROUNDS: i32 = 10;

fn waits_for_its_standby() -> &'static str {
    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep')"
}

#[tokio::test]
async fn what_sees_more_is_newer_though_no_wal_lies_between() {
    let cluster = cluster::Cluster::new("autovacuum = off").await;
    let url = cluster.url("postgres").parse().unwrap();
    let admin = connect(&url, "admin").await.unwrap();
    let schema = "SET synchronous_commit = local; CREATE TABLE item (id int PRIMARY KEY, v int);
                  INSERT INTO item VALUES (1, 0)";
    admin.batch_execute(schema).await.unwrap();
    let standby = "ALTER SYSTEM SET synchronous_standby_names = 'absent'";
    admin.batch_execute(standby).await.unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    until(&admin, "SELECT current_setting('synchronous_standby_names') = 'absent'").await;
    let mut reader = reader(&url).await;
    let queries = [
        query("SELECT v::text FROM item"),
        query("SELECT pg_current_wal_insert_lsn()::text"),
        query("SELECT xmin::text FROM item"),
    ];
    let mut shown = false;
    for round in 1..=ROUNDS {
        let mut writing = JoinSet::new();
        // Its settings are those of now, as the server's main process has them.
        let writer = connect(&url, "writer").await.unwrap();
        writing.spawn(async move {
            writer.batch_execute(&format!("UPDATE item SET v = {round}")).await.unwrap();
        });
        until(&admin, waits_for_its_standby()).await;
        let older = reader.read(&[table("item")], &queries).await.unwrap();
        let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
                      WHERE wait_event = 'SyncRep'";
        admin.batch_execute(cancel).await.unwrap();
        writing.join_next().await.unwrap().unwrap();
        let newer = reader.read(&[table("item")], &queries).await.unwrap();

        let value = |of: &Read| column(of, 0)[0].parse::<i32>().unwrap();
        assert_eq!((value(&older), value(&newer)), (round - 1, round));
        let version = |of: &Read| of.stamp.version(1).unwrap();
        assert!(
            version(&older) < version(&newer),
            "what sees more is not newer: {older:?}, {newer:?}"
        );
        let xid = column(&newer, 2)[0].parse().unwrap();
        let gate = |of: &Read| gate(Cause { timeline: 1, xid }, 1, &of.stamp.snapshot);
        assert_eq!((gate(&older), gate(&newer)), (Gate::NotYet, Gate::Open));
        shown |= column(&older, 1) == column(&newer, 1);
    }
    assert!(shown, "the danger is real: two reads at one LSN");
}
