-- A transaction's token, by which whoever has sent it can ask the gateway for the documents that
-- it leads to: GET /v1/collections/…/documents/…?wait=2s&txid=TOKEN.
--
-- Run by a role that may create a namespace in the database, after 0003:
--
--   psql -f 0004_onelog_token.sql URL
--
-- Run again, it changes nothing.

\set ON_ERROR_STOP on

BEGIN;

CREATE SCHEMA IF NOT EXISTS onelog;
GRANT USAGE ON SCHEMA onelog TO PUBLIC;

-- The id of the transaction that calls it, as text: 64 bits don't survive JavaScript's numbers. It
-- means something once the transaction has committed. Called in a savepoint, it is the whole
-- transaction's all the same.
--
--   BEGIN; UPDATE company_profile SET …; SELECT onelog.token(); COMMIT;
CREATE OR REPLACE FUNCTION onelog.token() RETURNS text
LANGUAGE sql VOLATILE SET search_path = pg_catalog AS $$
    SELECT pg_catalog.pg_current_xact_id()::text
$$;

COMMIT;
