//! What `check` asks of the three servers.

use crate::capture::{declared, wanted_topics};
use crate::causes::with_causes;
use crate::cli::check::{Findings, failover};
use crate::config::{Config, KafkaConfig};
use crate::elasticsearch::client::Elasticsearch;
use crate::kafka::brokers::transaction_timeout_max;
use crate::kafka::progress_record;
use crate::kafka::topics::{TopicAction, WantedTopic, ensure_topics};
use crate::postgres::client::{self, Client};
use crate::postgres::{publication, slot};

type Written = std::io::Result<()>;

/// Postgres: settings, privileges, publication, slot. None if it can't be reached.
pub async fn postgres(
    config: &Config,
    findings: &mut Findings<'_>,
) -> std::io::Result<Option<Client>> {
    let postgres = &config.postgres;
    let client = match client::connect(&postgres.url, "onelog check").await {
        Ok(client) => client,
        Err(error) => {
            let url = &postgres.url;
            findings.wrong(&format!("Postgres at {url}: {}", with_causes(&error)))?;
            return Ok(None);
        }
    };
    if let Err(error) = settings(&client, findings).await? {
        findings.wrong(&format!("Postgres at {}: {error}", postgres.url))?;
        return Ok(None);
    }
    publication_and_slot(config, &client, findings).await?;
    Ok(Some(client))
}

/// The outer result is about the output, the inner about Postgres.
async fn settings(
    client: &Client,
    findings: &mut Findings<'_>,
) -> std::io::Result<Result<(), tokio_postgres::Error>> {
    let sql = "SELECT current_setting('server_version'), current_setting('wal_level'), \
               pg_is_in_recovery(), r.rolreplication OR r.rolsuper, r.rolname::text, \
               current_database()::text, \
               has_database_privilege(current_database(), 'TEMP'), \
               current_setting('server_version_num')::int \
               FROM pg_roles r WHERE r.rolname = current_user";
    let row = match client.query_one(sql, &[]).await {
        Ok(row) => row,
        Err(error) => return Ok(Err(error)),
    };
    let (version, wal_level): (String, String) = (row.get(0), row.get(1));
    let (recovery, replication, temp): (bool, bool, bool) = (row.get(2), row.get(3), row.get(6));
    let (role, database, number): (String, String, i32) = (row.get(4), row.get(5), row.get(7));
    if number < 140_000 {
        findings.wrong(&format!("Postgres {version} is too old; onelog needs 14 or newer"))?;
    } else {
        findings.fine(&format!("Postgres {version}, database {database}, role {role}"))?;
    }
    if wal_level != "logical" {
        findings.wrong(&format!(
            "wal_level is {wal_level}; run: ALTER SYSTEM SET wal_level = 'logical'; then restart \
             Postgres"
        ))?;
    }
    if recovery {
        findings.wrong("this server is a standby; point [postgres] url to the primary")?;
    }
    if !replication {
        findings.wrong(&format!(
            "role {role} may not replicate; run as superuser: ALTER ROLE \"{role}\" REPLICATION;"
        ))?;
    }
    if !temp {
        findings.wrong(&format!(
            "role {role} may not create temporary views, by which Postgres resolves the mappings' \
             names; run: GRANT TEMP ON DATABASE \"{database}\" TO \"{role}\";"
        ))?;
    }
    Ok(Ok(()))
}

async fn publication_and_slot(
    config: &Config,
    client: &Client,
    findings: &mut Findings<'_>,
) -> Written {
    let postgres = &config.postgres;
    let name = &postgres.publication_name;
    match publication::verify(client, name).await {
        Err(error) => findings.wrong(&with_causes(&error))?,
        Ok(()) => match publication::ensure(client, name, &config.published_tables(), true).await {
            Ok(missing) if missing.is_empty() => {
                findings
                    .fine(&format!("publication {name} has every table of [postgres] tables"))?;
            }
            Ok(missing) => {
                let statements = missing.join(";\n");
                let text = format!("publication {name} lacks tables; run `onelog prepare`, or:");
                findings.wrong(&format!("{text}\n{statements};"))?;
            }
            Err(error) => findings.wrong(&with_causes(&error))?,
        },
    }
    let slot_name = &postgres.slot_name;
    let state = match slot::inspect(client, slot_name).await {
        Ok(state) => state,
        Err(error) => return findings.wrong(&with_causes(&error)),
    };
    if let Some(state) = &state
        && let Err(error) = failover::check(config, client, state, findings).await?
    {
        findings.wrong(&with_causes(&error))?;
    }
    match slot::check(slot_name, &postgres.url.database, state.as_ref()) {
        Err(error) => findings.wrong(&with_causes(&error)),
        Ok(confirmed) => {
            let record = progress_record::read_all(&config.kafka).await;
            let record = record.ok().flatten().and_then(|it| it.slots.get(slot_name).cloned());
            match record {
                Some(record) if record.lsn < confirmed => findings.wrong(&format!(
                    "slot {slot_name} is at {confirmed}, but changes since {} are not published: \
                     someone moved or re-created it; run `onelog prepare --adopt-slot`, which also has every collection swept",
                    record.lsn
                )),
                Some(_) => findings.fine(&format!("slot {slot_name}, confirmed to {confirmed}")),
                None => findings.wrong(&format!(
                    "there is no progress record for slot {slot_name} in Kafka; run `onelog \
                     prepare`"
                )),
            }
        }
    }
}

/// Kafka: reachable, and its topics as wanted, as far as Postgres tells which these are.
pub async fn kafka(
    config: &Config,
    client: Option<&Client>,
    findings: &mut Findings<'_>,
) -> Written {
    let own = WantedTopic::of_the_daemon(&config.kafka);
    let known = match client {
        Some(client) => wanted_topics(config, client).await.ok(),
        None => None,
    };
    // Why the publication can't be read has been said where it was looked at.
    let wanted = known.unwrap_or_else(|| own.to_vec());
    match ensure_topics(&config.kafka, &wanted, true).await {
        Err(error) => {
            findings.wrong(&format!(
                "Kafka at {}: {}; check [kafka] brokers, and that the broker runs",
                config.kafka.brokers,
                with_causes(&error)
            ))?;
        }
        Ok(actions) => {
            findings.fine(&format!("Kafka at {}", config.kafka.brokers))?;
            transactions(&config.kafka, findings).await?;
            for action in actions {
                match action {
                    TopicAction::Fine { .. } => {}
                    TopicAction::Created { topic } if own.iter().any(|it| it.name == topic) => {
                        findings
                            .wrong(&format!("topic {topic} is missing; run `onelog prepare`"))?;
                    }
                    TopicAction::Created { topic } => findings.warning(&format!(
                        "topic {topic} is not there yet; `onelog prepare` creates it, or the daemon"
                    ))?,
                    TopicAction::Drift { warning, .. } => findings.warning(&warning)?,
                }
            }
        }
    }
    Ok(())
}

/// The tables are as `[[topics]]` needs them.
pub async fn declared_topics(
    config: &Config,
    client: &Client,
    findings: &mut Findings<'_>,
) -> Written {
    // That the publication can't be read has been said.
    for mistake in declared::mistakes(config, client).await.unwrap_or_default() {
        findings.wrong(&mistake)?;
    }
    Ok(())
}

/// Whether the brokers allow the transactions that `delivery = "exactly-once"` needs. Taking the
/// transactional id would fence a running daemon, so that nobody tries that here.
async fn transactions(config: &KafkaConfig, findings: &mut Findings<'_>) -> Written {
    let Some(wanted) = config.transactions().map(|it| it.timeout) else { return Ok(()) };
    let shown = humantime::format_duration;
    match transaction_timeout_max(config).await {
        Ok(Some(most)) if most < wanted => findings.wrong(&format!(
            "transaction_timeout is {}, but Kafka allows {}; lower it in [kafka], or raise \
             transaction.max.timeout.ms of the brokers",
            shown(wanted),
            shown(most)
        )),
        Ok(_) => {
            let text = "exactly-once: Kafka transactions of up to";
            findings.fine(&format!("{text} {}", shown(wanted)))
        }
        Err(error) => findings.warning(&format!(
            "can't read transaction.max.timeout.ms of the brokers ({error}); transaction_timeout \
             must not exceed it"
        )),
    }
}

/// Elasticsearch: reachable, and of a version that we know.
pub async fn elasticsearch(config: &Config, findings: &mut Findings<'_>) -> Written {
    let url = &config.elasticsearch.url;
    let elastic = match Elasticsearch::new(&config.elasticsearch) {
        Ok(elastic) => elastic,
        Err(error) => return findings.wrong(&format!("[elasticsearch]: {}", with_causes(&error))),
    };
    match elastic.info().await {
        Ok(info) => findings.fine(&format!("{:?} {} at {url}", info.distribution, info.version)),
        Err(error) => findings.wrong(&format!(
            "Elasticsearch at {url}: {}; check [elasticsearch] url, and that it runs",
            with_causes(&error)
        )),
    }
}
