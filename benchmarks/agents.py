"""Agents of known length and pace: they answer `<tokens> at <tokens a second>` with so many tokens, 0 not paced.

Those with tools are asked `<calls> of <seconds>`, and make so many calls, one a response, that take so long each. Each
call adds a line to the file that `LEDGER` names, if it is set.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from itertools import cycle, islice
from pathlib import Path

from pydantic_ai import Agent, ModelMessage, ModelResponse, RunContext
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from typing_extensions import TypedDict

from agent_relay.worker.catalog import ServedAgent
from tests.support.agents import query_of

_SENTENCE = "the bank will look at your card and call you back on Monday because it cannot say more today"
_WORDS = _SENTENCE.split()
LEDGER = "LEDGER"


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


async def _call(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    calls, _, seconds = query_of(messages).partition(" of ")
    number = sum(isinstance(message, ModelResponse) for message in messages)
    if number < int(calls):
        tool = info.function_tools[0].name
        yield {0: DeltaToolCall(name=tool, json_args=f'{{"seconds": {seconds}}}', tool_call_id=f"call-{number}")}
    else:
        yield "done"


def _note(line: str) -> None:
    if ledger := os.environ.get(LEDGER):
        with Path(ledger).open("a") as file:
            file.write(f"{line}\n")


async def _work(ctx: RunContext[object], seconds: float) -> str:
    _note(f"{ctx.run_id} {ctx.tool_call_id}")
    await asyncio.sleep(seconds)
    return _SENTENCE


_steps = Agent(FunctionModel(stream_function=_call, model_name="steps"), name="steps")
_steps.tool(name="work")(_work)
steps = ServedAgent(agent=_steps)
forgetful = ServedAgent(agent=_steps, checkpoints=False)
"""The same, of which no step is stored."""
