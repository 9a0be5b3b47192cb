//! Random traffic on the sample application: inserts, updates (of keys and foreign keys too),
//! deletes, in transactions over several tables, from several connections. Seeded.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::world::connect;

const COMPANY: &str = "(SELECT id FROM company_profile ORDER BY md5(id::text || $1::text) LIMIT 1)";
const ADVISOR: &str = "(SELECT id FROM advisor_profile ORDER BY md5(id::text || $1::text) LIMIT 1)";
const INVESTOR: &str =
    "(SELECT id FROM investor_profile ORDER BY md5(id::text || $1::text) LIMIT 1)";

/// A statement with one parameter: a text that makes its choices random but repeatable.
fn statements() -> Vec<String> {
    let any = |table: &str| {
        format!("(SELECT id FROM {table} ORDER BY md5(id::text || $1::text || 'x') LIMIT 1)")
    };
    vec![
        // What a person does.
        "INSERT INTO company_profile (id, name, clean_name) \
         VALUES (md5($1)::uuid, 'Ünïque \"' || $1 || '\"', $1)".to_owned(),
        "INSERT INTO advisor_profile (id, name) VALUES (md5('a' || $1)::uuid, 'Advisor ' || $1)".to_owned(),
        "INSERT INTO investor_profile (id, name) VALUES (md5('i' || $1)::uuid, $1)".to_owned(),
        format!("UPDATE company_profile SET name = 'Renamed ' || $1 WHERE id = {COMPANY}"),
        format!("UPDATE company_profile SET name = CASE length($1) % 2 WHEN 0 THEN NULL ELSE '' END WHERE id = {COMPANY}"),
        format!("UPDATE investor_profile SET name = 'Fund ' || $1, fund_size = fund_size * 1.01 WHERE id = {INVESTOR}"),
        format!("UPDATE advisor_profile SET name = 'A. ' || $1 WHERE id = {ADVISOR}"),
        format!("INSERT INTO company_websites (id, profile_id, url) SELECT md5('w' || $1)::uuid, id, 'https://' || $1 FROM (SELECT {COMPANY} AS id) c WHERE id IS NOT NULL"),
        format!("INSERT INTO company_board_members (id, profile_id, full_name, role) SELECT md5('b' || $1)::uuid, id, $1, 'chair' FROM (SELECT {COMPANY} AS id) c WHERE id IS NOT NULL"),
        format!("INSERT INTO advisor_former_name (advisor_profile_id, name) SELECT id, $1 FROM (SELECT {ADVISOR} AS id) c WHERE id IS NOT NULL"),
        format!("INSERT INTO company_advisors (profile_id, advisor_profile_id) SELECT c, a FROM (SELECT {COMPANY} AS c, {ADVISOR} AS a) p WHERE c IS NOT NULL AND a IS NOT NULL ON CONFLICT DO NOTHING"),
        format!("INSERT INTO investment_round (profile_id, stage, target_amount) SELECT id, $1, 1000.50 FROM (SELECT {COMPANY} AS id) c WHERE id IS NOT NULL"),
        format!("INSERT INTO company_investors (id, profile_id, investor_profile_id, investment_round_id, amount, invested_at) SELECT md5('ci' || $1)::uuid, c, i, {}, 12.30, '2026-01-01' FROM (SELECT {COMPANY} AS c, {INVESTOR} AS i) p WHERE c IS NOT NULL AND i IS NOT NULL", any("investment_round")),
        // Rows that move from one document to another.
        format!("UPDATE company_websites SET profile_id = coalesce({COMPANY}, profile_id) WHERE id = {}", any("company_websites")),
        format!("UPDATE company_board_members SET profile_id = coalesce({COMPANY}, profile_id) WHERE id = {}", any("company_board_members")),
        format!("UPDATE company_investors SET investor_profile_id = coalesce({INVESTOR}, investor_profile_id), amount = amount + 1 WHERE id = {}", any("company_investors")),
        format!("UPDATE company_investors SET profile_id = coalesce({COMPANY}, profile_id) WHERE id = {}", any("company_investors")),
        format!("UPDATE advisor_former_name SET advisor_profile_id = coalesce({ADVISOR}, advisor_profile_id) WHERE id = {}", any("advisor_former_name")),
        format!("UPDATE company_profile SET industry_id = {} WHERE id = {COMPANY}", any("industry")),
        // Keys.
        format!("UPDATE company_profile SET id = md5('new' || $1)::uuid WHERE id = {COMPANY}"),
        format!("UPDATE investor_profile SET id = md5('newi' || $1)::uuid WHERE id = {INVESTOR}"),
        format!("UPDATE company_websites SET id = md5('neww' || $1)::uuid WHERE id = {}", any("company_websites")),
        // Lookups, with many documents behind them.
        format!("UPDATE industry SET name = 'Industry ' || $1 WHERE id = {}", any("industry")),
        "UPDATE country SET region = 'Region ' || $1 WHERE code = (SELECT min(code) FROM country WHERE md5(code || $1) > '8')".to_owned(),
        format!("UPDATE investment_round SET closed = NOT closed WHERE id = {}", any("investment_round")),
        // Ends.
        format!("DELETE FROM company_profile WHERE id = {COMPANY}"),
        format!("DELETE FROM company_websites WHERE id = {}", any("company_websites")),
        format!("DELETE FROM company_investors WHERE id = {}", any("company_investors")),
        format!("DELETE FROM advisor_former_name WHERE id = {}", any("advisor_former_name")),
        format!("DELETE FROM investor_profile WHERE id = {INVESTOR} AND length($1) % 3 = 0"),
    ]
}

/// `transactions` of 1 to 5 statements each; some are rolled back. Deadlocks and lost connections
/// end a transaction and not the traffic: the application would repeat it, and so does this.
pub async fn run(url: &str, seed: u64, transactions: usize) {
    let statements = statements();
    let mut random = StdRng::seed_from_u64(seed);
    let mut connection: Option<(Client, JoinSet<()>)> = None;
    for nth in 0..transactions {
        let count = random.random_range(1..=5);
        let chosen: Vec<&String> =
            (0..count).map(|_| statements.choose(&mut random).expect("a statement")).collect();
        let roll_back = random.random_bool(0.1);
        if connection.as_ref().is_none_or(|(client, _)| client.is_closed()) {
            connection = reconnect(url).await;
        }
        let Some((client, _)) = &connection else { continue };
        let outcome = transaction(client, &chosen, &format!("{seed}-{nth}"), roll_back).await;
        if outcome.is_err() && client.batch_execute("ROLLBACK").await.is_err() {
            connection = None;
        }
    }
}

async fn reconnect(url: &str) -> Option<(Client, JoinSet<()>)> {
    Some(
        super::eventually("Postgres answers", super::world::PATIENCE, || async {
            let (client, connection) =
                tokio_postgres::connect(url, tokio_postgres::NoTls).await.ok()?;
            let mut driver = JoinSet::new();
            driver.spawn(async move { drop(connection.await) });
            Some((client, driver))
        })
        .await,
    )
}

async fn transaction(
    client: &Client,
    statements: &[&String],
    salt: &str,
    roll_back: bool,
) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("BEGIN; SET CONSTRAINTS ALL DEFERRED").await?;
    for (nth, statement) in statements.iter().enumerate() {
        let typed = statement.replace("$1", "$1::text").replace("::text::text", "::text");
        client.execute(&typed, &[&format!("{salt}-{nth}")]).await?;
    }
    client.batch_execute(if roll_back { "ROLLBACK" } else { "COMMIT" }).await
}

/// The same from several connections at once.
pub async fn run_all(url: &str, seed: u64, connections: u64, transactions: usize) {
    let mut running = JoinSet::new();
    for nth in 0..connections {
        let url = url.to_owned();
        running.spawn(async move { run(&url, seed * 100 + nth, transactions).await });
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("traffic does not panic");
    }
}

/// Traffic from several connections that goes on until it is stopped.
pub struct Load {
    stopped: CancellationToken,
    running: JoinSet<()>,
}

impl Load {
    pub fn start(url: &str, seed: u64, connections: u64) -> Self {
        let stopped = CancellationToken::new();
        let mut running = JoinSet::new();
        for nth in 0..connections {
            let (url, stopped) = (url.to_owned(), stopped.clone());
            running.spawn(async move {
                let mut seed = (seed * 100 + nth) * 10_000;
                while !stopped.is_cancelled() {
                    run(&url, seed, 5).await;
                    seed += 1;
                }
            });
        }
        Self { stopped, running }
    }

    /// Lets every connection end its transaction.
    pub async fn stop(mut self) {
        self.stopped.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended.expect("traffic does not panic");
        }
    }
}

/// One statement as an application would run it.
pub async fn execute(url: &str, sql: &str) {
    let (client, _connection) = connect(url).await;
    client.batch_execute(sql).await.expect("the statement runs");
}
