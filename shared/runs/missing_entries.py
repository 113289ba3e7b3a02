"""Queued runs whose queue entry may be missing in Redis: lists them, and gives each a new entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.database import transact
from agent_relay.shared.database.typed_rows import columns
from agent_relay.shared.queue import QueueEntry
from agent_relay.shared.runs.sql import first_in_thread

MOST = 1000
"""Runs that one statement lists."""


@dataclass(frozen=True, slots=True)
class DueRuns:
    """Runs of one pool and lane that wait for a worker, the oldest first."""

    members: list[str] | None
    """Their queue entries as `<run>:<ring>`; None if no run waits."""
    at: datetime | None
    id: UUID | None
    """The place of the last one: the next list begins after it."""


_DUE = text(f"""
    SELECT array_agg(id || ':' || ring) AS members, max(created_at) AS at, (array_agg(id))[count(*)] AS id FROM (
        SELECT id, ring, created_at FROM runs AS run
        WHERE pool = :pool AND lane = :lane AND status = 'queued' AND NOT starts_later
          AND due_at <= now() AND rung_at < now() - interval '1 second'
          AND (CAST(:at AS timestamptz) IS NULL OR (created_at, id) > (:at, :id))
          AND {first_in_thread("run")}
        ORDER BY created_at, id LIMIT {MOST}
    ) AS due
""")  # noqa: S608  (a constant)

_ENQUEUE_AGAIN = text(f"""
    UPDATE runs SET ring = runs.ring + 1, rung_at = now()
    FROM (SELECT unnest(CAST(:ids AS uuid[])) AS id, unnest(CAST(:rings AS int[])) AS ring) AS missing
    WHERE runs.id = missing.id AND runs.ring = missing.ring AND runs.status = 'queued'
    RETURNING {columns(QueueEntry, "runs", run_id="runs.id")}
""")  # noqa: S608  (constants)


async def due_runs(database: AsyncEngine, pool: str, lane: str, after: tuple[datetime | None, UUID | None]) -> DueRuns:
    """List the runs after this place that a worker could claim, enqueued a second ago or earlier; at most `MOST`."""
    at, run_id = after
    return (await transact(database, _DUE, {"pool": pool, "lane": lane, "at": at, "id": run_id}, DueRuns))[0]


async def enqueue_again(database: AsyncEngine, members: Sequence[str]) -> list[QueueEntry]:
    """Give runs a new queue entry in place of these, which are missing; of several sweepers that saw it, one does."""
    entries = [member.split(":") for member in members]
    values = {"ids": [run_id for run_id, _ in entries], "rings": [int(ring) for _, ring in entries]}
    return await transact(database, _ENQUEUE_AGAIN, values, QueueEntry)
