"""Drive an agent through one query and tell what comes of it: tool calls, and every partial output that validates.

It knows pydantic-ai and no queue, no database, no Redis; whoever asks gives it a place to tell things to.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic_ai import Agent, CancellationToken
from pydantic_ai.capabilities import AbstractCapability, ReinjectSystemPrompt
from pydantic_ai.exceptions import ModelAPIError, RunCancelled, UnexpectedModelBehavior, UserError
from pydantic_ai.messages import (
    DeferredToolRequestsEvent,
    FinalResultEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    SystemPromptPart,
    TextPartDelta,
    ThinkingPartDelta,
    ToolCallPartDelta,
)
from pydantic_ai.models import Model
from pydantic_ai.result import AgentStream
from pydantic_ai.run import AgentRun
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.usage import RunUsage

from worker.budget import Budget
from worker.catalog import Offer, ToolEvents
from worker.request_policy import RequestPolicy
from worker.storable import as_json, storable

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Whom an answer is told to while it is written."""

    def tell(self, event: dict[str, Any]) -> None:
        """Hear of an event; none is left out."""

    def show(self, text: str) -> None:
        """Hear the whole text as it is now."""


class WaitsForAnswer(Exception):
    """A tool call needs an approval, or a result from outside, that nobody gives here; the message is for callers."""

    def __init__(self, tools: Iterable[str]) -> None:
        names = ", ".join(sorted(set(tools))) or "a tool"
        super().__init__(
            f"The agent called {names} and waits for an approval or a result from outside, which this service cannot "
            "give: the agent needs a HandleDeferredToolCalls capability that decides."
        )


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer."""

    text: str
    """The validated output as JSON text; of a text agent, the text."""
    messages: Sequence[ModelMessage]
    """What this run adds to the conversation."""
    model: str | None


class Answer:
    """One query on its way through an agent."""

    def __init__(
        self,
        offer: Offer,
        listener: Listener,
        token: CancellationToken,
        *,
        budget: Budget,
        partial_interval_seconds: float,
        tool_event_bytes: int,
        model_timeout_seconds: float,
        model_tries: int,
        seconds_left: float = math.inf,
        used_before: RunUsage | None = None,
    ) -> None:
        self._offer = offer
        self._listener = listener
        self._token = token
        self._budget = budget
        self._tool_event_bytes = tool_event_bytes
        self._policy = RequestPolicy(
            settings=ModelSettings(timeout=model_timeout_seconds, max_retries=0),  # A client's own would multiply ours.
            tries=1 if offer.falls_back else model_tries,
            give_up_at=asyncio.get_running_loop().time() + seconds_left,
            window_seconds=partial_interval_seconds,
            model=offer.model if offer.chooses_model else None,
        )
        self._used_before = used_before or RunUsage()
        self._said: list[ModelMessage] = []
        """What this run adds to the conversation, but for the results of tools after its last response."""
        self._run: AgentRun[Any, Any] | None = None
        self._requests = self._used_before.requests
        """Requests that were begun, by earlier attempts, too."""

    @property
    def usage(self) -> RunUsage:
        """What was used so far, by earlier attempts, too; may be read from any thread.

        A request counts once it has begun; pydantic-ai counts it once it is answered.
        """
        used = copy(self._used_before if self._run is None else self._run.usage)
        used.requests = max(used.requests, self._requests)
        return used

    async def write(self, query: str, history: Sequence[ModelMessage], deps: Any) -> Answered:
        """Run the agent to its end.

        Raises:
            RunCancelled: the token was cancelled; it carries the messages so far.
            WaitsForAnswer: a tool call needs an answer that nobody gives.
            ModelAPIError: the model cannot be had, or broke off.
            OverBudget: the output, or the result of a tool, is too large.
            Exception: whatever pydantic-ai, the model or a tool raises.
        """
        agent = self._offer.agent
        async with agent.iter(
            query,
            message_history=history,
            deps=deps,
            model=self._model(),
            capabilities=self._capabilities(history),
            usage=copy(self._used_before),
            usage_limits=self._offer.usage_limits,
            cancellation_token=self._token,
        ) as run:
            self._run = run
            async for node in run:
                if Agent.is_model_request_node(node):
                    if self._said:
                        self._budget.check_results(node.request)
                    self._said.append(node.request)
                    async with node.stream(run.ctx) as stream:
                        self._requests += 1
                        await self._hear(stream)
                elif Agent.is_call_tools_node(node):
                    self._said.append(node.model_response)
                    await self._call_tools(node, run)
        result = run.result
        if result is None:
            raise UnexpectedModelBehavior("The agent ended without a result.")
        if isinstance(result.output, DeferredToolRequests):
            raise WaitsForAnswer(call.tool_name for call in [*result.output.approvals, *result.output.calls])
        text = self._render(result.output)
        self._budget.check_output(text)
        self._listener.show(text)
        return Answered(text, self.whole(result.new_messages()), result.response.model_name)

    def whole(self, messages: Sequence[ModelMessage]) -> Sequence[ModelMessage]:
        """Add to the messages of this run what a history processor of the agent's took out of them.

        It shortens what the model is told; but a thread whose query or calls are gone could not go on.
        """
        known = max((place for place, message in enumerate(messages) if message in self._said), default=-1)
        later = [*self._said, *messages[known + 1 :]]
        return later if len(later) > len(messages) else messages

    def _model(self) -> Model | str | None:
        """Return the model to be asked with; None where the agent chooses."""
        model = self._offer.model
        if self._offer.is_plain and isinstance(model, Model):
            return self._policy.get_wrapper_model(model)
        return None if self._offer.chooses_model else model

    def _capabilities(self, history: Sequence[ModelMessage]) -> list[AbstractCapability[Any]]:
        """List what this service adds to the agent's own: a first run that was cut has left no system prompt behind.

        Each one costs something at each partial output; an agent without any of its own is given its model wrapped.
        """
        needed: list[AbstractCapability[Any]] = [] if self._offer.is_plain else [self._policy]
        if history and not any(
            isinstance(part, SystemPromptPart)
            for message in history
            if isinstance(message, ModelRequest)
            for part in message.parts
        ):
            needed.append(ReinjectSystemPrompt())
        return needed

    async def _call_tools(self, node: Any, run: AgentRun[Any, Any]) -> None:
        """Tell what tools are called and return."""
        waiting: list[str] = []
        try:
            async with node.stream(run.ctx) as events:
                async for event in events:
                    if isinstance(event, DeferredToolRequestsEvent):
                        waiting += [call.tool_name for call in [*event.requests.approvals, *event.requests.calls]]
                    self._tell_tool(event)
        except UserError as error:
            if waiting:
                raise WaitsForAnswer(waiting) from error
            raise

    async def _hear(self, stream: AgentStream[Any, Any]) -> None:
        """Listen to the model, whose deltas come in windows; once it writes the output, show what each brought."""
        writing = False
        written = 0
        async for event in stream:
            written += _length_of(event)
            self._budget.check_written(written)
            writing = writing or isinstance(event, FinalResultEvent)
            if writing and isinstance(event, FinalResultEvent | PartDeltaEvent):
                await self._show(stream)
        _demand_the_end(stream.response)

    async def _show(self, stream: AgentStream[Any, Any]) -> None:
        try:
            partial = await stream.validate_response_output(stream.response, allow_partial=True)
        except RunCancelled:
            raise
        except Exception:  # noqa: BLE001  (validators and output functions may expect nothing but a whole output)
            return  # Not valid yet: the next may be. If something else is wrong, the whole output says it.
        if not isinstance(partial, DeferredToolRequests):
            text = self._render(partial, partial=True)
            self._budget.check_output(text)
            self._listener.show(text)

    def _render(self, output: Any, *, partial: bool = False) -> str:
        """Say an output as text that can be stored and published."""
        return storable(str(output)) if self._offer.text_output else self._offer.output_text(output, partial=partial)

    def _tell_tool(self, event: Any) -> None:
        """Tell calls and results of function tools, as far as the agent's setting goes."""
        setting = self._offer.tool_events
        if setting is ToolEvents.OFF:
            return
        match event:
            case FunctionToolCallEvent(part=part):
                detail = {"args": self._capped(_text_of(part.args_as_json_str, part.args))}
            case FunctionToolResultEvent(part=part):
                detail = {"content": self._capped(_text_of(part.model_response_str, part.content))}
            case _:
                return
        self._listener.tell(
            {
                "event": "tool_call" if isinstance(event, FunctionToolCallEvent) else "tool_result",
                "tool_call_id": part.tool_call_id,
                "tool_name": part.tool_name,
                **(detail if setting is ToolEvents.FULL else dict.fromkeys(detail)),
            }
        )

    def _capped(self, text: str) -> str:
        """Cut what is too long for an event, and say so."""
        data = text.encode()
        if len(data) <= self._tool_event_bytes:
            return data.decode()
        return data[: self._tool_event_bytes].decode(errors="ignore") + f"… ({len(data)} bytes)"


def _length_of(event: Any) -> int:
    """Return how many characters the response grows by."""
    match event:
        case PartDeltaEvent(delta=TextPartDelta(content_delta=str(text)) | ThinkingPartDelta(content_delta=str(text))):
            return len(text)
        case PartDeltaEvent(delta=ToolCallPartDelta(args_delta=str(text))):
            return len(text)
        case _:
            return 0


def _text_of(say: Callable[[], str], value: Any) -> str:
    """Say a tool's arguments or result as pydantic-ai does; what it cannot say is mended or left out."""
    try:
        return storable(say())
    except BaseException:  # noqa: BLE001  (serializers of foreign classes raise anything)
        return storable(value) if isinstance(value, str) else as_json(value)


def _demand_the_end(response: ModelResponse) -> None:
    """See that a provider has said why its stream ended: one that was cut may end as properly as a whole one.

    Models without a provider's address, as scripts, need not say it. Those that speak OpenAI's Chat Completions raise
    by themselves, as `catalog.py` has them do.
    """
    said = response.finish_reason or (response.provider_details or {}).get("finish_reason")
    if response.provider_url and not said and response.state == "complete":
        raise ModelAPIError(response.model_name or "model", "The stream ended without a finish reason")
