"""Reads of batches, always by their owner. A batch and its counts are one statement, so they are of one moment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.identity import Owner
from api.pages import bounded
from shared.errors import NotFound
from shared.served import served

# Ends are counted in the row; what runs is counted here, and that is never more than workers have slots.
_COUNTED = f"""
    SELECT batches.*, CASE WHEN finished_at IS NULL THEN (
        SELECT count(*) FROM runs WHERE batch_id = batches.id AND runs.status = 'running'
    ) ELSE 0 END AS running,
    CASE WHEN finished_at IS NULL THEN {served("batches.agent_type")} END AS served
    FROM batches
"""  # noqa: S608  (constants)

_ONE = text(f"{_COUNTED} WHERE id = :id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL")

_ANYBODYS = text(f"{_COUNTED} WHERE id = :id AND deleted_at IS NULL")

_SELECT_PAGE = f"""
    {_COUNTED}
    WHERE tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
      AND (CAST(:at AS timestamptz) IS NULL OR (created_at, id) < (:at, :id))
    ORDER BY created_at DESC, id DESC LIMIT :limit
"""

_PAGE = text(bounded(_SELECT_PAGE, "octet_length(CAST(metadata AS text))", "created_at DESC, id DESC"))

_RESULTS = text("""
    SELECT * FROM (
        SELECT place, custom_id, run_id, status, output, text_output, error, usage,
            sum(coalesce(octet_length(output), 0)) OVER (ORDER BY place) - coalesce(octet_length(output), 0) AS before
        FROM (
            SELECT place, run_id FROM batch_results
            WHERE batch_id = :batch_id AND place > :after ORDER BY place LIMIT :limit
        ) AS next JOIN runs ON runs.id = run_id
    ) AS page
    WHERE before < :most_bytes ORDER BY place
""")


async def owned_batch(database: AsyncEngine, caller: Owner, batch_id: UUID) -> Any:
    """Read the row of a batch, with how many of its runs are `running`.

    Raises:
        NotFound: it is not there, or not this caller's.
    """
    async with database.connect() as connection:
        owner = {"id": batch_id, "tenant": caller.tenant, "user_id": caller.user_id}
        row = (await connection.execute(_ONE, owner)).one_or_none()
    if row is None:
        raise NotFound("batch")
    return row


async def owned_batches(
    database: AsyncEngine, caller: Owner, *, before: tuple[datetime | None, UUID | None], limit: int
) -> Sequence[Any]:
    """Read the rows of the caller's batches, newest first, from a place on."""
    async with database.connect() as connection:
        rows = await connection.execute(
            _PAGE,
            {
                "tenant": caller.tenant,
                "user_id": caller.user_id,
                "at": before[0],
                "id": before[1],
                "limit": limit,
            },
        )
        return rows.all()


async def batch_with_results(
    database: AsyncEngine, batch_id: UUID, *, after: int, limit: int, most_bytes: int
) -> tuple[Any | None, Sequence[Any]]:
    """Read a batch, None if it has been erased, and some of its results from a place on, none fewer than it counts.

    Whose it is was looked at before.
    """
    async with database.connect() as connection:
        batch = (await connection.execute(_ANYBODYS, {"id": batch_id})).one_or_none()
        rows = await connection.execute(
            _RESULTS, {"batch_id": batch_id, "after": after, "limit": limit, "most_bytes": most_bytes}
        )
        return batch, rows.all()
