"""Dead letters: failed runs that could succeed if the same were asked again, until an operator has that done.

It is done by a new run, with `retry_of`; the failed one stays as it ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.errors import NotFound
from shared.failures import DEAD, FailureCode
from shared.lanes import Lane, Ring
from shared.runs.accept import Query, accept_in

_DEAD = """
    FROM runs LEFT JOIN threads ON threads.id = thread_id
    WHERE status = 'failed' AND error->>'code' = ANY(CAST(:codes AS text[]))
      AND cancel_requested_at IS NULL AND threads.deleted_at IS NULL
"""
"""What nobody wants any more, because it was to be cancelled or its thread was deleted, is not among them."""

_ONE = text(f"""
    SELECT runs.tenant, runs.user_id, thread_id, runs.agent_type, lane, query, runs.metadata, webhook_url, crashes,
        requeued_as, extract(epoch FROM deadline_at - runs.created_at) AS deadline_seconds
    {_DEAD} AND runs.id = :id
""")  # noqa: S608  (a constant)

_PAGE = text(f"""
    SELECT runs.id, runs.tenant, runs.user_id, thread_id, runs.agent_type, error, attempt, crashes, runs.created_at,
        finished_at
    {_DEAD} AND requeued_as IS NULL
      AND (CAST(:at AS timestamptz) IS NULL OR (finished_at, runs.id) < (:at, :id))
    ORDER BY finished_at DESC, runs.id DESC LIMIT :limit
""")

_REQUEUE = text("UPDATE runs SET requeued_as = :new_id WHERE id = :id AND requeued_as IS NULL RETURNING id")


@dataclass(frozen=True, slots=True)
class Requeued:
    """What has become of a dead letter."""

    run_id: UUID
    """The new run."""
    ring: Ring | None
    """Calls a worker for it; None where somebody had requeued the dead letter before."""


class _TooLate(Exception):
    """Somebody else has requeued it meanwhile."""


async def dead_letters(
    database: AsyncEngine,
    *,
    code: FailureCode | None,
    before: tuple[datetime | None, UUID | None] = (None, None),
    limit: int,
) -> Sequence[Any]:
    """Read the rows of dead letters that wait for a decision, those that died last first, from a place on."""
    at, run_id = before
    values = {"codes": _codes(code), "at": at, "id": run_id, "limit": limit}
    async with database.connect() as connection:
        return (await connection.execute(_PAGE, values)).all()


async def requeue(database: AsyncEngine, run_id: UUID, deadline_seconds: float | None = None) -> Requeued:
    """Have the same asked again, once however often this is called: as a new run, in its thread behind all others.

    Without a deadline of its own, it has as much time as the one before had. If that one killed workers, it is a
    suspect from the beginning. Ring after this returns.

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
            metadata=dead.metadata,
            webhook_url=dead.webhook_url,
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
    return Requeued(dead.requeued_as, None)


async def _dead(database: AsyncEngine, run_id: UUID) -> Any:
    async with database.connect() as connection:
        row = (await connection.execute(_ONE, {"id": run_id, "codes": _codes(None)})).one_or_none()
    if row is None:
        raise NotFound("dead letter")
    return row


def _codes(code: FailureCode | None) -> list[str]:
    return sorted(DEAD if code is None else DEAD & {code})
