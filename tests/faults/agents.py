"""The agents of the soak. Each tells its model which attempt it is; the model of the script says so in its answer."""

from __future__ import annotations

from pydantic_ai import Agent, RunContext
from typing_extensions import TypedDict

from agent_relay.worker.catalog import RunScope, ServedAgent
from tests.faults.script import speaker


class Form(TypedDict, total=False):
    """What the clerk fills in; it validates from its first character on."""

    who: str
    nonce: str
    words: int
    text: str


def _who(ctx: RunContext[RunScope]) -> str:
    return speaker(ctx.deps.run_id, ctx.deps.attempt)


_teller = Agent("openai-chat:script", deps_type=RunScope, instructions=_who, defer_model_check=True)
_clerk = Agent("openai-chat:script", deps_type=RunScope, output_type=Form, instructions=_who, defer_model_check=True)


@_clerk.tool
def look_up(ctx: RunContext[RunScope], topic: str) -> str:
    """Say who asks about what."""
    return f"{topic} for {_who(ctx)}"


teller = ServedAgent(agent=_teller, dependencies=lambda scope: scope, description="Answers with a text.")
clerk = ServedAgent(agent=_clerk, dependencies=lambda scope: scope, description="Looks something up; fills a form in.")
