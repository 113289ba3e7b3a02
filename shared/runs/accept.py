"""Accept a query: once this commits, it will be answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from agent_relay.shared.attachments import Attachments, attach
from agent_relay.shared.clock import new_id, now
from agent_relay.shared.database import store
from agent_relay.shared.database.tables import IS_UNFINISHED
from agent_relay.shared.database.typed_rows import columns, read_pairs, short
from agent_relay.shared.errors import NotFound, NotLast, ThreadBusy, UnknownAgent, WrongMessage
from agent_relay.shared.idempotency import Key, keep
from agent_relay.shared.queue import Lane, QueueEntry
from agent_relay.shared.rows import RunRow
from agent_relay.shared.runs.cancel import Cancellation, supersede, take_out
from agent_relay.shared.runs.queue_limits import FULL, FULL_OF_LATER, NO_LIMITS, Admission, Room
from agent_relay.shared.runs.said import Said


class Strategy(StrEnum):
    """The treatment of a query to a thread that has unfinished runs."""

    ENQUEUE = "enqueue"
    """It waits behind them."""
    REJECT = "reject"
    """It is refused."""
    INTERRUPT = "interrupt"
    """They are cancelled; their partial outputs stay."""
    ROLLBACK = "rollback"
    """They are cancelled, and their messages erased."""
    STEER = "steer"
    """It is a message into the one that is running, see `into_run.py`; without one, it waits as with `ENQUEUE`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A query: to a thread, or to an agent without one."""

    tenant: str
    user_id: UUID
    thread_id: UUID | None
    agent_type: str | None
    query: str | None
    """None with `replace_from`, to ask the same again."""
    deadline_seconds: float
    """From its start on."""
    start_at: datetime | None = None
    start_after_seconds: float | None = None
    """Instead of `start_at`. A time that has passed is now."""
    strategy: Strategy = Strategy.ENQUEUE
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    options: dict[str, Any] | None = None
    """The chosen options of the agent; they fit its schema."""
    attachments: Attachments | None = None
    attached: list[dict[str, Any]] | None = None
    """Instead of `attachments`: the stored attachments of another run."""
    webhook_url: str | None = None
    """The URL that receives the webhook of the end."""
    allowed_agents: frozenset[str] | None = None
    """The agents that the caller's key may ask; None for all."""
    wait_seconds: float | None = None
    """How long the run may wait for answers; None for the setting of its worker."""
    lane: Lane = Lane.INTERACTIVE
    replace_from: UUID | None = None
    """A user's message of the thread: it is taken out of the thread, and all after it."""
    after_run: UUID | None = None
    """The run of the thread that this one is to follow directly; None for the last one."""
    retry_of: UUID | None = None
    """The run that this one repeats."""
    run_id: UUID | None = None
    """The id that the run is to get; None for a new one."""
    user_message_id: UUID | None = None
    """The id that the user's message is to get; None for a new one."""
    begins_thread: bool = False
    """Whether the thread is begun, with `agent_type`, where it is not there: its id is made from what its owner calls
    it."""
    schedule_id: UUID | None = None
    """The schedule that asks it; `start_at` is its tick, which has come."""
    history: Sequence[Said] = ()
    """Messages before the query, if the caller holds the conversation; they come after those of its thread, if any."""
    suspect: bool = False
    """Whether it may be what kills workers, so that each attempt is made in a process of its own."""

    @property
    def starts_later(self) -> bool:
        """Whether it waits for a time of its own. Only then will it have a place in its thread."""
        if self.schedule_id is not None:
            return False
        return bool(self.start_after_seconds) or (self.start_at is not None and self.start_at > now())


@dataclass(frozen=True, slots=True)
class StoredRun(RunRow):
    """A run as it was stored."""

    transaction_id: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The run, and the queue entry that calls a worker; enqueue it after the commit. None where it starts later."""

    run: StoredRun
    ring: QueueEntry | None
    superseded: list[Cancellation]
    """The runs of the thread that were cancelled for it; their readers and workers are still to be notified."""

    @property
    def transaction_id(self) -> str:
        """Of the transaction that stored it."""
        return self.run.transaction_id


TAKE_SEQ = text("""
    UPDATE threads SET last_seq = last_seq + 1, updated_at = now()
    WHERE id = :thread_id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
    RETURNING last_seq, agent_type
""")

_BEGIN_THREAD = text("""
    INSERT INTO threads (id, tenant, user_id, agent_type, metadata)
    SELECT :thread_id, :tenant, :user_id, agent_type, '{}' FROM agents WHERE agent_type = :agent_type
    ON CONFLICT (id) DO UPDATE SET id = excluded.id
    RETURNING id
""")
"""Where another call has just begun it, that is waited for."""

_FIND_THREAD = text("""
    SELECT agent_type FROM threads
    WHERE id = :thread_id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL FOR SHARE
""")

_REPLACED = text("""
    SELECT seq, query, attachments FROM runs
    WHERE thread_id = :thread_id AND user_message_id = :message_id AND NOT rolled_back
""")

_QUERY_OF_STEERED = text("""
    SELECT user_message_id FROM messages JOIN runs ON runs.id = run_id
    WHERE messages.id = :message_id AND messages.thread_id = :thread_id AND place > 0
""")

_BUSY = text(f"""
    SELECT id FROM runs WHERE thread_id = :thread_id AND {IS_UNFINISHED} AND NOT starts_later
    ORDER BY seq LIMIT 1
""")  # noqa: S608  (a constant)

_LAST = text("""
    SELECT id FROM runs WHERE thread_id = :thread_id AND seq IS NOT NULL AND NOT rolled_back ORDER BY seq DESC LIMIT 1
""")

TRANSACTION_ID = "CAST(pg_current_xact_id() AS text)"

_START = "coalesce(CAST(:start_at AS timestamptz), now() + make_interval(secs => CAST(:start_after_seconds AS float)))"


def _row(start: str = "now()", **more: str) -> str:
    """Write the columns of a run that is stored if there is room, and their values; `more` are further columns."""
    return f"""(
        id, tenant, user_id, thread_id, seq, agent_type, pool, text_output, lane, query, metadata, options,
        history, attachments, webhook_url, wait_seconds, user_message_id, message_id, retry_of, crashes,
        {"".join(f"{name}, " for name in more)}deadline_at
    )
    SELECT :id, :tenant, :user_id, CAST(:thread_id AS uuid), CAST(:seq AS bigint), agent_type, pool, text_output,
        :lane, :query, CAST(:metadata AS json), CAST(:options AS jsonb), CAST(:history AS json),
        CAST(:attachments AS jsonb), :webhook_url, CAST(:wait_seconds AS float),
        CAST(:user_message_id AS uuid), CAST(:message_id AS uuid), CAST(:retry_of AS uuid), CAST(:crashes AS int),
        {"".join(f"{value}, " for value in more.values())}
        {start} + make_interval(secs => greatest(:deadline_seconds, 0.000001))
    FROM agents, room
    WHERE agent_type = :agent_type
        AND (user_queue_full OR tenant_queue_full OR queue_full OR queue_slow OR agent_not_served) IS NOT TRUE
    RETURNING *"""  # noqa: S608  (constants)


_STORED = f"""
    message AS (
        INSERT INTO messages (id, thread_id, run_id, position, role, content, attachments, metadata)
        SELECT user_message_id, thread_id, id, 2 * seq, 'user', query, attachments, jsonb_build_object('run_id', id)
        FROM run WHERE seq IS NOT NULL
    )
    SELECT {columns(Room)}, {columns(StoredRun, requests="CAST(NULL AS json)", transaction_id=TRANSACTION_ID)}
    FROM room LEFT JOIN run ON true
"""  # noqa: S608  (constants)

_INSERT = short(f"WITH room AS MATERIALIZED ({FULL}), run AS (INSERT INTO runs {_row()}), {_STORED}")

_LATER = _row(_START, start_at=_START, due_at=_START, rung_at=_START, starts_later="true")
_INSERT_LATER = short(f"WITH room AS MATERIALIZED ({FULL_OF_LATER}), run AS (INSERT INTO runs {_LATER}), {_STORED}")

_TICK = _row(start_at="CAST(:start_at AS timestamptz)", schedule_id="CAST(:schedule_id AS uuid)")
_INSERT_OF_TICK = short(f"WITH room AS MATERIALIZED ({FULL}), run AS (INSERT INTO runs {_TICK}), {_STORED}")


async def accept(
    database: AsyncEngine, asked: Query, key: Key | None = None, admission: Admission | None = None
) -> Accepted:
    """Store the query as a queued run, with its message if it belongs to a thread and the key it was asked under.

    If the reply to the commit is lost, the database is asked for the state of the transaction.

    Raises:
        Repeated, KeyReused, KeyInUse: nothing is stored under this key now, see `keep`.
        NotFound: the thread does not exist for this user.
        NotLast: the thread has gone on since `after_run`.
        WrongMessage: the message to replace is no message of a user in this thread.
        UnknownAgent: no worker has registered the agent.
        WrongAttachment: see `attach`.
        AgentNotServed: no worker has served the agent for a while; not raised without `admission`.
        ThreadBusy: the thread has an unfinished run and the strategy is `reject`.
        QueueFull: the queue limit is reached; without `admission`, there is none.
    """
    return await store(database, lambda connection: accept_in(connection, asked, key, admission))


def _check_agent(asked: Query, agent_type: str | None) -> None:
    if asked.allowed_agents is not None and agent_type not in asked.allowed_agents:
        raise UnknownAgent(str(agent_type), asked.allowed_agents)


async def _replace(connection: AsyncConnection, thread_id: UUID, message_id: UUID) -> tuple[Any, list[Cancellation]]:
    """Take a user's message and all after it out of the thread; returns its query and attachments."""
    named = {"thread_id": thread_id, "message_id": message_id}
    replaced = (await connection.execute(_REPLACED, named)).one_or_none()
    if replaced is None:
        if (query_id := await connection.scalar(_QUERY_OF_STEERED, named)) is not None:
            raise WrongMessage(
                "replace_from", f"This message was sent into a run. Give the id of the query of that run: {query_id}."
            )
        raise WrongMessage("replace_from", "This thread has no such message of a user.")
    return replaced, await take_out(connection, thread_id, replaced.seq)


async def accept_in(
    connection: AsyncConnection, asked: Query, key: Key | None = None, admission: Admission | None = None
) -> Accepted:
    """Store the query in a transaction of the caller's; see `accept`."""
    run_id, agent_type, seq = asked.run_id or new_id(), asked.agent_type, None
    query, attached, later, superseded = asked.query, asked.attached, asked.starts_later, list[Cancellation]()
    await keep(connection, key, run_id)
    if asked.thread_id is None:
        _check_agent(asked, agent_type)
    else:
        agent_type, seq = await _place_in_thread(connection, asked, later=later)
        _check_agent(asked, agent_type)
        await _check_last(connection, asked)
        if asked.replace_from is not None:
            replaced, superseded = await _replace(connection, asked.thread_id, asked.replace_from)
            if query is None:
                query = replaced.query
                attached = None if asked.attachments else replaced.attachments
        superseded += await _make_way(connection, asked.thread_id, asked.strategy)
    values = {
        "id": run_id,
        "attachments": await attachments_of(connection, asked, agent_type, attached),
        "tenant": asked.tenant,
        "user_id": asked.user_id,
        "thread_id": asked.thread_id,
        "seq": seq,
        "agent_type": agent_type,
        "lane": asked.lane,
        "query": query,
        "metadata": to_json(asked.metadata).decode(),
        "options": None if asked.options is None else to_json(asked.options).decode(),
        "history": to_json(asked.history).decode() if asked.history else None,
        "webhook_url": asked.webhook_url,
        "wait_seconds": asked.wait_seconds,
        "user_message_id": asked.user_message_id or new_id(),
        "message_id": new_id(),
        "retry_of": asked.retry_of,
        "crashes": int(asked.suspect),
        "deadline_seconds": asked.deadline_seconds,
    }
    run = await _insert(connection, asked, values, admission, later=later)
    if run is None:
        raise UnknownAgent(str(agent_type), asked.allowed_agents)
    return Accepted(run, None if later else run.queue_entry, superseded)


async def _check_last(connection: AsyncConnection, asked: Query) -> None:
    """See that nothing came between a query and the run that it goes on from, if it names one."""
    if asked.after_run is None:
        return
    last = await connection.scalar(_LAST, {"thread_id": asked.thread_id})
    if last != asked.after_run:
        raise NotLast


async def attachments_of(
    connection: AsyncConnection, asked: Query, agent_type: str | None, attached: list[dict[str, Any]] | None = None
) -> str | None:
    """Store the files that come with a query; returns what its row keeps of its attachments, or of those of another.

    Raises:
        WrongAttachment, QueueFull: see `attach`.
    """
    if attached:
        return to_json(attached).decode()
    if asked.attachments is None:
        return None
    kept = await attach(
        connection, {None: asked.attachments}, tenant=asked.tenant, user_id=asked.user_id, agent_type=agent_type
    )
    return kept[None]


async def _begin_thread(connection: AsyncConnection, asked: Query) -> None:
    """Begin the thread, unless it is there."""
    _check_agent(asked, asked.agent_type)
    values = {"thread_id": asked.thread_id, "tenant": asked.tenant, "user_id": asked.user_id}
    if await connection.scalar(_BEGIN_THREAD, values | {"agent_type": asked.agent_type}) is None:
        raise UnknownAgent(str(asked.agent_type), asked.allowed_agents)


async def _place_in_thread(connection: AsyncConnection, asked: Query, *, later: bool) -> tuple[str, int | None]:
    """Lock the thread, and take the next place in it; returns its agent and the place, None where it starts later."""
    if asked.begins_thread:
        await _begin_thread(connection, asked)
    owner = {"thread_id": asked.thread_id, "tenant": asked.tenant, "user_id": asked.user_id}
    found = (await connection.execute(_FIND_THREAD if later else TAKE_SEQ, owner)).one_or_none()
    if found is None:
        raise NotFound("thread")
    return found.agent_type, None if later else found.last_seq


async def _make_way(connection: AsyncConnection, thread_id: UUID, strategy: Strategy) -> list[Cancellation]:
    """Apply the strategy to the unfinished runs of a thread; returns those that are cancelled.

    It is a new statement: it sees the commits made while the one before waited for the thread.

    Raises:
        ThreadBusy: there are some, and the strategy is `reject`.
    """
    match strategy:
        case Strategy.REJECT:
            if busy := await connection.scalar(_BUSY, {"thread_id": thread_id}):
                raise ThreadBusy(busy)
            return []
        case Strategy.INTERRUPT | Strategy.ROLLBACK:
            return await supersede(connection, thread_id, roll_back=strategy is Strategy.ROLLBACK)
        case Strategy.ENQUEUE | Strategy.STEER:
            return []


async def _insert(
    connection: AsyncConnection, asked: Query, values: dict[str, Any], admission: Admission | None, *, later: bool
) -> StoredRun | None:
    """Store the run; None where no worker has registered its agent."""
    statement = _INSERT
    if asked.schedule_id is not None:
        statement, values = (
            _INSERT_OF_TICK,
            {**values, "start_at": asked.start_at, "schedule_id": asked.schedule_id},
        )
    if later:
        statement, admission = _INSERT_LATER, admission and admission.of_later
        values = values | {"start_at": asked.start_at, "start_after_seconds": asked.start_after_seconds}

    async def insert(limits: dict[str, Any]) -> tuple[Room, StoredRun | None]:
        [stored] = read_pairs(await connection.execute(statement, values | limits), Room, StoredRun)
        return stored

    if admission is None:
        _, run = await insert(NO_LIMITS)
        return run
    return await admission.admit(connection, asked.tenant, asked.user_id, insert)
