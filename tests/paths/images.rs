//! A value that is computed from a row's image is the one that Postgres computes from the row: of
//! arrays of any depth, of jsonb with each kind of null, under each collation, generated.

use std::collections::BTreeSet;

use onelog::mapping::plan::{Lookup, Path};
use tokio_postgres::types::ToSql;

use super::{Database, entry, fresh, plan};

/// Each row is alone in the table once. The two collations lower É differently, so that one of
/// them is not the database's.
const ODD: &str = r#"
    CREATE TYPE mood AS ENUM ('good', 'so "so"');
    CREATE DOMAIN code AS bigint;
    CREATE TABLE odd (id int PRIMARY KEY, c text COLLATE "C", i text COLLATE "en-x-icu",
        tags text[], stamps timestamptz[], moods mood[], codes code[], numbers numeric[],
        ids uuid[], flags boolean[], days date[], body jsonb, at timestamptz, list jsonb, parts jsonb,
        low text COLLATE "en-x-icu" GENERATED ALWAYS AS (lower(i) || '!') STORED,
        size int GENERATED ALWAYS AS (coalesce(array_length(string_to_array(c, ' '), 1), -1)) STORED,
        sku text GENERATED ALWAYS AS (body ->> 'sku') STORED);
    ALTER TABLE odd REPLICA IDENTITY FULL;
    CREATE PUBLICATION onelog FOR TABLE odd;
    CREATE TABLE rows (LIKE odd INCLUDING GENERATED);
    INSERT INTO rows (id, c, i, tags, stamps, moods, codes, numbers, ids, flags, days, body, at)
    VALUES
      (1, 'ÉA b', 'ÉA b', '{a,"b \"c\\",NULL,"null","",É}', '{2026-01-02 03:04:05.678+02,infinity}',
       '{good,"so \"so\""}', '{7,9223372036854775807}', '{1.00,1,NaN,1e30}',
       '{00000000-0000-0000-0000-00000000000a}', '{t,f,NULL}', '{2026-01-02,infinity}',
       '{"sku": "x\"y", "n": 1.10, "l": ["a", null, 1.0, {"b": [2]}], "o": {"k": null, "m": {"z": 1}}}',
       '2026-01-02 23:30:00Z'),
      (2, '', '', '{{a,b},{c,d}}', '{}', '[3:4]={good,good}', '{{1},{2}}', '{{{1,2}}}', '{}', '{}',
       '{}', '"text"', NULL),
      (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'null', NULL),
      (4, 'x', 'x', '{}', NULL, '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', '{NULL}', NULL,
       'infinity'),
      (5, 'y', 'y', '{y}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '[1, "l", {"sku": 3}]', NULL),
      (6, 'z', 'z', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '12.50', NULL);
    UPDATE rows SET (list, parts) = (SELECT v.list::jsonb, v.parts::jsonb FROM (VALUES
      (1, '[{"s": "x\"y", "n": 1, "m": 1.10, "b": true, "d": "2026-01-02"}, {"s": {"k": [1.0]}, "n": null}]',
          '{"a": "x\"y", "b": 1.10, "c": null, "": {"k": [1.0]}}'),
      (2, '[]', '{}'),
      (4, '[{"n": "7"}, {"s": 1.50, "S": "other"}]', '{"null": "null"}')) v(id, list, parts)
      WHERE v.id = rows.id)"#;

/// Keys; some with what they are from.
const VALUES: &[&str] = &[
    "lower(c)",
    "lower(i)",
    "unnest(tags)",
    "unnest(stamps)",
    "unnest(moods)",
    "unnest(codes)",
    "unnest(numbers)",
    "unnest(ids)",
    "unnest(flags)",
    "unnest(days)",
    "unnest(days) + 1",
    "unnest(string_to_array(c, ' '))",
    "regexp_split_to_table(i, ' ')",
    "body ->> 'sku'",
    "body ->> 1",
    "body -> 'o' ->> 'm'",
    "body #>> '{l,3,b}'",
    "body #>> '{}'",
    "(body ->> 'n')::numeric",
    "jsonb_array_elements_text(body -> 'l')",
    "jsonb_object_keys(body -> 'o')",
    "jsonb_array_elements(list)",
    "jsonb_array_elements_text(list)",
    "jsonb_object_keys(parts)",
    "(jsonb_each_text(parts)).value",
    "e.key || e.value FROM odd, jsonb_each(parts) e(key, value)",
    "r.s FROM odd, jsonb_to_recordset(list) r(s text, n int)",
    "r.s FROM odd, jsonb_to_recordset(list) r(s varchar(20))",
    "r.n + 1 FROM odd, jsonb_to_recordset(list) r(s text, n int)",
    "r.m FROM odd, jsonb_to_recordset(list) r(m numeric(5, 1))",
    "r.b FROM odd, jsonb_to_recordset(list) r(b boolean)",
    "r.d FROM odd, jsonb_to_recordset(list) r(d date)",
    "r.s || r.n FROM odd, jsonb_to_recordset(list) r(s text, n int)",
    "low",
    "size",
    "sku",
    "upper(low)",
    "at",
    "(at AT TIME ZONE 'UTC')::date",
    "coalesce(c, 'none')",
];

async fn found(db: &Database, lookup: &Lookup) -> BTreeSet<String> {
    let mut images = Vec::new();
    for column in &lookup.columns {
        // As in an image: JSON's null looks like SQL's.
        let how = if lookup.json.contains(column) { "->" } else { "->>" };
        let sql = format!("SELECT (to_jsonb(odd) {how} '{column}')::text FROM odd");
        let text: Option<String> = db.client.query_one(&sql, &[]).await.unwrap().get(0);
        images.push(vec![text.filter(|it| how == "->>" || it != "null")]);
    }
    let images: Vec<&(dyn ToSql + Sync)> = images.iter().map(|it| it as _).collect();
    let rows = db.client.query(&lookup.sql, &images).await.expect(&lookup.sql);
    rows.iter().map(|it| it.get(0)).collect()
}

#[tokio::test]
async fn a_value_of_an_image_is_that_of_the_row() {
    let db = fresh("onelog_paths_images", ODD).await;
    for value in VALUES {
        let (value, from) = value.split_once(" FROM ").unwrap_or((value, "odd"));
        let sql = format!("SELECT {value} AS k, id FROM {from}");
        let plan = plan(&db, vec![entry(&sql, "k")]).await.unwrap();
        let [path] = &plan.entries[0].paths[..] else {
            panic!("{value}: {:?}", plan.entries[0].poll_reasons);
        };
        let Path::Lookup(lookup) = &path.path else { panic!("{value}: {:?}", path.path) };
        let mut keys = 0;
        for id in 1..=6 {
            let columns = "id, c, i, tags, stamps, moods, codes, numbers, ids, flags, days, body, at, list, parts";
            let one = format!(
                "TRUNCATE odd; INSERT INTO odd ({columns}) SELECT {columns} FROM rows WHERE id = {id}"
            );
            db.client.batch_execute(&one).await.unwrap();
            let truth = format!("SELECT DISTINCT q.k::text FROM ({sql}) q WHERE q.k IS NOT NULL");
            let truth = db.client.query(&truth, &[]).await.unwrap();
            let truth: BTreeSet<String> = truth.iter().map(|it| it.get(0)).collect();
            assert_eq!(found(&db, lookup).await, truth, "{value} of row {id}: {}", lookup.sql);
            keys += truth.len();
        }
        assert!(keys > 0, "{value} is never anything");
    }
}
