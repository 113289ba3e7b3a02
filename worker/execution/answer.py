"""Drive an agent through one query and publish its progress: tool calls, and every partial output that validates.

It knows pydantic-ai and no queue, no database, no Redis; the caller passes functions that publish and store.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Protocol, cast

from pydantic_ai import Agent, CancellationToken
from pydantic_ai.capabilities import AbstractCapability, ReinjectSystemPrompt
from pydantic_ai.exceptions import (
    ContentFilterError,
    FallbackExceptionGroup,
    ModelAPIError,
    RunCancelled,
    UnexpectedModelBehavior,
)
from pydantic_ai.messages import (
    BinaryContent,
    CustomEvent,
    EnqueuedMessagesEvent,
    FinalResultEvent,
    FunctionToolResultEvent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    SystemPromptPart,
    TextPartDelta,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.models import Model
from pydantic_ai.result import AgentStream
from pydantic_ai.run import AgentRun
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.usage import RunUsage

from agent_relay.shared.failpoints import Failpoint, reached
from agent_relay.shared.runs.claim import IntoRun
from agent_relay.shared.runs.wait import DeferredCall
from agent_relay.worker.catalog import AS_THE_AGENT_HAS_IT, RegisteredAgent, RunOptions, ToolEvents
from agent_relay.worker.deferred_tools import calls_of
from agent_relay.worker.execution.file_references import all_files_in, file_id_of
from agent_relay.worker.execution.inbox import Inbox
from agent_relay.worker.execution.reasoning import Reasoning
from agent_relay.worker.execution.shown_events import ShownEvents
from agent_relay.worker.execution.size_limits import Budget
from agent_relay.worker.execution.steps import (
    NOTHING_KEPT,
    KeptSteps,
    LeftAtStep,
    StepWriter,
    call_ids,
    in_order_of_calls,
)
from agent_relay.worker.models.request_policy import RequestPolicy
from agent_relay.worker.storable import as_json, storable

log = logging.getLogger(__name__)

_COUNTED = ("requests", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "tool_calls")
_SHOWN = (CustomEvent, PartStartEvent, PartEndEvent)
"""The parts of a model's stream that may be shown, besides its text and its reasoning."""
LONG_CHARACTERS = 64 << 10
"""A partial output of which the model wrote more is looked at before it is written; a large one is in a thread."""


Prompt = str | Sequence[UserContent]
"""A query as an agent receives it: the text alone, or with its attachments."""


class Listener(Protocol):
    """Receives an answer while it is written."""

    def tell(self, event: dict[str, Any]) -> None:
        """Hear of an event; none is left out."""

    def show(self, text: str) -> None:
        """Hear the whole text as it is now."""


@dataclass(frozen=True, slots=True)
class RunIds:
    """The ids of a run and of its conversation for an agent, its tools and its traces."""

    run_id: str | None
    conversation_id: str | None
    metadata: dict[str, Any]


NO_IDS = RunIds(None, None, {})


@dataclass(frozen=True, slots=True)
class Answered:
    """A whole answer."""

    text: str
    """The validated output as JSON text; of a text agent, the text."""
    messages: Sequence[ModelMessage]
    """The messages that this run adds to the conversation."""
    model: str | None


@dataclass(frozen=True, slots=True)
class Asked:
    """The requests of an agent's tools, before there are answers."""

    calls: Sequence[DeferredCall]
    messages: Sequence[ModelMessage]
    """The messages that this run has added to the conversation so far; the last calls are open."""


class Answer:
    """One query on its way through an agent."""

    def __init__(
        self,
        offer: RegisteredAgent,
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
        kept: KeptSteps = NOTHING_KEPT,
        steps: StepWriter | None = None,
        inbox: Inbox | None = None,
        prompt: Callable[[IntoRun], Awaitable[Prompt]] | None = None,
        keep_file: Callable[[BinaryContent], Awaitable[dict[str, Any]]] | None = None,
        ids: RunIds = NO_IDS,
        reasoning: Reasoning | None = None,
    ) -> None:
        self._offer = offer
        self._listener = listener
        self._token = token
        self._budget = budget
        self._shown = ShownEvents(listener.tell, offer.tool_events, tool_event_bytes, kept.told)
        self._policy = RequestPolicy(
            settings=ModelSettings(timeout=model_timeout_seconds, max_retries=0),  # A client's own would multiply ours.
            tries=1 if offer.falls_back else model_tries,
            give_up_at=asyncio.get_running_loop().time() + seconds_left,
            window_seconds=partial_interval_seconds,
            model=offer.model if offer.chooses_model else None,
        )
        self._used_before = used_before or RunUsage()
        self._kept = kept
        self._steps = steps
        self._inbox = inbox
        self._prompt = prompt
        self._keep_file = keep_file
        """Stores a file, and returns what callers are shown of it."""
        self._told_files: set[str] = set()
        self._ids = ids
        self._reasoning = reasoning
        self._given: dict[str, IntoRun] = {}
        """Messages into the run that the agent gets with its next request, by the ids that pydantic-ai calls them."""
        self._unstored: list[ModelMessage] = []
        """Messages since the last response that is a step."""
        self._stored_results: set[int] | None = None
        """The parts that were noted as steps since the last response; None where that was none."""
        self._before: list[ModelMessage] = []
        """Messages that earlier attempts have added to the conversation."""
        self._finished: Sequence[Any] = ()
        """The results of kept calls, until they are in the next request to the model."""
        self._said: list[ModelMessage] = []
        """Messages that this attempt adds to the conversation, without the results of tools after its last response."""
        self.model_error: BaseException | None = None
        """How the model's own request failed; a tool, a factory or a function of the agent's may raise the like."""
        self.tools_failed = False
        """Whether a call, or a step that is no request to a model, has failed: sessions of a toolset may be broken."""
        self._run: AgentRun[Any, Any] | None = None
        self._requests = self._used_before.requests
        """Requests that were begun, by earlier attempts, too."""

    @property
    def usage(self) -> RunUsage:
        """The usage so far, with that of earlier attempts; may be read from any thread.

        A request counts once it has begun; pydantic-ai counts it once it is answered.
        """
        used = copy(self._used_before if self._run is None else self._run.usage)
        used.requests = max(used.requests, self._requests)
        return used

    async def write(
        self, query: Prompt, history: Sequence[ModelMessage], deps: Any, chosen: RunOptions = AS_THE_AGENT_HAS_IT
    ) -> Answered | Asked:
        """Run the agent to its end, or until its tools have requests; after a wait, go on from there.

        `chosen` overrides settings of the agent for this run.

        Raises:
            RunCancelled: the token was cancelled; it carries the messages so far.
            LeftAtStep: the run is to be returned to the queue, and all of its steps are stored.
            ModelAPIError: the model is unavailable, or its response broke off.
            OverBudget: the output, or the result of a tool, is too large.
            Exception: any exception of pydantic-ai, the model or a tool.
        """
        try:
            return await self._write(query, history, deps, chosen)
        except (RunCancelled, LeftAtStep):
            raise
        except Exception as error:
            self.tools_failed = self.tools_failed or error is not self.model_error
            raise

    async def _write(
        self, query: Prompt, history: Sequence[ModelMessage], deps: Any, chosen: RunOptions
    ) -> Answered | Asked:
        self._offer = self._offer.with_output(chosen.output_type)
        agent, kept = self._offer.agent, self._kept.messages
        goes_on = bool(kept) and isinstance(kept[-1], ModelRequest) and self._kept.results is None
        self._before = list(kept[:-1] if goes_on else kept)  # The node that makes a request publishes it.
        self._finished = self._kept.finished
        for message in kept:  # To pydantic-ai, a run of this id only begins.
            message.run_id, message.conversation_id = None, self._ids.conversation_id
        history = [*history, *kept]
        async with agent.iter(
            None if kept else query,
            message_history=history,
            conversation_id=self._ids.conversation_id,
            run_id=self._ids.run_id,
            metadata=self._ids.metadata,
            timeout=self._seconds_left(),
            deferred_tool_results=self._kept.results,
            deps=deps,
            model=self._model(chosen.model),
            model_settings=chosen.model_settings,
            instructions=chosen.instructions,
            toolsets=chosen.toolsets,
            output_type=cast("Any", chosen.output_type),
            capabilities=self._capabilities(history),
            usage=copy(self._used_before),
            usage_limits=self._offer.usage_limits,
            cancellation_token=self._token,
        ) as run:
            self._run = run
            _let_it_ask(run)
            is_left = await self._drive(run, request_is_stored=goes_on)
        if is_left:
            raise LeftAtStep
        result = run.result
        if result is None:
            raise UnexpectedModelBehavior("The agent ended without a result.")
        if isinstance(result.output, DeferredToolRequests):
            if self._steps is not None:  # Until the wait is stored, they are all that is known of finished calls.
                await self._steps.written()
            tools = {name: tool.tool_def for name, tool in (run.ctx.deps.tool_manager.tools or {}).items()}
            return Asked(calls_of(result.output, result.response, tools), self.whole(result.new_messages()))
        if isinstance(result.output, BinaryContent):
            await self._tell_files([UserPromptPart([result.output])])
        text = await self._text_of_output(result.output)
        self._listener.show(text)
        return Answered(text, self.whole(result.new_messages()), result.response.model_name)

    async def _drive(self, run: AgentRun[Any, Any], *, request_is_stored: bool) -> bool:
        """Go from step to step; return whether the run is left after one of them, before it has ended."""
        async for node in run:
            if Agent.is_model_request_node(node):
                if self._said or self._before:
                    self._take_in_finished(node.request)
                    self._budget.check_results(node.request)
                if await self._is_left_before(node.request, is_stored=request_is_stored and not self._said):
                    return True
                self._said.append(node.request)
                await self._give_messages(run)
                await self._request(node, run)
            elif Agent.is_call_tools_node(node):
                if not self._said:
                    await self._call_open_tools(node, run)
                    continue
                self._said.append(node.model_response)
                if await self._is_left_after(node.model_response, run):
                    return True
                await self._call_tools(node, run)
        return False

    def whole(self, messages: Sequence[ModelMessage]) -> Sequence[ModelMessage]:
        """Add to the messages of this run what a history processor of the agent's took out of them.

        It shortens the messages for the model; but a thread without its query or calls could not go on.
        """
        known = max((place for place, message in enumerate(messages) if message in self._said), default=-1)
        later = [*self._said, *messages[known + 1 :]]
        added = list(later if len(later) > len(messages) else messages)
        if self._finished:  # The request with these results was never made.
            first = added[0] if added else None
            request = first if isinstance(first, ModelRequest) else ModelRequest(parts=[])
            self._take_in_finished(request)
            added = [request, *(added if first is not request else added[1:])]
        for message in self._before:
            message.run_id = self._ids.run_id
        return [*self._before, *added]

    def _seconds_left(self) -> float | None:
        """Return how long the run may take, if there is a limit; it is the deadline for the agent and its tools."""
        left = self._policy.give_up_at - asyncio.get_running_loop().time()
        return left if math.isfinite(left) else None

    async def _is_left_after(self, response: ModelResponse, run: AgentRun[Any, Any]) -> bool:
        """Store a response that calls tools, before they are called; return whether the run is left there."""
        if self._steps is None:
            return False
        self._unstored.append(response)
        heard = 0 if self._inbox is None else await self._inbox.confirmed()
        tools = run.ctx.deps.tool_manager
        definitions = [tools.get_tool_def(call.tool_name) for call in response.tool_calls]
        if all(tool is not None and tool.kind == "output" for tool in definitions):
            self._stored_results = None
            return False
        self._steps.note(self._unstored, counts_of(self.usage), heard)
        self._unstored, self._stored_results = [], set()
        await self._steps.written()
        return self._may_leave

    async def _is_left_before(self, request: ModelRequest, *, is_stored: bool) -> bool:
        """Wait until the results in the next request are stored; return whether the run is left there."""
        if self._steps is None:
            return False
        stored, self._stored_results = self._stored_results, None
        if stored is None:
            if not is_stored:
                self._unstored.append(request)
            return False
        others = [part for part in request.parts if _identity(part) not in stored]
        if others:
            self._steps.note([ModelRequest(parts=others)], counts_of(self.usage))
        await self._steps.written()
        return self._may_leave

    @property
    def _may_leave(self) -> bool:
        return self._steps is not None and self._steps.leaving and self._steps.is_whole

    def _take_in_finished(self, request: ModelRequest) -> None:
        """Put the results of kept calls into the request that has the results of the others."""
        response = self._before[-1] if self._before else None
        if self._finished and isinstance(response, ModelResponse):
            request.parts = in_order_of_calls(response, [*self._finished, *request.parts])
            self._finished = ()

    async def _call_open_tools(self, node: Any, run: AgentRun[Any, Any]) -> None:
        """Call the tools of a kept response that have not returned yet; the others are taken out of it meanwhile."""
        response: ModelResponse = node.model_response
        parts, finished = response.parts, call_ids(self._finished)
        if self._finished:
            self._before[-1] = replace(response, parts=parts)
        self._stored_results = {_identity(part) for part in self._finished}
        response.parts = [
            part for part in parts if not (isinstance(part, ToolCallPart) and part.tool_call_id in finished)
        ]
        try:
            await self._call_tools(node, run)
        finally:
            response.parts = parts

    def _model(self, chosen: Model | str | None) -> Model | str | None:
        """Return the model to be asked with; None where the agent chooses."""
        offer = self._offer
        if isinstance(chosen, str) and not offer.agent.root_capability.has_resolve_model_id:
            chosen = offer.model_named(chosen)
        model = offer.model if chosen is None else chosen
        if self._offer.is_plain and isinstance(model, Model):
            return self._policy.get_wrapper_model(model)
        return None if self._offer.chooses_model and chosen is None else model

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

    async def _give_messages(self, run: AgentRun[Any, Any]) -> None:
        """Give the agent the messages into the run: they go with the next request."""
        for message in () if self._inbox is None else await self._inbox.new():
            said = message.query if self._prompt is None else await self._prompt(message)
            if enqueue_id := run.enqueue(ModelRequest(parts=[UserPromptPart(said)])):
                self._given[enqueue_id] = message

    def _take_in_message(self, event: EnqueuedMessagesEvent) -> None:
        """Store the additions to a request with it, and publish the messages into the run among them."""
        message = self._given.pop(event.enqueue_id, None)
        if message is None or self._inbox is None:  # The agent's own code sends it.
            self._unstored += event.messages
            self._said += () if event.parts else event.messages
            return
        self._said += event.messages
        self._unstored += event.messages
        self._inbox.heard = message.place
        reached(Failpoint.MESSAGE_GIVEN)
        self._listener.tell({"event": "message_enqueued", "message": {"id": str(message.id), "role": "user"}})

    async def _request(self, node: Any, run: AgentRun[Any, Any]) -> None:
        """Make one request; note an error of the model's, as the agent's instructions may raise the like."""
        self._policy.failed = False
        stream: AgentStream[Any, Any] | None = None
        try:
            async with node.stream(run.ctx) as opened:
                stream = cast("AgentStream[Any, Any]", opened)
                self._requests += 1
                await self._hear(stream)
        except (ModelAPIError, FallbackExceptionGroup, ContentFilterError) as error:
            if self._policy.failed or (stream is not None and _is_filtered(error, stream.response)):
                self.model_error = error
            raise

    async def _call_tools(self, node: Any, run: AgentRun[Any, Any]) -> None:
        """Tell what tools are called and return."""
        try:
            async with node.stream(run.ctx) as events:
                async for event in events:
                    if isinstance(event, FunctionToolResultEvent):
                        self.tools_failed = self.tools_failed or _has_failed(event.part)
                        await self._budget.check_result(event.part)
                        self._note_result(event)
                    await self._shown.take(event)
                    if isinstance(event, FunctionToolResultEvent) and self._offer.tool_events is ToolEvents.FULL:
                        await self._tell_files([event.part, UserPromptPart(event.content or "")])
        except ContentFilterError as error:
            if _is_filtered(error, node.model_response):
                self.model_error = error
            raise

    def _note_result(self, event: FunctionToolResultEvent) -> None:
        """Store the result of a call, while others still run."""
        if self._steps is None or self._stored_results is None:
            return
        parts: list[Any] = [event.part, *([UserPromptPart(event.content)] if event.content else [])]
        self._stored_results.update(map(_identity, parts))
        self._steps.note([ModelRequest(parts=parts)], counts_of(self.usage))

    async def _hear(self, stream: AgentStream[Any, Any]) -> None:
        """Listen to the model, whose deltas come in windows; once it writes the output, show what each brought."""
        writing = False
        written = 0
        reasoning = self._reasoning
        if reasoning is not None:
            reasoning.begin_response()
        async for event in stream:
            if isinstance(event, EnqueuedMessagesEvent):
                self._take_in_message(event)
                continue
            if reasoning is not None:
                reasoning.hear(event)
            if isinstance(event, _SHOWN):
                await self._shown.take(event)
            written += _length_of(event)
            self._budget.check_written(written)
            writing = writing or isinstance(event, FinalResultEvent)
            if writing and isinstance(event, FinalResultEvent | PartDeltaEvent):
                await self._show(stream, is_long=written > LONG_CHARACTERS)
        _demand_the_end(stream.response)
        await self._tell_files(stream.response.parts)

    async def _tell_files(self, parts: Sequence[Any]) -> None:
        """Store the files that a tool or the model made, and publish each once."""
        for file in await all_files_in(parts):
            if self._keep_file is not None and file.data and file_id_of(file) is None:
                shown = await self._keep_file(file)
                if shown["file_id"] not in self._told_files:
                    self._told_files.add(shown["file_id"])
                    self._listener.tell({"event": "file", **shown})

    async def _show(self, stream: AgentStream[Any, Any], *, is_long: bool) -> None:
        try:
            partial = await stream.validate_response_output(stream.response, allow_partial=True)
        except RunCancelled:
            raise
        except Exception:  # noqa: BLE001  (validators and output functions may expect nothing but a whole output)
            return  # Not valid yet: the next may be. Any other error occurs again with the whole output.
        if isinstance(partial, DeferredToolRequests):
            return
        is_file = isinstance(partial, BinaryContent)
        is_as_written = not is_file and (self._offer.text_output or not self._offer.output_text.may_be_endless)
        if is_as_written and not is_long:
            text = self._render(partial, partial=True)
            self._budget.check_output(text)
        else:
            text = await self._text_of_output(partial, partial=True)
        self._listener.show(text)

    async def _text_of_output(self, output: Any, *, partial: bool = False) -> str:
        """Say an output of any size as text that can be stored and published; a large one in a thread.

        One that is a file is stored as one: `{"file_id", "media_type", "bytes"}` is said of it.
        """
        if isinstance(output, BinaryContent) and self._keep_file is not None:
            return as_json(await self._keep_file(output))
        output, is_large = await self._budget.finite_output(output)
        if is_large:
            text = await asyncio.to_thread(self._render, output, partial=partial)
        else:
            text = self._render(output, partial=partial)
        self._budget.check_output(text)
        return text

    def _render(self, output: Any, *, partial: bool = False) -> str:
        return storable(str(output)) if self._offer.text_output else self._offer.output_text(output, partial=partial)


def _has_failed(part: Any) -> bool:
    return getattr(part, "outcome", "retried") in {"failed", "retried"}


def _is_filtered(error: BaseException, response: ModelResponse) -> bool:
    """Return whether an error means that the provider's filter stopped this response."""
    return isinstance(error, ContentFilterError) and response.finish_reason == "content_filter"


def _let_it_ask(run: AgentRun[Any, Any]) -> None:
    """Let a run end with requests of its tools, also if these are not among the agent's output types.

    Tools may have requests whatever the agent's type is, and a type that is given with a run would be built for each.
    """
    schema = copy(run.ctx.deps.output_schema)
    schema.allows_deferred_tools = True
    run.ctx.deps.output_schema = schema


def counts_of(used: RunUsage) -> dict[str, float]:
    """Convert the usage for callers; missing counts are zero, and a missing cost is left out.

    The cost is in US dollars, summed over the requests whose price pydantic-ai knows.
    """
    counts = {name: getattr(used, name) for name in _COUNTED}
    told: dict[str, float] = {name: count if isinstance(storable(count), int) else 0 for name, count in counts.items()}
    cost = float(used.cost) if isinstance(used.cost, Decimal) else math.nan
    return told | ({"cost_usd": cost} if math.isfinite(cost) else {})


def _identity(part: Any) -> int:
    """Identify a part; pydantic-ai makes new prompts from the content that a tool returns with its result."""
    return id(part.content) if isinstance(part, UserPromptPart) else id(part)


def _length_of(event: Any) -> int:
    """Return how many characters the response grows by."""
    match event:
        case PartDeltaEvent(delta=TextPartDelta(content_delta=str(text)) | ThinkingPartDelta(content_delta=str(text))):
            return len(text)
        case PartDeltaEvent(delta=ToolCallPartDelta(args_delta=str(text))):
            return len(text)
        case _:
            return 0


def _demand_the_end(response: ModelResponse) -> None:
    """Check that a provider has sent a finish reason: a stream that was cut may end as properly as a whole one.

    Models without a provider's address, as scripts, need no reason. Those of OpenAI's Chat Completions raise by
    themselves, by a flag that `catalog.py` sets.
    """
    said = response.finish_reason or (response.provider_details or {}).get("finish_reason")
    if response.provider_url and not said and response.state == "complete":
        raise ModelAPIError(response.model_name or "model", "The stream ended without a finish reason")
