//! Mistakes in the SQL, which Postgres helps to find: the file's text, and what is said.

pub const CASES: &[(&str, &str)] = &[
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop;
'''
"##,
        r##"
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM shop; SELECT id FROM item'''
"##,
        r##"
WRONG    page.toml:4:31: the sql has 2 statements: keep one SELECT, and give the others entries of their own
             sql = '''SELECT id FROM shop; SELECT id FROM item'''
                                           ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop WHERE id = $1'''
"##,
        r##"
WRONG    page.toml:4:47: there is no parameter $1; write no parameters: the sql says what all documents hold, and onelog itself adds the condition for one key
             sql = '''SELECT id, name FROM shop WHERE id = $1'''
                                                           ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''INSERT INTO shop VALUES (1) RETURNING id'''
"##,
        r##"
WRONG    page.toml:4:10: the sql is an INSERT: write one SELECT, as onelog only reads
             sql = '''INSERT INTO shop VALUES (1) RETURNING id'''
                      ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "shop_id"
sql = '''SELECT id, name FROM shop'''
"##,
        r##"
WRONG    page.toml:3:28: the key shop_id is not among the sql's columns, which are id, name; select it too, or choose one of them
             key_to_denormalize_upon = "shop_id"
                                        ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id::text AS id, title FROM item'''
"##,
        r##"
WRONG    page.toml:8:28: the key id is text here, but id of page.toml:3 is integer: all entries of collection page need the same key type; cast one of them, as in id::integer
             key_to_denormalize_upon = "id"
                                        ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id,
       title, upper(title) AS title
FROM item'''
"##,
        r##"
WRONG    page.toml:5:15: column "title" specified more than once; give each column its own name with AS
                    title, upper(title) AS title
                           ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM shops'''
"##,
        r##"
WRONG    page.toml:4:25: relation "shops" does not exist; did you mean shop?
             sql = '''SELECT id FROM shops'''
                                     ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM entry'''
"##,
        r##"
WRONG    page.toml:4:25: relation "entry" does not exist; did you mean audit.entry?
             sql = '''SELECT id FROM entry'''
                                     ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM customers'''
"##,
        r##"
WRONG    page.toml:4:25: relation "customers" does not exist; no table is called so in this database that onelog may see: audit.entry, item, shop, visit
             sql = '''SELECT id FROM customers'''
                                     ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT i.id FROM item'''
"##,
        r##"
WRONG    page.toml:4:17: missing FROM-clause entry for table "i"; no table or alias in FROM is called i: add it there, or write the alias that it has
             sql = '''SELECT i.id FROM item'''
                             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''
SELECT id,
  nam FROM shop'''
"##,
        r##"
WRONG    page.toml:6:3: column "nam" does not exist; did you mean name?
               nam FROM shop'''
               ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, colour FROM shop'''
"##,
        r##"
WRONG    page.toml:4:21: column "colour" does not exist; its tables have id, name, userId
             sql = '''SELECT id, colour FROM shop'''
                                 ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, userId FROM shop'''
"##,
        r##"
WRONG    page.toml:4:21: column "userid" does not exist; did you mean "userId"? Postgres reads a name without double quotes in lower case. Put the sql between ''' and ''', where double quotes may stand
             sql = '''SELECT id, userId FROM shop'''
                                 ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = "SELECT id, \"userID\"\n, name FROM shop"
"##,
        r##"
WRONG    page.toml:4:19: column "userID" does not exist; did you mean "userId"? Postgres reads a name without double quotes in lower case. Put the sql between ''' and ''', where double quotes may stand
             sql = "SELECT id, \"userID\"\n, name FROM shop"
                               ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id,, name FROM shop'''
"##,
        r##"
WRONG    page.toml:4:20: syntax error at or near ","; there is a comma too many
             sql = '''SELECT id,, name FROM shop'''
                                ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name, FROM shop'''
"##,
        r##"
WRONG    page.toml:4:27: syntax error at or near "FROM"; there is a comma too many
             sql = '''SELECT id, name, FROM shop'''
                                       ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id name title FROM item'''
"##,
        r##"
WRONG    page.toml:4:25: syntax error at or near "title"; Postgres did not expect this word here: is a comma, an operator or a keyword missing before it, or is one misspelled?
             sql = '''SELECT id name title FROM item'''
                                     ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM shop WHERE'''
"##,
        r##"
WRONG    page.toml:4:35: syntax error at end of input; the sql ends too early: see what is missing at its end
             sql = '''SELECT id FROM shop WHERE'''
                                               ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM shop, item'''
"##,
        r##"
WRONG    page.toml:4:17: column reference "id" is ambiguous; several of its tables have this column: write which one you mean, as in table.column
             sql = '''SELECT id FROM shop, item'''
                             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "spec"
sql = '''SELECT spec, id FROM item'''
"##,
        r##"
WRONG    page.toml:3:28: the key spec has type json, which has no equality and order: cast it, for instance to text
             key_to_denormalize_upon = "spec"
                                        ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "shop_id"
sql = '''SELECT shop_id, count(*) AS visits FROM visit GROUP BY shop_id'''
"##,
        r##"
WRONG    page.toml:4:10: table public.visit is not published, so its changes are seen by a timer only; add it to [postgres] tables and run `onelog prepare`
             sql = '''SELECT shop_id, count(*) AS visits FROM visit GROUP BY shop_id'''
                      ^
WRONG    page.toml:4:10: the old row of public.visit lacks shop_id, so a row that moves or goes is seen by a timer only; run:
         ALTER TABLE "public"."visit" REPLICA IDENTITY FULL;
warning  page.toml:4:10: reading a document reads all of public.visit (not counted yet: run ANALYZE), which is slow once the table is large; run:
         CREATE INDEX CONCURRENTLY ON "public"."visit" ("shop_id");

2 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop WHERE now() > '2020-01-01''''
"##,
        r##"
warning  page.toml:4:10: page is swept on a timer: it calls now(), whose value depends on the time, on settings or on other tables; compare with a column or a constant, or let the frontend filter by the time; or say by poll_interval how old a document may be
             sql = '''SELECT id, name FROM shop WHERE now() > '2020-01-01''''
                      ^
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, random() AS luck FROM shop'''
"##,
        r##"
warning  page.toml:4:10: page is swept on a timer: it calls random(), which may give another value each time; keep the value in a column of the table, or leave it out of the document
             sql = '''SELECT id, random() AS luck FROM shop'''
                      ^
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "shop_id"
nest_as = "items"
sql = '''SELECT shop_id, title FROM item'''
"##,
        r##"
warning  page.toml:3:28: 1 row has NULL as shop_id and so no document; if that is meant, let the sql leave them out with WHERE … IS NOT NULL
             key_to_denormalize_upon = "shop_id"
                                        ^
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
nest_as = "name"
sql = '''SELECT shop_id AS id, title FROM item'''
"##,
        r##"
warning  page.toml:9:12: name also comes from page.toml:4: where both entries have a row for a key, this one's value wins; if that is not meant, name one of them otherwise
             nest_as = "name"
                        ^
warning  page.toml:8:28: 1 row has NULL as id and so no document; if that is meant, let the sql leave them out with WHERE … IS NOT NULL
             key_to_denormalize_upon = "id"
                                        ^
ok       collection page: every change reaches its documents
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, title AS name FROM item'''
"##,
        r##"
warning  page.toml:9:10: name also comes from page.toml:4: where both entries have a row for a key, this one's value wins; if that is not meant, name one of them otherwise with AS
             sql = '''SELECT id, title AS name FROM item'''
                      ^
ok       collection page: every change reaches its documents
"##,
    ),
];
