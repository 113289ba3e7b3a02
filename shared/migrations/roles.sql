-- Makes the roles of the service in PostgreSQL, with these passwords; run again, it changes the passwords. As an
-- administrator of the server, in the database of the service:
--
--     export MIGRATIONS_PASSWORD=… API_PASSWORD=… WORKER_PASSWORD=… AGENTS_PASSWORD=…
--     psql -X -f roles.sql postgresql://administrator@host/database
--
-- migrations  owns the tables, also those of an installation that had one role for everything
-- api         the role of API processes
-- worker      the role of workers
-- agents      what agents get as RunScope.database: AGENT_DATABASE_URL of workers
--
-- What the last three may do, the migrations grant: run them with DATABASE_API_ROLE=api DATABASE_WORKER_ROLE=worker
-- DATABASE_AGENT_ROLE=agents. docker-compose.yml does all of it.

\set ON_ERROR_STOP on
\set migrations_password ''
\set api_password ''
\set worker_password ''
\set agents_password ''
\getenv migrations_password MIGRATIONS_PASSWORD
\getenv api_password API_PASSWORD
\getenv worker_password WORKER_PASSWORD
\getenv agents_password AGENTS_PASSWORD

BEGIN;
SET LOCAL client_min_messages = warning;

-- A password that is not given is an error, before anything is changed.
SELECT format('DO $$ BEGIN RAISE EXCEPTION %L; END $$', name || '_PASSWORD is not set')
FROM (VALUES ('MIGRATIONS', :'migrations_password'), ('API', :'api_password'), ('WORKER', :'worker_password'),
             ('AGENTS', :'agents_password')) AS given (name, password)
WHERE password = ''
\gexec

SELECT format('CREATE ROLE %I', name) FROM unnest(ARRAY['migrations', 'api', 'worker', 'agents']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec
ALTER ROLE migrations LOGIN PASSWORD :'migrations_password';
ALTER ROLE api LOGIN PASSWORD :'api_password';
ALTER ROLE worker LOGIN PASSWORD :'worker_password';
ALTER ROLE agents LOGIN PASSWORD :'agents_password';

-- The migrations make tables in this schema, and the schema of the agents.
SELECT format('GRANT CREATE ON DATABASE %I TO migrations', current_database())
\gexec
SELECT format('ALTER SCHEMA %I OWNER TO migrations', current_schema())
\gexec

-- What there is becomes theirs, if it was of whoever runs this.
SELECT format('ALTER TABLE %s OWNER TO migrations', pg_class.oid::regclass) FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relowner::regrole = current_user::regrole
\gexec
SELECT format('ALTER FUNCTION %s OWNER TO migrations', pg_proc.oid::regprocedure) FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace AND proowner::regrole = current_user::regrole
\gexec

COMMIT;
