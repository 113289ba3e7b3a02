"""Agents that say exactly what they are given: each text, and of each file its type, its length and its hash."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, BinaryContent, BinaryImage, ModelMessage, ModelResponse, UserPromptPart
from pydantic_ai.messages import BaseToolReturnPart, FileUrl
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from agent_relay.worker.catalog import ServedAgent

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
"""What the tool `paint` makes."""


def described(content: Any) -> list[Any]:
    """Say what a content is."""
    match content:
        case str():
            return [content]
        case BinaryContent(data=data, media_type=media_type):
            return [shown(data, media_type)]
        case FileUrl(url=url):
            return [{"url": url}]
        case list() | tuple():
            return [each for item in content for each in described(item)]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return [str(content)]


def shown(data: bytes, media_type: str) -> dict[str, Any]:
    """Say what a file is."""
    return {"media_type": media_type, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _given(messages: list[ModelMessage]) -> list[Any]:
    return [
        each
        for message in messages
        for part in message.parts
        if isinstance(part, UserPromptPart | BaseToolReturnPart)
        for each in described(part.content)
    ]


async def _stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """Make the calls that texts ask for (`call: <tool> <path>`), one after the other; then say what was given."""
    asked = [said.split() for said in _given(messages) if isinstance(said, str) and said.startswith("call: ")]
    calls = sum(len(message.tool_calls) for message in messages if isinstance(message, ModelResponse))
    if calls < len(asked):
        _, tool, *arguments = asked[calls]
        yield {0: DeltaToolCall(name=tool, json_args=json.dumps({"path": arguments[0]} if arguments else {}))}
        return
    yield json.dumps(_given(messages))


_agent = Agent(FunctionModel(stream_function=_stream, model_name="eyes"), name="eyes")
sees = ServedAgent(agent=_agent)
images_only = ServedAgent(agent=_agent, attachments=("image/*",))
blind = ServedAgent(agent=_agent, attachments=())
passes = ServedAgent(agent=_agent, attachment_urls="pass")


@_agent.tool_plain
async def wait_for(path: str) -> str:
    """Return once there is such a file."""
    Path(f"{path}.begun").touch()  # noqa: ASYNC240
    while not Path(path).exists():  # noqa: ASYNC110, ASYNC240  (another process makes it)
        await asyncio.sleep(0.05)
    return "it is there"


@_agent.tool_plain
def paint() -> list[Any]:
    """Return a picture."""
    return ["painted", BinaryContent(PNG, media_type="image/png")]


def draw(colour: str) -> BinaryImage:
    """Return a picture as the output."""
    return BinaryImage(data=PNG + colour.encode(), media_type="image/png")


async def _draws(_messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
    yield {0: DeltaToolCall(name=info.output_tools[0].name)}
    for piece in ('{"colour"', ': "bl', 'ue"}'):
        yield {0: DeltaToolCall(json_args=piece)}


draws = Agent(FunctionModel(stream_function=_draws, model_name="hands"), name="draws", output_type=draw)
