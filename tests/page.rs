//! The demo's page in a real Chromium, as the gateway serves it.
#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

mod support;

use serde_json::json;
use support::browser::Browser;
use support::daemon::Daemon;
use support::eventually;
use support::world::{PATIENCE, Wishes, World, free_address};

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_for_everyone() {
    let gateway = free_address();
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/page");
    let config = format!("[gateway]\nlisten = \"{gateway}\"\npage = \"{}\"\n", page.display());
    let wishes = Wishes { companies: 1, kafka: &config, ..Wishes::default() };
    let world = World::new("page_alone", wishes).await;
    let log = world.folder.path().join("onelog.log");
    let _daemon = Daemon::start_with(&world.config, &log, &["--only", "gateway"]);
    let url = format!("http://{gateway}/");
    eventually("the gateway serves the page", PATIENCE, || async {
        reqwest::get(&url).await.ok().filter(|it| it.status().is_success())
    })
    .await;

    let browser = Browser::start().await;
    browser.open(&url).await;
    assert_eq!(browser.text("h1").await, "A profile, written and read");
    let bare = "return [...document.querySelectorAll('input, button')].filter((it) => \
                !(it.labels?.length || it.textContent)).map((it) => it.id)";
    assert_eq!(browser.run(bare).await, json!([]), "fields without a label");
    // A field that is needed and empty: nothing is sent, and the browser says why.
    browser.click("#create button").await;
    let focused = browser.run("return document.activeElement.id").await;
    assert_eq!(focused, json!("create-name"));
    assert_eq!(browser.text("#timeline").await, "");
    browser.narrow(320).await;
    let wide = "const { scrollWidth, clientWidth } = document.documentElement; \
                return scrollWidth - clientWidth";
    assert_eq!(browser.run(wide).await, json!(0), "320 px are enough");
    assert_eq!(browser.console().await, Vec::<String>::new(), "the console is silent");
}
