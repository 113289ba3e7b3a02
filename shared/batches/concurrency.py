"""Keep to `max_running`: only that number of a batch's unfinished runs is due; each end makes one more due."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.database import transact
from agent_relay.shared.database.typed_rows import columns
from agent_relay.shared.queue import QueueEntry

_HAS_STARTED = "(batches.start_at IS NULL OR batches.start_at <= now())"

_RELEASE = text(f"""
    SELECT {columns(QueueEntry, "run", run_id="run.id")}
    FROM batches CROSS JOIN LATERAL release_in_batch(batches.id) AS run
    WHERE batches.id = :batch_id AND {_HAS_STARTED}
""")  # noqa: S608  (constants)

_WITH_ROOM = text(f"""
    SELECT id FROM batches
    WHERE finished_at IS NULL AND status = 'in_progress' AND {_HAS_STARTED} AND max_running > (
        SELECT count(*) FROM runs
        WHERE batch_id = batches.id AND status IN ('queued', 'running') AND runs.due_at < batches.deadline_at
    ) AND EXISTS (
        SELECT FROM runs WHERE batch_id = batches.id AND status = 'queued' AND runs.due_at = batches.deadline_at
    )
""")  # noqa: S608  (a constant)


async def release(database: AsyncEngine, batch_id: UUID) -> list[QueueEntry]:
    """Make as many runs due as `max_running` allows; returns their queue entries."""
    return await transact(database, _RELEASE, {"batch_id": batch_id}, QueueEntry)


async def with_room(database: AsyncEngine) -> Sequence[UUID]:
    """Find the batches that could have more of their runs due: the process that ended one did not make one due."""
    return [row.id for row in await transact(database, _WITH_ROOM)]
