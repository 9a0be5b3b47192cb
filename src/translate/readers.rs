//! The connections that read documents: as many reads at once as there are connections, which is
//! the ceiling on what the primary has to bear.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::document::queries::Query;
use crate::document::read::{Flusher, Lookout, Read, ReadError, ReadLimits, Reader};
use crate::mapping::plan::TableName;
use crate::postgres::url::PostgresUrl;

/// How often a read of a sweep that takes its time is looked at: a tenth of the second that an
/// application behind an ALTER TABLE may bear.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A bounded pool. A connection that failed itself, or whose read was cancelled midway, is dropped
/// and never used again.
pub struct Readers {
    url: PostgresUrl,
    limits: ReadLimits,
    permits: Semaphore,
    /// Of these, what sweeps may have.
    sweeping: Semaphore,
    for_sweeps: usize,
    lookout: Lookout,
    idle: Mutex<Vec<Reader>>,
    /// Where all wait for the WAL to be flushed, without a connection that reads.
    flusher: Arc<Flusher>,
}

impl Readers {
    /// Connects nowhere yet.
    pub fn new(url: PostgresUrl, limits: ReadLimits, connections: usize) -> Self {
        assert!(0 < connections, "the config asks for at least one connection");
        let flusher = Arc::new(Flusher::new(&url));
        let permits = Semaphore::new(connections);
        let lookout = Lookout::new(&url);
        let for_sweeps = (connections / 2).max(1);
        let sweeping = Semaphore::new(for_sweeps);
        let idle = Mutex::default();
        Self { url, limits, permits, sweeping, for_sweeps, lookout, idle, flusher }
    }

    /// One read of rule 2.
    pub async fn read(&self, tables: &[TableName], queries: &[Query]) -> Result<Read, ReadError> {
        let permit = self.permit().await;
        let mut reader = self.take().await?;
        let read = reader.read_ahead(tables, queries).await;
        let read = self.give_back(reader, read);
        drop(permit);
        read?.flushed(&self.flusher).await
    }

    /// A read of a sweep. It waits until fewer than half of the connections read for sweeps, so
    /// that refreshes always find the others, and is given up if it turns out to be in somebody's
    /// way.
    pub async fn read_slice(
        &self,
        tables: &[TableName],
        queries: &[Query],
    ) -> Result<Read, ReadError> {
        let _place = self.sweeping.acquire().await.expect("this semaphore is never closed");
        let permit = self.permit().await;
        let mut reader = self.take().await?;
        let pid = reader.pid();
        let read = tokio::select! {
            biased;

            // 1. The read; most end before anybody looks.
            read = reader.read_ahead(tables, queries) => Some(read),
            // 2. Somebody waits for us.
            () = self.in_the_way(pid) => None,
        };
        let Some(read) = read else {
            drop(reader);
            self.lookout.end(pid).await;
            return Err(ReadError::GaveWay);
        };
        let read = self.give_back(reader, read);
        drop(permit);
        read?.flushed(&self.flusher).await
    }

    /// Has the server commit a transaction that does nothing, so that N grows by one.
    pub async fn spend_transaction(&self) {
        self.lookout.spend_transaction().await;
    }

    /// How many reads of sweeps there may be at once.
    pub fn for_sweeps(&self) -> usize {
        self.for_sweeps
    }

    async fn in_the_way(&self, pid: i32) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        // The first tick comes at once, and most reads are over by the second.
        looks.tick().await;
        loop {
            looks.tick().await;
            if self.lookout.is_in_the_way(pid).await {
                return;
            }
        }
    }

    async fn permit(&self) -> tokio::sync::SemaphorePermit<'_> {
        self.permits.acquire().await.expect("the pool's semaphore is never closed")
    }

    async fn take(&self) -> Result<Reader, ReadError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(reader) => Ok(reader),
            None => {
                Reader::connect(&self.url, self.limits.clone(), Arc::clone(&self.flusher)).await
            }
        }
    }

    /// A query that fails, or a lock that is not granted, is no fault of the connection's: to
    /// connect anew for each key that can't be read would cost more than the read.
    fn give_back<T>(&self, reader: Reader, read: Result<T, ReadError>) -> Result<T, ReadError> {
        let fault = matches!(
            read,
            Err(ReadError::Lost { .. } | ReadError::InRecovery | ReadError::Inconsistent { .. })
        );
        if reader.is_usable() && !fault {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
        }
        read
    }
}
