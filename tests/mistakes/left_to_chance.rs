//! SQL that works, but whose documents are left to chance, and what `check` warns of.

pub const CASES: &[(&str, &str)] = &[
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT s.id, json_agg(i.title) AS titles
FROM shop s JOIN item i ON i.shop_id = s.id
GROUP BY s.id'''
"##,
        r##"
warning  page.toml:4:23: json_agg() takes the rows in the order in which Postgres happens to read them, so that the document may change without a change: write json_agg(… ORDER BY …), with something unique at the end
             sql = '''SELECT s.id, json_agg(i.title) AS titles
                                   ^
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT s.id, json_agg(i.title ORDER BY i.title) AS titles
FROM shop s JOIN item i ON i.shop_id = s.id
GROUP BY s.id'''
"##,
        r##"
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
nest_as = "items"
sql = '''SELECT s.id, i.title, i.price
FROM shop s JOIN item i ON i.shop_id = s.id
ORDER BY i.title'''
"##,
        r##"
warning  page.toml:7:10: rows that are equal in the ORDER BY may trade places from one read to the next, so that the document may change without a change: put i.id at its end
             ORDER BY i.title'''
                      ^
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
nest_as = "items"
sql = '''SELECT s.id, i.title, i.price
FROM shop s JOIN item i ON i.shop_id = s.id
ORDER BY i.title, i.id'''
"##,
        r##"
ok       collection page: every change reaches its documents
"##,
    ),
    // What is equal to a settled column is settled, whichever side it stands on.
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
nest_as = "items"
sql = '''SELECT i.shop_id AS id, i.title, j.price
FROM item i JOIN item j ON j.id = i.id WHERE i.shop_id IS NOT NULL
ORDER BY i.id'''
"##,
        r##"
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
nest_as = "items"
sql = '''SELECT i.shop_id AS id, i.title, j.price
FROM item i JOIN item j ON j.id = i.id WHERE i.shop_id IS NOT NULL
ORDER BY j.id'''
"##,
        r##"
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT s.id,
  (SELECT i.title FROM item i WHERE i.shop_id = s.id LIMIT 1) AS title
FROM shop s'''
"##,
        r##"
warning  page.toml:5:60: LIMIT without ORDER BY: which rows it takes is left to chance, so that the document may change without a change; add an ORDER BY with something unique at the end
               (SELECT i.title FROM item i WHERE i.shop_id = s.id LIMIT 1) AS title
                                                                        ^
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT DISTINCT ON (s.id) s.id, i.title
FROM shop s JOIN item i ON i.shop_id = s.id'''
"##,
        r##"
warning  page.toml:4:30: DISTINCT ON without ORDER BY: which rows it takes is left to chance, so that the document may change without a change; add an ORDER BY with something unique at the end
             sql = '''SELECT DISTINCT ON (s.id) s.id, i.title
                                          ^
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop ORDER BY name'''
"##,
        r##"
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''WITH gone AS (DELETE FROM shop RETURNING id) SELECT id FROM gone'''
"##,
        r##"
WRONG    page.toml:4:10: views must not contain data-modifying statements in WITH; onelog reads through a view, which cannot have it: leave it out
             sql = '''WITH gone AS (DELETE FROM shop RETURNING id) SELECT id FROM gone'''
                      ^

1 to mend
"##,
    ),
];
