"""What the model is told of the thread so far: its own messages of the earlier runs, as it gave and got them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
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

from shared.runs import Exchange
from worker.storable import storable

log = logging.getLogger(__name__)

SENTENCE_BYTES = 100
"""About what the sentence takes that stands for a result."""
_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def history_of(exchanges: Sequence[Exchange]) -> list[ModelMessage]:
    """Join the transcripts; where one is missing or cannot be read, the query and the answer stand for it.

    Calls that were left open are closed, so that the thread can go on.
    """
    history: list[ModelMessage] = []
    for exchange in exchanges:
        transcribed = _transcribed(exchange)
        if transcribed is None:
            history.append(ModelRequest(parts=[UserPromptPart(exchange.query)]))
            history.append(ModelResponse(parts=[TextPart(exchange.answer or "")]))
        else:
            history += transcribed
    return repair_messages(history)


def transcript_of(messages: Sequence[ModelMessage], most_bytes: int) -> str | None:
    """Write the model's messages of one run as JSON that `ModelMessagesTypeAdapter` reads again.

    Lossless where JSON can say everything in them; else as `storable` says it. Where it has more bytes than it may,
    a sentence stands for each of the largest results of tools. None where it cannot be read again, or is too large
    even so: the query and the answer stand for such a run in the thread's history.
    """
    try:
        return _within(most_bytes, [storable(message) if _is_open(message) else message for message in messages])
    except Exception as error:  # noqa: BLE001  (what tools put into messages raises anything)
        log.warning("history.mended error=%s", type(error).__name__)
    try:
        return _within(most_bytes, storable(list(messages)))
    except Exception:
        log.exception("history.not_written messages=%d", len(messages))
        return None


def _within(most_bytes: int, messages: list[ModelMessage]) -> str | None:
    """Write messages within the limit; None where they do not fit without the results of their tools either."""
    written = ModelMessagesTypeAdapter.dump_json(messages, warnings=False)
    size = len(written)
    if size > most_bytes:
        messages = _without_results(messages, size - most_bytes)
        written = ModelMessagesTypeAdapter.dump_json(messages, warnings=False)
        log.warning("history.shortened bytes=%d most=%d left=%d", size, most_bytes, len(written))
        if len(written) > most_bytes:
            return None
    ModelMessagesTypeAdapter.validate_json(written)  # Numbers may be written that no reader takes.
    return written.decode()


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
