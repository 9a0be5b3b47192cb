//! A skeptic's hour: two daemons and their servers are killed, stopped, frozen and restarted at
//! random under random traffic. In each pause every document must be what its SQL says, and the
//! log's last value of each key the table's row.
//!
//! `make soak MINUTES=60`; it is no part of `make test`. The seed is printed and may be given, but
//! what the processes do between two faults is never the same twice.

#![allow(clippy::print_stdout, reason = "it says how far it is")]

#[path = "copies/log.rs"]
#[allow(dead_code, reason = "the tests of copies look at more")]
mod log;
mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use support::daemon::Daemon;
use support::eventually;
use support::servers::{Away, stack};
use support::traffic::Load;
use support::world::{PATIENCE, Wishes, World, free_address, http_at};

const FAULTS_IN_A_ROUND: usize = 6;

/// Tables and their primary keys.
const KEYS: &str = "SELECT c.relname::text, array_agg(a.attname::text) FROM pg_class c \
     JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary \
     JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey) \
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' GROUP BY 1 ORDER BY 1";

/// One of two processes that share a slot, a group and everything else.
struct Place {
    config: PathBuf,
    http: String,
    log: PathBuf,
    daemon: Option<Daemon>,
}

impl Place {
    fn first(world: &World) -> Self {
        let log = world.folder.path().join("first.log");
        Self { config: world.config.clone(), http: world.http.clone(), log, daemon: None }
    }

    fn second(world: &World) -> Self {
        let http = free_address();
        let member = format!("\"group.instance.id\" = \"{}", world.name);
        let text = std::fs::read_to_string(&world.config).expect("the config");
        let text = text.replace(&world.http, &http).replace(&member, &format!("{member}-second"));
        let config = world.folder.path().join("second.toml");
        std::fs::write(&config, text).expect("written");
        Self { config, http, log: world.folder.path().join("second.log"), daemon: None }
    }

    fn start(&mut self) {
        self.daemon = Some(Daemon::start(&self.config, &self.log));
    }

    fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("it runs between two faults")
    }

    /// Waits until it answers at all: the one that has not got the slot is not ready.
    async fn answers(&self) {
        eventually("the daemon answers", PATIENCE, || http_at(&self.http, "/healthz")).await;
    }
}

/// Waits until so many more transactions have committed or failed, whoever is down meanwhile.
async fn traffic_goes_on(world: &World, more: i64) {
    let asked = || async {
        let (client, driver) =
            tokio_postgres::connect(&world.database_url, tokio_postgres::NoTls).await.ok()?;
        let mut driving = tokio::task::JoinSet::new();
        driving.spawn(driver);
        let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database \
                   WHERE datname = current_database()";
        client.query_one(sql, &[]).await.ok().map(|it| it.get::<_, i64>(0))
    };
    let before = eventually("Postgres answers", PATIENCE, asked).await;
    eventually("the traffic goes on", PATIENCE, || async {
        // After a crash the statistics begin anew.
        asked().await.filter(|now| *now < before || before + more <= *now)
    })
    .await;
}

struct Soak {
    world: World,
    places: [Place; 2],
    random: StdRng,
}

impl Soak {
    async fn new(seed: u64) -> Self {
        let kafka = "partitions = 4\n[copy]\nmode = \"initial\"";
        let wishes = Wishes { companies: 60, kafka, ..Wishes::default() };
        let world = World::new("soak", wishes).await;
        world.onelog(&["prepare"]);
        let mut places = [Place::first(&world), Place::second(&world)];
        for place in &mut places {
            place.start();
        }
        world.built().await;
        Self { world, places, random: StdRng::seed_from_u64(seed) }
    }

    /// Does something to one of the parts, and undoes it. What it was, for people.
    async fn fault(&mut self) -> String {
        let nth = self.random.random_range(0..2);
        let meanwhile = self.random.random_range(1..60);
        let service =
            *["postgres", "kafka", "elasticsearch"].choose(&mut self.random).expect("three");
        let place = &mut self.places[nth];
        match self.random.random_range(0..8) {
            0..3 => {
                place.daemon.take().expect("it runs").kill();
                traffic_goes_on(&self.world, meanwhile).await;
                place.start();
                place.answers().await;
                format!("kill -9 daemon {nth}")
            }
            3 => {
                let stopped = place.daemon.take().expect("it runs").stop().await;
                assert!(stopped.success(), "SIGTERM drains and exits 0: {stopped}");
                place.start();
                place.answers().await;
                format!("restart daemon {nth}")
            }
            4 => {
                place.daemon().signal("STOP");
                traffic_goes_on(&self.world, meanwhile * 10).await;
                place.daemon().signal("CONT");
                format!("SIGSTOP daemon {nth}")
            }
            5 => {
                stack("restart", service).await;
                format!("restart {service}")
            }
            6 => {
                let away = Away::kill(service).await;
                if service != "postgres" {
                    traffic_goes_on(&self.world, meanwhile).await;
                }
                away.bring_back().await;
                format!("kill -9 {service}")
            }
            _ => {
                // Postgres is many processes, which nobody stops all at once.
                let service = if service == "postgres" { "elasticsearch" } else { service };
                let away = Away::freeze(service).await;
                traffic_goes_on(&self.world, meanwhile * 10).await;
                away.bring_back().await;
                format!("freeze {service}")
            }
        }
    }

    /// Both still run, and all is right.
    async fn check(&mut self) {
        for place in &mut self.places {
            assert!(place.daemon().is_alive(), "it has ended: {}", place.daemon().log_text());
        }
        let world = &self.world;
        let (client, _connection) = world.client().await;
        let emit = "SELECT pg_logical_emit_message(true, 'onelog.test', '')";
        client.batch_execute(emit).await.expect("a synchronous commit");
        eventually("one of them has the slot", PATIENCE, || async {
            let sql = "SELECT active FROM pg_replication_slots WHERE slot_name = $1";
            let row = client.query_one(sql, &[&world.name]).await.ok()?;
            row.get::<_, bool>(0).then_some(())
        })
        .await;
        world.quiet().await;
        world.check_documents().await;
        for row in client.query(KEYS, &[]).await.expect("the tables") {
            let (table, key): (String, Vec<String>) = (row.get(0), row.get(1));
            let key: Vec<&str> = key.iter().map(String::as_str).collect();
            let rows = log::table(&client, &table, &key).await;
            log::check(&log::read(world, &table).await, &rows);
        }
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |it| it.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "as long as one wants: make soak MINUTES=60"]
async fn killed_at_random_every_document_equals_its_sql() {
    let limit = Duration::from_secs(60 * number("ONELOG_SOAK_MINUTES", 10));
    let seed = number("ONELOG_SOAK_SEED", u64::from(std::process::id()));
    println!("seed {seed}, {} minutes", limit.as_secs() / 60);
    let mut soak = Soak::new(seed).await;
    let (begun, mut round, mut faults) = (Instant::now(), 0, 0);
    while round == 0 || begun.elapsed() < limit {
        round += 1;
        let load = Load::start(&soak.world.database_url, seed % 1000 * 1000 + round, 3);
        let mut done = Vec::new();
        for _ in 0..FAULTS_IN_A_ROUND {
            let more = soak.random.random_range(5..80);
            traffic_goes_on(&soak.world, more).await;
            done.push(soak.fault().await);
        }
        load.stop().await;
        faults += done.len();
        println!("{:>5} s, round {round}: {}", begun.elapsed().as_secs(), done.join(", "));
        soak.check().await;
    }
    println!("{faults} faults in {round} rounds: every document and every key of the log is right");
    for place in &mut soak.places {
        let stopped = place.daemon.take().expect("it runs").stop().await;
        assert!(stopped.success(), "SIGTERM drains and exits 0: {stopped}");
    }
}
