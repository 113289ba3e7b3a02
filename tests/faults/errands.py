"""Errands: runs of several tool calls, some of which wait for an approval. Each call stands in a ledger outside.

The output says what the agent was told meanwhile and what came of each call.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic_ai import Agent, ModelMessage, ModelResponse, RunContext, UserPromptPart
from pydantic_ai.messages import BaseToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel

from agent_relay.worker.catalog import RunScope, ServedAgent

ERRAND = "errand"
ERRANDS = {ERRAND: "tests.faults.errands:served"}
LEDGER = "ERRAND_LEDGER"
"""The environment variable that names the file to which each call adds a line as it begins and one as it ends."""
_LEDGER = os.environ.get(LEDGER, os.devnull)
"""Read once: a guest in the same worker may empty the environment."""

WORK, PAY = "work", "pay"
"""The tools; `pay` needs an approval."""
DONE, DENIED = "done", "denied"
MOST_ROUNDS = 8
WORD_SECONDS = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """A query that says which tools are called, round after round."""

    nonce: str
    """Nobody else asks this."""
    rounds: tuple[tuple[str, ...], ...]
    """The tools of each response of the model."""
    seconds: float
    """How long each call takes."""

    def __str__(self) -> str:
        return json.dumps({"nonce": self.nonce, "rounds": self.rounds, "seconds": self.seconds})

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a query."""
        said = json.loads(text)
        return cls(nonce=said["nonce"], rounds=tuple(map(tuple, said["rounds"])), seconds=said["seconds"])

    @classmethod
    def any(cls, chance: random.Random, most_rounds: int = MOST_ROUNDS) -> Self:
        """Make one up."""
        rounds = tuple(
            tuple(PAY if chance.random() < 0.2 else WORK for _ in range(chance.choice([1, 1, 2, 3])))
            for _ in range(chance.randint(1, most_rounds))
        )
        return cls(nonce=f"{chance.getrandbits(64):016x}", rounds=rounds, seconds=round(chance.uniform(0.02, 0.4), 3))

    @property
    def calls(self) -> dict[str, str]:
        """The tool of each call, by its id."""
        return {
            f"{self.nonce}-{number}-{place}": tool
            for number, tools in enumerate(self.rounds)
            for place, tool in enumerate(tools)
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What an output says."""

    nonce: str
    told: list[str]
    """The nonces of the messages into the run, in the order in which the agent got them."""
    outcomes: list[tuple[str, str]]
    """The id of each call whose result the model saw, and whether it was done."""

    def __str__(self) -> str:
        return json.dumps([self.nonce, self.told, self.outcomes])

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an output; one that is no report says nothing that is right."""
        try:
            nonce, told, outcomes = json.loads(text)
        except ValueError:
            return cls(text, [], [])
        return cls(nonce, told, [(call_id, outcome) for call_id, outcome in outcomes])


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the ledger."""

    run_id: str
    call_id: str
    attempt: int
    what: str
    """`begun` or `ended`."""
    at: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a line."""
        run_id, call_id, attempt, what, at = text.split()
        return cls(run_id, call_id, int(attempt), what, float(at))


def _own(messages: Sequence[ModelMessage]) -> tuple[Errand, list[str], Sequence[ModelMessage]]:
    """Find the query of this run, the nonces of the messages into it, and all that was said since.

    Every earlier run of the thread has ended with a response that calls nothing.
    """
    ends = [place for place, said in enumerate(messages) if isinstance(said, ModelResponse) and not said.tool_calls]
    own = messages[ends[-1] + 1 :] if ends else messages
    prompts = [str(part.content) for said in own for part in said.parts if isinstance(part, UserPromptPart)]
    errand, *told = map(Errand.parse, prompts)
    return errand, [message.nonce for message in told], own


async def _speak(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
    errand, told, own = _own(messages)
    number = sum(isinstance(said, ModelResponse) for said in own)
    if number < len(errand.rounds):
        yield {
            place: DeltaToolCall(name=tool, json_args="{}", tool_call_id=f"{errand.nonce}-{number}-{place}")
            for place, tool in enumerate(errand.rounds[number])
        }
        return
    outcomes = [
        (part.tool_call_id, DONE if part.content == DONE else DENIED)
        for said in own
        for part in said.parts
        if isinstance(part, BaseToolReturnPart)
    ]
    for word in str(Report(errand.nonce, told, outcomes)).split(" "):
        await asyncio.sleep(WORD_SECONDS)
        yield f"{word} "


def _note(ctx: RunContext[RunScope], what: str) -> None:
    """Add a line to the ledger; it is there whatever happens to this process."""
    line = f"{ctx.deps.run_id} {ctx.tool_call_id} {ctx.deps.attempt} {what} {time.time()}\n"
    with Path(_LEDGER).open("a") as ledger:
        ledger.write(line)


async def _do(ctx: RunContext[RunScope]) -> str:
    _note(ctx, "begun")
    await asyncio.sleep(_own(ctx.messages)[0].seconds)
    _note(ctx, "ended")
    return DONE


_agent = Agent(FunctionModel(stream_function=_speak, model_name="errands"), deps_type=RunScope)
_agent.tool(name=WORK)(_do)
_agent.tool(name=PAY, requires_approval=True)(_do)
served = ServedAgent(agent=_agent, dependencies=lambda scope: scope, description="Does what the query lists.")
