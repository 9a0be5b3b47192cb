//! What is said of a topic that differs.

use super::*;
use crate::config::topics::{CleanupPolicy, Retention};

fn topic(policy: CleanupPolicy, declared: bool) -> WantedTopic {
    WantedTopic {
        name: "app.public.t".to_owned(),
        kind: TopicKind::Declared(TopicSettings {
            policy,
            min_compaction_lag: Duration::from_secs(7),
            retention: Retention::For(Duration::from_secs(9)),
            append_time: policy == CleanupPolicy::Compact,
        }),
        partitions: 3,
        replication_factor: 2,
        partitions_declared: declared,
        replication_declared: declared,
    }
}

#[test]
fn a_drift_names_every_difference_and_its_cure() {
    let there = Found { partitions: 1, replicas: 1 };
    let lag = ("min.compaction.lag.ms", Some("7000"));
    let time = ("message.timestamp.type", Some("LogAppendTime"));
    let compact = ("cleanup.policy", Some("compact"));
    let entity = topic(CleanupPolicy::Compact, false);
    assert_eq!(drift("b:1", &entity, (&there, &[lag, time, compact])), None);
    let few = [lag, time, compact, ("max.message.bytes", Some("9000"))];
    let small = drift("b:1", &entity, (&there, &few)).unwrap();
    assert!(small.contains("is 9000, too small") && small.contains("bytes=1048588"), "{small}");

    let settings = [lag, ("cleanup.policy", Some("delete"))];
    let warning = drift("b:1", &entity, (&there, &settings)).unwrap();
    assert_eq!(
        warning,
        "topic app.public.t: cleanup.policy is \"delete\", not \"compact\", \
         message.timestamp.type is \"\", not \"LogAppendTime\"; cure: kafka-configs.sh \
         --bootstrap-server b:1 --alter --entity-type topics --entity-name app.public.t \
         --add-config cleanup.policy=compact,message.timestamp.type=LogAppendTime"
    );
}

#[test]
fn a_list_has_no_order_and_what_is_declared_is_held_against_what_is_there() {
    let there = Found { partitions: 1, replicas: 1 };
    let both = topic(CleanupPolicy::CompactDelete, true);
    let settings = |policy| {
        [
            ("cleanup.policy", Some(policy)),
            ("min.compaction.lag.ms", Some("7000")),
            ("retention.ms", Some("9000")),
            ("retention.bytes", Some("-1")),
        ]
    };
    let warning = drift("b:1", &both, (&there, &settings("delete"))).unwrap();
    assert!(warning.contains("--add-config cleanup.policy=[compact,delete];"), "{warning}");
    let warning = drift("b:1", &both, (&there, &settings("delete,compact"))).unwrap();
    assert_eq!(
        warning,
        "topic app.public.t: it has 1 partitions, not 3, it has 1 replicas, not 2; cure: declare \
         partitions = 1, as the order of a key's records rests on the number, or delete the \
         topic if nobody needs what is in it; kafka-reassign-partitions.sh --bootstrap-server \
         b:1, with 2 replicas for each partition of app.public.t"
    );
    let fine = Found { partitions: 3, replicas: 2 };
    assert_eq!(drift("b:1", &both, (&fine, &settings("delete,compact"))), None);
}
