"""Reads of runs, always by their owner."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.identity import Owner
from api.pages import bounded
from shared.errors import NotFound
from shared.served import served
from shared.tables import RunStatus

_VISIBLE = f"""
    SELECT runs.*, CASE WHEN status = 'queued' THEN {served("runs.agent_type")} END AS served
    FROM runs LEFT JOIN threads ON threads.id = thread_id
    WHERE runs.tenant = :tenant AND runs.user_id = :user_id AND threads.deleted_at IS NULL
"""  # noqa: S608  (constants)

_ONE = text(f"{_VISIBLE} AND runs.id = :id")

_SIZE = """(octet_length(query) + coalesce(octet_length(output), 0) + coalesce(octet_length(partial_output), 0)
    + octet_length(CAST(metadata AS text)))"""


def _page(status: RunStatus | None) -> TextClause:
    """Write the query of a page; a status stands in it as it is, so that an index of runs in that status serves it."""
    only = "" if status is None else f"AND status = '{status.value}'"
    select = f"""
        {_VISIBLE} {only}
          AND (CAST(:thread_id AS uuid) IS NULL OR thread_id = :thread_id)
          AND (CAST(:batch_id AS uuid) IS NULL OR batch_id = :batch_id)
          AND (CAST(:at AS timestamptz) IS NULL OR (runs.created_at, runs.id) < (:at, :id))
        ORDER BY runs.created_at DESC, runs.id DESC LIMIT :limit
    """
    return text(bounded(select, _SIZE, "created_at DESC, id DESC"))


_PAGES = {status: _page(status) for status in (None, *RunStatus)}


async def owned_run(database: AsyncEngine, caller: Owner, run_id: UUID) -> Any:
    """Read the row of a run.

    Raises:
        NotFound: it is not there, or not this caller's.
    """
    async with database.connect() as connection:
        owner = {"id": run_id, "tenant": caller.tenant, "user_id": caller.user_id}
        row = (await connection.execute(_ONE, owner)).one_or_none()
    if row is None:
        raise NotFound("run")
    return row


async def owned_runs(
    database: AsyncEngine,
    caller: Owner,
    *,
    thread_id: UUID | None,
    batch_id: UUID | None,
    status: RunStatus | None,
    before: tuple[datetime | None, UUID | None],
    limit: int,
) -> Sequence[Any]:
    """Read the rows of the caller's runs, newest first, from a place on."""
    async with database.connect() as connection:
        rows = await connection.execute(
            _PAGES[status],
            {
                "tenant": caller.tenant,
                "user_id": caller.user_id,
                "thread_id": thread_id,
                "batch_id": batch_id,
                "at": before[0],
                "id": before[1],
                "limit": limit,
            },
        )
        return rows.all()
