//! Shapes with values that are computed: expressions, generated columns, sets, alternatives.

use super::shapes::Shape;

pub const COMPUTED: &[Shape] = &[
    (
        "SELECT d.id AS k, c.name FROM doc d JOIN company c ON c.id = (d.body ->> 'company')::bigint",
        "k",
        &["d: in id", "c: c.id = (d.body ->> 'company'::text)::bigint"],
    ),
    (
        "SELECT d.id AS k, c.name FROM doc d JOIN company c ON c.id::text = d.body -> 'owner' ->> 'id'",
        "k",
        &["d: in id", "c: c.id::text = d.body -> 'owner'::text ->> 'id'::text"],
    ),
    (
        "SELECT d.id AS k, c.name FROM doc d JOIN company c ON c.slug = d.body #>> '{owner,slug}'",
        "k",
        &["d: in id", "c: c.slug = d.body #>> '{owner,slug}'::text[]"],
    ),
    (
        "WITH d AS (SELECT id, (body ->> 'company')::bigint AS company_id FROM doc) SELECT c.id AS k, \
         json_agg(d.id ORDER BY d.id) AS docs FROM company c JOIN d ON d.company_id = c.id GROUP BY c.id",
        "k",
        &["c: in id", "doc: (doc.body ->> 'company'::text)::bigint = c.id"],
    ),
    (
        "SELECT body ->> 'sku' AS k, count(*) AS n FROM doc GROUP BY body ->> 'sku'",
        "k",
        &["doc: by body"],
    ),
    ("SELECT DISTINCT body ->> 'sku' AS k FROM doc", "k", &["doc: by body"]),
    (
        "SELECT id AS k FROM doc d WHERE EXISTS (SELECT FROM company c WHERE lower(c.name) = lower(d.body ->> 'name'))",
        "k",
        &["d: in id", "c: lower(c.name) = lower(d.body ->> 'name'::text)"],
    ),
    (
        "SELECT c.id AS k, w.url FROM company c JOIN website w ON w.url = 'https://' || c.slug || '.com'",
        "k",
        &["c: in id", "w: w.url = 'https://'::text || c.slug::text || '.com'::text"],
    ),
    (
        "SELECT c.id AS k, w.url FROM company c LEFT JOIN website w ON w.company_id = c.id AND lower(w.url) = lower(c.name)",
        "k",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT w.id AS k, c.name FROM website w JOIN company c ON c.created_at::date = w.url::date",
        "k",
        &["w: in id", "c: c.created_at::date = w.url::date"],
    ),
    // The row of an outer join may be missing, and then coalesce() has a value all the same.
    (
        "SELECT c.id AS k, n.label FROM company c LEFT JOIN website w ON w.company_id = c.id JOIN kind n ON n.id = coalesce(w.kind_id, 1)",
        "k",
        &[
            "c: in id",
            "w: in company_id",
            "polls: no key path for public.kind (as n): no plain \"=\"",
        ],
    ),
    (
        "SELECT c.id AS k, n.label FROM company c LEFT JOIN website w ON w.company_id = c.id JOIN kind n ON n.id = w.kind_id + 1",
        "k",
        &["c: in id", "w: in company_id", "n: n.id = w.kind_id + 1"],
    ),
    (
        "SELECT ('{a}'::text[] || w.url)::text AS k FROM company c LEFT JOIN website w ON w.company_id = c.id",
        "k",
        &["polls: the key k is not a column"],
    ),
    ("SELECT ('{a}'::text[] || w.url)::text AS k FROM website w", "k", &["w: by url"]),
    // Equal numbers, of which any one may be shown, have several texts.
    (
        "SELECT s.code::text AS k FROM (SELECT code FROM company GROUP BY code) s",
        "k",
        &["polls: the key k is not a column"],
    ),
    (
        "SELECT c.id AS k, w.url FROM (SELECT code, max(id) AS id FROM company GROUP BY code) c JOIN website w ON w.url = c.code::text",
        "k",
        &["polls: the key k is not a column"],
    ),
    (
        "SELECT c.id AS k, d.body FROM company c JOIN doc d ON d.body = to_jsonb(c.id)",
        "k",
        &[
            "c: in id",
            "polls: no key path for public.doc (as d): d.body = to_jsonb(c.id) cannot be followed: it needs doc.body",
        ],
    ),
    (
        "SELECT c.id AS k, n.at FROM company c JOIN note n ON (n.body ->> 'company')::bigint = c.id",
        "k",
        &[
            "c: in id",
            "polls: no key path for public.note (as n): (n.body ->> 'company'::text)::bigint = c.id cannot be followed: it needs note.body, which is left out of a published row when it is long",
        ],
    ),
    (
        "SELECT n.body ->> 'sku' AS k FROM note n",
        "k",
        &["polls: the key k is made of note.body, which is left out"],
    ),
    (
        "SELECT n.kind::regclass::text AS k FROM note n",
        "k",
        &["polls: it calls regclass()", "polls: the key k is not a column"],
    ),
    // A copy of the row is NULL where the join has no match, though the row is there.
    (
        "SELECT coalesce(s.l, 'none') AS k FROM company c LEFT JOIN LATERAL (SELECT c.slug AS l) s ON c.parent_id = 1",
        "k",
        &["polls: the key k is not a column"],
    ),
    (
        "SELECT coalesce(s.l, 'none') AS k FROM company c LEFT JOIN LATERAL lower(c.name) s(l) ON c.parent_id = 1",
        "k",
        &["polls: the key k is not a column"],
    ),
    // Generated columns; those of partitions may have other expressions than their parent's.
    (
        "SELECT twice AS k FROM made",
        "k",
        &["polls: the key k is made of made.twice, which is generated by"],
    ),
    (
        "SELECT d.id AS k, c.upper_name FROM doc d JOIN company c ON c.upper_name = d.body ->> 'name'",
        "k",
        &["d: in id", "c: c.upper_name = d.body ->> 'name'::text"],
    ),
    (
        "SELECT lower(upper_name) AS k, count(*) AS n FROM company GROUP BY 1",
        "k",
        &["company: by name"],
    ),
    (
        "SELECT c.id AS k, n.at FROM company c JOIN note n ON n.ref = c.id",
        "k",
        &[
            "c: in id",
            "polls: no key path for public.note (as n): n.ref = c.id cannot be followed: it needs note.ref, which is generated by",
        ],
    ),
    // Sets.
    ("SELECT unnest(tags) AS k, count(*) AS n FROM doc GROUP BY 1", "k", &["doc: by tags"]),
    (
        "SELECT t.tag AS k, array_agg(d.id ORDER BY d.id) AS docs FROM doc d CROSS JOIN LATERAL unnest(d.tags) t(tag) GROUP BY t.tag",
        "k",
        &["d: by tags"],
    ),
    (
        "SELECT c.id AS k, d.id AS doc FROM doc d, unnest(d.tags) WITH ORDINALITY t(tag, nth) JOIN company c ON c.slug = t.tag",
        "k",
        &["d: unnest(d.tags) = c.slug", "c: in id"],
    ),
    (
        "SELECT d.id AS k, c.name FROM doc d JOIN company c ON c.id = ANY (d.refs)",
        "k",
        &["d: in id", "c: c.id = unnest(d.refs)"],
    ),
    (
        "SELECT e.value ->> 'sku' AS k, d.id FROM doc d, jsonb_array_elements(d.body -> 'items') e(value)",
        "k",
        &["d: by body"],
    ),
    (
        "SELECT c.id AS k, d.id AS doc FROM doc d, jsonb_array_elements_text(d.body -> 'companies') e(id) JOIN company c ON c.id = e.id::bigint",
        "k",
        &["d: jsonb_array_elements_text(d.body -> 'companies'::text)::bigint = c.id", "c: in id"],
    ),
    (
        "SELECT part AS k, c.id FROM company c, string_to_table(c.name, ' ') t(part)",
        "k",
        &["c: by name"],
    ),
    (
        "SELECT c.id AS k, w.url FROM company c JOIN website w ON w.id IN (c.id, c.parent_id)",
        "k",
        &["c: in id", "w: w.id = c.id or w.id = c.parent_id"],
    ),
    (
        "SELECT c.id AS k, t.tag FROM company c JOIN website w ON w.company_id = c.id JOIN doc d ON true LEFT JOIN LATERAL unnest(d.tags) t(tag) ON t.tag = w.url",
        "k",
        &[
            "c: in id",
            "w: in company_id",
            "polls: no key path for public.doc (as d): unnest(d.tags) = w.url cannot be followed, as rows without",
        ],
    ),
    (
        "SELECT DISTINCT ON (a.tag) b.tag AS k, a.tag FROM doc d, unnest(d.tags) a(tag), unnest(d.tags) b(tag) ORDER BY a.tag, b.tag",
        "k",
        &["polls: the key k is not a column"],
    ),
    ("SELECT e.key AS k, d.id FROM doc d, jsonb_each(d.body) e(key, value)", "k", &["d: by body"]),
    (
        "SELECT e.key AS k, c.name FROM doc d CROSS JOIN LATERAL jsonb_each_text(d.body) WITH ORDINALITY e(key, value, nth) JOIN company c ON c.slug = e.value",
        "k",
        &["d: by body", "c: c.slug = (jsonb_each_text(d.body)).value"],
    ),
    (
        "SELECT d.id AS k, i.qty, c.name FROM doc d, jsonb_to_recordset(d.body -> 'items') i(sku text, qty int, more jsonb) JOIN company c ON c.slug = i.sku",
        "k",
        &[
            "d: in id",
            "c: c.slug = (jsonb_array_elements(d.body -> 'items'::text) ->> 'sku')::text",
        ],
    ),
    (
        "SELECT c.id AS k, d.id AS doc FROM company c JOIN (doc d CROSS JOIN LATERAL jsonb_to_recordset(d.body) i(company bigint)) ON i.company = c.id",
        "k",
        &["c: in id", "d: (jsonb_array_elements(d.body) ->> 'company')::bigint = c.id"],
    ),
    (
        "SELECT d.id AS k, r.* FROM doc d, jsonb_to_record(d.body) r(sku text, parts text[])",
        "k",
        &["d: in id"],
    ),
    // An array is not made of the JSON's text, and a row of an outer join may be missing.
    (
        "SELECT i.parts::text AS k FROM doc d, jsonb_to_recordset(d.body) i(parts text[])",
        "k",
        &["polls: the key k is not a column"],
    ),
    (
        "SELECT coalesce(i.sku, 'none') AS k FROM doc d LEFT JOIN LATERAL jsonb_to_recordset(d.body) i(sku text) ON i.sku <> ''",
        "k",
        &["polls: the key k is not a column"],
    ),
    (
        "SELECT d.id AS k, i.t::text AS t FROM doc d, jsonb_to_recordset(d.body) i(t regclass)",
        "k",
        &["d: in id", "polls: it calls a function in FROM whose column t is defined with a type"],
    ),
    // Alternatives.
    (
        "SELECT c.id AS k, w.url FROM company c JOIN website w ON w.company_id = c.id OR w.kind_id = 1",
        "k",
        &["c: in id", "polls: no key path for public.website (as w): no plain \"=\""],
    ),
    (
        "SELECT c.id AS k, w.url FROM company c LEFT JOIN website w ON w.kind_id = 1 AND w.company_id = c.id OR w.kind_id = 2 AND lower(w.company_slug) = c.slug",
        "k",
        &["c: in id", "w: w.company_id = c.id or lower(w.company_slug::text) = c.slug"],
    ),
];
