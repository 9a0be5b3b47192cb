//! A copy in the progress topic: what was asked, and how far it is, so that it goes on after a
//! `kill -9`.
//!
//! **Invariant:** a position is written only once everything before it is durable in Kafka, so a
//! copy that goes on there repeats rows, and skips none.

use serde::{Deserialize, Serialize};

/// The version of the record's form. Another one is refused.
const VERSION: u32 = 1;

/// What is to become of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyState {
    Running,
    /// Until somebody says `--resume`.
    Paused,
    Done,
    /// Nobody wants it any more. It also counts as copied for `mode = "initial"`.
    Cancelled,
}

impl CopyState {
    /// As `/v1/status` says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Where in a table the next chunk begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// After the row with this key: values in Postgres' text, in the order of the columns.
    Key { columns: Vec<String>, values: Vec<String> },
    /// After this place in the table's file `file` (`relfilenode`), for a table without a key.
    Place { file: u32, page: u32, tuple: u16 },
}

/// How far the copy of one ordinary table, or of one leaf of a partitioned one, is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafPosition {
    pub oid: u32,
    pub after: After,
}

/// One copy of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRecord {
    pub state: CopyState,
    /// Only rows for which this SQL condition is true.
    pub condition: Option<String>,
    /// Tables, as leaves of the root, that are copied whole.
    pub done_leaves: Vec<u32>,
    /// The one that is being copied.
    pub leaf: Option<LeafPosition>,
    /// Rows published so far.
    pub rows: u64,
    /// Milliseconds since 1970, by the clock of who began; for people only.
    pub begun_ms: i64,
}

impl CopyRecord {
    /// A copy that has yet to begin.
    pub fn new(condition: Option<String>, begun_ms: i64) -> Self {
        let (done_leaves, leaf) = (Vec::new(), None);
        Self { state: CopyState::Running, condition, done_leaves, leaf, rows: 0, begun_ms }
    }

    /// Whether there is still something to do for it.
    pub fn is_open(&self) -> bool {
        matches!(self.state, CopyState::Running | CopyState::Paused)
    }
}

#[derive(Serialize, Deserialize)]
struct WireCopy {
    version: u32,
    state: CopyState,
    condition: Option<String>,
    done_leaves: Vec<u32>,
    leaf: Option<LeafPosition>,
    rows: u64,
    begun_ms: i64,
}

impl CopyRecord {
    /// The record's value in Kafka.
    pub fn to_json(&self) -> Vec<u8> {
        let it = self.clone();
        let wire = WireCopy {
            version: VERSION,
            state: it.state,
            condition: it.condition,
            done_leaves: it.done_leaves,
            leaf: it.leaf,
            rows: it.rows,
            begun_ms: it.begun_ms,
        };
        serde_json::to_vec(&wire).expect("plain structs become JSON")
    }

    pub(super) fn from_json(value: &[u8]) -> Result<Self, String> {
        let wire: WireCopy = serde_json::from_slice(value).map_err(|err| err.to_string())?;
        if wire.version != VERSION {
            return Err(format!("its version is {}, not {VERSION}", wire.version));
        }
        let WireCopy { state, condition, done_leaves, leaf, rows, begun_ms, .. } = wire;
        Ok(Self { state, condition, done_leaves, leaf, rows, begun_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_this_form() {
        let (columns, values) = (vec!["id".to_owned()], vec!["a'b".to_owned()]);
        let record = CopyRecord {
            done_leaves: vec![5],
            leaf: Some(LeafPosition { oid: 7, after: After::Key { columns, values } }),
            rows: 9,
            ..CopyRecord::new(Some("id > 1".to_owned()), 3)
        };
        let expected = r#"{"version":1,"state":"running","condition":"id > 1","done_leaves":[5],"#
            .to_owned()
            + r#""leaf":{"oid":7,"after":{"key":{"columns":["id"],"values":["a'b"]}}},"#
            + r#""rows":9,"begun_ms":3}"#;
        assert_eq!(String::from_utf8(record.to_json()).unwrap(), expected);
        assert_eq!(CopyRecord::from_json(&record.to_json()), Ok(record));
        let newer = expected.replace("n\":1", "n\":2");
        let problem = CopyRecord::from_json(newer.as_bytes()).unwrap_err();
        assert_eq!(problem, "its version is 2, not 1");
    }
}
