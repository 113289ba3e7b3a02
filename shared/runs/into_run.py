"""Messages into a run that has not ended: stored, given to its agent, or queued as runs if they came too late.

A message is stored under the lock of its run's row, which counts them (`last_message`). The number of messages that the
model has received is stored, too (`heard`): with each step, with a wait, and with the end. A trigger of `runs` queues
the others as runs of the thread at the end, in any statement. Their places in it are kept from the beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.clock import new_id
from agent_relay.shared.database import store, transact
from agent_relay.shared.database.tables import IS_UNFINISHED
from agent_relay.shared.database.typed_rows import columns, read_one
from agent_relay.shared.errors import NotFound, NotStarted, RunEnded, TooManyMessages, UnknownAgent
from agent_relay.shared.idempotency import Key, keep
from agent_relay.shared.runs.accept import (
    TAKE_SEQ,
    TRANSACTION_ID,
    Accepted,
    Query,
    Strategy,
    accept_in,
    attachments_of,
)
from agent_relay.shared.runs.claim import Claim, IntoRun
from agent_relay.shared.runs.queue_limits import Admission

MOST_MESSAGES = 1000
"""Into one run."""


class MessageStatus(StrEnum):
    """The state of a message into a run."""

    PENDING = "pending"
    """The agent gets it before its next request to the model."""
    ENQUEUED = "enqueued"
    """The agent has got it."""
    QUEUED = "queued"
    """The run ended first: it is a run of its own, the thread's next."""
    RUN_ENDED = "run_ended"
    """The run, which has no thread, ended first: nothing comes of it."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message as it was stored: into a run, or as a run of its own."""

    message_id: UUID
    run_id: UUID
    """The run that it is in."""
    place: int | None
    """Its number there; None where it is the query."""
    accepted: Accepted | None
    transaction_id: str


@dataclass(frozen=True, slots=True)
class _Stored:
    run_id: UUID
    last_message: int
    transaction_id: str


@dataclass(frozen=True, slots=True)
class MessageState:
    """A message, and its state."""

    message_id: UUID
    run_id: UUID
    """The run that it is in, or has become."""
    status: str


_TARGET = text("""
    SELECT thread_id, runs.agent_type, starts_later AND finished_at IS NULL AS starts_later, last_message
    FROM runs LEFT JOIN threads ON threads.id = thread_id
    WHERE runs.id = :run_id AND runs.tenant = :tenant AND runs.user_id = :user_id AND threads.deleted_at IS NULL
""")

_RUNNING = text("""
    SELECT id FROM runs
    WHERE thread_id = :thread_id AND status = 'running' AND cancel_requested_at IS NULL AND NOT rolled_back
      AND last_message < :most
""")

_SEND = text(f"""
    WITH run AS (
        UPDATE runs SET last_message = last_message + 1
        WHERE id = :run_id AND {IS_UNFINISHED} AND NOT rolled_back AND NOT starts_later
        RETURNING *
    ), stored AS (
        INSERT INTO run_messages (id, run_id, place, query, attachments, metadata, webhook_url, wait_seconds,
                                  deadline_seconds, seq, next_run_id, next_message_id)
        SELECT :message_id, id, last_message, :query, CAST(:attachments AS jsonb), CAST(:metadata AS json),
               :webhook_url, CAST(:wait_seconds AS float), :deadline_seconds, CAST(:seq AS bigint),
               :next_run_id, :next_message_id
        FROM run
    ), message AS (
        INSERT INTO messages (id, thread_id, run_id, position, place, role, content, attachments, metadata)
        SELECT :message_id, thread_id, id, 2 * seq, last_message, 'user', :query, CAST(:attachments AS jsonb),
               jsonb_build_object('run_id', id)
        FROM run WHERE thread_id IS NOT NULL
    )
    SELECT {columns(_Stored, run_id="id", transaction_id=TRANSACTION_ID)} FROM run
""")  # noqa: S608  (constants)

_NEW = text(f"""
    SELECT {columns(IntoRun)} FROM run_messages
    WHERE run_id = :run_id AND place > :heard AND EXISTS (
        SELECT FROM runs WHERE id = :run_id AND attempt = :attempt AND status = 'running')
    ORDER BY place
""")  # noqa: S608  (a constant)

_STATE = text("""
    SELECT id AS message_id,
        CASE WHEN heard OR thread_id IS NULL OR NOT ended THEN run_id ELSE next_run_id END AS run_id,
        CASE WHEN heard THEN 'enqueued' WHEN NOT ended THEN 'pending' WHEN thread_id IS NULL THEN 'run_ended'
             ELSE 'queued' END AS status
    FROM (
        SELECT run_messages.id, run_id, next_run_id, thread_id, finished_at IS NOT NULL AS ended, place <= greatest(
            runs.heard, (SELECT max(heard) FROM run_steps WHERE run_steps.run_id = runs.id)) AS heard
        FROM run_messages JOIN runs ON runs.id = run_id
        WHERE run_messages.id = :message_id
    ) AS found
    UNION ALL
    SELECT user_message_id, id, 'queued' FROM runs WHERE id = :message_id
""")


async def send(database: AsyncEngine, run_id: UUID, asked: Query, key: Key | None, admission: Admission) -> Sent:
    """Store a message into a run; if the run has ended, as its thread's next run.

    `asked` is the message as a query to the run's thread and agent. Enqueue it, or notify the worker, afterwards.

    Raises:
        Repeated, KeyReused, KeyInUse: nothing is stored under this key now, see `keep`. The key creates the id of the
            message, or that of the run where the message is its query.
        NotFound: the run does not exist for this user.
        UnknownAgent: the caller's key may not ask its agent.
        NotStarted: it starts later.
        RunEnded: it has ended, and is in no thread.
        TooManyMessages: it has as many messages as a run may have.
        WrongAttachment: see `attach`.
        AgentNotServed, QueueFull: see `accept`.
    """
    return await store(database, lambda connection: _send(connection, run_id, asked, key, admission))


async def steer(database: AsyncEngine, asked: Query, key: Key | None, admission: Admission) -> Sent:
    """Store a query as a message into the run of its thread that is running; without one, as a run.

    Raises:
        Repeated, KeyReused, KeyInUse, NotFound, UnknownAgent, AgentNotServed, QueueFull: see `accept` and `send`.
    """
    return await store(database, lambda connection: _steer(connection, asked, key, admission))


async def _send(connection: AsyncConnection, run_id: UUID, asked: Query, key: Key | None, admission: Admission) -> Sent:
    message_id = new_id()
    await keep(connection, key, message_id)
    owner = {"run_id": run_id, "tenant": asked.tenant, "user_id": asked.user_id}
    target = (await connection.execute(_TARGET, owner)).one_or_none()
    if target is None:
        raise NotFound("run")
    if asked.allowed_agents is not None and target.agent_type not in asked.allowed_agents:
        raise UnknownAgent(target.agent_type, asked.allowed_agents)
    if target.starts_later:
        raise NotStarted
    if target.last_message >= MOST_MESSAGES:
        raise TooManyMessages(MOST_MESSAGES)
    asked = replace(asked, thread_id=target.thread_id, run_id=message_id)
    seq = None if target.thread_id is None else (await _take_seq(connection, asked)).last_seq
    attachments = await attachments_of(connection, asked, target.agent_type)
    if sent := await _store_into(connection, run_id, asked, attachments, seq):
        return sent
    if target.thread_id is None:
        raise RunEnded
    return await _accept(connection, asked, admission)


async def _steer(connection: AsyncConnection, asked: Query, key: Key | None, admission: Admission) -> Sent:
    asked = replace(asked, run_id=new_id(), strategy=Strategy.ENQUEUE)
    assert asked.run_id is not None  # noqa: S101
    await keep(connection, key, asked.run_id)
    thread = await _take_seq(connection, asked)
    running = await connection.scalar(_RUNNING, {"thread_id": asked.thread_id, "most": MOST_MESSAGES})
    if running is not None:
        attachments = await attachments_of(connection, asked, thread.agent_type)
        if sent := await _store_into(connection, running, asked, attachments, thread.last_seq):
            return sent
    return await _accept(connection, asked, admission)


async def _take_seq(connection: AsyncConnection, asked: Query) -> Any:
    """Lock the thread, and take a place in its order; returns that and its agent.

    Before the row of a run is locked, never after it.
    """
    owner = {"thread_id": asked.thread_id, "tenant": asked.tenant, "user_id": asked.user_id}
    thread = (await connection.execute(TAKE_SEQ, owner)).one_or_none()
    if thread is None:
        raise NotFound("thread")
    if asked.allowed_agents is not None and thread.agent_type not in asked.allowed_agents:
        raise UnknownAgent(thread.agent_type, asked.allowed_agents)
    return thread


async def _store_into(
    connection: AsyncConnection, run_id: UUID, asked: Query, attachments: str | None, seq: int | None
) -> Sent | None:
    """Store the message; None where the run has ended."""
    message_id = asked.run_id
    assert message_id is not None  # noqa: S101
    values = {
        "run_id": run_id,
        "message_id": message_id,
        "query": asked.query,
        "attachments": attachments,
        "metadata": to_json(asked.metadata).decode(),
        "webhook_url": asked.webhook_url,
        "wait_seconds": asked.wait_seconds,
        "deadline_seconds": asked.deadline_seconds,
        "seq": seq,
        "next_run_id": new_id(),
        "next_message_id": new_id(),
    }
    stored = read_one(await connection.execute(_SEND, values), _Stored)
    if stored is None:
        return None
    return Sent(message_id, stored.run_id, stored.last_message, None, stored.transaction_id)


async def _accept(connection: AsyncConnection, asked: Query, admission: Admission) -> Sent:
    """Store the message as a run; the id that its key has created is that of the run."""
    accepted = await accept_in(connection, asked, None, admission)
    run = accepted.run
    return Sent(run.user_message_id, run.id, None, accepted, accepted.transaction_id)


async def messages_into(database: AsyncEngine, claimed: Claim, heard: int) -> Sequence[IntoRun]:
    """Read the messages into a run that its agent has not got yet; none if the run is another attempt's."""
    values = {"run_id": claimed.run_id, "attempt": claimed.attempt, "heard": heard}
    return await transact(database, _NEW, values, IntoRun)


async def state_of_message(database: AsyncEngine, message_id: UUID) -> MessageState:
    """Return the state of a key's result: a message, or a run whose query it is.

    Raises:
        NotFound: it is gone.
    """
    rows = await transact(database, _STATE, {"message_id": message_id}, MessageState)
    if not rows:
        raise NotFound("message")
    return rows[0]
