"""End a run that an attempt holds, or give it back; the attempt is the fence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.database import transact
from agent_relay.shared.database.tables import IS_UNFINISHED, AttemptReason, RunStatus
from agent_relay.shared.failure_codes import FailureCode, failure
from agent_relay.shared.queue import QueueEntry
from agent_relay.shared.rows import RunEnd
from agent_relay.shared.runs.claim import Claim
from agent_relay.shared.runs.sql import NEW_ENTRY, QUEUE_ENTRY, RUN_END
from agent_relay.shared.schemas import whole_usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended its run, and what is stored of it."""

    status: RunStatus
    text: str | None
    """The validated output, or the last valid partial; the event log ends with it."""
    last_entry: int
    """The `n` of the last entry of this attempt in the event log."""
    usage: dict[str, float]
    """Requests and tokens, those of earlier attempts included."""
    error: dict[str, Any] | None = None
    transcript: str | None = None
    model: str | None = None
    heard: int = 0
    """The `place` of the last message into the run that its agent has got."""


INTERRUPTED = """
    INSERT INTO messages (id, thread_id, run_id, position, role, content, metadata)
    SELECT message_id, thread_id, id, 2 * seq + 1, 'assistant', partial_output,
        jsonb_build_object('run_id', id, 'usage', usage, 'status', 'interrupted')
    FROM touched
    WHERE thread_id IS NOT NULL AND NOT rolled_back AND status = 'cancelled' AND partial_output IS NOT NULL
"""
"""Keeps the partial outputs of runs that were cancelled without a worker."""

LOCKED_BATCHES = """
    SELECT id FROM batches WHERE id IN (SELECT batch_id FROM {touched} WHERE finished_at IS NOT NULL)
    ORDER BY id FOR NO KEY UPDATE
"""
"""At the commit, each end locks its batch. If runs of several batches may end together, these are locked before and in
order, to avoid deadlocks."""

_END = """
    SET status = asked.status, finished_at = now(), last_entry = asked.last_entry,
        output = CASE WHEN asked.status = 'succeeded' THEN asked.text END,
        partial_output = CASE WHEN asked.status <> 'succeeded' THEN asked.text END,
        error = CAST(asked.error AS jsonb), usage = CAST(asked.usage AS jsonb), model = asked.model,
        heard = asked.heard
"""

_ENDED = "run.*, asked.text, asked.transcript"

_IS_KEPT = "thread_id IS NOT NULL AND NOT rolled_back AND status <> 'failed'"

_ANSWER = f"""
    INSERT INTO messages (id, thread_id, run_id, position, role, content, metadata)
    SELECT message_id, thread_id, id, 2 * seq + 1, 'assistant', text,
        jsonb_strip_nulls(jsonb_build_object(
            'run_id', id, 'usage', usage, 'model', model,
            'status', CASE WHEN status = 'cancelled' THEN 'interrupted' END))
    FROM ended
    WHERE {_IS_KEPT} AND text IS NOT NULL
"""  # noqa: S608  (a constant)

_TRANSCRIPT = f"""
    INSERT INTO transcripts (run_id, messages, attempt)
    SELECT id, transcript, attempt FROM ended
    WHERE {_IS_KEPT} AND transcript IS NOT NULL
    ON CONFLICT (run_id) DO UPDATE SET messages = excluded.messages, attempt = excluded.attempt
"""  # noqa: S608  (a constant)

_FINISH = text(f"""
    WITH ended AS (
        UPDATE runs AS run {_END}
        FROM (
            SELECT CAST(:status AS text) AS status, CAST(:text AS text) AS text, CAST(:last_entry AS int) AS last_entry,
                CAST(:error AS text) AS error, CAST(:usage AS text) AS usage, CAST(:transcript AS text) AS transcript,
                CAST(:model AS text) AS model, CAST(:heard AS int) AS heard
        ) AS asked
        WHERE run.id = :run_id AND run.attempt = :attempt AND run.status = 'running'
        RETURNING {_ENDED}
    ), answer AS ({_ANSWER}), transcript AS ({_TRANSCRIPT})
    SELECT {RUN_END} FROM ended
""")  # noqa: S608  (constants)

_FINISH_MANY = text(f"""
    WITH asked AS MATERIALIZED (
        SELECT * FROM unnest(
            CAST(:run_id AS uuid[]), CAST(:attempt AS int[]), CAST(:status AS text[]), CAST(:text AS text[]),
            CAST(:last_entry AS int[]), CAST(:error AS text[]), CAST(:usage AS text[]), CAST(:transcript AS text[]),
            CAST(:model AS text[]), CAST(:heard AS int[])
        ) AS asked (run_id, attempt, status, text, last_entry, error, usage, transcript, model, heard)
    ), mine AS MATERIALIZED (
        SELECT id, runs.attempt, runs.status FROM runs JOIN asked ON id = run_id FOR UPDATE OF runs SKIP LOCKED
    ), ended AS (
        UPDATE runs AS run {_END}
        FROM mine JOIN asked ON mine.id = run_id
        WHERE run.id = mine.id AND mine.attempt = asked.attempt AND mine.status = 'running'
        RETURNING {_ENDED}
    ), answer AS ({_ANSWER}), transcript AS ({_TRANSCRIPT}),
    locked AS MATERIALIZED ({LOCKED_BATCHES.format(touched="ended")})
    SELECT {RUN_END} FROM ended WHERE (SELECT count(*) FROM locked) IS NOT NULL
""")  # noqa: S608  (constants)

_GIVE_BACK = text(f"""
    UPDATE runs
    SET status = 'queued', worker_id = NULL, begun = :begun, usage = CAST(:usage AS jsonb),
        {NEW_ENTRY}, due_at = now() + make_interval(secs => :delay_seconds)
    WHERE id = :run_id AND attempt = :attempt AND status = 'running' AND cancel_requested_at IS NULL
    RETURNING {QUEUE_ENTRY}
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
            crashes = crashes + :crashes, worker_id = NULL, begun = 'worker_lost', {NEW_ENTRY}
        WHERE id = :run_id AND attempt = :attempt AND status = 'running'
        RETURNING *
    ), interrupted AS ({INTERRUPTED})
    SELECT {QUEUE_ENTRY} FROM touched WHERE status = 'queued'
""")  # noqa: S608  (constants)

_ENDED_ROW = text(f"""
    SELECT {RUN_END} FROM runs WHERE id = :run_id AND attempt = :attempt AND finished_at IS NOT NULL
""")  # noqa: S608  (a constant)

_NEXT_IN_THREAD = text(f"""
    WITH thread AS (
        UPDATE threads SET updated_at = now() WHERE id = :thread_id RETURNING id
    )
    UPDATE runs SET {NEW_ENTRY}
    WHERE status = 'queued' AND due_at <= now() AND NOT starts_later AND id = (
        SELECT runs.id FROM runs JOIN thread ON thread_id = thread.id
        WHERE {IS_UNFINISHED} ORDER BY seq LIMIT 1
    )
    RETURNING {QUEUE_ENTRY}
""")  # noqa: S608  (a constant)

_NEXT_IN_THREADS = text(f"""
    WITH mine AS MATERIALIZED (
        SELECT id FROM threads WHERE id = ANY(CAST(:thread_ids AS uuid[])) FOR NO KEY UPDATE SKIP LOCKED
    ), thread AS (
        UPDATE threads SET updated_at = now() FROM mine WHERE threads.id = mine.id RETURNING threads.id
    ), first AS MATERIALIZED (
        SELECT run_id FROM thread CROSS JOIN LATERAL (
            SELECT runs.id AS run_id FROM runs
            WHERE thread_id = thread.id AND {IS_UNFINISHED} ORDER BY seq LIMIT 1
        ) AS unfinished
    ), rung AS (
        UPDATE runs SET {NEW_ENTRY}
        FROM first WHERE id = run_id AND status = 'queued' AND due_at <= now() AND NOT starts_later
        RETURNING {QUEUE_ENTRY}, thread_id
    )
    SELECT thread.id AS of_thread, run_id, ring, pool, lane, tenant FROM thread LEFT JOIN rung ON thread_id = thread.id
""")  # noqa: S608  (a constant)


async def finish(database: AsyncEngine, claimed: Claim, ending: Ending) -> RunEnd | None:
    """Store the end of the run and everything that comes with it, in one transaction.

    Returns the data for the end of the event log; None if the run is no longer this attempt's.
    """
    rows = await transact(database, _FINISH, _values(claimed, ending), RunEnd)
    return rows[0] if rows else None


async def finish_many(database: AsyncEngine, asked: Sequence[tuple[Claim, Ending]]) -> dict[UUID, RunEnd]:
    """Store the ends of runs, all in one transaction; returns by id the rows of those that were stored.

    It does not wait for locks: a run whose row was locked is left out; `finish` gives a certain answer for it.
    """
    each = [_values(claimed, ending) for claimed, ending in asked]
    values = {name: [values[name] for values in each] for name in each[0]}
    return {row.id: row for row in await transact(database, _FINISH_MANY, values, RunEnd)}


def _values(claimed: Claim, ending: Ending) -> dict[str, Any]:
    return {
        "run_id": claimed.run_id,
        "attempt": claimed.attempt,
        "status": str(ending.status),
        "text": ending.text,
        "last_entry": ending.last_entry,
        "error": None if ending.error is None else to_json(ending.error).decode(),
        "usage": to_json(whole_usage(ending.usage)).decode(),
        "transcript": ending.transcript,
        "model": ending.model,
        "heard": ending.heard,
    }


async def give_back(
    database: AsyncEngine, claimed: Claim, usage: dict[str, float], begun: AttemptReason, *, delay_seconds: float = 0
) -> QueueEntry | None:
    """Return a run to the queue, before all positions and without a crash; returns the next queue entry.

    None if the run is no longer this attempt's, or a cancel was requested: then finish it as cancelled.
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
        QueueEntry,
    )
    return replace(rows[0], first=True) if rows else None


async def let_go(
    database: AsyncEngine, run_id: UUID, attempt: int, *, max_crashes: int | None = None
) -> QueueEntry | None:
    """Release an orphaned run, which its worker does not know; None if it is over, or if this ends the run.

    With `max_crashes` this counts as a crash, and the run ends if that is its last one. It also ends if a cancel was
    requested. A sweeper publishes the end, and enqueues the thread's next run.
    """
    values = {
        "run_id": run_id,
        "attempt": attempt,
        "crashes": 0 if max_crashes is None else 1,
        "max_crashes": max_crashes,
        "worker_crashed": to_json(failure(FailureCode.WORKER_CRASHED)).decode(),
    }
    rows = await transact(database, _LET_GO, values, QueueEntry)
    return rows[0] if rows else None


async def ended_row(database: AsyncEngine, claimed: Claim) -> RunEnd | None:
    """Read the end that this attempt stored, if it did."""
    rows = await transact(database, _ENDED_ROW, {"run_id": claimed.run_id, "attempt": claimed.attempt}, RunEnd)
    return rows[0] if rows else None


async def next_in_thread(database: AsyncEngine, thread_id: UUID) -> QueueEntry | None:
    """After a run of the thread has ended: store the time, and return the queue entry of the next one, if it waits.

    It is a transaction after that of the end: a transaction that holds a run's row never locks a thread's row. It does
    not see a run that is accepted while it waits for the thread; the process that accepts that run enqueues it.
    """
    rows = await transact(database, _NEXT_IN_THREAD, {"thread_id": thread_id}, QueueEntry)
    return rows[0] if rows else None


async def next_in_threads(database: AsyncEngine, thread_ids: Sequence[UUID]) -> dict[UUID, QueueEntry | None]:
    """Do the same for many threads; returns by id what it did, and leaves out those whose rows were locked."""
    rows = await transact(database, _NEXT_IN_THREADS, {"thread_ids": list(thread_ids)})
    return {
        of_thread: None if run_id is None else QueueEntry(run_id, ring, pool, lane, tenant)
        for of_thread, run_id, ring, pool, lane, tenant in rows
    }
