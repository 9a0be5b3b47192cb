//! Why a session of capture ended, and who can do something about it.

use super::declared::DeclaredError;
use crate::config::PostgresConfig;
use crate::kafka::delivery::ProduceError;
use crate::kafka::progress_record::ProgressReadError;
use crate::postgres::connection::ConnectionError;
use crate::postgres::publication::PublicationError;
use crate::postgres::query_error::QueryError;
use crate::postgres::server_error::ServerError;
use crate::postgres::slot::SlotError;
use crate::postgres::source::SourceError;

/// Why a session of capture ended.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error("can't connect to Postgres")]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Publication(#[from] PublicationError),
    #[error(transparent)]
    Declared(#[from] DeclaredError),
    #[error(transparent)]
    ProgressRead(#[from] ProgressReadError),
    #[error(transparent)]
    Produce(#[from] ProduceError),
    #[error(transparent)]
    Source(#[from] SourceError),
    /// At the place in the WAL that is decoded, which is not now.
    #[error(
        "publication \"{publication}\" was dropped, and tables were changed while it was away: the \
         slot can't be read past that place; run SELECT pg_drop_replication_slot('{slot}'), then \
         `onelog prepare --adopt-slot`, which makes both anew and has every collection swept"
    )]
    Unpublished {
        slot: String,
        publication: String,
        #[source]
        source: Box<ServerError>,
    },
    /// Another process used the slot between our look at it and our taking it.
    #[error("another process has just used slot \"{slot}\"")]
    Raced { slot: String },
    #[error("a stage of capture panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

impl CaptureError {
    /// Whether a new session may succeed without a person's doing.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connection(error) => error.is_transient(),
            Self::Query(error) => error.is_transient(),
            Self::Slot(error) => error.is_transient(),
            Self::Publication(error) => error.is_transient(),
            Self::Declared(error) => error.is_transient(),
            Self::ProgressRead(error) => error.is_transient(),
            Self::Produce(error) => error.is_transient(),
            Self::Source(error) => error.is_transient(),
            Self::Raced { .. } => true,
            Self::Panicked(_) | Self::Unpublished { .. } => false,
        }
    }

    /// Whether Postgres or Kafka refuses what a person can give: then a new session may succeed
    /// without a new process. What can't be decoded or published is not among it.
    pub fn is_curable(&self) -> bool {
        match self {
            Self::Connection(_)
            | Self::Query(_)
            | Self::Slot(_)
            | Self::Publication(_)
            | Self::Declared(_)
            | Self::Unpublished { .. } => true,
            Self::Source(error) => error.is_curable(),
            Self::ProgressRead(error) => error.is_curable(),
            Self::Produce(error) => error.is_curable(),
            Self::Raced { .. } | Self::Panicked(_) => false,
        }
    }

    /// What the server says of a publication that it does not find in the WAL has no cure in it.
    pub(super) fn or_unpublished(self, config: &PostgresConfig) -> Self {
        match self {
            Self::Source(SourceError::Connection(ConnectionError::Server(source)))
                if ["42704", "55000"].contains(&source.code.as_str()) =>
            {
                let (slot, publication) =
                    (config.slot_name.clone(), config.publication_name.clone());
                Self::Unpublished { slot, publication, source: Box::new(source) }
            }
            other => other,
        }
    }
}
