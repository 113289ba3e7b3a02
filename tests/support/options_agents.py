"""An agent with options, which answers with what it was asked with."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, FunctionToolset, ModelMessage, ModelResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from agent_relay import RunOptions, RunScope, ServedAgent


class Place(BaseModel):
    """Where the answer is for."""

    city: str = "Bern"


class Choices(BaseModel):
    """What callers may choose."""

    tone: Literal["kind", "dry"] = "kind"
    words: int = Field(5, ge=1, le=50)
    place: Place | None = None
    other_model: bool = False
    dies_once: bool = False
    form: bool = False
    refuses: bool = False


class Form(BaseModel):
    """Another output."""

    words: int = 0


def _answers_as(name: str) -> FunctionModel:
    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        if info.output_tools:
            yield {0: DeltaToolCall(name=info.output_tools[0].name, json_args='{"words": 7}', tool_call_id="form")}
            return
        if info.function_tools and not any(isinstance(message, ModelResponse) for message in messages):
            yield {0: DeltaToolCall(name=info.function_tools[0].name, json_args="{}", tool_call_id="die")}
            return
        settings: Any = info.model_settings or {}
        said = {"model": name, "instructions": info.instructions, "max_tokens": settings.get("max_tokens")}
        yield json.dumps(said)

    return FunctionModel(stream_function=stream, model_name=name)


_other = _answers_as("other")
_agent = Agent(_answers_as("own"), instructions="Answer.", model_settings={"max_tokens": 1000})


def _apply(options: Choices, scope: RunScope) -> RunOptions:
    if options.refuses:
        raise LookupError("refused")

    def die() -> str:
        if scope.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    where = f" For {options.place.city}." if options.place else ""
    return RunOptions(
        model=_other if options.other_model else None,
        instructions=f"Be {options.tone}.{where}",
        model_settings={"max_tokens": options.words},
        toolsets=[FunctionToolset([die])] if options.dies_once else None,
        output_type=Form if options.form else None,
    )


chosen = ServedAgent(agent=_agent, options=Choices, apply=_apply)


async def _later(options: Choices, _scope: RunScope) -> RunOptions:
    return RunOptions(model="test" if options.other_model else None)


named = ServedAgent(agent=_agent, options=Choices, apply=_later)
