//! Postgres: the walsender session, and plain connections for everything else.

pub mod assemble;
pub mod cleanup;
pub mod client;
pub mod connection;
pub mod connection_error;
pub mod copy;
pub mod decode;
mod framing;
pub mod holder;
mod pace;
pub mod pgoutput;
pub mod publication;
pub mod query_error;
pub mod query_plan;
pub mod row_filter;
pub mod server_error;
mod session;
pub mod slot;
pub mod source;
mod startup;
pub mod text;
mod tls;
mod transport;
pub mod url;
pub mod walsender;
