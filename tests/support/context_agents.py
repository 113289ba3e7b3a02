"""An agent that answers with what its run context says, in each attempt: its second tool ends the first one."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai import Agent, ModelMessage, ModelResponse, RunContext, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from agent_relay import RunScope, ServedAgent

TOOLS = ("note", "die", "note")


async def _stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    start = max(place for place, message in enumerate(messages) if message.parts[0].part_kind == "user-prompt")
    turn = sum(isinstance(message, ModelResponse) for message in messages[start:])
    if turn < len(TOOLS):
        yield {0: DeltaToolCall(name=TOOLS[turn], json_args="{}", tool_call_id=f"{start}-{turn}")}
        return
    returned = [part for message in messages[start:] for part in message.parts if isinstance(part, ToolReturnPart)]
    yield json.dumps({"notes": [part.content for part in returned], "ids": _ids(messages[:-1])})


def _ids(messages: list[ModelMessage]) -> list[str | None]:
    return [message.conversation_id for message in messages]


_agent = Agent(
    FunctionModel(stream_function=_stream, model_name="asks for the context"),
    deps_type=RunScope,
    metadata={"team": "blue", "attempt": "overruled"},
)


@_agent.tool
def note(ctx: RunContext[RunScope]) -> dict[str, Any]:
    """Say what the context says."""
    return {
        "run_id": ctx.run_id,
        "conversation_id": ctx.conversation_id,
        "metadata": ctx.metadata,
        "seconds_left": ctx.remaining_time(),
    }


@_agent.tool
def die(ctx: RunContext[RunScope]) -> str:
    """End the process of the first attempt."""
    if ctx.deps.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


told = ServedAgent(agent=_agent, dependencies=lambda scope: scope)
