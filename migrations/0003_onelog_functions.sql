-- Functions for events without a table, and for what a transaction says about itself. They write
-- nothing but a message into the WAL; every role may call them.
--
-- Run by a role that may create a namespace in the database (it gets one named onelog):
--
--   psql -f 0003_onelog_functions.sql URL
--
-- Run again, it changes nothing.

\set ON_ERROR_STOP on

BEGIN;

CREATE SCHEMA IF NOT EXISTS onelog;
GRANT USAGE ON SCHEMA onelog TO PUBLIC;

-- Publishes an event if the transaction commits; its id. As a row of an outbox table, without one.
-- The parameters have the names of the table's columns:
--
--   SELECT onelog.emit('order', '42', 'OrderPlaced', '{"total": 12.30}');
--   SELECT onelog.emit(aggregatetype => 'order', aggregateid => '42', type => 'OrderPlaced',
--                      payload => '{"total": 12.30}', headers => '{"tenant": "a"}');
CREATE OR REPLACE FUNCTION onelog.emit(
    aggregatetype text,
    aggregateid   text,
    type          text,
    payload       jsonb,
    headers       jsonb DEFAULT NULL,
    id            uuid  DEFAULT gen_random_uuid()
) RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_logical_emit_message(true, 'onelog.outbox', jsonb_build_object(
        'id', id, 'aggregatetype', aggregatetype, 'aggregateid', aggregateid, 'type', type,
        'payload', payload, 'headers', headers)::text);
    RETURN id;
END
$$;

-- Gives every record of the transaction that follows it the headers correlation-id and traceparent,
-- and more by choice: of changes as of events. To be called first in the transaction, as what comes
-- before it goes without. Called again, it changes what it names.
--
--   SELECT onelog.context('5f2c…', '00-4bf9…-00f0…-01');
--   SELECT onelog.context(correlation_id => '5f2c…', headers => '{"tenant": "a"}');
CREATE OR REPLACE FUNCTION onelog.context(
    correlation_id text  DEFAULT NULL,
    traceparent    text  DEFAULT NULL,
    tracestate     text  DEFAULT NULL,
    headers        jsonb DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog AS $$
BEGIN
    PERFORM pg_logical_emit_message(true, 'onelog.context', (
        SELECT coalesce(jsonb_object_agg(key, value), '{}')
        FROM jsonb_each(jsonb_build_object('correlation_id', correlation_id,
            'traceparent', traceparent, 'tracestate', tracestate, 'headers', headers))
        WHERE value <> 'null')::text);
END
$$;

COMMIT;
