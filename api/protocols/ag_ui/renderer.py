"""The events of a run as those of AG-UI.

A client of AG-UI only appends to a message. Where a text is void, because the agent has changed it or because a worker
died, `MESSAGES_SNAPSHOT` replaces all messages. So the renderer keeps those that its reader has.

A structured output is the state: the first one of an attempt as a whole, then what changes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ag_ui.core import Message
from ag_ui.core.version import PROTOCOL_VERSION
from pydantic_core import from_json, to_json

from agent_relay.api.protocols.ag_ui.json_patch import patch
from agent_relay.api.protocols.ag_ui.message_ids import message_id, told_by
from agent_relay.api.streaming.run_feed import Event, Text
from agent_relay.api.streaming.sse_and_ndjson import Framing, one_line
from agent_relay.shared.database.tables import AttemptReason, RequestKind
from agent_relay.shared.event_log import Id
from agent_relay.shared.rows import RunRow
from agent_relay.shared.schemas import whole_usage

_STATE = "ag-ui state"
_STATE_DELTA = "ag-ui state delta"
_DELTA = "ag-ui delta"
STILL_WAITS = "The run still waits for answers: send this call again."


@dataclass(frozen=True, slots=True)
class Called:
    """What a client has asked for, as far as its stream depends on it."""

    thread_id: str
    run_id: str
    messages: Sequence[Message]
    """What the client has."""
    parent_run_id: str | None = None
    after: int = 0
    """The attempt that came to wait, where the stream goes on after answers; else 0."""


@dataclass(slots=True)
class _Turn:
    """A response of the model, as the reader has it: one message of the assistant."""

    message: dict[str, Any]
    as_of: Id | None = None
    """The id of the text that it holds."""
    is_open: bool = False
    """Whether its text may grow."""
    has_calls: bool = False
    """Whether it calls tools of the agent's: then its text is complete."""
    has_results: bool = False
    """Whether one of them has returned: then a further call is one of another response."""

    @property
    def calls(self) -> set[str]:
        """The ids of its calls."""
        return {call["id"] for call in self.message.get("toolCalls", ())}


@dataclass(slots=True)
class _Told:
    """What the stream has given to its reader."""

    messages: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    kept: int = 0
    """How many of the messages stay valid, whatever becomes of a later attempt: the run has waited since."""
    thoughts: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    """The messages of the reasoning, by its parts."""

    def calls(self) -> set[str]:
        """List the calls."""
        return {call["id"] for message in self.messages for call in message.get("toolCalls", ())}

    def results(self) -> set[str]:
        """List the calls that have returned."""
        return {message["toolCallId"] for message in self.messages if message["role"] == "tool"}

    def take_back(self, is_void: Callable[[dict[str, Any]], bool]) -> bool:
        """Take messages back; tells whether there were any.

        Clients keep messages of reasoning, unless a snapshot has some: these stay, empty, and may be written anew.
        """
        void = [message for message in self.messages[self.kept :] if is_void(message)]
        for message in void:
            if message["role"] == "reasoning":
                message["content"] = ""
            else:
                self.messages.remove(message)
        return bool(void)


class EventRenderer:
    """Writes the events of a run for one reader, and keeps the messages that this one has."""

    def __init__(self, run: RunRow, called: Called) -> None:
        self._run = run
        self._called = called
        self._attempt = called.after
        given = [message for message in called.messages if not self._is_own(message.id)]
        self._begins_anew = len(given) < len(called.messages)
        """Whether the client has a part of this stream already, which is told again."""
        self._given = b",".join(to_json(message.model_dump(by_alias=True, mode="json")) for message in given)
        of_this_run = [each for each in given if (told_by(each.id) or (None,))[0] == run.message_id]
        self._given_calls = {
            call.id for each in of_this_run if each.role == "assistant" for call in each.tool_calls or ()
        }
        """Calls that the client was told of before the run waited."""
        results = {each.tool_call_id for each in given if each.role == "tool"}
        self._given_results = results & self._given_calls
        self._told = _Told()
        self._calls = set(self._given_calls)
        self._results = set(self._given_results)
        self._turn: _Turn | None = None
        self._thought: int | None = None
        """The part of the reasoning that may grow."""
        self._shown: Text | None = None
        """The structured output that the reader has; None where an attempt has shown none."""
        self._parsed: tuple[Id, object] | None = None
        """One, and the id of its text."""
        self._newest = ""
        """The structured output so far."""
        self._requests: list[Mapping[str, Any]] = []
        self._number = 0

    @property
    def media_type(self) -> str:
        """Server-sent events."""
        return Framing.SSE.value

    @property
    def opening(self) -> bytes:
        """The run begins; and where the client has a part of this stream, that is taken back."""
        called = self._called
        more = {} if called.parent_run_id is None else {"parentRunId": called.parent_run_id}
        started = _event("RUN_STARTED", **self._ids(), protocolVersion=PROTOCOL_VERSION, **more, metadata=self._ours())
        return started + (self._snapshot() if self._begins_anew else b"")

    @property
    def keepalive(self) -> bytes:
        """A comment."""
        return Framing.SSE.keepalive

    def render(self, item: Event | Text) -> bytes:
        """Write an event, or what a text has grown by."""
        self._attempt = item.id.attempt
        if isinstance(item, Event):
            write = self._writers.get(item.name)
            return b"" if write is None else write(self, item.fields)
        if item.part:
            return self._think(item)
        return self._say(item) if self._run.text_output else self._show(item)

    def _ids(self) -> dict[str, str]:
        return {"threadId": self._called.thread_id, "runId": self._called.run_id}

    def _ours(self) -> dict[str, str | None]:
        run = self._run
        return {"run_id": str(run.id), "thread_id": None if run.thread_id is None else str(run.thread_id)}

    def _new_id(self) -> str:
        """Name a message, so that `_is_own` knows it."""
        self._number += 1
        return message_id(self._run.message_id, self._attempt, self._number)

    def _is_own(self, given: str) -> bool:
        """Tell whether a message is of this stream, or of one that was the same and has broken off."""
        told = told_by(given)
        return told is not None and told[0] == self._run.message_id and told[1] > self._called.after

    def _snapshot(self) -> bytes:
        """Write all messages that the reader should have."""
        told = to_json(self._told.messages)[1:-1]
        messages = b",".join(filter(None, (self._given, told)))
        return b'data: {"type":"MESSAGES_SNAPSHOT","messages":[%b]}\n\n' % one_line(messages)

    def _show(self, item: Text) -> bytes:
        """Write the structured output so far, which is JSON: what has changed of it, if the reader has one."""
        self._newest = item.whole
        before, self._shown = self._shown, item
        return self._end_thought() + (_state_snapshot(item) if before is None else self._state_delta(before, item))

    def _state_delta(self, before: Text, item: Text) -> bytes:
        """Write what has changed, or the whole where that is shorter; readers that have the same share it."""
        frame = item.frames.get((_STATE_DELTA, before.id))
        if frame is None:
            parsed = self._parsed
            state = parsed[1] if parsed is not None and parsed[0] == before.id else from_json(before.whole)
            new = from_json(item.whole)
            self._parsed = item.id, new
            changes = patch(state, new)
            delta = None if changes is None else one_line(to_json(changes))
            if delta == b"[]":
                frame = b""
            elif delta is None or len(delta) > len(item.whole):
                frame = _state_snapshot(item)
            else:
                frame = b'data: {"type":"STATE_DELTA","delta":%b}\n\n' % delta
            item.frames[_STATE_DELTA, before.id] = frame
        return frame

    def _say(self, item: Text) -> bytes:
        turn = self._turn
        if turn is None or turn.has_calls:
            if not item.whole or (turn is not None and turn.message.get("content") == item.whole):
                return b""
            turn = self._begin_turn()
        said = turn.message.get("content", "")
        as_of, turn.as_of = turn.as_of, item.id
        turn.message["content"] = item.whole
        if not item.whole.startswith(said):
            return self._end_text() + self._snapshot() + self._start_text(turn)
        started = self._end_thought() + self._start_text(turn)
        named = turn.message["id"]
        if item.growth is not None and not item.growth.drop and item.before == as_of:
            frame = item.frames.get((_DELTA, named))
            if frame is None:
                frame = item.frames[_DELTA, named] = _content("TEXT_MESSAGE", named, item.growth.append)
            return started + frame
        more = item.whole[len(said) :]
        return started + (_content("TEXT_MESSAGE", named, more) if more else b"")

    def _begin_turn(self) -> _Turn:
        message: dict[str, Any] = {"id": self._new_id(), "role": "assistant"}
        self._told.messages.append(message)
        self._turn = _Turn(message)
        return self._turn

    def _start_text(self, turn: _Turn) -> bytes:
        if turn.is_open:
            return b""
        turn.is_open = True
        return _event("TEXT_MESSAGE_START", messageId=turn.message["id"], role="assistant")

    def _end_text(self) -> bytes:
        turn = self._turn
        if turn is None or not turn.is_open:
            return b""
        turn.is_open = False
        return _event("TEXT_MESSAGE_END", messageId=turn.message["id"])

    def _think(self, item: Text) -> bytes:
        message = self._told.thoughts.get(item.part)
        if message is None:
            message = self._told.thoughts[item.part] = {"id": self._new_id(), "role": "reasoning", "content": ""}
            self._told.messages.append(message)
        thought, message["content"] = message["content"], item.whole
        if not item.whole.startswith(thought):
            return self._end_thought() + self._snapshot() + self._start_thought(item.part)
        started = self._start_thought(item.part)
        more = item.whole[len(thought) :]
        return started + (_content("REASONING_MESSAGE", message["id"], more) if more else b"")

    def _start_thought(self, part: int) -> bytes:
        if self._thought == part:
            return b""
        ended, self._thought = self._end_thought(), part
        named = self._told.thoughts[part]["id"]
        started = _event("REASONING_START", messageId=named)
        return ended + started + _event("REASONING_MESSAGE_START", messageId=named, role="reasoning")

    def _end_thought(self) -> bytes:
        if self._thought is None:
            return b""
        named, self._thought = self._told.thoughts[self._thought]["id"], None
        return _event("REASONING_MESSAGE_END", messageId=named) + _event("REASONING_END", messageId=named)

    def _end_open(self) -> bytes:
        return self._end_thought() + self._end_text()

    def _begin_attempt(self, fields: Mapping[str, Any]) -> bytes:
        """Take back what is void of the attempts before."""
        ended, told = self._end_open(), self._told
        self._shown = None
        if fields["reason"] == AttemptReason.ANSWERED:
            self._turn, told.kept = None, len(told.messages)
            return ended
        if not fields["steps_kept"]:
            is_void = told.take_back(lambda _: True)
            self._turn = None
        else:
            void = self._void_parts(fields.get("reasoning_kept", 0))
            is_void = told.take_back(lambda message: message["id"] in void)
        self._calls, self._results = self._given_calls | told.calls(), self._given_results | told.results()
        return ended + (self._snapshot() if is_void else b"")

    def _void_parts(self, reasoning_kept: int) -> set[str]:
        """List the messages of a response that was not complete."""
        void = {each["id"] for part, each in self._told.thoughts.items() if part > reasoning_kept and each["content"]}
        if self._turn is None or self._turn.has_calls:
            return void
        turn, self._turn = self._turn, None
        results = {each["id"] for each in self._told.messages if each.get("toolCallId") in turn.calls}
        return void | results | {turn.message["id"]}

    def _call(self, fields: Mapping[str, Any]) -> bytes:
        """Write a call; one that is made again under its id is known."""
        call_id = fields["tool_call_id"]
        if call_id in self._calls:
            return b""
        self._calls.add(call_id)
        is_native = fields.get("native", False)
        ended = self._end_thought() if is_native else self._end_open()
        turn = self._turn
        if turn is None or turn.has_results:
            turn = self._begin_turn()
        turn.has_calls = turn.has_calls or not is_native
        args = _text_of(fields.get("args"))
        called = {"id": call_id, "type": "function", "function": {"name": fields["tool_name"], "arguments": args}}
        turn.message.setdefault("toolCalls", []).append(called)
        about = {name: fields[name] for name in ("native", "parent_tool_call_id") if name in fields}
        started = _event(
            "TOOL_CALL_START",
            toolCallId=call_id,
            toolCallName=fields["tool_name"],
            parentMessageId=turn.message["id"],
            **({"metadata": about} if about else {}),
        )
        given = _event("TOOL_CALL_ARGS", toolCallId=call_id, delta=args) if args else b""
        return ended + started + given + _event("TOOL_CALL_END", toolCallId=call_id)

    def _return(self, fields: Mapping[str, Any]) -> bytes:
        """Write what a call has returned; a client that has given it has it."""
        call_id = fields["tool_call_id"]
        called = self._call(fields)  # A reader that has missed it cannot take a result alone.
        if self._turn is not None and not fields.get("native"):
            self._turn.has_results = True
        if call_id in self._results:
            return called
        self._results.add(call_id)
        content = _text_of(fields["content"])
        message = {"id": self._new_id(), "role": "tool", "toolCallId": call_id, "content": content}
        self._told.messages.append(message)
        return called + _event(
            "TOOL_CALL_RESULT", messageId=message["id"], toolCallId=call_id, content=content, role="tool"
        )

    def _report(self, fields: Mapping[str, Any]) -> bytes:
        call_id = fields.get("tool_call_id")
        about = {} if call_id is None else {"metadata": {"tool_call_id": call_id}}
        return _event("CUSTOM", name=fields["name"], value=fields["data"], **about)

    def _enqueue(self, fields: Mapping[str, Any]) -> bytes:
        return _event("CUSTOM", name="message_enqueued", value=fields["message"])

    def _wait(self, fields: Mapping[str, Any]) -> bytes:
        self._requests = list(fields["requests"])
        return b"".join(self._call({**request, "tool_call_id": request["request_id"]}) for request in self._requests)

    def _answer(self, fields: Mapping[str, Any]) -> bytes:
        self._requests = [each for each in self._requests if each["request_id"] != fields["request_id"]]
        return b""

    def _pause(self, _fields: Mapping[str, Any]) -> bytes:
        """End the client's run: it asks for something, or has called tools that the client is to answer."""
        ended = self._end_open()
        if not self._requests:
            return ended + _event("RUN_ERROR", message=STILL_WAITS, code="run_waits")
        if all(request["kind"] == RequestKind.EXTERNAL for request in self._requests):
            pending = [request["request_id"] for request in self._requests]
            return ended + self._finish({"type": "success", "pendingToolCallIds": pending})
        return ended + self._finish({"type": "interrupt", "interrupts": [*map(_interrupt, self._requests)]})

    def _complete(self, fields: Mapping[str, Any]) -> bytes:
        more: dict[str, Any] = {}
        if not self._called.after:  # Else it is of all that was before the answers, too.
            more["usage"] = [_usage(fields["usage"])]
        if self._newest:
            more["result"] = from_json(self._newest)
        return self._end_open() + self._finish({"type": "success"}, **more)

    def _fail(self, fields: Mapping[str, Any]) -> bytes:
        error = fields["error"]
        return self._end_open() + _event("RUN_ERROR", message=error["message"], code=error["code"])

    def _cancel(self, _fields: Mapping[str, Any]) -> bytes:
        return self._end_open() + self._finish({"type": "cancelled"})

    def _finish(self, outcome: dict[str, Any], **more: Any) -> bytes:
        return _event("RUN_FINISHED", **self._ids(), outcome=outcome, **more)

    _writers: ClassVar[dict[str, Callable[[EventRenderer, Mapping[str, Any]], bytes]]] = {
        "message_started": _begin_attempt,
        "tool_call": _call,
        "tool_result": _return,
        "progress": _report,
        "message_enqueued": _enqueue,
        "waiting": _wait,
        "answered": _answer,
        "pause": _pause,
        "message_complete": _complete,
        "error": _fail,
        "cancelled": _cancel,
    }
    """By the events that have a word here."""


_OBJECT = {"type": "object"}


def _interrupt(request: Mapping[str, Any]) -> dict[str, Any]:
    """Write what a run waits for."""
    is_approval = request["kind"] == RequestKind.APPROVAL
    schema = request.get("schema")
    if is_approval:
        schema = {
            "type": "object",
            "properties": {
                "approved": {"type": "boolean"},
                "editedArgs": _OBJECT if schema is None else schema,
                "reason": {"type": "string"},
            },
            "required": ["approved"],
        }
    interrupt: dict[str, Any] = {
        "id": request["request_id"],
        "reason": "tool_call" if is_approval else "input_required",
        "message": request.get("prompt"),
        "toolCallId": request["request_id"],
        "responseSchema": schema,
        "metadata": {name: request.get(name) for name in ("kind", "tool_name", "args")},
    }
    return {name: value for name, value in interrupt.items() if value is not None}


def _usage(stored: object) -> dict[str, int]:
    used = {kind: int(count or 0) for kind, count in whole_usage(stored).items()}
    return {
        "inputTokens": used["input_tokens"],
        "outputTokens": used["output_tokens"],
        "totalTokens": used["input_tokens"] + used["output_tokens"],
        "cachedInputTokens": used["cache_read_tokens"],
    }


def _text_of(shown: object) -> str:
    """Write as text what a tool was given or has returned; nothing where callers are not shown it."""
    if shown is None:
        return ""
    return shown if isinstance(shown, str) else to_json(shown).decode()


def _state_snapshot(item: Text) -> bytes:
    frame = item.frames.get(_STATE)
    if frame is None:
        state = one_line(item.whole.encode())
        frame = item.frames[_STATE] = b'data: {"type":"STATE_SNAPSHOT","snapshot":%b}\n\n' % state
    return frame


def _content(kind: str, named: str, delta: str) -> bytes:
    return _event(f"{kind}_CONTENT", messageId=named, delta=delta)


def _event(kind: str, **fields: Any) -> bytes:
    return b"data: %b\n\n" % one_line(to_json({"type": kind, **fields}))
