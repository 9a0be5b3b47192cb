//! The gateway's description of itself, `/v1/openapi.json`: it names each route and no other, and
//! the running gateway answers as it says.
#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

mod support;

use std::collections::BTreeSet;
use std::process::Command;

use onelog::gateway::routes::routes;
use serde_json::Value;
use support::gateway::{ask, configure, listening};
use support::server;
use support::world::{Wishes, World};

const DESCRIPTION: &str = include_str!("../src/gateway/openapi.json");
const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

fn description() -> Value {
    serde_json::from_str(DESCRIPTION).unwrap()
}

#[test]
fn every_route_is_described_and_no_other() {
    let description = description();
    let paths = description["paths"].as_object().unwrap();
    let described: BTreeSet<(&str, &str)> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.filter(|it| METHODS.contains(&&***it)).map(move |it| (&**path, &**it))
        })
        .collect();
    let all = routes();
    let routed: BTreeSet<(&str, &str)> = all.iter().map(|(path, it, _)| (*path, *it)).collect();
    assert_eq!(routed.len(), all.len(), "a route is there twice");
    assert_eq!(described, routed);
}

/// A route that is not in the list is not in the router either, so that the test above sees all.
#[test]
fn the_router_has_no_route_beside_the_list() {
    let gateway = include_str!("../src/gateway.rs");
    let routes = gateway.matches(".route(").count();
    assert_eq!(routes, 2, "the list's loop and /healthz; a new route goes to gateway/routes.rs");
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|it| walk(it, found));
            }
            Value::Array(items) => items.iter().for_each(|it| walk(it, found)),
            _ => {}
        }
    }
    let description = description();
    let mut references = Vec::new();
    walk(&description, &mut references);
    assert!(!references.is_empty());
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(description.pointer(pointer).is_some(), "{reference}");
    }
}

const SETUP: &str = "CREATE TABLE profile (key text PRIMARY KEY, document_id text, name text); \
                     INSERT INTO profile VALUES ('p1', 'doc-1', 'Ada')";
const MAPPING: &str = "[[denormalization]]\ncollection = \"profile_page\"\nkey = \"key\"\n\
                       sql = \"SELECT key, document_id, name FROM profile\"";
/// What the description's examples speak of. The key is `k`.
const GATEWAY: &str = r#"
rate_limit = 100000
rate_burst = 100000
[[gateway.api_keys]]
name = "k"
sha256 = "8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a"
[[gateway.searches]]
collection = "profile_page"
name = "by_name"
body = '''{"query": {"match": {"name": "{{q}}"}}}'''
"#;
/// Not `not_a_server_error`: 503 and 504 are described, and what is not described is a failure of
/// `status_code_conformance`. Not the checks of what must be refused: which documents, collections
/// and searches there are is not in the description.
const CHECKS: &str = "status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,\
                      unsupported_method,allow_header_conformance,ignored_auth";

/// Schemathesis makes requests of the description, good ones and bad ones, and holds the answers
/// against it. Feedback has no end, so that it is not asked.
#[tokio::test(flavor = "multi_thread")]
async fn the_running_gateway_answers_as_it_says() {
    let world = World::new("openapi", Wishes { instead: Some(SETUP), ..Wishes::default() }).await;
    std::fs::write(world.mappings.join("page.toml"), MAPPING).unwrap();
    let address = configure(&world, GATEWAY);
    world.onelog(&["prepare"]);
    let daemon = world.start();
    listening(&address).await;
    world.built().await;
    let served = ask(&address, "GET /v1/openapi.json", &[("x-api-key", "k")], "").await;
    assert_eq!((served.status, served.json()), (200, description()));
    let run = "from schemathesis.cli import schemathesis; schemathesis()";
    let url = format!("http://{address}/v1/openapi.json");
    let mut command = Command::new(server("ONELOG_TEST_DJANGO"));
    command.current_dir(world.folder.path());
    command.args(["-c", run, "run", &url, "--header", "X-API-Key: k", "--checks", CHECKS]);
    command.args(["--exclude-path", "/v1/feedback", "--phases", "examples,coverage,fuzzing"]);
    command.args(["--max-examples", "25", "--seed", "1", "--request-timeout", "60"]);
    command.args(["--suppress-health-check", "all", "--no-color", "--no-shrink"]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{complained}");
    assert!(said.contains("5 selected / 6 total"), "all but feedback were asked: {said}");
    for status in ["500", "503"] {
        let label = format!("status=\"{status}\"");
        let count = world.metric_where("onelog_gateway_requests_total", &label).await;
        assert_eq!(count, Some(0.0), "{status}: {said}");
    }
    assert!(daemon.stop().await.success());
}
