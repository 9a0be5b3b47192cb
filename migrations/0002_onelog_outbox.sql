-- An outbox table: an event is a row, inserted in the transaction of the change that it is about.
--
-- Run by a role that may create tables in the namespace, such as the application's:
--
--   psql -v namespace=public -v role=onelog -f 0002_onelog_outbox.sql URL
--
-- Defaults: public, onelog. Then name it in config.toml: [outbox] tables = ["public.outbox"], and
-- run `onelog prepare`. Run again, it changes nothing. An outbox table that is there already, such
-- as Debezium's, can be used as it is: see [outbox] in config.example.toml.

\set ON_ERROR_STOP on
\if :{?namespace}
\else
    \set namespace public
\endif
\if :{?role}
\else
    \set role onelog
\endif

BEGIN;

CREATE TABLE IF NOT EXISTS :"namespace".outbox (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    aggregatetype text NOT NULL,           -- "order": events go to topic outbox.event.order
    aggregateid   text NOT NULL,           -- the record's key: events of one order stay in order
    type          text NOT NULL,           -- "OrderPlaced": the record's header "type"
    payload       jsonb,                   -- the record's value, as it is
    headers       jsonb,                   -- more headers, as {"tenant": "a"}
    created_at    timestamptz NOT NULL DEFAULT now()
);

-- For [outbox] cleanup_after, which looks for the oldest rows. Rows may as well be deleted in the
-- transaction that inserts them: the event is published all the same, and the table stays empty.
CREATE INDEX IF NOT EXISTS outbox_created_at ON :"namespace".outbox (created_at);

SELECT format('GRANT SELECT, DELETE ON %I.outbox TO %I', :'namespace', :'role')
WHERE EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec

COMMIT;
