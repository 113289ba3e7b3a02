"""Events of an agent that a tool asks: its tool calls and progress, shown among those of the run."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any

from pydantic_ai import RunContext
from pydantic_ai.agent import EventStreamHandler
from pydantic_ai.messages import (
    CustomEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    NativeToolCallPart,
    NativeToolReturnPart,
    PartEndEvent,
    PartStartEvent,
)


@dataclass(kw_only=True)
class SubAgentEvent(CustomEvent, name="agent_relay.sub_agent", ui=False):
    """A call of a sub-agent's, or its result; `tool_call_id` is the call that asked the sub-agent."""

    event: Any


def sub_agent_events(ctx: RunContext[Any]) -> EventStreamHandler[Any]:
    """Make a handler that shows in the run's streams which tools a sub-agent calls, and its progress.

    For coroutine tools: `await other.run(query, event_stream_handler=sub_agent_events(ctx))`.
    """

    async def show(_: RunContext[Any], events: AsyncIterable[Any]) -> None:
        async for event in events:
            match event:
                case CustomEvent():  # Of agents that the sub-agent asks, too: it has the id of the call.
                    await ctx.emit(event)
                case (
                    FunctionToolCallEvent()
                    | FunctionToolResultEvent()
                    | PartEndEvent(part=NativeToolCallPart())
                    | PartStartEvent(part=NativeToolReturnPart())
                ):
                    await ctx.emit(SubAgentEvent(event=event))
                case _:
                    pass

    return show
