//! Headers that all records of a transaction carry.
//!
//! The gate needs them (`snapshot.rs`): a read may serve a change only if it sees the change's
//! transaction, on the change's timeline of the change's system.

use super::source::{SourceContext, TransactionContext};

/// A header's name and value.
pub type Header = (String, String);

/// `source-lsn` is the commit's LSN as Postgres prints it; `source-txid` the 64-bit transaction id,
/// `source-timeline` and `source-system` numbers, all decimal. Then those of the correlation.
pub fn transaction_headers(source: &SourceContext, it: &TransactionContext) -> Vec<Header> {
    let fixed = [
        ("source-lsn", it.final_lsn.to_string()),
        ("source-txid", it.xid_wide.to_string()),
        ("source-timeline", source.timeline.to_string()),
        ("source-system", source.system_id.to_string()),
    ];
    let fixed = fixed.into_iter().map(|(name, value)| (name.to_owned(), value));
    fixed.chain(it.correlation.iter().cloned()).collect()
}
