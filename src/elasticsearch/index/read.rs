//! What an index holds: sources by `_id`, and all `_id`s page by page.

use elasticsearch::http::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::document::{DocumentKey, DocumentVersion};
use crate::elasticsearch::client::{Distribution, ElasticError, Elasticsearch, Request};

/// How long a walk may pause between two pages. A point in time holds segments from being freed.
const KEEP_ALIVE: &str = "5m";

/// A document as the index keeps it: its text byte for byte as it was written.
pub type Stored = (String, DocumentVersion);

/// A walk over all `_id`s of an index, as of one moment. To be closed.
#[derive(Debug)]
pub struct IdWalk {
    distribution: Distribution,
    id: String,
    after: Option<Value>,
}

impl Elasticsearch {
    /// The stored documents of some keys, in the keys' order. Sees the newest writes without a
    /// refresh.
    ///
    /// # Errors
    /// As any request; [`ElasticError::Malformed`] when the answer is about other documents.
    pub async fn mget_sources(
        &self,
        index: &str,
        keys: &[DocumentKey],
    ) -> Result<Vec<Option<Stored>>, ElasticError> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(borrow)]
            docs: Vec<Doc<'a>>,
        }
        #[derive(Deserialize)]
        struct Doc<'a> {
            _id: String,
            #[serde(default)]
            found: bool,
            _version: Option<u64>,
            #[serde(borrow)]
            _source: Option<&'a RawValue>,
            error: Option<Value>,
        }
        let doing = "reading documents";
        if keys.is_empty() {
            return Ok(vec![]);
        }
        let ids: Vec<&str> = keys.iter().map(|it| it.0.as_str()).collect();
        let request = Request::new(doing, Method::Post, format!("/{index}/_mget"));
        let answer = self.send(request.body(&json!({ "ids": ids }))).await?;
        let malformed = |source: Box<dyn std::error::Error + Send + Sync>| {
            ElasticError::Malformed { doing, source }
        };
        let docs =
            serde_json::from_slice::<Answer<'_>>(&answer).map_err(|it| malformed(it.into()))?.docs;
        let matched = docs.len() == keys.len()
            && docs.iter().zip(keys).all(|(doc, key)| doc._id == key.0 && doc.error.is_none());
        if !matched {
            return Err(malformed("the documents are not those asked for, or have errors".into()));
        }
        let stored = docs.into_iter().map(|doc| {
            let stored = doc._source.zip(doc._version).filter(|_| doc.found);
            stored.map(|(source, version)| (source.get().to_owned(), DocumentVersion(version)))
        });
        Ok(stored.collect())
    }

    /// Begins a walk over what the index's last refresh made searchable.
    ///
    /// # Errors
    /// As any request.
    pub async fn open_ids(
        &self,
        index: &str,
        distribution: Distribution,
    ) -> Result<IdWalk, ElasticError> {
        let (path, field) = match distribution {
            Distribution::Elasticsearch => (format!("/{index}/_pit"), "id"),
            Distribution::OpenSearch => (format!("/{index}/_search/point_in_time"), "pit_id"),
        };
        let doing = "opening a point in time";
        let path = format!("{path}?keep_alive={KEEP_ALIVE}");
        let answer: Value = self.json(Request::new(doing, Method::Post, path)).await?;
        let id = answer.get(field).and_then(Value::as_str).map(str::to_owned);
        let missing = || ElasticError::Malformed { doing, source: format!("no {field}").into() };
        Ok(IdWalk { distribution, id: id.ok_or_else(missing)?, after: None })
    }

    /// The next `_id`s with their versions, at most `count` (10,000 is the server's limit); none:
    /// the walk is over.
    ///
    /// # Errors
    /// As any request. [`ElasticError::NotFound`]: the walk paused too long; begin anew.
    pub async fn ids_page(
        &self,
        walk: &mut IdWalk,
        count: usize,
    ) -> Result<Vec<(DocumentKey, DocumentVersion)>, ElasticError> {
        #[derive(Deserialize)]
        struct Answer {
            pit_id: Option<String>,
            timed_out: bool,
            _shards: Shards,
            hits: Hits,
        }
        #[derive(Deserialize)]
        struct Shards {
            failed: u32,
        }
        #[derive(Deserialize)]
        struct Hits {
            hits: Vec<Hit>,
        }
        #[derive(Deserialize)]
        struct Hit {
            _id: String,
            _version: u64,
            sort: Value,
        }
        let doing = "walking over documents";
        let mut body = json!({
            "size": count,
            "_source": false,
            "version": true,
            "track_total_hits": false,
            "pit": { "id": walk.id, "keep_alive": KEEP_ALIVE },
            "sort": [{ "_shard_doc": "asc" }],
        });
        if let Some(after) = &walk.after {
            body["search_after"] = after.clone();
        }
        let request = Request::new(doing, Method::Post, "/_search");
        let answer: Answer = self.json(request.body(&body)).await?;
        // A part of the documents would make the others look like orphans.
        if answer.timed_out || answer._shards.failed > 0 {
            let source = "a shard has not answered".into();
            return Err(ElasticError::Unavailable { doing, source });
        }
        if let Some(id) = answer.pit_id {
            walk.id = id;
        }
        if let Some(last) = answer.hits.hits.last() {
            walk.after = Some(last.sort.clone());
        }
        let hits = answer.hits.hits.into_iter();
        Ok(hits.map(|it| (DocumentKey(it._id), DocumentVersion(it._version))).collect())
    }

    /// Ends a walk. One that is not closed ends by itself after 5 minutes.
    ///
    /// # Errors
    /// As any request.
    pub async fn close_ids(&self, walk: IdWalk) -> Result<(), ElasticError> {
        let (path, body) = match walk.distribution {
            Distribution::Elasticsearch => ("/_pit", json!({ "id": walk.id })),
            Distribution::OpenSearch => ("/_search/point_in_time", json!({ "pit_id": [walk.id] })),
        };
        let request = Request::new("closing a point in time", Method::Delete, path).body(&body);
        match self.send(request).await {
            Ok(_) | Err(ElasticError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
