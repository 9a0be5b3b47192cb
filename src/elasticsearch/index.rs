//! Indices and aliases: one index a definition, one alias a collection, swapped in one call.
//!
//! **Invariant:** frontends read the alias only, and nothing here leaves it without an index or
//! with two.

pub mod definition;
pub mod field_types;
pub mod note;
pub mod read;
pub mod survey;

use elasticsearch::http::Method;
use serde_json::{Value, json};

use crate::config::ElasticsearchConfig;
use crate::elasticsearch::bulk::write_alias;
use crate::elasticsearch::client::{ElasticError, Elasticsearch, Request};
use crate::elasticsearch::conflict::Torn;
use crate::elasticsearch::index::definition::IndexDefinition;
use crate::elasticsearch::index::note::{IndexMeta, SweptTo};
use crate::elasticsearch::index::survey::Survey;

/// What a collection's alias leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AliasState {
    Missing,
    /// One index, or several if someone else had a hand in it.
    On(Vec<String>),
    /// There is an index of that very name, so that the alias can't be made.
    IsAnIndex,
}

impl Elasticsearch {
    /// Creates an index unless it is there. True: it is new.
    ///
    /// # Errors
    /// As any request; [`ElasticError::Refused`] also when the index that is there is not ours.
    pub async fn create(&self, definition: &IndexDefinition) -> Result<bool, ElasticError> {
        let doing = "creating an index";
        let index = &definition.index;
        if let Some(meta) = self.note(index).await? {
            let same = meta.is_some_and(|it| {
                (&it.collection, &it.hash) == (&definition.meta.collection, &definition.meta.hash)
            });
            let reason =
                format!("index {index} is there and is not ours: delete it, or set index_prefix");
            return match same {
                true => Ok(false),
                false => Err(ElasticError::Refused { doing, status: 400, reason }),
            };
        }
        let send = |body: &Value| {
            self.send(Request::new(doing, Method::Put, format!("/{index}")).body(body))
        };
        let mut sent = send(&definition.body).await;
        if let Err(ElasticError::Refused { reason, .. }) = &sent
            && let Some(body) = definition.without_unknown(reason)
        {
            sent = send(&body).await;
        }
        match sent {
            Ok(_) => Ok(true),
            // Another process was quicker, or our first try was and its answer was lost.
            Err(ElasticError::Refused { reason, .. })
                if reason.starts_with("resource_already_exists_exception") =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What an alias leads to.
    ///
    /// # Errors
    /// As any request.
    pub async fn alias_state(&self, alias: &str) -> Result<AliasState, ElasticError> {
        let doing = "asking for an alias";
        let found: Value = match self.json(Request::get(doing, format!("/{alias}/_alias"))).await {
            Ok(found) => found,
            Err(ElasticError::NotFound { .. }) => return Ok(AliasState::Missing),
            Err(error) => return Err(error),
        };
        let indices: Vec<String> =
            found.as_object().into_iter().flat_map(|it| it.keys().cloned()).collect();
        Ok(match indices.as_slice() {
            [] => AliasState::Missing,
            [only] if only == alias => AliasState::IsAnIndex,
            _ => AliasState::On(indices),
        })
    }

    /// Leads an alias to `new` and away from all of `old`, in one step that readers can't see
    /// between.
    ///
    /// # Errors
    /// As any request. [`ElasticError::NotFound`]: the alias was not on `old` any more, or an index
    /// is gone; nothing has changed then.
    pub async fn swap_alias(
        &self,
        alias: &str,
        new: &str,
        old: &[String],
    ) -> Result<(), ElasticError> {
        let others = old.iter().filter(|it| it.as_str() != new);
        let mut actions: Vec<Value> = others
            .map(|it| json!({ "remove": { "index": it, "alias": alias, "must_exist": true } }))
            .collect();
        actions.push(json!({ "add": { "index": new, "alias": alias } }));
        self.alias_actions("swapping an alias", actions).await
    }

    /// Takes an alias from an index; fine if it is not there.
    ///
    /// # Errors
    /// As any request.
    pub async fn remove_alias(&self, alias: &str, index: &str) -> Result<(), ElasticError> {
        let remove = json!({ "remove": { "index": index, "alias": alias, "must_exist": false } });
        match self.alias_actions("removing an alias", vec![remove]).await {
            Err(ElasticError::NotFound { .. }) => Ok(()),
            ended => ended,
        }
    }

    /// Gives an index the hidden alias that it is written through.
    ///
    /// # Errors
    /// As any request.
    pub async fn add_write_alias(&self, index: &str) -> Result<(), ElasticError> {
        let alias = write_alias(index);
        let add = json!({ "add": { "index": index, "alias": alias, "is_hidden": true } });
        self.alias_actions("putting an index's write alias back", vec![add]).await
    }

    async fn alias_actions(
        &self,
        doing: &'static str,
        actions: Vec<Value>,
    ) -> Result<(), ElasticError> {
        let request = Request::new(doing, Method::Post, "/_aliases");
        self.send(request.body(&json!({ "actions": actions }))).await.map(drop)
    }

    /// Notes whether every document of an index has been written, so that nothing is owed to it.
    /// With `false` a sweep of the whole is owed: what an unfinished one has noted is void.
    ///
    /// # Errors
    /// As `amend`.
    pub async fn mark_built(&self, index: &str, built: bool) -> Result<(), ElasticError> {
        self.amend_if(index, |meta| {
            meta.swept = None;
            if !built {
                meta.owe();
            }
            meta.built = built;
            true
        })
        .await
        .map(drop)
    }

    /// Notes how far the sweep of era `swept.era` has come. False: that sweep is void meanwhile,
    /// and nothing was noted. `fingerprint` is what the sweep's build was resolved in: a sweep is
    /// not to be resumed by a build of another one (A11).
    ///
    /// # Errors
    /// As [`Elasticsearch::mark_built`].
    pub async fn note_swept(
        &self,
        index: &str,
        swept: &SweptTo,
        fingerprint: String,
    ) -> Result<bool, ElasticError> {
        self.amend_if(index, |meta| {
            let counts = meta.era == swept.era && !meta.built;
            if counts {
                meta.swept = Some(swept.clone());
                meta.fingerprint = fingerprint;
            }
            counts
        })
        .await
    }

    /// Marks an index as built by the sweep of this era. False: another one is owed meanwhile.
    ///
    /// # Errors
    /// As [`Elasticsearch::mark_built`].
    pub async fn finish_sweep(
        &self,
        index: &str,
        era: u64,
        fingerprint: String,
    ) -> Result<bool, ElasticError> {
        self.amend_if(index, |meta| {
            let counts = meta.era == era;
            if counts {
                meta.built = true;
                meta.swept = None;
                meta.fingerprint = fingerprint;
            }
            counts
        })
        .await
    }

    /// Changes our note in an index.
    ///
    /// # Errors
    /// As any request; [`ElasticError::NotFound`] when the index is gone or not ours.
    pub async fn amend(
        &self,
        index: &str,
        change: impl FnOnce(&mut IndexMeta),
    ) -> Result<(), ElasticError> {
        let always = |meta: &mut IndexMeta| {
            change(meta);
            true
        };
        self.amend_if(index, always).await.map(drop)
    }

    /// Reads our note, and writes it back if `alter` says that it did; whether it did. One at a
    /// time in a process, as Elasticsearch has no conditional write for it. Of two processes at
    /// the same moment the later one's note stands, which is why a command sees to it that its wish does.
    ///
    /// # Errors
    /// As [`Elasticsearch::amend`].
    pub async fn amend_if(
        &self,
        index: &str,
        alter: impl FnOnce(&mut IndexMeta) -> bool,
    ) -> Result<bool, ElasticError> {
        let doing = "changing our note in an index";
        let _alone = self.notes.lock().await;
        let Some(mut meta) = self.meta(index).await? else {
            let reason = format!("{index} is gone or not ours");
            return Err(ElasticError::NotFound { doing, reason });
        };
        if !alter(&mut meta) {
            return Ok(false);
        }
        let body = json!({ "_meta": meta.to_json() });
        let request = Request::new(doing, Method::Put, format!("/{index}/_mapping"));
        self.send(request.body(&body)).await?;
        Ok(true)
    }

    /// Our note in an index; None: it is gone, or not ours.
    ///
    /// # Errors
    /// As any request.
    pub async fn meta(&self, index: &str) -> Result<Option<IndexMeta>, ElasticError> {
        Ok(self.note(index).await?.flatten())
    }

    /// None: there is no such index. Some(None): it has no note of ours.
    async fn note(&self, index: &str) -> Result<Option<Option<IndexMeta>>, ElasticError> {
        let request = Request::get("reading an index's note", format!("/{index}/_mapping"));
        let found: Value = match self.json(request).await {
            Ok(found) => found,
            Err(ElasticError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(found.get(index).map(note_of))
    }

    /// Looks at every index below our prefix, in one request.
    ///
    /// # Errors
    /// As any request.
    pub async fn survey(&self, config: &ElasticsearchConfig) -> Result<Survey, ElasticError> {
        let path = format!(
            "/{}*?expand_wildcards=open,closed&filter_path=*.aliases,*.mappings._meta.onelog,\
             *.settings.index.blocks",
            config.index_prefix
        );
        let found: Value = self.json(Request::get("looking at all indices", path)).await?;
        Ok(Survey::from_json(&found, config))
    }

    /// Every index of ours of a collection, live or not, with our note, by name. `alias` is the
    /// collection's, as their names begin with it.
    ///
    /// # Errors
    /// As any request.
    pub async fn list_indices(
        &self,
        alias: &str,
        collection: &str,
    ) -> Result<Vec<(String, IndexMeta)>, ElasticError> {
        let request = Request::get("listing indices", format!("/{alias}-*/_mapping"));
        let found: Value = self.json(request).await?;
        let all = found.as_object().into_iter().flatten();
        // `a-*` also finds the indices of a collection `a-b`; the note tells.
        let ours = all.filter_map(|(index, it)| Some((index.clone(), note_of(it)?)));
        let mut list: Vec<_> = ours.filter(|(_, it)| it.collection == collection).collect();
        list.sort_by(|left, right| left.0.cmp(&right.0));
        Ok(list)
    }

    /// Deletes an index; one that is gone is fine.
    ///
    /// # Errors
    /// As any request.
    pub async fn delete_index(&self, index: &str) -> Result<(), ElasticError> {
        let request = Request::new("deleting an index", Method::Delete, format!("/{index}"));
        match self.send(request).await {
            Ok(_) | Err(ElasticError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives a field of an index a type that takes what a document brings.
    ///
    /// # Errors
    /// As any request; [`ElasticError::Refused`]: the field has got another type meanwhile.
    pub async fn widen(&self, index: &str, torn: &Torn) -> Result<(), ElasticError> {
        let doing = "giving a field a wider type";
        let request = Request::new(doing, Method::Put, format!("/{index}/_mapping"));
        self.send(request.body(&torn.wider())).await.map(drop)
    }

    /// How many documents were searchable at the last refresh.
    ///
    /// # Errors
    /// As any request.
    pub async fn count(&self, index: &str) -> Result<u64, ElasticError> {
        let doing = "counting documents";
        let found: Value = self.json(Request::get(doing, format!("/{index}/_count"))).await?;
        found
            .get("count")
            .and_then(Value::as_u64)
            .ok_or_else(|| ElasticError::Malformed { doing, source: "no count".into() })
    }

    /// Makes every write so far searchable.
    ///
    /// # Errors
    /// As any request.
    pub async fn refresh(&self, index: &str) -> Result<(), ElasticError> {
        let path = format!("/{index}/_refresh");
        self.send(Request::new("refreshing an index", Method::Post, path)).await.map(drop)
    }
}

fn note_of(index: &Value) -> Option<IndexMeta> {
    IndexMeta::from_json(index.get("mappings")?.get("_meta")?)
}
