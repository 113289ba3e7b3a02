"""A run as the events of a response.

The answer is a message item. Where the agent gives a text up, its item is closed as incomplete, and the next one is
begun; the last item, and the output of the response that ends the stream, are the stored output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from agent_relay.api.protocols.openai.growing_text import GrowingText
from agent_relay.api.protocols.openai.response_object import (
    COMPLETED,
    INCOMPLETE,
    Beside,
    calls_of,
    finished,
    head_of,
    message_id,
    message_item,
    open_requests,
    text_part,
    waiting_response,
)
from agent_relay.api.protocols.openai.sequence import (
    ADDED,
    DELTA,
    END_TEXT_DONE,
    FIRST_CALL,
    FROM_THE_START,
    ITEM_DONE,
    LIFECYCLE,
    MOST_ITEMS,
    PART_ADDED,
    TEXT_DONE,
    Place,
)
from agent_relay.api.streaming.run_feed import Event, Text
from agent_relay.api.streaming.sse_and_ndjson import Framing, one_line
from agent_relay.shared.database.tables import TERMINAL, RunStatus
from agent_relay.shared.event_log import final_text
from agent_relay.shared.rows import RunRow

_CLOSINGS = 3
"""Events that close an item."""


class ResponseRenderer:
    """Writes a run for one reader, who may have seen some of it: up to `seen`, with the text `sent` at that place.

    `created_again` begins the stream of a run that goes on with `response.created`, as each call's stream begins.
    """

    __slots__ = (
        "_closed",
        "_created_again",
        "_frames",
        "_head",
        "_id",
        "_item",
        "_newest",
        "_open",
        "_requests",
        "_run",
        "_seen",
        "_streams",
        "_text",
    )

    def __init__(
        self,
        run: RunRow,
        beside: Beside,
        seen: Place = FROM_THE_START,
        sent: str | None = None,
        *,
        created_again: bool = False,
    ) -> None:
        self._run = run
        self._head = head_of(run, beside)
        self._streams = run.text_output
        self._frames: list[bytes] = []
        self._seen = seen.number
        self._id = seen.id
        self._item = seen.item
        self._requests: Sequence[Mapping[str, Any]] = open_requests(run) if run.status == RunStatus.WAITING else []
        self._created_again = created_again
        self._newest = final_text(run) if run.status in TERMINAL else sent
        """The newest text."""
        self._text = GrowingText(sent or "")
        self._open = 0
        """What there is of the item: nothing, the item, or its part with the text."""
        self._closed = 0
        """How much of it is closed."""
        self._resume(seen, sent)

    def _resume(self, seen: Place, sent: str | None) -> None:
        """Be where a reader is who has seen an event."""
        stage = seen.stage
        if seen.item < 0 or seen.item >= FIRST_CALL or stage in {ITEM_DONE, LIFECYCLE}:
            return
        self._open = 1 if stage == ADDED else 2
        if stage < ITEM_DONE:
            self._closed = stage + 1
        elif stage > DELTA:
            self._closed = stage - END_TEXT_DONE + 1
        elif stage == DELTA and sent is None:
            self._text = _Unknown()

    @property
    def media_type(self) -> str:
        """Server-sent events."""
        return Framing.SSE.value

    @property
    def opening(self) -> bytes:
        """The response as it is, where the stream is of a run that goes on."""
        if not self._created_again:
            return b""
        return self._lifecycle("response.created", finished(self._head, RunStatus.QUEUED, []))

    @property
    def keepalive(self) -> bytes:
        """A comment."""
        return Framing.SSE.keepalive

    def render(self, item: Event | Text) -> bytes:
        """Write the events of an item."""
        self._frames = []
        self._id = item.id
        if isinstance(item, Event):
            self._event(item)
        elif not item.part:
            self._newest = item.whole
            if self._streams:
                self._show(item.whole, is_final=False)
        return b"".join(self._frames)

    def _event(self, event: Event) -> None:
        match event.name:
            case "message_created":
                self._say(TEXT_DONE, "response.created", response=finished(self._head, RunStatus.QUEUED, []))
            case "message_started":
                self._close(INCOMPLETE)
                self._newest = None
                self._say_lifecycle("response.in_progress", finished(self._head, RunStatus.RUNNING, []))
            case "tool_call" | "tool_result":
                self._text.interrupt()
            case "waiting":
                self._requests = event.fields["requests"]
            case "answered":
                answered = event.fields["request_id"]
                self._requests = [request for request in self._requests if request["request_id"] != answered]
            case "pause":
                self._wait()
            case "message_complete":
                self._end(RunStatus.SUCCEEDED, self._newest or "", usage=event.fields["usage"])
            case "cancelled":
                self._end(RunStatus.CANCELLED, self._newest if event.fields["partial"] else None)
            case "error":
                self._end(RunStatus.FAILED, None, error=event.fields["error"])
            case _:
                pass

    def _show(self, text: str, *, is_final: bool) -> None:
        """Say what is new of the text."""
        if self._closed:
            self._close(INCOMPLETE)
        more = self._text.more(text)
        if more is None:
            if not self._text.may_restart(is_final=is_final):
                return
            self._close(INCOMPLETE)
            more = self._text.more(text) or ""
        if not self._open:
            self._item = min(self._item + 1, MOST_ITEMS)
            item = message_item(self._message, None, "in_progress")
            self._say(ADDED, "response.output_item.added", output_index=self._item, item=item)
            self._open = 1
        if self._open == 1:
            self._say_of_part(PART_ADDED, "response.content_part.added", part=text_part(""))
            self._open = 2
        if more:
            self._say_of_part(DELTA, "response.output_text.delta", delta=more, logprobs=[])

    def _close(self, status: str, first_stage: int = TEXT_DONE) -> None:
        """Close the item, if there is one, as far as it is not closed."""
        if not self._open:
            return
        text = self._text.sent if self._open > 1 else ""
        for number in range(self._closed, _CLOSINGS):
            stage = first_stage + number
            if number == 0:
                self._say_of_part(stage, "response.output_text.done", text=text, logprobs=[])
            elif number == 1:
                self._say_of_part(stage, "response.content_part.done", part=text_part(text))
            else:
                item = message_item(self._message, text, status)
                self._say(stage, "response.output_item.done", output_index=self._item, item=item)
        self._open = self._closed = 0
        self._text = GrowingText()

    def _end(self, status: str, text: str | None, *, usage: object = None, error: object = None) -> None:
        """Say the last of the text, close its item, and end the response."""
        item_status = COMPLETED if status == RunStatus.SUCCEEDED else INCOMPLETE
        output: list[dict[str, Any]] = []
        is_closing = self._is_closing_the_last()
        if is_closing:
            self._text.sent = self._newest or ""
        if text is None:
            self._close(INCOMPLETE, END_TEXT_DONE)
        else:
            if not is_closing:
                self._show(text, is_final=True)
            output = [message_item(self._message, text, item_status)]
            self._close(item_status, END_TEXT_DONE)
        event = {RunStatus.SUCCEEDED: "response.completed", RunStatus.FAILED: "response.failed"}
        response = finished(self._head, status, output, usage=usage or self._run.usage, error=error)
        self._say_lifecycle(event.get(RunStatus(status), "response.incomplete"), response)

    def _is_closing_the_last(self) -> bool:
        """Tell whether the reader has seen a part of how the last item is closed."""
        seen = Place.of(self._seen)
        return seen.id == self._id and END_TEXT_DONE <= seen.stage < LIFECYCLE

    def _wait(self) -> None:
        """End the response with the calls that its client is to make."""
        self._close(INCOMPLETE)
        calls = calls_of(self._requests) if len(self._requests) <= MOST_ITEMS - FIRST_CALL else None
        for number, call in enumerate(calls or []):
            self._item = FIRST_CALL + number
            begun = {**call, "arguments": "", "status": "in_progress"}
            which = {"output_index": self._item, "item_id": call["id"]}
            self._say(0, "response.output_item.added", output_index=self._item, item=begun)
            self._say(1, "response.function_call_arguments.delta", delta=call["arguments"], **which)
            name, arguments = call["name"], call["arguments"]
            self._say(2, "response.function_call_arguments.done", name=name, arguments=arguments, **which)
            self._say(3, "response.output_item.done", output_index=self._item, item=call)
        response = waiting_response(self._head, calls, self._run.usage)
        self._say_lifecycle("response.completed" if calls else "response.incomplete", response)

    @property
    def _message(self) -> str:
        return message_id(self._run, self._item)

    def _say_of_part(self, stage: int, event: str, **fields: Any) -> None:
        self._say(stage, event, item_id=self._message, output_index=self._item, content_index=0, **fields)

    def _say_lifecycle(self, event: str, response: Mapping[str, Any]) -> None:
        self._frames.append(self._lifecycle(event, response))

    def _lifecycle(self, event: str, response: Mapping[str, Any]) -> bytes:
        return self._frame(LIFECYCLE, event, {"response": response})

    def _say(self, stage: int, event: str, **fields: Any) -> None:
        self._frames.append(self._frame(stage, event, fields))

    def _frame(self, stage: int, event: str, fields: Mapping[str, Any]) -> bytes:
        number = Place(self._id, self._item, stage).number
        if number <= self._seen and not self._created_again:
            return b""
        said = {"type": event, "sequence_number": number, **fields}
        return b"event: %s\ndata: %s\n\n" % (event.encode(), one_line(to_json(said)))


class _Unknown(GrowingText):
    """What a reader was sent that is not known any more: each text is another one."""

    def more(self, text: str) -> str | None:  # noqa: ARG002
        """Know nothing."""
        return None

    def may_restart(self, *, is_final: bool) -> bool:  # noqa: ARG002
        """Begin anew."""
        return True
