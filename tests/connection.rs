//! Both kinds of connection against a real Postgres of this test's own: it needs its own
//! pg_hba.conf and certificates. Laws: each method of authentication accepts the right password
//! only, `sslmode` means what libpq says, and whatever the server's bytes are, cut or garbled, we
//! neither panic nor hang.

#![allow(clippy::unwrap_used, reason = "helpers of tests, which clippy.toml means to allow")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "connection/proxy.rs"]
mod proxy;

use std::time::Duration;

use bytes::Bytes;
use cluster::{Authority, cluster};
use onelog::lsn::Lsn;
use onelog::postgres::client;
use onelog::postgres::connection::{ConnectionError, ReplicationConnection, ReplicationStream};
use onelog::postgres::url::PostgresUrl;
use onelog::postgres::walsender::{StandbyStatusUpdate, WalMessage, decode_walsender};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Fails rather than hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// Each test reads the publication of its own table: the others write beside it.
fn options(publication: &str) -> [(&str, &str); 2] {
    [("proto_version", "1"), ("publication_names", publication)]
}

async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("this hangs")
}

/// Logs in both ways, and asks something.
async fn both(url: &str) -> [Result<(), ConnectionError>; 2] {
    let url: PostgresUrl = url.parse().unwrap();
    let walsender = async {
        let mut connection = ReplicationConnection::connect(&url).await?;
        let seen = connection.identify_system().await?;
        assert!(seen.system_id > 0 && seen.timeline == 1 && seen.xlogpos > Lsn(0));
        let rows = connection.simple_query("show timezone; select null, 1").await?;
        assert_eq!(rows, [vec![Some("UTC".to_owned())], vec![None, Some("1".to_owned())]]);
        Ok(())
    };
    let plain = async {
        let client = client::connect(&url, "onelog test").await?;
        let sql = "select concat_ws(' ', current_setting('timezone'), interval '1 day 2 hours', \
             0.1::float8 + 0.2::float8, '\\x01'::bytea, current_setting('application_name'))";
        let row = client.query_one(sql, &[]).await.unwrap();
        let expected = "UTC 1 day 02:00:00 0.30000000000000004 \\x01 onelog test";
        assert_eq!(row.get::<_, &str>(0), expected);
        Ok(())
    };
    let (walsender, plain) = bounded(async { tokio::join!(walsender, plain) }).await;
    [walsender, plain]
}

#[tokio::test]
async fn each_method_accepts_the_right_password_only() {
    let at = cluster().await.address("127.0.0.1");
    for user in ["clear", "hashed", "scrammed"] {
        for mode in ["disable", "prefer", "require"] {
            for result in
                both(&format!("postgres://{user}:right%3A@{at}/postgres?sslmode={mode}")).await
            {
                result.unwrap_or_else(|it| panic!("{user} {mode}: {it:?}"));
            }
            for who in [format!("{user}:wrong"), user.to_owned(), format!("{user}:")] {
                for result in both(&format!("postgres://{who}@{at}/postgres?sslmode={mode}")).await
                {
                    let error = result.expect_err("this is not the password");
                    assert!(
                        matches!(error, ConnectionError::Authentication(_)),
                        "{who}: {error:?}"
                    );
                    assert!(!error.is_transient());
                }
            }
        }
    }
}

#[tokio::test]
async fn what_the_server_refuses_says_whether_to_try_again() {
    let at = cluster().await.address("127.0.0.1");
    for result in both(&format!("postgres://postgres@{at}/nowhere")).await {
        let error = result.expect_err("there is no such database");
        assert!(matches!(&error, ConnectionError::Server(it) if it.code == "3D000"), "{error:?}");
        assert!(!error.is_transient());
    }
    for result in both(&format!("postgres://nobody@{at}/postgres")).await {
        let error = result.expect_err("pg_hba.conf does not know this user");
        assert!(matches!(error, ConnectionError::Authentication(_)), "{error:?}");
    }
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for result in both(&format!("postgres://postgres@{free}/postgres")).await {
        let error = result.expect_err("nobody listens there");
        assert!(matches!(error, ConnectionError::Unreachable { .. }), "{error:?}");
        assert!(error.is_transient());
    }
}

#[tokio::test]
async fn a_unix_socket_is_a_host() {
    let cluster = cluster().await;
    let folder = cluster.folder.display();
    let url =
        format!("postgres://postgres@:{}/postgres?host={folder}&sslmode=require", cluster.port);
    for result in both(&url).await {
        result.unwrap();
    }
}

/// What is expected of one `sslmode`.
#[derive(Debug, PartialEq)]
enum Outcome {
    Works,
    Refused,
    NoTls,
}

async fn check_tls(url: &str, expected: &Outcome) {
    for result in both(url).await {
        let got = match &result {
            Ok(()) => Outcome::Works,
            Err(ConnectionError::Tls { .. }) => Outcome::Refused,
            Err(ConnectionError::NoTls) => Outcome::NoTls,
            Err(other) => panic!("{url}: {other:?}"),
        };
        assert_eq!(&got, expected, "{url}");
        assert!(result.is_ok() || result.is_err_and(|it| !it.is_transient()));
    }
}

#[tokio::test]
async fn sslmode_means_what_libpq_says() {
    let cluster = cluster().await;
    let (good, wrong) = (cluster.root(Authority::Good), cluster.root(Authority::Wrong));
    // The certificate is for localhost. Only `hostssl` knows the user "secured".
    let cases = [
        ("localhost", "prefer", None, Outcome::Works),
        ("localhost", "require", None, Outcome::Works),
        ("localhost", "require", Some(&wrong), Outcome::Refused),
        ("127.0.0.1", "require", Some(&good), Outcome::Works),
        ("127.0.0.1", "verify-ca", Some(&good), Outcome::Works),
        ("127.0.0.1", "verify-ca", Some(&wrong), Outcome::Refused),
        ("127.0.0.1", "verify-ca", None, Outcome::Refused),
        ("localhost", "verify-full", Some(&good), Outcome::Works),
        ("127.0.0.1", "verify-full", Some(&good), Outcome::Refused),
        ("localhost", "verify-full", Some(&wrong), Outcome::Refused),
    ];
    for (host, mode, root, expected) in cases {
        let at = cluster.address(host);
        let root = root.map_or(String::new(), |it| format!("&sslrootcert={}", it.display()));
        let url = format!("postgres://secured:right%3A@{at}/postgres?sslmode={mode}{root}");
        check_tls(&url, &expected).await;
    }
    let plain = proxy::without_tls(cluster.port).await;
    for (mode, expected) in
        [("prefer", Outcome::Works), ("require", Outcome::NoTls), ("verify-full", Outcome::NoTls)]
    {
        let root = good.display();
        let url = format!("postgres://postgres@{plain}/postgres?sslmode={mode}&sslrootcert={root}");
        check_tls(&url, &expected).await;
    }
}

#[tokio::test]
async fn roots_that_cannot_be_read_are_an_error() {
    let cluster = cluster().await;
    let at = cluster.address("localhost");
    for path in ["/nowhere.pem".to_owned(), cluster.folder.join("PG_VERSION").display().to_string()]
    {
        let url = format!("postgres://postgres@{at}/postgres?sslmode=verify-ca&sslrootcert={path}");
        for result in both(&url).await {
            let error = result.expect_err("there are no certificates");
            assert!(matches!(error, ConnectionError::Roots(_)), "{error:?}");
        }
    }
}

/// The bodies of XLogData until an error, which is the last thing said.
async fn drain(stream: &mut ReplicationStream) -> (Vec<Bytes>, ConnectionError) {
    let (mut batch, mut bodies) = (Vec::new(), Vec::new());
    loop {
        if let Err(error) = stream.next_batch(&mut batch).await {
            return (bodies, error);
        }
        bodies.extend(batch.drain(..).filter_map(body));
    }
}

fn body(payload: Bytes) -> Option<Bytes> {
    match decode_walsender(payload) {
        Ok(WalMessage::XLogData { body, .. }) => Some(body),
        _ => None,
    }
}

/// Reads until `inserts` Insert messages were seen, while the reading future is dropped again and
/// again.
async fn inserts(stream: &mut ReplicationStream, inserts: usize) -> usize {
    let (mut batch, mut seen, mut bytes) = (Vec::new(), 0, 0);
    while seen < inserts {
        tokio::select! {
            biased;
            result = stream.next_batch(&mut batch) => result.unwrap(),
            () = tokio::task::yield_now() => {}
        }
        for body in batch.drain(..).filter_map(body) {
            bytes += body.len();
            seen += usize::from(body[0] == b'I');
        }
    }
    assert_eq!(seen, inserts);
    bytes
}

#[tokio::test]
async fn a_stream_starts_confirms_stops_and_starts_again() {
    let cluster = cluster().await;
    let url: PostgresUrl = cluster.url("postgres").parse().unwrap();
    let sql = client::connect(&url, "onelog test").await.unwrap();
    let table = "create table flow (id int primary key, v text); \
         create publication flow for table flow";
    sql.batch_execute(table).await.unwrap();
    cluster.slot("flow").await;
    cluster.slot("flow_tls").await;
    // A backlog of many rows, and one row that is larger than any buffer.
    sql.batch_execute(
        "insert into flow select g, repeat('x', 100) from generate_series(1, 20000) g;
         insert into flow values (0, repeat('y', 3000000))",
    )
    .await
    .unwrap();

    let connection = ReplicationConnection::connect(&url).await.unwrap();
    let mut stream = connection.start_replication("flow", Lsn(0), &options("flow")).await.unwrap();
    assert!(bounded(inserts(&mut stream, 20_001)).await > 5_000_000);

    let at = cluster.address("localhost");
    let secured = format!("postgres://secured:right%3A@{at}/postgres?sslmode=require");
    let secured = ReplicationConnection::connect(&secured.parse().unwrap()).await.unwrap();
    let mut secured =
        secured.start_replication("flow_tls", Lsn(0), &options("flow")).await.unwrap();
    assert!(bounded(inserts(&mut secured, 20_001)).await > 5_000_000);
    bounded(secured.stop()).await.unwrap();

    let second = ReplicationConnection::connect(&url).await.unwrap();
    let error = second.start_replication("flow", Lsn(0), &options("flow")).await.unwrap_err();
    assert!(matches!(&error, ConnectionError::Server(it) if it.code == "55006"), "{error:?}");
    assert!(error.is_transient());
    let third = ReplicationConnection::connect(&url).await.unwrap();
    let error = third.start_replication("no\"slot", Lsn(0), &options("flow")).await.unwrap_err();
    assert!(!error.is_transient(), "{error:?}");

    let place = |text: String| text.parse::<Lsn>().unwrap();
    let now = "select pg_current_wal_lsn()::text";
    let flushed = place(sql.query_one(now, &[]).await.unwrap().get(0));
    let update = StandbyStatusUpdate {
        received: flushed,
        flushed,
        applied: flushed,
        now_us: 0,
        reply_requested: true,
    };
    stream.send(&update).await.unwrap();
    bounded(stream.stop()).await.unwrap();
    let confirmed = "select confirmed_flush_lsn::text from pg_replication_slots
                     where slot_name = 'flow' and not active";
    assert_eq!(place(sql.query_one(confirmed, &[]).await.unwrap().get(0)), flushed);

    let mut connection = ReplicationConnection::connect(&url).await.unwrap();
    let error = connection.simple_query("select 1/0").await.unwrap_err();
    assert!(matches!(&error, ConnectionError::Server(it) if it.code == "22012"), "{error:?}");
    bounded(connection.identify_system()).await.unwrap();
    let mut stream = connection.start_replication("flow", Lsn(0), &options("flow")).await.unwrap();
    sql.batch_execute("insert into flow values (-1, 'again')").await.unwrap();
    assert!(bounded(inserts(&mut stream, 1)).await < 1000);

    sql.batch_execute(
        "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'flow'",
    )
    .await
    .unwrap();
    let (_, error) = bounded(drain(&mut stream)).await;
    assert!(error.is_transient(), "{error:?}");
    assert!(bounded(stream.next_batch(&mut Vec::new())).await.is_err());
}

/// A whole session until its end, which is always an error.
async fn whole(url: &PostgresUrl, slot: &str) -> (Vec<Bytes>, ConnectionError) {
    let start = async {
        let mut connection = ReplicationConnection::connect(url).await?;
        connection.identify_system().await?;
        connection.start_replication(slot, Lsn(0), &options("cut")).await
    };
    match bounded(start).await {
        Ok(mut stream) => bounded(drain(&mut stream)).await,
        Err(error) => (Vec::new(), error),
    }
}

/// The server's bytes of one good session with a few messages, and these messages.
async fn recorded() -> (Vec<u8>, Vec<Bytes>) {
    let cluster = cluster().await;
    let url: PostgresUrl = cluster.url("postgres").parse().unwrap();
    let sql = client::connect(&url, "onelog test").await.unwrap();
    let table = "create table cut (id int primary key, v text); \
         create publication cut for table cut";
    sql.batch_execute(table).await.unwrap();
    cluster.slot("cut").await;
    sql.batch_execute("insert into cut values (1, 'one'); update cut set v = null").await.unwrap();

    let recorder = proxy::recorder(cluster.port).await;
    let url: PostgresUrl =
        format!("postgres://hashed:right%3A@{}/postgres?sslmode=disable", recorder.address)
            .parse()
            .unwrap();
    let mut connection = ReplicationConnection::connect(&url).await.unwrap();
    connection.identify_system().await.unwrap();
    let mut stream = connection.start_replication("cut", Lsn(0), &options("cut")).await.unwrap();
    let (mut batch, mut bodies) = (Vec::new(), Vec::<Bytes>::new());
    while bodies.last().is_none_or(|it| it[0] != b'C') {
        bounded(stream.next_batch(&mut batch)).await.unwrap();
        bodies.extend(batch.drain(..).filter_map(body));
    }
    drop(stream);
    (bounded(recorder.bytes()).await, bodies)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_cut_or_garbled_anywhere_neither_panic_nor_hang() {
    let (bytes, bodies) = recorded().await;
    assert!(bodies.len() >= 4, "begin, relation, insert, update, commit: {bodies:?}");
    let replay = proxy::replay().await;
    let url = format!("postgres://hashed:right%3A@{}/postgres?sslmode=disable", replay.address);
    let url: PostgresUrl = url.parse().unwrap();
    let mut seen = 0;
    for length in 0..=bytes.len() {
        replay.serve(bytes[..length].to_vec());
        let (got, error) = whole(&url, "cut").await;
        assert!(error.is_transient(), "cut at {length}: {error:?}");
        assert!(bodies.starts_with(&got), "cut at {length}");
        assert!(got.len() >= seen, "cut at {length}: fewer messages from more bytes");
        seen = got.len();
    }
    assert_eq!(seen, bodies.len());

    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..2000 {
        let mut garbled = bytes.clone();
        let at = random.random_range(0..garbled.len());
        garbled[at] ^= random.random_range(1..=255u8);
        replay.serve(garbled);
        drop(whole(&url, "cut").await);
    }
}

#[tokio::test]
async fn a_tls_session_cut_anywhere_is_lost() {
    let cluster = cluster().await;
    cluster.slot("tls_cut").await;
    for length in (0..6000).step_by(131) {
        let address = proxy::cut_after(cluster.port, length).await;
        let root = cluster.root(Authority::Good);
        let url = format!(
            "postgres://secured:right%3A@{address}/postgres?sslmode=verify-ca&sslrootcert={}",
            root.display()
        );
        let url: PostgresUrl = url.parse().unwrap();
        let session = async {
            let mut connection = ReplicationConnection::connect(&url).await?;
            loop {
                connection.identify_system().await?;
            }
        };
        let result: Result<(), ConnectionError> = bounded(session).await;
        let error = result.expect_err("it was cut");
        assert!(error.is_transient(), "cut at {length}: {error:?}");
    }
}

/// Rows per second of a backlog, nothing decoded: ONELOG_TEST_DRAIN=postgres://… with a slot
/// "drain" over the publication "drain", whose million Inserts stay unconfirmed.
#[tokio::test]
#[ignore = "a measurement"]
async fn drain_of_a_backlog() {
    let url = std::env::var("ONELOG_TEST_DRAIN").expect("set ONELOG_TEST_DRAIN");
    let connection = ReplicationConnection::connect(&url.parse().unwrap()).await.unwrap();
    let options = [("proto_version", "1"), ("publication_names", "drain")];
    let start = std::time::Instant::now();
    let mut stream = connection.start_replication("drain", Lsn(0), &options).await.unwrap();
    let (mut batch, mut rows, mut batches) = (Vec::new(), 0u32, 0u32);
    while rows < 1_000_000 {
        stream.next_batch(&mut batch).await.unwrap();
        batches += 1;
        rows += batch.drain(..).filter_map(body).map(|it| u32::from(it[0] == b'I')).sum::<u32>();
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{rows} rows in {seconds:.2} s, {:.0}/s, {batches} batches",
        f64::from(rows) / seconds
    );
}
