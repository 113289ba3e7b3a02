"""Reads of batches, always by their owner. A batch and its counts are one statement, so they are of one moment."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.queries import Place, read_owned, read_page
from agent_relay.api.requests.identity import Owner
from agent_relay.api.requests.pagination import Rows, bounded
from agent_relay.shared.database import PLACE
from agent_relay.shared.database.typed_rows import columns, read, read_one
from agent_relay.shared.errors import NotFound
from agent_relay.shared.rows import BatchRow
from agent_relay.shared.served_agents import served


@dataclass(frozen=True, slots=True)
class ResultRow:
    """The end of one run of a batch, in the order in which they ended."""

    place: int
    custom_id: str | None
    run_id: UUID
    status: str
    output: str | None
    text_output: bool
    error: JsonValue
    usage: JsonValue


_RUNNING = """CASE WHEN finished_at IS NULL THEN (
    SELECT count(*) FROM runs WHERE batch_id = batches.id AND runs.status = 'running'
) ELSE 0 END"""
"""Ends are counted in the row; the runs that run are counted here, and they are never more than workers have slots."""

_SERVED = f"CASE WHEN finished_at IS NULL THEN {served('batches.agent_type')} END"

_COUNTED = f"""
    SELECT {columns(BatchRow, "batches", running=_RUNNING, served=_SERVED)} FROM batches
"""  # noqa: S608  (constants)

_ONE = text(f"{_COUNTED} WHERE id = :id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL")

_ANYBODYS = text(f"{_COUNTED} WHERE id = :id AND deleted_at IS NULL")

_SELECT_PAGE = f"""
    {_COUNTED}
    WHERE tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
      AND (created_at, id) < {PLACE}
    ORDER BY created_at DESC, id DESC LIMIT :limit
"""

_PAGE = text(bounded(_SELECT_PAGE, "octet_length(CAST(metadata AS text))", "created_at DESC, id DESC"))

_RESULTS = text(f"""
    SELECT {columns(ResultRow)} FROM (
        SELECT place, custom_id, run_id, status, output, text_output, error, usage,
            sum(coalesce(octet_length(output), 0)) OVER (ORDER BY place) - coalesce(octet_length(output), 0) AS before
        FROM (
            SELECT place, run_id FROM batch_results
            WHERE batch_id = :batch_id AND place > :after ORDER BY place LIMIT :limit
        ) AS next JOIN runs ON runs.id = run_id
    ) AS page
    WHERE before < :most_bytes ORDER BY place
""")  # noqa: S608  (constants)


async def owned_batch(database: AsyncEngine, caller: Owner, batch_id: UUID) -> BatchRow:
    """Read a batch, with the number of its runs that are `running`.

    Raises:
        NotFound: it is not there, or not this caller's.
    """
    row = await read_owned(database, caller, _ONE, BatchRow, batch_id)
    if row is None:
        raise NotFound("batch")
    return row


async def owned_batches(database: AsyncEngine, caller: Owner, *, before: Place, limit: int) -> Rows[BatchRow]:
    """Read the caller's batches, newest first, from a place on."""
    return await read_page(database, caller, _PAGE, BatchRow, before=before, limit=limit)


async def batch_with_results(
    database: AsyncEngine, batch_id: UUID, *, after: int, limit: int, most_bytes: int
) -> tuple[BatchRow | None, list[ResultRow]]:
    """Read a batch, None if it has been erased, and some of its results from a place on, none fewer than it counts.

    Whose it is was looked at before.
    """
    values = {"batch_id": batch_id, "after": after, "limit": limit, "most_bytes": most_bytes}
    async with database.connect() as connection:
        batch = read_one(await connection.execute(_ANYBODYS, {"id": batch_id}), BatchRow)
        return batch, read(await connection.execute(_RESULTS, values), ResultRow)
