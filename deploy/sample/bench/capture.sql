-- The tables of the capture benchmark. Three loads fill them, each a WAL backlog to drain:
--
--   a  capture_a.sql           1,000,000 small rows in 10,000 transactions of 100
--   b  capture_b.pgbench       300,000 transactions of one wide row, half inserts, half updates
--   c  capture_c.sql           load a's rows in one transaction
--
-- For a backlog that can be drained many times: create a slot before the load, never advance it, and
-- drain copies of it (pg_copy_logical_replication_slot).
--
-- Run again, it empties the tables.

SET client_min_messages = warning;
DROP TABLE IF EXISTS bench_small, bench_wide, bench_big;

CREATE TABLE bench_small (
    id bigint PRIMARY KEY,
    k integer NOT NULL,
    v text,
    ts timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE bench_wide (
    id uuid PRIMARY KEY,
    account_id bigint,
    status text,
    amount numeric(12,2),
    meta jsonb,
    tags text[],
    note text,
    created_at timestamptz,
    updated_at timestamptz
);

CREATE TABLE bench_big (LIKE bench_small INCLUDING ALL);
