//! The way from a request to Elasticsearch: which collections there are for whom, how many ask at
//! once and how long, and what a client hears when Elasticsearch is away.
//!
//! **Invariant:** a collection that a client may not read, one that there is none of, and an index
//! of somebody else answer with the same words.

use std::collections::HashMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;
use globset::GlobSet;
use serde_json::Value;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout};

use crate::causes::with_causes;
use crate::config::ElasticsearchConfig;
use crate::config::gateway::GatewayConfig;
use crate::elasticsearch::client::{ElasticError, Elasticsearch};
use crate::elasticsearch::index::definition::alias_name;
use crate::elasticsearch::serve::{Found, Lookup, Served, read_found};
use crate::gateway::principal::{Principal, globs};
use crate::gateway::problem::{self, Problem};
use crate::gateway::refreshes::Refreshes;
use crate::mapping::file::collection_name;

/// A read by id takes a millisecond. Who waits longer than this has gone, or tries again.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Most questions at once; the others wait. Each is a connection, and Elasticsearch queues what is
/// more than it has threads for anyhow.
const QUESTIONS_MAX: usize = 128;
/// A failure that thousands of clients see is logged as one.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);
/// A collection that was there so lately still is, for who begins to wait for a document of it.
const THERE_FOR: Duration = Duration::from_secs(10);
/// Elasticsearch refuses longer ones when documents are written.
const ID_BYTES_MAX: usize = 512;

pub struct Reader {
    elastic: Elasticsearch,
    config: ElasticsearchConfig,
    allowed: GlobSet,
    places: Semaphore,
    refreshes: Refreshes,
    complained: Mutex<Option<Instant>>,
    /// When each alias was last seen; no name of a client's making comes in.
    there: std::sync::Mutex<HashMap<String, Instant>>,
}

impl Reader {
    /// Does not connect yet.
    ///
    /// # Errors
    /// As [`Elasticsearch::new`].
    pub fn new(
        config: &ElasticsearchConfig,
        gateway: &GatewayConfig,
    ) -> Result<Self, ElasticError> {
        let request_timeout = config.request_timeout.min(ANSWER_MAX);
        let config = ElasticsearchConfig { request_timeout, ..config.clone() };
        Ok(Self {
            elastic: Elasticsearch::new(&config)?,
            allowed: globs(&gateway.collections),
            places: Semaphore::new(QUESTIONS_MAX),
            refreshes: Refreshes::default(),
            complained: Mutex::new(None),
            there: std::sync::Mutex::default(),
            config,
        })
    }

    /// The alias of a collection that this client may read.
    ///
    /// # Errors
    /// 404.
    pub fn alias(&self, principal: &Principal, collection: &str) -> Result<String, Problem> {
        let may = collection_name(collection).is_ok()
            && self.allowed.is_match(collection)
            && principal.may_read(collection);
        if may { Ok(alias_name(&self.config, collection)) } else { Err(problem::not_found()) }
    }

    /// A document as of now. None: there is none with this id.
    ///
    /// # Errors
    /// 404: there is no such collection. 503: Elasticsearch is away.
    pub async fn document(&self, alias: &str, id: &str) -> Result<Option<Served>, Problem> {
        // What can't be an id still is a question about the collection.
        let asked = if (1..=ID_BYTES_MAX).contains(&id.len()) { id } else { "-" };
        match self.ask(self.elastic.serve(alias, asked)).await? {
            Lookup::Unknown => Err(problem::not_found()),
            Lookup::Absent => {
                self.note(alias);
                Ok(None)
            }
            Lookup::Found(served) => {
                self.note(alias);
                Ok(Some(served).filter(|_| asked == id))
            }
        }
    }

    /// Whether there is such a collection, as of a moment ago: who waits for a document would
    /// otherwise cost Elasticsearch two reads.
    ///
    /// # Errors
    /// As [`Reader::document`].
    pub async fn is_there(&self, alias: &str) -> Result<(), Problem> {
        let last = self.there().get(alias).copied();
        if last.is_some_and(|it| it.elapsed() < THERE_FOR) {
            return Ok(());
        }
        match self.ask(self.elastic.is_served(alias)).await? {
            true => {
                self.note(alias);
                Ok(())
            }
            false => Err(problem::not_found()),
        }
    }

    fn note(&self, alias: &str) {
        let mut there = self.there();
        if let Some(last) = there.get_mut(alias) {
            *last = Instant::now();
        } else {
            there.insert(alias.to_owned(), Instant::now());
        }
    }

    fn there(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        // Nothing that may panic is done while it is held.
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what was written so far findable by searches.
    ///
    /// # Errors
    /// 503.
    pub async fn refresh(&self, alias: &str) -> Result<(), Problem> {
        self.ask(self.refreshes.refresh(alias, || self.elastic.refresh(alias))).await
    }

    /// What a search finds: [`Reader::found`] reads it.
    ///
    /// # Errors
    /// 404: there is no such collection. 400: the server can't make sense of a value. 503: it is
    /// away.
    pub async fn search(&self, alias: &str, body: &Value) -> Result<Bytes, Problem> {
        self.ask(async {
            match self.elastic.is_served(alias).await? {
                true => match self.elastic.search(alias, body).await {
                    Err(error @ ElasticError::Refused { status: 400, .. }) => {
                        self.complain(&error).await;
                        Ok(Err(Problem::new(
                            StatusCode::BAD_REQUEST,
                            "bad-search",
                            "a parameter's value does not fit the field that is searched",
                        )))
                    }
                    answer => answer.map(Ok),
                },
                false => Ok(Err(problem::not_found())),
            }
        })
        .await?
    }

    /// Reads the answer of [`Reader::search`].
    ///
    /// # Errors
    /// 503.
    pub async fn found<'a>(&self, answer: &'a Bytes, alias: &str) -> Result<Found<'a>, Problem> {
        match read_found(answer, alias) {
            Ok(found) => Ok(found),
            Err(error) => Err(self.refusal(error).await),
        }
    }

    /// Waits for a place and an answer, not for ever.
    async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, ElasticError>>,
    ) -> Result<T, Problem> {
        let asked = timeout(ANSWER_MAX, async {
            let _place = self.places.acquire().await;
            question.await
        });
        match asked.await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.refusal(error).await),
            Err(_late) => {
                let source = format!("no answer within {} s", ANSWER_MAX.as_secs()).into();
                let doing = "reading for a client";
                Err(self.refusal(ElasticError::Unavailable { doing, source }).await)
            }
        }
    }

    /// What a client hears of an error: none of its words.
    async fn refusal(&self, error: ElasticError) -> Problem {
        if let ElasticError::NotFound { .. } = error {
            return problem::not_found();
        }
        self.complain(&error).await;
        let detail = "documents can't be read now; try again";
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail).retry_after(1)
    }

    async fn complain(&self, error: &ElasticError) {
        let mut last = self.complained.lock().await;
        if last.is_none_or(|it| it.elapsed() >= COMPLAINT_INTERVAL) {
            *last = Some(Instant::now());
            tracing::warn!(error = with_causes(error), "a client's question has no answer");
        }
    }
}
