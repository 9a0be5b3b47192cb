//! The group's positions against a real Kafka: what is lost, and what several members make of it.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use onelog::config::{Delivery, KafkaConfig};
use onelog::kafka::consumer::{Log, Partition};
use onelog::kafka::positions::Notes;
use onelog::kafka::topics::{WantedTopic, ensure_topics};
use rdkafka::ClientConfig;
use rdkafka::Message as _;
use rdkafka::consumer::CommitMode;
use rdkafka::producer::{FutureProducer, FutureRecord};

use support::world::PATIENCE;
use support::{eventually, server};

fn config(test: &str) -> KafkaConfig {
    let unique = format!("positions_{test}_{}", std::process::id());
    KafkaConfig {
        brokers: server("ONELOG_TEST_KAFKA"),
        topic_prefix: unique.clone(),
        delivery: Delivery::AtLeastOnce,
        delivery_timeout: Duration::from_secs(10),
        socket_timeout: Duration::from_secs(10),
        partitions: 1,
        replication_factor: 1,
        topics: Vec::new(),
        min_compaction_lag: Duration::from_secs(7 * 24 * 3600),
        group_id: unique,
        properties: Vec::new(),
    }
}

/// Makes the topic, and waits until each of its partitions has a leader who answers.
async fn topic(config: &KafkaConfig) -> String {
    let topic = config.entity_topic("public", "pear");
    let wanted = WantedTopic::of_table(config, &topic, true);
    ensure_topics(config, &[wanted], false).await.expect("a topic");
    let log = Log::new(config).expect("a log");
    let count = usize::try_from(config.partitions).expect("a number");
    eventually("all partitions are there, and nobody has read them", PATIENCE, || async {
        let topics = BTreeSet::from([topic.clone()]);
        let found = log.lost_positions(topics, config.min_compaction_lag).await.ok()?;
        (found.lost.len() == count).then_some(())
    })
    .await;
    topic
}

/// Two translators find the same position lost. While one of them joins the group to commit it,
/// the other has it already and reads on.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_another_member_has_settled_is_not_set_back() {
    let config = config("settled");
    let topic = topic(&config).await;
    let topics = BTreeSet::from([topic.clone()]);
    let place = Partition { topic: topic.clone(), number: 0 };
    let (first, second) = (Log::new(&config).expect("a log"), Log::new(&config).expect("a log"));

    let found_by_first = first.lost_positions(topics.clone(), config.min_compaction_lag).await;
    let found_by_second = second.lost_positions(topics, config.min_compaction_lag).await;
    let found_by_first = found_by_first.expect("positions").lost;
    let found_by_second = found_by_second.expect("positions").lost;
    assert_eq!(found_by_first, [(place.clone(), 0)]);
    assert_eq!(found_by_second, found_by_first);

    first
        .commit_lost(&config, found_by_first, Notes::new())
        .await
        .expect("the group has no member yet");
    first.subscribe(std::slice::from_ref(&topic)).expect("subscribed");
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", &config.brokers).create().expect("a producer");
    let record = FutureRecord::to(&topic).key("1").payload("{}");
    producer.send(record, PATIENCE).await.expect("published");
    let message = tokio::time::timeout(PATIENCE, first.consumer().recv()).await;
    let offset = message.expect("in time").expect("a record").offset();
    assert_eq!(offset, 0);
    first.commit(&[(place.clone(), 1)], &Notes::new(), CommitMode::Sync).expect("committed");

    // Its join needs the first one to go on polling.
    let settling = second.commit_lost(&config, found_by_second, Notes::new());
    tokio::select! {
        settled = settling => settled.expect("settled"),
        message = first.consumer().recv() => panic!("no record came: {message:?}"),
    }
    let stands = second.is_committed(vec![(place, 1)]).await.expect("an answer");
    assert!(stands, "the position was set back");
}

/// Records arrive and positions move between the questions: what was committed, the partitions'
/// ends, the first record that is young enough. Asked in another order, a position would stand
/// beyond its partition's end, or before any record that is young.
#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_moves_while_it_is_asked_for_is_not_lost() {
    const PARTITIONS: i32 = 40;
    let config = KafkaConfig { partitions: PARTITIONS, ..config("moving") };
    let topic = topic(&config).await;
    let places = (0..PARTITIONS).map(|number| Partition { topic: topic.clone(), number });
    let places: Vec<Partition> = places.collect();
    let (asking, moving) = (Log::new(&config).expect("a log"), Log::new(&config).expect("a log"));
    let ends = places.iter().map(|it| (it.clone(), 0)).collect();
    moving.commit_lost(&config, ends, Notes::new()).await.expect("the group has no member");

    let brokers = config.brokers.clone();
    let mut running = tokio::task::JoinSet::new();
    running.spawn(async move {
        let producer: FutureProducer =
            ClientConfig::new().set("bootstrap.servers", &brokers).create().expect("a producer");
        for place in places {
            let record = FutureRecord::to(&place.topic).partition(place.number).key("1");
            producer.send(record.payload("{}"), PATIENCE).await.expect("published");
            moving.commit(&[(place, 1)], &Notes::new(), CommitMode::Sync).expect("committed");
        }
    });
    let mut asked = 0;
    while running.try_join_next().transpose().expect("no panic").is_none() {
        let topics = BTreeSet::from([topic.clone()]);
        let found = asking.lost_positions(topics, config.min_compaction_lag).await;
        assert_eq!(found.expect("positions").lost, [], "at question {asked}");
        asked += 1;
    }
    assert!(asked > 1, "nothing was asked while positions moved");
}
