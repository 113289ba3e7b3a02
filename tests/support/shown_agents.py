"""Agents whose answers are made to be looked at: every kind of value, and what hostile models say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_ai import Agent, ModelMessage
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from typing_extensions import TypedDict

from tests.support.agents import query_of


class Part(TypedDict, total=False):
    """A row of a table."""

    name: str
    pieces: int
    ready: bool


class Report(TypedDict, total=False):
    """An output with a value of each kind."""

    summary: str
    urgent: bool
    risk: Annotated[int, Field(ge=0, le=10)]
    state: Literal["open", "closed"]
    parts: list[Part]
    remarks: list[str]
    origin: dict[str, Any]


REPORT: dict[str, Any] = {
    "summary": "The *first* shipment is **late**.\n\n- one\n- two",
    "urgent": True,
    "risk": 7,
    "state": "open",
    "parts": [{"name": "bolt", "pieces": 12, "ready": True}, {"name": "nut", "pieces": 9, "ready": False}],
    "remarks": ["Call them", "Wait until noon"],
    "origin": {"city": "Łódź", "stops": [1, 2, {"deep": None}]},
}


def _says(text_of: Callable[[str], str], characters: int, every_seconds: float = 0) -> Model:
    """Make a model of text that says so many characters at a time."""

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        text = text_of(query_of(messages))
        for start in range(0, len(text), characters):
            await asyncio.sleep(every_seconds)
            yield text[start : start + characters]

    return FunctionModel(stream_function=stream, model_name="says")


def _fills(output_of: Callable[[str], Any], characters: int, every_seconds: float = 0) -> Model:
    """Make a model that fills the output in, so many characters at a time."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[DeltaToolCalls]:
        text = json.dumps(output_of(query_of(messages)))
        yield {0: DeltaToolCall(name=info.output_tools[0].name)}
        for start in range(0, len(text), characters):
            await asyncio.sleep(every_seconds)
            yield {0: DeltaToolCall(json_args=text[start : start + characters])}

    return FunctionModel(stream_function=stream, model_name="fills")


report = Agent(
    _fills(lambda _query: REPORT, 4, 0.02),
    output_type=Report,
    name="report",
    description="Writes a report of all kinds.",
)

parrot = Agent(_says(lambda query: query, 2_000), name="parrot", description="Says exactly what it is told.")

items = Agent(
    _fills(lambda query: {"remarks": [f"item {number}" for number in range(int(query))]}, 20_000),
    output_type=Report,
    name="items",
    description="Lists as many items as the query says.",
)
