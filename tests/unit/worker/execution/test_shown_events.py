"""What is told of an agent's work: its own tools, its provider's, those of agents that it asks, and progress."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, CustomEvent, ModelMessage, ModelResponse, RunContext
from pydantic_ai.messages import NativeToolCallPart, NativeToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from agent_relay.worker.catalog import ToolEvents
from agent_relay.worker.execution import shown_events
from agent_relay.worker.execution.shown_events import ShownEvents
from agent_relay.worker.sub_agents import sub_agent_events

LONGEST = 60


class Place(BaseModel):
    """Where something is."""

    street: str


@dataclass(kw_only=True)
class LookedEvent(CustomEvent):
    """How far a tool has looked."""

    done: int
    at: Any = None


@dataclass(kw_only=True)
class AuditedEvent(CustomEvent, ui=False):
    """Nothing for people."""

    secret: str


@dataclass(kw_only=True)
class BrokenEvent(CustomEvent):
    """An event that cannot say what it carries."""

    def to_payload(self) -> Any:
        """Fail."""
        raise LookupError("no payload")


def calling(*tools: str) -> FunctionModel:
    """Make a model that calls these tools, one a response, and then answers."""

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[Any]:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        if turn < len(tools):
            yield {0: DeltaToolCall(name=tools[turn], json_args="{}", tool_call_id=f"{tools[turn]}-{turn}")}
        else:
            yield {1: NativeToolCallPart("search", {"query": "x"}, tool_call_id="native-1", provider_name="p")}
            yield {2: NativeToolReturnPart("search", "found", tool_call_id="native-1", provider_name="p")}
            yield "Done."

    return FunctionModel(stream_function=stream)


inner = Agent(calling("taste"), name="inner")
middle = Agent(calling("ask_inner"), name="middle")
outer = Agent(calling("look", "ask_middle"), name="outer")


@inner.tool
async def taste(ctx: RunContext[object]) -> str:
    """Taste."""
    await ctx.emit(LookedEvent(done=9))
    return "sweet"


@middle.tool
async def ask_inner(ctx: RunContext[object]) -> str:
    """Ask."""
    return (await inner.run("go", event_stream_handler=sub_agent_events(ctx))).output


@outer.tool
async def ask_middle(ctx: RunContext[object]) -> str:
    """Ask."""
    return (await middle.run("go", event_stream_handler=sub_agent_events(ctx))).output


@outer.tool
async def look(ctx: RunContext[object]) -> str:
    """Look."""
    await ctx.emit(LookedEvent(done=1, at=Place(street="Main")))
    await ctx.emit(LookedEvent(done=2, at=iter([1, float("nan")])))
    await ctx.emit(LookedEvent(done=3, at="x" * 100))
    await ctx.emit(LookedEvent(done=4, at=itertools.count()))
    await ctx.emit(AuditedEvent(secret="s"))
    await ctx.emit(BrokenEvent())
    return "seen"


async def told(setting: ToolEvents = ToolEvents.FULL, agent: Any = outer) -> list[dict[str, Any]]:
    """Run an agent, as the worker does, and return what is told of it."""
    events: list[dict[str, Any]] = []
    shown = ShownEvents(events.append, setting, LONGEST, frozenset())
    async with agent.iter("go") as run:
        async for node in run:
            if Agent.is_model_request_node(node) or Agent.is_call_tools_node(node):
                async with node.stream(run.ctx) as stream:
                    async for event in stream:
                        await shown.take(event)
    return events


async def test_progress_is_told_as_json_in_its_place_and_only_for_people() -> None:
    events = (await told())[:7]

    assert [event.pop("event") for event in events] == ["tool_call", *["progress"] * 5, "tool_result"]
    progress = events[1:6]
    assert {event["tool_call_id"] for event in progress} == {"look-0"}
    assert [event["name"] for event in progress] == [*["looked"] * 4, "broken"]
    assert progress[0]["data"] == {"done": 1, "at": {"street": "Main"}}
    assert progress[1]["data"] == {"done": 2, "at": [1, None]}
    assert progress[2]["data"] == '{"done":3,"at":"' + "x" * (LONGEST - 16) + "… (118 bytes)"
    assert progress[3]["data"] == "… (more than 960 bytes)"
    assert progress[4]["data"] is None


async def test_tools_of_the_provider_and_of_agents_that_are_asked_are_told_as_such() -> None:
    events = [event for event in await told() if event["event"] != "progress"]

    asked = [
        (
            event["event"],
            event["tool_call_id"],
            event.get("native", False),
            event.get("parent_tool_call_id"),
            event.get("args") or event.get("content"),
        )
        for event in events
    ]
    searched = [("tool_call", "native-1", True, '{"query":"x"}'), ("tool_result", "native-1", True, "found")]
    assert asked == [
        ("tool_call", "look-0", False, None, "{}"),
        ("tool_result", "look-0", False, None, "seen"),
        ("tool_call", "ask_middle-1", False, None, "{}"),
        ("tool_call", "ask_inner-0", False, "ask_middle-1", "{}"),
        ("tool_call", "taste-0", False, "ask_inner-0", "{}"),
        ("tool_result", "taste-0", False, "ask_inner-0", "sweet"),
        *((*each[:3], "ask_inner-0", each[3]) for each in searched),
        ("tool_result", "ask_inner-0", False, "ask_middle-1", "Done."),
        *((*each[:3], "ask_middle-1", each[3]) for each in searched),
        ("tool_result", "ask_middle-1", False, None, "Done."),
        *((*each[:3], None, each[3]) for each in searched),
    ]


async def test_progress_of_an_agent_that_is_asked_says_in_which_of_its_calls() -> None:
    (tasted,) = [
        event for event in await told() if event["event"] == "progress" and event["data"] == {"done": 9, "at": None}
    ]

    assert tasted["tool_call_id"] == "taste-0"


async def test_names_alone_are_told_of_all_tools_and_off_leaves_them_out() -> None:
    named = await told(ToolEvents.NAMES)
    off = await told(ToolEvents.OFF)

    tools = [event for event in named if event["event"] != "progress"]
    assert len(tools) == 14
    assert {(event.get("args"), event.get("content")) for event in tools} == {(None, None)}
    assert {event["event"] for event in off} == {"progress"}
    assert not any("tool_call_id" in event for event in off)


async def test_progress_without_end_is_told_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown_events, "MOST_PROGRESS", 3)
    monkeypatch.setattr(shown_events, "PROGRESS_PAUSE_SECONDS", 3600.0)

    progress = [event for event in await told() if event["event"] == "progress"]

    assert [event["data"] for event in progress][:2] == [
        {"done": 1, "at": {"street": "Main"}},
        {"done": 2, "at": [1, None]},
    ]
    assert len(progress) == 3
