//! The version rule, bulk outcomes, index definitions and aliases, against a real Elasticsearch.

#![allow(
    clippy::unwrap_used,
    reason = "a test panics; clippy sees only #[test] functions as tests"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use onelog::config::{Credentials, ElasticsearchConfig};
use onelog::document::{DocumentKey, DocumentVersion};
use onelog::elasticsearch::bulk::{Done, Outcome, Write};
use onelog::elasticsearch::client::{Distribution, ElasticError, Elasticsearch};
use onelog::elasticsearch::index::AliasState;
use onelog::elasticsearch::index::definition::{IndexDefinition, alias_name, index_name};
use onelog::mapping::plan::{CollectionPlan, EntryPlan, OutputColumn};
use onelog::mapping::{CollectionSettings, Entry, Nest, Place};
use onelog::metrics::Metrics;
use tokio::time::Instant;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A server and an index of a test's own, deleted by `close`.
struct Bed {
    elastic: Elasticsearch,
    config: ElasticsearchConfig,
    plan: CollectionPlan,
    index: Arc<str>,
    metrics: Metrics,
}

fn column(name: &str, type_oid: u32, type_name: &str) -> OutputColumn {
    OutputColumn {
        name: name.to_owned(),
        type_oid,
        type_name: type_name.to_owned(),
        value_type: type_name.trim_end_matches("[]").to_owned(),
    }
}

fn entry(nest: Nest, columns: Vec<OutputColumn>) -> EntryPlan {
    let place = Place { path: "a.toml".into(), line: 1, column: 1 };
    EntryPlan {
        entry: Entry {
            collection: "page".to_owned(),
            key: "id".to_owned(),
            sql: "SELECT".to_owned(),
            nest,
            optional: false,
            sql_place: place.clone(),
            sql_written: String::new(),
            nest_place: None,
            key_place: place,
        },
        canonical_sql: "SELECT".to_owned(),
        ordered: false,
        columns,
        tables: vec![],
        paths: vec![],
        poll_reasons: vec![],
    }
}

fn plan(hash: &str) -> CollectionPlan {
    let top = vec![
        column("id", 20, "bigint"),
        column("name", 25, "text"),
        column("amount", 1700, "numeric"),
        column("at", 1184, "timestamp with time zone"),
        column("active", 16, "boolean"),
        column("token", 2950, "uuid"),
        column("extra", 3802, "jsonb"),
        column("mood", 20_000, "public.mood"),
        column("tags", 1009, "text[]"),
    ];
    let nested = vec![column("id", 20, "bigint"), column("n", 23, "integer")];
    CollectionPlan {
        name: "page".to_owned(),
        key_type: "bigint".to_owned(),
        settings: CollectionSettings {
            field_types: vec![("sites.n".to_owned(), r#"{"type":"keyword"}"#.to_owned())],
            index_settings: r#"{"index.refresh_interval":"-1"}"#.to_owned(),
            ..CollectionSettings::default()
        },
        entries: vec![entry(Nest::Top, top), entry(Nest::Many("sites".to_owned()), nested)],
        hash: hash.to_owned(),
        fingerprint: Default::default(),
    }
}

impl Bed {
    async fn new() -> Self {
        Self::of(plan("0123456789ab")).await
    }

    async fn of(plan: CollectionPlan) -> Self {
        let url = std::env::var("ONELOG_TEST_ELASTICSEARCH")
            .expect("ONELOG_TEST_ELASTICSEARCH is not set: run make test");
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let config = ElasticsearchConfig {
            url,
            credentials: Credentials::None,
            ca_file: None,
            index_prefix: format!("t{}-{nth}-", std::process::id()),
            request_timeout: Duration::from_secs(60),
            number_of_shards: 2,
            number_of_replicas: 0,
            rollback_window: Duration::from_secs(86_400),
        };
        let elastic = Elasticsearch::new(&config).unwrap();
        let definition = IndexDefinition::new(&config, &plan, 42);
        assert!(elastic.create(&definition).await.unwrap());
        assert!(!elastic.create(&definition).await.unwrap(), "again is fine");
        let index = index_name(&config, &plan).into();
        Self { elastic, config, plan, index, metrics: Metrics::new() }
    }

    fn write(&self, key: &str, version: u64, body: Option<&str>) -> Write {
        Write {
            collection: "page".into(),
            index: Arc::clone(&self.index),
            key: DocumentKey(key.to_owned()),
            version: DocumentVersion(version),
            body: body.map(str::to_owned),
        }
    }

    async fn write_all(&self, writes: Vec<Write>) -> Vec<Outcome> {
        let deadline = Instant::now() + Duration::from_secs(30);
        self.elastic.write_all(writes, deadline, &self.metrics).await.unwrap()
    }

    async fn one(&self, key: &str, version: u64, body: Option<&str>) -> Outcome {
        self.write_all(vec![self.write(key, version, body)]).await.pop().unwrap()
    }

    async fn close(self) {
        self.elastic.delete_index(&self.index).await.unwrap();
        self.elastic.delete_index(&self.index).await.unwrap();
    }
}

#[tokio::test]
async fn the_newest_read_wins_whatever_the_order() {
    let bed = Bed::new().await;
    bed.elastic.info().await.unwrap();
    let steps = [
        ("a", 5, Some("{}"), Outcome::Done(Done::Created)),
        ("a", 5, Some("{}"), Outcome::Done(Done::Updated)),
        ("a", 4, Some("{}"), Outcome::Stale),
        ("a", 4, None, Outcome::Stale),
        ("a", 6, None, Outcome::Done(Done::Deleted)),
        ("a", 5, Some("{}"), Outcome::Stale),
        ("a", 7, Some("{}"), Outcome::Done(Done::Created)),
        ("never", 9, None, Outcome::Done(Done::NotFound)),
        ("never", 8, Some("{}"), Outcome::Stale),
        ("never", 1 << 62, Some("{}"), Outcome::Done(Done::Created)),
    ];
    for (nth, (key, version, body, expected)) in steps.into_iter().enumerate() {
        assert_eq!(bed.one(key, version, body).await, expected, "step {nth}");
    }
    bed.close().await;
}

#[tokio::test]
async fn a_bad_document_does_not_disturb_the_others() {
    let bed = Bed::new().await;
    let long = "k".repeat(513);
    let outcomes = bed
        .write_all(vec![
            bed.write("1", 1, Some(r#"{"name":"one"}"#)),
            bed.write("2", 1, Some(r#"{"name":{"an":"object"}}"#)),
            bed.write("3", 1, None),
            bed.write(&long, 1, Some("{}")),
            bed.write("", 1, Some("{}")),
            bed.write("4", 1, Some("{\"tags\":[\"a\", \n \"b\"]}")),
            bed.write("5", 1, Some("not JSON")),
        ])
        .await;
    let labels: Vec<_> = outcomes.iter().map(Outcome::label).collect();
    let expected = ["created", "refused", "not_found", "refused", "refused", "created", "refused"];
    assert_eq!(labels, expected, "{outcomes:#?}");
    let rendered = bed.metrics.render();
    let line = "onelog_elasticsearch_items_total{collection=\"page\",outcome=\"refused\"} 4";
    assert!(rendered.contains(line), "{rendered}");
    bed.close().await;
}

#[tokio::test]
async fn what_postgres_has_and_elasticsearch_has_not_is_stored_all_the_same() {
    let bed = Bed::new().await;
    let odd = [
        r#"{"amount":"NaN","at":"infinity"}"#,
        r#"{"amount":1e400,"at":"0044-03-15T00:00:00+00:00 BC"}"#,
        r#"{"at":"2024-05-06T07:08:09.123456+00:00","mood":"happy","extra":[{"a":1},{"b":[]}]}"#,
        r#"{"at":"2024-05-06","amount":[1,2.5],"extra":{"a":1.5,"day":"2024-01-01"}}"#,
        r#"{"extra":{"a":"x","day":"no date"},"sites":[{"n":"any"}],"token":null,"active":null}"#,
    ];
    for (nth, body) in odd.iter().enumerate() {
        let outcome = bed.one(&nth.to_string(), 1, Some(body)).await;
        match outcome {
            Outcome::Done(Done::Created) => {}
            other => panic!("{body}: {other:?}"),
        }
    }
    bed.close().await;
}

/// A JSON column's scalars may differ from row to row, and within an array: in a field's first
/// document, in whichever order, and many documents at once.
#[tokio::test]
async fn scalars_of_any_kind_share_a_field_of_a_json_column() {
    let bed = Bed::new().await;
    let values = ["1", "1.5", "123456789012345678901234567890", "true", "\"x\"", "null", "[[7]]"];
    let mut writes = Vec::new();
    for (nth, one) in values.iter().enumerate() {
        for (other_nth, other) in values.iter().enumerate() {
            let field = format!("f{nth}x{other_nth}");
            let bodies = [
                format!("{{\"extra\":{{\"{field}\":[{one},{other}],\"g{field}\":{one}}}}}"),
                format!("{{\"extra\":{{\"{field}\":{other},\"g{field}\":{other}}}}}"),
            ];
            for body in bodies {
                let key = writes.len().to_string();
                writes.push(bed.write(&key, 1, Some(&body)));
            }
        }
    }
    let outcomes = bed.write_all(writes.clone()).await;
    for (write, outcome) in writes.iter().zip(outcomes) {
        assert_eq!(outcome, Outcome::Done(Done::Created), "{:?}", write.body);
    }
    let keys: Vec<DocumentKey> = writes.iter().map(|it| it.key.clone()).collect();
    let found = bed.elastic.mget_sources(&bed.index, &keys).await.unwrap();
    for (write, found) in writes.into_iter().zip(found) {
        assert_eq!(found.map(|it| it.0), write.body);
    }
    assert!(bed.elastic.meta(&bed.index).await.unwrap().is_some(), "our note is where it was");
    bed.close().await;
}

/// What no field type takes beside what it has. The last is more than the depth that we allow.
fn misfits() -> Vec<String> {
    let deep = format!("{}1{}", "{\"d\":".repeat(150), "}".repeat(150));
    let misfits = [
        "{\"a\":1}",
        "{\"a\":{\"b\":1}}",
        "{\"c\":{\"b\":1}}",
        "{\"c\":\"x\"}",
        "{\"e\":[{\"b\":1},2]}",
        "5",
        "[1,{}]",
        "{\"\":1}",
        "{\" \":1}",
        "{\".\":1,\"a..b\":2}",
        "{\"g.h\":1,\"g\":2}",
        &deep,
    ];
    misfits.map(str::to_owned).into()
}

#[tokio::test]
async fn json_that_does_not_fit_is_said_with_a_cure_that_takes_it_all() {
    let bed = Bed::new().await;
    let mut refused = 0;
    for (nth, extra) in misfits().iter().enumerate() {
        let body = format!("{{\"extra\":{extra}}}");
        match bed.one(&nth.to_string(), 1, Some(&body)).await {
            Outcome::Done(Done::Created) => {}
            Outcome::Refused { reason, .. } => {
                refused += 1;
                let cure = "`fields = { COLUMN = { type = \"object\", enabled = false } }`";
                assert!(reason.contains(cure), "{body}: {reason}");
            }
            other => panic!("{body}: {other:?}"),
        }
    }
    assert!(refused >= 7, "only {refused} did not fit");
    let many: Vec<String> = (0..3_000).map(|it| format!("\"k{it}\":1")).collect();
    let many = format!("{{\"extra\":{{{}}}}}", many.join(","));
    let beyond_the_limit = bed.one("many", 1, Some(&many)).await;
    match bed.elastic.info().await.unwrap().distribution {
        Distribution::Elasticsearch => assert_eq!(beyond_the_limit, Outcome::Done(Done::Created)),
        Distribution::OpenSearch => assert_eq!(beyond_the_limit.label(), "refused"),
    }
    bed.close().await;

    let mut plan = plan("0123456789ab");
    let off = r#"{"type":"object","enabled":false}"#.to_owned();
    plan.settings.field_types.push(("extra".to_owned(), off));
    let bed = Bed::of(plan).await;
    let bodies = misfits().into_iter().map(|it| format!("{{\"extra\":{it}}}")).chain([many]);
    for (nth, body) in bodies.enumerate() {
        let key = nth.to_string();
        let outcome = bed.one(&key, 1, Some(&body)).await;
        assert_eq!(outcome, Outcome::Done(Done::Created), "{body}");
        let found = bed.elastic.mget_sources(&bed.index, &[DocumentKey(key)]).await.unwrap();
        assert_eq!(found, [Some((body, DocumentVersion(1)))]);
    }
    bed.close().await;
}

#[tokio::test]
async fn a_missing_index_is_told_and_not_made() {
    let bed = Bed::new().await;
    bed.elastic.delete_index(&bed.index).await.unwrap();
    assert_eq!(bed.one("1", 1, Some("{}")).await, Outcome::IndexMissing);
    assert_eq!(bed.one("1", 1, None).await, Outcome::IndexMissing);
    let alias = alias_name(&bed.config, "page");
    let definition = IndexDefinition::new(&bed.config, &bed.plan, 42);
    assert!(bed.elastic.create(&definition).await.unwrap(), "nothing stood in {alias}'s way");
    bed.close().await;
}

#[tokio::test]
async fn sources_come_back_byte_for_byte() {
    let bed = Bed::new().await;
    let body =
        r#"{"z": 1.000000000000000000000001, "a" : [1e2, "\u00e9é"],  "extra":{"b":1,"a":2}}"#;
    bed.one("k/1 é\"", 7, Some(body)).await;
    let keys = ["none", "k/1 é\"", "none"].map(|it| DocumentKey(it.to_owned()));
    let found = bed.elastic.mget_sources(&bed.index, &keys).await.unwrap();
    assert_eq!(found, [None, Some((body.to_owned(), DocumentVersion(7))), None]);
    bed.close().await;
}

#[tokio::test]
async fn thousands_of_documents_are_split_and_walked_over() {
    let bed = Bed::new().await;
    let keys: BTreeSet<String> = (0..2_500).map(|it| format!("key-{it}")).collect();
    let padding = "x".repeat(3_000);
    let body = format!(r#"{{"name":"{padding}"}}"#);
    let writes = keys.iter().map(|it| bed.write(it, 3, Some(&body))).collect();
    let outcomes = bed.write_all(writes).await;
    assert_eq!(outcomes.len(), 2_500);
    assert!(outcomes.iter().all(|it| *it == Outcome::Done(Done::Created)));
    bed.elastic.refresh(&bed.index).await.unwrap();
    assert_eq!(bed.elastic.count(&bed.index).await.unwrap(), 2_500);

    let distribution = bed.elastic.info().await.unwrap().distribution;
    let mut walk = bed.elastic.open_ids(&bed.index, distribution).await.unwrap();
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let page = bed.elastic.ids_page(&mut walk, 700).await.unwrap();
        if page.is_empty() {
            break;
        }
        pages += 1;
        found.extend(page);
    }
    bed.elastic.close_ids(walk).await.unwrap();
    assert_eq!((pages, found.len()), (4, 2_500));
    assert!(found.iter().all(|it| it.1 == DocumentVersion(3)));
    assert_eq!(found.into_iter().map(|it| it.0.0).collect::<BTreeSet<_>>(), keys);
    bed.close().await;
}

#[tokio::test]
async fn an_alias_is_swapped_in_one_step_and_notes_are_kept() {
    let bed = Bed::new().await;
    let elastic = &bed.elastic;
    let alias = alias_name(&bed.config, &bed.plan.name);
    let other = IndexDefinition::new(&bed.config, &plan("ba9876543210"), 42);
    elastic.create(&other).await.unwrap();
    assert_eq!(elastic.alias_state(&alias).await.unwrap(), AliasState::Missing);
    let on = |index: &str| AliasState::On(vec![index.to_owned()]);
    elastic.swap_alias(&alias, &bed.index, &[]).await.unwrap();
    assert_eq!(elastic.alias_state(&alias).await.unwrap(), on(&bed.index));
    elastic.swap_alias(&alias, &other.index, &[bed.index.to_string()]).await.unwrap();
    assert_eq!(elastic.alias_state(&alias).await.unwrap(), on(&other.index));
    let again = elastic.swap_alias(&alias, &bed.index, &[bed.index.to_string()]).await;
    again.unwrap();
    let back = elastic.swap_alias(&alias, &other.index, &["no-such-index".to_owned()]).await;
    assert!(matches!(back, Err(ElasticError::NotFound { .. })), "{back:?}");
    assert_eq!(elastic.alias_state(&other.index).await.unwrap(), AliasState::IsAnIndex);

    assert!(!elastic.meta(&other.index).await.unwrap().unwrap().built);
    elastic.mark_built(&other.index, true).await.unwrap();
    let listed = elastic.list_indices(&alias, "page").await.unwrap();
    let listed: Vec<_> = listed.iter().map(|it| (it.0.as_str(), it.1.built)).collect();
    assert_eq!(listed, [(&*bed.index, false), (other.index.as_str(), true)]);
    assert_eq!(elastic.list_indices(&alias, "pag").await.unwrap(), []);
    elastic.delete_index(&other.index).await.unwrap();
    bed.close().await;
}

/// A crash then finds the mark, and believes an index that has missed changes.
#[tokio::test]
async fn a_void_sweep_marks_nothing() {
    let bed = Bed::new().await;
    let elastic = &bed.elastic;
    let note = || async { elastic.meta(&bed.index).await.unwrap().unwrap() };
    let begun = note().await.era;
    elastic.mark_built(&bed.index, false).await.unwrap();
    let owed = note().await.era;
    assert!(!elastic.finish_sweep(&bed.index, begun, String::new()).await.unwrap());
    assert!(!note().await.built, "another sweep is owed since it began");
    assert!(elastic.finish_sweep(&bed.index, owed, String::new()).await.unwrap());
    assert!(note().await.built);
    bed.close().await;
}

#[tokio::test]
async fn an_outage_is_transient_and_ends_at_the_deadline() {
    let bed = Bed::new().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = ElasticsearchConfig { url: format!("http://{closed}"), ..bed.config.clone() };
    let away = Elasticsearch::new(&config).unwrap();
    let writes = vec![bed.write("1", 1, Some("{}"))];
    let deadline = Instant::now() + Duration::from_millis(200);
    let error = away.write_all(writes.clone(), deadline, &bed.metrics).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let error = bed.elastic.write_all(writes, deadline, &bed.metrics).await.unwrap_err();
    assert!(error.is_transient(), "too late to begin: {error}");
    bed.close().await;
}
