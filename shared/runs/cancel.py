"""Cancel a run: at once where nobody holds it, else by asking its worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.runs.finish import END_COLUMNS, INTERRUPTED

CANCELS = "cancels"
"""The channel on which workers hear, within a moment, what the next beat would tell them anyway."""


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What a request to cancel came to."""

    ended: Any | None
    """The run's row, where the request itself ended it."""
    held: bool
    """Whether a worker holds the run and has to be told."""


_CANCEL = text(f"""
    WITH touched AS (
        UPDATE runs
        SET cancel_requested_at = coalesce(cancel_requested_at, now()),
            status = CASE status WHEN 'queued' THEN 'cancelled' ELSE status END,
            finished_at = CASE status WHEN 'queued' THEN now() END
        WHERE id = :run_id AND status IN ('queued', 'running')
        RETURNING *
    ), interrupted AS ({INTERRUPTED})
    SELECT {END_COLUMNS} FROM touched
""")  # noqa: S608  (constants)


async def cancel(database: AsyncEngine, run_id: UUID) -> Cancellation:
    """Ask that the run end; asking again, or too late, changes nothing."""
    async with database.begin() as connection:
        row = (await connection.execute(_CANCEL, {"run_id": run_id})).one_or_none()
    if row is None:
        return Cancellation(None, held=False)
    held = row.status == "running"
    return Cancellation(None if held else row, held=held)
