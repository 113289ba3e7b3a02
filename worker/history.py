"""What the model is told of the thread so far: its own messages of the earlier runs, as it gave and got them."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    UserPromptPart,
)

from shared.runs import Exchange


def history_of(exchanges: Sequence[Exchange]) -> list[ModelMessage]:
    """Join the transcripts; where one was lost with its worker, the query and the partial answer stand for it."""
    history: list[ModelMessage] = []
    for exchange in exchanges:
        if exchange.transcript is not None:
            history += ModelMessagesTypeAdapter.validate_json(exchange.transcript)
        else:
            history.append(ModelRequest(parts=[UserPromptPart(exchange.query)]))
            history.append(ModelResponse(parts=[TextPart(exchange.answer or "")]))
    return history


def transcript_of(messages: Sequence[ModelMessage]) -> str:
    """Write the model's messages of one run, lossless."""
    return ModelMessagesTypeAdapter.dump_json(list(messages)).decode()
