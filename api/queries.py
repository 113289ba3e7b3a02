"""Reads of runs and of deliveries of webhooks, always by their owner, and the two reads that all others are made of."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from uuid import UUID

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.requests.identity import Owner
from agent_relay.api.requests.pagination import Rows, bounded, read_bounded
from agent_relay.shared.database import PLACE
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.database.typed_rows import Kind, columns, read_one
from agent_relay.shared.errors import NotFound
from agent_relay.shared.rows import RunRow
from agent_relay.shared.schemas import requests_in
from agent_relay.shared.served_agents import served
from agent_relay.shared.webhooks import DeliveryRow, DeliveryStatus

Place = tuple[datetime | None, UUID | None]
"""Where a page begins: after the row of this time and id; at the first row where both are None."""

_SERVED = f"CASE WHEN status = 'queued' THEN {served('runs.agent_type')} END"

_VISIBLE = f"""
    SELECT {columns(RunRow, "runs", served=_SERVED, requests=requests_in("runs"))}
    FROM runs LEFT JOIN threads ON threads.id = thread_id
    WHERE runs.tenant = :tenant AND runs.user_id = :user_id AND threads.deleted_at IS NULL
"""  # noqa: S608  (constants)

_ONE = text(f"{_VISIBLE} AND runs.id = :id")

_SIZE = """(octet_length(query) + coalesce(octet_length(output), 0) + coalesce(octet_length(partial_output), 0)
    + octet_length(CAST(metadata AS text)) + coalesce(octet_length(CAST(requests AS text)), 0))"""


@cache
def _page(*, of_status: bool, of_thread: bool, of_threads: bool, of_batch: bool, of_schedule: bool) -> TextClause:
    """Write the query of a page. It has only the given conditions, so that each plan of it reads along an index."""
    select = f"""
        {_VISIBLE}
          {"AND status = :status" if of_status else ""}
          {"AND thread_id = :thread_id" if of_thread else ""}
          {"AND thread_id = ANY(CAST(:threads AS uuid[]))" if of_threads else ""}
          {"AND batch_id = :batch_id" if of_batch else ""}
          {"AND schedule_id = :schedule_id" if of_schedule else ""}
          AND (runs.created_at, runs.id) < {PLACE}
        ORDER BY runs.created_at DESC, runs.id DESC LIMIT :limit
    """
    return text(bounded(select, _SIZE, "created_at DESC, id DESC"))


@cache
def _page_of_deliveries(*, of_status: bool) -> TextClause:
    """Write the query of a page, as for runs."""
    select = f"""
        SELECT {columns(DeliveryRow)} FROM webhook_deliveries
        WHERE tenant = :tenant AND user_id = :user_id
          {"AND status = :status" if of_status else ""}
          AND (created_at, id) < {PLACE}
        ORDER BY created_at DESC, id DESC LIMIT :limit
    """  # noqa: S608  (constants)
    return text(bounded(select, "octet_length(url)", "created_at DESC, id DESC"))


async def read_owned(
    database: AsyncEngine, caller: Owner, statement: TextClause, kind: type[Kind], row_id: UUID
) -> Kind | None:
    """Read the one row of the caller's that has this id; None where it is not there, or not this caller's."""
    values = {"id": row_id, "tenant": caller.tenant, "user_id": caller.user_id}
    async with database.connect() as connection:
        return read_one(await connection.execute(statement, values), kind)


async def read_page(
    database: AsyncEngine,
    caller: Owner,
    statement: TextClause,
    kind: type[Kind],
    *,
    before: Place,
    limit: int,
    **asked: object,
) -> Rows[Kind]:
    """Read the caller's rows from a place on by a `bounded` query, for a page of at most `limit`."""
    values = {**asked, "tenant": caller.tenant, "user_id": caller.user_id}
    values |= {"at": before[0], "id": before[1], "limit": limit + 1}
    async with database.connect() as connection:
        return read_bounded(await connection.execute(statement, values), kind)


async def owned_run(database: AsyncEngine, caller: Owner, run_id: UUID) -> RunRow:
    """Read a run.

    Raises:
        NotFound: it is not there, or not this caller's.
    """
    row = await read_owned(database, caller, _ONE, RunRow, run_id)
    if row is None:
        raise NotFound("run")
    return row


async def owned_runs(
    database: AsyncEngine,
    caller: Owner,
    *,
    thread_id: UUID | None,
    batch_id: UUID | None,
    schedule_id: UUID | None,
    status: RunStatus | None,
    before: Place,
    limit: int,
) -> Rows[RunRow]:
    """Read the caller's runs, newest first, from a place on."""
    statement = _page(
        of_status=status is not None,
        of_thread=thread_id is not None,
        of_threads=caller.threads is not None,
        of_batch=batch_id is not None,
        of_schedule=schedule_id is not None,
    )
    asked: dict[str, object] = {
        "status": status,
        "thread_id": thread_id,
        "threads": caller.threads,
        "batch_id": batch_id,
        "schedule_id": schedule_id,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    return await read_page(database, caller, statement, RunRow, before=before, limit=limit, **given)


async def owned_deliveries(
    database: AsyncEngine, caller: Owner, *, status: DeliveryStatus | None, before: Place, limit: int
) -> Rows[DeliveryRow]:
    """Read the deliveries of the caller's webhooks, newest first, from a place on."""
    statement = _page_of_deliveries(of_status=status is not None)
    given = {} if status is None else {"status": status}
    return await read_page(database, caller, statement, DeliveryRow, before=before, limit=limit, **given)
