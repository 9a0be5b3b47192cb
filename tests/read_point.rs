//! The read point against real servers: documents as they were written, who may read what, what
//! hostile requests get, searches by their templates, and no gap while an alias is swapped.
#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

mod support;
#[path = "read_point/waits.rs"]
mod waits;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use elasticsearch::http::Method;
use serde_json::{Value, json};
use support::daemon::Daemon;
use support::eventually;
use support::gateway::{Answer, ask, configure, listening, sha256};
use support::token::{Issuer, SECTION};
use support::world::{PATIENCE, Wishes, World};

const SETUP: &str = "
    CREATE TABLE profile (key text PRIMARY KEY, document_id text, session_id uuid, name text,
                          amount numeric, note jsonb, born date);
    INSERT INTO profile VALUES
        ('p1', 'doc-1', '00000000-0000-0000-0000-000000000001', 'Ada Ann', 12345678901234567890.10,
         '{\"b\": 1.0, \"a\": [{\"x\": 1, \"y\": 2}, {\"y\": 3}]}', '1815-12-10'),
        ('p2', 'doc', '00000000-0000-0000-0000-000000000001', 'Ada Bo', 2, '{}', '1990-01-01'),
        ('a/b ?#%é', 'x y', '00000000-0000-0000-0000-000000000002', 'Cid', 3, '{}', NULL),
        ('..', 'dots', '00000000-0000-0000-0000-000000000002', '\"}}', 4, '{}', NULL);";

const MAPPING: &str = r#"
[[denormalization]]
collection_name = "profile_page"
key_to_denormalize_upon = "key"
sql = "SELECT key, document_id, session_id, name, amount, note, born FROM profile"
[[denormalization]]
collection_name = "secret_page"
key_to_denormalize_upon = "key"
sql = "SELECT key, name FROM profile"
[[denormalization]]
collection_name = "other_page"
key_to_denormalize_upon = "key"
sql = "SELECT key, name FROM profile"
"#;

/// SHA-256 of `all` and `one`.
const GATEWAY: &str = r#"
collections = ["*_page", "nothing_*", "foreign"]
rate_limit = 10000
rate_burst = 10000
[[gateway.api_keys]]
name = "all"
sha256 = "ALL"
[[gateway.api_keys]]
name = "one"
sha256 = "ONE"
collections = ["profile_*", "nothing_*", "foreign"]
[[gateway.searches]]
collection = "profile_page"
name = "by_name"
body = '''{"query": {"match": {"name": "{{q}}"}}, "size": "{{size:integer=10}}",
           "sort": ["key.keyword"], "highlight": {"fields": {"name": {}}}}'''
[[gateway.searches]]
collection = "profile_page"
name = "by_birth"
body = '''{"query": {"range": {"born": {"gte": "{{since}}"}}},
           "aggs": {"most": {"max": {"field": "amount"}}}}'''
"#;

/// Who asks, and where.
struct Client {
    address: String,
    key: &'static str,
}

impl Client {
    async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut all = vec![("x-api-key", self.key)];
        all.extend(headers);
        ask(&self.address, &format!("GET {path}"), &all, "").await
    }

    async fn document(&self, id: &str) -> Answer {
        self.get(&format!("/v1/collections/profile_page/documents/{id}")).await
    }
}

async fn world(issuer: &Issuer) -> (World, Daemon, String) {
    let wishes = Wishes { instead: Some(SETUP), ..Wishes::default() };
    let world = World::new("read_point", wishes).await;
    std::fs::write(world.mappings.join("pages.toml"), MAPPING).unwrap();
    let lines = GATEWAY.replace("ALL", &sha256("all")).replace("ONE", &sha256("one")) + SECTION;
    let address = configure(&world, &lines);
    std::fs::write(world.folder.path().join("keys.json"), issuer.set()).unwrap();
    world.onelog(&["prepare"]);
    let daemon = world.start();
    listening(&address).await;
    world.built().await;
    (world, daemon, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_read_as_they_were_written() {
    let issuer = Issuer::new();
    let (world, daemon, address) = world(&issuer).await;
    let client = Client { address: address.clone(), key: "one" };
    by_id(&world, &client).await;
    what_is_not_there(&world, &client).await;
    by_the_ids_of_browsers(&world, &client).await;
    searches(&client).await;
    waits::waits(&world, &client).await;
    waits::refusals(&world, &client, &issuer).await;
    assert!(!daemon.log_text().contains("panicked"));
    assert!(daemon.stop().await.success());
}

async fn by_id(world: &World, client: &Client) {
    let answer = client.document("p1").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
    for digits in ["12345678901234567890.10", "\"b\": 1.0"] {
        assert!(answer.body.contains(digits), "{}", answer.body);
    }
    let path = format!("/{}/_doc/p1", world.alias("profile_page"));
    let stored = world.elastic(Method::Get, &path, None).await.unwrap();
    let hash = stored["_index"].as_str().unwrap().rsplit_once('-').unwrap().1;
    let etag = format!("\"{}-{hash}\"", stored["_version"]);
    assert_eq!(answer.header("etag"), Some(&*etag));
    for (given, status) in [(&*etag, 304), ("W/\"1-x\"", 200), ("*", 304)] {
        let path = "/v1/collections/profile_page/documents/p1";
        let known = client.get_with(path, &[("if-none-match", given)]).await;
        assert_eq!((known.status, known.header("etag")), (status, Some(&*etag)), "{given}");
        assert!(status == 200 || known.body.is_empty());
    }
    let some = client.document("p1?fields=amount,note.a.x").await;
    assert_eq!(some.body, r#"{"amount":12345678901234567890.10,"note":{"a":[{"x":1},{}]}}"#);
    // Ids are whatever a key's text is.
    assert_eq!(client.document("a%2Fb%20%3F%23%25%C3%A9").await.json()["name"], "Cid");
    assert_eq!(client.document("%2e%2e").await.json()["name"], "\"}}");
    // A newer version has another tag.
    let (postgres, _connection) = world.client().await;
    postgres.batch_execute("UPDATE profile SET amount = 1.50 WHERE key = 'p1'").await.unwrap();
    let newer = eventually("the document follows", PATIENCE, || async {
        let path = "/v1/collections/profile_page/documents/p1";
        let answer = client.get_with(path, &[("if-none-match", &etag)]).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert!(newer.body.contains("1.50"), "{}", newer.body);
    assert_ne!(newer.header("etag"), Some(&*etag));
}

/// What is forbidden, hidden, of others or not there at all is told in the same words.
async fn what_is_not_there(world: &World, client: &Client) {
    // An index of somebody else that has the name of a collection.
    let foreign = format!("/{}", world.alias("foreign"));
    let document = format!("{foreign}/_doc/p1?refresh=true");
    world.elastic(Method::Put, &foreign, None).await.unwrap();
    world.elastic(Method::Put, &document, Some("{\"document_id\":\"doc-1\"}")).await.unwrap();
    let words = client.get("/v1/nothing").await;
    assert_eq!(words.status, 404);
    assert_eq!(words.header("content-type"), Some("application/problem+json"));
    for collection in [
        "secret_page",
        "nothing_page",
        "nothing_else",
        "foreign",
        "_all",
        "*",
        "profile_page,secret_page",
        "profile_*",
        "profile_page%2F_search%3F",
        "..",
        "%2e%2e",
        "profile_page%00",
        ".kibana",
        "PROFILE_PAGE",
        &"x".repeat(300),
    ] {
        for rest in ["documents/p1", "documents?document_id=doc-1", "_search/by_name?q=Ada"] {
            let answer = client.get(&format!("/v1/collections/{collection}/{rest}")).await;
            assert_eq!((answer.status, &*answer.body), (404, &*words.body), "{collection} {rest}");
        }
    }
    let other = Client { address: client.address.clone(), key: "all" };
    let read = other.get("/v1/collections/other_page/documents/p1").await;
    assert_eq!(read.status, 200, "another key may");
    world.elastic(Method::Delete, &foreign, None).await.unwrap();

    // Hostile ids are ids that no document has.
    let long = "x".repeat(513);
    let not_there = client.document("none").await;
    assert_eq!(not_there.json()["type"], "urn:onelog:problem:no-document");
    for id in [
        "..%2f_search",
        "%2e%2e%2f..",
        "p1%00",
        "%00",
        &long,
        "_search",
        "p1%0d%0a",
        "%F0%9F%92%A9",
    ] {
        let answer = client.document(id).await;
        assert_eq!((answer.status, &*answer.body), (404, &*not_there.body), "{id}");
    }
    for (path, status) in [
        ("../_search", 404),
        ("p1/_source", 404),
        ("%ff", 404),
        ("p1?fields=", 400),
        ("p1?fields=a&fields=b", 400),
        ("p1?feilds=a", 400),
        ("p1?routing=x", 400),
    ] {
        let answer = client.document(path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{path}");
    }
}

async fn by_the_ids_of_browsers(world: &World, client: &Client) {
    let alias = world.alias("profile_page");
    world.elastic(Method::Post, &format!("/{alias}/_refresh"), None).await.unwrap();
    let one = "00000000-0000-0000-0000-000000000001";
    let find = async |query: &str| {
        let answer = client.get(&format!("/v1/collections/profile_page/documents?{query}")).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.body);
        let hits = answer.json()["hits"].as_array().unwrap().clone();
        let mut ids: Vec<String> =
            hits.iter().map(|it| it["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    assert_eq!(find("document_id=doc-1").await, ["p1"]);
    assert_eq!(find("document_id=doc").await, ["p2"], "a word of an id is not the id");
    assert_eq!(find("document_id=DOC").await, [""; 0]);
    assert_eq!(find(&format!("session_id={one}")).await, ["p1", "p2"]);
    assert_eq!(find(&format!("document_id=doc&session_id={one}")).await, ["p2"]);
    assert_eq!(find(&format!("document_id=dots&session_id={one}")).await, [""; 0]);
    assert_eq!(find("document_id=x+y").await, ["a/b ?#%é"]);
    for query in ["", "document_id=", "name=Ada", "document_id=a&document_id=b"] {
        let path = format!("/v1/collections/profile_page/documents?{query}");
        assert_eq!(client.get(&path).await.status, 400, "{query}");
    }
    let path = "/v1/collections/profile_page/documents?document_id=doc&fields=name";
    assert_eq!(client.get(path).await.json()["hits"][0]["document"], json!({"name": "Ada Bo"}));
}

async fn searches(client: &Client) {
    let path = "/v1/collections/profile_page/_search/by_name";
    let names = |answer: &Answer| -> Vec<Value> {
        assert_eq!(answer.status, 200, "{answer:?}");
        let found = answer.json();
        let hits = found["hits"].as_array().unwrap().iter();
        hits.map(|it| it["document"]["name"].clone()).collect()
    };
    let both = client.get(&format!("{path}?q=ada")).await;
    assert_eq!(names(&both), ["Ada Ann", "Ada Bo"]);
    assert_eq!(both.json()["total"]["value"], 2);
    assert_eq!(both.json()["hits"][0]["highlight"]["name"][0], "<em>Ada</em> Ann");
    assert!(both.body.contains("\"b\": 1.0"), "as it was written: {}", both.body);
    assert_eq!(names(&client.get(&format!("{path}?q=ada&size=1")).await), ["Ada Ann"]);
    let fields = client.get(&format!("{path}?q=bo&fields=amount")).await;
    assert_eq!(fields.json()["hits"][0]["document"], json!({"amount": 2}));
    let post = async |body: &str| {
        let headers = [("x-api-key", client.key), ("content-type", "application/json")];
        ask(&client.address, &format!("POST {path}"), &headers, body).await
    };
    assert_eq!(names(&post("{\"q\": \"bo\", \"size\": 5}").await), ["Ada Bo"]);
    // What looks like a query stays a word that is looked for.
    let hostile = "%22%7D%7D%2C%22query%22%3A%7B%22match_all%22%3A%7B%7D%7D%7D";
    assert_eq!(names(&client.get(&format!("{path}?q={hostile}")).await), [""; 0]);
    assert_eq!(names(&post(r#"{"q": "\"}},\"query\":{\"match_all\":{}}}"}"#).await), [""; 0]);
    for query in ["", "q=a&size=x", "q=a&size=101", "q=a&size=-1", "q=a&query=b", "q=a&q=b"] {
        assert_eq!(client.get(&format!("{path}?{query}")).await.status, 400, "{query}");
    }
    for body in
        ["", "[]", "{\"q\": {\"query\": \"a\"}}", "{\"q\": 1}", "{\"q\": \"a\", \"size\": \"1\"}"]
    {
        assert_eq!(post(body).await.status, 400, "{body}");
    }
    let births = "/v1/collections/profile_page/_search/by_birth";
    let found = client.get(&format!("{births}?since=1900-01-01")).await;
    assert_eq!(names(&found), ["Ada Bo"]);
    assert_eq!(found.json()["aggregations"]["most"]["value"], 2.0);
    // Elasticsearch refuses the value, in words that stay here.
    let refused = client.get(&format!("{births}?since=soon")).await;
    assert_eq!(refused.status, 400);
    assert!(!refused.body.contains("parse") && !refused.body.contains("exception"), "{refused:?}");
    let other = client.get("/v1/collections/profile_page/_search/by_magic?q=a").await;
    assert_eq!(other.json()["type"], "urn:onelog:problem:not-found");
}

/// Two definitions of a collection, and readers while the alias goes from one to the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_swapped_alias_is_no_gap() {
    let wishes = Wishes { instead: Some("SELECT 1"), ..Wishes::default() };
    let world = World::new("read_point_swap", wishes).await;
    let address = configure(&world, "anonymous = true\nrate_limit = 100000\nrate_burst = 100000");
    let daemon = Daemon::start_with(
        &world.config,
        &world.folder.path().join("gateway.log"),
        &["--only", "gateway"],
    );
    listening(&address).await;
    let alias = world.alias("page");
    let index = |nth: usize| format!("{alias}-00000000000{nth}");
    for nth in [0, 1] {
        world.elastic(Method::Put, &format!("/{}", index(nth)), None).await.unwrap();
        let path = format!("/{}/_doc/a?version=7&version_type=external", index(nth));
        let body = format!("{{\"nth\":{nth}}}");
        world.elastic(Method::Put, &path, Some(&body)).await.unwrap();
    }
    let lead = async |from: Option<usize>, to: usize| {
        let add = json!({ "add": { "index": index(to), "alias": alias } });
        let remove = from.map(|it| json!({ "remove": { "index": index(it), "alias": alias } }));
        let actions: Vec<Value> = remove.into_iter().chain([add]).collect();
        let body = json!({ "actions": actions }).to_string();
        world.elastic(Method::Post, "/_aliases", Some(&body)).await.unwrap();
    };
    lead(None, 0).await;
    let over = AtomicBool::new(false);
    let reads = async {
        let mut seen = [0, 0];
        while !over.load(Ordering::Relaxed) {
            let answer = ask(&address, "GET /v1/collections/page/documents/a", &[], "").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let nth = usize::try_from(answer.json()["nth"].as_u64().unwrap()).unwrap();
            assert_eq!(answer.header("etag"), Some(&*format!("\"7-00000000000{nth}\"")));
            seen[nth] += 1;
        }
        seen
    };
    let swaps = async {
        for nth in 0..10 {
            lead(Some(nth % 2), (nth + 1) % 2).await;
        }
        over.store(true, Ordering::Relaxed);
    };
    let (seen, ()) = tokio::join!(reads, swaps);
    assert!(seen.iter().all(|it| *it > 0), "reads of both definitions: {seen:?}");
    for nth in [0, 1] {
        world.elastic(Method::Delete, &format!("/{}", index(nth)), None).await.unwrap();
    }
    assert!(daemon.stop().await.success());
}

/// The client is told to come again, and nothing of what went wrong.
#[tokio::test(flavor = "multi_thread")]
async fn without_elasticsearch_clients_are_told_to_come_again() {
    let wishes = Wishes { instead: Some("SELECT 1"), ..Wishes::default() };
    let world = World::new("read_point_away", wishes).await;
    let away = support::world::free_address();
    let text = std::fs::read_to_string(&world.config).unwrap();
    let url = format!("url = \"{}\"", support::server("ONELOG_TEST_ELASTICSEARCH"));
    let text = text.replace(&url, &format!("url = \"http://{away}\""));
    std::fs::write(&world.config, text).unwrap();
    let address = configure(&world, "anonymous = true");
    let log = world.folder.path().join("gateway.log");
    let daemon = Daemon::start_with(&world.config, Path::new(&log), &["--only", "gateway"]);
    listening(&address).await;
    for path in ["documents/a", "documents?document_id=a"] {
        let answer = ask(&address, &format!("GET /v1/collections/page/{path}"), &[], "").await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        assert!(!answer.body.contains(&away), "{answer:?}");
    }
    assert!(daemon.log_text().contains("a client's question has no answer"));
    assert!(daemon.stop().await.success());
}
