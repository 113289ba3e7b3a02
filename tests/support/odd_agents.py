"""Agents whose models and tools say what JSON, UTF-8 or PostgreSQL cannot hold."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Never, TypedDict, cast

from pydantic import BaseModel, Field
from pydantic_ai import Agent, BinaryContent, ModelMessage, ModelResponse, RunContext, ToolReturn
from pydantic_ai import messages as said
from pydantic_ai.capabilities import PrepareTools, ProcessHistory
from pydantic_ai.exceptions import (
    ContentFilterError,
    FallbackExceptionGroup,
    ModelHTTPError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
)
from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.output import TextOutput
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from agent_relay.worker.catalog import RunScope, ServedAgent
from tests.support.agents import Form, query_of

HALF, OTHER_HALF = "\ud83d", "\ude00"


class Nameless:
    """An object that says nothing of itself, and raises where it is asked."""

    def __repr__(self) -> str:
        raise RuntimeError("no name")


class Opaque(BaseModel):
    """A model that holds what pydantic cannot serialize."""

    inside: Any


class Wordless(UsageLimitExceeded):
    """An error that cannot say what it is about."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class ExitsAsText(UsageLimitExceeded):
    """An error that ends the process where it is asked what it is about."""

    def __str__(self) -> str:
        raise SystemExit(3)


class ExitsAsRead(Mapping[str, int]):
    """What ends the process where it is read."""

    def __getitem__(self, key: str) -> Never:
        raise KeyboardInterrupt

    def __iter__(self) -> Never:
        raise SystemExit(3)

    def __len__(self) -> int:
        return 1


@dataclass
class Node:
    """A part of a graph, which refers to the others."""

    name: str
    near: list[Node] = field(default_factory=list["Node"])


def graph(size: int) -> Node:
    """Make a graph in which each node is near all others: there are more ways through it than can be written."""
    nodes = [Node(str(number)) for number in range(size)]
    for node in nodes:
        node.near = [other for other in nodes if other is not node]
    return nodes[0]


def doubled(times: int) -> list[Any]:
    """Make a list that holds another one twice, and so on."""
    it: list[Any] = [1]
    for _ in range(times):
        it = [it, it]
    return it


class Panic(BaseException):
    """As what panics in a library written in Rust raises it: no `Exception`."""


def _contains_itself() -> list[Any]:
    """Make a list that contains itself, twice."""
    it: list[Any] = []
    it += [it, it]
    return it


def _deep() -> list[Any]:
    it: list[Any] = []
    for _ in range(5000):
        it = [it]
    return it


OBJECTS: dict[str, Callable[[], Any]] = {
    "object": object,
    "nameless": Nameless,
    "opaque": lambda: Opaque(inside=object()),
    "exception": lambda: ValueError(f"a\0b{HALF}"),
    "class": lambda: Nameless,
    "function": lambda: _deep,
    "contains_itself": _contains_itself,
    "deep": _deep,
    "bytes": lambda: b"\xff\0",
    "nan": lambda: math.nan,
    "infinite": lambda: -math.inf,
    "huge": lambda: 10**5000,
    "big": lambda: 2**70,
    "complex": lambda: 1 + 2j,
    "keys": lambda: {1: 1, (2, 3): 2, None: 3, object(): 4, f"a\0{HALF}": 5},
    "set": lambda: {1, "a\0", HALF},
    "endless": itertools.count,
    "text": lambda: f"\0{OTHER_HALF}{HALF}",
    "file": lambda: BinaryContent(data=b"\xff\0", media_type="image/png"),
    "plain": lambda: {"a": [1, None, True, 2.5, "b"]},
}

PARTS: dict[str, Callable[[], Any]] = {
    "SystemPromptPart": lambda: said.SystemPromptPart("x"),
    "UserPromptPart": lambda: said.UserPromptPart(["x", BinaryContent(data=b"\xff", media_type="image/png")]),
    "ToolReturnPart": lambda: said.ToolReturnPart("x", "x", tool_call_id="x"),
    "ToolSearchReturnPart": lambda: said.ToolSearchReturnPart(content={"discovered_tools": []}, tool_call_id="x"),
    "LoadCapabilityReturnPart": lambda: said.LoadCapabilityReturnPart(content={"message": "x"}, tool_call_id="x"),
    "RetryPromptPart": lambda: said.RetryPromptPart("x"),  # pyright: ignore[reportDeprecated]
    "RetryFeedbackPart": lambda: said.RetryFeedbackPart("x", retry=said.RetryInfo("no_output")),
    "ToolAvailabilityDeltaPart": lambda: said.ToolAvailabilityDeltaPart(tools_added=["x"]),
    "CapabilityLoadDeltaPart": lambda: said.CapabilityLoadDeltaPart(loaded=["x"]),
    "ModelSettingsDeltaPart": lambda: said.ModelSettingsDeltaPart(settings={}),
    "InstructionDeltaPart": lambda: said.InstructionDeltaPart(id=None, content="x"),
    "InstructionBaselinePart": lambda: said.InstructionBaselinePart(instructions=[said.InstructionPart(content="x")]),
    "CompactionPart": lambda: said.CompactionPart("x"),
    "SpeechPart": lambda: said.SpeechPart(speaker="assistant", transcript="x"),
    "TextPart": lambda: said.TextPart("x"),
    "ThinkingPart": lambda: said.ThinkingPart("x"),
    "FilePart": lambda: said.FilePart(BinaryContent(data=b"\xff", media_type="image/png")),
    "ToolCallPart": lambda: said.ToolCallPart("x", {"x": "x"}),
    "ToolSearchCallPart": lambda: said.ToolSearchCallPart(args={"queries": ["x"]}),
    "LoadCapabilityCallPart": lambda: said.LoadCapabilityCallPart(args={"id": "x"}),
    "NativeToolCallPart": lambda: said.NativeToolCallPart("x", {"x": "x"}),
    "NativeToolReturnPart": lambda: said.NativeToolReturnPart("x", "x"),
    "NativeToolSearchCallPart": lambda: said.NativeToolSearchCallPart(args={"queries": ["x"]}),
    "NativeToolSearchReturnPart": lambda: said.NativeToolSearchReturnPart(content={"discovered_tools": []}),
}
"""Every kind of part that pydantic-ai knows, plain."""

KEPT_PLAIN = {"part_kind", "kind", "cause", "on_change", "timestamp", "media_type"}
"""What pydantic-ai itself writes, and reads a part's kind from."""


def odd_part(kind: str, text: str, thing: Any) -> Any:
    """Make a part of that kind with `text` wherever there is text, and `thing` wherever anything may be."""
    return _odd(PARTS[kind](), text, thing)


def _odd(value: Any, text: str, thing: Any) -> Any:
    if isinstance(value, str):
        return text
    if isinstance(value, Mapping):
        return {key: _odd(item, text, thing) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_odd(item, text, thing) for item in cast("list[Any]", value)]
    if is_dataclass(value) and not isinstance(value, type):
        for of in fields(value):
            held = getattr(value, of.name)
            if of.name in KEPT_PLAIN or "Literal" in str(of.type):
                continue
            if "Any" in str(of.type) and held is None:
                held = {text: thing} if "dict" in str(of.type) else thing
            else:
                held = _odd(held, text, thing)
            object.__setattr__(value, of.name, held)
    return value


@dataclass
class _Said(StreamedResponse):
    """A response whose parts arrive whole."""

    parts: list[Any]
    name: str

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        for number, part in enumerate(self.parts):
            await asyncio.sleep(0)
            yield self._parts_manager.handle_part(vendor_part_id=number, part=part)

    async def close_stream(self) -> None:
        pass

    @property
    def model_name(self) -> str:
        return self.name

    @property
    def provider_name(self) -> str:
        return self.name

    @property
    def provider_url(self) -> None:
        return None

    @property
    def timestamp(self) -> datetime:
        return datetime.now(UTC)


class Odd(Model):
    """A model that says what the query tells it to: a JSON object with `part`, `text`, `object` and `where`.

    Its first response calls the tool `odd`; the second holds the part, if it is one of a response, and a word of text.
    """

    @property
    def model_name(self) -> str:
        """Its name."""
        return "odd"

    @property
    def system(self) -> str:
        """Its provider."""
        return "odd"

    async def request(self, *_: Any, **__: Any) -> ModelResponse:
        """Refuse: it streams."""
        raise NotImplementedError

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,  # noqa: ARG002
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,  # noqa: ARG002
    ) -> AsyncGenerator[StreamedResponse]:
        """Say it."""
        recipe = recipe_of(messages)
        if any(isinstance(message, ModelResponse) for message in messages[_last_prompt(messages) :]):
            parts = [said.TextPart("So be it.")]
            if _is_of_a_response(recipe["part"]) and "Call" not in recipe["part"]:
                parts.insert(0, odd_part(recipe["part"], recipe["text"], OBJECTS[recipe["object"]]()))
        else:
            parts = [said.ToolCallPart("odd", {}, tool_call_id=recipe["text"] + "1")]
            if _is_of_a_response(recipe["part"]) and "Call" in recipe["part"]:
                parts.append(odd_part(recipe["part"], recipe["text"], OBJECTS[recipe["object"]]()))
        yield _Said(model_request_parameters, parts, recipe["text"])


def recipe_of(messages: list[ModelMessage]) -> dict[str, str]:
    """Read what the query tells the model."""
    return json.loads(query_of(messages[: _last_prompt(messages) + 1]))


def _last_prompt(messages: list[ModelMessage]) -> int:
    """Find the query of this run: the last that a user wrote as plain text."""
    return max(
        number
        for number, message in enumerate(messages)
        for part in message.parts
        if isinstance(part, said.UserPromptPart) and isinstance(part.content, str) and part.content.startswith("{")
    )


def _is_of_a_response(kind: str) -> bool:
    return kind.removeprefix("Native") in _OF_RESPONSES or kind.startswith("Native")


_OF_RESPONSES = {
    "TextPart",
    "ThinkingPart",
    "FilePart",
    "SpeechPart",
    "CompactionPart",
    "ToolCallPart",
    "ToolSearchCallPart",
    "LoadCapabilityCallPart",
}

odd = Agent(Odd(), name="odd", retries={"tools": 3})


@odd.tool(name="odd")
def return_the_odd(ctx: RunContext[object]) -> Any:
    """Return, raise or add to the conversation what the query says."""
    recipe = recipe_of(ctx.messages)
    thing = OBJECTS[recipe["object"]]()
    if recipe["part"] == "error":
        raise UnexpectedModelBehavior(recipe["text"])
    if not _is_of_a_response(recipe["part"]) and recipe["part"] in PARTS:
        ctx.messages.append(said.ModelRequest(parts=[odd_part(recipe["part"], recipe["text"], thing)]))
    return ToolReturn(
        [recipe["text"], thing] if recipe["where"] == "content" else recipe["text"],
        metadata={recipe["text"]: thing} if recipe["where"] == "metadata" else None,
    )


def _calls(name: str, arguments: str = "{}", *, model_name: str = "calls") -> Model:
    """Make a model that calls a tool, and then says so."""

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if isinstance(messages[-1], ModelResponse) or len(messages) % 4 == 3:
            yield "Done."
        else:
            yield {0: DeltaToolCall(name=name, json_args=arguments)}

    return FunctionModel(stream_function=stream, model_name=model_name)


def _words(*words: str, model_name: str = "words") -> Model:
    async def stream(_messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        for word in words:
            await asyncio.sleep(0.05)
            yield word

    return FunctionModel(stream_function=stream, model_name=model_name)


def _calling(returns: Callable[[], Any]) -> Agent[object, str]:
    """Make an agent whose tool returns, or raises, that."""
    agent: Agent[object, str] = Agent(_calls("it"))

    @agent.tool_plain(name="it")
    def call() -> Any:  # pyright: ignore[reportUnusedFunction]
        """Return it."""
        return returns()

    return agent


def _raising(error: BaseException) -> Agent[object, str]:
    def fail() -> Never:
        raise error

    return _calling(fail)


metadata_object = _calling(lambda: ToolReturn("3 rows", metadata={"frame": object()}))
metadata_exits = _calling(lambda: ToolReturn("read", metadata=ExitsAsRead()))
metadata_graph = _calling(lambda: ToolReturn("read", metadata={"graph": graph(30), "lists": doubled(60)}))
odd_file_name = _calling(lambda: os.fsdecode(b"caf\xe9.txt"))
huge_number = _calling(lambda: {"number": 10**5000})
contains_itself = _calling(_contains_itself)
raises_rejection = _raising(ModelHTTPError(400, "of-the-tool"))
raises_outage = _raising(ModelHTTPError(503, "of-the-tool"))
raises_filter = _raising(ContentFilterError("of the tool"))
raises_group = _raising(FallbackExceptionGroup("all", [ModelHTTPError(400, "of-the-tool")]))


def _reject() -> str:
    raise ModelHTTPError(400, "of-the-agent")


def _reject_text(_text: str) -> str:
    return _reject()


def _reject_toolset(_ctx: RunContext[object]) -> Any:
    return _reject()


def _reject_history(_messages: list[ModelMessage]) -> Any:
    return _reject()


async def _reject_tools(_ctx: RunContext[object], _tools: list[ToolDefinition]) -> Any:
    return _reject()


REJECTING: dict[str, Agent[object, Any]] = {
    "rejecting_instructions": Agent(_words("Yes."), instructions=_reject),
    "rejecting_system_prompt": Agent(_words("Yes.")),
    "rejecting_toolset": Agent(_words("Yes."), toolsets=[_reject_toolset]),
    "rejecting_history": Agent(_words("Yes."), capabilities=[ProcessHistory(_reject_history)]),
    "rejecting_preparation": Agent(_words("Yes."), tools=[_reject], capabilities=[PrepareTools(_reject_tools)]),
    "rejecting_output": Agent(_words("Yes."), output_type=TextOutput(_reject_text)),
    "rejecting_validator": Agent(_words("Yes.")),
}
"""Agents with a function that raises a model's error, where no model does."""
REJECTING["rejecting_system_prompt"].system_prompt(dynamic=True)(_reject)
REJECTING["rejecting_validator"].output_validator(_reject_text)
globals().update(REJECTING)


def _rejecting_factory(_scope: RunScope) -> Never:
    raise ModelHTTPError(400, "of-the-factory")


factory_rejects = ServedAgent(agent=Agent(_words("Yes.")), dependencies=_rejecting_factory)
raises_nul = _raising(UnexpectedModelBehavior("a\0b"))
raises_wordless = _raising(Wordless("x"))
panics = _raising(Panic())
exits_as_text = _raising(ExitsAsText("x"))
split_emoji = Agent(_words("So: ", HALF, OTHER_HALF, "!"))
half_emoji = Agent(_words("So: ", HALF, "!"))
odd_tool_name = Agent(_calls(f"lo{HALF}ok"), retries={"tools": 3})
odd_model_name = Agent(_words("Yes.", model_name=f"gp\0t{HALF}"))

odd_form = Agent(_calls("final_result", '{"title": "x", "pages": 1, "tags": []}'), output_type=Form)


@odd_form.output_validator
def spoil(form: Form) -> Form:
    """Put into the output what its type allows and JSON does not."""
    form.title = f"caf\0{HALF}{OTHER_HALF}{HALF}"
    return form


def _boxed(text: str) -> Any:
    """Return an object that pydantic knows nothing of."""
    return {"text": text, "box": object()}


custom_object = Agent(_calls("final_result", '{"text": "x"}'), output_type=_boxed)


async def _until_told(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
    word = Path(query_of(messages))
    before = time.process_time(), time.monotonic()
    while True:
        now = time.process_time(), time.monotonic()
        yield "".join(f"{1000 * (at - last):.0f}{end}" for at, last, end in zip(now, before, "/ ", strict=True))
        before = now
        await asyncio.sleep(0.05)
        if word.exists():  # noqa: ASYNC240  (another process makes it)
            return


unwinds_badly = Agent(_calls("it"))


@unwinds_badly.tool_plain(name="it")
async def fail_as_it_is_stopped() -> None:
    """Wait, and raise something else where that is cancelled."""
    try:
        await asyncio.sleep(3600)
    finally:
        raise ConnectionResetError


bystander = Agent(FunctionModel(stream_function=_until_told, model_name="bystander"))
"""Says each 50 ms how long that took: the milliseconds of CPU time that its process used meanwhile, and all."""


# What is large, or has no end; the query names the tool, and the model says what becomes of it.


async def _calls_the_named(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    results = [part for part in messages[-1].parts if isinstance(part, said.ToolReturnPart)]
    if results:
        yield str(results[-1].content)[:100]
    else:
        yield {0: DeltaToolCall(name=query_of(messages), json_args="{}")}


@dataclass
class Boxed:
    """An object that holds anything."""

    inside: Any


@dataclass(slots=True)
class Slotted:
    """An object without a `__dict__`."""

    inside: Any


class Open(BaseModel, extra="allow"):
    """A model that takes anything."""


class Lazy(BaseModel):
    """A model that reads what it is given only as it is written."""

    inside: Iterable[int]
    hidden: Any = Field(default=None, exclude=True)


class Row(BaseModel):
    """A small model."""

    a: int
    note: float | None = None


class Rows(TypedDict):
    """A dict with a known key."""

    rows: list[Row]


def _rows(number: int = 500_000) -> list[dict[str, int]]:
    return [{"a": number} for number in range(number)]


def _in_the_main_thread() -> Any:
    yield threading.current_thread() is threading.main_thread()


async def _table() -> Any:
    """Return what the thread of the event loop alone may read."""
    return sqlite3.connect(":memory:").execute("SELECT 1 UNION SELECT 2")


LARGE: dict[str, Callable[[], Any]] = {
    "text_of_14_mb": lambda: "x" * 14_000_000,
    "text_of_4_mib": lambda: "x" * ((4 << 20) - 100),
    "wide_text": lambda: "ü😀\n" * 500_000,
    "floats": lambda: [number / 3 for number in range(200_000)],
    "integers": lambda: [1] * 2_000_000,
    "too_many_integers": lambda: [1] * 10_000_000,
    "lists": lambda: [[] for _ in range(1_000_000)],
    "objects": lambda: [Boxed({"number": number}) for number in range(100_000)],
    "nested": lambda: [{"rows": [{"a": number, "b": [str(number)] * 3} for number in range(50)]} for _ in range(1000)],
    "metadata": lambda: ToolReturn("read", metadata={"rows": _rows()}),
    "object_as_metadata": lambda: ToolReturn("read", metadata=Boxed(Slotted(_rows()))),
    "model_as_metadata": lambda: ToolReturn("read", metadata=Opaque(inside=_rows())),
    "return_value": lambda: ToolReturn(_rows()),
    "small_return_value": lambda: ToolReturn(_rows(200_000), content="more"),
    "texts_as_content": lambda: ToolReturn("read", content=["x"] * 500_000),
    "dicts_as_content": lambda: ToolReturn("read", content=cast("Any", _rows())),
    "rows": lambda: _rows(200_000),
    "too_many_rows": _rows,
    "rows_and_a_file": lambda: [_rows(200_000), BinaryContent(data=b"x", media_type="image/png")],
    "files": lambda: [1] * 200_000 + [cast("Any", BinaryContent(data=b"x", media_type="image/png"))],
    "object_with_rows": lambda: Boxed(_rows(200_000)),
    "slots_with_rows": lambda: Slotted(_rows(200_000)),
    "model_with_rows": lambda: Opaque(inside=_rows(200_000)),
    "models": lambda: [Row(a=number) for number in range(100_000)],
    "typed_dict": lambda: Rows(rows=[Row(a=number) for number in range(100_000)]),
    "tuple": lambda: tuple(_rows(200_000)),
    "generator_of_rows": lambda: (row for row in _rows(200_000)),
    "large_metadata": lambda: ToolReturn("read", metadata="x" * 14_000_000),
    "shared": lambda: doubled(30),
    "shared_dicts": lambda: _doubled_in({}, lambda it: {"a": it, "b": it}),
    "shared_tuples": lambda: _doubled_in((1,), lambda it: (it, it, it)),
    "shared_objects": lambda: _doubled_in(Boxed(1), lambda it: Boxed([it, it])),
    "shared_and_contains_itself": lambda: _tied(doubled(30)),
    "shared_metadata": lambda: ToolReturn("read", metadata=doubled(30)),
    "endless": itertools.count,
    "endless_inside": lambda: {"a": [itertools.count()]},
    "endless_in_an_object": lambda: Boxed(itertools.repeat("x")),
    "endless_in_slots": lambda: Slotted(itertools.count()),
    "endless_in_a_model": lambda: Open.model_validate({"inside": itertools.count()}),
    "endless_behind_a_field": lambda: Lazy(inside=itertools.count()),
    "generator_in_an_object": lambda: Boxed([Slotted(number for number in range(3))]),
    "generator_in_a_model": lambda: Open.model_validate({"inside": {"numbers": (number for number in range(3))}}),
    "generator_behind_a_field": lambda: Lazy(inside=(number for number in range(3)), hidden=itertools.count()),
    "generator_in_a_set": lambda: {itertools.chain([1], [2])},
    "waits": _in_the_main_thread,
    "generator": lambda: (number for number in range(3)),
    "map_inside": lambda: ["a", map(str, range(3))],
}


def _doubled_in(it: Any, around: Callable[[Any], Any]) -> Any:
    for _ in range(30):
        it = around(it)
    return it


def _tied(it: list[Any]) -> list[Any]:
    it.append(it)
    return it


large = Agent(FunctionModel(stream_function=_calls_the_named, model_name="large"))
for _name, _make in LARGE.items():
    large.tool_plain(name=_name)(_make)
large.tool_plain(name="table")(_table)


def _large_output(text: str) -> Any:
    """Return what the model names."""
    return LARGE[text]()


async def _names_an_output(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
    yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args=json.dumps({"text": query_of(messages)}))}


def _typed_output(text: str) -> list[Row]:
    """Return many small models, whatever the model writes."""
    return [Row(a=number) for number in range(int(text))]


typed_output = Agent(FunctionModel(stream_function=_names_an_output, model_name="large"), output_type=_typed_output)
large_output = Agent(FunctionModel(stream_function=_names_an_output, model_name="large"), output_type=_large_output)
