//! Any SQL kept live, on the real servers: random tables, random SQL of the shapes that people
//! write, random transactions from several connections; at each quiet point the documents of
//! every collection with a path equal its SQL from scratch.
//!
//! Audit and polling are off, so that nothing but key paths keeps the documents right. What has
//! no path is left out, and counted. A round is a database, a daemon and a folder of collections.
//! Size: ONELOG_TEST_ANYSQL_ROUNDS (1), ONELOG_TEST_ANYSQL_COLLECTIONS (75, every shape, a round),
//! ONELOG_TEST_ANYSQL_PHASES (3 quiet points), ONELOG_TEST_SEED (1).

#![allow(clippy::unwrap_used, reason = "a test that fails may panic")]
#![allow(clippy::print_stdout, reason = "what was covered is part of the answer")]

mod support;

#[path = "anysql/shapes.rs"]
mod shapes;
#[path = "anysql/tables.rs"]
mod tables;

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use shapes::{SHAPES, Sql};
use support::world::{Wishes, World};
use tables::Tables;
use tokio::task::JoinSet;

fn size(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|it| it.parse().ok()).unwrap_or(usual)
}

/// A collection as a mapping file.
fn file(name: &str, sql: &str) -> String {
    let text = sql.replace('\\', "\\\\");
    format!(
        "[[denormalization]]\ncollection_name = \"{name}\"\nkey_to_denormalize_upon = \"k\"\n\
         sql = \"\"\"\n{text}\n\"\"\"\n"
    )
}

/// Writes the collections, one file each; the shapes of each by its name.
///
/// Whatever polls is taken out again: `explain` is asked, as a person would.
fn write_mappings(
    world: &World,
    tables: &Tables,
    seed: u64,
) -> BTreeMap<String, Vec<&'static str>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut kept = BTreeMap::new();
    let wanted = size("ONELOG_TEST_ANYSQL_COLLECTIONS", 75);
    for nth in 0..wanted {
        // Every shape in turn, so that none depends on luck.
        let shape = SHAPES[usize::try_from(nth + seed * wanted).unwrap() % SHAPES.len()];
        let sql = Sql { tables, random: &mut random }.of(shape);
        let name = format!("c{nth}");
        let path = world.mappings.join(format!("{name}.toml"));
        std::fs::write(&path, file(&name, &sql)).unwrap();
        let said = world.onelog(&["explain", &path.to_string_lossy()]);
        if said.contains("every change reaches its documents at once") {
            kept.entry(name).or_insert_with(Vec::new).push(shape);
        } else {
            println!("seed {seed}: {shape} polls: {sql}\n{said}");
            std::fs::remove_file(&path).unwrap();
        }
    }
    kept
}

/// How many transactions went through.
async fn traffic(world: &World, tables: &Tables, seed: u64) -> usize {
    let mut running = JoinSet::new();
    for connection in 0..4 {
        let (url, statements) =
            (world.database_url.clone(), tables.transactions(seed * 4 + connection, 25));
        running.spawn(async move {
            let (client, _driver) = support::world::connect(&url).await;
            let mut done = 0;
            for transaction in statements {
                // Constraints and deadlocks refuse some: the application's ordinary life.
                match client.batch_execute(&transaction).await {
                    Ok(()) => done += 1,
                    Err(_) => client.batch_execute("ROLLBACK").await.unwrap(),
                }
            }
            done
        });
    }
    let mut done = 0;
    while let Some(ended) = running.join_next().await {
        done += ended.expect("traffic does not panic");
    }
    done
}

async fn round(seed: u64, covered: &mut BTreeMap<&'static str, u64>) {
    let mut random = StdRng::seed_from_u64(seed);
    let tables = Tables::new(&mut random);
    let setup = tables.create();
    let wishes = Wishes { instead: Some(&setup), ..Wishes::default() };
    let world = World::new("anysql", wishes).await;
    world.onelog(&["prepare"]);
    let kept = write_mappings(&world, &tables, seed);
    let daemon = world.start();
    world.built().await;
    world.check_documents().await;
    for phase in 0..size("ONELOG_TEST_ANYSQL_PHASES", 3) {
        let salt = random.random_range(0..1_000) * 1_000_000 + seed * 1_000 + phase;
        let done = traffic(&world, &tables, salt).await;
        assert!(done > 50, "only {done} of 100 transactions went through");
        world.quiet().await;
        println!("seed {seed}, phase {phase}: quiet after {done} transactions");
        world.check_documents().await;
    }
    kept.values().flatten().for_each(|it| *covered.entry(it).or_default() += 1);
    assert!(daemon.stop().await.success(), "SIGTERM drains and exits 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_sql_is_kept_live() {
    let (rounds, first) = (size("ONELOG_TEST_ANYSQL_ROUNDS", 1), size("ONELOG_TEST_SEED", 1));
    let mut covered = BTreeMap::new();
    for seed in first..first + rounds {
        println!("round with ONELOG_TEST_SEED={seed}");
        round(seed, &mut covered).await;
    }
    let count = |it: &&str| covered.get(*it).copied().unwrap_or_default();
    SHAPES.iter().for_each(|it| println!("  {it}: {}", count(it)));
    let never: Vec<_> = SHAPES.iter().filter(|it| count(it) == 0).collect();
    let all = rounds * size("ONELOG_TEST_ANYSQL_COLLECTIONS", 75);
    assert!(
        never.is_empty() || all < u64::try_from(SHAPES.len()).unwrap(),
        "never had a path: {never:?}"
    );
}
