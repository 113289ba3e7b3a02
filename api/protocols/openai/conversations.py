"""Routes: conversations, of which each is a thread. Its first response says which agent it is with."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field
from pydantic_core import to_json
from sqlalchemy import text

from agent_relay.api.dependencies import Cancel, Database
from agent_relay.api.problems import invalid
from agent_relay.api.protocols.openai.content import parts_of
from agent_relay.api.protocols.openai.ids import MESSAGE, conversation_id, thread_of
from agent_relay.api.protocols.openai.parameters import Empty
from agent_relay.api.protocols.openai.response_object import INCOMPLETE
from agent_relay.api.protocols.openai.thread_of_responses import NO_AGENT, new_thread
from agent_relay.api.requests.idempotency import REPLAYED, IdempotencyKey, once
from agent_relay.api.requests.identity import Caller
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.routes.threads import ThreadRow, delete_thread, owned_thread
from agent_relay.api.schemas import Request as Schema
from agent_relay.shared.attachments import attached_of
from agent_relay.shared.errors import NotFound
from agent_relay.shared.idempotency import Repeated
from agent_relay.shared.schemas import metadata_of

router = APIRouter(prefix="/conversations", route_class=StrictRoute)

_CHANGE = text("UPDATE threads SET metadata = CAST(:metadata AS json), updated_at = now() WHERE id = :id")

_PLACE = text("SELECT position, place FROM messages WHERE thread_id = :thread_id AND id = :id")

_ITEMS = {
    order: text(f"""
        SELECT id, role, content, attachments, metadata FROM messages
        WHERE thread_id = :thread_id
          AND (CAST(:position AS bigint) IS NULL OR (position, place) {after} (:position, CAST(:place AS int)))
        ORDER BY position {order}, place {order} LIMIT :limit
    """)  # noqa: S608  (constants)
    for order, after in (("asc", ">"), ("desc", "<"))
}

MOST_ITEMS = 100


class NewConversation(Schema):
    """A conversation to be begun."""

    metadata: dict[str, str] | None = None
    items: Empty = None


class ConversationChanges(Schema):
    """What is to be different."""

    metadata: dict[str, str] | None = Field()


@router.post("")
async def create(
    new: NewConversation, database: Database, caller: Caller, key: IdempotencyKey, response: Response
) -> dict[str, Any]:
    """Begin a conversation."""
    try:
        thread_id = await once(lambda: new_thread(database, caller, NO_AGENT, new.metadata or {}, key))
    except Repeated as repeated:
        thread_id = repeated.created
        response.headers.update(REPLAYED)
    return _conversation(await owned_thread(database, caller, thread_id))


@router.get("/{conversation}")
async def read(conversation: str, database: Database, caller: Caller) -> dict[str, Any]:
    """Show a conversation."""
    return _conversation(await _owned(database, caller, conversation))


@router.post("/{conversation}")
async def change(conversation: str, changes: ConversationChanges, database: Database, caller: Caller) -> dict[str, Any]:
    """Change the metadata of a conversation."""
    row = await _owned(database, caller, conversation)
    async with database.begin() as connection:
        values = {"id": row.id, "metadata": to_json(changes.metadata or {}).decode()}
        await connection.execute(_CHANGE, values)
    return _conversation(await _owned(database, caller, conversation))


@router.delete("/{conversation}")
async def delete(conversation: str, database: Database, canceller: Cancel, caller: Caller) -> dict[str, Any]:
    """Delete a conversation with all that was said; what has not ended is cancelled."""
    row = await _owned(database, caller, conversation)
    await delete_thread(row.id, database, canceller, caller)
    return {"id": conversation, "object": "conversation.deleted", "deleted": True}


@router.get("/{conversation}/items")
async def items(
    conversation: str,
    database: Database,
    caller: Caller,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_ITEMS)] = 20,
) -> dict[str, Any]:
    """List what was said."""
    row = await _owned(database, caller, conversation)
    position = place = None
    async with database.connect() as connection:
        if after is not None:
            named = {"thread_id": row.id, "id": _message_of(after)}
            found = (await connection.execute(_PLACE, named)).one_or_none()
            if found is None:
                raise invalid("?after", "unknown_item", "No such item")
            position, place = found.position, found.place
        values = {"thread_id": row.id, "position": position, "place": place, "limit": limit + 1}
        rows = (await connection.execute(_ITEMS[order], values)).all()
    shown = [_item(each) for each in rows[:limit]]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(rows) > limit,
    }


async def _owned(database: Database, caller: Caller, conversation: str) -> ThreadRow:
    try:
        return await owned_thread(database, caller, thread_of(conversation))
    except NotFound:
        raise NotFound("conversation") from None


def _message_of(name: str) -> UUID | None:
    try:
        return UUID(name.removeprefix(MESSAGE))
    except ValueError:
        return None


def _conversation(row: ThreadRow) -> dict[str, Any]:
    return {
        "id": conversation_id(row.id),
        "object": "conversation",
        "created_at": int(row.created_at.timestamp()),
        "metadata": metadata_of(row.metadata),
    }


def _item(row: Any) -> dict[str, Any]:
    said: dict[str, Any] = {"type": "output_text" if row.role == "assistant" else "input_text", "text": row.content}
    if row.role == "assistant":
        said["annotations"] = []
    return {
        "id": MESSAGE + row.id.hex,
        "type": "message",
        "role": row.role,
        "status": INCOMPLETE if metadata_of(row.metadata).get("status") == "interrupted" else "completed",
        "content": [said, *parts_of(attached_of(row.attachments))],
    }
