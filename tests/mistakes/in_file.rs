//! Mistakes in the file itself, which `check --offline` finds: its text, and what is said.

pub const CASES: &[(&str, &str)] = &[
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
nest_ass = "shops"
sql = '''SELECT id FROM shop'''
"##,
        r##"
WRONG    page.toml:4:1: unknown key nest_ass in [[denormalization]]; did you mean nest_as?
             nest_ass = "shops"
             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
sql = "SELECT id FROM shop"
"##,
        r##"
WRONG    page.toml:1:1: key_to_denormalize_upon is missing in [[denormalization]]: write key_to_denormalize_upon = "id"
             [[denormalization]]
             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = "SELECT id AS "userId" FROM shop"
"##,
        r##"
WRONG    page.toml:4:22: this is not TOML: unexpected key or value, expected newline, `#`; a text with double quotes in it, or of several lines, goes between ''' and '''
             sql = "SELECT id AS "userId" FROM shop"
                                  ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = page
key_to_denormalize_upon = "id"
sql = "SELECT id FROM shop"
"##,
        r##"
WRONG    page.toml:2:19: this is not TOML: string values must be quoted, expected literal string
             collection_name = page
                               ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = "SELECT id
  FROM shop"
"##,
        r##"
WRONG    page.toml:4:17: this is not TOML: invalid basic string, expected `"`; a text with double quotes in it, or of several lines, goes between ''' and '''
             sql = "SELECT id
                             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
nest_as = "a"
nest_one_as = "b"
sql = '''SELECT id FROM shop'''
"##,
        r##"
WRONG    page.toml:5:15: nest_as (an array) and nest_one_as (one object) contradict: keep one
             nest_one_as = "b"
                           ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[collection.page]
poll_interval = 5
"##,
        r##"
WRONG    page.toml:7:17: poll_interval must be a time with its unit, such as "30s", "2m" or "1h", or "off", not integer
             poll_interval = 5
                             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[collection.page]
poll_interval = "5"
"##,
        r##"
WRONG    page.toml:7:17: poll_interval must be "off", or a duration from "100ms" to "365d", such as "30s"
             poll_interval = "5"
                             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[collection.page]
poll_interval = "5s"

[collection.page]
audit_interval = "1h"
"##,
        r##"
WRONG    page.toml:9:13: this is not TOML: duplicate key; it stands in this file already: keep one
             [collection.page]
                         ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[collection.pages]
poll_interval = "5s"
"##,
        r##"
WRONG    page.toml:6:13: [collection.pages] has no [[denormalization]] in any file: write one with collection_name = "pages", or take this away; did you mean [collection.page]?
             [collection.pages]
                         ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''SELECT id, name FROM shop'''

[collection.page]
poll_intervall = "5s"
"##,
        r##"
WRONG    page.toml:7:1: unknown key poll_intervall in [collection.page]; did you mean poll_interval?
             poll_intervall = "5s"
             ^

1 to mend
"##,
    ),
    (
        r##""##,
        r##"
warning  page.toml: it has no [[denormalization]], so it makes no documents: write one with collection_name, key_to_denormalize_upon and sql
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "Shop Page"
key_to_denormalize_upon = "id"
sql = '''SELECT id FROM shop'''
"##,
        r##"
WRONG    page.toml:2:19: a collection's name must be 1 to 150 of a-z, 0-9, "_" and "-", and begin with a letter or digit, not "Shop Page"
             collection_name = "Shop Page"
                               ^

1 to mend
"##,
    ),
    (
        r##"[denormalization]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = "SELECT id FROM shop"
"##,
        r##"
WRONG    page.toml:1:1: denormalization must be written as [[denormalization]], in double brackets, not table
             [denormalization]
             ^

1 to mend
"##,
    ),
    (
        r##"[[denormalization]]
collection_name = "page"
key_to_denormalize_upon = "id"
sql = '''   '''
"##,
        r##"
WRONG    page.toml:4:7: sql is empty: write one SELECT
             sql = '''   '''
                   ^

1 to mend
"##,
    ),
];
