"""The events of a stream as the OpenAPI document describes them, for people and for what generates clients.

The stream itself is not made of these: `run_feed.py` says what is told.
"""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from pydantic import Field, JsonValue, RootModel
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema, models_json_schema

from agent_relay.shared.database.tables import AttemptReason
from agent_relay.shared.schemas import OpenRequest, Resource, RunError, Usage

Absent = SkipJsonSchema[None]
"""A field that is there at times only: it is left out then, and never null."""


def _without_default(schema: JsonDict) -> None:
    del schema["default"]


def _absent() -> Any:
    return Field(default=None, json_schema_extra=_without_default)


class _Event(Resource):
    id: str
    """Opaque: go on after it with `Last-Event-ID` or `?after=`. Ids only grow within a run."""


class _OfAnswer(_Event):
    message_id: UUID
    """The id of the answer."""


class EventMessage(Resource):
    """A message that an event is about."""

    id: UUID
    """The message's id."""
    role: Literal["user"]
    """Whose it is."""


class MessageCreatedEvent(_Event):
    """The query is stored."""

    event: Literal["message_created"]
    """The kind of event."""
    message: EventMessage
    """The message that asks."""
    run_id: UUID
    """The run."""


class MessageStartedEvent(_OfAnswer):
    """A worker begins the answer, or goes on. What was told of the answer by the attempt before is void."""

    event: Literal["message_started"]
    """The kind of event."""
    attempt: int
    """The number of the attempt, from 1."""
    reason: AttemptReason | str
    """Why it begins: `first`, `worker_lost`, `worker_stopping`, or `answered`, what the run waited for."""
    steps_kept: int
    """Finished steps that it goes on after; their tool events stay valid. With 0 it begins with the query."""
    reasoning_kept: int | Absent = _absent()
    """Parts of the reasoning above this one are void, unless the reason is `answered`; 0 where it is not said."""


class ReasoningDeltaEvent(_OfAnswer):
    """What the model thinks: all of this part, or with `?deltas=true` how it grew."""

    event: Literal["reasoning_delta"]
    """The kind of event."""
    part: int
    """The part of the reasoning; the number grows over the run."""
    token: str | Absent = _absent()
    """The whole part so far; it replaces the one before."""
    drop: int | Absent = _absent()
    """Instead of `token`: take so many characters off the end of the part,"""
    append: str | Absent = _absent()
    """and append this."""


class _OfTool(_OfAnswer):
    tool_call_id: str
    """The call's id, the same in all attempts."""
    tool_name: str
    """The tool."""
    native: bool | Absent = _absent()
    """True of a tool of the model provider's own; else left out."""
    parent_tool_call_id: str | Absent = _absent()
    """The call in which another agent was asked, whose call this is; else left out."""


class ToolCallEvent(_OfTool):
    """The agent calls a tool."""

    event: Literal["tool_call"]
    """The kind of event."""
    args: str | None
    """The arguments, as JSON text; null where the agent's settings hide them."""


class ToolResultEvent(_OfTool):
    """A tool returned."""

    event: Literal["tool_result"]
    """The kind of event."""
    content: str | None
    """What it returned, as text; null where the agent's settings hide it."""


class ProgressEvent(_OfAnswer):
    """The agent's own code tells of its work."""

    event: Literal["progress"]
    """The kind of event."""
    name: str
    """What it is about."""
    data: JsonValue
    """Any JSON."""
    tool_call_id: str | Absent = _absent()
    """The call within which it was told; else left out."""


class FileEvent(_OfAnswer):
    """A tool or the model made a file: `GET /files/{file_id}/content` has it."""

    event: Literal["file"]
    """The kind of event."""
    file_id: UUID
    """The file's id."""
    media_type: str
    """Its media type."""
    bytes: int
    """Its size."""


class WaitingEvent(_OfAnswer):
    """The run waits for answers: `POST /runs/{id}/answers`."""

    event: Literal["waiting"]
    """The kind of event."""
    requests: list[OpenRequest]
    """What it waits for. Of very large ones, `args` and `schema` are null here; the run has them."""


class AnsweredEvent(_OfAnswer):
    """One of the requests was answered."""

    event: Literal["answered"]
    """The kind of event."""
    request_id: str
    """The request."""
    approve: bool | Absent = _absent()
    """Of an approval: the answer; else left out."""


class MessageEnqueuedEvent(_Event):
    """The agent has got a message into the run."""

    event: Literal["message_enqueued"]
    """The kind of event."""
    message: EventMessage
    """That message."""


class TextDeltaEvent(_OfAnswer):
    """The whole validated answer so far, or with `?deltas=true` how it grew."""

    event: Literal["text_delta"]
    """The kind of event."""
    token: str | Absent = _absent()
    """The answer so far, as JSON text (of a text agent: the text); it replaces the one before."""
    drop: int | Absent = _absent()
    """Instead of `token`: take so many characters off the end of the text that you have,"""
    append: str | Absent = _absent()
    """and append this."""


class MessageCompleteEvent(_OfAnswer):
    """The answer is stored; it equals the last `text_delta`."""

    event: Literal["message_complete"]
    """The kind of event."""
    usage: Usage
    """What the run used."""


class ErrorEvent(_Event):
    """The run failed. In SSE the event is named `run_failed`, because `EventSource` uses `error` for itself."""

    event: Literal["error"]
    """The kind of event."""
    error: RunError
    """Why."""


class CancelledEvent(_OfAnswer):
    """The run was cancelled."""

    event: Literal["cancelled"]
    """The kind of event."""
    partial: bool
    """Whether it had begun to answer."""


class GapEvent(_Event):
    """Something before is gone; the next `text_delta` is complete in itself."""

    event: Literal["gap"]
    """The kind of event."""


class DoneEvent(_Event):
    """The run has ended and everything was told; with `?until=waiting` also: it waits."""

    event: Literal["done"]
    """The kind of event."""
    status: Literal["succeeded", "failed", "cancelled", "waiting"]
    """How it ended, or `waiting`."""


class StreamEvent(
    RootModel[
        MessageCreatedEvent
        | MessageStartedEvent
        | ReasoningDeltaEvent
        | ToolCallEvent
        | ToolResultEvent
        | ProgressEvent
        | FileEvent
        | WaitingEvent
        | AnsweredEvent
        | MessageEnqueuedEvent
        | TextDeltaEvent
        | MessageCompleteEvent
        | ErrorEvent
        | CancelledEvent
        | GapEvent
        | DoneEvent
    ]
):
    """An event of a run's stream. Ignore kinds and fields that you do not know: later versions tell more."""


class RunOfEvent(Resource):
    """What each event of a run also says in the stream of a thread."""

    run_id: UUID
    """The run that it is of."""
    after_run_id: UUID | None = _absent()
    """In `message_created` only: the run before it in the conversation, null of the first. What came after that one was
    taken out of the thread."""


class ThreadDeletedEvent(_Event):
    """The thread was deleted: its stream ends."""

    event: Literal["thread_deleted"]
    """The kind of event."""


_REF = "#/components/schemas/{model}"
_OF_RUN = [{"$ref": _REF.format(model=name)} for name in ("StreamEvent", "RunOfEvent")]
SCHEMAS: dict[str, Any] = models_json_schema(
    [(model, "serialization") for model in (StreamEvent, RunOfEvent, ThreadDeletedEvent)], ref_template=_REF
)[1]["$defs"] | {
    "ThreadStreamEvent": {
        "description": "An event of a thread's stream: one of a run, which it names, or the end of the thread.",
        "anyOf": [{"allOf": _OF_RUN}, {"$ref": _REF.format(model="ThreadDeletedEvent")}],
    }
}
"""What OpenAPI must be told of streams, which FastAPI does not write."""
