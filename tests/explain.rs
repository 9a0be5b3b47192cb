//! `explain`, `preview` and the warnings of `check`: what a frontend developer asks about a mapping
//! that works.

mod support;

use std::process::Output;

use elasticsearch::http::Method;
use serde_json::{Value, json};
use support::daemon::onelog;
use support::world::{Wishes, World};

const SHOP: &str = "CREATE TABLE shop (id int PRIMARY KEY, name text, opened date); \
     CREATE TABLE item (id int PRIMARY KEY, shop_id int NOT NULL, title text, price numeric, \
                        maker_id int); \
     CREATE TABLE maker (id int PRIMARY KEY, name text); \
     INSERT INTO maker SELECT n, 'Maker ' || n FROM generate_series(1, 50) n; \
     INSERT INTO shop SELECT n, 'Shop ' || n, '2020-01-01' FROM generate_series(1, 3000) n; \
     INSERT INTO item SELECT n, n % 3000 + 1, 'Item ' || n, 1.10, n % 50 + 1 FROM generate_series(1, 9000) n; \
     ALTER TABLE item REPLICA IDENTITY FULL; ANALYZE";

async fn shop(name: &str) -> World {
    let world = World::new(name, Wishes { instead: Some(SHOP), ..Wishes::default() }).await;
    let (client, _connection) = world.client().await;
    let publish = format!("CREATE PUBLICATION {} FOR TABLE shop, item, maker", world.name);
    client.batch_execute(&publish).await.expect("a publication");
    world
}

/// `onelog COMMAND FILE …` on this mapping file.
fn run(world: &World, text: &str, words: &[&str]) -> Output {
    let file = world.mappings.join("page.toml");
    std::fs::write(&file, text).expect("written");
    let (file, config) = (file.to_string_lossy(), world.config.to_string_lossy());
    onelog(&[&[words[0], &file, "--config", &config], &words[1..]].concat())
}

fn text(bytes: &[u8], world: &World) -> String {
    let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
    text.replace(&world.mappings.join("page.toml").to_string_lossy().into_owned(), "page.toml")
}

fn entry(more: &str, sql: &str) -> String {
    format!(
        "[[denormalization]]\ncollection = \"page\"\nkey = \"shop_id\"\n{more}sql = '''\n{sql}'''\n"
    )
}

fn page() -> String {
    entry("", "SELECT id AS shop_id, name FROM shop\n")
        + &entry(
            "nest_as = \"items\"\noptional = true\n",
            "SELECT i.shop_id, i.title, i.price, s.name AS shop\n\
             FROM item i JOIN shop s ON s.id = i.shop_id\nORDER BY i.title, i.id\n",
        )
}

/// The same, and an entry whose maker leads to the key over `item`.
fn page_with_makers() -> String {
    page()
        + &entry(
            "nest_as = \"makers\"\noptional = true\n",
            "SELECT DISTINCT i.shop_id, m.name FROM item i JOIN maker m ON m.id = i.maker_id\n",
        )
        + &entry(
            "nest_one_as = \"today\"\noptional = true\n",
            "SELECT id AS shop_id, now() AS seen FROM shop\n",
        )
}

const EXPLAINED: &str = r##"collection page: one document for each shop_id (integer)

  1. fields of the document itself (page.toml:5:1), by shop_id
     How a changed row finds its documents:
     - public.shop: its id is the document's key
         columns that count: id, name
     Reading this part of a document uses shop_pkey

  2. the array items, which alone makes no document (page.toml:13:1), by shop_id
     How a changed row finds its documents:
     - public.item (as i): its shop_id is the document's key
         columns that count: id, price, shop_id, title
     - public.shop (as s): its id is the document's key
         columns that count: id, name
     Reading this part of a document lacks an index:
       it reads all of public.item (9000 rows), which is slow once the table is large; run:
         CREATE INDEX CONCURRENTLY ON "public"."item" ("shop_id");

  3. the array makers, which alone makes no document (page.toml:23:1), by shop_id
     How a changed row finds its documents:
     - public.item (as i): its shop_id is the document's key
         columns that count: maker_id, shop_id
     - public.maker (as m): by m.id = i.maker_id
         about 180 documents a change; finding them lacks an index:
           it reads all of public.item (9000 rows), which is slow once the table is large; run:
             CREATE INDEX CONCURRENTLY ON "public"."item" ("maker_id");
         columns that count: id, name
     Reading this part of a document lacks an index:
       it reads all of public.item (9000 rows), which is slow once the table is large; run:
         CREATE INDEX CONCURRENTLY ON "public"."item" ("shop_id", "maker_id");

  4. the object today, which alone makes no document (page.toml:31:1), by shop_id
     How a changed row finds its documents:
     - public.shop: its id is the document's key
         columns that count: id
     Reading this part of a document uses shop_pkey
     Swept on a timer: it calls now(), whose value depends on the time, on settings or on other tables
       To have it at once: compare with a column or a constant, or let the frontend filter by the time; or say by poll_interval how old a document may be

  not every change reaches its documents at once; the collection is swept on a timer too

"##;

#[tokio::test]
async fn explain_says_how_changes_find_documents_in_words_and_in_json() {
    let world = shop("explain_text").await;
    let output = run(&world, &page_with_makers(), &["explain"]);
    assert_eq!(text(&output.stdout, &world), EXPLAINED);
    assert_eq!(output.status.code(), Some(1), "one entry is swept");

    let output = run(&world, &page_with_makers(), &["explain", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let page = &json["collections"][0];
    assert_eq!((&page["collection"], &page["live"]), (&json!("page"), &json!(false)));
    let change = &page["entries"][2]["changes"][1];
    assert_eq!(change["table"], "public.maker");
    assert_eq!(change["steps"], json!(["m.id = i.maker_id"]));
    assert_eq!(change["query"]["missing_indexes"][0]["create_index"], MAKER_INDEX);
    assert!(page["entries"][3]["swept_because"][0]["cure"].is_string());
    assert_eq!(page["entries"][0]["changes"][0]["key_column"], "id");
    let missing = &page["entries"][1]["read"]["missing_indexes"][0];
    assert_eq!(missing["create_index"], INDEX);
}

const MAKER_INDEX: &str = "CREATE INDEX CONCURRENTLY ON \"public\".\"item\" (\"maker_id\");";
const INDEX: &str = "CREATE INDEX CONCURRENTLY ON \"public\".\"item\" (\"shop_id\");";

#[tokio::test]
async fn a_missing_index_is_said_with_the_statement_that_cures_it() {
    let world = shop("explain_index").await;
    let warned = text(&run(&world, &page(), &["check"]).stdout, &world);
    assert!(warned.contains("warning  page.toml:"), "{warned}");
    assert!(warned.contains("reads all of public.item (9000 rows)"), "{warned}");
    let cure = warned.lines().find(|it| it.contains("CREATE INDEX")).expect("a cure").trim();
    assert_eq!(cure, INDEX);
    let (client, _connection) = world.client().await;
    client.batch_execute(cure).await.expect("the cure runs as it is printed");
    let cured = text(&run(&world, &page(), &["check"]).stdout, &world);
    assert!(!cured.contains("warning"), "{cured}");
    let explained = text(&run(&world, &page(), &["explain"]).stdout, &world);
    assert!(explained.contains("uses item_shop_id_idx"), "{explained}");
}

#[tokio::test]
async fn a_with_query_that_is_computed_whole_is_said() {
    let world = shop("explain_with").await;
    let sql = |how: &str| {
        format!(
            "WITH sold AS {how} (SELECT shop_id, price FROM item)\n\
             SELECT shop_id, sum(price) AS total FROM sold GROUP BY shop_id\n"
        )
    };
    let whole = text(&run(&world, &entry("", &sql("MATERIALIZED")), &["check"]).stdout, &world);
    assert!(whole.contains("WITH sold is computed as a whole for each read"), "{whole}");
    let inlined = entry("", &sql("NOT MATERIALIZED"));
    let inlined = text(&run(&world, &inlined, &["check"]).stdout, &world);
    assert!(!inlined.contains("computed as a whole"), "{inlined}");
}

const DOCUMENT: &str = r#"{
  "shop_id": 7,
  "name": "Shop 7",
  "items": [
    {
      "title": "Item 3006",
      "price": 1.10,
      "shop": "Shop 7"
    },
    {
      "title": "Item 6",
      "price": 1.10,
      "shop": "Shop 7"
    },
    {
      "title": "Item 6006",
      "price": 1.10,
      "shop": "Shop 7"
    }
  ]
}
"#;

#[tokio::test]
async fn preview_prints_json_alone_and_remarks_apart() {
    let world = shop("preview_json").await;
    let output = run(&world, &page(), &["preview", "--key", "7", "--timings"]);
    assert_eq!(text(&output.stdout, &world), DOCUMENT);
    let remarks = text(&output.stderr, &world);
    for expected in [" ms  page.toml:", "1 rows", "3 rows", " ms  page, all in one round trip"] {
        assert!(remarks.contains(expected), "{remarks}");
    }
    let output = run(&world, &page(), &["preview", "--key", "70000"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(text(&output.stderr, &world).contains("page 70000: no such document"));
}

#[tokio::test]
async fn preview_diff_compares_with_what_the_alias_has() {
    let world = shop("preview_diff").await;
    let diff = &["preview", "--key", "7", "--diff"];
    let missing = run(&world, &page(), diff);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr, &world).contains("no such alias"));

    let alias = world.alias("page");
    let index = format!("/{alias}-1");
    let body = json!({ "aliases": { alias: {} } }).to_string();
    world.elastic(Method::Put, &index, Some(&body)).await.expect("an index with the alias");
    let put = format!("{index}/_doc/7");
    let live = DOCUMENT.replace("\"Shop 7\"", "\"Shop\"");
    world.elastic(Method::Put, &put, Some(&live)).await.expect("a document");
    let differs = run(&world, &page(), diff);
    assert_eq!(differs.status.code(), Some(1));
    let said = text(&differs.stdout, &world);
    assert!(said.contains("-  \"name\": \"Shop\",\n+  \"name\": \"Shop 7\",\n"), "{said}");
    assert!(!said.contains('\x1b'), "colour is for terminals: {said}");

    world.elastic(Method::Put, &put, Some(DOCUMENT)).await.expect("a document");
    let same = run(&world, &page(), diff);
    assert_eq!((same.status.code(), same.stdout.len()), (Some(0), 0));
    assert!(text(&same.stderr, &world).contains("page 7: as it is live"));
}
