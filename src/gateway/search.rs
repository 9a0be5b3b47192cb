//! The searches that the config allows, and no others: a client names one and gives values.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use serde_json::{Map, Value};

use crate::config::search_template::{Given, SearchTemplate};
use crate::gateway::Gateway;
use crate::gateway::documents::{hits, selection};
use crate::gateway::principal::Principal;
use crate::gateway::problem::{self, Problem};
use crate::gateway::query::{Parameters, bad_parameter};

/// Elasticsearch gives a search up then. Shorter than what a read may take, so that it is the one
/// that ends first, and frees its threads.
const SEARCH_TIMEOUT: &str = "5s";

type SearchPath = Result<Path<(String, String)>, PathRejection>;

/// `GET /v1/collections/{collection}/_search/{name}?parameter=…`
///
/// # Errors
/// As a problem.
pub async fn by_query(
    State(gateway): State<Arc<Gateway>>,
    Extension(principal): Extension<Principal>,
    path: SearchPath,
    uri: Uri,
) -> Result<Response, Problem> {
    let (alias, template) = place(&gateway, &principal, path)?;
    let parameters = Parameters::read(&uri, |_| true)?;
    let own = parameters.iter().filter(|(name, _)| *name != "fields");
    let given = own.map(|(name, it)| (name.to_owned(), Given::Text(it.to_owned()))).collect();
    run(&gateway, &alias, template.fill(given), &parameters).await
}

/// `POST /v1/collections/{collection}/_search/{name}` with `{"parameter": …}`: for what is too long
/// for a URL, or not to stand in the logs of proxies.
///
/// # Errors
/// As a problem.
pub async fn by_body(
    State(gateway): State<Arc<Gateway>>,
    Extension(principal): Extension<Principal>,
    path: SearchPath,
    uri: Uri,
    body: Bytes,
) -> Result<Response, Problem> {
    let (alias, template) = place(&gateway, &principal, path)?;
    let parameters = Parameters::read(&uri, |it| it == "fields")?;
    let object: Map<String, Value> = serde_json::from_slice(&body).map_err(|_| {
        let detail = "the body must be a JSON object with the search's parameters";
        Problem::new(StatusCode::BAD_REQUEST, "bad-body", detail)
    })?;
    let given = object.into_iter().map(|(name, it)| (name, Given::Json(it))).collect();
    run(&gateway, &alias, template.fill(given), &parameters).await
}

fn place<'g>(
    gateway: &'g Gateway,
    principal: &Principal,
    path: SearchPath,
) -> Result<(String, &'g SearchTemplate), Problem> {
    let Path((collection, name)) = path.map_err(|_| problem::not_found())?;
    let alias = gateway.reader.alias(principal, &collection)?;
    let mut all = gateway.config.searches.iter();
    let search = all.find(|it| it.collection == collection && it.name == name);
    Ok((alias, &search.ok_or_else(problem::not_found)?.template))
}

async fn run(
    gateway: &Gateway,
    alias: &str,
    body: Result<Value, String>,
    parameters: &Parameters,
) -> Result<Response, Problem> {
    let mut body = body.map_err(bad_parameter)?;
    let selection = selection(parameters)?;
    if let Value::Object(body) = &mut body {
        body.insert("timeout".to_owned(), SEARCH_TIMEOUT.into());
    }
    let answer = gateway.reader.search(alias, &body).await?;
    hits(&gateway.reader.found(&answer, alias).await?, selection.as_ref())
}
