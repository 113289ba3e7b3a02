"""An agent whose query is the plan of its tool calls, and whose tools note what they do in a ledger outside.

The query is JSON: `{"ledger": PATH, "plan": [["work", "work"], ["kill"]], "seconds": 0.1, "die": PATH}`. Each list is a
response of the model; each name a tool. A run's last answer counts the results that the model has seen.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, ModelMessage, ModelResponse, RunContext, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from agent_relay.worker.catalog import RunScope, ServedAgent, ToolEvents


def _plan_of(messages: list[ModelMessage]) -> dict[str, Any]:
    prompts = [part for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
    said = [str(part.content) for part in prompts]
    return json.loads(
        next(text for text in reversed(said) if text.startswith("{"))
    )  # Others are messages into the run.


def _note(plan: dict[str, Any], line: str) -> None:
    """Append a line to the ledger; it is there whatever happens to this process."""
    with Path(plan["ledger"]).open("a") as ledger:
        ledger.write(f"{line}\n")


async def _stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    plan = _plan_of(messages)
    turn = sum(isinstance(message, ModelResponse) for message in messages)
    _note(plan, f"model {turn}")
    if turn < len(plan["plan"]):
        yield {
            place: DeltaToolCall(name=tool, json_args="{}", tool_call_id=f"{turn}-{place}")
            for place, tool in enumerate(plan["plan"][turn])
        }
        return
    results = sum(isinstance(part, ToolReturnPart) for message in messages for part in message.parts)
    for word in f"{results} results.".split():
        await asyncio.sleep(plan.get("last", 0.01))
        yield f"{word} "


_agent = Agent(FunctionModel(stream_function=_stream, model_name="plans"), name="steps", deps_type=RunScope)
steps = ServedAgent(agent=_agent, dependencies=lambda scope: scope)
forgetful = ServedAgent(agent=_agent, dependencies=lambda scope: scope, checkpoints=False)
renewed = ServedAgent(agent=_agent, dependencies=lambda scope: scope, version="2")
named = ServedAgent(agent=_agent, dependencies=lambda scope: scope, tool_events=ToolEvents.NAMES)
quiet = ServedAgent(agent=_agent, dependencies=lambda scope: scope, tool_events=ToolEvents.OFF)


def _begin(ctx: RunContext[RunScope]) -> dict[str, Any]:
    plan = _plan_of(ctx.messages)
    again = " again" if ctx.tool_call_id in ctx.deps.unfinished_calls else ""
    _note(plan, f"begun {ctx.tool_call_id} attempt {ctx.deps.attempt}{again}")
    return plan


@_agent.tool
async def work(ctx: RunContext[RunScope]) -> str:
    """Do something that takes a while."""
    plan = _begin(ctx)
    await asyncio.sleep(plan.get("seconds", 0.05))
    _note(plan, f"ended {ctx.tool_call_id}")
    return "done"


@_agent.tool
async def kill(ctx: RunContext[RunScope]) -> str:
    """Kill this process, as long as there is a file that says so; then be done."""
    plan = _begin(ctx)
    if Path(plan["die"]).exists():  # noqa: ASYNC240
        await asyncio.sleep(0.3)  # What returns beside it is stored by then.
        os.kill(os.getpid(), signal.SIGKILL)
    _note(plan, f"ended {ctx.tool_call_id}")
    return "survived"


@_agent.tool
async def kill_once(ctx: RunContext[RunScope]) -> str:
    """Kill this process, unless it did so before."""
    plan = _begin(ctx)
    if ctx.tool_call_id not in ctx.deps.unfinished_calls:
        os.kill(os.getpid(), signal.SIGKILL)
    _note(plan, f"ended {ctx.tool_call_id}")
    return "survived"


@_agent.tool
async def remind(ctx: RunContext[RunScope]) -> str:
    """Send the model a message."""
    _begin(ctx)
    ctx.enqueue("Remember.")
    return "reminded"


@_agent.tool
async def recall(ctx: RunContext[RunScope]) -> str:
    """Note how often the model was reminded."""
    plan = _begin(ctx)
    prompts = [part.content for message in ctx.messages for part in message.parts if isinstance(part, UserPromptPart)]
    _note(plan, f"reminded {prompts.count('Remember.')}")
    return "recalled"


@dataclass
class Ledger:
    """What tools and the model noted."""

    path: Path

    @property
    def lines(self) -> list[str]:
        """Everything, in order."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def begun(self, call_id: str) -> list[str]:
        """The times that a call began."""
        return [line for line in self.lines if line.startswith(f"begun {call_id} ")]

    @property
    def ended(self) -> list[str]:
        """The ids of calls that have returned."""
        return [line.split()[1] for line in self.lines if line.startswith("ended ")]

    @property
    def asked(self) -> list[str]:
        """The requests that the model was sent."""
        return [line for line in self.lines if line.startswith("model ")]


@dataclass
class Planned:
    """A plan and its ledger."""

    folder: Path
    plan: list[list[str]]
    seconds: float = 0.05
    last: float = 0.01
    """Seconds before each word of the last answer."""

    @property
    def ledger(self) -> Ledger:
        """What was done."""
        return Ledger(self.folder / "ledger")

    @property
    def dying(self) -> Path:
        """While it exists, the tool `kill` kills."""
        return self.folder / "die"

    @property
    def query(self) -> str:
        """The query that has it done."""
        return json.dumps(
            {
                "ledger": str(self.ledger.path),
                "plan": self.plan,
                "seconds": self.seconds,
                "last": self.last,
                "die": str(self.dying),
            }
        )

    @property
    def calls(self) -> list[str]:
        """The ids of all calls."""
        return [f"{turn}-{place}" for turn, tools in enumerate(self.plan) for place in range(len(tools))]
