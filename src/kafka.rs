//! Kafka: the log. Topics, keys, and what order may be relied on.

pub mod batch;
pub mod consumer;
pub mod delivery;
pub mod envelope;
pub mod offsets;
pub mod positions;
pub mod producer;
pub mod progress_record;
pub mod record;
pub mod settings;
pub mod side;
pub mod topics;
