//! Which index a definition gets: the newest generation of it, a new one after `onelog rebuild`,
//! or an older definition's after `onelog rollback`.

use crate::elasticsearch::index::definition::IndexDefinition;
use crate::elasticsearch::index::note::IndexMeta;
use crate::elasticsearch::index::survey::{Survey, target};
use crate::mapping::plan::CollectionPlan;
use crate::mapping::resolve::resolve;
use crate::postgres::client;
use crate::translate::load::index_hash;
use crate::translate::{Context, Tools, TranslateError};

/// The plan that is followed and its index. After a rollback that is what the older index was made
/// of, for as long as the mapping files lead to the index that was rolled back from.
pub(super) async fn place(
    context: &Context,
    tools: &Tools,
    survey: &Survey,
    mut plan: CollectionPlan,
) -> Result<(CollectionPlan, IndexDefinition), TranslateError> {
    let config = &context.config;
    let system_id = tools.identity.system_id;
    plan.hash = index_hash(&plan, system_id);
    let noted = |plan: CollectionPlan, generation: u32, instead_of: Option<String>| {
        let meta = IndexMeta { generation, instead_of, ..IndexMeta::of(&plan, system_id) };
        let definition = IndexDefinition::noted(&config.elasticsearch, &plan, meta);
        (plan, definition)
    };
    let (generation, wanted) = target(survey, &config.elasticsearch, (&plan.name, &plan.hash));
    let pinned = survey.pinned(&plan.name, &wanted);
    let Some((index, older)) = pinned.and_then(|(index, it)| {
        let definition = it.meta.definition.as_ref()?;
        Some((index, (it, definition)))
    }) else {
        return Ok(noted(plan, generation, None));
    };
    tracing::warn!(
        collection = plan.name,
        index,
        instead_of = wanted,
        "rolled back: the mapping file counts again when it is changed, or after `onelog rebuild`"
    );
    let client = client::connect(&config.postgres.url, "onelog mappings").await?;
    let publication = &config.postgres.publication_name;
    let mut plan = resolve(&client, publication, older.1).await?;
    plan.hash = index_hash(&plan, system_id);
    // A view or a type has changed since: the same SQL is another definition now.
    let generation = match plan.hash == older.0.meta.hash {
        true => older.0.meta.generation,
        false => survey.generation(&plan.name, &plan.hash),
    };
    Ok(noted(plan, generation, Some(wanted)))
}
