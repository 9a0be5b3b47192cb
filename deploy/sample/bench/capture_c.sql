-- Load c: load a's rows in one transaction. psql [-v rows=1000000] -f capture_c.sql URL

\set ON_ERROR_STOP on
\if :{?rows}
\else
    \set rows 1000000
\endif
INSERT INTO bench_big (id, k, v)
SELECT g, g % 1000, 'value-' || md5(g::text)
FROM generate_series(1, :rows) AS g;
