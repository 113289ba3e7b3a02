"""An agent whose model thinks before it speaks, as its query plans it: JSON, see `Thinking`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, ModelMessage, ModelResponse, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaThinkingCalls, DeltaThinkingPart, DeltaToolCall, FunctionModel

from agent_relay.worker.catalog import ServedAgent, ToolEvents

_Said = str | DeltaThinkingCalls | dict[int, DeltaToolCall]


async def _stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[_Said]:
    prompts = [part for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    plan: dict[str, Any] = json.loads(str(prompts[-1].content))
    after_query = messages[next(place for place, message in enumerate(messages) if prompts[-1] in message.parts) :]
    turn = sum(isinstance(message, ModelResponse) for message in after_query)
    for number in range(plan["thoughts"]):
        yield {0: DeltaThinkingPart(content=f"{turn}.{number} ")}
        await asyncio.sleep(plan["pause"])
        if turn == plan["calls"] and number == plan["thoughts"] // 2 and Path(plan["die"]).exists():  # noqa: ASYNC240
            Path(plan["die"]).unlink()  # noqa: ASYNC240
            await asyncio.sleep(0.5)  # What was thought is published by then.
            os.kill(os.getpid(), signal.SIGKILL)
    if turn < plan["calls"]:
        yield {1: DeltaToolCall(name="look", json_args="{}", tool_call_id=f"look-{turn}")}
        return
    for word in ("It ", "is ", "so."):
        yield word


_agent = Agent(FunctionModel(stream_function=_stream, model_name="thinks"), name="thinks")
thinks = _agent
secretive = ServedAgent(agent=_agent, reasoning=False)
open_only = ServedAgent(agent=_agent, tool_events=ToolEvents.OFF, reasoning=True)


@_agent.tool_plain
async def look() -> str:
    """Look."""
    return "seen"


@dataclass
class Thinking:
    """How much the model thinks before each of its calls and before it answers, and whether its process dies once."""

    folder: Path
    calls: int = 0
    thoughts: int = 20
    pause: float = 0.05
    """Seconds after each thought."""

    @property
    def dying(self) -> Path:
        """If it exists, the process is killed while the model thinks about its answer."""
        return self.folder / "die"

    @property
    def query(self) -> str:
        """The query that has it done."""
        return json.dumps({"calls": self.calls, "thoughts": self.thoughts, "pause": self.pause, "die": str(self.dying)})

    @property
    def parts(self) -> dict[int, str]:
        """What each part of the reasoning is in the end."""
        return {
            turn + 1: "".join(f"{turn}.{number} " for number in range(self.thoughts)) for turn in range(self.calls + 1)
        }
