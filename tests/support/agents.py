"""Small agents that tests serve through `AGENTS` (`echo=tests.support.agents:echo`). None needs a key or a table."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, ModelResponse, ModelRetry, RunContext, UsageLimits, UserPromptPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from agent_relay.worker.catalog import ServedAgent

TICK_SECONDS = 0.05
CHUNK_BYTES = 20 << 10
UNICODE = "Zażółć 👩‍🚀 naïve e\u0301 שלום \u2028 😀 𝄞 “end”"
FORM_JSON = '{"title": "A form", "pages": 12, "tags": ["one", "two"]}'


class Form(BaseModel):
    """An output that validates only once each field has begun."""

    title: str
    pages: int
    tags: list[str]


def query_of(messages: list[ModelMessage]) -> str:
    """Return what the user said last."""
    said = [part for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    return str(said[-1].content)


def _speaks(say: Callable[[str], Iterator[str]], *, every_seconds: float = 0) -> Model:
    """Make a model of text that streams what `say` makes of the query."""

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        for token in say(query_of(messages)):
            await asyncio.sleep(every_seconds)
            yield token

    return FunctionModel(stream_function=stream, model_name="words")


def _waits() -> Model:
    """Make a model that says a word, and the rest once the file is there that the query names."""

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        word = Path(query_of(messages))
        yield "Well"
        while not word.exists():  # noqa: ASYNC110, ASYNC240  (another process makes it)
            await asyncio.sleep(TICK_SECONDS)
        yield ", at last."

    return FunctionModel(stream_function=stream, model_name="waits")


def _fills(arguments: str, *, tool: str | None = None) -> Model:
    """Make a model that streams arguments, three characters a token, to a tool or else to the output tool."""

    async def stream(_messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
        yield {0: DeltaToolCall(name=tool or info.output_tools[0].name)}
        for start in range(0, len(arguments), 3):
            await asyncio.sleep(0)
            yield {0: DeltaToolCall(json_args=arguments[start : start + 3])}

    return FunctionModel(stream_function=stream, model_name="arguments")


def _fills_in_halves() -> Model:
    """Make a model that begins to fill the form in, and goes on once the file is there that the query names."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
        word = Path(query_of(messages))
        yield {0: DeltaToolCall(name=info.output_tools[0].name)}
        yield {0: DeltaToolCall(json_args='{"title": "A form that waits", "pages": 12, "tags": ["one"')}
        while not word.exists():  # noqa: ASYNC110, ASYNC240  (another process makes it)
            await asyncio.sleep(TICK_SECONDS)
        yield {0: DeltaToolCall(json_args=', "two", "three"]}')}

    return FunctionModel(stream_function=stream, model_name="halves")


def _thinks_twice(*drafts: str, every_seconds: float) -> Model:
    """Make a model that fills the output in with one draft after the other, as long as the last is refused."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
        draft = drafts[sum(isinstance(message, ModelResponse) for message in messages)]
        yield {0: DeltaToolCall(name=info.output_tools[0].name)}
        for start in range(0, len(draft), 3):
            await asyncio.sleep(every_seconds)
            yield {0: DeltaToolCall(json_args=draft[start : start + 3])}

    return FunctionModel(stream_function=stream, model_name="drafts")


def _chunks(query: str) -> Iterator[str]:
    """Say so many megabytes as the query says, in pieces of 20 KB."""
    count = round(float(query.split(maxsplit=1)[0]) * (1 << 20) / CHUNK_BYTES)
    return (f"{number:08d}" + "x" * (CHUNK_BYTES - 8) for number in range(count))


def _echoed(query: str) -> Iterator[str]:
    yield "You said:"
    yield from (f" {word}" for word in query.split())


def _recalls() -> FunctionModel:
    """Say what users have asked, as the model is told; and "?" for an answer that is not the model's own message."""

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        for message in messages:
            if isinstance(message, ModelResponse) and message.model_name is None:
                yield "?"
            for part in message.parts:
                if isinstance(part, UserPromptPart):
                    yield f"{part.content};"

    return FunctionModel(stream_function=stream, model_name="words")


def _ticks(query: str) -> Iterator[str]:
    seconds = re.search(r"\d+(\.\d+)?", query)
    count = round(float(seconds.group()) / TICK_SECONDS) if seconds else 1
    return (f"tick {number} " for number in range(1, count + 1))


def _dies(query: str) -> Iterator[str]:
    """Speak a word, and then be killed, or end the process as if all were well."""
    yield "Farewell"
    if "die" in query:
        os.kill(os.getpid(), signal.SIGKILL)
    if "vanish" in query:
        os._exit(0)


def _blocks(_query: str) -> Iterator[str]:
    """Keep the event loop, as a call does that nobody awaits."""
    time.sleep(600)
    yield "At last"


def _looks_then_says() -> Model:
    """Make a model that calls a tool and then says so."""

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if any(isinstance(message, ModelResponse) for message in messages):
            yield "Seen."
        else:
            yield {0: DeltaToolCall(name="look", json_args="{}")}

    return FunctionModel(stream_function=stream, model_name="looks")


echo = Agent(_speaks(_echoed), name="echo", description="Says the query back, word by word.")

recalls = Agent(_recalls(), name="recalls", description="Says all that users have asked.")

slow = Agent(
    _speaks(_ticks, every_seconds=TICK_SECONDS), name="slow", description="Ticks for as long as the query says."
)

patient = Agent(_waits(), name="patient", description="Answers once it may.")

stuck = Agent(_speaks(_blocks), name="stuck", description="Blocks the event loop.")

poison = Agent(_speaks(_dies), name="poison", description="Takes its process with it if asked to.")

unicode = Agent(_speaks(lambda _query: iter(UNICODE)), name="unicode", description="Speaks beyond ASCII.")

nul = Agent(_speaks(lambda _query: iter("a\0b")), name="nul", description="Says a NUL, as a model can.")

breaks = Agent(_speaks(lambda _query: _broken()), name="breaks")

form = Agent(_fills(FORM_JSON), output_type=Form, name="form", description="Fills a form in.")

patient_form = Agent(_fills_in_halves(), output_type=Form, name="patient_form", description="Fills it in once it may.")

unicode_form = Agent(
    _fills(r'{"title": "\u0000 \ud83d\ude00 😀 \u00e9é", "pages": 1, "tags": []}'),
    output_type=Form,
    name="unicode_form",
)

second_thoughts = Agent(
    _thinks_twice(
        '{"title": "A first draft, soon to be thrown away 🙂", "pages": 1, "tags": ["one", "two", "שלום"]}',
        '{"title": "Second thoughts 👩‍🚀 and a longer title", "pages": 2, "tags": ["three"]}',
        every_seconds=0.02,
    ),
    output_type=Form,
    name="second_thoughts",
    retries={"output": 2},
)

big = Agent(_speaks(_chunks, every_seconds=0.01), name="big", description="Says megabytes, quickly.")

never_valid = Agent(_fills('{"title": "No pages"}'), output_type=Form, name="never_valid")

tool_fails = Agent(_fills("{}", tool="explode"), name="tool_fails")


@second_thoughts.output_validator
def demand_a_second_draft(ctx: RunContext[object], form: Form) -> Form:
    """Refuse the first draft, once it is written."""
    if not ctx.partial_output and form.pages == 1:
        raise ModelRetry("Think again.")
    return form


_curious = Agent(_looks_then_says(), name="looks", deps_type=AsyncEngine)
looks = ServedAgent(agent=_curious, dependencies=lambda scope: scope.database)


@_curious.tool
async def look(ctx: RunContext[AsyncEngine]) -> str:
    """Look into the service's own database, after a while."""
    await asyncio.sleep(1)
    async with ctx.deps.connect() as connection:
        return str(await connection.scalar(text("SELECT 'something'")))


_breaker = Agent(_looks_then_says(), name="breaks_database", deps_type=AsyncEngine)
breaks_database = ServedAgent(agent=_breaker, dependencies=lambda scope: scope.database)


@_breaker.tool(name="look")
async def break_it(ctx: RunContext[AsyncEngine]) -> None:
    """Break a connection to the service's own database."""
    async with ctx.deps.connect() as connection:
        await connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


insatiable = Agent(_fills("{}", tool="again"), name="limited")
limited = ServedAgent(agent=insatiable, usage_limits=UsageLimits(request_limit=2))


@tool_fails.tool_plain
def explode() -> str:
    """Fail as a tool with a bug does."""
    raise RuntimeError("the tool exploded; a caller must never read this")


@insatiable.tool_plain
def again() -> str:
    """Return something that the model does not make an answer of."""
    return "again"


def _broken() -> Iterator[str]:
    yield "So far "
    raise RuntimeError("the model broke; a caller must never read this")
