//! Several translators share the work through the consumer group: they may join, leave and be
//! killed under load, and the documents are right all the same.

mod support;

use std::path::PathBuf;

use support::daemon::Daemon;
use support::eventually;
use support::traffic::Load;
use support::world::{self, PATIENCE, Wishes, World, free_address};

/// A translator besides the world's own daemon: another process of the same group.
struct Translator {
    daemon: Daemon,
    http: String,
}

impl Translator {
    /// A static member's name must not be another's: the broker would fence one of them.
    fn start(world: &World, name: &str) -> Self {
        let http = free_address();
        let text = std::fs::read_to_string(&world.config).expect("the world's config");
        let member = format!("\"group.instance.id\" = \"{}\"", world.name);
        assert!(text.contains(&member), "the config names the member");
        let own = format!("\"group.instance.id\" = \"{}-{name}\"", world.name);
        let text = text.replace(&member, &own).replace(&world.http, &http);
        let config: PathBuf = world.folder.path().join(format!("{name}.toml"));
        std::fs::write(&config, text).expect("a config");
        let log = world.folder.path().join(format!("{name}.log"));
        let daemon = Daemon::start_with(&config, &log, &["--only", "translate"]);
        Self { daemon, http }
    }

    async fn metric(&self, name: &str) -> Option<f64> {
        world::metric_at(&self.http, name, "").await
    }

    /// Waits until it has handled some records.
    async fn works(&self) {
        eventually("the translator has its share", PATIENCE, || async {
            (self.metric("onelog_translate_records_total").await? >= 20.0).then_some(())
        })
        .await;
    }
}

async fn shared(name: &str) -> (World, Daemon) {
    let wishes = Wishes { companies: 60, kafka: "partitions = 4", ..Wishes::default() };
    let world = World::new(name, wishes).await;
    world.onelog(&["prepare"]);
    let daemon = world.start();
    world.built().await;
    (world, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn translators_join_leave_and_die_under_load() {
    let (world, mut first) = shared("scale").await;
    let load = Load::start(&world.database_url, 5, 3);
    let second = Translator::start(&world, "second");
    second.works().await;
    let third = Translator::start(&world, "third");
    third.works().await;

    // One dies with its share in flight: the others take it over.
    second.daemon.kill();
    let fourth = Translator::start(&world, "fourth");
    fourth.works().await;
    // The one that also captures dies, and comes back.
    first.kill();
    first = world.start();
    eventually("the first one works again", PATIENCE, || async {
        (world.metric("onelog_translate_records_total").await? >= 20.0).then_some(())
    })
    .await;
    // One leaves as an operator would have it.
    let restarts = third.metric("onelog_stage_restarts_total").await;
    assert_eq!(restarts, Some(0.0), "a rebalance ends no session");
    assert!(third.daemon.stop().await.success());
    load.stop().await;
    world.quiet().await;
    world.check_documents().await;
    assert_eq!(fourth.metric("onelog_stage_restarts_total").await, Some(0.0));
    assert!(fourth.daemon.stop().await.success());
    assert!(first.stop().await.success());
}
