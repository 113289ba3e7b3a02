"""Erases everything that belongs to a user: hidden or cancelled at once, erased step by step by any API process.

What was there when it was asked for goes, and what comes of it meanwhile; what the user makes later stays. A run that a
worker holds is cancelled, and erased once it has ended, so that nothing is stored for it afterwards. The sums of usage,
which are the tenant's, stay.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.cancellation import Canceller
from agent_relay.api.requests.identity import Owner
from agent_relay.shared.away import skip_if_database_away, skip_if_failed, skip_if_redis_away
from agent_relay.shared.clock import new_id
from agent_relay.shared.database import transact
from agent_relay.shared.database.tables import IS_UNFINISHED, TERMINAL
from agent_relay.shared.database.typed_rows import columns, read, read_one
from agent_relay.shared.errors import NotFound
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.rows import RunEnd
from agent_relay.shared.runs.cancel import Cancellation
from agent_relay.shared.runs.finish import LOCKED_BATCHES
from agent_relay.shared.runs.sql import CANCELLED_UNLESS_RUNNING, RUN_END
from agent_relay.shared.user_tokens import revoke_in

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
DELETIONS_A_LOOK = 20
KEPT_DAYS = 30
"""So long after its end a deletion can be read."""


@dataclass(frozen=True, slots=True)
class DeletionRow:
    """A deletion as it is shown."""

    id: UUID
    tenant: str
    user_id: UUID
    created_at: datetime
    finished_at: datetime | None


_COLUMNS = columns(DeletionRow)

_OF_USER = "tenant = :tenant AND user_id = :user_id"
_UP_TO_THEN = f"{_OF_USER} AND created_at <= :created_at"

_HIDE = [
    text(statement)
    for statement in (
        # One call after the other; schedules before threads, as ticks lock them; batches in order, as ends of runs do.
        "SELECT pg_advisory_xact_lock(hashtextextended(CAST(:tenant AS text) || ' ' || CAST(:user_id AS text), 0))",
        f"DELETE FROM schedules WHERE {_OF_USER}",  # noqa: S608  (constants)
        f"UPDATE threads SET deleted_at = now() WHERE {_OF_USER} AND deleted_at IS NULL",  # noqa: S608  (constants)
        f"""
            UPDATE batches SET deleted_at = coalesce(deleted_at, now()),
                status = CASE status WHEN 'in_progress' THEN 'cancelling' ELSE status END
            WHERE id IN (SELECT id FROM batches WHERE {_OF_USER} ORDER BY id FOR NO KEY UPDATE)
        """,  # noqa: S608  (constants)
        f"DELETE FROM webhook_deliveries WHERE {_OF_USER}",  # noqa: S608  (constants)
        f"DELETE FROM idempotency_keys WHERE {_OF_USER}",  # noqa: S608  (constants)
        "DELETE FROM user_deletions WHERE finished_at < now() - make_interval(days => :kept_days)",
    )
]

_IS_TOLD = "finished_at < now() - interval '3 seconds'"
"""By then the worker has written the end into the event log, and followers have been told of it, if from the row."""

_INSERT = text(f"INSERT INTO user_deletions (id, tenant, user_id) VALUES (:id, :tenant, :user_id) RETURNING {_COLUMNS}")  # noqa: S608  (constants)

_OWNED = text(f"SELECT {_COLUMNS} FROM user_deletions WHERE id = :id AND {_OF_USER}")  # noqa: S608  (constants)

_UNFINISHED = text(f"""
    SELECT {_COLUMNS} FROM user_deletions WHERE finished_at IS NULL ORDER BY random() LIMIT {DELETIONS_A_LOOK}
""")  # noqa: S608  (constants)

_CANCEL = text(f"""
    WITH touched AS (
        UPDATE runs SET cancel_requested_at = coalesce(cancel_requested_at, now()), {CANCELLED_UNLESS_RUNNING}
        WHERE id IN (
            SELECT id FROM runs
            WHERE {_UP_TO_THEN} AND {IS_UNFINISHED} AND (status <> 'running' OR cancel_requested_at IS NULL)
            LIMIT 500 FOR UPDATE SKIP LOCKED
        )
        RETURNING *
    ), locked AS MATERIALIZED ({LOCKED_BATCHES.format(touched="touched")})
    SELECT {RUN_END} FROM touched WHERE (SELECT count(*) FROM locked) IS NOT NULL
""")  # noqa: S608  (constants)

_ENDED = text(f"SELECT id FROM runs WHERE {_UP_TO_THEN} AND {_IS_TOLD} LIMIT 500")  # noqa: S608  (constants)

_ERASE_FILES_OF_RUNS = text(f"""
    DELETE FROM files WHERE {_OF_USER} AND id IN (
        SELECT file_id FROM file_uses WHERE run_id = ANY(CAST(:run_ids AS uuid[]))
    )
""")  # noqa: S608  (constants)

_ERASE_RUNS = text("DELETE FROM runs WHERE id = ANY(CAST(:run_ids AS uuid[]))")

_HAS_RUNS = text(f"SELECT id FROM runs WHERE {_UP_TO_THEN} LIMIT 1")  # noqa: S608  (constants)

_ERASE_FILES = text(f"""
    DELETE FROM files WHERE id IN (SELECT id FROM files WHERE {_UP_TO_THEN} LIMIT 50 FOR UPDATE SKIP LOCKED)
    RETURNING id
""")  # noqa: S608  (constants)

_ERASE_REST = [
    text(statement)
    for statement in (
        f"DELETE FROM schedules WHERE {_UP_TO_THEN}",  # noqa: S608  (constants)
        f"DELETE FROM threads WHERE {_UP_TO_THEN}",  # noqa: S608  (constants)
        f"DELETE FROM batches WHERE {_UP_TO_THEN}",  # noqa: S608  (constants)
        f"""
            DELETE FROM webhook_deliveries WHERE {_OF_USER} AND (created_at <= :created_at OR NOT (
                EXISTS (SELECT FROM runs WHERE id = resource_id) OR EXISTS (SELECT FROM batches WHERE id = resource_id)
            ))
        """,  # noqa: S608  (constants)
    )
]

_FINISH = text(f"""
    UPDATE user_deletions SET finished_at = clock_timestamp()
    WHERE id = :id AND finished_at IS NULL AND created_at < clock_timestamp() - interval '1 second'
      AND NOT EXISTS (SELECT FROM runs WHERE {_UP_TO_THEN})
      AND NOT EXISTS (SELECT FROM files WHERE {_UP_TO_THEN})
""")  # noqa: S608  (constants)


async def begin(database: AsyncEngine, owner: Owner) -> DeletionRow:
    """Hide what the user has, void the user's tokens, and store that all of it is to be erased, in one transaction."""
    values = {"id": new_id(), "tenant": owner.tenant, "user_id": owner.user_id, "kept_days": KEPT_DAYS}
    async with database.begin() as connection:
        for statement in _HIDE:
            await connection.execute(statement, values)
        await revoke_in(connection, owner.tenant, owner.user_id)
        row = read_one(await connection.execute(_INSERT, values), DeletionRow)
    assert row is not None  # noqa: S101
    return row


async def owned_deletion(database: AsyncEngine, owner: Owner, deletion_id: UUID) -> DeletionRow:
    """Read a deletion.

    Raises:
        NotFound: it is not there, or not this user's.
    """
    values = {"id": deletion_id, "tenant": owner.tenant, "user_id": owner.user_id}
    rows = await transact(database, _OWNED, values, DeletionRow)
    if not rows:
        raise NotFound("deletion")
    return rows[0]


class Eraser:
    """One process's share of the deletions. Each step may be made by several at once, and again."""

    def __init__(self, database: AsyncEngine, event_log: EventLog, canceller: Canceller) -> None:
        self._database = database
        self._event_log = event_log
        self._canceller = canceller

    async def run(self) -> None:
        """Go on with deletions for ever, at a pace that keeps processes out of step."""
        while True:
            with skip_if_failed("eraser", "look"), skip_if_database_away(log, "eraser.database_away"):
                for deletion in await transact(self._database, _UNFINISHED, {}, DeletionRow):
                    with skip_if_failed("eraser", f"deletion {deletion.id}"):
                        await self.erase(deletion)
            await asyncio.sleep(LOOK_SECONDS * random.uniform(0.75, 1.25))  # noqa: S311

    async def erase(self, deletion: DeletionRow) -> None:
        """Erase what can be erased now; what a worker still holds, a later look does."""
        values = {
            "id": deletion.id,
            "tenant": deletion.tenant,
            "user_id": deletion.user_id,
            "created_at": deletion.created_at,
        }
        while await self._cancel_some(values):
            pass
        while await self._erase_some_runs(values):
            pass
        if await transact(self._database, _HAS_RUNS, values):
            return
        while await transact(self._database, _ERASE_FILES, values):
            pass
        async with self._database.begin() as connection:
            for statement in _ERASE_REST:
                await connection.execute(statement, values)
            await connection.execute(_FINISH, values)

    async def _cancel_some(self, values: Mapping[str, Any]) -> int:
        async with self._database.begin() as connection:
            rows = read(await connection.execute(_CANCEL, values), RunEnd)
        ends = [Cancellation(row.id, row if row.status in TERMINAL else None) for row in rows]
        if ends:
            await self._canceller.announce(ends)
        return len(ends)

    async def _erase_some_runs(self, values: Mapping[str, Any]) -> int:
        """Erase runs that have ended; first their logs, which nobody would find without the rows.

        Without Redis they stay, for as long as logs are kept.
        """
        run_ids = [row.id for row in await transact(self._database, _ENDED, values)]
        if not run_ids:
            return 0
        with skip_if_redis_away(log, "eraser.redis_away runs=%d", len(run_ids)):
            await self._event_log.remove(*run_ids)
        async with self._database.begin() as connection:
            await connection.execute(_ERASE_FILES_OF_RUNS, {**values, "run_ids": run_ids})
            await connection.execute(_ERASE_RUNS, {"run_ids": run_ids})
        return len(run_ids)
