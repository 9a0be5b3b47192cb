//! The shapes that people write: the path that each has, or why it polls.

pub type Shape = (&'static str, &'static str, &'static [&'static str]);

/// The SQL of a shape, the key, and what is expected: lines that start with "polls" are prefixes
/// of reasons, the others whole paths.
pub const SHAPES: &[Shape] = &[
    ("SELECT id AS k, name FROM company", "k", &["company: in id"]),
    ("SELECT * FROM company;", "id", &["company: in id"]),
    (
        "SELECT c.id AS k, w.url FROM company c JOIN website w ON w.company_id = c.id",
        "k",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT c.id AS k, w.url, n.label FROM company c LEFT JOIN website w ON w.company_id = c.id \
         LEFT JOIN kind n ON n.id = w.kind_id",
        "k",
        &["c: in id", "w: in company_id", "n: n.id = w.kind_id"],
    ),
    (
        "SELECT w.id AS k, c.name FROM website w JOIN company c ON c.slug = w.company_slug",
        "k",
        &["w: in id", "c: c.slug = w.company_slug"],
    ),
    (
        "SELECT c.id AS k, p.name FROM company c JOIN company p ON p.id = c.parent_id",
        "k",
        &["c: in id", "p: p.id = c.parent_id"],
    ),
    (
        "SELECT company_id, count(*) AS n FROM website GROUP BY company_id",
        "company_id",
        &["website: in company_id"],
    ),
    (
        "SELECT c.id, json_agg(w.* ORDER BY w.id) AS sites FROM company c JOIN website w \
         ON w.company_id = c.id GROUP BY c.id",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    ("SELECT DISTINCT company_id FROM website", "company_id", &["website: in company_id"]),
    (
        "SELECT id FROM company c WHERE EXISTS (SELECT 1 FROM website w WHERE w.company_id = c.id)",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT id FROM company c WHERE NOT EXISTS (SELECT 1 FROM website w JOIN kind n ON \
         n.id = w.kind_id WHERE w.company_id = c.id)",
        "id",
        &["c: in id", "w: in company_id", "n: n.id = w.kind_id"],
    ),
    (
        "SELECT id FROM company WHERE id IN (SELECT company_id FROM website)",
        "id",
        &["company: in id", "website: in company_id"],
    ),
    (
        "SELECT c.id, (SELECT count(*) FROM website w WHERE w.company_id = c.id) AS n FROM company c",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT c.id, s.n FROM company c JOIN (SELECT company_id, count(*) AS n FROM website \
         GROUP BY company_id) s ON s.company_id = c.id",
        "id",
        &["c: in id", "website: in company_id"],
    ),
    (
        "WITH w AS (SELECT company_id, url FROM website) SELECT a.company_id AS k, b.url FROM w a \
         JOIN w b USING (company_id)",
        "k",
        &["website: in company_id"],
    ),
    (
        "SELECT id AS k, name FROM company UNION SELECT company_id, url FROM website",
        "k",
        &["company: in id", "website: in company_id"],
    ),
    (
        "SELECT id FROM company EXCEPT SELECT company_id FROM website",
        "id",
        &["company: in id", "website: in company_id"],
    ),
    ("SELECT cid, url FROM shown", "cid", &["c: in id", "w: in company_id"]),
    ("SELECT created_at, name FROM company", "created_at", &["company: by created_at"]),
    ("SELECT feeling, count(*) AS n FROM company GROUP BY 1", "feeling", &["company: in feeling"]),
    ("SELECT lower(name) AS k, id FROM company", "k", &["company: by name"]),
    (
        "SELECT c.code AS k, w.url FROM company c JOIN website w ON w.company_id = c.id",
        "k",
        &["c: in code", "w: w.company_id = c.id"],
    ),
    (
        "SELECT company_id, url, row_number() OVER (PARTITION BY company_id ORDER BY id) AS n \
         FROM website",
        "company_id",
        &["website: in company_id"],
    ),
    (
        "SELECT c.id, t.url FROM company c LEFT JOIN LATERAL (SELECT w.url FROM website w \
         WHERE w.company_id = c.id ORDER BY w.id LIMIT 1) t ON true",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT c.id, x.* FROM company c, unnest(ARRAY[c.name, c.slug]) AS x(part)",
        "id",
        &["c: in id"],
    ),
    (
        "SELECT w.id, c.name FROM company c RIGHT JOIN website w ON w.company_id = c.id",
        "id",
        &["c: c.id = w.company_id", "w: in id"],
    ),
    (
        "SELECT c.id, k.label FROM company c CROSS JOIN kind k LEFT JOIN stock s \
         ON s.company_id = c.id AND s.kind_id = k.id",
        "id",
        &["c: in id", "s: in company_id", "polls: no key path for public.kind (as k)"],
    ),
    (
        "SELECT h.company_id AS k FROM hidden h",
        "k",
        &["h: in company_id", "polls: public.hidden is not"],
    ),
    ("SELECT id, now() AS t FROM company", "id", &["company: in id", "polls: it calls now()"]),
    (
        "SELECT id, current_date AS t FROM company",
        "id",
        &["company: in id", "polls: it reads the cur"],
    ),
    (
        "SELECT id, twice(id) AS t FROM company",
        "id",
        &["company: in id", "polls: it calls twice()"],
    ),
    ("SELECT max(id) AS k FROM company", "k", &["polls: the key k is not a column"]),
    ("SELECT id FROM company ORDER BY id LIMIT 5", "id", &["polls: the key id is not a column"]),
    ("SELECT upper_name AS k FROM company", "k", &["company: by name"]),
    (
        "SELECT oid, relname FROM pg_class",
        "oid",
        &["polls: the key oid is made of pg_class.oid", "polls: pg_catalog.pg_class is a"],
    ),
    (
        "WITH RECURSIVE t AS (SELECT id, id AS root FROM company UNION SELECT c.id, t.root FROM \
         company c JOIN t ON c.parent_id = t.id) SELECT root, id FROM t",
        "root",
        &["polls: it uses WITH RECURSIVE"],
    ),
    (
        "SELECT id AS k, c.name, t.label FROM company c JOIN kind t USING (id)",
        "k",
        &["c: in id", "t: t.id = c.id"],
    ),
    (
        "SELECT company_id AS k, w.url, t.label FROM website w LEFT JOIN tag t USING (company_id)",
        "k",
        &["w: in company_id", "t: in company_id"],
    ),
    (
        "SELECT company_id AS k, w.url, t.label FROM website w RIGHT JOIN tag t USING (company_id)",
        "k",
        &["w: in company_id", "t: in company_id"],
    ),
    (
        "SELECT company_id AS k, w.url, t.label FROM website w FULL JOIN tag t USING (company_id)",
        "k",
        &["w: in company_id", "t: in company_id"],
    ),
    (
        "SELECT company_id AS k, w.url, t.label, s.amount FROM website w FULL JOIN tag t USING (company_id) FULL JOIN stock s USING (company_id)",
        "k",
        &["w: in company_id", "t: in company_id", "s: in company_id"],
    ),
    (
        "SELECT COALESCE(w.company_id, t.company_id) AS k, w.url, t.label FROM website w FULL JOIN tag t ON t.company_id = w.company_id",
        "k",
        &["w: in company_id", "t: in company_id"],
    ),
    (
        "SELECT c.id AS k, w.url FROM website w FULL JOIN company c ON c.id = w.company_id",
        "k",
        &["w: in company_id", "c: in id"],
    ),
    (
        "SELECT c.id AS k, p.name, g.name AS grand FROM company c LEFT JOIN company p ON p.id = c.parent_id LEFT JOIN company g ON g.id = p.parent_id",
        "k",
        &["c: in id", "p: p.id = c.parent_id", "g: g.id = p.parent_id > p.id = c.parent_id"],
    ),
    (
        "SELECT c.id AS k, w.url, n.label, s.amount FROM company c JOIN website w ON w.company_id = c.id JOIN kind n ON n.id = w.kind_id JOIN stock s ON s.company_id = c.id AND s.kind_id = n.id",
        "k",
        &["c: in id", "w: in company_id", "n: n.id = w.kind_id", "s: in company_id"],
    ),
    ("SELECT cid, urls FROM shown_twice", "cid", &["c: in id", "w: in company_id"]),
    (
        "WITH w AS (SELECT company_id, count(*) AS n FROM website GROUP BY company_id) SELECT c.id, a.n, (SELECT b.n FROM w b WHERE b.company_id = c.parent_id) AS up FROM company c LEFT JOIN w a ON a.company_id = c.id",
        "id",
        &["c: in id", "website: in company_id", "website: website.company_id = c.parent_id"],
    ),
    (
        "SELECT id FROM company INTERSECT SELECT company_id FROM website",
        "id",
        &["company: in id", "website: in company_id"],
    ),
    (
        "SELECT id, name FROM company EXCEPT ALL SELECT company_id, url FROM website",
        "id",
        &["company: in id", "website: in company_id"],
    ),
    (
        "SELECT DISTINCT ON (company_id) company_id, url FROM website ORDER BY company_id, id DESC",
        "company_id",
        &["website: in company_id"],
    ),
    (
        "SELECT DISTINCT ON (w.company_id) w.company_id, n.label FROM website w JOIN kind n ON n.id = w.kind_id ORDER BY w.company_id, w.id",
        "company_id",
        &["w: in company_id", "n: n.id = w.kind_id"],
    ),
    (
        "SELECT company_id, json_agg(url ORDER BY id) FILTER (WHERE kind_id = 1) AS urls, string_agg(url, ',' ORDER BY url) AS list FROM website GROUP BY company_id HAVING count(*) > 1",
        "company_id",
        &["website: in company_id"],
    ),
    (
        "SELECT c.id, jsonb_agg(DISTINCT n.label ORDER BY n.label) AS labels FROM company c LEFT JOIN website w ON w.company_id = c.id LEFT JOIN kind n ON n.id = w.kind_id GROUP BY c.id, c.name HAVING bool_or(n.label <> '')",
        "id",
        &["c: in id", "w: in company_id", "n: n.id = w.kind_id"],
    ),
    (
        "SELECT id FROM company c WHERE id NOT IN (SELECT w.company_id FROM website w WHERE w.company_id = c.id)",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT id FROM company WHERE id NOT IN (SELECT company_id FROM website)",
        "id",
        &["company: in id", "polls: no key path for public.website: no plain \"=\""],
    ),
    (
        "SELECT id FROM company WHERE (id, slug) IN (SELECT company_id, company_slug FROM website)",
        "id",
        &["company: in id", "website: in company_id"],
    ),
    (
        "SELECT id FROM company WHERE id = ANY (SELECT company_id FROM website) AND name LIKE 'a%'",
        "id",
        &["company: in id", "website: in company_id"],
    ),
    (
        "SELECT c.id, (SELECT w.url FROM website w WHERE w.company_id = c.id ORDER BY w.id DESC LIMIT 1) AS last FROM company c",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT c.id, ARRAY(SELECT w.url FROM website w WHERE w.company_id = c.id ORDER BY 1) AS urls FROM company c",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT c.id, t.n, t.urls FROM company c, LATERAL (SELECT count(*) AS n, array_agg(w.url ORDER BY w.id) AS urls FROM website w WHERE w.company_id = c.id) t",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    (
        "SELECT c.id, v.label FROM company c JOIN (VALUES (1, 'one'), (2, 'two')) v(n, label) ON v.n = c.id",
        "id",
        &["c: in id"],
    ),
    (
        "SELECT v.n AS k, c.name FROM (VALUES (1), (2)) v(n) JOIN company c ON c.id = v.n",
        "k",
        &["c: c.id = VALUES.column1"],
    ),
    (
        "SELECT v.word AS k, count(c.id) AS n FROM (VALUES ('one'), ('two')) v(word) LEFT JOIN company c ON c.name = v.word GROUP BY v.word",
        "k",
        &["c: in name"],
    ),
    (
        "SELECT w.id AS k, v.word, c.name FROM website w JOIN (VALUES (1, 7::bigint, 'one'), (2, 8, 'two')) v(n, company, word) ON v.n = w.kind_id JOIN company c ON c.id = v.company",
        "k",
        &["w: in id", "c: c.id = VALUES.column2 > VALUES.column1 = w.kind_id"],
    ),
    (
        "SELECT v.n AS k, w.url FROM website w JOIN (VALUES (1), (2) LIMIT 1) v(n) ON v.n = w.kind_id",
        "k",
        &["polls: the key k is not a column"],
    ),
    (
        "SELECT v.n AS k, c.name FROM company c, LATERAL (VALUES (c.id), (c.parent_id)) v(n)",
        "k",
        &["polls: the key k is not a column"],
    ),
    ("SELECT id::text AS k, name FROM company", "k", &["company: by id"]),
    ("SELECT 'c-' || id AS k, name FROM company", "k", &["company: by id"]),
    (
        "SELECT c.id || ':' || c.slug AS k, w.url FROM company c JOIN website w ON w.company_id = c.id",
        "k",
        &["c: by id, slug", "w: w.company_id = c.id"],
    ),
    (
        "SELECT lower(name) AS k, count(*) AS n FROM company GROUP BY lower(name)",
        "k",
        &["company: by name"],
    ),
    (
        "SELECT company_id::text AS k, count(*) AS n FROM website GROUP BY company_id",
        "k",
        &["website: by company_id"],
    ),
    (
        "SELECT company_id::text AS k, count(*) AS n FROM website GROUP BY 1",
        "k",
        &["website: by company_id"],
    ),
    ("SELECT concat(company_id, '-', label) AS k FROM tag", "k", &["tag: by company_id, label"]),
    (
        "SELECT format('%s-%s', company_id, label) AS k FROM tag",
        "k",
        &["tag: by company_id, label"],
    ),
    (
        "SELECT company_id || '-' || kind_id AS k, sum(amount) AS n FROM stock GROUP BY company_id, kind_id",
        "k",
        &["stock: by company_id, kind_id"],
    ),
    (
        "SELECT company_id || '-' || kind_id AS k, sum(amount) AS n FROM stock GROUP BY 1",
        "k",
        &["stock: by company_id, kind_id"],
    ),
    (
        "SELECT w.company_id || '-' || c.code AS k FROM website w JOIN company c ON c.id = w.company_id",
        "k",
        &["polls: the key k is not a column"],
    ),
    ("SELECT md5(name) AS k, id FROM company", "k", &["company: by name"]),
    ("SELECT coalesce(slug, 'none') AS k, id FROM company", "k", &["company: by slug"]),
    (
        "SELECT coalesce(w.company_id, 0) AS k, n.label FROM website w JOIN kind n ON n.id = w.kind_id",
        "k",
        &["w: by company_id", "n: n.id = w.kind_id"],
    ),
    (
        "SELECT created_at::date AS k, count(*) AS n FROM company GROUP BY 1",
        "k",
        &["company: by created_at"],
    ),
    (
        "SELECT CASE WHEN id > 5 THEN id ELSE 0 END AS k, name FROM company",
        "k",
        &["company: by id"],
    ),
    ("SELECT upper_name, id FROM company", "id", &["company: in id"]),
    (
        "SELECT upper_name AS k, w.url FROM company c JOIN website w ON w.company_id = c.id",
        "k",
        &["c: by name", "w: w.company_id = c.id"],
    ),
    (
        "SELECT c.id AS k, w.url FROM company c JOIN website w ON w.url = c.upper_name",
        "k",
        &["c: in id", "w: w.url = c.upper_name"],
    ),
    ("SELECT id AS k, unnest(tags) AS tag FROM doc", "k", &["doc: in id"]),
    (
        "SELECT d.id AS k, t.tag FROM doc d CROSS JOIN LATERAL unnest(d.tags) AS t(tag)",
        "k",
        &["d: in id"],
    ),
    (
        "SELECT d.id AS k, e.value ->> 'name' AS name FROM doc d, jsonb_array_elements(d.body -> 'items') AS e(value)",
        "k",
        &["d: in id"],
    ),
    (
        "SELECT d.id AS k, e.key, e.value FROM doc d, jsonb_each_text(d.body) AS e(key, value)",
        "k",
        &["d: in id"],
    ),
    ("SELECT d.id AS k, g.n FROM doc d, generate_series(1, d.id) AS g(n)", "k", &["d: in id"]),
    ("SELECT t.tag AS k, d.id FROM doc d, unnest(d.tags) AS t(tag)", "k", &["d: by tags"]),
    ("SELECT body ->> 'sku' AS k, id FROM doc", "k", &["doc: by body"]),
    ("SELECT (body ->> 'company')::bigint AS k, d.id FROM doc d", "k", &["d: by body"]),
    (
        "SELECT c.id AS k, d.body FROM company c JOIN doc d ON (d.body ->> 'company')::bigint = c.id",
        "k",
        &["c: in id", "d: (d.body ->> 'company'::text)::bigint = c.id"],
    ),
    (
        "SELECT c.id AS k, d.body FROM company c JOIN doc d ON d.body @> jsonb_build_object('company', c.id)",
        "k",
        &["c: in id", "polls: no key path for public.doc (as d): no plain \"=\""],
    ),
    (
        "SELECT c.id AS k, d.id AS doc FROM company c LEFT JOIN doc d ON c.id = ANY (d.refs)",
        "k",
        &["c: in id", "d: unnest(d.refs) = c.id"],
    ),
    (
        "SELECT id AS k, jsonb_path_query_array(body, '$.items[*]') AS items, body #>> '{a,b}' AS ab, body ? 'x' AS x, to_tsvector('english', body::text) AS words FROM doc",
        "k",
        &["doc: in id"],
    ),
    (
        "SELECT c.id, rank() OVER w AS r, lag(w1.url) OVER w AS before FROM company c JOIN website w1 ON w1.company_id = c.id WINDOW w AS (PARTITION BY c.id ORDER BY w1.id)",
        "id",
        &["c: in id", "w1: in company_id"],
    ),
    (
        "SELECT id, row_number() OVER (ORDER BY id) AS n FROM company",
        "id",
        &["polls: the key id is not a column"],
    ),
    (
        "SELECT c.id, w.url FROM company c LEFT JOIN website w ON w.company_id = c.id AND w.url <> '' WHERE w.id IS NULL OR w.kind_id IN (1, 2)",
        "id",
        &["c: in id", "w: in company_id"],
    ),
    ("SELECT m.day AS k, m.amount FROM measure m", "k", &["m: in day"]),
    ("SELECT p.id AS k, p.name FROM parent p", "k", &["p: in id"]),
    (
        "SELECT c.id AS k, s.n FROM company c JOIN (SELECT lower(company_slug) AS slug, count(*) AS n FROM website GROUP BY 1) s ON s.slug = c.slug",
        "k",
        &["c: in id", "website: lower(website.company_slug::text) = c.slug"],
    ),
    (
        "SELECT c.id AS k, w.url FROM company c JOIN website w ON lower(w.company_slug) = lower(c.slug)",
        "k",
        &["c: in id", "w: lower(w.company_slug::text) = lower(c.slug::text)"],
    ),
    (
        "SELECT c.id AS k, w.url FROM company c JOIN website w ON w.company_id = c.id OR w.company_slug = c.slug",
        "k",
        &["c: in id", "w: w.company_id = c.id or w.company_slug = c.slug"],
    ),
    (
        "SELECT c.id AS k, n.label FROM company c JOIN kind n ON n.id = c.id::int",
        "k",
        &["c: in id", "n: n.id = c.id::int"],
    ),
    (
        "SELECT c.id AS k, n.total FROM company c CROSS JOIN (SELECT count(*) AS total FROM kind) n",
        "k",
        &["c: in id", "polls: no key path for public.kind: no plain \"=\""],
    ),
];
