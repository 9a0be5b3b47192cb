//! The end of a sweep: the index is verified, marked as whole, and the alias is led to it. What
//! served before is retired: nobody fills it, and it is kept for a rollback.
//!
//! The order is what a crash cannot undo. The new index is marked before the alias moves, so that
//! one that serves never looks as if it were owed a sweep; the old one loses its mark after, and
//! whoever finds it without an alias sweeps it anyhow before it serves again.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::elasticsearch::client::ElasticError;
use crate::elasticsearch::index::AliasState;
use crate::translate::verify::{Fault, verify};
use crate::translate::{Build, Tools};

/// Milliseconds since the Unix epoch: when something happened, as notes keep it.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Verifies the build's index and leads the alias to it, if the sweep of `era` still counts.
/// `filled`: the index was empty at the sweep's beginning.
pub async fn serve(tools: &Tools, build: &Build, (era, filled): (u64, bool)) -> Result<(), Fault> {
    let elastic = &tools.elastic;
    let (index, alias) = (&build.index, &build.alias);
    let state = elastic.alias_state(alias).await.map_err(Fault::Elastic)?;
    let served = match state {
        AliasState::On(indices) => indices,
        AliasState::Missing => Vec::new(),
        AliasState::IsAnIndex => {
            return Err(Fault::Differs(format!("{alias} is an index, where an alias must be")));
        }
    };
    let old: Vec<String> = served.into_iter().filter(|it| it.as_str() != &**index).collect();
    verify(tools, build, filled, !old.is_empty()).await?;
    let marked = elastic.amend_if(index, |it| {
        let counts = it.era == era;
        if counts {
            it.fingerprint = build.plan.fingerprint.to_text();
            it.serve(now_ms());
        }
        counts
    });
    if !marked.await.map_err(Fault::Elastic)? {
        return Err(Fault::Void);
    }
    elastic.swap_alias(alias, index, &old).await.map_err(|error| match error {
        // Somebody else has led it elsewhere meanwhile, a command perhaps: shortly again.
        ElasticError::NotFound { doing, reason } => {
            Fault::Elastic(ElasticError::Unavailable { doing, source: reason.into() })
        }
        error => Fault::Elastic(error),
    })?;
    tracing::info!(collection = build.plan.name, index = %index, replaces = ?old, "serving");
    for other in old {
        retire(tools, &other).await.map_err(Fault::Elastic)?;
    }
    Ok(())
}

/// Notes that nobody fills an index any more. One that is gone, or not ours, is fine.
pub async fn retire(tools: &Tools, index: &str) -> Result<(), ElasticError> {
    match tools.elastic.amend(index, |it| it.retire(now_ms())).await {
        Err(ElasticError::NotFound { .. }) => Ok(()),
        ended => ended,
    }
}
