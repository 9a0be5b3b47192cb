//! What a read spares the server and the other reads.

use std::sync::Arc;

use onelog::document::DocumentKey;
use onelog::document::queries::refresh_queries;
use onelog::document::read::{Flusher, Reader};
use onelog::mapping::Nest;
use onelog::postgres::client::connect;
use onelog::postgres::url::PostgresUrl;

use super::{WAL, column, count, database, limits, plan, query, reader, table};

/// How often Postgres planned the refresh of `count` keys anew, over ten reads.
async fn plans_made_for(url: &PostgresUrl, count: usize) -> u64 {
    let mut reader = reader(url).await;
    let plan = plan("integer", &[("SELECT id AS k, name FROM public.item", Nest::Top, false)]);
    let keys: Vec<DocumentKey> = (0..count).map(|nth| DocumentKey(nth.to_string())).collect();
    for _ in 0..10 {
        reader.read(&[table("item")], &refresh_queries(&plan, &keys)).await.unwrap();
    }
    let made = "SELECT sum(custom_plans)::text FROM pg_prepared_statements \
                WHERE statement LIKE '%row_to_json%' AND statement NOT LIKE '%custom_plans%'";
    let read = reader.read(&[], &[query(made)]).await.unwrap();
    column(&read, 0)[0].parse().unwrap()
}

#[tokio::test]
async fn a_refresh_of_few_keys_is_not_planned_anew() {
    let url = database().await;
    assert_eq!(plans_made_for(&url, 1).await, 0);
    assert_eq!(plans_made_for(&url, 40).await, 0);
    // An array this long deserves a plan of its own, as far as Postgres thinks so.
    assert!(plans_made_for(&url, 400).await > 0);
}

#[tokio::test]
async fn who_waits_for_the_flush_holds_no_reading_connection() {
    let _alone = WAL.lock().await;
    let url = database().await;
    let writer = connect(&url, "writer").await.unwrap();
    writer.batch_execute("SET synchronous_commit = off").await.unwrap();
    let flusher = Arc::new(Flusher::new(&url));
    let mut reader = Reader::connect(&url, limits(), flusher.clone()).await.unwrap();
    // Postgres' own WAL writer may flush in between, but not each time.
    for _ in 0..100 {
        writer.batch_execute("UPDATE item SET v = v + 1 WHERE id = 1").await.unwrap();
        let waiting = reader.read_ahead(&[table("item")], &[count()]).await.unwrap();
        if waiting.is_flushed() {
            continue;
        }
        reader.read(&[table("item")], &[count()]).await.unwrap();
        waiting.flushed(&flusher).await.unwrap();
        return;
    }
    panic!("the WAL of an asynchronous commit was always flushed at once");
}
