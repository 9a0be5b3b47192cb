//! The read of rule 2 against a real Postgres: what it sees, what it refuses, what it costs.

#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

#[path = "read/cost.rs"]
mod cost;
#[path = "read/order.rs"]
mod order;
#[path = "read/sparing.rs"]
mod sparing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use onelog::document::queries::{
    Page, Param, Query, Range, bounds, bounds_query, existing_queries, lookup_query,
    null_key_queries, refresh_queries, slice_queries,
};
use onelog::document::read::{Flusher, Read, ReadError, ReadLimits, Reader};
use onelog::document::{DocumentKey, build};
use onelog::lsn::Lsn;
use onelog::mapping::plan::{CollectionPlan, EntryPlan, Lookup, OutputColumn, TableName};
use onelog::mapping::{CollectionSettings, Entry, Nest, Place};
use onelog::postgres::client::{Client, connect};
use onelog::postgres::url::PostgresUrl;
use tokio::task::JoinSet;

/// Long enough for a loaded machine; a test that gets here fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// One WAL for all databases: tests that look at how far it is flushed run one at a time.
static WAL: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A database of the test's own, with `item (id, name, v)` of three rows.
async fn database() -> PostgresUrl {
    static NTH: AtomicU32 = AtomicU32::new(0);
    let url = std::env::var("ONELOG_TEST_POSTGRES")
        .expect("ONELOG_TEST_POSTGRES is not set: run `make test`");
    let mut url: PostgresUrl = url.parse().unwrap();
    let admin = connect(&url, "test").await.unwrap();
    let nth = NTH.fetch_add(1, Ordering::Relaxed);
    url.database = format!("read_{}_{nth}", std::process::id());
    let name = &url.database;
    admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name}")).await.unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
    let sql = connect(&url, "test").await.unwrap();
    sql.batch_execute(
        "CREATE TABLE item (id int PRIMARY KEY, name text, v int);
         INSERT INTO item VALUES (1, 'a', 10), (2, 'b', 20), (3, 'c', 30)",
    )
    .await
    .unwrap();
    url
}

fn limits() -> ReadLimits {
    let statement_timeout = Duration::from_secs(10);
    ReadLimits { statement_timeout, lock_timeout: statement_timeout, statements_cached: 64 }
}

async fn reader(url: &PostgresUrl) -> Reader {
    Reader::connect(url, limits(), Arc::new(Flusher::new(url))).await.unwrap()
}

fn table(name: &str) -> TableName {
    TableName { namespace: "public".to_owned(), name: name.to_owned() }
}

fn query(sql: &str) -> Query {
    Query { sql: sql.to_owned(), params: Vec::new() }
}

fn count() -> Query {
    query("SELECT count(*)::text FROM item")
}

/// The first column of each row of result `nth`.
fn column(read: &Read, nth: usize) -> Vec<&str> {
    read.rows[nth].iter().map(|row| row[0].as_deref().unwrap_or("NULL")).collect()
}

fn keys(of: &[&str]) -> Vec<DocumentKey> {
    of.iter().map(|it| DocumentKey((*it).to_owned())).collect()
}

/// Asks `sql` until it answers true.
async fn until(client: &Client, sql: &str) {
    let asked = async {
        while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("never true: {sql}"));
}

fn plan(key_type: &str, entries: &[(&str, Nest, bool)]) -> CollectionPlan {
    let place = Place { path: "connectors/a.toml".into(), line: 1, column: 1 };
    let entry = |(sql, nest, ordered): &(&str, Nest, bool)| EntryPlan {
        entry: Entry {
            collection: "c".to_owned(),
            key: "k".to_owned(),
            sql: (*sql).to_owned(),
            nest: nest.clone(),
            optional: false,
            sql_place: place.clone(),
            sql_written: String::new(),
            nest_place: None,
            key_place: place.clone(),
        },
        canonical_sql: (*sql).to_owned(),
        ordered: *ordered,
        columns: vec![OutputColumn {
            name: "k".to_owned(),
            type_oid: 0,
            type_name: String::new(),
            value_type: String::new(),
        }],
        tables: Vec::new(),
        paths: Vec::new(),
        poll_reasons: Vec::new(),
    };
    CollectionPlan {
        name: "c".to_owned(),
        key_type: key_type.to_owned(),
        settings: CollectionSettings::default(),
        entries: entries.iter().map(entry).collect(),
        hash: String::new(),
        fingerprint: Default::default(),
    }
}

#[tokio::test]
async fn a_read_gives_text_of_one_snapshot() {
    let url = database().await;
    let mut reader = reader(&url).await;
    let with_params = Query {
        sql: "SELECT name, (v + $2::bigint)::text, $3::text FROM item \
              WHERE id = ANY($1::text[]::int[]) ORDER BY id"
            .to_owned(),
        params: vec![
            Param::TextArray(vec![Some("1".to_owned()), None, Some("3".to_owned())]),
            Param::Int8(5),
            Param::Text(None),
        ],
    };
    let read = reader.read(&[table("item")], &[count(), with_params]).await.unwrap();
    let text = |it: &str| Some(it.to_owned());
    assert_eq!(column(&read, 0), ["3"]);
    assert_eq!(
        read.rows[1],
        [vec![text("a"), text("15"), None], vec![text("c"), text("35"), None]]
    );
    assert_eq!(read.stamp.timeline, 1);
    assert!(read.stamp.system_id > 0 && read.stamp.snapshot.number() > 0);
    let none = reader.read(&[], &[]).await.unwrap();
    assert!(none.rows.is_empty() && none.stamp.snapshot.number() >= read.stamp.snapshot.number());
}

/// Runs `ddl` in a transaction that holds its lock until a read waits behind it.
async fn read_behind(url: &PostgresUrl, ddl: &str, locked: Vec<TableName>) -> Read {
    let (ddl_session, watcher) =
        (connect(url, "ddl").await.unwrap(), connect(url, "watch").await.unwrap());
    let mut reader = reader(url).await;
    // Prepared before, as in a long life.
    reader.read(&[table("item")], &[count()]).await.unwrap();
    ddl_session.batch_execute(&format!("BEGIN; {ddl}")).await.unwrap();
    let mut reads = JoinSet::new();
    reads.spawn(async move { reader.read(&locked, &[count()]).await.unwrap() });
    until(
        &watcher,
        "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'item'::regclass AND NOT granted)",
    )
    .await;
    ddl_session.batch_execute("COMMIT").await.unwrap();
    reads.join_next().await.unwrap().unwrap()
}

#[tokio::test]
async fn a_table_rewritten_under_the_read_is_not_seen_empty() {
    let url = database().await;
    let ddls = [
        "ALTER TABLE item ALTER COLUMN v TYPE bigint USING v + 1",
        "TRUNCATE item; INSERT INTO item VALUES (4, 'x', 1), (5, 'y', 2), (6, 'z', 3)",
    ];
    for ddl in ddls {
        let read = read_behind(&url, ddl, vec![table("item")]).await;
        assert_eq!(column(&read, 0), ["3"], "{ddl}");
        let read = read_behind(&url, ddl, Vec::new()).await;
        assert_eq!(column(&read, 0), ["0"], "the danger is real: {ddl}");
    }
}

#[tokio::test]
async fn the_stamp_tells_what_is_not_yet_visible() {
    let url = database().await;
    let writer = connect(&url, "writer").await.unwrap();
    let mut reader = reader(&url).await;
    writer.batch_execute("BEGIN; INSERT INTO item VALUES (4, 'd', 40)").await.unwrap();
    let xid = writer.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap();
    let xid: u64 = xid.get::<_, &str>(0).parse().unwrap();
    let before = reader.read(&[table("item")], &[count()]).await.unwrap();
    writer.batch_execute("COMMIT").await.unwrap();
    let after = reader.read(&[table("item")], &[count()]).await.unwrap();
    let seen = |read: &Read| (column(read, 0)[0].to_owned(), read.stamp.snapshot.sees(xid));
    assert_eq!(seen(&before), ("3".to_owned(), false));
    assert_eq!(seen(&after), ("4".to_owned(), true));
    assert!(after.stamp.snapshot.number() > before.stamp.snapshot.number());
}

#[tokio::test]
async fn what_was_read_is_flushed_also_on_an_idle_server() {
    let _alone = WAL.lock().await;
    let url = database().await;
    let writer = connect(&url, "writer").await.unwrap();
    writer.batch_execute("SET synchronous_commit = off").await.unwrap();
    let flusher = Arc::new(Flusher::new(&url));
    let mut reader = Reader::connect(&url, limits(), flusher.clone()).await.unwrap();
    for nth in 0..60 {
        let size = 50 + nth * 131;
        let write = format!(
            "SELECT pg_logical_emit_message(false, 'test', repeat('x', {size}));
             UPDATE item SET v = v + 1 WHERE id = 1"
        );
        writer.batch_execute(&write).await.unwrap();
        let before = writer.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await;
        let inserted: Lsn = before.unwrap().get::<_, &str>(0).parse().unwrap();
        if nth % 6 == 5 {
            writer.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        }
        let (tables, queries) = ([table("item")], [count()]);
        let read = reader.read(&tables, &queries);
        let read = tokio::time::timeout(PATIENCE, read).await.expect("the flush wait hangs");
        read.unwrap();
        let after = writer.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await;
        let flushed: Lsn = after.unwrap().get::<_, &str>(0).parse().unwrap();
        // A place within a page's header counts as the page.
        assert!(flushed.0 + 40 >= inserted.0, "{flushed} < {inserted}");
    }
    println!("nudges for 60 reads after asynchronous commits: {}", flusher.nudges().await);
}

#[tokio::test]
async fn the_header_after_a_segment_switch_is_not_waited_for() {
    let _alone = WAL.lock().await;
    let url = database().await;
    let writer = connect(&url, "writer").await.unwrap();
    let flusher = Arc::new(Flusher::new(&url));
    let mut reader = Reader::connect(&url, limits(), flusher.clone()).await.unwrap();
    for _ in 0..20 {
        writer.batch_execute("UPDATE item SET v = v + 1").await.unwrap();
        writer.batch_execute("SELECT pg_switch_wal()").await.unwrap();
        reader.read(&[table("item")], &[count()]).await.unwrap();
    }
    // Not none: other tests may write to the same server without flushing.
    assert!(flusher.nudges().await < 10);
}

#[tokio::test]
async fn a_failed_read_leaves_the_next_one_fine() {
    let url = database().await;
    let mut reader = reader(&url).await;
    let item = [table("item")];
    let bad_data = query("SELECT (1 / (v - 20))::text FROM item");
    let cases = [
        (vec![count(), bad_data.clone()], "Query1"),
        (vec![query("SELECT nothing FROM item")], "PlanChanged"),
        (vec![query("SELECT '' FROM missing")], "PlanChanged"),
        (vec![query("SELECT id FROM item")], "Query0"),
        (vec![Query { sql: "SELECT $1::text".to_owned(), params: vec![] }], "Inconsistent"),
        (vec![query("SELECT pg_current_xact_id()::text")], "fine"),
        (vec![query("INSERT INTO item VALUES (9, '', 0) RETURNING ''")], "Query0"),
    ];
    for (queries, expected) in cases {
        let result = reader.read(&item, &queries).await;
        let shown = match &result {
            Ok(_) => "fine".to_owned(),
            Err(ReadError::Query { nth, .. }) => format!("Query{nth}"),
            Err(ReadError::PlanChanged(_)) => "PlanChanged".to_owned(),
            Err(ReadError::Inconsistent { .. }) => "Inconsistent".to_owned(),
            Err(other) => format!("{other:?}"),
        };
        assert_eq!(shown, expected, "{queries:?}");
        assert!(reader.is_usable(), "{queries:?}");
        let next = reader.read(&item, &[count()]).await.unwrap();
        assert_eq!(column(&next, 0), ["3"], "{queries:?}");
    }
    let twice = reader.read_with(&item, &[count()], |_| vec![bad_data.clone()]).await;
    assert!(matches!(twice, Err(ReadError::Query { nth: 1, .. })), "{twice:?}");
    let twice = reader.read_with(&item, &[bad_data], |_| unreachable!("the first failed")).await;
    assert!(matches!(twice, Err(ReadError::Query { nth: 0, .. })), "{twice:?}");
    reader.read(&item, &[count()]).await.unwrap();
    let gone = reader.read(&[table("missing")], &[count()]).await;
    assert!(matches!(gone, Err(ReadError::PlanChanged(_))), "{gone:?}");
}

#[tokio::test]
async fn waits_are_bounded() {
    let url = database().await;
    let short = Duration::from_millis(100);
    let limits = ReadLimits { statement_timeout: short * 3, lock_timeout: short, ..limits() };
    let flusher = Arc::new(Flusher::new(&url));
    let mut reader = Reader::connect(&url, limits, flusher).await.unwrap();
    let slow = reader.read(&[], &[query("SELECT pg_sleep(60)::text")]).await;
    assert!(matches!(slow, Err(ReadError::StatementTimeout { nth: 0, .. })), "{slow:?}");
    let locker = connect(&url, "ddl").await.unwrap();
    locker.batch_execute("BEGIN; LOCK TABLE item").await.unwrap();
    let locked = reader.read(&[table("item")], &[count()]).await;
    assert!(matches!(locked, Err(ReadError::LockTimeout(_))), "{locked:?}");
    locker.batch_execute("ROLLBACK").await.unwrap();
    reader.read(&[table("item")], &[count()]).await.unwrap();
}

#[tokio::test]
async fn a_reader_left_in_the_middle_is_not_used_again() {
    let url = database().await;
    let mut reader = reader(&url).await;
    let sleep = query("SELECT pg_sleep(1)::text");
    let slow = reader.read(&[], std::slice::from_ref(&sleep));
    assert!(tokio::time::timeout(Duration::from_millis(50), slow).await.is_err());
    assert!(!reader.is_usable());
    let err = reader.read(&[], &[]).await.unwrap_err();
    assert!(err.is_transient(), "{err:?}");
    let admin = connect(&url, "test").await.unwrap();
    let mut reader = self::reader(&url).await;
    let kill = "SELECT count(pg_terminate_backend(pid))::text FROM pg_stat_activity \
                WHERE application_name = 'onelog read' AND datname = current_database()";
    admin.query_one(kill, &[]).await.unwrap();
    let err = reader.read(&[], &[]).await.unwrap_err();
    assert!(matches!(err, ReadError::Lost { .. }) && !reader.is_usable(), "{err:?}");
}

#[tokio::test]
async fn a_refresh_builds_documents() {
    let url = database().await;
    let sql = connect(&url, "test").await.unwrap();
    sql.batch_execute(
        "CREATE TABLE part (item int, at int, price numeric, note json);
         INSERT INTO part SELECT i, 9 - n, 0.10000000000000000000001 * n, '{ \"a\":\n1 }'
         FROM generate_series(1, 2) i, generate_series(1, 2) n",
    )
    .await
    .unwrap();
    let parts = "SELECT item AS k, at, price, note AS q FROM public.part ORDER BY at";
    let entries = [
        ("SELECT id AS k, name FROM public.item", Nest::Top, false),
        (parts, Nest::Many("parts".to_owned()), true),
    ];
    let mut plan = plan("integer", &entries);
    // A column with the name that the row itself would have in the query.
    plan.entries[1].columns[0].name = "q".to_owned();
    let mut reader = reader(&url).await;
    let keys = keys(&["2", "3", "7"]);
    let tables = [table("item"), table("part")];
    let read = reader.read(&tables, &refresh_queries(&plan, &keys)).await.unwrap();
    let built = build::documents(&plan, &keys, &read.rows).unwrap();
    let bodies: Vec<Option<&str>> = built.documents.iter().map(|it| it.body.as_deref()).collect();
    let first = r#"{"at":7,"price":0.20000000000000000000002,"q":{ "a": 1 }}"#;
    let second = r#"{"at":8,"price":0.10000000000000000000001,"q":{ "a": 1 }}"#;
    let two = format!(r#"{{"k":2,"name":"b","parts":[{first},{second}]}}"#);
    let three = r#"{"k":3,"name":"c","parts":[]}"#;
    assert_eq!(bodies, [Some(two.as_str()), Some(three), None]);
}

/// Walks the collection in slices, two of them planned at once, and says which keys each had.
async fn sweep(url: &PostgresUrl, plan: &CollectionPlan, keys_max: i64) -> Vec<Vec<String>> {
    let mut reader = reader(url).await;
    let mut low: Option<DocumentKey> = None;
    let mut slices = Vec::new();
    loop {
        let rest = Range { low: low.clone(), high: None };
        let cut = bounds_query(plan, &rest, keys_max, 2);
        let cut = reader.read(&[table("item")], &[cut]).await.unwrap();
        let mut highs: Vec<Option<DocumentKey>> =
            bounds(&cut.rows[0]).into_iter().map(Some).collect();
        let last = highs.len() < 2;
        if last {
            highs.push(None);
        }
        for high in highs {
            let range = Range { low: low.clone(), high: high.clone() };
            let read = reader.read(&[table("item")], &slice_queries(plan, &range)).await.unwrap();
            let mut keys: Vec<String> =
                read.rows.iter().flatten().filter_map(|row| row[0].clone()).collect();
            keys.sort();
            keys.dedup();
            slices.push(keys);
            low = high;
        }
        if last {
            return slices;
        }
    }
}

#[tokio::test]
async fn a_sweep_sees_every_key_once() {
    let url = database().await;
    let sql = connect(&url, "test").await.unwrap();
    sql.batch_execute(
        "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE word (t text COLLATE \"C\", n name, l text COLLATE loose, b bpchar, u uuid);
         INSERT INTO word SELECT w, w, w, w, md5(w)::uuid
         FROM unnest('{a,B,b,C,ä,Zz,z,é,_x,x}'::text[]) w;
         INSERT INTO word VALUES (NULL, NULL, NULL, NULL, NULL)",
    )
    .await
    .unwrap();
    let even = "SELECT id * 10 AS k FROM public.item CROSS JOIN generate_series(1, 2)";
    let few = "SELECT id AS k, name FROM public.item WHERE id < 3";
    let numbers = plan("integer", &[(even, Nest::Top, false), (few, Nest::Top, false)]);
    let mut sweeps = JoinSet::new();
    let of = url.clone();
    sweeps.spawn(async move { sweep(&of, &numbers, 2).await });
    let slices = sweeps.join_next().await.unwrap().unwrap();
    assert_eq!(slices, [vec!["1", "2"], vec!["10", "20"], vec!["30"]]);
    for (key_type, columns, keys) in [
        ("text", ["t", "l"], 10),
        ("text", ["l", "t"], 10),
        ("name", ["n", "n"], 10),
        ("character", ["b", "b"], 10),
        ("uuid", ["u", "u"], 10),
    ] {
        let from = columns.map(|it| format!("SELECT {it} AS k FROM public.word"));
        let entries = [(from[0].as_str(), Nest::Top, false), (&from[1], Nest::Top, false)];
        let plan = plan(key_type, &entries);
        for keys_max in [1, 3, 100] {
            let slices = sweep(&url, &plan, keys_max).await;
            let mut all: Vec<String> = slices.concat();
            let count = all.len();
            all.sort();
            all.dedup();
            assert_eq!((count, all.len()), (keys, keys), "{columns:?} {keys_max}: {slices:?}");
            assert!(slices.iter().all(|it| it.len() <= usize::try_from(keys_max).unwrap()));
        }
        let mut reader = reader(&url).await;
        let nulls = reader.read(&[table("word")], &null_key_queries(&plan)).await.unwrap();
        assert_eq!([column(&nulls, 0), column(&nulls, 1)], [["1"], ["1"]]);
    }
}

#[tokio::test]
async fn orphans_and_paths_are_found() {
    let url = database().await;
    let plan = plan("integer", &[("SELECT id AS k FROM public.item", Nest::Top, false)]);
    let mut reader = reader(&url).await;
    let item = [table("item")];
    let asked = existing_queries(&plan, &keys(&["3", "4"]));
    let read = reader.read(&item, &asked).await.unwrap();
    assert_eq!(column(&read, 0), ["3"]);
    let lookup = Lookup {
        columns: vec!["name".to_owned(), "v".to_owned()],
        json: Default::default(),
        strict: false,
        sql: "SELECT DISTINCT i.id::text AS key FROM unnest($1::text[]::text[], \
              $2::text[]::integer[]) c(name, v) JOIN public.item i ON i.name = c.name OR i.v = c.v"
            .to_owned(),
        hops: item.to_vec(),
        steps: Vec::new(),
    };
    let text = |it: &str| Some(it.to_owned());
    let images = [vec![text("b"), None], vec![text("a"), text("30")]];
    let mut after = None;
    for expected in [vec!["1", "2"], vec!["3"]] {
        let page = Page { after: after.take(), keys_max: 2 };
        let read = reader.read(&item, &[lookup_query(&lookup, &images, Some(&page))]).await;
        let read = read.unwrap();
        assert_eq!(column(&read, 0), expected);
        after = column(&read, 0).last().map(|it| (*it).to_owned());
    }
    let whole = reader.read(&item, &[lookup_query(&lookup, &images, None)]).await.unwrap();
    assert_eq!(whole.rows[0].len(), 3);
}

#[tokio::test]
async fn statements_are_prepared_once_and_not_kept_for_ever() {
    let url = database().await;
    let limits = ReadLimits { statements_cached: 3, ..limits() };
    let mut reader = Reader::connect(&url, limits, Arc::new(Flusher::new(&url))).await.unwrap();
    let prepared = query("SELECT count(*)::text FROM pg_prepared_statements");
    let mut counts = Vec::new();
    for nth in 0..20 {
        let other = query(&format!("SELECT {nth}::text"));
        let queries = [prepared.clone(), other, prepared.clone(), count()];
        let read = reader.read(&[table("item")], &queries).await.unwrap();
        assert_eq!((column(&read, 1)[0], column(&read, 3)[0]), (&*nth.to_string(), "3"));
        counts.push(column(&read, 0)[0].parse::<u32>().unwrap());
    }
    // Those of the frame, those kept, and those of a read that are closed only after it.
    assert!(counts.iter().all(|it| *it <= 15), "{counts:?}");
}
