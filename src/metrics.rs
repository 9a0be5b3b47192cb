//! Every metric, registered once. The only file that imports `prometheus`.
//!
//! Base units (`_seconds`, `_bytes`, `_total`), prefix `onelog_`, closed label sets, no ids as
//! labels. `tests/tidy.rs` checks that README.md lists each of them.

pub use prometheus::IntGaugeVec;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    TextEncoder,
};

/// From a tenth of a millisecond to 100 s: commit-to-document latency has its goal at 8 ms and its
/// outages at minutes.
const LATENCY_BUCKETS: [f64; 19] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 20.0, 50.0, 100.0,
];

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $field:ident: $kind:ident $labels:tt,)+) => {
        /// All metrics of the process. The doc comment of each is its help text.
        #[derive(Debug, Clone)]
        pub struct Metrics {
            registry: Registry,
            $($(#[doc = $help])+ pub $field: $kind,)+
        }

        impl Metrics {
            /// Registers every metric in a registry of its own.
            ///
            /// # Panics
            /// If two metrics here have the same name, which is our own mistake.
            #[must_use]
            pub fn new() -> Self {
                let registry = Registry::new();
                $(
                    let name = concat!("onelog_", stringify!($field));
                    let help = concat!($($help),+).trim();
                    let $field = metrics!(@make $kind $labels name help);
                    registry.register(Box::new($field.clone())).expect("names are distinct");
                )+
                let metrics = Self { registry, $($field,)+ };
                metrics.start_series();
                metrics
            }

            /// Every metric's name, for the test that README.md lists them.
            #[must_use]
            pub fn names() -> Vec<&'static str> {
                vec![$(concat!("onelog_", stringify!($field))),+]
            }
        }
    };
    (@make IntCounter [] $name:ident $help:ident) => {
        IntCounter::new($name, $help).expect("the name is valid")
    };
    (@make IntGauge [] $name:ident $help:ident) => {
        IntGauge::new($name, $help).expect("the name is valid")
    };
    (@make Gauge [] $name:ident $help:ident) => {
        Gauge::new($name, $help).expect("the name is valid")
    };
    (@make Histogram [] $name:ident $help:ident) => {
        Histogram::with_opts(
            HistogramOpts::new($name, $help).buckets(LATENCY_BUCKETS.to_vec()),
        ).expect("the name is valid")
    };
    (@make IntCounterVec [$($label:literal),+] $name:ident $help:ident) => {
        IntCounterVec::new(Opts::new($name, $help), &[$($label),+]).expect("the name is valid")
    };
    (@make IntGaugeVec [$($label:literal),+] $name:ident $help:ident) => {
        IntGaugeVec::new(Opts::new($name, $help), &[$($label),+]).expect("the name is valid")
    };
}

// A macro of our own because the alternative is to write every name three times (field, name,
// registration), and a metric that is declared but not registered is silently missing.
metrics! {
    /// Row changes received from Postgres, by kind.
    capture_changes_total: IntCounterVec ["op"],
    /// Logical messages received from Postgres, by kind: context, outbox, own (others with the
    /// prefix `onelog.`) or foreign, which are ignored.
    capture_messages_total: IntCounterVec ["kind"],
    /// Context messages that are none: their transactions' records have no headers from them.
    capture_contexts_refused_total: IntCounter [],
    /// Events of the outbox sent to their topics, by way: table or message.
    outbox_events_total: IntCounterVec ["way"],
    /// UPDATEs of rows of outbox tables, which publish nothing.
    outbox_updates_total: IntCounter [],
    /// Rows of outbox tables deleted because they are old and published.
    outbox_cleaned_rows_total: IntCounter [],
    /// Transactions received from Postgres to their commit.
    capture_transactions_total: IntCounter [],
    /// Bytes of WAL stream received from Postgres.
    capture_received_bytes_total: IntCounter [],
    /// The newest WAL position that the stream has reached.
    capture_received_lsn: IntGauge [],
    /// The WAL position confirmed to the slot: everything before it is durable in Kafka.
    capture_confirmed_lsn: IntGauge [],
    /// WAL that the server has and the slot has not confirmed.
    capture_lag_bytes: IntGauge [],
    /// Age of the newest transaction when its last record was acknowledged by Kafka.
    capture_lag_seconds: Gauge [],
    /// Time from COMMIT to Kafka's acknowledgement of the transaction's last record.
    capture_commit_to_kafka_seconds: Histogram [],
    /// Records handed to Kafka and not yet acknowledged.
    kafka_in_flight_records: IntGauge [],
    /// Records acknowledged by Kafka.
    kafka_records_total: IntCounter [],
    /// Records that Kafka refused or did not acknowledge in time; each is sent again.
    kafka_errors_total: IntCounter [],
    /// Kafka transactions of `delivery = "exactly-once"`, by outcome: committed or aborted.
    kafka_transactions_total: IntCounterVec ["outcome"],
    /// Times that another daemon took over the slot's transactional id while this one had it.
    capture_fenced_total: IntCounter [],
    /// 1 while the slot is ours and the stream runs.
    capture_streaming: IntGauge [],
    /// 1 while another process holds the slot, and this one waits to take over.
    capture_standby: IntGauge [],
    /// 1 while capture waits for a person to change something; `/readyz` says what.
    capture_refused: IntGauge [],
    /// WAL that the server keeps for the slot.
    slot_retained_bytes: IntGauge [],
    /// WAL that may still be written before the slot loses some; -1: no limit is set.
    slot_safe_bytes: IntGauge [],
    /// 1 for the state that the slot is in: reserved, extended, unreserved, lost or missing.
    slot_wal_status: IntGaugeVec ["status"],
    /// 1 while the slot keeps more WAL than `wal_budget`.
    slot_over_budget: IntGauge [],
    /// Copies of tables that are running now.
    copies_running: IntGauge [],
    /// Copies of tables that are waiting for their turn, or for something that they tell.
    copies_waiting: IntGauge [],
    /// Rows that copies have published.
    copy_rows_total: IntCounter [],
    /// Rows that copies have read and not published, as the stream had changed them meanwhile.
    copy_overtaken_rows_total: IntCounter [],
    /// Time until the last of the running copies ends, at its present rate; 0 while none runs.
    copy_left_seconds: IntGauge [],
    /// Times that the capture session was started.
    capture_sessions_total: IntCounter [],
    /// Change records consumed by the translator.
    translate_records_total: IntCounter [],
    /// Records in the log that the translator has not handled to the end.
    translate_lag_records: IntGauge [],
    /// Keys waiting to be read or being read.
    translate_pending_keys: IntGauge [],
    /// Keys of changes that touch very many documents, waiting behind those of small ones.
    translate_low_keys: IntGauge [],
    /// Changes, or several of one row together, that touched very many documents.
    translate_fan_outs_total: IntCounter [],
    /// Keys whose change is not visible to new snapshots yet.
    translate_parked_keys: IntGauge [],
    /// Reads of Postgres, by outcome.
    translate_reads_total: IntCounterVec ["outcome"],
    /// Duration of a read, from BEGIN to the flush check.
    translate_read_seconds: Histogram [],
    /// Keys that change records led to, by collection.
    translate_affected_keys_total: IntCounterVec ["collection"],
    /// Time from COMMIT until every document that the change touches is acknowledged.
    document_freshness_seconds: Histogram [],
    /// Items of bulk requests, by collection and outcome.
    elasticsearch_items_total: IntCounterVec ["collection", "outcome"],
    /// Duration of a bulk request.
    elasticsearch_bulk_seconds: Histogram [],
    /// What was sent to the dead-letter topic: a document, a record of the log, an event of the outbox,
    /// a change that is too large.
    dead_letters_total: IntCounterVec ["reason"],
    /// Sweeps that are running or owed, by collection.
    sweeps_pending: IntGaugeVec ["collection"],
    /// Documents that a sweep has compared, by collection.
    sweep_documents_total: IntCounterVec ["collection"],
    /// Documents that a sweep found wrong and repaired, by collection.
    sweep_repairs_total: IntCounterVec ["collection"],
    /// Documents that no change on its way explained, found by an audit and repaired, by collection.
    audit_drift_total: IntCounterVec ["collection"],
    /// Documents whose SQL gives other text for the same rows, seen by audits, by collection.
    audit_undetermined_total: IntCounterVec ["collection"],
    /// Documents that the running sweep has done; 0 while none runs, by collection.
    sweep_done_documents: IntGaugeVec ["collection"],
    /// Documents that the running sweep will have done at its end, by Postgres' estimate, by
    /// collection.
    sweep_expected_documents: IntGaugeVec ["collection"],
    /// Time until the running sweep's end at its present rate, by collection.
    sweep_left_seconds: IntGaugeVec ["collection"],
    /// Indices that were not swapped in because they were not what their SQL says, by collection.
    verification_failures_total: IntCounterVec ["collection"],
    /// Loads of the mapping files, by result.
    mapping_reloads_total: IntCounterVec ["result"],
    /// Looks at the catalog for changes that have no event, by outcome: same, changed,
    /// pending (a difference that no load has answered yet), error.
    fingerprint_looks_total: IntCounterVec ["outcome"],
    /// 1 for a collection whose documents follow every change; 0 while it is built for the first
    /// time, or frozen by a mistake in its mapping, or without a mapping file.
    collection_live: IntGaugeVec ["collection"],
    /// Collections with an index that no mapping file speaks of any more; `onelog drop` deletes them.
    collections_orphaned: IntGauge [],
    /// Restarts of a stage after an error, by stage.
    stage_restarts_total: IntCounterVec ["stage"],

    /// Requests to the gateway, by route and status.
    gateway_requests_total: IntCounterVec ["route", "status"],
    /// From a request's head to its answer's, in the gateway. Feedback is answered for ever: only
    /// its beginning counts.
    gateway_request_seconds: Histogram [],
    /// Records for the backplane, by outcome: sent, failed, or dropped as the queue was full.
    feedback_records_total: IntCounterVec ["outcome"],
    /// Clients that listen to feedback.
    gateway_subscribers: IntGauge [],
    /// Clients that were let go because they read too slowly.
    gateway_subscribers_dropped_total: IntCounter [],
    /// Records of feedback that a gateway has at hand.
    gateway_window_records: IntGauge [],
    /// Open connections to the gateway.
    gateway_connections: IntGauge [],
    /// Connections that were closed at once because there were too many.
    gateway_connections_refused_total: IntCounter [],
    /// Commands by how they ended: accepted, duplicate, refused (the request is wrong),
    /// not_accepted (nothing was handed to Kafka), unknown (Kafka has not answered in time).
    gateway_commands_total: IntCounterVec ["outcome"],
}

impl Metrics {
    /// Series of labels that are known from the start exist from the start, so that `increase()`
    /// sees their first event.
    fn start_series(&self) {
        for way in ["table", "message"] {
            self.outbox_events_total.with_label_values(&[way]);
        }
        for outcome in ["committed", "aborted"] {
            self.kafka_transactions_total.with_label_values(&[outcome]);
        }
        for outcome in ["sent", "failed", "dropped"] {
            self.feedback_records_total.with_label_values(&[outcome]);
        }
        for reason in ["document", "record", "outbox", "change"] {
            self.dead_letters_total.with_label_values(&[reason]);
        }
        for kind in ["context", "outbox", "own", "foreign"] {
            self.capture_messages_total.with_label_values(&[kind]);
        }
        for stage in ["capture", "translate"] {
            self.stage_restarts_total.with_label_values(&[stage]);
        }
        for result in ["ok", "mistakes"] {
            self.mapping_reloads_total.with_label_values(&[result]);
        }
        for outcome in ["same", "changed", "pending", "error"] {
            self.fingerprint_looks_total.with_label_values(&[outcome]);
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// The text exposition format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing to memory does not fail");
        String::from_utf8(text).expect("the text format is UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_rendered_under_its_name() {
        let metrics = Metrics::new();
        metrics.kafka_records_total.inc_by(3);
        assert!(metrics.render().contains("\nonelog_kafka_records_total 3\n"));
        assert!(Metrics::names().iter().all(|it| it.starts_with("onelog_")));
    }
}
