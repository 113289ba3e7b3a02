"""References to files in a model's messages: a content without bytes, whose identifier names the file."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

from pydantic_ai.messages import (
    BaseToolReturnPart,
    BinaryContent,
    FilePart,
    ModelMessage,
    TextPart,
    UserContent,
    UserPromptPart,
)

from agent_relay.shared.attachments import attached_of

DEEPEST = 20
"""Levels of lists and dicts of a tool's result in which files are looked for."""
_PREFIX = "agent-relay-file-"
_REFERENCE = re.compile(rf"{_PREFIX}([0-9a-f-]{{36}})")
_PLAIN = frozenset({str, int, float, bool, type(None)})

Replace = Callable[[BinaryContent], UserContent]


def content_of(file_id: UUID, data: bytes, media_type: str, like: BinaryContent | None = None) -> BinaryContent:
    """Make the content of a stored file, or without any bytes a reference to it."""
    made = BinaryContent(
        data=data,
        media_type=media_type,
        identifier=f"{_PREFIX}{file_id}",
        vendor_metadata=None if like is None else like.vendor_metadata,
    )
    return BinaryContent.narrow_type(made)


def file_id_of(content: BinaryContent) -> UUID | None:
    """Return the file to which a content refers, if any."""
    found = _REFERENCE.fullmatch(content.identifier)
    return None if found is None else UUID(found[1])


def referring(query: str, attachments: object) -> str | list[UserContent]:
    """Make the agent's form of a query, with references in the place of files."""
    attached = attached_of(attachments)
    said: list[UserContent] = [query]
    for each in attached:
        if "file_id" in each:
            said.append(content_of(UUID(each["file_id"]), b"", each["media_type"]))
        else:
            said.append(f"[An attachment: {each['url']}]")
    return said if attached else query


async def all_files_in(parts: Sequence[Any]) -> list[BinaryContent]:
    """List the files of parts of messages; what may be large is searched in a thread."""
    if not any(isinstance(part, FilePart) or _holds_more_than_text(part) for part in parts):
        return []
    return await asyncio.to_thread(lambda: [file for part in parts for file in files_in(part)])


def _holds_more_than_text(part: Any) -> bool:
    return isinstance(part, UserPromptPart | BaseToolReturnPart) and type(cast("Any", part.content)) not in _PLAIN


def files_in(part: Any) -> list[BinaryContent]:
    """List the files of a part of a message."""
    if isinstance(part, FilePart):
        return [part.content]
    found: list[BinaryContent] = []

    def note(file: BinaryContent) -> BinaryContent:
        found.append(file)
        return file

    if isinstance(part, UserPromptPart | BaseToolReturnPart):
        _walk(cast("Any", part.content), note)
    return found


async def all_replaced(messages: Sequence[ModelMessage], by: Replace) -> list[ModelMessage]:
    """Copy messages with other content in the place of their files, in a thread."""
    return await asyncio.to_thread(lambda: [replaced(message, by) for message in messages])


def replaced(message: ModelMessage, by: Replace) -> ModelMessage:
    """Copy a message with other content in the place of its files; without any, return it as it is."""
    parts = [_replaced_in(part, by) for part in message.parts]
    if all(new is old for new, old in zip(parts, message.parts, strict=True)):
        return message
    return replace(message, parts=parts)


def _replaced_in(part: Any, by: Replace) -> Any:
    whole = part
    if isinstance(part, FilePart):
        content = by(part.content)
        if content is part.content:
            return part
        return replace(part, content=content) if isinstance(content, BinaryContent) else TextPart(str(content))
    if isinstance(part, UserPromptPart | BaseToolReturnPart):
        held: Any = cast("Any", part.content)
        content = _walk(held, by)
        return whole if content is held else replace(whole, content=content)
    return whole


def _walk(value: Any, by: Replace, depth: int = 0) -> Any:
    """Copy a value with other content in the place of files; a value without files is not copied."""
    if isinstance(value, BinaryContent):
        return by(value)
    if depth >= DEEPEST:
        return value
    if isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
        if all(type(item) in _PLAIN for item in items):
            return items
        copied = [_walk(item, by, depth + 1) for item in items]
        return copied if any(new is not old for new, old in zip(copied, items, strict=True)) else items
    if type(value) is dict:
        entries = cast("dict[Any, Any]", value)
        walked = {key: _walk(item, by, depth + 1) for key, item in entries.items()}
        return walked if any(walked[key] is not entries[key] for key in entries) else entries
    return value
