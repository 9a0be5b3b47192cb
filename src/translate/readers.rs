//! The connections that read documents: as many reads at once as there are connections, which is
//! the ceiling on what the primary has to bear.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

use crate::document::queries::{Query, Rows};
use crate::document::read::{Flusher, Read, ReadError, ReadLimits, Reader};
use crate::mapping::plan::TableName;
use crate::postgres::url::PostgresUrl;

/// A bounded pool. A connection that failed itself, or whose read was cancelled midway, is dropped
/// and never used again.
pub struct Readers {
    url: PostgresUrl,
    limits: ReadLimits,
    permits: Semaphore,
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
        Self { url, limits, permits, idle: Mutex::default(), flusher }
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

    /// One read whose second half depends on its first, in the same snapshot.
    pub async fn read_with(
        &self,
        tables: &[TableName],
        first: &[Query],
        then: impl FnOnce(&[Rows]) -> Vec<Query> + Send,
    ) -> Result<Read, ReadError> {
        let permit = self.permit().await;
        let mut reader = self.take().await?;
        let read = reader.read_with_ahead(tables, first, then).await;
        let read = self.give_back(reader, read);
        drop(permit);
        read?.flushed(&self.flusher).await
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
