"""Dead letters: failed runs that could succeed if asked again, until an operator requeues them.

A requeued query is a new run, with `retry_of`; the failed one stays as it ended.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.attachments import attached_of
from agent_relay.shared.database import PLACE
from agent_relay.shared.database.typed_rows import columns, read, read_one
from agent_relay.shared.errors import NotFound
from agent_relay.shared.failure_codes import DEAD, FailureCode
from agent_relay.shared.queue import Lane, QueueEntry
from agent_relay.shared.runs.accept import Query, accept_in
from agent_relay.shared.runs.said import said_of
from agent_relay.shared.schemas import metadata_of


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """A dead letter as it is listed."""

    id: UUID
    tenant: str
    user_id: UUID
    thread_id: UUID | None
    agent_type: str
    error: JsonValue
    attempt: int
    crashes: int
    created_at: datetime
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class _Asked:
    """The query of a dead letter, and the run that it was requeued as."""

    tenant: str
    user_id: UUID
    thread_id: UUID | None
    agent_type: str
    lane: str
    query: str
    metadata: JsonValue
    options: JsonValue
    history: JsonValue
    attachments: JsonValue
    webhook_url: str | None
    wait_seconds: float | None
    crashes: int
    requeued_as: UUID | None
    deadline_seconds: float


_DEAD = """
    FROM runs LEFT JOIN threads ON threads.id = thread_id
    WHERE status = 'failed' AND error->>'code' = {code}
      AND cancel_requested_at IS NULL AND NOT rolled_back AND threads.deleted_at IS NULL
"""
"""Left out: runs with a requested cancel, replaced runs, and runs of deleted threads."""

_GIVEN_SECONDS = "extract(epoch FROM deadline_at - coalesce(start_at, runs.created_at)) - waited_seconds"

_OPTIONS = """coalesce((SELECT batches.options FROM batches WHERE batches.id = runs.batch_id), '{}')
    || coalesce(runs.options, '{}')"""

_ONE = text(f"""
    SELECT {columns(_Asked, "runs", deadline_seconds=_GIVEN_SECONDS, options=_OPTIONS)}
    {_DEAD.format(code="ANY(CAST(:codes AS text[]))")} AND runs.id = :id
""")

_PAGE = text(f"""
    SELECT letter.* FROM unnest(CAST(:codes AS text[])) AS dead (code) CROSS JOIN LATERAL (
        SELECT {columns(DeadLetterRow, "runs")}
        {_DEAD.format(code="dead.code")} AND requeued_as IS NULL AND (finished_at, runs.id) < {PLACE}
        ORDER BY finished_at DESC, runs.id DESC LIMIT :limit
    ) AS letter
    ORDER BY finished_at DESC, id DESC LIMIT :limit
""")  # noqa: S608  (constants)
"""Of each code a page is read along its index, and of these pages the first rows."""

_REQUEUE = text("UPDATE runs SET requeued_as = :new_id WHERE id = :id AND requeued_as IS NULL RETURNING id")


@dataclass(frozen=True, slots=True)
class Requeued:
    """The result of requeueing a dead letter."""

    run_id: UUID
    """The new run."""
    ring: QueueEntry | None
    """The queue entry to push; None if the dead letter had been requeued before."""


class _TooLate(Exception):
    """Somebody else has requeued it meanwhile."""


async def dead_letters(
    database: AsyncEngine,
    *,
    code: FailureCode | None,
    before: tuple[datetime | None, UUID | None] = (None, None),
    limit: int,
) -> list[DeadLetterRow]:
    """Read the rows of dead letters that wait for a decision, those that died last first, from a place on."""
    at, run_id = before
    values = {"codes": _codes(code), "at": at, "id": run_id, "limit": limit}
    async with database.connect() as connection:
        return read(await connection.execute(_PAGE, values), DeadLetterRow)


async def requeue(database: AsyncEngine, run_id: UUID, deadline_seconds: float | None = None) -> Requeued:
    """Requeue a dead letter as a new run, behind all others of its thread; another call makes no second run.

    Without a deadline of its own, it has as much time as the one before had. If workers died under that one, it is a
    suspect from the beginning. Enqueue it after this returns.

    Raises:
        NotFound: there is no such dead letter.
        UnknownAgent: no worker has registered its agent.
    """
    dead = await _dead(database, run_id)
    if dead.requeued_as is None:
        query = Query(
            tenant=dead.tenant,
            user_id=dead.user_id,
            thread_id=dead.thread_id,
            agent_type=dead.agent_type,
            query=dead.query,
            deadline_seconds=deadline_seconds or float(dead.deadline_seconds),
            metadata=metadata_of(dead.metadata),
            options=metadata_of(dead.options) or None,
            attached=attached_of(dead.attachments) or None,
            webhook_url=dead.webhook_url,
            history=said_of(dead.history),
            wait_seconds=dead.wait_seconds,
            lane=Lane(dead.lane),
            retry_of=run_id,
            suspect=dead.crashes > 0,
        )
        with suppress(_TooLate):
            async with database.begin() as connection:
                accepted = await accept_in(connection, query)  # Before the guard, because it locks the thread.
                values = {"id": run_id, "new_id": accepted.run.id}
                if (await connection.execute(_REQUEUE, values)).one_or_none() is None:
                    raise _TooLate
            return Requeued(accepted.run.id, accepted.ring)
        dead = await _dead(database, run_id)
    assert dead.requeued_as is not None, "somebody else has requeued it"  # noqa: S101
    return Requeued(dead.requeued_as, None)


async def _dead(database: AsyncEngine, run_id: UUID) -> _Asked:
    async with database.connect() as connection:
        row = read_one(await connection.execute(_ONE, {"id": run_id, "codes": _codes(None)}), _Asked)
    if row is None:
        raise NotFound("dead letter")
    return row


def _codes(code: FailureCode | None) -> list[str]:
    return sorted(DEAD if code is None else DEAD & {code})
