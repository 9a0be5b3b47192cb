//! Elasticsearch: one alias a collection, one index a definition, and the version rule that stops
//! stale writes.

pub mod block;
pub mod bulk;
pub mod client;
pub mod conflict;
pub mod index;
pub mod serve;
pub mod write;
