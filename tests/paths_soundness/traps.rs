//! SQL in which some naive rule finds paths that miss documents.

/// What a naive rule gets wrong, and the key paths that it would wrongly trust (A3, A6).
pub const TRAPS: &[&str] = &[
    "SELECT a.id AS k, c.id, b.y FROM a CROSS JOIN c LEFT JOIN b ON b.x = a.id AND b.y = c.id",
    "SELECT a.id AS k, c.id FROM a, c WHERE NOT EXISTS (SELECT FROM b WHERE b.x = a.id AND b.y = c.id)",
    "SELECT a.id AS k, (SELECT max(b.id) FROM b WHERE b.x = a.id AND b.y = c.id) AS m, c.y FROM a, c",
    "SELECT a.id AS k, c.y, b.y AS z FROM a CROSS JOIN c LEFT JOIN b ON a.x = c.x AND b.x = a.id",
    "SELECT a.id AS k, c.y FROM a, c WHERE EXISTS (SELECT FROM b WHERE b.x = a.id AND b.y = c.id)",
    "SELECT c.id AS k, s.x FROM c JOIN (SELECT x, max(y) AS m FROM b GROUP BY x) s ON s.m = c.y",
    "SELECT c.id AS k, s.r FROM c JOIN (SELECT y, sum(id) OVER (PARTITION BY x) AS r FROM b) s ON s.y = c.y",
    "SELECT id AS k, y FROM (SELECT DISTINCT ON (x) x, id, y FROM a ORDER BY x, y, id) s",
    "SELECT max(id) AS k, count(*) AS n FROM a GROUP BY x",
    "SELECT a.id AS k, a.id IN (SELECT b.x FROM b) AS v FROM a",
    "SELECT a.id AS k FROM a WHERE a.id NOT IN (SELECT b.x FROM b)",
    "SELECT COALESCE(b.y, a.y) AS k, a.id FROM a LEFT JOIN b ON b.x = a.x",
    "SELECT c.id AS k, s.n FROM c CROSS JOIN a LEFT JOIN LATERAL (SELECT count(*) AS n FROM b \
     WHERE b.x = c.x AND b.y = a.id) s ON true",
    "SELECT a.id AS k, b.y FROM a LEFT JOIN (b LEFT JOIN c ON c.x = b.y) ON b.x = a.x AND c.y = a.y",
    "SELECT a.id AS k, c.y FROM a JOIN b ON b.x = a.x FULL JOIN c ON c.x = b.y",
    // b leads to a by way of c, and c by way of b: each is sound alone, and only a tree is (A4).
    "SELECT a.id AS k, b.id, c.id AS i FROM a JOIN b ON b.x = a.x JOIN c ON c.x = a.x WHERE b.y = c.y",
    // Of a FULL JOIN's merged column either side's row may be the one that is missing.
    "SELECT k.id AS k, r.id FROM a k JOIN (SELECT x FROM a FULL JOIN b USING (x)) m ON m.x = k.y \
     JOIN c r ON r.y = m.x",
    "SELECT c.id AS k, a.y FROM a JOIN (c LEFT JOIN b ON b.y = c.y) ON coalesce(b.x, 0) = a.y",
    "SELECT c.id AS k, f.e, a.y FROM c JOIN a ON a.x = c.x LEFT JOIN LATERAL unnest(a.r) f(e) ON f.e = c.y",
    "SELECT DISTINCT ON (f.e) f.e, g.e AS k, a.y FROM a, unnest(a.r) f(e), unnest(a.r) g(e) \
     ORDER BY f.e, g.e DESC, a.y",
    "SELECT c.id AS k, f.e FROM c, (SELECT unnest(r) AS e FROM a LIMIT 1) f WHERE f.e = c.x",
    "SELECT coalesce(s.l, 7) AS k, a.id FROM a LEFT JOIN LATERAL (SELECT a.x AS l) s ON a.y = 1",
    "SELECT coalesce(s.l, 7) AS k, a.id FROM a LEFT JOIN LATERAL abs(a.x) s(l) ON a.y = 1",
    "SELECT c.id AS k, a.y FROM c, a WHERE c.x = a.x OR c.id = 1",
    "SELECT c.id AS k, a.y, b.y AS z FROM c, a, b WHERE c.x = a.x OR c.y = b.y",
];
