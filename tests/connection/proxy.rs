//! Servers between the client and Postgres: one that has no TLS, one that records, one that cuts,
//! and one that says again what was recorded.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Runs until the test's runtime ends.
fn forever(work: impl Future<Output = ()> + Send + 'static) {
    let mut tasks = JoinSet::new();
    tasks.spawn(work);
    tasks.detach_all();
}

/// Forwards to Postgres, but answers N when asked for TLS.
pub async fn without_tls(port: u16) -> SocketAddr {
    let (listener, address) = listener().await;
    forever(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            forever(async move {
                let mut first = [0; 8];
                client.read_exact(&mut first).await.unwrap();
                assert_eq!(first, SSL_REQUEST);
                client.write_all(b"N").await.unwrap();
                let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                drop(tokio::io::copy_bidirectional(&mut client, &mut server).await);
            });
        }
    });
    address
}

pub struct Recorder {
    pub address: SocketAddr,
    done: oneshot::Receiver<Vec<u8>>,
}

impl Recorder {
    /// What the server said, once the session is over.
    pub async fn bytes(self) -> Vec<u8> {
        self.done.await.unwrap()
    }
}

/// Forwards one session and records the server's bytes.
pub async fn recorder(port: u16) -> Recorder {
    let (listener, address) = listener().await;
    let (sender, done) = oneshot::channel();
    forever(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (recorded, _) = forward(client, server, usize::MAX).await;
        drop(sender.send(recorded));
    });
    Recorder { address, done }
}

/// Forwards one session until the server has said `length` bytes.
pub async fn cut_after(port: u16, length: usize) -> SocketAddr {
    let (listener, address) = listener().await;
    forever(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (_, (mut client, _server)) = forward(client, server, length).await;
        drop(client.shutdown().await);
        // Unread bytes would turn the end into a reset, which may overtake what was sent.
        drop(tokio::io::copy(&mut client, &mut tokio::io::sink()).await);
    });
    address
}

/// Forwards every session, the first ones until the server has said so many bytes.
#[allow(dead_code, reason = "made for tests/source.rs")]
pub async fn cut_in_turn(port: u16, lengths: Vec<usize>) -> (SocketAddr, Arc<Mutex<Vec<usize>>>) {
    let (listener, address) = listener().await;
    let left = Arc::new(Mutex::new(lengths));
    let shared = Arc::clone(&left);
    forever(async move {
        while let Ok((client, _)) = listener.accept().await {
            let length = shared.lock().unwrap().pop().unwrap_or(usize::MAX);
            forever(async move {
                let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                drop(forward(client, server, length).await);
            });
        }
    });
    (address, left)
}

async fn forward(
    mut client: TcpStream,
    mut server: TcpStream,
    length: usize,
) -> (Vec<u8>, (TcpStream, TcpStream)) {
    let mut recorded = Vec::new();
    let (mut from_client, mut from_server) = ([0; 4096], [0; 4096]);
    while recorded.len() < length {
        let (read, to) = tokio::select! {
            read = client.read(&mut from_client) => (read, &mut server),
            read = server.read(&mut from_server) => {
                let count = *read.as_ref().unwrap_or(&0);
                let count = count.min(length - recorded.len());
                recorded.extend_from_slice(&from_server[..count]);
                if count == 0 || client.write_all(&from_server[..count]).await.is_err() {
                    break;
                }
                continue;
            }
        };
        match read {
            Ok(count) if count > 0 && to.write_all(&from_client[..count]).await.is_ok() => {}
            _ => break,
        }
    }
    (recorded, (client, server))
}

pub struct Replay {
    pub address: SocketAddr,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Replay {
    /// What the next session gets.
    pub fn serve(&self, bytes: Vec<u8>) {
        *self.bytes.lock().unwrap() = bytes;
    }
}

/// Says the same to everyone, and closes.
pub async fn replay() -> Replay {
    let (listener, address) = listener().await;
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&bytes);
    forever(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let bytes: Vec<u8> = shared.lock().unwrap().clone();
            drop(client.write_all(&bytes).await);
            drop(client.shutdown().await);
            forever(async move {
                drop(tokio::io::copy(&mut client, &mut tokio::io::sink()).await);
            });
        }
    });
    Replay { address, bytes }
}
