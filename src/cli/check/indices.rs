//! What `check` finds in Elasticsearch: collections that no mapping file speaks of, rollbacks that
//! are in force, and blocks.

use std::collections::BTreeSet;

use crate::causes::with_causes;
use crate::cli::check::Findings;
use crate::config::Config;
use crate::elasticsearch::block;
use crate::elasticsearch::client::Elasticsearch;
use crate::elasticsearch::index::definition::alias_name;
use crate::mapping::catalog;

/// Checks the indices of all collections. That Elasticsearch is away is another check's to say.
pub async fn check(config: &Config, findings: &mut Findings<'_>) -> std::io::Result<()> {
    let folder = catalog::load_folder(&config.translate.mappings, &catalog::KnownFiles::new());
    // Without the folder every collection would look orphaned; that it is missing says it all.
    let Ok(loaded) = folder else { return Ok(()) };
    let Ok(elastic) = Elasticsearch::new(&config.elasticsearch) else { return Ok(()) };
    if elastic.info().await.is_err() {
        return Ok(());
    }
    let survey = match elastic.survey(&config.elasticsearch).await {
        Ok(survey) => survey,
        Err(error) => return findings.wrong(&format!("indices: {}", with_causes(&error))),
    };
    let known: BTreeSet<&str> = loaded.collections.iter().map(|it| it.name.as_str()).collect();
    for collection in survey.collections() {
        if !known.contains(collection) && !loaded.frozen.contains(collection) {
            findings.warning(&format!(
                "collection {collection} is orphaned: no mapping file speaks of it, and its \
                 documents are not updated; put its file back, or run `onelog drop {collection}`"
            ))?;
        }
    }
    for (index, it) in &survey.indices {
        let serves = it.aliases.contains(&alias_name(&config.elasticsearch, &it.meta.collection));
        if let Some(newer) = it.meta.instead_of.as_ref().filter(|_| serves) {
            let collection = &it.meta.collection;
            findings.warning(&format!(
                "collection {collection} is rolled back to {index} from {newer}: change its mapping \
                 file, or run `onelog rebuild {collection}`, for the file to count again"
            ))?;
        }
        if let Some(blocked) = block::sentence(index, &it.blocks) {
            findings.wrong(&blocked)?;
        }
    }
    Ok(())
}
