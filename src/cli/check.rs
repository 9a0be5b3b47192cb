//! `onelog check`: everything that would keep the daemon from its work, each finding with its
//! cure. One thing that is wrong does not hide the others.

mod failover;
pub mod files;
mod gateway;
pub mod indices;
pub mod mappings;
mod outbox;
pub mod servers;

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::causes::with_causes;
use crate::cli::CommandError;
use crate::cli::pointer::pointed;
use crate::config::Config;
use crate::config::file::{LoadError, load};
use crate::mapping::Collection;
use crate::mistake::Mistake;
use crate::postgres::client;

/// What a check has said so far.
pub struct Findings<'a> {
    out: &'a mut dyn Write,
    wrong: usize,
}

impl Findings<'_> {
    /// Something is as it should be.
    pub fn fine(&mut self, what: &str) -> std::io::Result<()> {
        writeln!(self.out, "ok       {what}")
    }

    /// Something works, but a person should know.
    pub fn warning(&mut self, what: &str) -> std::io::Result<()> {
        writeln!(self.out, "warning  {}", indented(what))
    }

    /// Something is wrong; `what` says the cure.
    pub fn wrong(&mut self, what: &str) -> std::io::Result<()> {
        self.wrong += 1;
        writeln!(self.out, "WRONG    {}", indented(what))
    }

    /// A mistake in a file, with its line.
    pub fn mistake(&mut self, mistake: &Mistake) -> std::io::Result<()> {
        self.wrong(&pointed(mistake))
    }

    /// A warning at a place in a file.
    pub fn warning_at(&mut self, mistake: &Mistake) -> std::io::Result<()> {
        self.warning(&pointed(mistake))
    }
}

fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n         ")
}

/// What `check` is to look at.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// The files alone, without connecting to anything.
    pub offline: bool,
    /// These mapping files alone, and of the servers only Postgres; empty: everything.
    pub files: &'a [PathBuf],
}

/// Checks the config and the mapping files, and unless offline the servers too. Exit code 1 if
/// anything is wrong.
pub async fn check(path: &Path, scope: Scope<'_>, out: &mut dyn Write) -> Result<u8, CommandError> {
    let mut findings = Findings { out, wrong: 0 };
    match load(path) {
        Ok(config) => {
            findings.fine(&format!("config {}", path.display()))?;
            let collections = match scope.files {
                [] => files::folder(&config, &mut findings)?,
                some => files::some(&config, some, &mut findings)?,
            };
            if scope.files.is_empty() {
                gateway::check(&config, &collections, &mut findings)?;
            }
            match (scope.offline, scope.files) {
                (true, _) => {}
                (false, []) => whole(&config, &collections, &mut findings).await?,
                (false, _) => online(&config, &collections, &mut findings).await?,
            }
        }
        Err(LoadError::Mistakes(mistakes)) => {
            for mistake in &mistakes.0 {
                findings.mistake(mistake)?;
            }
        }
        Err(error) => return Err(error.into()),
    }
    let wrong = findings.wrong;
    if wrong > 0 {
        writeln!(findings.out, "\n{wrong} to mend")?;
    }
    Ok(u8::from(wrong > 0))
}

/// The servers, and all mappings.
async fn whole(
    config: &Config,
    collections: &[Collection],
    findings: &mut Findings<'_>,
) -> std::io::Result<()> {
    let client = servers::postgres(config, findings).await?;
    servers::kafka(config, client.as_ref(), findings).await?;
    if let Some(client) = &client {
        servers::declared_topics(config, client, findings).await?;
    }
    servers::elasticsearch(config, findings).await?;
    indices::check(config, findings).await?;
    match client {
        Some(client) => {
            outbox::check(config, &client, findings).await?;
            mappings::check(config, &client, collections, findings).await
        }
        None => Ok(()),
    }
}

/// Some mappings, for which Postgres alone has to answer.
async fn online(
    config: &Config,
    collections: &[Collection],
    findings: &mut Findings<'_>,
) -> std::io::Result<()> {
    match client::connect(&config.postgres.url, "onelog check").await {
        Ok(client) => mappings::check(config, &client, collections, findings).await,
        Err(error) => {
            let url = &config.postgres.url;
            findings.wrong(&format!("Postgres at {url}: {}", with_causes(&error)))
        }
    }
}
