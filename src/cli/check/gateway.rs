//! What `check` says of the gateway: who may come in, and to what.

use crate::cli::check::Findings;
use crate::config::Config;
use crate::config::gateway::GatewayConfig;
use crate::gateway::command_schemas::{CommandSchemas, look};
use crate::gateway::jwt::TokenVerifier;
use crate::gateway::principal::globs;
use crate::mapping::Collection;

pub fn check(
    config: &Config,
    collections: &[Collection],
    findings: &mut Findings<'_>,
) -> std::io::Result<()> {
    let Some(gateway) = &config.gateway else { return Ok(()) };
    if !gateway.anonymous && gateway.api_keys.is_empty() && gateway.jwt.is_none() {
        findings.wrong(
            "gateway: nobody may come in; add [[gateway.api_keys]] or [gateway.jwt], or anonymous = \
             true for one that everybody may use",
        )?;
    } else if gateway.anonymous && !gateway.listen.ip().is_loopback() {
        findings.warning(&format!(
            "gateway: anonymous = true, and it listens on {}: whoever reaches it may send \
             commands and read documents",
            gateway.listen
        ))?;
    } else {
        findings.fine(&format!("gateway, to listen on {}", gateway.listen))?;
    }
    schemas(config, gateway, findings)?;
    keys(gateway, findings)?;
    let readable = globs(&gateway.collections);
    for command in &gateway.commands {
        for name in &command.collections {
            if !collections.iter().any(|it| it.name == *name) {
                findings.warning(&format!(
                    "gateway: no mapping file fills collection {name}, where the answer to \
                     commands of {} sends its clients",
                    command.topic
                ))?;
            } else if !readable.is_match(name) {
                findings.wrong(&format!(
                    "gateway: the answer to commands of {} sends its clients to collection {name}, \
                     which [gateway] collections leaves out",
                    command.topic
                ))?;
            }
        }
    }
    Ok(())
}

/// The JSON Schemas of commands, as the gateway reads them.
fn schemas(
    config: &Config,
    gateway: &GatewayConfig,
    findings: &mut Findings<'_>,
) -> std::io::Result<()> {
    let files = look(&config.translate.mappings);
    match CommandSchemas::load(&files) {
        Err(mistakes) => mistakes.0.iter().try_for_each(|it| findings.mistake(it)),
        Ok(_) if files.is_empty() => Ok(()),
        Ok(schemas) => {
            for topic in schemas.strangers(gateway.commands.iter().map(|it| &*it.topic)) {
                findings.warning(&format!(
                    "gateway: a JSON Schema is of topic {topic}, which no [[gateway.commands]] \
                     takes commands for: rename its file or folder, or add the topic"
                ))?;
            }
            findings.fine(&format!("gateway, {} JSON Schemas of commands", files.len()))
        }
    }
}

/// The keys of tokens. The line of a mistake is not shown: it may hold a secret.
fn keys(gateway: &GatewayConfig, findings: &mut Findings<'_>) -> std::io::Result<()> {
    let Some(jwt) = &gateway.jwt else { return Ok(()) };
    match TokenVerifier::new(jwt.clone()).load() {
        Ok(()) => {
            findings.fine(&format!("gateway, keys for tokens in {}", jwt.jwks_file.display()))
        }
        Err(mistake) => findings.wrong(&mistake.to_string()),
    }
}
