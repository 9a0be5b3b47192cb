//! STAGE: the files that the gateway goes by besides its config: JSON Schemas of commands and the
//! keys that tokens are checked with. Looked at every second, and read again when they changed.
//!
//! A file with a mistake keeps what was there before. At start there is nothing before: then the
//! gateway is not ready, and says which file it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::config::gateway::GatewayConfig;
use crate::gateway::backplane::BackplaneError;
use crate::gateway::command_schemas::{CommandSchemas, Look, look, look_at};
use crate::gateway::commands::WritePoint;
use crate::gateway::jwt::TokenVerifier;

/// A person who has saved a file looks for its effect about then.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// See the module.
pub struct Files {
    mappings: PathBuf,
    /// Topics that take commands.
    topics: Vec<String>,
    write_point: Arc<WritePoint>,
    tokens: Option<Arc<TokenVerifier>>,
    schemas_seen: Option<Look>,
    keys_seen: Option<Look>,
    keys_loaded: bool,
    /// What keeps the gateway from being ready.
    schemas_trouble: Option<String>,
    keys_trouble: Option<String>,
}

impl Files {
    pub fn new(
        (config, gateway): (&Config, &GatewayConfig),
        write_point: Arc<WritePoint>,
        tokens: Option<&Arc<TokenVerifier>>,
    ) -> Self {
        Self {
            mappings: config.translate.mappings.clone(),
            topics: gateway.commands.iter().map(|it| it.topic.clone()).collect(),
            write_point,
            tokens: tokens.cloned(),
            schemas_seen: None,
            keys_seen: None,
            keys_loaded: false,
            schemas_trouble: None,
            keys_trouble: None,
        }
    }

    /// Looks, and reads what has changed. Blocks. Returns why the gateway is not ready, if so.
    fn look(&mut self) -> Option<String> {
        self.look_at_schemas();
        self.look_at_keys();
        self.schemas_trouble.clone().or_else(|| self.keys_trouble.clone())
    }

    fn look_at_schemas(&mut self) {
        let now = look(&self.mappings);
        if self.schemas_seen.as_ref() == Some(&now) {
            return;
        }
        match CommandSchemas::load(&now) {
            Ok(schemas) => {
                for topic in schemas.strangers(self.topics.iter().map(String::as_str)) {
                    tracing::warn!(topic, "a JSON Schema is of no topic of [[gateway.commands]]");
                }
                if !now.is_empty() || self.schemas_seen.is_some() {
                    tracing::info!(files = now.len(), "JSON Schemas of commands are read");
                }
                self.write_point.schemas.set(schemas);
                self.schemas_trouble = None;
            }
            Err(mistakes) => {
                for error in &mistakes.0 {
                    tracing::error!(%error, "the JSON Schemas of commands stay what they were");
                }
                if self.write_point.schemas.get().is_none() {
                    let first = mistakes.0.first().map(ToString::to_string).unwrap_or_default();
                    self.schemas_trouble = Some(format!("a JSON Schema is broken: {first}"));
                }
            }
        }
        self.schemas_seen = Some(now);
    }

    fn look_at_keys(&mut self) {
        let Some(tokens) = &self.tokens else { return };
        let now = look_at(tokens.file().to_owned());
        if self.keys_seen.as_ref() == Some(&now) {
            return;
        }
        match tokens.load() {
            Ok(()) => {
                tracing::info!(file = %tokens.file().display(), "keys for tokens are read");
                self.keys_loaded = true;
                self.keys_trouble = None;
            }
            Err(error) => {
                tracing::error!(%error, "the keys for tokens stay what they were");
                if !self.keys_loaded {
                    self.keys_trouble = Some(format!("the keys for tokens are not read: {error}"));
                }
            }
        }
        self.keys_seen = Some(now);
    }
}

/// One look; what keeps the gateway from being ready comes back besides. Before the first one
/// nobody is served: good tokens would be refused while their keys are not read.
///
/// # Errors
/// The look panicked.
pub async fn look_once(mut files: Files) -> Result<(Files, Option<String>), JoinError> {
    let looked = tokio::task::spawn_blocking(move || {
        let found = files.look();
        (files, found)
    });
    looked.await
}

/// Looks until `shutdown`; `trouble` hears what keeps the gateway from being ready.
///
/// # Errors
/// None: it is one of the gateway's stages, whose others have some.
pub async fn run_files(
    mut files: Files,
    trouble: watch::Sender<Option<String>>,
    shutdown: CancellationToken,
) -> Result<(), BackplaneError> {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;

            // 1. The end.
            () = shutdown.cancelled() => return Ok(()),
            // 2. The next look.
            _ = looks.tick() => {}
        }
        let Ok((same, found)) = look_once(files).await else {
            trouble.send_replace(Some("looking at files has panicked".to_owned()));
            return Ok(());
        };
        files = same;
        trouble.send_if_modified(|it| {
            let changed = *it != found;
            *it = found;
            changed
        });
    }
}
