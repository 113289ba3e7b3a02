"""Chats of the AI SDK: each is a thread of its user. The ids of chats and messages are text that a client chooses.

Such an id becomes a UUID that is made from it and from whom it belongs to: the same text of another user's is another
chat. A UUID of the service's own stands for itself where it is the caller's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID, uuid5

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.api.queries import owned_run
from agent_relay.api.requests.identity import Owner
from agent_relay.shared.database.tables import IS_UNFINISHED
from agent_relay.shared.event_log import Id
from agent_relay.shared.rows import RunRow

_CHATS = UUID("6f0d7a6e-0a63-5d0c-9e1c-2f3a0b8f4c11")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)

_FIND = text("""
    SELECT id, agent_type FROM threads
    WHERE id = ANY(CAST(:ids AS uuid[])) AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
    ORDER BY id <> :given LIMIT 1
""")

_OF_QUERY = text("""
    SELECT id FROM runs
    WHERE thread_id = :thread_id AND user_message_id = ANY(CAST(:ids AS uuid[])) AND NOT rolled_back
    ORDER BY seq DESC LIMIT 1
""")

_OF_ANSWER = text("""
    SELECT id, wait_attempt, wait_entry FROM runs
    WHERE thread_id = :thread_id AND message_id = :message_id AND NOT rolled_back
""")

_UNFINISHED = text(f"""
    SELECT id FROM runs WHERE thread_id = :thread_id AND {IS_UNFINISHED} AND NOT starts_later ORDER BY seq LIMIT 1
""")  # noqa: S608  (a constant)


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat, and its thread."""

    thread_id: UUID
    agent_type: str | None
    """The agent of the thread; None where it has not begun."""

    def message_id(self, given: str) -> UUID:
        """Return what a new message of the user's is called here, from what its client calls it."""
        return uuid5(self.thread_id, given)


@dataclass(frozen=True, slots=True)
class Waited:
    """A run whose answer a client has, and where it came to wait last."""

    run: RunRow
    attempt: int | None
    """The attempt that came to wait; None where none has."""
    pause: Id | None
    """The event that the client's stream ended with."""


async def find_chat(database: AsyncEngine, caller: Owner, chat_id: str) -> Chat:
    """Find the thread of a chat, or the id that it will have.

    Raises:
        NotFound: the caller has a token for other threads.
    """
    own = uuid5(uuid5(_CHATS, caller.tenant), f"{caller.user_id} {chat_id}")
    given = _uuid(chat_id) or own
    values = {"ids": [own, given], "given": given, "tenant": caller.tenant, "user_id": caller.user_id}
    async with database.connect() as connection:
        found = (await connection.execute(_FIND, values)).one_or_none()
    chat = Chat(own, None) if found is None else Chat(found.id, found.agent_type)
    caller.check_thread(chat.thread_id)
    return chat


async def run_of_query(database: AsyncEngine, caller: Owner, chat: Chat, message_id: str) -> RunRow | None:
    """Find the run that a message of the user's has asked for; None where there is none, or it was replaced."""
    ids = [chat.message_id(message_id), *filter(None, [_uuid(message_id)])]
    async with database.connect() as connection:
        run_id = await connection.scalar(_OF_QUERY, {"thread_id": chat.thread_id, "ids": ids})
    return None if run_id is None else await owned_run(database, caller, run_id)


async def run_of_answer(database: AsyncEngine, caller: Owner, chat: Chat, message_id: str) -> Waited | None:
    """Find the run that gives an answer."""
    values = {"thread_id": chat.thread_id, "message_id": _uuid(message_id)}
    async with database.connect() as connection:
        found = (await connection.execute(_OF_ANSWER, values)).one_or_none()
    if found is None:
        return None
    pause = None if found.wait_attempt is None else Id(found.wait_attempt, found.wait_entry + 1)
    return Waited(await owned_run(database, caller, found.id), found.wait_attempt, pause)


async def unfinished_run(database: AsyncEngine, caller: Owner, chat: Chat) -> RunRow | None:
    """Find the first run of a chat that has not ended."""
    async with database.connect() as connection:
        run_id = await connection.scalar(_UNFINISHED, {"thread_id": chat.thread_id})
    return None if run_id is None else await owned_run(database, caller, run_id)


def _uuid(given: str) -> UUID | None:
    return UUID(given) if _UUID.fullmatch(given) else None
