"""Cancel a batch: from the first moment on none of its runs starts, and then they end, some at a time."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.lanes import Ring
from shared.metrics import run_ended
from shared.runs.finish import RING_COLUMNS, ring_of
from shared.tables import RunStatus

STEP = 500
"""Runs that one statement cancels: the batch's row is locked for as long."""

_BEGIN = text("""
    UPDATE batches SET status = 'cancelling' WHERE id = :batch_id AND status = 'in_progress'
""")

_CANCEL_SOME = text(f"""
    UPDATE runs
    SET cancel_requested_at = now(),
        status = CASE status WHEN 'queued' THEN 'cancelled' ELSE status END,
        finished_at = CASE status WHEN 'queued' THEN now() END,
        end_told = status = 'queued'
    WHERE id IN (
        SELECT id FROM runs
        WHERE batch_id = :batch_id AND status IN ('queued', 'running') AND cancel_requested_at IS NULL
        LIMIT {STEP} FOR UPDATE SKIP LOCKED
    )
    RETURNING status, agent_type, error, {RING_COLUMNS}
""")  # noqa: S608  (constants)


@dataclass(frozen=True, slots=True)
class Step:
    """What one statement came to."""

    silenced: list[Ring]
    """The calls for runs that waited, and have ended."""
    wished: list[UUID]
    """The runs that a worker holds; it is to be told."""


async def begin_to_cancel(database: AsyncEngine, batch_id: UUID) -> None:
    """Have no more of its runs start; nothing changes where it has ended, or is being cancelled."""
    async with database.begin() as connection:
        await connection.execute(_BEGIN, {"batch_id": batch_id})


async def cancel_some(database: AsyncEngine, batch_id: UUID) -> Step | None:
    """Cancel some runs of a batch; None where there are no more.

    Those that waited leave no log behind: their followers, if any, are told from the row.
    """
    async with database.begin() as connection:
        rows = (await connection.execute(_CANCEL_SOME, {"batch_id": batch_id})).all()
    ended = [row for row in rows if row.status != RunStatus.RUNNING]
    for row in ended:
        run_ended(row)
    wished = [row.id for row in rows if row.status == RunStatus.RUNNING]
    return Step([ring_of(row) for row in ended], wished) if rows else None
