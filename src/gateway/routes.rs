//! Every route with its method, in one list: the router is made of it, and a test holds it and
//! the description that is served, `openapi.json`, together.

use std::sync::Arc;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};

use crate::gateway::{Gateway, commands, documents, feedback, search};

/// OpenAPI 3.1.
const DESCRIPTION: &str = include_str!("openapi.json");

/// (path, method, what answers it), behind the guard.
pub fn routes() -> Vec<(&'static str, &'static str, MethodRouter<Arc<Gateway>>)> {
    vec![
        ("/v1/openapi.json", "get", get(description)),
        ("/v1/commands/{topic}", "post", post(commands::post)),
        ("/v1/feedback", "get", get(feedback::feedback)),
        ("/v1/collections/{collection}/documents", "get", get(documents::find)),
        ("/v1/collections/{collection}/documents/{id}", "get", get(documents::read)),
        ("/v1/collections/{collection}/_search/{name}", "get", get(search::by_query)),
        ("/v1/collections/{collection}/_search/{name}", "post", post(search::by_body)),
    ]
}

async fn description() -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache")];
    (headers, DESCRIPTION).into_response()
}
