//! What Postgres' own processes cost, by whose they are: the daemon's connections and its WAL
//! sender beside the application's.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::bed::cpu_seconds;

/// CPU seconds so far of the backends that serve a database, by process id.
#[derive(Debug, Default)]
pub struct Backends(BTreeMap<u32, (String, f64)>);

impl Backends {
    pub async fn now(client: &Client) -> Self {
        let sql = "SELECT pid, CASE backend_type WHEN 'walsender' THEN backend_type \
                   ELSE application_name END FROM pg_stat_activity \
                   WHERE datname = current_database()";
        let rows = client.query(sql, &[]).await.unwrap();
        let of_row = |row: tokio_postgres::Row| {
            let (pid, name): (i32, String) = (row.get(0), row.get(1));
            let pid = u32::try_from(pid).unwrap();
            Some((pid, (name, cpu_seconds(pid)?)))
        };
        Self(rows.into_iter().filter_map(of_row).collect())
    }

    /// What each kind of backend has cost since `before`. Those that ended meanwhile are missing.
    pub fn since(&self, before: &Self) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for (pid, (name, seconds)) in &self.0 {
            let earlier = before.0.get(pid).map_or(0.0, |it| it.1);
            *sums.entry(name.clone()).or_insert(0.0) += seconds - earlier;
        }
        sums
    }
}
