//! The read point: documents by id, and by the ids that a browser has given them.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::elasticsearch::serve::{Found, Hit, Served};
use crate::gateway::Gateway;
use crate::gateway::fields::{Selection, has};
use crate::gateway::principal::Principal;
use crate::gateway::problem::{self, Problem};
use crate::gateway::query::{Parameters, bad_parameter};
use crate::gateway::wait::{Document, Token, Waited, until_reflected};
use crate::json::{Object, push_string};

/// A browser asks for its own few documents; a list of a table is what searches are for.
const FOUND_MAX: usize = 100;
/// The fields that a document has its makers' ids in.
const IDS: [&str; 2] = ["document_id", "session_id"];
/// What to wait for, and how long.
const WAIT: [&str; 5] = ["wait", "correlation_id", "txid", "min_lsn", "searchable"];
/// Ids of our clients have at most 128 characters, those of others may be longer.
const ID_BYTES_MAX: usize = 512;

/// `GET /v1/collections/{collection}/documents/{id}`
///
/// # Errors
/// As a problem.
pub async fn read(
    State(gateway): State<Arc<Gateway>>,
    Extension(principal): Extension<Principal>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // An id that is no UTF-8 is none that a document could have.
    let Path((collection, id)) = path.map_err(|_| problem::not_found())?;
    let alias = gateway.reader.alias(&principal, &collection)?;
    let parameters = Parameters::read(&uri, |it| it == "fields" || WAIT.contains(&it))?;
    let selection = selection(&parameters)?;
    if let Some(wanted) = Wanted::read(&parameters, gateway.config.wait_max)? {
        // An unknown collection is told at once, as a forbidden one is.
        gateway.reader.is_there(&alias).await?;
        let document = Document { collection, id: id.clone() };
        wanted.wait(&gateway, &principal, &document).await?;
        if wanted.searchable {
            gateway.reader.refresh(&alias).await?;
        }
    }
    let served = gateway.reader.document(&alias, &id).await?.ok_or_else(no_document)?;
    answer(served, selection.as_ref(), &headers)
}

/// What a document has to reflect before it is answered, and how long that may take.
struct Wanted {
    token: Token,
    limit: Duration,
    searchable: bool,
}

impl Wanted {
    fn read(parameters: &Parameters, wait_max: Duration) -> Result<Option<Self>, Problem> {
        let get = |name: &str| parameters.get(name);
        let token = Token::read(get("correlation_id"), get("txid"), get("min_lsn"))?;
        let (token, wait) = match (token, get("wait"), get("searchable")) {
            (None, None, None) => return Ok(None),
            (Some(token), Some(wait), _) => (token, wait),
            _ => {
                return Err(bad_parameter(
                    "to wait, give wait=2s and one of correlation_id, txid and min_lsn",
                ));
            }
        };
        let limit = humantime::parse_duration(wait).ok().filter(|it| *it <= wait_max);
        let limit = limit.ok_or_else(|| {
            bad_parameter(format!("wait is a time such as 2s or 500ms, at most {wait_max:?}"))
        })?;
        let searchable = match get("searchable") {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(bad_parameter("searchable is true or false")),
        };
        Ok(Some(Self { token, limit, searchable }))
    }

    async fn wait(
        &self,
        gateway: &Gateway,
        principal: &Principal,
        document: &Document,
    ) -> Result<(), Problem> {
        let told = (&gateway.backplane, &gateway.pipeline);
        let waited = until_reflected(told, document, &self.token, self.limit).await;
        // What a robot says to another session is not for this one.
        if let (Waited::Failed(event), Some(own)) = (&waited, &principal.session)
            && gateway.backplane.look(|it| it.place(event, own).is_none())
        {
            return Err(not_yours());
        }
        waited.problem().map_or(Ok(()), Err)
    }
}

fn answer(
    served: Served,
    selection: Option<&Selection>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let etag = format!("\"{}-{}\"", served.version, served.definition);
    let mut response = match is_known(headers, &etag) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => json_response(match selection {
            Some(selection) => Body::from(selected(selection, &served.source)?),
            None => Body::from(served.source),
        }),
    };
    let etag = HeaderValue::from_str(&etag).map_err(|_| unreadable())?;
    response.headers_mut().insert(header::ETAG, etag);
    response.headers_mut().insert(header::CACHE_CONTROL, private());
    Ok(response)
}

/// `GET /v1/collections/{collection}/documents?document_id=…&session_id=…`: is there a document
/// with these ids?
///
/// # Errors
/// As a problem.
pub async fn find(
    State(gateway): State<Arc<Gateway>>,
    Extension(principal): Extension<Principal>,
    path: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let Path(collection) = path.map_err(|_| problem::not_found())?;
    let alias = gateway.reader.alias(&principal, &collection)?;
    let parameters = Parameters::read(&uri, |it| it == "fields" || IDS.contains(&it))?;
    let selection = selection(&parameters)?;
    let wanted = IDS.iter().filter_map(|it| Some((*it, parameters.get(it)?)));
    let wanted: Vec<(&str, &str)> = wanted.collect();
    if wanted.is_empty() || wanted.iter().any(|(_, it)| !(1..=ID_BYTES_MAX).contains(&it.len())) {
        return Err(bad_parameter("give a document_id, a session_id, or both"));
    }
    if principal
        .session
        .as_deref()
        .is_some_and(|own| parameters.get("session_id").is_some_and(|it| it != own))
    {
        return Err(not_yours());
    }
    let found = gateway.reader.search(&alias, &by_ids(&wanted)).await?;
    let mut found = gateway.reader.found(&found, &alias).await?;
    found.hits.hits.retain(|hit| {
        let source = hit.source.and_then(|it| serde_json::from_str::<Object<'_>>(it.get()).ok());
        source.is_some_and(|it| wanted.iter().all(|(name, wanted)| has(&it, name, wanted)))
    });
    hits(&found, selection.as_ref())
}

/// Texts are found by their sub-field that is not taken apart into words; what has none, such as a
/// uuid or a number, by the field itself. `lenient`: a number's field has no document for a text.
fn by_ids(wanted: &[(&str, &str)]) -> Value {
    let equal = |field: &str, value: &str| {
        json!({ "match": { field: {
        "query": value, "operator": "and", "lenient": true,
    } } })
    };
    let each = wanted.iter().map(|(field, value)| {
        let whole = format!("{field}.keyword");
        let other = json!({ "bool": {
            "must": [equal(field, value)],
            "must_not": [{ "exists": { "field": whole } }],
        } });
        json!({ "bool": { "should": [equal(&whole, value), other] } })
    });
    json!({
        "size": FOUND_MAX,
        "query": { "bool": { "filter": each.collect::<Vec<_>>() } },
    })
}

/// `{"total":…,"hits":[{"id":…,"document":{…}}],"aggregations":…}`, what is there of it.
///
/// # Errors
/// 503: what Elasticsearch has answered makes no sense.
pub fn hits(found: &Found<'_>, selection: Option<&Selection>) -> Result<Response, Problem> {
    let mut out = String::from("{\"hits\":[");
    for (nth, hit) in found.hits.hits.iter().enumerate() {
        if nth > 0 {
            out.push(',');
        }
        push_hit(hit, selection, &mut out)?;
    }
    out.push(']');
    for (name, raw) in [("total", found.hits.total), ("aggregations", found.aggregations)] {
        if let Some(raw) = raw {
            out.push_str(&format!(",\"{name}\":{}", raw.get()));
        }
    }
    out.push('}');
    let mut response = json_response(Body::from(out));
    response.headers_mut().insert(header::CACHE_CONTROL, private());
    Ok(response)
}

fn push_hit(hit: &Hit<'_>, selection: Option<&Selection>, out: &mut String) -> Result<(), Problem> {
    out.push_str("{\"id\":");
    push_string(&hit.id, out);
    out.push_str(",\"document\":");
    match (hit.source, selection) {
        (None, _) => out.push_str("null"),
        (Some(source), None) => out.push_str(source.get()),
        (Some(source), Some(it)) => out.push_str(&selected(it, source.get().as_bytes())?),
    }
    for (name, raw) in [("score", hit.score), ("highlight", hit.highlight), ("sort", hit.sort)] {
        if let Some(raw) = raw {
            out.push_str(&format!(",\"{name}\":{}", raw.get()));
        }
    }
    out.push('}');
    Ok(())
}

/// `fields=…`
///
/// # Errors
/// 400.
pub fn selection(parameters: &Parameters) -> Result<Option<Selection>, Problem> {
    parameters.get("fields").map(Selection::parse).transpose().map_err(bad_parameter)
}

fn selected(selection: &Selection, source: &[u8]) -> Result<String, Problem> {
    let text = std::str::from_utf8(source).map_err(|_| unreadable())?;
    selection.of(text).map_err(|_| unreadable())
}

/// Whether the client has this version already (RFC 9110, 13.1.2: the weak comparison).
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let given = headers.get_all(header::IF_NONE_MATCH).iter();
    given
        .filter_map(|it| it.to_str().ok())
        .flat_map(|it| it.split(','))
        .map(str::trim)
        .any(|it| it == "*" || it.strip_prefix("W/").unwrap_or(it) == etag)
}

fn json_response(body: Body) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        // A text in a document that looks like HTML stays text.
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, body).into_response()
}

/// A browser may keep it, and asks each time whether it is still the newest.
fn private() -> HeaderValue {
    HeaderValue::from_static("private, no-cache")
}

fn not_yours() -> Problem {
    problem::forbidden("this session is not yours")
}

fn no_document() -> Problem {
    let detail = "the collection has no document with this id, or not yet";
    Problem::new(StatusCode::NOT_FOUND, "no-document", detail)
}

fn unreadable() -> Problem {
    let detail = "the document is not what it should be; the operators can see why";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).retry_after(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_known_by_any_of_the_tags_given() {
        for (given, expected) in [
            ("\"7-a\"", true),
            ("W/\"7-a\"", true),
            ("\"6-a\", \"7-a\"", true),
            ("*", true),
            ("\"7-b\"", false),
            ("7-a", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, given.parse().unwrap());
            assert_eq!(is_known(&headers, "\"7-a\""), expected, "{given}");
        }
        assert!(!is_known(&HeaderMap::new(), "\"7-a\""));
    }
}
