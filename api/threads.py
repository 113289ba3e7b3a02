"""Routes: threads, the conversations of a user with an agent."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.dependencies import Service
from api.idempotency import REPLAYED, IdempotencyKey, once
from api.identity import Caller, Owner
from api.pages import Cursor, Limit, Page, bounded
from api.problems import responses
from api.resources import Message, NewThread, Thread, ThreadId, ThreadWithMessages
from api.run_cancel import announce
from api.strict import StrictRoute
from shared.clock import new_id
from shared.errors import NotFound, UnknownAgent
from shared.idempotency import Key, Repeated, keep
from shared.runs.cancel import supersede

router = APIRouter(prefix="/threads", tags=["threads"], route_class=StrictRoute)

LAST_MESSAGES = 100

_CREATE = text("""
    INSERT INTO threads (id, tenant, user_id, agent_type, metadata)
    SELECT :id, :tenant, :user_id, agent_type, CAST(:metadata AS json) FROM agents WHERE agent_type = :agent_type
    RETURNING *
""")

_SELECT_PAGE = """
    SELECT * FROM threads
    WHERE tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL
      AND (CAST(:at AS timestamptz) IS NULL OR (created_at, id) < (:at, :id))
    ORDER BY created_at DESC, id DESC LIMIT :limit
"""

_PAGE = text(bounded(_SELECT_PAGE, "octet_length(CAST(metadata AS text))", "created_at DESC, id DESC"))

_OWNED = text("SELECT * FROM threads WHERE id = :id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL")

_SIZE = "octet_length(content)"

_SELECT_LAST = f"SELECT * FROM messages WHERE thread_id = :id ORDER BY position DESC LIMIT {LAST_MESSAGES}"  # noqa: S608

_LAST_MESSAGES = text(f"SELECT * FROM ({bounded(_SELECT_LAST, _SIZE, 'position DESC')}) AS last ORDER BY position")  # noqa: S608

_SELECT_MESSAGES = """
    SELECT * FROM messages
    WHERE thread_id = :id AND (CAST(:position AS bigint) IS NULL OR position > :position)
    ORDER BY position LIMIT :limit
"""

_MESSAGES = text(bounded(_SELECT_MESSAGES, _SIZE, "position"))

_DELETE = text("""
    UPDATE threads SET deleted_at = now()
    WHERE id = :id AND tenant = :tenant AND user_id = :user_id AND deleted_at IS NULL RETURNING id
""")


@router.post(
    "",
    status_code=201,
    summary="Begin a thread",
    response_description="The thread; `Location` says where it is.",
    responses=responses(409, 413, 415),
)
async def create_thread(
    new: NewThread, service: Service, caller: Caller, key: IdempotencyKey, response: Response
) -> Thread:
    """Begin a conversation with an agent."""
    try:
        row = await once(lambda: _create(service.database, caller, new, key))
    except Repeated as repeated:
        row = await owned_thread(service.database, caller, repeated.created)
        response.headers.update(REPLAYED)
    response.headers["Location"] = service.url_of("threads", row.id)
    return _thread(row)


@router.get("", summary="List your threads", response_description="A page of threads.", responses=responses())
async def list_threads(service: Service, caller: Caller, cursor: Cursor, limit: Limit = 20) -> Page[Thread]:
    """The user's threads, newest first."""
    at, thread_id = cursor.read(datetime.fromisoformat, UUID)
    async with service.database.connect() as connection:
        rows = await connection.execute(
            _PAGE,
            {"tenant": caller.tenant, "user_id": caller.user_id, "at": at, "id": thread_id, "limit": limit + 1},
        )
    return cursor.page(rows.all(), limit, _thread, lambda row: [row.created_at.isoformat(), row.id])


@router.get("/{thread_id}", summary="Read a thread", response_description="The thread.", responses=responses(404))
async def read_thread(thread_id: ThreadId, service: Service, caller: Caller) -> ThreadWithMessages:
    """The thread and its last 100 messages, fewer where they are large, in the order of the conversation."""
    row = await owned_thread(service.database, caller, thread_id)
    async with service.database.connect() as connection:
        messages = (await connection.execute(_LAST_MESSAGES, {"id": thread_id})).all()
    return ThreadWithMessages(**_thread(row).model_dump(), messages=[_message(message) for message in messages])


@router.get(
    "/{thread_id}/messages",
    summary="Page through a thread's messages",
    response_description="A page of messages.",
    responses=responses(404),
)
async def list_messages(
    thread_id: ThreadId, service: Service, caller: Caller, cursor: Cursor, limit: Limit = 20
) -> Page[Message]:
    """All messages, in the order of the conversation."""
    (position,) = cursor.read(int)
    await owned_thread(service.database, caller, thread_id)
    async with service.database.connect() as connection:
        rows = await connection.execute(_MESSAGES, {"id": thread_id, "position": position, "limit": limit + 1})
    return cursor.page(rows.all(), limit, _message, lambda row: [row.position])


@router.delete(
    "/{thread_id}",
    status_code=204,
    summary="Delete a thread",
    response_description="It is gone.",
    responses=responses(404),
)
async def delete_thread(thread_id: ThreadId, service: Service, caller: Caller) -> None:
    """Gone at once for every reader. Its unfinished runs are cancelled, and open streams end properly."""
    owner = {"id": thread_id, "tenant": caller.tenant, "user_id": caller.user_id}
    async with service.database.begin() as connection:
        if await connection.scalar(_DELETE, owner) is None:
            raise NotFound("thread")
        cancellations = await supersede(connection, thread_id, roll_back=False)
    await announce(service, cancellations)


async def owned_thread(database: AsyncEngine, caller: Owner, thread_id: UUID) -> Any:
    """Read the row of a thread.

    Raises:
        NotFound: it is not there, or not this caller's.
    """
    async with database.connect() as connection:
        owner = {"id": thread_id, "tenant": caller.tenant, "user_id": caller.user_id}
        row = (await connection.execute(_OWNED, owner)).one_or_none()
    if row is None:
        raise NotFound("thread")
    return row


async def _create(database: AsyncEngine, caller: Owner, new: NewThread, key: Key | None) -> Any:
    async with database.begin() as connection:
        if not caller.may_ask(new.agent_type):
            raise UnknownAgent(new.agent_type, caller.allowed_agents)
        thread_id = new_id()
        await keep(connection, key, thread_id)
        result = await connection.execute(
            _CREATE,
            {
                "id": thread_id,
                "tenant": caller.tenant,
                "user_id": caller.user_id,
                "agent_type": new.agent_type,
                "metadata": to_json(new.metadata).decode(),
            },
        )
        row = result.one_or_none()
        if row is None:
            raise UnknownAgent(new.agent_type, caller.allowed_agents)
    return row


def _thread(row: Any) -> Thread:
    return Thread(
        id=row.id,
        user_id=row.user_id,
        agent_type=row.agent_type,
        created_at=row.created_at,
        updated_at=row.updated_at,
        metadata=row.metadata,
    )


def _message(row: Any) -> Message:
    return Message(id=row.id, role=row.role, content=row.content, created_at=row.created_at, metadata=row.metadata)
