//! What a read costs: one round trip, and how many microseconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use onelog::document::queries::refresh_queries;
use onelog::document::read::{Flusher, Reader};
use onelog::mapping::Nest;
use onelog::postgres::client::connect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{database, keys, limits, plan, reader, table};

/// Passes bytes on and counts how often the client sent some.
async fn counting_proxy(to: String, sent: Arc<AtomicUsize>, tasks: &mut JoinSet<()>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(to).await.unwrap();
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let up = async {
            let mut buffer = vec![0; 1 << 16];
            loop {
                let n = from_client.read(&mut buffer).await.unwrap();
                if n == 0 {
                    return;
                }
                sent.fetch_add(1, Ordering::SeqCst);
                to_server.write_all(&buffer[..n]).await.unwrap();
            }
        };
        let down = tokio::io::copy(&mut from_server, &mut to_client);
        tokio::select! { () = up => {} _ = down => {} }
    });
    port
}

#[tokio::test]
async fn a_read_is_one_round_trip() {
    let url = database().await;
    let sent = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    let server = format!("{}:{}", url.host, url.port);
    let port = counting_proxy(server, sent.clone(), &mut tasks).await;
    let mut proxied = url.clone();
    proxied.host = "127.0.0.1".to_owned();
    proxied.port = port;
    let flusher = Arc::new(Flusher::new(&url));
    let mut reader = Reader::connect(&proxied, limits(), flusher).await.unwrap();
    let plan = plan("integer", &[("SELECT id AS k FROM public.item", Nest::Top, false)]);
    let queries = refresh_queries(&plan, &keys(&["1"]));
    reader.read(&[table("item")], &queries).await.unwrap();
    // Other tests write to the same server, and an unflushed read asks once more; so of many
    // reads some must be of one trip, and none of less.
    let mut fewest = usize::MAX;
    for _ in 0..50 {
        let before = sent.load(Ordering::SeqCst);
        reader.read(&[table("item")], &queries).await.unwrap();
        fewest = fewest.min(sent.load(Ordering::SeqCst) - before);
    }
    assert_eq!(fewest, 1);
}

/// `cargo test --test read -- --ignored --nocapture cost`
#[tokio::test]
#[ignore = "prints how long a read takes"]
async fn cost_of_a_read() {
    let url = database().await;
    let mut reader = reader(&url).await;
    let plan = plan("integer", &[("SELECT id AS k, name FROM public.item", Nest::Top, false)]);
    let queries = refresh_queries(&plan, &keys(&["1"]));
    let mut times = Vec::new();
    for _ in 0..3000 {
        let started = std::time::Instant::now();
        reader.read(&[table("item")], &queries).await.unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    let client = connect(&url, "test").await.unwrap();
    let bare = client.prepare("SELECT id::text FROM item WHERE id = 1").await.unwrap();
    let mut bare_times = Vec::new();
    for _ in 0..3000 {
        let started = std::time::Instant::now();
        client.query(&bare, &[]).await.unwrap();
        bare_times.push(started.elapsed());
    }
    bare_times.sort();
    println!("read: p50 {:?}, p99 {:?}", times[1500], times[2970]);
    println!("bare prepared SELECT: p50 {:?}, p99 {:?}", bare_times[1500], bare_times[2970]);
}
