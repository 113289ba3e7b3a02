"""Finished steps of a run: stored while its agent works on, and read again by a later attempt.

A step is a response of the model that calls tools, or the call of a tool. It knows pydantic-ai's messages and no
database: the writer is given a function that stores.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic_ai import DeferredToolResults
from pydantic_ai.messages import (
    BaseToolReturnPart,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ThinkingPart,
)

from agent_relay.shared.failpoints import Failpoint, reached
from agent_relay.shared.runs.claim import Claim
from agent_relay.shared.runs.steps import FinishedSteps, Step
from agent_relay.worker.deferred_tools import Continuation
from agent_relay.worker.execution.history import transcript_of

log = logging.getLogger(__name__)


class CannotContinue(Exception):
    """The attempt cannot go on from the steps; the message has the reason."""


class LeftAtStep(Exception):
    """The run is returned to the queue after a step, so that another worker goes on from there."""


@dataclass(frozen=True, slots=True)
class KeptSteps:
    """The finished steps of a run's earlier attempts."""

    messages: Sequence[ModelMessage] = ()
    """All of the run so far; the last is a response with calls that are still to be made, or a request."""
    finished: Sequence[Any] = ()
    """The results of calls of the last response that have returned already, where no answers are given to others."""
    results: DeferredToolResults | None = None
    """Results of calls of the last response; its other calls have their results in the last request."""
    unfinished_calls: frozenset[str] = frozenset()
    """The ids of calls that may have begun, and have not returned."""
    told: frozenset[str] = frozenset()
    """The ids of calls that readers have received before a wait."""
    count: int = 0
    """Responses that call tools, and calls that have returned."""
    tool_calls: int = 0
    """Calls that have returned, without those that the model is to make again."""
    reasoning: int = 0
    """Parts of the model's reasoning."""
    usage: dict[str, float] = field(default_factory=dict[str, float])
    heard: int = 0
    """The `place` of the last message into the run that is among the messages."""


NOTHING_KEPT = KeptSteps()


def kept_of(steps: Sequence[Step], agent: str, waited: Continuation | None = None) -> KeptSteps:
    """Read steps that were stored, for that version of their agent; those after its wait, if the run has waited.

    Raises:
        CannotContinue: another version of the agent has finished them, or they cannot be read.
    """
    if any(step.agent != agent for step in steps):
        raise CannotContinue("the agent's tools, output or version have changed")
    messages: list[ModelMessage] = list(waited.messages) if waited else []
    told = _calls_of(messages)
    usage: dict[str, float] = {}
    try:
        for step in steps:
            usage = most_of(usage, step.usage)
            for message in ModelMessagesTypeAdapter.validate_json(step.messages):
                _append(messages, message)
    except ValueError as error:
        raise CannotContinue(f"they cannot be read: {type(error).__name__}") from error
    if not messages:
        return NOTHING_KEPT
    responses = [message for message in messages if isinstance(message, ModelResponse) and message.tool_calls]
    results = [part for message in messages if isinstance(message, ModelRequest) for part in _results(message.parts)]
    kept = KeptSteps(
        messages,
        told=told,
        count=len(responses) + len(results),
        tool_calls=sum(part.outcome == "success" for part in results),
        reasoning=sum(
            isinstance(part, ThinkingPart)
            for message in messages
            if isinstance(message, ModelResponse)
            for part in message.parts
        ),
        usage=usage,
        heard=max((step.heard for step in steps), default=0),
    )
    last = messages[-1]
    returned = last.parts if isinstance(last, ModelRequest) and len(messages) > 1 else ()
    open_calls = _calls_of(messages[-2 if returned else -1 :]) - call_ids(returned)
    if not open_calls:
        return kept
    has_new_response = waited is not None and len(messages) > len(waited.messages) + isinstance(last, ModelRequest)
    if waited is not None and not has_new_response and (results := _left_of(waited.results, open_calls)):
        return replace(kept, results=results, unfinished_calls=open_calls)
    return replace(
        kept, messages=messages[:-1] if returned else messages, finished=returned, unfinished_calls=open_calls
    )


def _left_of(results: DeferredToolResults, calls: frozenset[str]) -> DeferredToolResults | None:
    """Leave out results of calls that have returned since; None if nothing is left."""
    left = DeferredToolResults(
        approvals={call: results.approvals[call] for call in calls & results.approvals.keys()},
        calls={call: results.calls[call] for call in calls & results.calls.keys()},
        metadata={call: results.metadata[call] for call in calls & results.metadata.keys()},
    )
    return left if left.approvals or left.calls else None


def _calls_of(messages: Sequence[ModelMessage]) -> frozenset[str]:
    responses = [message for message in messages if isinstance(message, ModelResponse)]
    return frozenset(call.tool_call_id for response in responses for call in response.tool_calls)


def _append(messages: list[ModelMessage], message: ModelMessage) -> None:
    """Append a message; of several requests in a row, each with some results of a response, make one."""
    before = messages[-1] if messages else None
    if not isinstance(message, ModelRequest) or not isinstance(before, ModelRequest):
        messages.append(message)
        return
    parts = [*before.parts, *message.parts]
    response = messages[-2] if len(messages) > 1 else None
    messages[-1] = replace(
        before, parts=in_order_of_calls(response, parts) if isinstance(response, ModelResponse) else parts
    )


def call_ids(parts: Sequence[Any]) -> frozenset[str]:
    """Name the calls that results are of."""
    return frozenset(part.tool_call_id for part in _results(parts))


def in_order_of_calls(response: ModelResponse, parts: Sequence[Any]) -> list[Any]:
    """Put results in the order of their calls, and everything else behind them."""
    places = {call.tool_call_id: place for place, call in enumerate(response.tool_calls)}
    results = sorted(_results(parts), key=lambda part: places.get(part.tool_call_id, len(places)))
    return [*results, *(part for part in parts if not isinstance(part, BaseToolReturnPart))]


def _results(parts: Sequence[Any]) -> list[Any]:
    return [part for part in parts if isinstance(part, BaseToolReturnPart)]


def most_of(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """Take the larger of each count: both count the same run, at different times."""
    return {kind: max(one.get(kind, 0), other.get(kind, 0)) for kind in one.keys() | other.keys()}


_Noted = tuple[Sequence[ModelMessage], dict[str, float], int]


class StepWriter:
    """Stores the steps of one attempt in their order: one statement at a time, with everything that has come by then.

    What cannot be written ends it: the next attempt goes on from the last step before.
    """

    def __init__(
        self,
        claimed: Claim,
        agent: str,
        most_bytes: int,
        store: Callable[[FinishedSteps], Awaitable[bool]],
        fenced: Callable[[], None],
        without_bytes: Callable[[Sequence[ModelMessage]], Awaitable[Sequence[ModelMessage]]],
    ) -> None:
        self._claimed = claimed
        self._agent = agent
        self._most_bytes = most_bytes
        self._store = store
        self._fenced = fenced
        self._without_bytes = without_bytes
        self._noted: list[_Noted] = []
        self._stored = 0
        self._writing: asyncio.Task[None] | None = None
        self.is_whole = True
        """Whether every step that was noted is stored, or will be."""
        self.leaving = False
        """Whether the run is to be returned to the queue once the step in hand has finished."""

    def note(self, messages: Sequence[ModelMessage], usage: dict[str, float], heard: int = 0) -> None:
        """Note a finished step; it is stored while the agent works on."""
        if not self.is_whole:
            return
        self._noted.append((messages, usage, heard))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), context=Context())

    async def written(self) -> None:
        """Wait until everything that was noted is stored, or nothing more will be."""
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def _write(self) -> None:
        try:
            while self._noted and self.is_whole:
                reached(Failpoint.STEP_FINISHED)
                noted, self._noted = self._noted, []
                await self._write_some(noted)
                reached(Failpoint.STEP_STORED)
        except Exception:  # Any error of the database: the run goes on, and its next attempt from the step before.
            self.is_whole = False
            log.exception("steps.not_stored run_id=%s attempt=%d", self._claimed.run_id, self._claimed.attempt)
        finally:
            self._writing = None

    async def _write_some(self, noted: Sequence[_Noted]) -> None:
        steps: list[Step] = []
        for messages, usage, heard in noted:
            text = await transcript_of(await self._without_bytes(messages), self._most_bytes)
            if text is None:
                self.is_whole = False
                log.warning("steps.not_written run_id=%s attempt=%d", self._claimed.run_id, self._claimed.attempt)
                break
            steps.append(Step(self._agent, text, usage, heard))
        if not steps:
            return
        finished = FinishedSteps(self._claimed.run_id, self._claimed.attempt, self._stored + 1, steps)
        self._stored += len(steps)
        if not await self._store(finished):
            self.is_whole = False
            self._fenced()
