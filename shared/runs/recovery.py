"""Recovery of runs without a living worker: their worker died, or their deadline has passed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.database import transact
from agent_relay.shared.database.set_aside import Aside, among
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.database.typed_rows import columns
from agent_relay.shared.failure_codes import FailureCode, failure
from agent_relay.shared.queue import QueueEntry
from agent_relay.shared.rows import RunEnd
from agent_relay.shared.runs.finish import INTERRUPTED, LOCKED_BATCHES
from agent_relay.shared.runs.sql import NEW_ENTRY

log = logging.getLogger(__name__)

BATCH = 1000
"""Runs that one statement takes, so that no transaction grows long."""

OVERDUE_SECONDS = 30
"""A worker ends its runs at their deadline; after this delay it does not count as alive any more."""


@dataclass(frozen=True, slots=True)
class _Touched(RunEnd):
    """A run that was taken from a dead worker, or whose deadline has passed; it waits again or has ended."""

    ring: int
    pool: str
    lane: str
    tenant: str
    crashes: int


_JUDGE = text("UPDATE workers SET ended_at = now() WHERE ended_at IS NULL AND lease_until < now() RETURNING id")

_DECLARE_DEAD = text("""
    UPDATE workers SET ended_at = now() WHERE (id = :worker_id OR first_id = :worker_id) AND ended_at IS NULL
""")

_LOCKED = LOCKED_BATCHES.format(touched="touched")

_ENDED = f"SELECT {columns(_Touched)} FROM touched WHERE (SELECT count(*) FROM locked) IS NOT NULL"  # noqa: S608  (constants)

_OF_THE_DEAD = f"""
    SELECT runs.id FROM runs JOIN workers ON workers.id = worker_id
    WHERE status = 'running' AND workers.ended_at IS NOT NULL AND {among("runs.id")}
    ORDER BY runs.id LIMIT {BATCH} FOR UPDATE OF runs SKIP LOCKED
"""  # noqa: S608  (constants)

_OVERDUE = f"""
    SELECT id FROM runs
    WHERE status IN ('queued', 'running')
      AND deadline_at <= now()
          - CASE status WHEN 'running' THEN {OVERDUE_SECONDS} ELSE 0 END * interval '1 second'
      AND {among("id")}
    ORDER BY deadline_at LIMIT {BATCH} FOR UPDATE SKIP LOCKED
"""  # noqa: S608  (constants)

_WAITED_TOO_LONG = f"""
    SELECT id FROM runs WHERE status = 'waiting' AND wait_until <= now() AND {among("id")}
    ORDER BY wait_until LIMIT {BATCH} FOR UPDATE SKIP LOCKED
"""  # noqa: S608  (constants)

_TAKE_BACK = text(f"""
    WITH touched AS (
        UPDATE runs
        SET status = CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
                          WHEN deadline_at <= now() OR crashes + 1 >= :max_crashes THEN 'failed'
                          ELSE 'queued' END,
            error = CASE WHEN cancel_requested_at IS NOT NULL THEN NULL
                         WHEN deadline_at <= now() THEN CAST(:deadline_exceeded AS jsonb)
                         WHEN crashes + 1 >= :max_crashes THEN CAST(:worker_crashed AS jsonb) END,
            finished_at = CASE WHEN cancel_requested_at IS NOT NULL OR deadline_at <= now()
                                    OR crashes + 1 >= :max_crashes THEN now() END,
            crashes = crashes + 1, begun = 'worker_lost', worker_id = NULL, {NEW_ENTRY}
        WHERE id IN ({_OF_THE_DEAD})
        RETURNING *
    ), interrupted AS ({INTERRUPTED}), locked AS MATERIALIZED ({_LOCKED})
    {_ENDED}
""")  # noqa: S608  (constants of this file)

_OVER = """
    SET status = CASE WHEN cancel_requested_at IS NULL THEN 'failed' ELSE 'cancelled' END,
        error = CASE WHEN cancel_requested_at IS NULL THEN CAST(:error AS jsonb) END,
        finished_at = now()
"""

_EXPIRE = text(f"""
    WITH touched AS (UPDATE runs {_OVER} WHERE id IN ({_OVERDUE}) RETURNING *),
    interrupted AS ({INTERRUPTED}), locked AS MATERIALIZED ({_LOCKED})
    {_ENDED}
""")

_EXPIRE_WAITING = text(f"""
    WITH touched AS (UPDATE runs {_OVER} WHERE id IN ({_WAITED_TOO_LONG}) RETURNING *),
    interrupted AS ({INTERRUPTED}), locked AS MATERIALIZED ({_LOCKED})
    {_ENDED}
""")


async def judge_workers(database: AsyncEngine) -> Sequence[UUID]:
    """Declare dead all workers whose lease has run out; see `liveness.py` for when this may be called."""
    return [row.id for row in await transact(database, _JUDGE)]


async def declare_dead(database: AsyncEngine, worker_id: UUID) -> None:
    """End the registration of a process that was seen to die, under its latest id, without waiting for its lease."""
    await transact(database, _DECLARE_DEAD, {"worker_id": worker_id})


async def take_back(
    database: AsyncEngine, max_crashes: int, aside: Aside | None = None
) -> tuple[list[RunEnd], list[QueueEntry]]:
    """Recover the runs of dead workers: to the queue, or to their end by crashes, deadline or a requested cancel.

    Returns the ends of those that ended, and the queue entries of those that wait again.
    """
    values = {
        "max_crashes": max_crashes,
        "worker_crashed": _json(FailureCode.WORKER_CRASHED),
        "deadline_exceeded": _json(FailureCode.DEADLINE_EXCEEDED),
    }
    touched = await (aside or Aside()).run(database, _TAKE_BACK, text(_OF_THE_DEAD), values, _Touched)
    for row in touched:
        log.warning("take_back.worker_died run_id=%s agent=%s crashes=%d", row.id, row.agent_type, row.crashes)
    waiting = [
        QueueEntry(row.id, row.ring, row.pool, row.lane, row.tenant, first=True)
        for row in touched
        if row.status == RunStatus.QUEUED
    ]
    return [row for row in touched if row.status != RunStatus.QUEUED], waiting


async def expire(database: AsyncEngine, aside: Aside | None = None) -> Sequence[RunEnd]:
    """End the runs whose deadline has passed while no living worker held them; returns their ends."""
    values = {"error": _json(FailureCode.DEADLINE_EXCEEDED)}
    return await (aside or Aside()).run(database, _EXPIRE, text(_OVERDUE), values, _Touched)


async def expire_waiting(database: AsyncEngine, aside: Aside | None = None) -> Sequence[RunEnd]:
    """End the runs whose time to wait for answers is over; returns their ends."""
    values = {"error": _json(FailureCode.ANSWER_OVERDUE)}
    return await (aside or Aside()).run(database, _EXPIRE_WAITING, text(_WAITED_TOO_LONG), values, _Touched)


def _json(code: FailureCode) -> str:
    return to_json(failure(code)).decode()
