"""An agent whose tools wait for somebody; the query says which of them its model calls, round after round.

The query is a JSON list of rounds, each a list of `[tool, args]`. In the end, the model says what the tools returned,
and what was sent into the run, which is any text that is no such list. To the query `["history"]`, it says all queries.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pydantic_ai import Agent, ApprovalRequired, CallDeferred, DeferredToolRequests, RunContext
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.messages import BaseToolReturnPart, ModelMessage, ModelResponse, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import ExternalToolset

from agent_relay.worker.catalog import ServedAgent

LEDGER = "LEDGER"
"""The environment variable that names the file to which each payment adds a line."""


async def _speak(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """Call what the last query names, a round at a time, then say what came of it."""
    opened = {call.tool_call_id for each in messages if isinstance(each, ModelResponse) for call in each.tool_calls}
    closed = {part.tool_call_id for each in messages for part in each.parts if isinstance(part, BaseToolReturnPart)}
    assert opened == closed, f"a provider would refuse this: {opened ^ closed}"
    prompts = [
        (place, str(part.content))
        for place, message in enumerate(messages)
        for part in message.parts
        if isinstance(part, UserPromptPart)
    ]
    plans = [number for number, (_, text) in enumerate(prompts) if text.startswith("[")]
    at, query = prompts[plans[-1]]
    later = messages[at:]
    rounds: list[Any] = json.loads(query)
    if rounds == ["history"]:
        yield json.dumps([text for _, text in prompts[: plans[-1]]])
        return
    number = sum(isinstance(message, ModelResponse) for message in later)
    if number < len(rounds):
        for place, (tool, args) in enumerate(rounds[number]):
            call_id = f"call-{at}-{number}-{place}"
            yield {place: DeltaToolCall(name=tool, json_args=json.dumps(args), tool_call_id=call_id)}
        return
    returned = [
        f"{part.tool_name}: {part.model_response_str()}"
        for message in later
        for part in message.parts
        if isinstance(part, BaseToolReturnPart)
    ]
    yield json.dumps(returned + [f"told: {text}" for _, text in prompts[plans[-1] + 1 :]])


def write(amount: int) -> None:
    """Note a payment where no attempt can take it back."""
    if path := os.environ.get(LEDGER):
        with Path(path).open("a") as ledger:
            ledger.write(f"{amount}\n")


_ELSEWHERE = ToolDefinition(
    name="elsewhere",
    parameters_json_schema={"type": "object"},
    return_schema={"type": "object", "properties": {"weight": {"type": "number"}}, "required": ["weight"]},
)


def _agent(**options: Any) -> Agent[None, Any]:
    agent: Agent[None, Any] = Agent(
        FunctionModel(stream_function=_speak), toolsets=[ExternalToolset([_ELSEWHERE])], **options
    )

    @agent.tool_plain(requires_approval=True)
    def pay(amount: int) -> str:
        write(amount)
        return f"paid {amount}"

    @agent.tool
    def refund(ctx: RunContext[None], amount: int) -> str:
        if not ctx.tool_call_approved:
            raise ApprovalRequired({"prompt": f"Refund {amount}?"})
        write(-amount)
        return f"refunded {amount}, {ctx.tool_call_metadata}"

    @agent.tool_plain
    def ask(question: str) -> str:
        raise CallDeferred({"prompt": question}, kind="question")

    @agent.tool_plain
    def choose(question: str, schema: dict[str, Any]) -> str:
        raise CallDeferred({"prompt": question, "schema": schema}, kind="question")

    @agent.tool_plain
    def measure() -> float:
        raise CallDeferred

    @agent.tool_plain
    def look() -> str:
        write(0)
        return "seen"

    @agent.tool_plain
    async def nap(seconds: float) -> str:
        write(7)
        await asyncio.sleep(seconds)
        return "rested"

    return agent


asks = _agent(output_type=[str, DeferredToolRequests])
forgetful = ServedAgent(agent=asks, checkpoints=False)
plain = _agent()
"""It does not say that it waits."""
inline = _agent(capabilities=[HandleDeferredToolCalls(lambda _ctx, requests: requests.build_results(approve_all=True))])
"""It approves everything, and leaves the rest open."""
