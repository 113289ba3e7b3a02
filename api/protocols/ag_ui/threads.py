"""Threads and runs of AG-UI, whose ids are text that a client chooses.

Such an id becomes a UUID that is made from it and from whom it belongs to: the same text of another user's is another
thread. A UUID of a thread of the caller's stands for itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.problems import Refused
from agent_relay.api.queries import owned_run
from agent_relay.api.requests.identity import Owner
from agent_relay.shared.errors import UnknownAgent
from agent_relay.shared.event_log import HIGHEST, Id
from agent_relay.shared.rows import RunRow

_THREADS = UUID("4b1f7a52-5f0e-5c1b-9d61-7f1f0a3c2e90")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)

_FIND = text("""
    SELECT text_output, threads.id, threads.agent_type FROM agents LEFT JOIN threads
    ON threads.id = ANY(CAST(:ids AS uuid[])) AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
    WHERE agents.agent_type = :agent_type
    ORDER BY threads.id <> :given LIMIT 1
""")

_OF_MESSAGE = text("""
    SELECT id FROM runs WHERE thread_id = :thread_id AND user_message_id = :message_id ORDER BY seq DESC LIMIT 1
""")

_WAITING = text("""
    SELECT id FROM runs WHERE thread_id = :thread_id AND status = 'waiting' AND NOT rolled_back ORDER BY seq LIMIT 1
""")

_WAIT = text("""
    SELECT id, attempt_of_wait, wait_attempt, wait_entry FROM runs JOIN (
        SELECT run_id, attempt AS attempt_of_wait FROM run_requests WHERE request_id = ANY(CAST(:request_ids AS text[]))
    ) AS asked ON asked.run_id = runs.id
    WHERE thread_id = :thread_id AND NOT rolled_back
    ORDER BY seq DESC, attempt_of_wait DESC LIMIT 1
""")


@dataclass(frozen=True, slots=True)
class ClientThread:
    """A thread as a client of AG-UI names it."""

    id: UUID
    is_there: bool
    text_output: bool
    """Whether its agent answers with text."""

    def message_id(self, run_id: str) -> UUID:
        """Return what the query is called that a client's run asks."""
        return uuid5(self.id, run_id)


@dataclass(frozen=True, slots=True)
class Waited:
    """A run that has waited, and where it came to wait for something."""

    run: RunRow
    attempt: int
    pause: Id
    """The event that the client's stream ended with, or one behind it."""
    is_over: bool
    """Whether it has gone on since, and come to wait again."""


async def find_thread(database: AsyncEngine, caller: Owner, agent_type: str, thread_id: str) -> ClientThread:
    """Find a thread, or the id that it will have.

    Raises:
        UnknownAgent: there is no such agent, or the key may not ask it.
        Refused: 409, the thread is one of another agent.
    """
    own = uuid5(uuid5(_THREADS, caller.tenant), f"{caller.user_id} {thread_id}")
    given = UUID(thread_id) if _UUID.fullmatch(thread_id) else own
    values = {"ids": [own, given], "given": given, "agent_type": agent_type}
    values |= {"tenant": caller.tenant, "user_id": caller.user_id}
    found = None
    if caller.may_ask(agent_type):
        async with database.connect() as connection:
            found = (await connection.execute(_FIND, values)).one_or_none()
    if found is None:
        raise UnknownAgent(agent_type, caller.allowed_agents)
    if found.id is not None and found.agent_type != agent_type:
        raise Refused(409, f"The agent of this thread is {found.agent_type}: begin another.", code="other_agent")
    return ClientThread(found.id or own, found.id is not None, found.text_output)


async def run_of(database: AsyncEngine, caller: Owner, thread: ClientThread, run_id: str) -> RunRow | None:
    """Find the run that a client's run has begun; None where it has not."""
    values = {"thread_id": thread.id, "message_id": thread.message_id(run_id)}
    async with database.connect() as connection:
        found = await connection.scalar(_OF_MESSAGE, values)
    return None if found is None else await owned_run(database, caller, found)


async def check_waits_for_nothing(database: AsyncEngine, thread: ClientThread) -> None:
    """See that no run of a thread waits for answers: a query would wait behind it for as long.

    Raises:
        Refused: 409, one does.
    """
    async with database.connect() as connection:
        waiting = await connection.scalar(_WAITING, {"thread_id": thread.id})
    if waiting is not None:
        message = f"Run {waiting} of this thread waits for answers: give them with `resume`, or cancel it."
        raise Refused(409, message, code="run_waits", run_id=str(waiting))


async def run_that_waited(
    database: AsyncEngine, caller: Owner, thread: ClientThread, request_ids: list[str]
) -> Waited | None:
    """Find the last run of a thread that has asked for any of this."""
    values = {"thread_id": thread.id, "request_ids": request_ids}
    async with database.connect() as connection:
        found = (await connection.execute(_WAIT, values)).one_or_none()
    if found is None:
        return None
    run = await owned_run(database, caller, found.id)
    is_over = found.attempt_of_wait != found.wait_attempt
    n = HIGHEST if is_over else found.wait_entry + 1
    return Waited(run, found.attempt_of_wait, Id(found.attempt_of_wait, n), is_over)
