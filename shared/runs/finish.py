"""End a run that an attempt holds, or give it back; the attempt is the fence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.database import transact
from shared.failures import FailureCode, failure
from shared.lanes import Ring
from shared.runs.claim import Claim
from shared.tables import Begun, RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended its run, and what is kept of it."""

    status: RunStatus
    text: str | None
    """The validated output, or the last valid partial; what the event log ends with."""
    last_entry: int
    """The `n` of the last entry of this attempt in the event log."""
    usage: dict[str, int]
    """Requests and tokens, those of earlier attempts included."""
    error: dict[str, Any] | None = None
    transcript: str | None = None
    model: str | None = None


RING_COLUMNS = "id, ring, pool, lane, tenant"
"""What a ring is made from; see `ring_of`."""

END_COLUMNS = "id, thread_id, agent_type, status, attempt, output, partial_output, last_entry, usage, error"
"""What the end of an event log is written from, see `end_entry`, and what it is counted by."""

INTERRUPTED = """
    INSERT INTO messages (id, thread_id, run_id, position, role, content, metadata)
    SELECT message_id, thread_id, id, 2 * seq + 1, 'assistant', partial_output,
        jsonb_build_object('run_id', id, 'usage', usage, 'status', 'interrupted')
    FROM touched
    WHERE thread_id IS NOT NULL AND NOT rolled_back AND status = 'cancelled' AND partial_output IS NOT NULL
"""
"""Keeps what was produced of runs that were cancelled while nobody held them."""

LOCKED_BATCHES = """
    SELECT id FROM batches WHERE id IN (SELECT batch_id FROM {touched} WHERE finished_at IS NOT NULL)
    ORDER BY id FOR NO KEY UPDATE
"""
"""At the commit, each end locks its batch. Where runs of several batches may end together, these are locked before and
in order: two who end some would else wait for each other."""

_END = """
    SET status = asked.status, finished_at = now(), last_entry = asked.last_entry,
        output = CASE WHEN asked.status = 'succeeded' THEN asked.text END,
        partial_output = CASE WHEN asked.status <> 'succeeded' THEN asked.text END,
        error = CAST(asked.error AS jsonb), usage = CAST(asked.usage AS jsonb)
"""

_KEEP = """
    RETURNING run.*, asked.text, asked.transcript, asked.model
    ), answer AS (
        INSERT INTO messages (id, thread_id, run_id, position, role, content, metadata)
        SELECT message_id, thread_id, id, 2 * seq + 1, 'assistant', text,
            jsonb_strip_nulls(jsonb_build_object(
                'run_id', id, 'usage', usage, 'model', model,
                'status', CASE WHEN status = 'cancelled' THEN 'interrupted' END))
        FROM ended
        WHERE thread_id IS NOT NULL AND NOT rolled_back AND status <> 'failed' AND text IS NOT NULL
    ), transcript AS (
        INSERT INTO transcripts (run_id, messages)
        SELECT id, transcript FROM ended
        WHERE thread_id IS NOT NULL AND NOT rolled_back AND status <> 'failed' AND transcript IS NOT NULL
    )
"""

_FINISH = text(f"""
    WITH ended AS (
        UPDATE runs AS run {_END}
        FROM (
            SELECT CAST(:status AS text) AS status, CAST(:text AS text) AS text, CAST(:last_entry AS int) AS last_entry,
                CAST(:error AS text) AS error, CAST(:usage AS text) AS usage, CAST(:transcript AS text) AS transcript,
                CAST(:model AS text) AS model
        ) AS asked
        WHERE run.id = :run_id AND run.attempt = :attempt AND run.status = 'running'
    {_KEEP}
    SELECT {END_COLUMNS} FROM ended
""")  # noqa: S608  (constants)

_FINISH_MANY = text(f"""
    WITH asked AS MATERIALIZED (
        SELECT * FROM unnest(
            CAST(:run_id AS uuid[]), CAST(:attempt AS int[]), CAST(:status AS text[]), CAST(:text AS text[]),
            CAST(:last_entry AS int[]), CAST(:error AS text[]), CAST(:usage AS text[]), CAST(:transcript AS text[]),
            CAST(:model AS text[])
        ) AS asked (run_id, attempt, status, text, last_entry, error, usage, transcript, model)
    ), mine AS MATERIALIZED (
        SELECT id, runs.attempt, runs.status FROM runs JOIN asked ON id = run_id FOR UPDATE OF runs SKIP LOCKED
    ), ended AS (
        UPDATE runs AS run {_END}
        FROM mine JOIN asked ON mine.id = run_id
        WHERE run.id = mine.id AND mine.attempt = asked.attempt AND mine.status = 'running'
    {_KEEP}, locked AS MATERIALIZED ({LOCKED_BATCHES.format(touched="ended")})
    SELECT {END_COLUMNS} FROM ended WHERE (SELECT count(*) FROM locked) IS NOT NULL
""")  # noqa: S608  (constants)

_GIVE_BACK = text(f"""
    UPDATE runs
    SET status = 'queued', worker_id = NULL, begun = :begun, usage = CAST(:usage AS jsonb),
        ring = ring + 1, rung_at = now(), due_at = now() + make_interval(secs => :delay_seconds)
    WHERE id = :run_id AND attempt = :attempt AND status = 'running' AND cancel_requested_at IS NULL
    RETURNING {RING_COLUMNS}
""")  # noqa: S608  (a constant)

_LET_GO = text(f"""
    WITH touched AS (
        UPDATE runs
        SET status = CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
                          WHEN crashes + :crashes >= CAST(:max_crashes AS int) THEN 'failed' ELSE 'queued' END,
            error = CASE WHEN cancel_requested_at IS NULL AND crashes + :crashes >= CAST(:max_crashes AS int)
                         THEN CAST(:worker_crashed AS jsonb) END,
            finished_at = CASE WHEN cancel_requested_at IS NOT NULL OR crashes + :crashes >= CAST(:max_crashes AS int)
                               THEN now() END,
            crashes = crashes + :crashes, worker_id = NULL, begun = 'worker_lost', ring = ring + 1, rung_at = now()
        WHERE id = :run_id AND attempt = :attempt AND status = 'running'
        RETURNING *
    ), interrupted AS ({INTERRUPTED})
    SELECT {RING_COLUMNS}, status FROM touched
""")  # noqa: S608  (constants)

_ENDED_ROW = text(f"""
    SELECT {END_COLUMNS} FROM runs WHERE id = :run_id AND attempt = :attempt AND finished_at IS NOT NULL
""")  # noqa: S608  (a constant)

_NEXT_IN_THREAD = text(f"""
    WITH thread AS (
        UPDATE threads SET updated_at = now() WHERE id = :thread_id RETURNING id
    )
    UPDATE runs SET ring = ring + 1, rung_at = now()
    WHERE status = 'queued' AND due_at <= now() AND id = (
        SELECT runs.id FROM runs JOIN thread ON thread_id = thread.id
        WHERE status IN ('queued', 'running') ORDER BY seq LIMIT 1
    )
    RETURNING {RING_COLUMNS}
""")  # noqa: S608  (a constant)

_NEXT_IN_THREADS = text(f"""
    WITH mine AS MATERIALIZED (
        SELECT id FROM threads WHERE id = ANY(CAST(:thread_ids AS uuid[])) FOR NO KEY UPDATE SKIP LOCKED
    ), thread AS (
        UPDATE threads SET updated_at = now() FROM mine WHERE threads.id = mine.id RETURNING threads.id
    ), first AS MATERIALIZED (
        SELECT run_id FROM thread CROSS JOIN LATERAL (
            SELECT runs.id AS run_id FROM runs
            WHERE thread_id = thread.id AND status IN ('queued', 'running') ORDER BY seq LIMIT 1
        ) AS unfinished
    ), rung AS (
        UPDATE runs SET ring = ring + 1, rung_at = now()
        FROM first WHERE id = run_id AND status = 'queued' AND due_at <= now()
        RETURNING {RING_COLUMNS}, thread_id
    )
    SELECT thread.id AS of_thread, rung.* FROM thread LEFT JOIN rung ON thread_id = thread.id
""")  # noqa: S608  (a constant)


async def finish(database: AsyncEngine, claimed: Claim, ending: Ending) -> Any | None:
    """Store the end of the run and everything that comes with it, in one transaction.

    Returns the row that the end of the event log is written from; None where the run is no longer this attempt's.
    """
    rows = await transact(database, _FINISH, _values(claimed, ending))
    return rows[0] if rows else None


async def finish_many(database: AsyncEngine, asked: Sequence[tuple[Claim, Ending]]) -> dict[UUID, Any]:
    """Store the ends of runs, all in one transaction; returns by id the rows of those that were stored.

    It waits for nobody: of the others some may be had, whose rows were locked; `finish` says it for certain.
    """
    each = [_values(claimed, ending) for claimed, ending in asked]
    values = {name: [values[name] for values in each] for name in each[0]}
    return {row.id: row for row in await transact(database, _FINISH_MANY, values)}


def _values(claimed: Claim, ending: Ending) -> dict[str, Any]:
    return {
        "run_id": claimed.run_id,
        "attempt": claimed.attempt,
        "status": str(ending.status),
        "text": ending.text,
        "last_entry": ending.last_entry,
        "error": None if ending.error is None else to_json(ending.error).decode(),
        "usage": to_json(ending.usage).decode(),
        "transcript": ending.transcript,
        "model": ending.model,
    }


async def give_back(
    database: AsyncEngine, claimed: Claim, usage: dict[str, int], begun: Begun, *, delay_seconds: float = 0
) -> Ring | None:
    """Let the run wait again, first in line and without counting as a crash; returns the ring that calls for the next.

    None where the run is no longer this attempt's, or is to be cancelled: then finish it so.
    """
    rows = await transact(
        database,
        _GIVE_BACK,
        {
            "run_id": claimed.run_id,
            "attempt": claimed.attempt,
            "usage": to_json(usage).decode(),
            "begun": begun,
            "delay_seconds": delay_seconds,
        },
    )
    return ring_of(rows[0], first=True) if rows else None


async def let_go(database: AsyncEngine, run_id: UUID, attempt: int, *, max_crashes: int | None = None) -> Ring | None:
    """Let a run wait again that its worker holds without knowing; None where that is over, or the run ends by this.

    With `max_crashes` this counts as a crash, and the run ends where that is the last that it may have. It also ends
    where it was to be cancelled. A sweeper tells the end, and calls for the thread's next.
    """
    values = {
        "run_id": run_id,
        "attempt": attempt,
        "crashes": 0 if max_crashes is None else 1,
        "max_crashes": max_crashes,
        "worker_crashed": to_json(failure(FailureCode.WORKER_CRASHED)).decode(),
    }
    rows = await transact(database, _LET_GO, values)
    return ring_of(rows[0]) if rows and rows[0].status == RunStatus.QUEUED else None


async def ended_row(database: AsyncEngine, claimed: Claim) -> Any | None:
    """Read the end that this attempt stored, if it did."""
    rows = await transact(database, _ENDED_ROW, {"run_id": claimed.run_id, "attempt": claimed.attempt})
    return rows[0] if rows else None


async def next_in_thread(database: AsyncEngine, thread_id: UUID) -> Ring | None:
    """After a run of the thread has ended: note the time, and call for the next one, if it waits.

    A transaction after that of the end: a thread's row is never locked by somebody who holds a run's. Who accepted a
    run while this waited for the thread rings for it, and that it does not see.
    """
    rows = await transact(database, _NEXT_IN_THREAD, {"thread_id": thread_id})
    return ring_of(rows[0]) if rows else None


async def next_in_threads(database: AsyncEngine, thread_ids: Sequence[UUID]) -> dict[UUID, Ring | None]:
    """Do the same for many threads; returns by id what it did, and leaves out those whose rows were locked."""
    rows = await transact(database, _NEXT_IN_THREADS, {"thread_ids": list(thread_ids)})
    return {row.of_thread: None if row.id is None else ring_of(row) for row in rows}


def ring_of(row: Any, *, first: bool = False) -> Ring:
    """Make the ring of a run from its row."""
    return Ring(row.id, row.ring, row.pool, row.lane, row.tenant, first)
