"""Run Alembic from code: one place knows where the migrations lie."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.pool import NullPool

from agent_relay.shared.database import parameters_of, settle
from agent_relay.shared.migrations.grants import Roles
from agent_relay.shared.minimum_versions import OLDEST_POSTGRES
from agent_relay.shared.server_urls import Postgres

_LOCK = 7_270_201  # Any constant: all upgrades of this database take the same advisory lock.


def upgrade(database_url: str, revision: str = "head", roles: Roles = Roles({})) -> str:  # noqa: B008  (frozen)
    """Upgrade the database to `revision`, one process at a time; returns a sentence that says what was done.

    With the newest revision, roles are given their rights, also where the tables had it before.

    Newer tables are left as they are: older code works with them until its processes are replaced.

    Raises:
        SystemExit: the database cannot be used; the sentence says why.
    """
    parameters = parameters_of(Postgres.parse(database_url), "agent-relay migrations")
    engine = create_engine("postgresql+psycopg://", poolclass=NullPool, connect_args=parameters, hide_parameters=True)
    event.listen(engine, "connect", _settle)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
        config.attributes["connection"] = connection
        schema = config.attributes["schema"] = _schema(connection)
        context = MigrationContext.configure(connection, opts={"version_table_schema": schema})
        before = context.get_current_revision()
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if before is not None and before not in known:
            return f"The tables are of revision {before}, which is newer than this code; nothing was changed."
        command.upgrade(config, revision)
        after = context.get_current_revision()
        if revision == "head":
            roles.grant(connection, schema)
    if before == after:
        return f"The tables are up to date, of revision {after}."
    return f"The tables were brought from revision {before or 'none'} to {after}."


def _settle(driver: Any, _: Any) -> None:
    settle(driver)


def _schema(connection: Connection) -> str:
    """Find out where the tables go; the search path says it."""
    version, encoding, schema, path = connection.execute(
        text("""SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding'),
            current_schema(), current_setting('search_path')""")
    ).one()
    if version < OLDEST_POSTGRES:
        raise SystemExit(f"agent-relay needs PostgreSQL {OLDEST_POSTGRES} or newer; found {version}.")
    if encoding != "UTF8":
        raise SystemExit(
            f"The database of DATABASE_URL is encoded in {encoding}; it must be UTF8 to hold all texts. "
            "Make another one: CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0."
        )
    if schema is None:
        raise SystemExit(
            f"The search path of DATABASE_URL ({path}) names no schema that exists and that this role may use. "
            "Make one: CREATE SCHEMA name."
        )
    return schema
