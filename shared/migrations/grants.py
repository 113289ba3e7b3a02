"""What the roles of the processes may do in the database: each table has a line here, a new one needs one, too.

The migrations grant it as the owner of the tables, each time they are run, and take back what is not listed. Triggers
write as the owner, and so does `ON DELETE CASCADE`: neither needs a right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection

from agent_relay.shared.settings import Settings

API, WORKER, AGENTS = "DATABASE_API_ROLE", "DATABASE_WORKER_ROLE", "DATABASE_AGENT_ROLE"
"""The settings that name the roles: of API processes, of workers, and of what agents get as `RunScope.database`."""

GRANTS: Mapping[str, Mapping[str, str]] = {
    "alembic_version": {API: "SELECT", WORKER: "SELECT"},
    "agents": {API: "SELECT", WORKER: "SELECT, INSERT, UPDATE"},
    # Whoever sweeps declares workers dead and forgets them.
    "workers": {API: "SELECT, UPDATE, DELETE", WORKER: "SELECT, INSERT, UPDATE, DELETE"},
    "threads": {API: "SELECT, INSERT, UPDATE, DELETE", WORKER: "SELECT, UPDATE, DELETE"},
    # A worker makes runs of dead letters only: `agent-relay requeue`.
    "runs": {API: "SELECT, INSERT, UPDATE, DELETE", WORKER: "SELECT, INSERT, UPDATE, DELETE"},
    # Whoever serves HTTP makes the runs of ticks.
    "schedules": {API: "SELECT, INSERT, UPDATE, DELETE"},
    "batches": {API: "SELECT, INSERT, UPDATE, DELETE", WORKER: "SELECT, UPDATE, DELETE"},
    "batch_results": {API: "SELECT"},
    "messages": {API: "SELECT, INSERT, DELETE", WORKER: "INSERT"},
    # A worker stores the requests of a run that waits; API processes read and answer them.
    "run_requests": {API: "SELECT, UPDATE", WORKER: "SELECT, INSERT"},
    # Those of a run that begins from its query again are deleted.
    "run_steps": {API: "SELECT", WORKER: "SELECT, INSERT, DELETE"},
    "run_messages": {API: "SELECT, INSERT", WORKER: "SELECT"},
    # Whoever forks a thread copies its transcripts.
    "transcripts": {API: "SELECT, INSERT", WORKER: "SELECT, INSERT, UPDATE"},
    # Whoever sweeps erases files that have expired, and locks them for that; a trigger erases their bytes.
    "files": {API: "SELECT, INSERT, UPDATE, DELETE", WORKER: "SELECT, INSERT, UPDATE, DELETE"},
    # Who stores bytes that are there already locks them.
    "file_contents": {API: "SELECT, INSERT, UPDATE", WORKER: "SELECT, INSERT, UPDATE"},
    "file_chunks": {API: "SELECT, INSERT", WORKER: "SELECT, INSERT"},
    # Triggers note what is attached; a worker notes what an agent returns.
    # Whoever erases all of a user erases what the user's runs used.
    "file_uses": {API: "SELECT", WORKER: "SELECT, INSERT"},
    # A trigger writes it. Both look at what a tenant has spent today.
    "past_usage": {API: "SELECT", WORKER: "SELECT"},
    # A worker only erases what has expired, and locks it for that.
    "idempotency_keys": {
        API: "SELECT, INSERT, UPDATE, DELETE",
        WORKER: "SELECT (tenant, user_id, route, key, expires_at), UPDATE (expires_at), DELETE",
    },
    "webhook_deliveries": {API: "SELECT, UPDATE, DELETE", WORKER: "SELECT, UPDATE, DELETE"},
    # Whoever needs the secret of a tenant first makes it.
    "webhook_secrets": {API: "SELECT, INSERT, DELETE", WORKER: "SELECT, INSERT"},
    "api_keys": {API: "SELECT, INSERT, UPDATE"},
    "user_deletions": {API: "SELECT, INSERT, UPDATE, DELETE"},
    "user_token_revocations": {API: "SELECT, INSERT, UPDATE, DELETE"},
    "service_secrets": {API: "SELECT, INSERT, UPDATE"},
    # The figures of each minute, for the operations page.
    "service_minutes": {API: "SELECT, INSERT, DELETE"},
    "api_processes": {API: "SELECT, INSERT, UPDATE, DELETE"},
    "bank_customers": {AGENTS: "SELECT"},
}
"""By table and role. To lock rows needs UPDATE of one column; to return written rows needs SELECT."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles that get rights, by the settings that name them; with none, nothing is granted and nothing taken."""

    names: Mapping[str, str]

    @classmethod
    def of(cls, settings: Settings) -> Roles:
        """Read the settings."""
        named = {name: getattr(settings, name.lower()) for name in (API, WORKER, AGENTS)}
        return cls({setting: role for setting, role in named.items() if role})

    def grant(self, connection: Connection, schema: str) -> None:
        """Give the roles their rights on the tables of this schema, and no other rights on them.

        What agents make goes to a schema of their role's own name, which comes first in PostgreSQL's usual search path.

        Raises:
            SystemExit: a role does not exist, or is the one that migrates; the sentence says which.
        """
        if not self.names:
            return
        driver = cast("psycopg.Connection[tuple[Any, ...]]", connection.connection.driver_connection)
        self._check(driver)
        within = sql.Identifier(schema)
        driver.execute(sql.SQL("REVOKE CREATE ON SCHEMA {} FROM PUBLIC").format(within))
        tables = {table: sql.Identifier(schema, table) for table in GRANTS}
        for role in map(sql.Identifier, dict.fromkeys(self.names.values())):
            everything = sql.SQL(", ").join(tables.values())
            driver.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(everything, role))
            driver.execute(sql.SQL("REVOKE ALL ON SCHEMA {} FROM {}").format(within, role))
            driver.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(within, role))
        for table, granted in GRANTS.items():
            for setting in granted.keys() & self.names.keys():
                role = sql.Identifier(self.names[setting])
                rights = sql.SQL(granted[setting])  # pyright: ignore[reportArgumentType]  (of this module)
                driver.execute(sql.SQL("GRANT {} ON {} TO {}").format(rights, tables[table], role))
        if AGENTS in self.names:
            own = sql.Identifier(self.names[AGENTS])
            driver.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(own))
            driver.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA {} TO {}").format(own, own))

    def _check(self, driver: psycopg.Connection[tuple[Any, ...]]) -> None:
        rows = driver.execute(
            "SELECT rolname, rolsuper OR rolname = current_user FROM pg_roles WHERE rolname = ANY(%s)",
            [list(self.names.values())],
        ).fetchall()
        reaches_all = {str(role): bool(reaches) for role, reaches in rows}
        for setting, role in self.names.items():
            if role not in reaches_all:
                raise SystemExit(
                    f"{setting}: there is no role {role!r} in PostgreSQL. Make it: CREATE ROLE … LOGIN PASSWORD '…' "
                    "(shared/migrations/roles.sql makes all of them)."
                )
            if reaches_all[role]:
                raise SystemExit(
                    f"{setting}: the role {role!r} runs the migrations or is a superuser: no right can be kept from it."
                    " Name another role, or none."
                )
