"""Claim a run: from here on this attempt, and no other, may end it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.shared.attachments import Attached, attached_of
from agent_relay.shared.database import transact
from agent_relay.shared.database.tables import AttemptReason
from agent_relay.shared.database.typed_rows import read
from agent_relay.shared.runs.concurrency_limits import NO_QUOTA, Quota
from agent_relay.shared.runs.said import Said, said_of
from agent_relay.shared.runs.sql import first_in_thread
from agent_relay.shared.schemas import metadata_of, usage_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A run, as its attempt sees it."""

    run_id: UUID
    attempt: int
    begun: AttemptReason
    """Why this attempt begins."""
    tenant: str
    user_id: UUID
    thread_id: UUID | None
    seq: int | None
    agent_type: str
    query: str
    metadata: dict[str, Any]
    thread_metadata: dict[str, Any]
    message_id: UUID
    usage: dict[str, float]
    """Usage of earlier attempts; the row already counts the first request of this one."""
    seconds_left: float
    """Until the deadline, by the database's clock; of a run of a batch also from here on."""
    batch_id: UUID | None = None
    waited_seconds: float = 0
    """Since a worker was called for it."""
    wait_attempt: int | None = None
    """The attempt that came to wait last; this one goes on from there."""
    last_answer_entry: int | None = None
    """The `n` of the last event of that one."""
    last_message: int = 0
    """The `place` of the newest message into it."""
    heard: int = 0
    """The `place` of the last one that the transcript of its wait holds."""
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    """The chosen options: of the run, and of its thread or its batch."""
    history: Sequence[Said] = ()
    """Messages before the query that its caller held; they come after those of the thread."""
    attachments: Sequence[Attached] = ()
    """Attachments of its query."""
    batch_is_capped: bool = False
    """Whether its batch has a `max_running`."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """An earlier query of the thread and its answer."""

    query: str
    answer: str | None
    transcript: str | None
    """The model's own messages, where they are known."""
    history: Sequence[Said] = ()
    """Messages before the query, as its caller held them."""
    attachments: Sequence[Attached] = ()
    """Attachments of the query."""
    steered: Sequence[IntoRun] = ()
    """Without the model's own messages: those into the run that its agent has got."""


@dataclass(frozen=True, slots=True)
class IntoRun:
    """A message that an agent is to get, or has got."""

    id: UUID
    place: int
    query: str
    attachments: JsonValue


FIRST_SEQ = 1
"""Of the first run of a thread: there is nothing before it."""


@dataclass(slots=True)
class _Claimed:
    """A run as its claim returns it."""

    id: UUID
    attempt: int
    begun: str
    tenant: str
    user_id: UUID
    thread_id: UUID | None
    seq: int | None
    agent_type: str
    query: str
    metadata: JsonValue
    message_id: UUID
    usage: JsonValue
    batch_id: UUID | None
    last_message: int
    heard: int
    wait_attempt: int | None
    last_answer_entry: int | None
    waited_seconds: Decimal
    seconds_left: Decimal | float
    batch_is_capped: bool
    thread_metadata: JsonValue
    options: JsonValue
    history: JsonValue
    attachments: JsonValue


def _may_be_had(run: str, worker_id: str) -> str:
    """Write the condition for a claim of a run, of which this is the row's alias, by a worker of this id."""
    return f"""
    {run}.status = 'queued' AND {run}.due_at <= now() AND {run}.deadline_at > now()
      AND NOT {run}.starts_later
      AND ({run}.crashes = 0 OR CAST(:isolated AS boolean))
      AND EXISTS (SELECT FROM workers WHERE id = {worker_id} AND ended_at IS NULL AND lease_until > now())
      AND {first_in_thread(run)}
      AND NOT EXISTS (SELECT FROM batches WHERE batches.id = {run}.batch_id AND batches.status = 'cancelling')
"""  # noqa: S608  (a constant)


_TAKE = """
    SET status = 'running', attempt = run.attempt + 1, worker_id = {worker_id},
        started_at = coalesce(started_at, now()), partial_output = NULL, last_entry = 0,
        usage = usage || jsonb_build_object('requests', coalesce(
            CASE jsonb_typeof(usage -> 'requests') WHEN 'number' THEN CAST(usage ->> 'requests' AS numeric) END, 0) + 1)
"""
"""It counts the attempt's first request, which an attempt that dies before its first heartbeat cannot report."""

_TAKEN = """
    RETURNING run.id, run.attempt, begun, tenant, user_id, run.thread_id, run.seq, agent_type, query, metadata,
        message_id, usage, run.batch_id, run.last_message, run.heard, run.wait_attempt,
        CASE WHEN run.wait_attempt IS NOT NULL THEN (
            SELECT max(answer_entry) FROM run_requests WHERE run_id = run.id AND attempt = run.wait_attempt
        ) END AS last_answer_entry,
        extract(epoch FROM now() - run.rung_at) AS waited_seconds,
        least(extract(epoch FROM run.deadline_at - now()),
              (SELECT run_seconds FROM batches WHERE batches.id = run.batch_id)) AS seconds_left,
        EXISTS (SELECT FROM batches WHERE batches.id = run.batch_id AND max_running IS NOT NULL) AS batch_is_capped,
        (SELECT threads.metadata FROM threads WHERE threads.id = run.thread_id) AS thread_metadata,
        coalesce((SELECT threads.options FROM threads WHERE threads.id = run.thread_id),
                 (SELECT batches.options FROM batches WHERE batches.id = run.batch_id), '{}')
            || coalesce(run.options, '{}') AS options,
        run.history, run.attachments
"""

_CLAIM = text(f"""
    UPDATE runs AS run {_TAKE.format(worker_id=":worker_id")}
    WHERE run.id = :run_id AND {_may_be_had("run", ":worker_id")}
    {_TAKEN}
""")

_CLAIM_MANY = text(f"""
    WITH it AS MATERIALIZED (
        SELECT id, status, due_at, deadline_at, starts_later, crashes, thread_id, seq, batch_id, asked.worker_id
        FROM runs
        JOIN unnest(CAST(:run_ids AS uuid[]), CAST(:worker_ids AS uuid[])) AS asked (run_id, worker_id) ON id = run_id
        FOR UPDATE OF runs SKIP LOCKED
    )
    UPDATE runs AS run {_TAKE.format(worker_id="it.worker_id")}
    FROM it WHERE run.id = it.id AND {_may_be_had("it", "it.worker_id")}
    {_TAKEN}
""")  # noqa: S608  (constants)

_IS_SUSPECT = text("SELECT crashes > 0 AND status = 'queued' AS is_suspect FROM runs WHERE id = :run_id")

_SET_ASIDE = text("""
    UPDATE runs SET rung_at = now() + make_interval(secs => :seconds)
    WHERE id = :run_id AND status = 'queued' AND rung_at <= now()
    RETURNING id
""")

_STEERED = """
    FROM run_messages WHERE run_id = runs.id AND place <= greatest(
        runs.heard, (SELECT max(heard) FROM run_steps WHERE run_steps.run_id = runs.id))
"""

_EARLIER = text(f"""
    WITH earlier AS (
        SELECT runs.id, seq, octet_length(messages) <= :most AS has_transcript,
            octet_length(query) + coalesce(octet_length(coalesce(output, partial_output)), 0)
                + CASE WHEN last_message > 0 THEN
                    (SELECT coalesce(sum(octet_length(run_messages.query)), 0) {_STEERED}) ELSE 0 END AS short,
            octet_length(messages) AS whole, coalesce(octet_length(CAST(history AS text)), 0) AS before
        FROM runs LEFT JOIN transcripts ON run_id = id
        WHERE thread_id = :thread_id AND seq < :seq AND NOT rolled_back
          AND (status = 'succeeded' OR (status = 'cancelled' AND (messages IS NOT NULL OR partial_output IS NOT NULL)))
    ), summed AS (
        SELECT *, :most >= sum(before + CASE WHEN has_transcript THEN whole ELSE short END)
                OVER (ORDER BY seq DESC) AS fits
        FROM earlier
    )
    SELECT left_out, query, coalesce(output, partial_output) AS answer, history,
        CASE WHEN has_transcript THEN messages END AS messages,
        CASE WHEN NOT coalesce(has_transcript, false) THEN attachments END AS attachments,
        CASE WHEN NOT coalesce(has_transcript, false) AND last_message > 0 THEN (
            SELECT jsonb_agg(jsonb_build_object('id', run_messages.id, 'place', place, 'query', run_messages.query,
                                                'attachments', run_messages.attachments) ORDER BY place) {_STEERED}
        ) END AS steered
    FROM (SELECT count(*) FILTER (WHERE NOT fits) AS left_out FROM summed) AS counted
    LEFT JOIN (
        summed JOIN runs USING (id) LEFT JOIN transcripts ON run_id = id
    ) ON fits
    ORDER BY runs.seq
""")  # noqa: S608  (constants)
"""The newest exchanges that fit, and the number of the others; no large value is read to decide that. A transcript that
is too large alone is left out; the query, the messages into the run and the answer are used instead."""

_IS_MINE = text("SELECT id FROM runs WHERE id = :run_id AND attempt = :attempt AND status = 'running'")


async def claim(
    database: AsyncEngine, run_id: UUID, worker_id: UUID, *, isolated: bool, quota: Quota = NO_QUOTA
) -> Claim | None:
    """Take a queued run; None if it cannot be claimed: taken, ended, not due, behind another run of its thread.

    A run under which a worker died is a suspect: only a process of its own (`isolated`) may take it. A run above the
    limit of running runs of its user or tenant is throttled, see `concurrency_limits.py`.
    """
    try:
        rows = await _claim(database, {"run_id": run_id, "worker_id": worker_id, "isolated": isolated}, quota)
    except IntegrityError:  # `one_running_run_a_thread`: an earlier run of the thread was claimed in this instant.
        return None
    return _claimed(rows[0]) if rows else None


async def claim_many(database: AsyncEngine, asked: Sequence[tuple[UUID, UUID]], *, isolated: bool) -> dict[UUID, Claim]:
    """Take queued runs, each for its worker, in one transaction; returns by id those that were taken.

    It does not wait for locks: a run whose row was locked is not taken and may still be claimed with `claim`.
    """
    run_ids, worker_ids = zip(*asked, strict=True)
    values = {"run_ids": list(run_ids), "worker_ids": list(worker_ids), "isolated": isolated}
    rows = await transact(database, _CLAIM_MANY, values, _Claimed)
    return {row.id: _claimed(row) for row in rows}


def _claimed(row: _Claimed) -> Claim:
    return Claim(
        run_id=row.id,
        attempt=row.attempt,
        begun=AttemptReason(row.begun)
        if row.begun in AttemptReason.__members__.values()
        else AttemptReason.WORKER_LOST,
        tenant=row.tenant,
        user_id=row.user_id,
        thread_id=row.thread_id,
        seq=row.seq,
        agent_type=row.agent_type,
        query=row.query,
        metadata=metadata_of(row.metadata),
        thread_metadata=metadata_of(row.thread_metadata),
        message_id=row.message_id,
        usage=_before_this_attempt(usage_of(row.usage)),
        seconds_left=float(row.seconds_left),
        batch_id=row.batch_id,
        waited_seconds=max(float(row.waited_seconds), 0),
        wait_attempt=row.wait_attempt,
        last_answer_entry=row.last_answer_entry,
        last_message=row.last_message,
        heard=row.heard,
        options=metadata_of(row.options),
        history=said_of(row.history),
        attachments=attached_of(row.attachments),
        batch_is_capped=row.batch_is_capped,
    )


def _before_this_attempt(usage: dict[str, float]) -> dict[str, float]:
    return {**usage, "requests": max(usage.get("requests", 0) - 1, 0)}


async def _claim(database: AsyncEngine, values: dict[str, Any], quota: Quota) -> Sequence[_Claimed]:
    if not quota:
        return await transact(database, _CLAIM, values, _Claimed)
    async with database.begin() as connection:
        if await quota.pass_over(connection, values["run_id"], isolated=values["isolated"]):
            return []
        return read(await connection.execute(_CLAIM, values), _Claimed)


async def is_suspect(database: AsyncEngine, run_id: UUID) -> bool:
    """Tell whether a queued run could not be claimed because a worker died under it."""
    rows = await transact(database, _IS_SUSPECT, {"run_id": run_id})
    return bool(rows and rows[0].is_suspect)


async def set_aside(database: AsyncEngine, run_id: UUID, seconds: float) -> bool:
    """Delay the next queue entry of a queued run while a process is made for it; False if it is delayed already."""
    async with database.begin() as connection:
        return (await connection.execute(_SET_ASIDE, {"run_id": run_id, "seconds": seconds})).one_or_none() is not None


async def earlier_exchanges(database: AsyncEngine, claimed: Claim, most_bytes: int) -> Sequence[Exchange]:
    """Read what the thread holds before this run: runs that succeeded or were interrupted, never those that failed.

    Of these, the newest exchanges that together have at most this number of bytes.
    """
    if claimed.thread_id is None or claimed.seq == FIRST_SEQ:
        return []
    values = {"thread_id": claimed.thread_id, "seq": claimed.seq, "most": most_bytes}
    rows = await transact(database, _EARLIER, values)
    if rows[0].left_out:
        log.warning("claim.history_cut run_id=%s exchanges_left_out=%d", claimed.run_id, rows[0].left_out)
    return [
        Exchange(
            row.query,
            row.answer,
            row.messages,
            history=said_of(row.history),
            attachments=attached_of(row.attachments),
            steered=[IntoRun(**message) for message in row.steered or ()],
        )
        for row in rows
        if row.query is not None
    ]


async def is_mine(database: AsyncEngine, run_id: UUID, attempt: int) -> bool:
    """Tell whether the attempt still holds the run."""
    return bool(await transact(database, _IS_MINE, {"run_id": run_id, "attempt": attempt}))
