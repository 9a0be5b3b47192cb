//! Kafka: the log. Topics, keys, and what order may be relied on.

pub mod batch;
pub mod brokers;
pub mod chunk;
pub mod cloud_events;
pub mod command_producer;
pub mod consumer;
pub mod copy_record;
pub mod delivery;
pub mod envelope;
pub mod extract;
pub mod feedback;
pub mod feedback_sender;
mod lost_cluster;
pub mod merge;
pub mod offsets;
pub mod outbox;
pub mod overlap;
pub mod positions;
pub mod producer;
pub mod progress_record;
pub mod reader;
pub mod record;
mod recorder;
mod renewed;
pub mod settings;
pub mod side;
pub mod topics;
