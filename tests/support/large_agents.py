"""Agents that say, or whose tools return, as much as the query asks for: `<bytes>`, or `<bytes> <seconds>`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

from pydantic_ai import Agent, BinaryContent, ModelMessage, ModelResponse, ModelRetry, ToolReturn
from pydantic_ai.messages import ModelRequest, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from typing_extensions import TypedDict

from tests.support.agents import query_of

CHUNK = 1 << 16
LARGE_CHUNK = 2 << 20


class Essay(TypedDict, total=False):
    """An output that is valid from its first character on."""

    text: str


async def _goes_on(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    """Write for as long as anybody listens, into the file that the query names too."""
    said = Path(query_of(messages))
    while True:
        said.write_text("x" * (len(said.read_text()) + 1 if said.exists() else 1))  # noqa: ASYNC240
        yield "x" * CHUNK
        await asyncio.sleep(0.01)


async def _says(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    character, count = query_of(messages).split()
    for start in range(0, int(count), CHUNK):
        yield character * min(CHUNK, int(count) - start)


async def _writes_json(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    character, count = query_of(messages).split()
    arguments = json.dumps({"text": character * int(count)})
    name = info.output_tools[0].name
    yield {0: DeltaToolCall(name=name, json_args="")}
    for start in range(0, len(arguments), CHUNK):
        yield {0: DeltaToolCall(json_args=arguments[start : start + CHUNK])}


async def _never_valid(_messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args="nonsense")}
    while True:
        yield {0: DeltaToolCall(json_args=" " * CHUNK)}
        await asyncio.sleep(0)


async def _grows(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    """Say so much at once, then a little more now and then for so many seconds."""
    count, seconds = query_of(messages).split()
    for start in range(0, int(count), LARGE_CHUNK):
        yield "x" * min(LARGE_CHUNK, int(count) - start)
        await asyncio.sleep(0)
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        await asyncio.sleep(0.5)
        yield "."


async def _calls(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """Call the tool that the query names with how much it asks for, once, and say what there was before."""
    words = query_of(messages).split()
    if words[0] in {tool.name for tool in info.function_tools}:
        last = messages[-1]
        assert isinstance(last, ModelRequest)
        results = [part for part in last.parts if isinstance(part, ToolReturnPart)]
        if not results:
            yield {0: DeltaToolCall(name=words[0], json_args=json.dumps({"count": int(words[1])}))}
            return
    requests = sum(isinstance(message, ModelRequest) for message in messages)
    responses = sum(isinstance(message, ModelResponse) for message in messages)
    results = [str(part.content) for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    yield json.dumps({"requests": requests, "responses": responses, "results": [result[:80] for result in results]})


goes_on = Agent(FunctionModel(stream_function=_goes_on))
says = Agent(FunctionModel(stream_function=_says))
essay = Agent(FunctionModel(stream_function=_writes_json), output_type=Essay)
never_valid = Agent(FunctionModel(stream_function=_never_valid), output_type=Essay)
grows = Agent(FunctionModel(stream_function=_grows))
calls = Agent(FunctionModel(stream_function=_calls), retries=3)


@calls.tool_plain
def text(count: int) -> str:
    """Return a text of so many characters."""
    return "t" * count


@calls.tool_plain
def umlauts(count: int) -> str:
    """Return a text of so many characters, of two bytes each."""
    return "ü" * count


@calls.tool_plain
def rows(count: int) -> list[dict[str, int]]:
    """Return so many rows."""
    return [{"number": 1_000_000 + number} for number in range(count)]


@calls.tool_plain
def file(count: int) -> BinaryContent:
    """Return a file of so many bytes."""
    return BinaryContent(data=b"\0" * count, media_type="application/pdf")


@calls.tool_plain
def beside(count: int) -> ToolReturn:
    """Return a word, and a text of so many characters beside it."""
    return ToolReturn("see below", content=["b" * count])


@calls.tool_plain
def complains(count: int) -> str:
    """Ask the model to try again, at length."""
    raise ModelRetry("c" * count)
