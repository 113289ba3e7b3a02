"""What the model is told of the thread so far: its own messages of the earlier runs, as it gave and got them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pydantic_ai.messages import (
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


def transcript_of(messages: Sequence[ModelMessage]) -> str | None:
    """Write the model's messages of one run as JSON that `ModelMessagesTypeAdapter` reads again.

    Lossless where JSON can say everything in them; else as `storable` says it. None where even that cannot be read
    again: the query and the answer stand for such a run in the thread's history.
    """
    try:
        return _written([storable(message) if _is_open(message) else message for message in messages])
    except Exception as error:  # noqa: BLE001  (what tools put into messages raises anything)
        log.warning("history.mended error=%s", type(error).__name__)
    try:
        return _written(storable(list(messages)))
    except Exception:
        log.exception("history.not_written messages=%d", len(messages))
        return None


def _is_open(message: ModelMessage) -> bool:
    """Tell whether a message holds what may be anything, and pydantic-ai itself has not had to write so far.

    It may be endless: nothing but `storable` may touch it.
    """
    held = (message, *message.parts)
    return any(getattr(each, name, None) is not None for each in held for name in ("metadata", "provider_details"))


def _written(messages: list[ModelMessage]) -> str:
    """Write messages, and see that they can be read again: numbers may be written that no reader takes."""
    written = ModelMessagesTypeAdapter.dump_json(messages, warnings=False)
    ModelMessagesTypeAdapter.validate_json(written)
    return written.decode()


def _transcribed(exchange: Exchange) -> list[ModelMessage] | None:
    if exchange.transcript is None:
        return None
    try:
        return ModelMessagesTypeAdapter.validate_json(exchange.transcript)
    except Exception as error:  # noqa: BLE001  (another version wrote it, or another hand)
        log.warning("history.not_read characters=%d error=%s", len(exchange.transcript), type(error).__name__)
        return None
