"""Agents of known length and pace: they answer `<tokens> at <tokens a second>` with so many tokens, 0 not paced."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import cycle, islice

from pydantic_ai import Agent, ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from typing_extensions import TypedDict

from tests.agents import query_of

_SENTENCE = "the bank will look at your card and call you back on Monday because it cannot say more today"
_WORDS = _SENTENCE.split()


class Advice(TypedDict, total=False):
    """An answer that validates from its first character on."""

    advice: str
    risk: int


def tokens_of(count: int) -> Iterator[str]:
    """Say so many words, each a token."""
    return (f" {word}" for word in islice(cycle(_WORDS), count))


def arguments_of(count: int) -> Iterator[str]:
    """Say the arguments of the output tool in so many tokens and a few."""
    yield '{"advice": "'
    yield from tokens_of(count)
    yield '", "risk": 3}'


def text_of(count: int) -> str:
    """Say what an answer of so many tokens is in the end."""
    return json.dumps({"advice": "".join(tokens_of(count)), "risk": 3}, separators=(",", ":"))


def asked(query: str) -> tuple[int, float]:
    """Read how many tokens are wanted, and at what pace."""
    count, _, pace = query.partition(" at ")
    return int(count), float(pace or 0)


async def pauses(pace: float) -> AsyncIterator[None]:
    """Tick at a steady pace; with none, only let others run, as a socket would."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due += 1 / pace if pace else 0
        await asyncio.sleep(max(0, due - loop.time()) if pace else 0)
        yield


async def _speak(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    count, pace = asked(query_of(messages))
    clock = pauses(pace)
    for token in tokens_of(count):
        await anext(clock)
        yield token


async def _fill(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
    count, pace = asked(query_of(messages))
    clock = pauses(pace)
    yield {0: DeltaToolCall(name=info.output_tools[0].name)}
    for token in arguments_of(count):
        await anext(clock)
        yield {0: DeltaToolCall(json_args=token)}


words = Agent(FunctionModel(stream_function=_speak, model_name="words"), name="words")

form = Agent(FunctionModel(stream_function=_fill, model_name="form"), output_type=Advice, name="form")

provided = Agent(output_type=Advice, name="provided")
"""An agent that brings no model."""
