//! The commands of the command line, as values; `cli/` has one file a command.
//!
//! A command writes what it finds to `out` and returns an exit code: 0 fine, 1 a finding or a
//! failure. Usage errors are clap's and exit with 2.

pub mod account;
pub mod check;
pub mod copy;
pub mod explain;
pub mod indices;
pub mod pointer;
pub mod prepare;
pub mod preview;
pub mod run;
pub mod schema;
pub mod selection;
pub mod status;

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::file::{LoadError, load};
use crate::config::{LogConfig, LogFormat};
use crate::mapping::resolve::ResolveError;
use crate::mistake::Mistakes;

#[derive(Debug, Parser)]
#[command(name = "onelog", version, about, long_about = None, arg_required_else_help = true)]
pub struct Arguments {
    /// The config file.
    #[arg(long, global = true, default_value = "config.toml", value_name = "FILE")]
    pub config: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the daemon until SIGTERM, which drains it. SIGHUP rereads the mapping files.
    Run {
        /// Runs only these roles; all by default.
        #[arg(long, value_delimiter = ',', value_name = "ROLE")]
        only: Vec<Role>,
    },
    /// Looks for everything that would keep the daemon from its work, and says how to cure it.
    Check {
        /// Looks at the files alone, without connecting to anything.
        #[arg(long)]
        offline: bool,
        /// Looks at these mapping files alone, with Postgres' help unless --offline.
        #[arg(value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Creates what the daemon needs: publication, topics, slot. Says what it does.
    Prepare {
        /// Says what would be done, and does nothing.
        #[arg(long)]
        dry_run: bool,
        /// Takes the slot as it is, although changes between our last record and the slot's
        /// position are not in the log. Copy the tables again afterwards.
        #[arg(long)]
        adopt_slot: bool,
    },
    /// Explains which changes touch the documents of a mapping file, and how.
    Explain {
        /// A mapping file.
        file: PathBuf,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Has the running daemon copy a table into the log, beside the live changes, and watches.
    /// Exits with 1 if that is refused, or somebody cancels it.
    #[command(group = clap::ArgGroup::new("wish").multiple(false))]
    Copy {
        /// The table, as schema.table; a partitioned one by its root.
        table: String,
        /// Only rows for which this SQL condition is true, such as "created_at > '2026-01-01'".
        #[arg(long = "where", value_name = "SQL", conflicts_with = "wish")]
        condition: Option<String>,
        /// Has the copy stand still until --resume, also if the daemon is restarted.
        #[arg(long, group = "wish")]
        pause: bool,
        /// Has a paused copy go on where it was.
        #[arg(long, group = "wish")]
        resume: bool,
        /// Ends the copy. What is published stays.
        #[arg(long, group = "wish")]
        cancel: bool,
        /// Does not watch the copy.
        #[arg(long)]
        no_wait: bool,
    },
    /// Asks the running daemon how it is. Exits with 1 if something is not live, or nobody answers.
    Status {
        /// Prints what the daemon answers, as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints the documents of one key as they would be written, without writing them.
    Preview {
        /// A mapping file.
        file: PathBuf,
        /// The document's key.
        #[arg(long)]
        key: String,
        /// Prints what differs from the live document instead; exit code 1 if anything does.
        #[arg(long)]
        diff: bool,
        /// Says on standard error how long each entry's query takes.
        #[arg(long)]
        timings: bool,
    },
    /// Prints the JSON Schema of mapping files, by which editors complete and check them.
    Schema,
    /// Fills a new index of a collection from Postgres, beside the one that serves, and swaps.
    Rebuild { collection: String },
    /// Goes back to the index that served a collection before, until its mapping file changes.
    Rollback {
        collection: String,
        /// Which index; the one before by default.
        #[arg(long, value_name = "INDEX")]
        to: Option<String>,
        /// Serves it at once, with the documents as of when it was replaced, and only then brings
        /// them up to date.
        #[arg(long)]
        now: bool,
    },
    /// Deletes the alias and the indices of a collection that no mapping file speaks of any more.
    Drop {
        collection: String,
        /// Says what would be deleted, and deletes nothing.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Postgres to Kafka.
    Capture,
    /// Kafka to Elasticsearch.
    Translate,
    /// Browsers to Kafka, and documents to browsers. Needs [gateway] in the config.
    Gateway,
}

/// What ended a command early. The message names what to change.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error(transparent)]
    Config(#[from] LoadError),
    #[error("the mapping cannot be used:\n\n{}", pointer::all_pointed(.0))]
    Mapping(Mistakes),
    #[error("--only gateway needs a section [gateway] in the config")]
    NoGateway,
    #[error("cannot write the output")]
    Output(#[from] std::io::Error),
    #[error("{doing}")]
    Failed {
        doing: String,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl CommandError {
    /// What keeps a mapping's SQL from being used.
    pub fn resolving(error: ResolveError) -> Self {
        match error {
            ResolveError::Mistakes(mistakes) => Self::Mapping(mistakes),
            other => Self::failed("the SQL cannot be used", other),
        }
    }

    pub fn failed(doing: impl Into<String>, source: impl Error + Send + Sync + 'static) -> Self {
        Self::Failed { doing: doing.into(), source: Box::new(source) }
    }
}

/// Runs one command; returns its exit code.
pub async fn execute(arguments: Arguments, out: &mut dyn Write) -> Result<u8, CommandError> {
    let path = &arguments.config;
    if let Command::Check { offline, files } = &arguments.command {
        return check::check(path, check::Scope { offline: *offline, files }, out).await;
    }
    if let Command::Schema = arguments.command {
        return schema::schema(out);
    }
    let config = load(path)?;
    match arguments.command {
        Command::Run { only } => {
            start_logging(&config.log);
            run::run(config, &only).await
        }
        Command::Prepare { dry_run, adopt_slot } => {
            prepare::prepare(&config, dry_run, adopt_slot, out).await
        }
        Command::Copy { table, condition, pause, resume, cancel, no_wait } => {
            let wish = match (pause, resume, cancel) {
                (true, _, _) => "pause",
                (_, true, _) => "resume",
                (_, _, true) => "cancel",
                (false, false, false) => "start",
            };
            let condition = condition.as_deref();
            let wanted = copy::Wanted { table: &table, wish, condition, wait: !no_wait };
            copy::copy(&config, wanted, out).await
        }
        Command::Status { json } => status::status(&config, json, out).await,
        Command::Explain { file, json } => explain::explain(&config, &file, json, out).await,
        Command::Preview { file, key, diff, timings } => {
            let wanted = preview::Wanted { file: &file, key: &key, diff, timings };
            preview::preview(&config, wanted, out).await
        }
        Command::Rebuild { collection } => indices::rebuild(&config, &collection, out).await,
        Command::Rollback { collection, to, now } => {
            indices::rollback(&config, &collection, (to.as_deref(), now), out).await
        }
        Command::Drop { collection, dry_run } => {
            indices::drop(&config, &collection, dry_run, out).await
        }
        Command::Check { .. } | Command::Schema => unreachable!("handled above"),
    }
}

/// Logs to standard error. `RUST_LOG` wins over the config.
fn start_logging(log: &LogConfig) {
    use tracing_subscriber::EnvFilter;

    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| log.level.clone());
    // tokio-postgres logs statement parameters at debug: those are the users' data.
    let filter = EnvFilter::new(format!("{wanted},tokio_postgres=info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    // Only a second call fails, and a process runs one command.
    debug_assert!(started.is_ok());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
