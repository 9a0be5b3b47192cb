//! onelog: one write point, one read point, one log.
//!
//! ```text
//! Postgres ──WAL──> capture ──> Kafka (the log) ──> translate ──> Elasticsearch
//!                                                   │      ^
//!                                                   └─SQL──┘ for the affected keys, on Postgres
//! browsers ──commands──> gateway ──> Kafka ──> robots ──SQL──> Postgres; gateway ──documents──> browsers
//! ```
//!
//! # Reading order
//! Values, which everything else speaks of: [`lsn`], [`relation`], [`change`], [`snapshot`],
//! [`document`], [`mapping`], [`mistake`], [`json`], [`outbox`]. Then the path of a change: [`postgres`]
//! reads the WAL, [`kafka`] publishes and consumes, [`mapping`] finds the keys that a change
//! touches, [`document`] reads them again, [`elasticsearch`] writes them. [`gateway`] is where
//! browsers write commands and read documents. [`supervisor`] wires the stages; [`cli`] has the
//! commands.
//!
//! # Invariants
//! - Imports point downwards: cli -> supervisor -> stages -> rules -> values (`tests/tidy.rs`).
//! - Values and rules have no clock, no I/O and no logging. They return.
//! - The daemon keeps no state of its own: progress is the slot, the progress topic and the
//!   consumer group's offsets.
//! - Nothing received is skipped, and nothing is confirmed before Kafka has it.
//! - Every channel, batch and wait has a limit, so that back-pressure reaches the slot by itself.

pub mod capture;
pub mod causes;
pub mod change;
pub mod cli;
pub mod config;
pub mod copies;
pub mod document;
pub mod elasticsearch;
pub mod gateway;
pub mod health;
pub mod http;
pub mod json;
pub mod kafka;
pub mod lsn;
pub mod mapping;
pub mod metrics;
pub mod mistake;
pub mod outbox;
pub mod postgres;
pub mod progress;
pub mod relation;
pub mod snapshot;
pub mod supervisor;
pub mod translate;
