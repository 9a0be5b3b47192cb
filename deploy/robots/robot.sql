-- What the robots remember of commands. In a namespace of its own, so that "public.*" in
-- config.toml does not publish it.
--
--   psql -f robot.sql URL
--
-- Run again, it changes nothing.

\set ON_ERROR_STOP on

BEGIN;

CREATE SCHEMA IF NOT EXISTS robot;

-- Written in the transaction that does what the command asks for: Kafka delivers a command again
-- after a crash, and who finds its id here does nothing.
CREATE TABLE IF NOT EXISTS robot.handled_command (
    id text PRIMARY KEY,                             -- the record's header "id"
    handled_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX IF NOT EXISTS handled_command_handled_at ON robot.handled_command (handled_at);

COMMIT;
