//! What `check` says of standbys: whether capture can go on after one of them is promoted.
//!
//! Only the primary is asked: what a standby itself must be set to is said, not seen.

use crate::cli::check::Findings;
use crate::config::Config;
use crate::postgres::client::Client;
use crate::postgres::query_error::QueryError;
use crate::postgres::slot::SlotState;

type Written = std::io::Result<()>;

/// Physical slots, through which standbys stream, and what the primary waits for.
struct Standbys {
    slots: Vec<Standby>,
    /// Names in synchronized_standby_slots.
    synchronized: Vec<String>,
    version: i32,
}

struct Standby {
    slot: String,
    active: bool,
    feedback: bool,
}

/// The outer result is about the output, the inner about Postgres.
pub async fn check(
    config: &Config,
    client: &Client,
    state: &SlotState,
    findings: &mut Findings<'_>,
) -> std::io::Result<Result<(), QueryError>> {
    match ask(client).await {
        Ok(standbys) => say(config, &standbys, state, findings).map(Ok),
        Err(error) => Ok(Err(error)),
    }
}

async fn ask(client: &Client) -> Result<Standbys, QueryError> {
    let failed = QueryError::while_doing("read what standbys there are");
    let sql = "SELECT current_setting('server_version_num')::int, \
               coalesce(current_setting('synchronized_standby_slots', true), '')";
    let row = client.query_one(sql, &[]).await.map_err(&failed)?;
    let list: String = row.get(1);
    let names = list.split(',').map(|it| it.trim().trim_matches('"').to_owned());
    let slots = "SELECT slot_name::text, active, xmin IS NOT NULL FROM pg_replication_slots \
                 WHERE slot_type = 'physical' AND NOT temporary ORDER BY 1";
    let rows = client.query(slots, &[]).await.map_err(&failed)?;
    let standby = |it: &tokio_postgres::Row| Standby {
        slot: it.get(0),
        active: it.get(1),
        feedback: it.get(2),
    };
    Ok(Standbys {
        slots: rows.iter().map(standby).collect(),
        synchronized: names.filter(|it| !it.is_empty()).collect(),
        version: row.get(0),
    })
}

fn say(
    config: &Config,
    standbys: &Standbys,
    state: &SlotState,
    findings: &mut Findings<'_>,
) -> Written {
    let Standbys { slots, synchronized, version } = standbys;
    let name = &state.name;
    if *version < 170_000 {
        return match slots.is_empty() {
            true => Ok(()),
            false => findings.warning(
                "this Postgres can't keep a logical slot over a promotion (17 and later can): after \
                 one, capture needs `onelog prepare --adopt-slot`",
            ),
        };
    }
    // A primary waits for these before it sends anything, also if they are away.
    for missing in synchronized {
        let found = slots.iter().find(|it| it.slot == *missing);
        if !found.is_some_and(|it| it.active) {
            findings.wrong(&format!(
                "synchronized_standby_slots names {missing}, through which no standby streams: \
                 capture gets no change until one does; start it, or run: ALTER SYSTEM SET \
                 synchronized_standby_slots = ''; SELECT pg_reload_conf();"
            ))?;
        }
    }
    if !config.postgres.slot_failover {
        return Ok(());
    }
    if state.failover == Some(false) {
        findings.warning(&format!(
            "standbys don't copy slot {name}; stop the daemon and run `onelog prepare`"
        ))?;
    }
    for standby in slots {
        let slot = &standby.slot;
        if !synchronized.contains(slot) {
            findings.warning(&format!(
                "the log may get changes that the standby of slot {slot} lacks, and keep them if it \
                 is promoted; if it may be, run: ALTER SYSTEM SET synchronized_standby_slots = \
                 '{slot}'; SELECT pg_reload_conf();"
            ))?;
        }
        if standby.active && !standby.feedback {
            findings.warning(&format!(
                "the standby of slot {slot} can't keep a copy of slot {name}: it needs, in its \
                 postgresql.conf:\nhot_standby_feedback = on\nsync_replication_slots = on\n\
                 primary_slot_name = '{slot}'\nand dbname= in primary_conninfo"
            ))?;
        }
    }
    if state.failover == Some(true) {
        findings.fine(&format!(
            "slot {name} goes on after a promotion: standbys with sync_replication_slots = on copy it"
        ))?;
    }
    Ok(())
}
