"""The model's history of the thread: its own messages of the earlier runs, as it sent and received them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from types import NoneType
from typing import Any

from pydantic import TypeAdapter
from pydantic_ai.messages import (
    BaseToolReturnPart,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    UserPromptPart,
    repair_messages,
)
from pydantic_core import to_json

from agent_relay.shared.runs.claim import Exchange
from agent_relay.shared.runs.said import Said
from agent_relay.worker.execution.file_references import referring
from agent_relay.worker.extent import Endless, count, written
from agent_relay.worker.storable import storable

log = logging.getLogger(__name__)

SHORT = 128 << 10
"""Characters of messages that are written without a thread."""
LARGE_METADATA = 500_000
"""Size of the metadata of one run that is kept as lists and dicts; larger metadata is kept as text. Python takes half a
second for this size, and as long when the thread's next run reads it."""
SENTENCE_BYTES = 100
"""The approximate size of the sentence that replaces a result."""
INSTRUCTED = "The application that calls you on behalf of the user gives these instructions:"
_ANY: TypeAdapter[Any] = TypeAdapter(Any)


async def history_of(exchanges: Sequence[Exchange], before: Sequence[Said] = ()) -> list[ModelMessage]:
    """Join the transcripts; the query and the answer replace one that is missing or cannot be read.

    Between these are the messages into the run. Calls that were left open are closed, so that the thread can go on.
    The messages of the caller's own conversation come before its query; `before` is those of the run that begins.
    Other tasks may use the event loop meanwhile.
    """
    history: list[ModelMessage] = []
    for exchange in exchanges:
        history += map(_said, (said for said in exchange.history if said["role"] != "instructions"))
        transcribed = _transcribed(exchange)
        if len(exchange.transcript or "") > SHORT:
            await asyncio.sleep(0)
        if transcribed is None:
            asked = [referring(said.query, said.attachments) for said in (exchange, *exchange.steered)]
            history.append(ModelRequest(parts=[*map(UserPromptPart, asked)]))
            history.append(ModelResponse(parts=[TextPart(exchange.answer or "")]))
        else:
            history += transcribed
    history += map(_said, before)
    return repair_messages(history)


def _said(said: Said) -> ModelMessage:
    """Convert a caller's conversation for the model. Instructions of a caller have no more weight than a query."""
    if said["role"] == "assistant":
        return ModelResponse(parts=[TextPart(said["content"])])
    from_user = said["role"] == "user"
    content = said["content"] if from_user else f"{INSTRUCTED}\n\n{said['content']}"
    return ModelRequest(parts=[UserPromptPart(content)])


async def transcript_of(messages: Sequence[ModelMessage], most_bytes: int) -> str | None:
    """Write the model's messages of one run as JSON that `ModelMessagesTypeAdapter` reads again.

    Lossless if JSON can represent all values in them; else as `storable` converts them. Large metadata becomes its JSON
    as text. If the whole is above the limit, a sentence replaces each of the largest results of tools. None if it
    cannot be read again, or is too large even so: its thread then has the query and the answer of such a run only.
    """
    if _is_short(messages):
        return _transcript_of(messages, most_bytes)
    plain = await _with_plain_metadata(messages, most_bytes)
    return await asyncio.to_thread(_transcript_of, plain, most_bytes)


def _transcript_of(messages: Sequence[ModelMessage], most_bytes: int) -> str | None:
    try:
        return _within(most_bytes, [storable(message) if _is_open(message) else message for message in messages])
    except Exception as error:  # noqa: BLE001  (what tools put into messages raises anything)
        log.warning("history.mended error=%s", type(error).__name__)
    try:
        return _within(most_bytes, storable(list(messages)))
    except Exception:
        log.exception("history.not_written messages=%d", len(messages))
        return None


def _is_short(messages: Sequence[ModelMessage]) -> bool:
    """Tell whether the messages are surely written in a few milliseconds."""
    length = 0
    for message in messages:
        for part in message.parts:
            content = getattr(part, "content", None)
            if getattr(part, "metadata", None) is not None or not isinstance(content, str | NoneType):
                return False
            length += len(content or "")
    return length < SHORT


async def _with_plain_metadata(messages: Sequence[ModelMessage], most_bytes: int) -> list[ModelMessage]:
    """Put text in the place of metadata that would take long to write, and to read again."""
    plain: list[ModelMessage] = []
    room = LARGE_METADATA
    for message in messages:
        parts: list[Any] = []
        for part in message.parts:
            metadata = getattr(part, "metadata", None) if isinstance(part, BaseToolReturnPart) else None
            sizes = {} if metadata is None else await _sizes_of_metadata(metadata, most_bytes)
            size = sizes.get(id(metadata), 0)
            if size <= room:
                room -= size
                parts.append(part)
            else:
                parts.append(await _with_text_as_metadata(part, sizes, most_bytes))
        changed = any(new is not old for new, old in zip(parts, message.parts, strict=True))
        plain.append(replace(message, parts=parts) if changed else message)
    return plain


async def _sizes_of_metadata(metadata: Any, most_bytes: int) -> dict[int, int]:
    """Count metadata; nothing where it holds iterators or has no end: `storable` sees to that."""
    try:
        holds_iterators, sizes = await count(metadata, most_bytes)
    except Endless:
        return {}
    return {} if holds_iterators else sizes


async def _with_text_as_metadata(part: Any, sizes: dict[int, int], most_bytes: int) -> Any:
    try:
        text = await written(part.metadata, sizes, _write_metadata, most_bytes)
    except Exception as error:  # noqa: BLE001  (serializers of foreign classes raise anything)
        log.warning("history.metadata_mended error=%s", type(error).__name__)
        return part  # `storable` sees to it.
    plain = copy(part)
    plain.metadata = text.decode()
    return plain


def _write_metadata(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="null", bytes_mode="base64")


def _within(most_bytes: int, messages: list[ModelMessage]) -> str | None:
    """Write messages within the limit; None where they do not fit without the results of their tools either."""
    written = _written_one_by_one(messages)
    size = sum(map(len, written))
    if size > most_bytes:
        messages = _without_results(messages, size - most_bytes)
        written = _written_one_by_one(messages)
        left = sum(map(len, written))
        log.warning("history.shortened bytes=%d most=%d left=%d", size, most_bytes, left)
        if left > most_bytes:
            return None
    for each in written:
        ModelMessagesTypeAdapter.validate_json(each)  # Numbers may be written that no reader takes.
    return f"[{','.join(each[1:-1].decode() for each in written)}]"


def _written_one_by_one(messages: list[ModelMessage]) -> list[bytes]:
    """Write each message as a list of one: other threads run in between."""
    return [ModelMessagesTypeAdapter.dump_json([message], warnings=False) for message in messages]


def _without_results(messages: list[ModelMessage], bytes_to_save: int) -> list[ModelMessage]:
    """Put a sentence in the place of the largest results of tools, as many as it takes."""
    sizes: dict[int, int] = {}
    for message in messages:
        for part in message.parts:
            if isinstance(part, BaseToolReturnPart):
                sizes[id(part)] = len(_ANY.dump_json((part.content, part.metadata), warnings=False))
    left_out: dict[int, int] = {}
    for part_id, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if bytes_to_save <= 0:
            break
        left_out[part_id] = size
        bytes_to_save -= size - SENTENCE_BYTES
    return [
        replace(message, parts=[_shortened(part, left_out.get(id(part))) for part in message.parts])  # pyright: ignore[reportArgumentType]
        for message in messages
    ]


def _shortened(part: Any, size: int | None) -> Any:
    if size is None:
        return part
    shortened = copy(part)
    shortened.content = f"The result had {size} bytes and was left out of the conversation."
    shortened.metadata = None
    return shortened


def _is_open(message: ModelMessage) -> bool:
    """Tell whether a message holds what may be anything, and pydantic-ai itself has not had to write so far.

    It may be endless: nothing but `storable` may touch it.
    """
    held = (message, *message.parts)
    return any(getattr(each, name, None) is not None for each in held for name in ("metadata", "provider_details"))


def _transcribed(exchange: Exchange) -> list[ModelMessage] | None:
    if exchange.transcript is None:
        return None
    try:
        return ModelMessagesTypeAdapter.validate_json(exchange.transcript)
    except Exception as error:  # noqa: BLE001  (another version wrote it, or another hand)
        log.warning("history.not_read characters=%d error=%s", len(exchange.transcript), type(error).__name__)
        return None
