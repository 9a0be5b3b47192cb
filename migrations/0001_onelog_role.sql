-- The role that the daemon logs in with: it may follow the log and read, and nothing else.
--
-- Run by a superuser:
--
--   psql -v role=onelog -v namespace=public -v owner=app -f 0001_onelog_role.sql URL
--   psql -c '\password onelog' URL       (psql hashes it first: no server log ever holds it)
--
-- owner is the role that makes the application's tables. Defaults: onelog, public, and whoever runs
-- this. Run again, it changes nothing. For tables in several namespaces, run it once for each.
--
-- It does not make the publication: that takes the tables' owner. `onelog prepare --dry-run` prints
-- the statement. pg_hba.conf needs no "replication" line, as logical replication is matched by the
-- database's name.

\set ON_ERROR_STOP on
\if :{?role}
\else
    \set role onelog
\endif
\if :{?namespace}
\else
    \set namespace public
\endif
\if :{?owner}
\else
    \set owner :USER
\endif

BEGIN;

-- A new role has no right but these two: to log in, and to create, read and drop its slot.
SELECT format('CREATE ROLE %I', :'role')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
ALTER ROLE :"role" LOGIN REPLICATION;

-- TEMPORARY: the daemon lets Postgres resolve a mapping's SQL by a temporary view, rolled back.
GRANT CONNECT, TEMPORARY ON DATABASE :"DBNAME" TO :"role";

-- SELECT on whole tables: a grant on single columns does not allow LOCK TABLE … ACCESS SHARE, which
-- every read of the daemon begins with.
GRANT USAGE ON SCHEMA :"namespace" TO :"role";
GRANT SELECT ON ALL TABLES IN SCHEMA :"namespace" TO :"role";

-- And on the tables that this owner will make later.
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA :"namespace" GRANT SELECT ON TABLES TO :"role";

COMMIT;
