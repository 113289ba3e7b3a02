"""Fork a thread: a new one begins with copies of its messages, and of the messages of its model."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from agent_relay.shared.errors import NotFound, ThreadBusy, UnknownAgent, WrongMessage

_THROUGH = text("""
    SELECT run_id, seq, finished_at IS NOT NULL AS ended,
        EXISTS (SELECT FROM messages AS later WHERE later.run_id = runs.id AND later.position > messages.position)
            AS has_answer
    FROM messages JOIN runs ON runs.id = run_id
    WHERE messages.id = :message_id AND messages.thread_id = :thread_id
""")

_OWNED = text("""
    SELECT agent_type, last_seq FROM threads
    WHERE id = :thread_id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL FOR SHARE
""")

_THREAD = text("""
    INSERT INTO threads (id, tenant, user_id, agent_type, title, metadata, options, last_seq)
    SELECT :new_id, tenant, user_id, agent_type, coalesce(:title, title), metadata, options, :last_seq
    FROM threads WHERE id = :thread_id
""")

_EXCHANGES = text("""
    WITH taken AS MATERIALIZED (
        SELECT *, gen_random_uuid() AS new_id, gen_random_uuid() AS new_query, gen_random_uuid() AS new_answer
        FROM runs
        WHERE thread_id = :thread_id AND seq <= :last_seq AND finished_at IS NOT NULL AND NOT rolled_back
    ), copied AS (
        INSERT INTO runs (id, tenant, user_id, thread_id, seq, agent_type, pool, text_output, query, metadata, history,
                          attachments, user_message_id, message_id, status, attempt, last_entry, partial_output, output,
                          last_message, heard, created_at, deadline_at, started_at, finished_at, end_told)
        SELECT new_id, tenant, user_id, :new_id, seq, agent_type, pool, text_output, query, metadata, history,
            attachments,
            new_query, new_answer, CASE status WHEN 'failed' THEN 'cancelled' ELSE status END, attempt, last_entry,
            CASE status WHEN 'failed' THEN NULL ELSE partial_output END, output,
            last_message, last_message, created_at, deadline_at, started_at, finished_at, true
        FROM taken
    ), transcribed AS (
        INSERT INTO transcripts (run_id, messages, attempt)
        SELECT new_id, messages, transcripts.attempt FROM taken JOIN transcripts ON run_id = id
    ), said AS MATERIALIZED (
        SELECT messages.*, new_id,
            CASE WHEN place > 0 THEN gen_random_uuid() WHEN role = 'user' THEN new_query ELSE new_answer END AS copy_id
        FROM taken JOIN messages ON messages.run_id = taken.id
    ), steered AS (
        INSERT INTO run_messages (id, run_id, place, query, attachments, metadata, deadline_seconds, next_run_id,
                                  next_message_id, created_at)
        SELECT copy_id, new_id, place, content, attachments, '{}', 0, gen_random_uuid(), gen_random_uuid(), created_at
        FROM said WHERE place > 0
    )
    INSERT INTO messages (id, thread_id, run_id, position, place, role, content, attachments, metadata, created_at)
    SELECT copy_id, :new_id, new_id, position, place, role, content, attachments,
        metadata || jsonb_build_object('run_id', new_id), created_at
    FROM said
""")
"""Usage, webhooks and event logs stay with the old runs. A failed run gave the model nothing: its copy is `cancelled`,
so that it is no dead letter. Only messages into a run that its agent has got are copied: all others are runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """The thread to copy, by its owner, and the attributes of the copy."""

    tenant: str
    user_id: UUID
    thread_id: UUID
    through_message_id: UUID | None
    """The last message to copy; None for all."""
    title: str | None
    """None for the title of the thread."""
    allowed_agents: frozenset[str] | None
    """The agents that the caller's key may ask; None for all."""


async def fork(connection: AsyncConnection, asked: Fork, new_id: UUID) -> None:
    """Make a thread of this id that is a copy of another one; runs that have not ended are left out.

    Raises:
        NotFound: the thread does not exist for this owner.
        UnknownAgent: the caller's key may not ask its agent.
        WrongMessage: it has no such message, or a query is named that has an answer.
        ThreadBusy: the run of that message has not ended.
    """
    owner = {"thread_id": asked.thread_id, "tenant": asked.tenant, "user_id": asked.user_id}
    thread = (await connection.execute(_OWNED, owner)).one_or_none()
    if thread is None:
        raise NotFound("thread")
    if asked.allowed_agents is not None and thread.agent_type not in asked.allowed_agents:
        raise UnknownAgent(thread.agent_type, asked.allowed_agents)
    through = asked.through_message_id
    last_seq = thread.last_seq if through is None else await _last_seq(connection, asked.thread_id, through)
    values = {"thread_id": asked.thread_id, "new_id": new_id, "last_seq": last_seq}
    await connection.execute(_THREAD, values | {"title": asked.title})
    await connection.execute(_EXCHANGES, values)


async def _last_seq(connection: AsyncConnection, thread_id: UUID, message_id: UUID) -> int:
    named = (await connection.execute(_THROUGH, {"thread_id": thread_id, "message_id": message_id})).one_or_none()
    if named is None:
        raise WrongMessage("through_message_id", "This thread has no such message.")
    if not named.ended:
        raise ThreadBusy(named.run_id)
    if named.has_answer:
        raise WrongMessage("through_message_id", "This query has an answer; give the id of the answer.")
    return named.seq
