"""See that the options which are chosen fit the schema of their agent."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.json_schema import check_value
from agent_relay.api.problems import invalid
from agent_relay.api.requests.identity import Owner

_SCHEMA = text("""
    SELECT agent_type, options_schema FROM agents WHERE agent_type = coalesce(CAST(:agent_type AS text), (
        SELECT agent_type FROM threads
        WHERE id = :thread_id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL))
""")


async def check_options(
    database: AsyncEngine,
    caller: Owner,
    options: dict[str, Any],
    *,
    agent_type: str | None = None,
    thread_id: UUID | None = None,
    pointer: str = "/options",
) -> None:
    """See that options fit the schema of an agent, or of the agent of a thread.

    An agent or a thread that is not there, or not for this caller, is refused later, by the statement that stores.

    Raises:
        Refused: 422, they do not, or the agent has none.
    """
    values = {"agent_type": agent_type, "thread_id": thread_id, "tenant": caller.tenant, "user_id": caller.user_id}
    async with database.connect() as connection:
        agent = (await connection.execute(_SCHEMA, values)).one_or_none()
    if agent is None or not caller.may_ask(agent.agent_type):
        return
    if agent.options_schema is None:
        raise invalid(pointer, "no_options", "This agent has no options: leave it out")
    check_value(options, agent.options_schema, pointer, "the agent's options")
