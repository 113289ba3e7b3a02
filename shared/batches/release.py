"""Keep to `max_running`: only so many unfinished runs of such a batch are due; each end makes room for another."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.database import transact
from shared.lanes import Ring
from shared.runs.finish import RING_COLUMNS, ring_of

_RELEASE = text(f"SELECT {RING_COLUMNS} FROM release_in_batch(:batch_id)")  # noqa: S608  (a constant)

_WITH_ROOM = text("""
    SELECT id FROM batches
    WHERE finished_at IS NULL AND status = 'in_progress' AND max_running > (
        SELECT count(*) FROM runs
        WHERE batch_id = batches.id AND status IN ('queued', 'running') AND runs.due_at < batches.deadline_at
    ) AND EXISTS (
        SELECT FROM runs WHERE batch_id = batches.id AND status = 'queued' AND runs.due_at = batches.deadline_at
    )
""")


async def release(database: AsyncEngine, batch_id: UUID) -> list[Ring]:
    """Make as many runs due as there is room for; returns the rings that call for them."""
    return [ring_of(row) for row in await transact(database, _RELEASE, {"batch_id": batch_id})]


async def with_room(database: AsyncEngine) -> Sequence[UUID]:
    """Find the batches that could have more of their runs due: whoever ended one has not come to it."""
    return [row.id for row in await transact(database, _WITH_ROOM)]
