"""Cancel a run: at once where nobody holds it, else by asking its worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.runs.finish import END_COLUMNS, INTERRUPTED
from shared.tables import RunStatus


@dataclass(frozen=True, slots=True)
class Cancellation:
    """What a request to cancel came to."""

    run_id: UUID
    ended: Any | None
    """The run's row, where the request itself ended it; None where a worker holds it and has to be told."""


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


_SUPERSEDE = text(f"""
    WITH touched AS (
        UPDATE runs
        SET cancel_requested_at = coalesce(cancel_requested_at, now()), rolled_back = :roll_back,
            status = CASE status WHEN 'queued' THEN 'cancelled' ELSE status END,
            finished_at = CASE status WHEN 'queued' THEN now() END
        WHERE thread_id = :thread_id AND status IN ('queued', 'running')
        RETURNING *
    ), interrupted AS ({INTERRUPTED})
    SELECT {END_COLUMNS} FROM touched
""")  # noqa: S608  (constants)

_ERASE_MESSAGES = text("DELETE FROM messages WHERE run_id = ANY(CAST(:run_ids AS uuid[]))")


async def supersede(connection: AsyncConnection, thread_id: UUID, *, roll_back: bool) -> list[Cancellation]:
    """Cancel all unfinished runs of a thread, in the transaction that has locked its row; erase their messages, too."""
    rows = (await connection.execute(_SUPERSEDE, {"thread_id": thread_id, "roll_back": roll_back})).all()
    if roll_back:
        await connection.execute(_ERASE_MESSAGES, {"run_ids": [row.id for row in rows]})
    return [_cancellation(row) for row in rows]


async def cancel(database: AsyncEngine, run_id: UUID) -> Cancellation | None:
    """Ask that the run end; asking again, or too late (None), changes nothing."""
    async with database.begin() as connection:
        row = (await connection.execute(_CANCEL, {"run_id": run_id})).one_or_none()
    return None if row is None else _cancellation(row)


def _cancellation(row: Any) -> Cancellation:
    return Cancellation(row.id, None if row.status == RunStatus.RUNNING else row)
