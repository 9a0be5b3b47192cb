//! What the read point asks of a collection's alias: documents and searches, as raw text.
//!
//! Names come from outside here. An alias is checked by who calls, and an `_id` travels in a body,
//! never in a URL, where `..` would be another path.
//!
//! **Invariant:** only what an index of ours holds is returned: an alias or an index of somebody
//! else that happens to have the name is as unknown as none.

use bytes::Bytes;
use elasticsearch::http::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::elasticsearch::client::{ElasticError, Elasticsearch, Request};
use crate::elasticsearch::index::AliasState;

/// What an alias has for an `_id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// There is no such collection.
    Unknown,
    /// The collection has no document with this `_id`.
    Absent,
    Found(Served),
}

/// A document as it is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    pub version: u64,
    /// Of the definition that it was made by: the index' name without the alias'.
    pub definition: String,
    /// The `_source`, byte for byte.
    pub source: Bytes,
}

/// An answer of `_search`; the texts in it are raw.
#[derive(Debug, Deserialize)]
pub struct Found<'a> {
    timed_out: bool,
    #[serde(rename = "_shards")]
    shards: Shards,
    #[serde(borrow)]
    pub hits: Hits<'a>,
    #[serde(borrow)]
    pub aggregations: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Shards {
    failed: u32,
}

#[derive(Debug, Deserialize)]
pub struct Hits<'a> {
    #[serde(borrow)]
    pub total: Option<&'a RawValue>,
    #[serde(borrow)]
    pub hits: Vec<Hit<'a>>,
}

#[derive(Debug, Deserialize)]
pub struct Hit<'a> {
    #[serde(rename = "_index")]
    pub index: String,
    #[serde(rename = "_id")]
    pub id: String,
    #[serde(rename = "_score", borrow)]
    pub score: Option<&'a RawValue>,
    #[serde(rename = "_source", borrow)]
    pub source: Option<&'a RawValue>,
    #[serde(borrow)]
    pub highlight: Option<&'a RawValue>,
    #[serde(borrow)]
    pub sort: Option<&'a RawValue>,
}

impl Elasticsearch {
    /// One document by its `_id`, as of now: it need not be searchable yet.
    ///
    /// # Errors
    /// As any request.
    pub async fn serve(&self, alias: &str, id: &str) -> Result<Lookup, ElasticError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            docs: [Doc<'a>; 1],
        }
        #[derive(Deserialize)]
        struct Doc<'a> {
            _index: String,
            #[serde(default)]
            found: bool,
            _version: Option<u64>,
            #[serde(borrow)]
            _source: Option<&'a RawValue>,
            #[serde(borrow)]
            error: Option<&'a RawValue>,
        }
        let doing = "reading a document for a client";
        let request = Request::new(doing, Method::Post, format!("/{alias}/_mget"));
        let answer = self.send(request.body(&json!({ "ids": [id] }))).await?;
        let malformed = |source: Box<dyn std::error::Error + Send + Sync>| {
            ElasticError::Malformed { doing, source }
        };
        let Answer { docs: [doc] } =
            serde_json::from_slice(&answer).map_err(|it| malformed(it.into()))?;
        if let Some(error) = doc.error.map(RawValue::get) {
            return match error.contains("\"index_not_found_exception\"") {
                true => Ok(Lookup::Unknown),
                false => Err(malformed(error.chars().take(1_000).collect::<String>().into())),
            };
        }
        let Some(definition) = definition(&doc._index, alias) else { return Ok(Lookup::Unknown) };
        let (Some(source), Some(version), true) = (doc._source, doc._version, doc.found) else {
            return Ok(Lookup::Absent);
        };
        Ok(Lookup::Found(Served {
            version,
            definition: definition.to_owned(),
            source: answer.slice_ref(source.get().as_bytes()),
        }))
    }

    /// Whether the alias leads to an index of ours.
    ///
    /// # Errors
    /// As any request.
    pub async fn is_served(&self, alias: &str) -> Result<bool, ElasticError> {
        Ok(match self.alias_state(alias).await? {
            AliasState::On(indices) => indices.iter().all(|it| definition(it, alias).is_some()),
            AliasState::Missing | AliasState::IsAnIndex => false,
        })
    }

    /// The answer to a search; [`read_found`] reads it.
    ///
    /// # Errors
    /// As any request.
    pub async fn search(&self, alias: &str, body: &Value) -> Result<Bytes, ElasticError> {
        // A part of the hits would be taken for all of them.
        let path = format!("/{alias}/_search?allow_partial_search_results=false");
        self.send(Request::new("searching for a client", Method::Post, path).body(body)).await
    }
}

/// Reads an answer to a search of this alias.
///
/// # Errors
/// It is none, or not of all shards.
pub fn read_found<'a>(answer: &'a Bytes, alias: &str) -> Result<Found<'a>, ElasticError> {
    let doing = "searching for a client";
    let mut found: Found<'_> = serde_json::from_slice(answer)
        .map_err(|source| ElasticError::Malformed { doing, source: source.into() })?;
    if found.timed_out || found.shards.failed > 0 {
        let source = "a shard has not answered in time".into();
        return Err(ElasticError::Unavailable { doing, source });
    }
    found.hits.hits.retain(|it| definition(&it.index, alias).is_some());
    Ok(found)
}

/// What follows the alias in the name of an index of ours: `page-0123456789ab` of `page`.
fn definition<'n>(index: &'n str, alias: &str) -> Option<&'n str> {
    let rest = index.strip_prefix(alias)?.strip_prefix('-')?;
    let hash = rest.split('-').next().unwrap_or_default();
    let is_hash = hash.len() == 12 && hash.bytes().all(|it| it.is_ascii_hexdigit());
    is_hash.then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_indices_are_served() {
        for (index, expected) in [
            ("page-0123456789ab", Some("0123456789ab")),
            ("page-0123456789ab-2", Some("0123456789ab-2")),
            ("page", None),
            ("page-", None),
            ("page-2026", None),
            ("pages-0123456789ab", None),
            ("page-two-0123456789ab", None),
            ("customers", None),
        ] {
            assert_eq!(definition(index, "page"), expected, "{index}");
        }
    }
}
