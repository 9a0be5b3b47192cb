//! Indices that take no writes for now: how Elasticsearch says it, and what ends it (pure).
//!
//! No document is at fault, so nothing is buried: writes wait and go on by themselves.

use std::collections::BTreeSet;

/// Whether a `type: reason` speaks of a block. A full disk makes it a 429, an operator's block a
/// 403, and a closed index a 400.
pub fn is_block(reason: &str) -> bool {
    ["cluster_block_exception", "index_closed_exception"].iter().any(|it| reason.starts_with(it))
}

/// The reason, and if it is a block what ends it.
pub fn with_cure(reason: String) -> String {
    match reason.as_str() {
        it if !is_block(it) => reason,
        it if it.starts_with("index_closed") => format!("{reason}; {OPEN}"),
        it if it.contains("read-only-allow-delete") => format!("{reason}; {FREE_DISK}"),
        _ => format!("{reason}; {LIFT}"),
    }
}

const OPEN: &str = "POST /INDEX/_open opens it";
const FREE_DISK: &str = "the disk of a node is nearly full: free or add space, and Elasticsearch \
    lifts the block by itself; by hand: PUT /INDEX/_settings \
    {\"index.blocks.read_only_allow_delete\": null}";
const LIFT: &str = "somebody has set the block: PUT /INDEX/_settings \
    {\"index.blocks.write\": null, \"index.blocks.read_only\": null} lifts it";

/// What to say of an index with these blocks set (`write`, `read_only`,
/// `read_only_allow_delete`); None: it takes writes.
pub fn sentence(index: &str, blocks: &BTreeSet<String>) -> Option<String> {
    let cure = match blocks {
        it if it.contains("read_only_allow_delete") => FREE_DISK,
        it if it.contains("read_only") || it.contains("write") => LIFT,
        _ => return None,
    };
    Some(format!("Elasticsearch: index {index} is blocked for writes; {cure}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_told_from_other_refusals_and_has_its_cure() {
        let flood = "cluster_block_exception: index [a] blocked by: [TOO_MANY_REQUESTS/12/disk \
                     usage exceeded flood-stage watermark, index has read-only-allow-delete block];";
        for (reason, cure) in [
            (flood, "free or add space"),
            ("cluster_block_exception: index [a] blocked by: [FORBIDDEN/8/index write", "lifts it"),
            ("index_closed_exception: closed", "_open"),
        ] {
            let said = with_cure(reason.to_owned());
            assert!(said.starts_with(reason) && said.contains(cure), "{said}");
        }
        let other = "document_parsing_exception: failed to parse".to_owned();
        assert_eq!(with_cure(other.clone()), other);
    }

    #[test]
    fn blocks_of_reads_and_metadata_do_not_stop_writes() {
        let set = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
        assert_eq!(sentence("a", &set(&["read", "metadata"])), None);
        assert!(sentence("a", &set(&["read_only"])).unwrap().contains("lifts it"));
        assert!(sentence("a", &set(&["read_only_allow_delete"])).unwrap().contains("disk"));
    }
}
