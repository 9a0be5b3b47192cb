//! How capture's producer is set, and why.

use super::flusher;
use crate::config::KafkaConfig;
use crate::kafka::settings::BATCH_BYTES;

/// Most records in librdkafka's queue: some 40 ms at full speed.
const QUEUE_RECORDS: &str = "7500";

pub(in crate::kafka) fn own_settings(config: &KafkaConfig) -> Vec<(&'static str, String)> {
    let delivery_ms = config.delivery_timeout.as_millis().to_string();
    // How long a broker waits for replicas before it goes on to the next request. Of five that a
    // dead process has left behind, the last is then written before a successor's wait of more
    // than two delivery timeouts is over (A14); at the default of 30 s it might not be.
    let broker_wait = (config.delivery_timeout / 2).min(config.socket_timeout);
    let settings: [(&str, &str); 10] = [
        ("enable.idempotence", "true"),
        ("acks", "all"),
        // librdkafka's idempotent producer has fewer on their way by itself: it holds the next
        // request back while five or more *records* are (`rktp_msgs_inflight`), which under a
        // backlog means one request at a time, each filled meanwhile.
        ("max.in.flight.requests.per.connection", "5"),
        // As Java clients place keys; `murmur2` alone puts all null keys on one partition.
        ("partitioner", "murmur2_random"),
        // Both bound our memory (60 MB at most, in all), and are twice what five full requests
        // hold. The defaults are 1 GiB and 100,000.
        ("queue.buffering.max.kbytes", "8192"),
        ("queue.buffering.max.messages", QUEUE_RECORDS),
        ("batch.num.messages", "2000"),
        // The topic's own limit decides, not the client's default of 1 MB.
        ("message.max.bytes", "10485760"),
        // Compression would cost more than everything else that we do with a row; an operator
        // with a thin network sets it in [kafka] properties.
        ("compression.type", "none"),
        ("retry.backoff.ms", "20"),
    ];
    let mut all: Vec<_> = settings.iter().map(|&(name, it)| (name, it.to_owned())).collect();
    all.push(("message.timeout.ms", delivery_ms));
    // librdkafka wants it below message.timeout.ms.
    let linger = flusher::LINGER.min(config.delivery_timeout / 2);
    all.push(("queue.buffering.max.ms", linger.as_millis().to_string()));
    all.push(("request.timeout.ms", broker_wait.as_millis().to_string()));
    // Half a megabyte a request: larger ones only add to memory and to latency.
    all.push(("batch.size", BATCH_BYTES.to_string()));
    all
}
