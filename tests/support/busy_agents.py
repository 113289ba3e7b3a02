"""An agent whose tools tell how far they are, ask another agent, and die once where a file of the query's name lies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, CustomEvent, ModelMessage, ModelResponse, RunContext
from pydantic_ai.messages import NativeToolCallPart, NativeToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from agent_relay.worker.catalog import ServedAgent
from agent_relay.worker.sub_agents import sub_agent_events
from tests.support.agents import query_of

TOTAL = 12


@dataclass(kw_only=True)
class IndexedEvent(CustomEvent):
    """How much has been indexed."""

    done: int
    total: int


def _calling(*tools: str) -> FunctionModel:
    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[Any]:
        turn = sum(isinstance(message, ModelResponse) for message in messages)
        yield "First I search. "
        yield {1: NativeToolCallPart("search", {"n": turn}, tool_call_id=f"search-{turn}", provider_name="p")}
        yield {2: NativeToolReturnPart("search", "found", tool_call_id=f"search-{turn}", provider_name="p")}
        if turn < len(tools):
            yield {3: DeltaToolCall(name=tools[turn], json_args="{}", tool_call_id=f"{tools[turn]}-{turn}")}
        else:
            yield "Done."

    return FunctionModel(stream_function=stream, model_name="calls")


_researcher = Agent(_calling("read"), name="researcher")
_agent: Agent[Path, str] = Agent(_calling("index", "ask"), name="busy", deps_type=Path)
busy = ServedAgent(agent=_agent, dependencies=lambda scope: Path(scope.run_metadata.get("die", "/nowhere")))


@_researcher.tool
async def read(ctx: RunContext[object]) -> str:
    """Read."""
    await ctx.emit(IndexedEvent(done=1, total=1))
    return "read"


@_agent.tool
async def index(ctx: RunContext[Path]) -> str:
    """Index everything, step by step."""
    assert query_of(ctx.messages)
    for done in range(TOTAL):
        await ctx.emit(IndexedEvent(done=done, total=TOTAL))
        await asyncio.sleep(0.05)
        if done == TOTAL // 2 and ctx.deps.exists():
            ctx.deps.unlink()
            await asyncio.sleep(0.5)  # What was told is published by then.
            os.kill(os.getpid(), signal.SIGKILL)
    return "indexed"


@_agent.tool
async def ask(ctx: RunContext[Path]) -> str:
    """Ask another agent."""
    return (await _researcher.run("go", event_stream_handler=sub_agent_events(ctx))).output
