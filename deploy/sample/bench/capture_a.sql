-- Load a: small transactions. psql [-v rows=1000000] -f capture_a.sql URL
-- Outside of a transaction, as it commits every 100 rows.

\set ON_ERROR_STOP on
\if :{?rows}
\else
    \set rows 1000000
\endif
SELECT set_config('bench.rows', :'rows', false) \g /dev/null
SET synchronous_commit = off;

DO $$
DECLARE
    per_transaction constant integer := 100;
BEGIN
    FOR batch IN 0 .. current_setting('bench.rows')::integer / per_transaction - 1 LOOP
        INSERT INTO bench_small (id, k, v)
        SELECT g, g % 1000, 'value-' || md5(g::text)
        FROM generate_series(batch * per_transaction + 1, (batch + 1) * per_transaction) AS g;
        COMMIT;
    END LOOP;
END
$$;
