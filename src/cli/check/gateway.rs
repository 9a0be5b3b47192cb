//! What `check` says of the gateway: who may come in, and to what.

use crate::cli::check::Findings;
use crate::config::Config;
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
