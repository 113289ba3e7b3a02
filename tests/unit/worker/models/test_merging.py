"""Merged deltas: fewer events, and otherwise the same answer, the same messages, the same usage, the same errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, PartDeltaEvent, PartStartEvent, TextPartDelta
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.function import (
    AgentInfo,
    DeltaThinkingCalls,
    DeltaThinkingPart,
    DeltaToolCall,
    DeltaToolCalls,
    FunctionModel,
)
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from agent_relay.worker.models.merging import MergingModel, seconds_left
from tests.support import fake_openai

WINDOW_SECONDS = 0.02
LONG_SECONDS = 3600.0
WORDS = [f"word{n} " for n in range(200)]


class Form(BaseModel):
    """An output."""

    title: str
    pages: int


def speaking(*words: str, wait: Callable[[int], Any] | None = None) -> Model:
    """Make a model of text; `wait` is awaited before each word."""

    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        for number, word in enumerate(words):
            if wait is not None:
                await wait(number)
            yield word

    return FunctionModel(stream_function=stream)


def filling() -> Model:
    """Make a model that calls a tool, and then fills the form in, a few characters a delta."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls | str]:
        if len(messages) == 1:
            yield "Let me "
            yield "look."
            calls = [{0: DeltaToolCall(name="look")}, {1: DeltaToolCall(name="look")}]
            calls += [{n % 2: DeltaToolCall(json_args=piece)} for n, piece in ((0, "{}"), (1, "{"), (1, "}"))]
        else:
            calls = [{0: DeltaToolCall(name=info.output_tools[0].name)}]
            calls += [{0: DeltaToolCall(json_args=piece)} for piece in re.findall("..?", '{"title": "A", "pages": 3}')]
        for call in calls:
            yield call

    return FunctionModel(stream_function=stream)


def thinking() -> Model:
    """Make a model that thinks, part by part, then says something, and signs its thoughts."""

    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[DeltaThinkingCalls | str]:
        for part in range(2):
            for word in WORDS:
                yield {part: DeltaThinkingPart(content=word)}
            yield {part: DeltaThinkingPart(signature=f"signed {part}")}
        yield {0: DeltaThinkingPart(content="And one more.")}
        for word in WORDS:
            yield word

    return FunctionModel(stream_function=stream)


async def deltas(model: Model) -> AsyncGenerator[str]:
    """Stream the text that a model says, an event a piece."""
    async with Agent(model).iter("go") as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                async with node.stream(run.ctx) as stream:
                    async for event in stream:
                        match event:
                            case PartStartEvent(part=part):
                                yield getattr(part, "content", "")
                            case PartDeltaEvent(delta=TextPartDelta(content_delta=piece)):
                                yield piece
                            case _:
                                pass


async def collect(stream: AsyncIterator[str], into: list[str]) -> None:
    """Collect a stream, so that what came before an error can be looked at."""
    async for piece in stream:
        into.append(piece)  # noqa: PERF401


async def outcome(model: Model, output_type: type[Any]) -> tuple[Any, Any, str]:
    """Run an agent by streaming; returns its output, its usage, and its messages without times and made-up ids."""
    agent: Agent[object, Any] = Agent(model, output_type=output_type)

    @agent.tool_plain
    def look() -> str:  # pyright: ignore[reportUnusedFunction]
        """Look."""
        return "seen"

    async with agent.iter("go") as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                async with node.stream(run.ctx) as stream:
                    async for _ in stream:
                        pass
    assert run.result is not None
    messages = run.result.all_messages_json().decode()
    made_up = r'"(timestamp|run_id|conversation_id|tool_call_id)":"[^"]*"'
    return run.result.output, run.usage, re.sub(made_up, r'"\1":""', messages)


async def test_nothing_is_lost_or_reordered_and_there_are_fewer_events() -> None:
    pieces = [piece async for piece in deltas(MergingModel(speaking(*WORDS), WINDOW_SECONDS))]

    assert "".join(pieces) == "".join(WORDS)
    assert len(pieces) < len(WORDS) / 10


async def test_thoughts_are_merged_as_text_is() -> None:
    async with MergingModel(thinking(), WINDOW_SECONDS).request_stream(
        [], None, ModelRequestParameters(), None
    ) as response:
        events = [event async for event in response]

    thought = [event for event in events if isinstance(event, PartDeltaEvent) and event.index < 2]
    assert 0 < len(thought) < len(WORDS) / 10


async def test_the_first_delta_goes_through_at_once() -> None:
    more = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 2:
            await more.wait()

    stream = deltas(MergingModel(speaking("one ", "two ", "three", wait=wait), LONG_SECONDS))
    pieces = [await anext(stream), await anext(stream)]
    more.set()
    pieces += [piece async for piece in stream]

    assert pieces[0].startswith("one")
    assert "".join(pieces) == "one two three"


async def test_a_model_that_pauses_holds_nothing_back() -> None:
    more = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 100:
            await more.wait()

    stream = deltas(MergingModel(speaking(*WORDS, wait=wait), WINDOW_SECONDS))
    said = ""
    async with asyncio.timeout(10):
        while said != "".join(WORDS[:100]):
            said += await anext(stream)
    more.set()
    said += "".join([piece async for piece in stream])

    assert said == "".join(WORDS)


async def test_an_error_comes_after_what_was_said_before_it() -> None:
    async def wait(number: int) -> None:
        if number == 50:
            raise RuntimeError("the model broke")

    said: list[str] = []
    stream = deltas(MergingModel(speaking(*WORDS, wait=wait), WINDOW_SECONDS))
    with pytest.raises(RuntimeError, match="the model broke"):
        await collect(stream, said)

    assert "".join(said) == "".join(WORDS[:50])


async def test_a_cancelled_reader_stops_the_model() -> None:
    stopped = asyncio.Event()

    async def wait(number: int) -> None:
        if number == 3:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

    async def listen() -> None:
        async for _ in deltas(MergingModel(speaking(*WORDS, wait=wait), WINDOW_SECONDS)):
            heard.set()

    heard = asyncio.Event()
    listening = asyncio.create_task(listen())
    await heard.wait()
    listening.cancel()

    with pytest.raises(asyncio.CancelledError):
        await listening
    await asyncio.wait_for(stopped.wait(), 10)


@pytest.mark.parametrize(
    ("model", "output_type"),
    [(speaking(*WORDS), str), (filling(), Form), (thinking(), str)],
    ids=["text", "tools and a form", "thoughts"],
)
async def test_the_outcome_is_that_of_the_model_itself(model: Model, output_type: type) -> None:
    assert await outcome(MergingModel(model, WINDOW_SECONDS), output_type) == await outcome(model, output_type)


@pytest.mark.parametrize("output_type", [str, Form])
async def test_the_outcome_is_that_of_a_real_client(output_type: type) -> None:
    with fake_openai.running() as url:
        async with AsyncOpenAI(base_url=url, api_key="none") as client:
            model = OpenAIChatModel("bank", provider=OpenAIProvider(openai_client=client))

            assert await outcome(MergingModel(model, WINDOW_SECONDS), output_type) == await outcome(model, output_type)


async def test_short_windows_are_shared_and_long_ones_begin_at_any_moment() -> None:
    assert all(0 < seconds_left(0.03) <= 0.03 for _ in range(100))
    assert seconds_left(0.5) == 0.5
    assert seconds_left(0) == 0
