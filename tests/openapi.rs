//! The gateway's description of itself, `/v1/openapi.json`: it names each route and no other, and
//! the running gateway answers as it says.
#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

use std::collections::BTreeSet;

use onelog::gateway::routes::routes;
use serde_json::Value;

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
