"""The events of a run as chunks of a UI message stream.

A client of the AI SDK builds one message out of these chunks. It only appends to a text; what is void is taken back
with `reset-step`, which removes all parts since the last `start-step`. So each response of the model is a step here,
and what is still valid of a step that was taken back is written again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from pydantic_core import from_json, to_json

from agent_relay.api.streaming.response import CannotRender
from agent_relay.api.streaming.run_feed import Event, Text
from agent_relay.api.streaming.sse_and_ndjson import one_line
from agent_relay.shared.database.tables import AttemptReason, RequestKind
from agent_relay.shared.event_log import Id
from agent_relay.shared.rows import RunRow
from agent_relay.shared.schemas import requests_of

MEDIA_TYPE = "text/event-stream"
HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
OUTPUT = "output"
"""The name and the id of the data part that a structured output is."""
_DONE = b"data: [DONE]\n\n"
_DELTA = "ai-sdk delta"
_OUTPUT_SO_FAR = "ai-sdk output"


def reasoning_id(part: int) -> str:
    """Name a part of the reasoning."""
    return f"reasoning-{part}"


def value_of(shown: object) -> Any:
    """Read what a tool was given or has returned, which events say as text; text that is no JSON stays text."""
    if not isinstance(shown, str) or not shown.startswith(("{", "[")):
        return shown
    try:
        return from_json(shown, allow_inf_nan=False)
    except ValueError:
        return shown


class _Kind(Enum):
    """What grows, and what its chunks are called."""

    TEXT = "text"
    REASONING = "reasoning"
    OUTPUT = "data"


@dataclass(slots=True)
class _Growing:
    """A part that grows, as the reader has it."""

    kind: _Kind
    id: str
    part: int
    """Of the reasoning; else 0."""
    whole: str
    as_of: Id
    is_open: bool = True

    def written(self) -> bytes:
        """Write all of it."""
        if self.kind is _Kind.OUTPUT:
            return _output(self.whole)
        started = chunk(f"{self.kind.value}-start", id=self.id)
        text = chunk(f"{self.kind.value}-delta", id=self.id, delta=self.whole) if self.whole else b""
        return started + text + (b"" if self.is_open else self._end())

    def grown(self, by: str) -> bytes:
        """Write what it has grown by."""
        return chunk(f"{self.kind.value}-delta", id=self.id, delta=by)

    def closed(self) -> bytes:
        """Write that it is complete, if that has not been said."""
        if not self.is_open:
            return b""
        self.is_open = False
        return b"" if self.kind is _Kind.OUTPUT else self._end()

    def _end(self) -> bytes:
        return chunk(f"{self.kind.value}-end", id=self.id)


@dataclass(slots=True)
class _Step:
    """What the reader has of the response that is being written, in order: parts that grow, and chunks that stay."""

    parts: list[_Growing | bytes] = field(default_factory=list["_Growing | bytes"])
    has_calls: bool = False
    """Whether tools of the agent's are called: then the response is complete."""
    native_calls: set[str] = field(default_factory=set[str])
    """Calls of the provider's own tools, and files that the model made: they belong to the response itself."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it was written."""
        return not self.parts and not self.has_calls

    def growing(self, part: int) -> _Growing | None:
        """Find a part of the reasoning, or with 0 the text or the output."""
        return next((each for each in self.parts if isinstance(each, _Growing) and each.part == part), None)

    def closed(self) -> bytes:
        """Write that what has grown so far is complete."""
        return b"".join(each.closed() for each in self.parts if isinstance(each, _Growing))

    def written(self) -> bytes:
        """Write all of it."""
        return b"".join(each if isinstance(each, bytes) else each.written() for each in self.parts)


@dataclass(frozen=True, slots=True)
class Known:
    """What the reader's message has already, where a stream goes on after answers."""

    calls: frozenset[str] = frozenset()
    """Calls of tools."""
    results: frozenset[str] = frozenset()
    """Calls whose results it brings."""


class ChunkRenderer:
    """Writes the events of a run for one reader, and keeps what may have to be written again."""

    __slots__ = (
        "_asked",
        "_denied",
        "_failed",
        "_given",
        "_kept_calls",
        "_known",
        "_run",
        "_step",
        "_steps",
        "_url_of_file",
    )

    def __init__(self, run: RunRow, url_of_file: Callable[[str], str], known: Known | None = None) -> None:
        self._run = run
        self._url_of_file = url_of_file
        self._known = set[str]() if known is None else set(known.calls)
        self._given = frozenset[str]() if known is None else known.results
        self._asked = set[str]()
        """Approvals that the reader was asked for by this stream."""
        self._kept_calls = set(self._known)
        """Those that no later attempt makes void."""
        self._denied = set[str]()
        self._failed = {
            request.request_id for request in requests_of(run.requests) if "error" in (request.answer or {})
        }
        self._step: _Step | None = None
        self._steps = 0
        """How many have begun since the start, or since the run waited last."""

    @property
    def media_type(self) -> str:
        """The media type of the stream."""
        return MEDIA_TYPE

    @property
    def opening(self) -> bytes:
        """The message that the chunks are of."""
        run = self._run
        return chunk("start", messageId=str(run.message_id), messageMetadata={"run_id": str(run.id)})

    @property
    def keepalive(self) -> bytes:
        """A comment."""
        return b":\n\n"

    def render(self, item: Event | Text) -> bytes:
        """Write an event, or what a text has grown by."""
        if isinstance(item, Text):
            return self._text(item)
        write = self._writers.get(item.name)
        return b"" if write is None else write(self, item.fields)

    def _progress(self, fields: Mapping[str, Any]) -> bytes:
        data = {key: fields[key] for key in ("name", "data", "tool_call_id") if key in fields}
        return chunk("data-progress", data=data, transient=True)

    def _wait(self, fields: Mapping[str, Any]) -> bytes:
        return b"".join(map(self._request, fields["requests"]))

    def _pause(self, _fields: Mapping[str, Any]) -> bytes:
        return self._end_step() + chunk("finish", finishReason="tool-calls") + _DONE

    def _complete(self, fields: Mapping[str, Any]) -> bytes:
        return self._end_step() + chunk("finish", finishReason="stop", messageMetadata={"usage": fields["usage"]})

    def _fail(self, fields: Mapping[str, Any]) -> bytes:
        return self._end_step() + chunk("error", errorText=fields["error"]["message"])

    def _cancel(self, fields: Mapping[str, Any]) -> bytes:
        interrupted = chunk("message-metadata", messageMetadata={"status": "interrupted"})
        return self._end_step() + (interrupted if fields["partial"] else b"") + chunk("abort", reason="cancelled")

    def _done(self, _fields: Mapping[str, Any]) -> bytes:
        return _DONE

    def _begin(self, *, calls: bool = False) -> tuple[_Step, bytes]:
        """Return the step that something belongs to, and the chunks that begin it, if it is a new one.

        What a model writes after calls is a new response. Of a call, events do not say whether it is in a new one.
        """
        ended = b""
        if self._step is not None:
            if calls or not self._step.has_calls:
                return self._step, b""
            ended = self._end_step()
        self._step = _Step()
        self._steps += 1
        return self._step, ended + chunk("start-step")

    def _end_step(self) -> bytes:
        if self._step is None:
            return b""
        closed, self._step = self._step.closed(), None
        return closed + chunk("finish-step")

    def _take_back(self, parts: Iterable[_Growing | bytes]) -> bytes:
        """Take back all that was written of the step, and write these parts of it."""
        natives = set[str]() if self._step is None else self._step.native_calls
        self._step = _Step(list(parts), native_calls=natives & self._known)
        return chunk("reset-step") + self._step.written()

    def _attempt(self, fields: Mapping[str, Any]) -> bytes:
        """Begin an attempt; what is void of those before is taken back.

        Raises:
            CannotRender: more is void than the step that can be taken back.
        """
        if fields["reason"] == AttemptReason.ANSWERED:
            self._steps, self._kept_calls = 0, set(self._known)
            return self._end_step()
        step = self._step
        if not fields["steps_kept"]:
            if self._steps > 1 or (self._steps and step is None):
                raise CannotRender
            self._known = set(self._kept_calls)
            return b"" if step is None or step.is_empty else self._take_back(())
        if step is None or step.has_calls:  # The response is complete, and so is kept.
            return b"" if step is None else step.closed()
        reasoning = fields.get("reasoning_kept", 0)
        valid = [each for each in step.parts if isinstance(each, _Growing) and 0 < each.part <= reasoning]
        if len(valid) == len(step.parts):
            return b""
        self._known -= step.native_calls
        return self._take_back(valid)

    def _text(self, item: Text) -> bytes:
        known = None if self._step is None else self._step.growing(item.part)
        if known is not None and self._step is not None:
            if known.whole == item.whole:
                known.as_of = item.id
                return b""
            if not self._step.has_calls:
                return self._grow(known, item, self._step)
        step, begun = self._begin()
        kind = _Kind.REASONING if item.part else _Kind.TEXT if self._run.text_output else _Kind.OUTPUT
        part_id = {_Kind.REASONING: reasoning_id(item.part), _Kind.TEXT: "text", _Kind.OUTPUT: OUTPUT}[kind]
        closed = step.closed()
        part = _Growing(kind, part_id, item.part, item.whole, item.id)
        step.parts.append(part)
        return begun + closed + (self._output(item) if kind is _Kind.OUTPUT else part.written())

    def _grow(self, part: _Growing, item: Text, step: _Step) -> bytes:
        before, as_of = part.whole, part.as_of
        part.whole, part.as_of = item.whole, item.id
        if part.kind is _Kind.OUTPUT:
            return self._output(item)
        if part.is_open and item.before == as_of and item.growth is not None and not item.growth.drop:
            frame = item.frames.get(_DELTA)
            if frame is None:
                frame = item.frames[_DELTA] = part.grown(item.growth.append)
            return frame
        if part.is_open and item.whole.startswith(before):
            return part.grown(item.whole[len(before) :])
        part.is_open = True
        return self._take_back(step.parts)

    def _output(self, item: Text) -> bytes:
        frame = item.frames.get(_OUTPUT_SO_FAR)
        if frame is None:
            frame = item.frames[_OUTPUT_SO_FAR] = _output(item.whole)
        return frame

    def _call(self, fields: Mapping[str, Any]) -> bytes:
        """Write a call; one that is made again under its id is known."""
        call_id = fields["tool_call_id"]
        if call_id in self._known:
            return b""
        self._known.add(call_id)
        native, parent = fields.get("native", False), fields.get("parent_tool_call_id")
        step, begun = self._begin(calls=True)
        more: dict[str, Any] = {"providerExecuted": True} if native else {}
        if parent is not None:
            more["toolMetadata"] = {"parent_tool_call_id": parent}
        written = chunk(
            "tool-input-available",
            toolCallId=call_id,
            toolName=fields["tool_name"],
            input=value_of(fields.get("args")),
            **more,
        )
        if native:
            step.parts.append(written)
            step.native_calls.add(call_id)
            return begun + written
        step.has_calls = True
        return begun + step.closed() + written

    def _result(self, fields: Mapping[str, Any]) -> bytes:
        call_id = fields["tool_call_id"]
        if call_id in self._given:
            return b""
        called = self._call(fields)  # A reader that has missed it cannot take a result alone.
        content = fields["content"]
        native: dict[str, Any] = {"providerExecuted": True} if fields.get("native") else {}
        if call_id in self._denied:
            written = chunk("tool-output-denied", toolCallId=call_id)
        elif call_id in self._failed:
            written = chunk("tool-output-error", toolCallId=call_id, errorText=str(content or ""), **native)
        else:
            written = chunk("tool-output-available", toolCallId=call_id, output=value_of(content), **native)
        if native and self._step is not None:
            self._step.parts.append(written)
        return called + written

    def _file(self, fields: Mapping[str, Any]) -> bytes:
        """Write a file that was made; one that is made again by another attempt is known."""
        file_id = fields["file_id"]
        if file_id in self._known:
            return b""
        self._known.add(file_id)
        step, begun = self._begin(calls=True)
        written = chunk("file", url=self._url_of_file(file_id), mediaType=fields["media_type"])
        if not step.has_calls:
            step.parts.append(written)
            step.native_calls.add(file_id)
        return begun + written

    def _request(self, request: Mapping[str, Any]) -> bytes:
        """Write what the run waits for: an approval as such, another answer as the call that lacks its output."""
        call_id = request["request_id"]
        called = self._call({**request, "tool_call_id": call_id})
        if request["kind"] != RequestKind.APPROVAL:
            data = {name: request.get(name) for name in ("request_id", "kind", "tool_name", "prompt", "schema")}
            return called + chunk("data-request", id=call_id, data=data)
        self._asked.add(call_id)
        reason = {} if request.get("prompt") is None else {"reason": request["prompt"]}
        return called + chunk("tool-approval-request", approvalId=call_id, toolCallId=call_id, **reason)

    def _answer(self, fields: Mapping[str, Any]) -> bytes:
        request_id, approved = fields["request_id"], fields.get("approve")
        if approved is False:
            self._denied.add(request_id)
        if approved is None or request_id not in self._asked:  # Else the reader's own message says it.
            return b""
        return chunk("tool-approval-response", approvalId=request_id, approved=approved)

    _writers: ClassVar[dict[str, Callable[[ChunkRenderer, Mapping[str, Any]], bytes]]] = {
        "message_started": _attempt,
        "tool_call": _call,
        "tool_result": _result,
        "file": _file,
        "progress": _progress,
        "waiting": _wait,
        "answered": _answer,
        "pause": _pause,
        "message_complete": _complete,
        "error": _fail,
        "cancelled": _cancel,
        "done": _done,
    }
    """By the events that have chunks."""


def chunk(kind: str, **fields: Any) -> bytes:
    """Write a chunk."""
    return b"data: %s\n\n" % one_line(to_json({"type": kind, **fields}))


def _output(whole: str) -> bytes:
    """Write a structured output, which is JSON."""
    data = one_line(whole.encode())
    return b'data: {"type":"data-%b","id":"%b","data":%b}\n\n' % (OUTPUT.encode(), OUTPUT.encode(), data)
