"""Accept a query: once this commits, it will be answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.clock import new_id
from shared.errors import NotFound, ThreadBusy, UnknownAgent
from shared.lanes import Lane, Ring


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked: of a thread, or of an agent without one."""

    tenant: str
    user_id: UUID
    thread_id: UUID | None
    agent_type: str | None
    query: str
    deadline_seconds: float
    reject_if_busy: bool = False
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Accepted:
    """The run's id, and the ring that calls a worker for it; ring after the commit."""

    run_id: UUID
    ring: Ring


_LOCK_THREAD = text("""
    SELECT agent_type FROM threads
    WHERE id = :thread_id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
    FOR NO KEY UPDATE
""")

_BUSY = text(
    "SELECT id FROM runs WHERE thread_id = :thread_id AND status IN ('queued', 'running') ORDER BY seq LIMIT 1"
)

_AGENT = text("SELECT pool, text_output FROM agents WHERE agent_type = :agent_type")

_NEXT_SEQ = text(
    "UPDATE threads SET last_seq = last_seq + 1, updated_at = now() WHERE id = :thread_id RETURNING last_seq"
)

_INSERT = text("""
    WITH run AS (
        INSERT INTO runs (id, tenant, user_id, thread_id, seq, agent_type, pool, text_output, lane, query, metadata,
                          user_message_id, message_id, deadline_at)
        VALUES (:id, :tenant, :user_id, :thread_id, :seq, :agent_type, :pool, :text_output, :lane, :query,
                CAST(:metadata AS jsonb), :user_message_id, :message_id,
                now() + make_interval(secs => :deadline_seconds))
        RETURNING *
    ), message AS (
        INSERT INTO messages (id, thread_id, run_id, position, role, content, metadata)
        SELECT user_message_id, thread_id, id, 2 * seq, 'user', query, jsonb_build_object('run_id', id)
        FROM run WHERE thread_id IS NOT NULL
    )
    SELECT extract(epoch FROM created_at) FROM run
""")


async def accept(database: AsyncEngine, asked: Query) -> Accepted:
    """Store the query as a queued run, with its message if it belongs to a thread.

    Raises:
        NotFound: the thread does not exist for this user.
        UnknownAgent: no worker has registered the agent.
        ThreadBusy: the thread has an unfinished run and the caller would not wait.
    """
    run_id = new_id()
    async with database.begin() as connection:
        agent_type, seq = asked.agent_type, None
        if asked.thread_id is not None:
            owner = {"thread_id": asked.thread_id, "tenant": asked.tenant, "user_id": asked.user_id}
            agent_type = await connection.scalar(_LOCK_THREAD, owner)
            if agent_type is None:
                raise NotFound("thread")
            if asked.reject_if_busy and (busy := await connection.scalar(_BUSY, {"thread_id": asked.thread_id})):
                raise ThreadBusy(busy)
            seq = await connection.scalar(_NEXT_SEQ, {"thread_id": asked.thread_id})
        agent = (await connection.execute(_AGENT, {"agent_type": agent_type})).one_or_none()
        if agent is None:
            raise UnknownAgent(str(agent_type))
        created_at = await connection.scalar(
            _INSERT,
            {
                "id": run_id,
                "tenant": asked.tenant,
                "user_id": asked.user_id,
                "thread_id": asked.thread_id,
                "seq": seq,
                "agent_type": agent_type,
                "pool": agent.pool,
                "text_output": agent.text_output,
                "lane": Lane.INTERACTIVE,
                "query": asked.query,
                "metadata": to_json(asked.metadata).decode(),
                "user_message_id": new_id(),
                "message_id": new_id(),
                "deadline_seconds": asked.deadline_seconds,
            },
        )
    return Accepted(run_id, Ring(run_id, 1, agent.pool, Lane.INTERACTIVE, float(created_at or 0)))
