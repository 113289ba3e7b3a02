"""Routes: chat completions, of which each is a run without a thread. The caller holds the conversation."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError
from starlette.types import Send

from agent_relay.api.attachments import in_their_places
from agent_relay.api.cancellation import Canceller
from agent_relay.api.dependencies import CallLimits, Cancel, Database, RunRelay, ServiceSettings, Submit
from agent_relay.api.problems import Refused, invalid, unavailable
from agent_relay.api.protocols.openai.chat_renderer import WAITS, ChatRenderer, completion_id, usage_of_completion
from agent_relay.api.protocols.openai.content import TextAndFiles, all_files, check_files
from agent_relay.api.protocols.openai.errors import SHOULD_RETRY, failed
from agent_relay.api.protocols.openai.inputs import check_size
from agent_relay.api.protocols.openai.parameters import (
    Empty,
    Hint,
    No,
    Nothing,
    NoTools,
    One,
    Plain,
    Zero,
    only,
)
from agent_relay.api.queries import owned_run
from agent_relay.api.requests.idempotency import IdempotencyKey
from agent_relay.api.requests.identity import Caller
from agent_relay.api.requests.validation import StrictRoute
from agent_relay.api.routes.agent import cancel_when_gone, cancelling
from agent_relay.api.schemas import AgentType, NewQuery
from agent_relay.api.schemas import Request as Schema
from agent_relay.api.streaming.response import Follower, Stream
from agent_relay.api.submission import Asked, ended
from agent_relay.shared.clock import now
from agent_relay.shared.database.tables import TERMINAL, RunStatus
from agent_relay.shared.event_log import BEFORE_ALL
from agent_relay.shared.rows import RunRow
from agent_relay.shared.runs.said import Said

router = APIRouter(prefix="/chat/completions", route_class=StrictRoute)

GRACE_SECONDS = 30.0
"""A call waits for so long after the deadline of its run, which ends there."""


class ChatMessage(Schema):
    """A message of the conversation. Fields that OpenAI's own answers have and that are empty there are taken."""

    role: Literal["system", "developer", "user", "assistant"]
    content: TextAndFiles = None
    name: str | None = None
    """Who speaks; the agent is not told."""
    refusal: Nothing = None
    audio: Nothing = None
    function_call: Nothing = None
    tool_calls: Empty = None
    annotations: Empty = None

    @model_validator(mode="after")
    def _files_of_users(self) -> ChatMessage:
        check_files(self.role, self.content)
        return self

    @property
    def text(self) -> str:
        """What the message says beside its files."""
        return self.content.text if self.content is not None else ""

    @property
    def said(self) -> Said:
        """The message as a run keeps it."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self.text}


class StreamOptions(Schema):
    """What a stream has beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: Hint = None


class NewCompletion(Schema):
    """A chat completion to be made. Each parameter that is not here is refused by its name."""

    model: AgentType
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] | None = None
    """That of the run."""

    user: Hint = None
    safety_identifier: Hint = None
    prompt_cache_key: Hint = None
    prompt_cache_retention: Hint = None
    store: Hint = None
    service_tier: Annotated[JsonValue, only("auto", "default")] = None

    temperature: One = None
    top_p: One = None
    n: One = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logprobs: No = None
    logit_bias: Annotated[JsonValue, only({})] = None
    modalities: Annotated[JsonValue, only(["text"])] = None
    response_format: Plain = None
    tools: Empty = None
    functions: Empty = None
    tool_choice: NoTools = None
    parallel_tool_calls: Annotated[JsonValue, only(True, False)] = None
    stop: Empty = None
    top_logprobs: Nothing = None
    max_tokens: Nothing = None
    max_completion_tokens: Nothing = None
    reasoning_effort: Nothing = None
    verbosity: Nothing = None
    seed: Nothing = None

    @model_validator(mode="after")
    def _usage_of_a_stream(self) -> NewCompletion:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options_without_stream", "stream_options are for a stream")
        return self


class _Reader:
    """Reads the stream of a chat completion; a run that comes to wait is cancelled, because no answer can reach it."""

    def __init__(self, follower: Follower, renderer: ChatRenderer, canceller: Canceller, run_id: UUID) -> None:
        self._follower = follower
        self._renderer = renderer
        self._canceller = canceller
        self._run_id = run_id

    @property
    def media_type(self) -> str:
        """The `Content-Type` of the stream."""
        return self._follower.media_type

    def lose(self) -> None:
        """The reader is gone."""
        self._follower.lose()

    async def write(self, send: Send) -> None:
        """Write the stream."""
        await self._follower.write(send)
        if self._renderer.waits:
            await self._canceller.cancel(self._run_id)


@router.post("")
async def create(
    request: Request,
    new: NewCompletion,
    submitter: Submit,
    database: Database,
    relay: RunRelay,
    canceller: Cancel,
    calls: CallLimits,
    settings: ServiceSettings,
    caller: Caller,
    key: IdempotencyKey,
) -> Response:
    """Ask the agent what the last message says; the messages before it are what was said so far.

    A run whose caller hangs up is cancelled, unless the caller can ask for it again by an `Idempotency-Key`.
    """
    query, history = _query(new), [message.said for message in new.messages[:-1] if message.text]
    files = all_files([(f"/messages/{number}/content", each.content) for number, each in enumerate(new.messages)])

    async def ask() -> Asked:
        with in_their_places(files, "/messages") as attachments:
            return await submitter.ask(caller, query.model_copy(update={"attachments": attachments}), key, history)

    check_size("/messages", history, settings.max_history_bytes)
    if new.stream:
        with calls.open(caller).kept() as call:
            asked = await ask()
            row = asked.run
            options = new.stream_options
            renderer = ChatRenderer(row, include_usage=options is not None and bool(options.include_usage))
            hung_up = cancelling(canceller, row.id) if key is None else None
            follower = Follower(
                relay, call, row, BEFORE_ALL, renderer, until_waiting=True, breaks_off=True, hung_up=hung_up
            )
            return Stream(_Reader(follower, renderer, canceller, row.id), asked.headers)
    with calls.opened(caller):
        asked = await ask()
        row = asked.run
        gone = asyncio.create_task(cancel_when_gone(request, canceller, row.id)) if key is None else None
        try:
            await ended(relay, row, (row.deadline_at - now()).total_seconds() + GRACE_SECONDS, or_waits=True)
            row = await owned_run(database, caller, row.id)
        finally:
            if gone is not None:
                gone.cancel()
    if row.status == RunStatus.WAITING:
        await canceller.cancel(row.id)
        raise Refused(409, WAITS, code="run_waits", headers={SHOULD_RETRY: "false"}, run_id=str(row.id))
    if row.status not in TERMINAL:
        if key is None:
            await canceller.cancel(row.id)
        raise unavailable("The run has not ended while this process could wait for it.")
    if row.status != RunStatus.SUCCEEDED:
        raise failed(row)
    return JSONResponse(_completion(row), 200, asked.headers)


def _query(new: NewCompletion) -> NewQuery:
    """Say what is asked.

    Raises:
        Refused: 422, the last message asks nothing.
    """
    last = new.messages[-1]
    pointer = f"/messages/{len(new.messages) - 1}"
    if last.role != "user":
        raise invalid(f"{pointer}/role", "unsupported_value", "The last message is the user's: agents do not go on")
    if not last.text:
        raise invalid(f"{pointer}/content", "missing", "The last message asks nothing: it needs a text")
    return NewQuery(agent_type=new.model, query=last.text, metadata=dict(new.metadata or {}))


def _completion(row: RunRow) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": row.output or "", "refusal": None, "annotations": []}
    return {
        "id": completion_id(row),
        "object": "chat.completion",
        "created": int(row.created_at.timestamp()),
        "model": row.agent_type,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": usage_of_completion(row.usage),
    }
