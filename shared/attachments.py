"""Attachments of queries and messages: files of the user, new ones that came with the call, and addresses.

A row keeps a list of `{"file_id", "filename", "media_type", "bytes"}` and `{"url", "media_type"}`, never bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

from pydantic_core import to_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from agent_relay.shared.errors import WrongAttachment
from agent_relay.shared.files import FileLimits, NewFile, Pieces, check_room, store_file
from agent_relay.shared.media_types import matches

MOST_ATTACHMENTS = 20
"""Of one query."""

Attached = dict[str, Any]
"""An attachment as a row keeps it."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """One attachment that a caller gives: a file by its id, a new one, or an address."""

    file_id: UUID | None = None
    url: str | None = None
    media_type: str | None = None
    """Of an address, where it is said."""
    new: NewFile | None = None
    pieces: Pieces | None = None
    """Of a new file."""


@dataclass(frozen=True, slots=True)
class Attachments:
    """The attachments of one query, and how much they may be."""

    items: Sequence[Attachment]
    limits: FileLimits
    most_bytes: int
    """Of all of them together."""


_FILES = text("""
    SELECT id, filename, media_type, bytes FROM files
    WHERE id = ANY(CAST(:ids AS uuid[])) AND tenant = :tenant AND user_id = :user_id
    FOR KEY SHARE
""")

_TAKEN = text("SELECT attachments FROM agents WHERE agent_type = :agent_type")


async def attach(
    connection: AsyncConnection,
    attachments: Mapping[int | None, Attachments],
    *,
    tenant: str,
    user_id: UUID,
    agent_type: str | None,
) -> dict[int | None, str]:
    """Store the new files of queries to one agent, and return the attachments of each row, as JSON text.

    The queries have numbers; None is the number of a query that is asked alone.

    Raises:
        WrongAttachment: a file is not there, or not this user's; the agent takes none of its type; they are too large.
        QueueFull: the limit of stored files of the user or the tenant is reached.
    """
    if not attachments:
        return {}
    taken = await connection.scalar(_TAKEN, {"agent_type": agent_type})
    owner = {"tenant": tenant, "user_id": user_id}
    known = await _known(connection, attachments.values(), owner)
    await _store_new(connection, attachments.values(), tenant, user_id)
    return {number: _kept(of_one, known, taken, number) for number, of_one in attachments.items()}


async def _known(
    connection: AsyncConnection, attachments: Collection[Attachments], owner: Mapping[str, Any]
) -> dict[UUID, Attached]:
    ids = {item.file_id for of_one in attachments for item in of_one.items if item.file_id}
    if not ids:
        return {}
    rows = await connection.execute(_FILES, {**owner, "ids": sorted(ids)})
    return {row.id: _file(row.id, row.filename, row.media_type, row.bytes) for row in rows}


async def _store_new(
    connection: AsyncConnection, attachments: Collection[Attachments], tenant: str, user_id: UUID
) -> None:
    new = [
        (item.new, item.pieces, of_one.limits)
        for of_one in attachments
        for item in of_one.items
        if item.new is not None and item.pieces is not None
    ]
    if not new:
        return
    limits = new[0][2]
    await check_room(connection, limits, tenant, user_id, sum(file.size for file, _, _ in new))
    for file, pieces, _ in new:
        await store_file(connection, file, pieces, limits.kept_seconds)


def _kept(attachments: Attachments, known: Mapping[UUID, Attached], taken: object, query: int | None) -> str:
    kept: list[Attached] = []
    for place, item in enumerate(attachments.items):
        if item.new is not None:
            kept.append(_file(item.new.id, item.new.filename, item.new.media_type, item.new.size))
        elif item.file_id is None:
            kept.append({"url": item.url, "media_type": item.media_type})
        elif (found := known.get(item.file_id)) is None:
            raise WrongAttachment("unknown_file", "There is no such file", place, "file_id", query)
        else:
            kept.append(found)
        media_type = kept[-1]["media_type"]
        if isinstance(taken, list) and not (matches(media_type, cast("list[str]", taken)) if media_type else taken):
            said = f"This agent takes no {media_type or 'attachments'}"
            raise WrongAttachment("type_not_taken", said, place, None, query)
    size = sum(each.get("bytes", 0) for each in kept)
    if size > attachments.most_bytes:
        said = f"The files have {size} bytes together, and the limit is {attachments.most_bytes}"
        raise WrongAttachment("attachments_too_large", said, None, None, query)
    return to_json(kept).decode()


def _file(file_id: UUID, filename: str | None, media_type: str, size: int) -> Attached:
    return {"file_id": str(file_id), "filename": filename, "media_type": media_type, "bytes": size}


def attached_of(stored: object) -> list[Attached]:
    """Read the attachments of a row; malformed ones are left out."""
    found = cast("list[object]", stored) if isinstance(stored, list) else []
    return [cast("Attached", each) for each in found if isinstance(each, dict) and ("file_id" in each or "url" in each)]
