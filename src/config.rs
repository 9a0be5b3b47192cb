//! `config.toml`: as written (in `config/file.rs`) -> [`Config`] as relied on.
//!
//! Every field here has been checked; nothing reads the file again. A stage gets its own slice.

pub mod file;
pub mod gateway;
pub mod search_template;
pub mod topics;

use std::path::PathBuf;
use std::time::Duration;

use crate::config::gateway::GatewayConfig;
use crate::config::topics::Declaration;
use crate::outbox::template::TopicTemplate;
use crate::postgres::url::PostgresUrl;

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub postgres: PostgresConfig,
    pub kafka: KafkaConfig,
    pub copy: CopyConfig,
    pub outbox: OutboxConfig,
    pub elasticsearch: ElasticsearchConfig,
    pub translate: TranslateConfig,
    pub http: HttpConfig,
    /// None: nobody writes or reads through us.
    pub gateway: Option<GatewayConfig>,
    pub log: LogConfig,
}

#[derive(Debug, Clone, PartialEq)]
pub struct PostgresConfig {
    pub url: PostgresUrl,
    pub slot_name: String,
    pub publication_name: String,
    /// Schema-qualified, globs allowed; at least one.
    pub tables: Vec<String>,
    /// The slot is one that standbys keep a copy of, where the server can (17 and later).
    pub slot_failover: bool,
    /// Most WAL, in bytes, that the slot should keep on the primary. None: whatever there is.
    pub wal_budget: Option<u64>,
    pub wal_budget_action: BudgetAction,
}

/// What becomes of a slot that keeps more WAL than its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BudgetAction {
    /// It is said: log and metric.
    Warn,
    /// It is dropped. The primary's disk is worth more than the log's continuity.
    DropSlot,
}

/// What a consumer may count on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    AtLeastOnce,
    /// By Kafka transactions: who reads with `read_committed` sees each change once.
    ExactlyOnce(TransactionConfig),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransactionConfig {
    /// For how long changes are collected into one Kafka transaction; it ends where one of
    /// Postgres does.
    pub interval: Duration,
    /// After it the broker aborts a Kafka transaction that nobody ended: longer than the largest
    /// Postgres transaction takes to be published.
    pub timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct KafkaConfig {
    /// `host:port,host:port`.
    pub brokers: String,
    pub topic_prefix: String,
    pub delivery: Delivery,
    /// Longest that a record may wait for its acknowledgement. A successor of a daemon that did
    /// not stop cleanly waits twice this long, and `socket_timeout` more, before it publishes (A14).
    pub delivery_timeout: Duration,
    pub socket_timeout: Duration,
    /// Of the topics that we create.
    pub partitions: i32,
    pub replication_factor: i32,
    /// Of entity topics: for how long every old image is kept for a translator that is behind.
    pub min_compaction_lag: Duration,
    /// Consumer group of the translators.
    pub group_id: String,
    /// What is said of topics one by one: the first that has a topic's name counts.
    pub topics: Vec<Declaration>,
    /// librdkafka properties of the operator's own, applied last: security and the like.
    pub properties: Vec<(String, String)>,
}

/// Events that the application writes in the transaction of its changes.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxConfig {
    /// Tables whose rows are events, as `namespace.table`; a partitioned one by its root.
    pub tables: Vec<String>,
    pub topic: TopicTemplate,
    pub columns: OutboxColumns,
    /// Columns that become headers too, with the header's name.
    pub header_columns: Vec<(String, String)>,
    /// An event without a payload is a tombstone; else its payload is JSON's null.
    pub tombstones: bool,
    /// Events without an aggregateid are published, in no order.
    pub allow_null_key: bool,
    /// Rows of this age that are published are deleted. Zero: never.
    pub cleanup_after: Duration,
}

/// Names to look for, the first that is there; those without a default are only used if named.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxColumns {
    pub id: Vec<String>,
    pub aggregate_type: Vec<String>,
    pub aggregate_id: Vec<String>,
    pub kind: Vec<String>,
    pub payload: Vec<String>,
    pub headers: Vec<String>,
    /// Somebody named the headers' column, so that it must be there.
    pub headers_named: bool,
    pub timestamp: Option<String>,
    pub partition: Option<String>,
}

impl Default for OutboxColumns {
    /// Debezium's names, and those that Rails and Django would give.
    fn default() -> Self {
        let names = |names: &[&str]| names.iter().map(|&it| it.to_owned()).collect();
        Self {
            id: names(&["id"]),
            aggregate_type: names(&["aggregatetype", "aggregate_type"]),
            aggregate_id: names(&["aggregateid", "aggregate_id"]),
            kind: names(&["type", "event_type"]),
            payload: names(&["payload"]),
            headers: names(&["headers"]),
            headers_named: false,
            timestamp: None,
            partition: None,
        }
    }
}

impl Config {
    /// All tables that the publication must have.
    pub fn published_tables(&self) -> Vec<String> {
        self.postgres.tables.iter().chain(&self.outbox.tables).cloned().collect()
    }
}

impl OutboxConfig {
    /// Whether the topic is named after an outbox table, or its root: nothing is published there.
    pub fn has_topic(&self, kafka: &KafkaConfig, topic: &str) -> bool {
        self.tables.iter().any(|it| kafka.table_topic(it) == topic)
    }

    /// Whether there is anything to delete, ever.
    pub fn is_cleaned_up(&self) -> bool {
        !self.tables.is_empty() && !self.cleanup_after.is_zero()
    }
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self {
            tables: Vec::new(),
            topic: TopicTemplate::parse("outbox.event.{aggregatetype}", "")
                .expect("the default is a template"),
            columns: OutboxColumns::default(),
            header_columns: Vec::new(),
            tombstones: false,
            allow_null_key: false,
            cleanup_after: Duration::ZERO,
        }
    }
}

impl KafkaConfig {
    /// None: plain records, at least once.
    pub fn transactions(&self) -> Option<TransactionConfig> {
        match self.delivery {
            Delivery::AtLeastOnce => None,
            Delivery::ExactlyOnce(it) => Some(it),
        }
    }

    /// Who takes it on shuts out the one that had it before (A14): one for each slot.
    pub fn transactional_id(&self, slot: &str) -> String {
        format!("{}.onelog.{slot}", self.topic_prefix)
    }

    /// The compacted topic that holds our progress records.
    pub fn progress_topic(&self) -> String {
        format!("{}.onelog.progress", self.topic_prefix)
    }

    /// Where gateways and translators tell each other what became of commands and documents.
    pub fn feedback_topic(&self) -> String {
        format!("{}.onelog.feedback", self.topic_prefix)
    }

    /// Where records and documents go that can't be handled, with the reason in headers.
    pub fn dead_letter_topic(&self) -> String {
        format!("{}.onelog.dead-letter", self.topic_prefix)
    }

    /// The entity topic of a table.
    pub fn entity_topic(&self, namespace: &str, name: &str) -> String {
        format!("{}.{namespace}.{name}", self.topic_prefix)
    }

    /// The same of a table written as `namespace.table`.
    pub fn table_topic(&self, table: &str) -> String {
        format!("{}.{table}", self.topic_prefix)
    }

    /// Whether the topic is one that nobody else may write to.
    pub fn is_own_topic(&self, topic: &str) -> bool {
        let rest = topic.strip_prefix(&self.topic_prefix);
        rest.is_some_and(|it| it.starts_with(".onelog."))
    }
}

/// Which tables are copied into the log without being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMode {
    /// Only those that `onelog copy` names.
    OnDemand,
    /// Every published table that was never copied, also one that is published later.
    Initial,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CopyConfig {
    pub mode: CopyMode,
    /// Most rows of a chunk.
    pub chunk_rows: u32,
    /// Most tables that are copied at once.
    pub tables_at_once: usize,
    /// Of each table. Zero: no limit.
    pub rows_per_second_max: u32,
}

impl Default for CopyConfig {
    fn default() -> Self {
        Self {
            mode: CopyMode::OnDemand,
            // Some 2 ms of the producing stage, for which live changes wait.
            chunk_rows: 1000,
            tables_at_once: 2,
            rows_per_second_max: 0,
        }
    }
}

/// How to say who we are. Never shown: `Debug` is written by hand.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    None,
    Basic { username: String, password: String },
    ApiKey(String),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Basic { .. } => "Basic(…)",
            Self::ApiKey(_) => "ApiKey(…)",
        })
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ElasticsearchConfig {
    /// Without credentials: these are in `credentials`.
    pub url: String,
    pub credentials: Credentials,
    /// PEM file of the authority that signed the server's certificate; None: the system's.
    pub ca_file: Option<PathBuf>,
    pub index_prefix: String,
    pub request_timeout: Duration,
    pub number_of_shards: u32,
    pub number_of_replicas: u32,
    /// How long an index that a newer one has replaced is kept for `onelog rollback`.
    pub rollback_window: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TranslateConfig {
    /// The folder of mapping files, relative to the config file's folder when not absolute.
    pub mappings: PathBuf,
    /// Zero: never.
    pub poll_interval: Duration,
    /// Zero: never.
    pub audit_interval: Duration,
    /// How often the catalog is looked at for changes that have no event.
    pub fingerprint_interval: Duration,
    /// Connections to Postgres that read documents, and so the most reads at once.
    pub connections: usize,
    /// Most keys that one read asks for.
    pub keys_per_read: usize,
    /// Most keys waiting to be read before the consumer pauses.
    pub pending_keys_max: usize,
    pub statement_timeout: Duration,
    pub lock_timeout: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HttpConfig {
    pub listen: std::net::SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug` or `trace`, or directives as in `RUST_LOG`.
    pub level: String,
    pub format: LogFormat,
}
