//! The demo's page in a real Chromium, on the whole path: a profile is created, its timeline is
//! complete, it is edited, a refusal is told; and the examples of README.md run in the same browser.
#![allow(clippy::unwrap_used, reason = "functions beside #[test] are tests here too")]

mod support;

use serde_json::{Value, json};
use support::browser::Browser;
use support::eventually;
use support::robot::{self, Kind, Robot};
use support::world::{PATIENCE, Wishes, World, free_address};

/// What the page and README.md say.
const TOPIC: &str = "commands.profile";

/// The whole path with a gateway and a robot, and who is logged in.
struct Path {
    world: World,
    gateway: String,
    session: String,
    _robot: Robot,
    _daemon: support::daemon::Daemon,
}

/// The section's examples, one after the other.
fn examples() -> String {
    let readme = include_str!("../README.md");
    let section = readme.split("\n## For frontend developers\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks: Vec<&str> =
        section.split("```js\n").skip(1).map(|it| it.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 3, "README.md has three examples");
    blocks.concat()
}

async fn path(name: &str) -> Path {
    let name_full = format!("{name}_{}", std::process::id());
    let gateway = free_address();
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/page");
    let config = format!(
        "[outbox]\ntopic = \"{{topic_prefix}}.event.{{aggregatetype}}\"\n\
         [[topics]]\nname = \"{TOPIC}\"\nkind = \"command\"\n\
         [[topics]]\nname = \"{responses}\"\nkind = \"response\"\n\
         [gateway]\nlisten = \"{gateway}\"\nanonymous = true\npage = \"{}\"\n\
         response_topics = [\"{responses}\"]\n\
         [[gateway.commands]]\ntopic = \"{TOPIC}\"\ncollections = [\"profile_page\"]\n",
        page.display(),
        responses = robot::responses(&name_full),
    );
    let wishes = Wishes { companies: 1, kafka: &config, ..Wishes::default() };
    let world = World::new(name, wishes).await;
    world.keep_mappings(&["profile_page.toml"]);
    robot::migrate(&world);
    // The topic is shared with earlier runs, whose sessions must not be ours.
    let session = format!("ada-{name_full}");
    let (client, _connection) = world.client().await;
    let login = "INSERT INTO auth.session (id, username) VALUES ($1, 'ada')";
    client.execute(login, &[&session]).await.unwrap();
    world.onelog(&["prepare"]);
    let daemon = world.start();
    let robot = Robot::start_on(Kind::Plain, &world.database_url, TOPIC, world.folder.path());
    let url = format!("http://{gateway}/");
    eventually("the gateway serves the page", PATIENCE, || async {
        reqwest::get(&url).await.ok().filter(|it| it.status().is_success())
    })
    .await;
    world.built().await;
    Path { world, gateway, session, _robot: robot, _daemon: daemon }
}

async fn shows(browser: &Browser, selector: &str, wanted: &str) {
    let what = format!("{selector} shows {wanted:?}");
    eventually(&what, PATIENCE, || async {
        browser.text(selector).await.contains(wanted).then_some(())
    })
    .await;
}

/// The names of the hops in the newest timeline of that kind.
async fn hops(browser: &Browser, kind: &str) -> Value {
    let script = format!(
        "const all = document.querySelectorAll('li[data-type={kind}]')[0].querySelectorAll('tr'); \
         return [...all].map((it) => it.dataset.hop)"
    );
    browser.run(&script).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_written_and_read_in_a_browser() {
    let path = path("page").await;
    let browser = Browser::start().await;
    browser.open(&format!("http://{}/#session={}", path.gateway, path.session)).await;

    browser.fill("#create-name", "Ada <b>Lovelace</b>").await;
    browser.fill("#create-headline", "Analyst").await;
    browser.fill("#create-url", "https://ada.example/").await;
    browser.click("#create button").await;
    shows(&browser, "li[data-type=CreateProfile][data-state=done] .said", "ProfileCreated").await;
    let all = json!(["sent", "accepted", "committed", "logged", "read", "written", "heard", "all"]);
    assert_eq!(hops(&browser, "CreateProfile").await, all, "the timeline is complete");
    shows(&browser, "#profile-name", "Ada <b>Lovelace</b>").await;
    // It was sent before its profile was.
    shows(&browser, "#profile-websites a", "https://ada.example/").await;
    // Of the two commands, the one whose document was heard of last.
    shows(&browser, "#status", "its document is written").await;

    browser.fill("#edit-name", "Ada King").await;
    browser.click("#edit button").await;
    shows(&browser, "#profile-name", "Ada King").await;
    shows(&browser, "#profile-revision", "2").await;
    shows(&browser, "li[data-type=UpdateProfile][data-state=done] .said", "ProfileUpdated").await;

    browser.fill("#session", "nobody").await;
    browser.fill("#edit-headline", "Thief").await;
    browser.click("#edit button").await;
    shows(&browser, "#alert", "the session is unknown or over").await;
    shows(&browser, "li[data-state=failed] .said", "CommandFailed").await;

    // What is shown is in the page's address.
    browser.open("about:blank").await;
    let shown = path.world.documents("profile_page").await;
    let (id, document) = shown.first_key_value().unwrap();
    assert_eq!(document["headline"], json!("Analyst"), "nothing of what was refused");
    let session = &path.session;
    let url = format!("http://{}/#session={session}&profile={id}", path.gateway);
    browser.open(&url).await;
    shows(&browser, "#profile-name", "Ada King").await;
    is_for_everyone(&browser).await;
    assert_eq!(browser.console().await, Vec::<String>::new(), "the console is silent");

    let run = format!("const sessionId = '{session}';\n{}", examples());
    let read = browser.run(&format!("{run}\nreturn [profile, heard, again.status]")).await;
    assert_eq!(read[0]["name"], json!("Ada"), "{read}");
    assert_eq!(read[1]["id"], read[0]["document_id"], "{read}");
    assert_eq!(read[2], json!(304), "{read}");
    let refused = format!("const sessionId = 'nobody';\n{}", examples());
    let refused = format!("try {{\n{refused}\n}} catch (it) {{ return it.message }}");
    assert_eq!(browser.run(&refused).await, json!("the session is unknown or over: log in again"));
}

/// Every field has a label, and a narrow screen needs no scrolling sideways.
async fn is_for_everyone(browser: &Browser) {
    let bare = "return [...document.querySelectorAll('input, button')].filter((it) => \
                !(it.labels?.length || it.textContent)).map((it) => it.id)";
    assert_eq!(browser.run(bare).await, json!([]), "fields without a label");
    browser.narrow(320).await;
    let wide = "const { scrollWidth, clientWidth } = document.documentElement; \
                return scrollWidth - clientWidth";
    assert_eq!(browser.run(wide).await, json!(0), "320 px are enough");
}
