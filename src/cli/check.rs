//! `onelog check`: everything that would keep the daemon from its work, each finding with its
//! cure. One thing that is wrong does not hide the others.

pub mod mappings;
pub mod servers;

use std::io::Write;
use std::path::Path;

use crate::cli::CommandError;
use crate::config::file::{LoadError, load};
use crate::mapping::catalog;

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
}

fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n         ")
}

/// Checks the config and the mapping files, and unless `offline` the servers too. Exit code 1 if
/// anything is wrong.
pub async fn check(path: &Path, offline: bool, out: &mut dyn Write) -> Result<u8, CommandError> {
    let mut findings = Findings { out, wrong: 0 };
    let config = match load(path) {
        Ok(config) => config,
        Err(LoadError::Mistakes(mistakes)) => {
            for mistake in &mistakes.0 {
                findings.wrong(&mistake.to_string())?;
            }
            return Ok(1);
        }
        Err(error) => return Err(error.into()),
    };
    findings.fine(&format!("config {}", path.display()))?;
    let folder = &config.translate.mappings;
    let loaded = match catalog::load_folder(folder, &catalog::KnownFiles::new()) {
        Ok(loaded) => Some(loaded),
        Err(error) => {
            let folder = folder.display();
            findings.wrong(&format!(
                "mapping folder {folder}: {error}; create it, or change [translate] mappings"
            ))?;
            None
        }
    };
    if let Some(loaded) = &loaded {
        for mistake in &loaded.mistakes {
            findings.wrong(&mistake.to_string())?;
        }
        let count = loaded.collections.len();
        findings.fine(&format!("{count} collections in {}", folder.display()))?;
    }
    if !offline {
        let client = servers::postgres(&config, &mut findings).await?;
        servers::kafka(&config, &mut findings).await?;
        servers::elasticsearch(&config, &mut findings).await?;
        if let (Some(client), Some(loaded)) = (client, &loaded) {
            mappings::check(&config, &client, &loaded.collections, &mut findings).await?;
        }
    }
    let wrong = findings.wrong;
    if wrong > 0 {
        writeln!(findings.out, "\n{wrong} to mend")?;
    }
    Ok(u8::from(wrong > 0))
}
