"""Accept a query: once this commits, it will be answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.clock import new_id
from shared.database import store
from shared.errors import NotFound, ThreadBusy, UnknownAgent
from shared.idempotency import Key, keep
from shared.lanes import Lane, Ring
from shared.runs.admission import FULL, NO_LIMITS, Admission
from shared.runs.cancel import Cancellation, supersede
from shared.runs.finish import ring_of


class Strategy(StrEnum):
    """What becomes of a query to a thread that has unfinished runs."""

    ENQUEUE = "enqueue"
    """It waits behind them."""
    REJECT = "reject"
    """It is refused."""
    INTERRUPT = "interrupt"
    """They are cancelled; what they produced stays."""
    ROLLBACK = "rollback"
    """They are cancelled, and their messages erased."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked: of a thread, or of an agent without one."""

    tenant: str
    user_id: UUID
    thread_id: UUID | None
    agent_type: str | None
    query: str
    deadline_seconds: float
    strategy: Strategy = Strategy.ENQUEUE
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    webhook_url: str | None = None
    """Where to tell of the end."""
    allowed_agents: frozenset[str] | None = None
    """The agents that the caller's key may ask; None for all."""
    lane: Lane = Lane.INTERACTIVE
    retry_of: UUID | None = None
    """The run that this one repeats."""
    suspect: bool = False
    """Whether it may be what kills workers, so that each attempt is made in a process of its own."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The run's row, with whether its agent is `served`, and the ring that calls a worker; ring after the commit."""

    run: Any
    ring: Ring
    superseded: list[Cancellation]
    """The runs of the thread that were cancelled for it; those who follow or hold them are still to be told."""

    @property
    def transaction_id(self) -> str:
        """Of the transaction that stored it."""
        return self.run.transaction_id


_TAKE_SEQ = text("""
    UPDATE threads SET last_seq = last_seq + 1, updated_at = now()
    WHERE id = :thread_id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
    RETURNING last_seq, agent_type
""")

_BUSY = text(
    "SELECT id FROM runs WHERE thread_id = :thread_id AND status IN ('queued', 'running') ORDER BY seq LIMIT 1"
)

_INSERT = text(f"""
    WITH room AS MATERIALIZED ({FULL}), run AS (
        INSERT INTO runs (id, tenant, user_id, thread_id, seq, agent_type, pool, text_output, lane, query, metadata,
                          webhook_url, user_message_id, message_id, retry_of, crashes, deadline_at)
        SELECT :id, :tenant, :user_id, CAST(:thread_id AS uuid), CAST(:seq AS bigint), agent_type, pool, text_output,
               :lane, :query, CAST(:metadata AS json), :webhook_url,
               CAST(:user_message_id AS uuid), CAST(:message_id AS uuid), CAST(:retry_of AS uuid),
               CAST(:crashes AS int), now() + make_interval(secs => :deadline_seconds)
        FROM agents, room
        WHERE agent_type = :agent_type
          AND (user_queue_full OR tenant_queue_full OR queue_full OR queue_slow OR agent_not_served) IS NOT TRUE
        RETURNING *
    ), message AS (
        INSERT INTO messages (id, thread_id, run_id, position, role, content, metadata)
        SELECT user_message_id, thread_id, id, 2 * seq, 'user', query, jsonb_build_object('run_id', id)
        FROM run WHERE thread_id IS NOT NULL
    )
    SELECT *, CAST(pg_current_xact_id() AS text) AS transaction_id FROM room LEFT JOIN run ON true
""")  # noqa: S608  (a constant)


async def accept(
    database: AsyncEngine, asked: Query, key: Key | None = None, admission: Admission | None = None
) -> Accepted:
    """Store the query as a queued run, with its message if it belongs to a thread and the key it was asked under.

    Where the reply to the commit is lost, the database is asked what became of it.

    Raises:
        Repeated, KeyReused, KeyInUse: nothing is stored under this key now, see `keep`.
        NotFound: the thread does not exist for this user.
        UnknownAgent: no worker has registered the agent.
        AgentNotServed: no worker has served the agent for a while; without `admission`, that is no reason.
        ThreadBusy: the thread has an unfinished run and the caller would not wait.
        QueueFull: as many runs wait as may; without `admission`, any number may.
    """
    return await store(database, lambda connection: accept_in(connection, asked, key, admission))


def _check_agent(asked: Query, agent_type: str | None) -> None:
    if asked.allowed_agents is not None and agent_type not in asked.allowed_agents:
        raise UnknownAgent(str(agent_type), asked.allowed_agents)


async def accept_in(
    connection: AsyncConnection, asked: Query, key: Key | None = None, admission: Admission | None = None
) -> Accepted:
    """Store the query in a transaction of the caller's; see `accept`."""
    run_id, agent_type, seq, superseded = new_id(), asked.agent_type, None, list[Cancellation]()
    await keep(connection, key, run_id)
    if asked.thread_id is None:
        _check_agent(asked, agent_type)
    else:
        owner = {"thread_id": asked.thread_id, "tenant": asked.tenant, "user_id": asked.user_id}
        thread = (await connection.execute(_TAKE_SEQ, owner)).one_or_none()
        if thread is None:
            raise NotFound("thread")
        agent_type, seq = thread.agent_type, thread.last_seq
        _check_agent(asked, agent_type)
        # A new statement, which sees what was committed while this one waited for the thread.
        match asked.strategy:
            case Strategy.REJECT:
                if busy := await connection.scalar(_BUSY, {"thread_id": asked.thread_id}):
                    raise ThreadBusy(busy)
            case Strategy.INTERRUPT | Strategy.ROLLBACK:
                roll_back = asked.strategy is Strategy.ROLLBACK
                superseded = await supersede(connection, asked.thread_id, roll_back=roll_back)
            case Strategy.ENQUEUE:
                pass
    values = {
        "id": run_id,
        "tenant": asked.tenant,
        "user_id": asked.user_id,
        "thread_id": asked.thread_id,
        "seq": seq,
        "agent_type": agent_type,
        "lane": asked.lane,
        "query": asked.query,
        "metadata": to_json(asked.metadata).decode(),
        "webhook_url": asked.webhook_url,
        "user_message_id": new_id(),
        "message_id": new_id(),
        "retry_of": asked.retry_of,
        "crashes": int(asked.suspect),
        "deadline_seconds": asked.deadline_seconds,
    }

    async def insert(limits: dict[str, Any]) -> Any:
        return (await connection.execute(_INSERT, values | limits)).one()

    run = await (admission.admit(connection, asked.tenant, asked.user_id, insert) if admission else insert(NO_LIMITS))
    if run.id is None:
        raise UnknownAgent(str(agent_type), asked.allowed_agents)
    return Accepted(run, ring_of(run), superseded)
