"""Cancel a batch: from the first moment on none of its runs starts, and then they end, some at a time."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.database.tables import IS_UNFINISHED, RunStatus
from agent_relay.shared.database.typed_rows import columns, read
from agent_relay.shared.metrics import run_ended
from agent_relay.shared.queue import QueueEntry
from agent_relay.shared.runs.sql import CANCELLED_UNLESS_RUNNING

STEP = 500
"""Runs that one statement cancels: the batch's row is locked for as long."""


@dataclass(frozen=True, slots=True)
class _Cancelled:
    """A run that has ended, or whose worker is to end it."""

    id: UUID
    status: str
    agent_type: str
    error: JsonValue
    ring: int
    pool: str
    lane: str
    tenant: str


_BEGIN = text("""
    UPDATE batches SET status = 'cancelling' WHERE id = :batch_id AND status = 'in_progress'
""")

_CANCEL_SOME = text(f"""
    UPDATE runs
    SET cancel_requested_at = now(),
        {CANCELLED_UNLESS_RUNNING},
        end_told = status = 'queued'
    WHERE id IN (
        SELECT id FROM runs
        WHERE batch_id = :batch_id AND {IS_UNFINISHED} AND cancel_requested_at IS NULL
        LIMIT {STEP} FOR UPDATE SKIP LOCKED
    )
    RETURNING {columns(_Cancelled)}
""")  # noqa: S608  (constants)


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one statement."""

    silenced: list[QueueEntry]
    """The calls for runs that waited, and have ended."""
    wished: list[UUID]
    """The runs that a worker holds; it is to be notified."""


async def begin_to_cancel(database: AsyncEngine, batch_id: UUID) -> None:
    """Start no more of its runs; nothing changes if it has ended, or is being cancelled."""
    async with database.begin() as connection:
        await connection.execute(_BEGIN, {"batch_id": batch_id})


async def cancel_some(database: AsyncEngine, batch_id: UUID) -> Step | None:
    """Cancel some runs of a batch; None where there are no more.

    Runs that waited have no log: their readers, if any, read the end from the row.
    """
    async with database.begin() as connection:
        rows = read(await connection.execute(_CANCEL_SOME, {"batch_id": batch_id}), _Cancelled)
    ended = [row for row in rows if row.status != RunStatus.RUNNING]
    for row in ended:
        run_ended(row)
    wished = [row.id for row in rows if row.status == RunStatus.RUNNING]
    entries = [QueueEntry(row.id, row.ring, row.pool, row.lane, row.tenant) for row in ended]
    return Step(entries, wished) if rows else None
