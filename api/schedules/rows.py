"""Schedules in the database, always by their owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.api.queries import Place, read_owned, read_page
from agent_relay.api.requests.identity import Owner
from agent_relay.api.requests.pagination import Rows, bounded
from agent_relay.api.schedules.schemas import Schedule, TickError
from agent_relay.shared.database import PLACE
from agent_relay.shared.database.typed_rows import columns, read_one
from agent_relay.shared.errors import Limit, NotFound, QueueFull, UnknownAgent
from agent_relay.shared.schemas import metadata_of

FAILURES = 50
"""So many of the newest runs of a schedule are looked at for failures."""


@dataclass(frozen=True, slots=True)
class ScheduleRow:
    """A schedule as it makes runs."""

    id: UUID
    tenant: str
    user_id: UUID
    key_reference: bytes | None
    cron: str
    timezone: str
    thread_id: UUID | None
    agent_type: str
    query: str
    multitask_strategy: str | None
    metadata: JsonValue
    options: dict[str, Any] | None
    deadline_seconds: float | None
    wait_seconds: float | None
    webhook_url: str | None
    paused: bool
    next_times: list[datetime]
    last_run_id: UUID | None
    failed_ticks: int
    error: JsonValue
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ShownSchedule(ScheduleRow):
    """A schedule as it is shown."""

    last_status: str | None
    failed_runs: int


SCHEDULE = columns(ScheduleRow)

_LAST_STATUS = "(SELECT status FROM runs WHERE runs.id = last_run_id)"

_FAILED_RUNS = f"""(
    SELECT count(*) FROM (
        SELECT status, bool_or(status = 'succeeded') OVER (ORDER BY start_at DESC) AS has_succeeded FROM (
            SELECT status, start_at FROM runs WHERE schedule_id = schedules.id AND finished_at IS NOT NULL
            ORDER BY start_at DESC LIMIT {FAILURES}
        ) AS newest
    ) AS newest WHERE status = 'failed' AND NOT has_succeeded
)"""  # noqa: S608  (a constant)

_SHOWN = f"""
    SELECT {columns(ShownSchedule, "schedules", last_status=_LAST_STATUS, failed_runs=_FAILED_RUNS)} FROM schedules
    LEFT JOIN threads ON threads.id = thread_id
    WHERE schedules.tenant = :tenant AND schedules.user_id = :user_id AND threads.deleted_at IS NULL
"""  # noqa: S608  (constants)

_ONE = text(f"{_SHOWN} AND schedules.id = :id")

_SELECT_PAGE = f"""
    {_SHOWN} AND (schedules.created_at, schedules.id) < {PLACE}
    ORDER BY schedules.created_at DESC, schedules.id DESC LIMIT :limit
"""

_SIZE = """octet_length(query) + octet_length(CAST(metadata AS text))
    + coalesce(octet_length(CAST(options AS text)), 0)"""

_PAGE = text(bounded(_SELECT_PAGE, _SIZE, "created_at DESC, id DESC"))

_TAKE_TURNS = text("SELECT pg_advisory_xact_lock(hashtextextended('schedules:' || :tenant || ':' || :user_id, 0))")

_COUNT = text("SELECT count(*) FROM schedules WHERE tenant = :tenant AND user_id = :user_id")

_THREAD = text("""
    SELECT agent_type FROM threads
    WHERE id = :thread_id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL FOR SHARE
""")

_AGENT = text("SELECT agent_type FROM agents WHERE agent_type = :agent_type")

_INSERT = text("""
    INSERT INTO schedules (id, tenant, user_id, key_reference, cron, timezone, thread_id, agent_type, query,
                           multitask_strategy, metadata, options, deadline_seconds, wait_seconds, webhook_url,
                           paused, next_times, due_at)
    VALUES (:id, :tenant, :user_id, :key_reference, :cron, :timezone, CAST(:thread_id AS uuid), :agent_type, :query,
            CAST(:multitask_strategy AS text), CAST(:metadata AS json), CAST(:options AS jsonb),
            CAST(:deadline_seconds AS float), CAST(:wait_seconds AS float), CAST(:webhook_url AS text), :paused,
            CAST(:next_times AS timestamptz[]), CAST(:due_at AS timestamptz))
""")

_LOCK = text(f"SELECT {SCHEDULE} FROM schedules WHERE id = :id FOR UPDATE")  # noqa: S608  (a constant)

_CHANGE = text("""
    UPDATE schedules
    SET cron = :cron, timezone = :timezone, query = :query, metadata = CAST(:metadata AS json),
        options = CAST(:options AS jsonb), deadline_seconds = CAST(:deadline_seconds AS float),
        wait_seconds = CAST(:wait_seconds AS float),
        webhook_url = CAST(:webhook_url AS text), paused = :paused, key_reference = :key_reference,
        next_times = CASE WHEN :retimed THEN CAST(:next_times AS timestamptz[]) ELSE next_times END,
        due_at = CASE WHEN :retimed THEN CAST(:due_at AS timestamptz) ELSE due_at END,
        failed_ticks = CASE WHEN :resumes THEN 0 ELSE failed_ticks END,
        error = CASE WHEN :resumes THEN NULL ELSE error END, updated_at = now()
    WHERE id = :id
""")

_DELETE = text("DELETE FROM schedules WHERE id = :id AND tenant = :tenant AND user_id = :user_id RETURNING id")


async def insert(connection: AsyncConnection, values: Mapping[str, Any], most: int) -> None:
    """Store a schedule of a user, who may have at most `most`; 0 is no limit.

    Raises:
        NotFound: the thread is not there, or not this user's.
        UnknownAgent: no worker has registered the agent.
        QueueFull: the limit of schedules of the user is reached.
    """
    if most:
        owner = {"tenant": values["tenant"], "user_id": str(values["user_id"])}
        await connection.execute(_TAKE_TURNS, owner)
        if (await connection.scalar(_COUNT, values) or 0) >= most:
            raise QueueFull(Limit.SCHEDULES, most)
    await connection.execute(_INSERT, values)


async def agent_of(connection: AsyncConnection, caller: Owner, thread_id: UUID | None, agent_type: str | None) -> str:
    """Say which agent a schedule asks: that of its thread, or the one that is named.

    Raises:
        NotFound: the thread is not there, or not this caller's.
        UnknownAgent: no worker has registered the agent, or the caller's key may not ask it.
    """
    if thread_id is not None:
        owner = {"thread_id": thread_id, "tenant": caller.tenant, "user_id": caller.user_id}
        agent_type = await connection.scalar(_THREAD, owner)
        if agent_type is None:
            raise NotFound("thread")
    known = await connection.scalar(_AGENT, {"agent_type": agent_type})
    if known is None or not caller.may_ask(known):
        raise UnknownAgent(str(agent_type), caller.allowed_agents)
    return known


async def locked(connection: AsyncConnection, schedule_id: UUID) -> ScheduleRow:
    """Read a schedule that is to be changed; no tick comes between.

    Raises:
        NotFound: it was deleted.
    """
    row = read_one(await connection.execute(_LOCK, {"id": schedule_id}), ScheduleRow)
    if row is None:
        raise NotFound("schedule")
    return row


async def change(connection: AsyncConnection, values: Mapping[str, Any]) -> None:
    """Write all that can be changed."""
    await connection.execute(_CHANGE, values)


async def delete(connection: AsyncConnection, caller: Owner, schedule_id: UUID) -> None:
    """Delete a schedule; the runs that it has made stay.

    Raises:
        NotFound: it is not there, or not this caller's.
    """
    values = {"id": schedule_id, "tenant": caller.tenant, "user_id": caller.user_id}
    if await connection.scalar(_DELETE, values) is None:
        raise NotFound("schedule")


async def owned_schedule(database: AsyncEngine, caller: Owner, schedule_id: UUID) -> ShownSchedule:
    """Read a schedule.

    Raises:
        NotFound: it is not there, or not this caller's.
    """
    row = await read_owned(database, caller, _ONE, ShownSchedule, schedule_id)
    if row is None:
        raise NotFound("schedule")
    return row


async def owned_schedules(database: AsyncEngine, caller: Owner, *, before: Place, limit: int) -> Rows[ShownSchedule]:
    """Read the caller's schedules, newest first, from a place on."""
    return await read_page(database, caller, _PAGE, ShownSchedule, before=before, limit=limit)


def schedule_of(row: ShownSchedule) -> Schedule:
    """Show a schedule's row."""
    return Schedule(
        id=row.id,
        cron=row.cron,
        timezone=row.timezone,
        thread_id=row.thread_id,
        agent_type=row.agent_type,
        query=row.query,
        multitask_strategy=row.multitask_strategy,
        metadata=metadata_of(row.metadata),
        options=row.options,
        deadline_s=row.deadline_seconds,
        wait_deadline_s=row.wait_seconds,
        webhook_url=row.webhook_url,
        paused=row.paused,
        next_at=row.next_times[0] if row.next_times else None,
        next_times=row.next_times,
        last_run_id=row.last_run_id,
        last_status=row.last_status,
        consecutive_failures=row.failed_runs + row.failed_ticks,
        last_error=None if row.error is None else TickError.model_validate(row.error),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
