"""The thread that a response is asked in: a new one, that of a conversation, or one that goes on from a response."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.problems import invalid
from agent_relay.api.protocols.openai.response_object import Beside
from agent_relay.api.requests.identity import Owner
from agent_relay.shared.attachments import Attached, attached_of
from agent_relay.shared.clock import new_id
from agent_relay.shared.errors import NotFound, UnknownAgent, WrongMessage
from agent_relay.shared.idempotency import Key, keep
from agent_relay.shared.rows import RunRow
from agent_relay.shared.runs.fork import Fork, fork
from agent_relay.shared.runs.said import Said, said_of

_NEW = text("""
    INSERT INTO threads (id, tenant, user_id, agent_type, metadata)
    VALUES (:id, :tenant, :user_id, :agent_type, CAST(:metadata AS json))
""")

_IS_KNOWN = text("SELECT EXISTS (SELECT FROM agents WHERE agent_type = :agent_type)")

_ADOPT = text("""
    UPDATE threads SET agent_type = :agent_type
    WHERE id = :id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL AND agent_type = ''
""")

_AGENT = text("""
    SELECT agent_type FROM threads
    WHERE id = :id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
""")

_DISCARD = text("DELETE FROM threads WHERE id = :id AND NOT EXISTS (SELECT FROM runs WHERE thread_id = :id)")

_BESIDE = text("""
    SELECT history, attachments, (
        SELECT id FROM runs AS former
        WHERE former.thread_id = runs.thread_id AND former.seq < runs.seq AND NOT former.rolled_back
        ORDER BY former.seq DESC LIMIT 1
    ) AS previous
    FROM runs WHERE id = :id
""")

NO_AGENT = ""
"""Of a conversation that nothing was asked in: its first response says which agent it is with."""


async def beside_of(
    database: AsyncEngine, run_id: UUID, *, background: bool | None = None
) -> tuple[Beside, list[Said], list[Attached]]:
    """Read what a response says beside its run's row; what was said before its query; and what is attached to that."""
    async with database.connect() as connection:
        row = (await connection.execute(_BESIDE, {"id": run_id})).one_or_none()
    if row is None:
        raise NotFound("response")
    said = said_of(row.history)
    instructions = next((each["content"] for each in said if each["role"] == "instructions"), None)
    return Beside(row.previous, instructions, background), said, attached_of(row.attachments)


async def new_thread(
    database: AsyncEngine, caller: Owner, agent_type: str, metadata: Mapping[str, str], key: Key | None = None
) -> UUID:
    """Begin a thread with an agent, or with `NO_AGENT`.

    Raises:
        Repeated, KeyReused, KeyInUse: nothing is stored under this key now, see `keep`.
        UnknownAgent: no worker has registered the agent, or the key may not ask it.
    """
    thread_id = new_id()
    async with database.begin() as connection:
        await keep(connection, key, thread_id)
        if agent_type != NO_AGENT:
            await _check_agent(caller, agent_type, known=await connection.scalar(_IS_KNOWN, {"agent_type": agent_type}))
        values = {"agent_type": agent_type, "metadata": to_json(metadata).decode()}
        await connection.execute(_NEW, _named(caller, thread_id) | values)
    return thread_id


async def _check_agent(caller: Owner, agent_type: str, *, known: bool | None) -> None:
    if not known or not caller.may_ask(agent_type):
        raise UnknownAgent(agent_type, caller.allowed_agents)


async def enter(database: AsyncEngine, caller: Owner, thread_id: UUID, agent_type: str) -> None:
    """See that a conversation is with an agent; one that nothing was asked in is from now on.

    Raises:
        NotFound: there is no such conversation.
        UnknownAgent: no worker has registered the agent, or the key may not ask it.
        Refused: 422, it is with another agent.
    """
    named = _named(caller, thread_id)
    async with database.begin() as connection:
        is_with = await connection.scalar(_AGENT, named)
        if is_with == NO_AGENT:
            await _check_agent(caller, agent_type, known=await connection.scalar(_IS_KNOWN, {"agent_type": agent_type}))
            await connection.execute(_ADOPT, named | {"agent_type": agent_type})
            is_with = await connection.scalar(_AGENT, named)
    if is_with is None:
        raise NotFound("conversation")
    if is_with != agent_type:
        raise invalid("/model", "other_model", f"This conversation is with {is_with}")


async def discard(database: AsyncEngine, thread_id: UUID) -> None:
    """Remove a thread that was made for a run which is not in it."""
    async with database.begin() as connection:
        await connection.execute(_DISCARD, {"id": thread_id})


async def fork_after(database: AsyncEngine, caller: Owner, run: RunRow) -> UUID:
    """Copy the thread of a run up to that run.

    Raises:
        ThreadBusy: the run has not ended.
    """
    assert run.thread_id is not None, "only a run of a thread is gone on from"  # noqa: S101
    thread_id = new_id()
    for last in (run.message_id, run.user_message_id):
        asked = Fork(
            tenant=caller.tenant,
            user_id=caller.user_id,
            thread_id=run.thread_id,
            through_message_id=last,
            title=None,
            allowed_agents=caller.allowed_agents,
        )
        try:
            async with database.begin() as connection:
                await fork(connection, asked, thread_id)
        except WrongMessage:  # It has no answer: then its query is the last message.
            continue
        return thread_id
    raise NotFound("response")


def _named(caller: Owner, thread_id: UUID) -> dict[str, object]:
    return {"id": thread_id, "tenant": caller.tenant, "user_id": caller.user_id}
