"""Agents whose models live at the fake provider and misbehave as their names say."""

import asyncio
from collections.abc import AsyncIterator

from pydantic_ai import Agent, ApprovalRequired, ModelMessage, ModelRequest, SystemPromptPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from agent_relay.worker.agents.bank_support import WholeAnswer
from tests.support.agents import query_of


def _on(model: str) -> Agent[object, WholeAnswer]:
    return Agent(f"openai-chat:{model}", output_type=WholeAnswer, defer_model_check=True)


async def _asks(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    """Call a tool that is to be approved, wait, or say which system prompts there are."""
    query = query_of(messages)
    if query.startswith("Pay"):
        yield {0: DeltaToolCall(name="pay", json_args="{}")}
        return
    yield "Said."
    if query.startswith("Wait"):
        await asyncio.sleep(60)
    requests = [message for message in messages if isinstance(message, ModelRequest)]
    for part in (part for request in requests for part in request.parts):
        if isinstance(part, SystemPromptPart):
            yield f" {part.content}"


asks = Agent(FunctionModel(stream_function=_asks), system_prompt="Be brief.")


@asks.tool_plain
def pay() -> str:
    """Pay, once somebody has approved it."""
    raise ApprovalRequired


http_400 = _on("http-400")
http_401 = _on("http-401")
http_413 = _on("http-413")
http_429 = _on("http-429")
http_500 = _on("http-500")
hang = _on("hang")
hang_after_first = _on("hang-after-first")
cut = _on("cut")
cut_before_first = _on("cut-before-first")
flaky = _on("flaky-1")
invalid = _on("invalid")
eof = _on("eof")
eof_text = Agent("openai-chat:eof", defer_model_check=True)
half_emojis = Agent("openai-chat:half-emojis", defer_model_check=True)
falls_back = Agent(FallbackModel("openai-chat:http-500", "openai-chat:bank"), output_type=WholeAnswer)
