"""A client of AG-UI: takes a stream as AG-UI's own client does, which refuses what is out of order.

Each event is read with the models of the protocol's own package, which must know each of its fields.
"""

from __future__ import annotations

import json
from typing import Any, cast

import jsonpatch  # pyright: ignore[reportMissingTypeStubs]
from ag_ui.core import Event
from pydantic import BaseModel, TypeAdapter

_EVENT: TypeAdapter[Event] = TypeAdapter(Event)
_ENDS = {"RUN_FINISHED", "RUN_ERROR"}


def _has_only_known_fields(value: object) -> bool:
    if isinstance(value, BaseModel):
        return not value.model_extra and all(_has_only_known_fields(field) for _, field in value)
    return not isinstance(value, list) or all(map(_has_only_known_fields, cast("list[object]", value)))


class AgUiClient:
    """What a client has after the events that it was sent."""

    def __init__(self, thread_id: str = "thread", messages: list[dict[str, Any]] | None = None) -> None:
        self.thread_id = thread_id
        self.messages = messages or []
        self.state: Any = {}
        self.states: list[Any] = []
        self.begin()

    def begin(self) -> None:
        """Expect another stream."""
        self.events: list[dict[str, Any]] = []
        self._open: set[tuple[str, str]] = set()

    def say(self, text: str) -> None:
        """Add a message of the user's."""
        self.messages.append({"id": f"user-{len(self.messages)}", "role": "user", "content": text})

    @property
    def kinds(self) -> list[str]:
        """The types of the events, each once where it stands several times in a row."""
        kinds = [event["type"] for event in self.events]
        return [kind for place, kind in enumerate(kinds) if not place or kinds[place - 1] != kind]

    @property
    def last(self) -> dict[str, Any]:
        """The last event."""
        return self.events[-1]

    @property
    def last_type(self) -> str | None:
        """The type of the last event, if there is one."""
        return self.last["type"] if self.events else None

    def said(self) -> list[str]:
        """All texts of the assistant."""
        return [each["content"] for each in self.messages if each["role"] == "assistant" and "content" in each]

    def take(self, stream: str) -> None:
        """Take what came."""
        for frame in stream.split("\n\n"):
            if frame.startswith("data: "):
                self.take_event(json.loads(frame.removeprefix("data: ")))

    def take_event(self, event: dict[str, Any]) -> None:
        """Take an event, and see that it may come here."""
        model = _EVENT.validate_python(event)
        assert _has_only_known_fields(model), event
        kind = event["type"]
        assert (kind == "RUN_STARTED") == (not self.events), kind
        assert not self.events or self.last["type"] not in _ENDS, f"{kind} after the end"
        self.events.append(event)
        subject, _, verb = kind.rpartition("_")
        match verb:
            case "START":
                named = subject, event.get("messageId") or event["toolCallId"]
                assert named not in self._open, event
                self._open.add(named)
            case "CONTENT" | "ARGS":
                assert (subject, event.get("messageId") or event["toolCallId"]) in self._open, event
            case "END":
                self._open.remove((subject, event.get("messageId") or event["toolCallId"]))
            case _:
                pass
        if kind in _ENDS:
            assert not self._open, f"{self._open} at the end"
        self._apply(kind, event)

    def _apply(self, kind: str, event: dict[str, Any]) -> None:
        match kind:
            case "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START":
                if self._find(event["messageId"]) is None:
                    self.messages.append({"id": event["messageId"], "role": event["role"], "content": ""})
            case "TEXT_MESSAGE_CONTENT" | "REASONING_MESSAGE_CONTENT":
                message = self._find(event["messageId"])
                assert message is not None
                message["content"] = message.get("content", "") + event["delta"]
            case "TOOL_CALL_START":
                message = self._find(event["parentMessageId"])
                if message is None:
                    message = cast("dict[str, Any]", {"id": event["parentMessageId"], "role": "assistant"})
                    self.messages.append(message)
                function = {"name": event["toolCallName"], "arguments": ""}
                call = {"id": event["toolCallId"], "type": "function", "function": function}
                message.setdefault("toolCalls", []).append(call)
            case "TOOL_CALL_ARGS":
                self.call(event["toolCallId"])["function"]["arguments"] += event["delta"]
            case "TOOL_CALL_RESULT":
                self.call(event["toolCallId"])
                result = {"id": event["messageId"], "role": "tool", "content": event["content"]}
                self.messages.append(result | {"toolCallId": event["toolCallId"]})
            case "STATE_SNAPSHOT" | "STATE_DELTA":
                changes = event.get("delta")
                self.state = event["snapshot"] if changes is None else jsonpatch.apply_patch(self.state, changes)
                self.states.append(self.state)
            case "MESSAGES_SNAPSHOT":
                self._replace(event["messages"])
            case _:
                pass

    def _replace(self, snapshot: list[dict[str, Any]]) -> None:
        """Replace all messages but the client's own: of the reasoning, where the snapshot has none."""
        own = {"activity"} if any(each["role"] == "reasoning" for each in snapshot) else {"activity", "reasoning"}
        new = {each["id"]: each for each in snapshot}
        kept = [each for each in self.messages if each["role"] in own or each["id"] in new]
        self.messages = [each if each["role"] in own else new[each["id"]] for each in kept]
        there = {each["id"] for each in self.messages}
        self.messages += [each for each in snapshot if each["id"] not in there]

    def _find(self, message_id: str) -> dict[str, Any] | None:
        return next((each for each in self.messages if each["id"] == message_id), None)

    def call(self, call_id: str) -> dict[str, Any]:
        """Find a call of a tool, which must be there once."""
        [call] = [call for each in self.messages for call in each.get("toolCalls", ()) if call["id"] == call_id]
        return call

    def results(self) -> dict[str, str]:
        """What the tools have returned, by their calls; each once."""
        results = [each for each in self.messages if each["role"] == "tool"]
        found = {each["toolCallId"]: each["content"] for each in results}
        assert len(found) == len(results)
        return found
