"""A run as AG-UI's events: whatever becomes of it, a client has the right messages in the end."""

from __future__ import annotations

from typing import Any

import pytest
from ag_ui.core import Message
from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from agent_relay.api.protocols.ag_ui.renderer import STILL_WAITS, Called, EventRenderer
from agent_relay.api.streaming.run_feed import Event, RunFeed
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.event_log import BEFORE_ALL, Entry, Id, end_entry, text_body
from agent_relay.shared.rows import RunRow
from tests.support.ag_ui import AgUiClient
from tests.support.rows import run_row

MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])
STARTED = {"event": "message_started", "reason": "first"}
CALL = {"event": "tool_call", "tool_call_id": "1", "tool_name": "look", "args": '{"at": 1}'}
RESULT = {"event": "tool_result", "tool_call_id": "1", "tool_name": "look", "content": "seen"}
USED = {"requests": 2, "input_tokens": 7, "output_tokens": 3, "cache_read_tokens": 2}
ASKED = {"id": "q", "role": "user", "content": "?"}
ANSWERED = {"event": "message_started", "reason": "answered", "steps_kept": 1, "after": "1-5"}


def lost(steps_kept: int = 0, **more: Any) -> dict[str, Any]:
    """Begin another attempt, because the worker died."""
    return {"event": "message_started", "reason": "worker_lost", "steps_kept": steps_kept, **more}


def thought(part: int, text: str) -> dict[str, Any]:
    """Think."""
    return {"event": "reasoning_delta", "part": part, "text": text}


def request(kind: str, request_id: str = "1", **more: Any) -> dict[str, Any]:
    """Ask for an answer."""
    asked = {"request_id": request_id, "kind": kind, "tool_name": "look", "args": {"at": 1}}
    return {**asked, "prompt": None, "schema": None, "created_at": "2026-01-01T00:00:00Z", **more}


def at(place: str, body: dict[str, Any] | str) -> Entry:
    """Make an entry; a text is a whole one."""
    return Entry(Id.parse(place), text_body(body) if isinstance(body, str) else body)


class Stream:
    """A client that reads a run."""

    def __init__(
        self,
        run: RunRow | None = None,
        *,
        messages: list[dict[str, Any]] | None = None,
        after: int = 0,
        cursor: Id = BEFORE_ALL,
    ) -> None:
        self.run = run or run_row(text_output=True)
        self.client = AgUiClient(messages=[dict(ASKED)] if messages is None else messages)
        called = Called("thread", "run", MESSAGES.validate_python(self.client.messages), after=after)
        self.renderer = EventRenderer(self.run, called)
        self._feed = RunFeed(self.run)
        self._cursor = cursor
        self.client.take(self.renderer.opening.decode())

    def take(self, *entries: Entry, read: bool = True) -> AgUiClient:
        """Have the client read after each of these, or only after all of them."""
        for entry in entries:
            assert self._feed.take_log([entry])
            if read:
                self.read()
        self.read()
        return self.client

    def settle(self, run: RunRow) -> AgUiClient:
        """Have the end read from the run's row."""
        self._feed.settle(run)
        self.read()
        return self.client

    def read(self) -> None:
        """Send what is new."""
        for item in list(self._feed.after(self._cursor)):
            self._cursor = item.id
            is_pause = isinstance(item, Event) and item.name == "pause"
            if not is_pause or (self._feed.waits and item.id == self._feed.top):
                self.client.take(self.renderer.render(item).decode())


def end(run: RunRow, **changed: Any) -> tuple[RunRow, Entry]:
    """End a run; returns its row and the entry."""
    values = {name: getattr(run, name) for name in RunRow.__dataclass_fields__}
    ended = run_row(**values | {"status": RunStatus.SUCCEEDED, "usage": USED} | changed)
    return ended, end_entry(ended)


@pytest.mark.parametrize("read", [True, False])
async def test_a_text_grows(read: bool) -> None:
    stream = Stream()
    grown = Entry(Id.parse("1-3"), {"drop": 0, "append": " you"})
    _, ended = end(stream.run, output="Hello you", last_entry=3)
    client = stream.take(at("1-1", STARTED), at("1-2", "Hello"), grown, ended, read=read)

    assert client.kinds == [
        "RUN_STARTED",
        "TEXT_MESSAGE_START",
        "TEXT_MESSAGE_CONTENT",
        "TEXT_MESSAGE_END",
        "RUN_FINISHED",
    ]
    assert client.said() == ["Hello you"]
    assert client.events[0] | {"metadata": None} == {
        "type": "RUN_STARTED",
        "threadId": "thread",
        "runId": "run",
        "protocolVersion": "1.0",
        "metadata": None,
    }
    assert client.last["outcome"] == {"type": "success"}
    assert client.last["usage"] == [{"inputTokens": 7, "outputTokens": 3, "totalTokens": 10, "cachedInputTokens": 2}]


async def test_a_text_that_the_agent_changes_is_replaced() -> None:
    stream = Stream()
    changed = Entry(Id.parse("1-3"), {"drop": 2, "append": "p!"})
    _, ended = end(stream.run, output="Help!", last_entry=3)
    client = stream.take(at("1-1", STARTED), at("1-2", "Hello"), changed, ended)

    assert "MESSAGES_SNAPSHOT" in client.kinds
    assert client.said() == ["Help!"]
    assert client.messages[0] == ASKED


@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("steps_kept", [0, 1])
async def test_a_new_attempt_takes_back_what_is_void_and_nothing_else(read: bool, steps_kept: int) -> None:
    stream = Stream()
    first = [at("1-1", STARTED), at("1-2", "Let me look"), at("1-3", CALL), at("1-4", RESULT), at("1-5", "It is")]
    again = [at("2-2", "I look"), at("2-3", CALL), at("2-4", RESULT)]
    last = at("2-5" if not steps_kept else "2-2", "It was")
    _, ended = end(stream.run, output="It was", last_entry=last.id.n, attempt=2)
    client = stream.take(*first, at("2-1", lost(steps_kept)), *([] if steps_kept else again), last, ended, read=read)

    said = ["Let me look", "It was"] if steps_kept else ["I look", "It was"]
    assert client.said() == (said if read else said[1:])
    assert client.results() == {"1": "seen"}
    assert client.call("1")["function"] == {"name": "look", "arguments": '{"at": 1}'}


async def test_a_call_in_flight_that_is_made_again_stands_once() -> None:
    stream = Stream()
    _, ended = end(stream.run, output="Done", last_entry=4, attempt=2)
    again = [at("2-1", lost(1)), at("2-2", CALL), at("2-3", RESULT), at("2-4", "Done")]
    client = stream.take(at("1-1", STARTED), at("1-2", CALL), *again, ended)

    assert client.results() == {"1": "seen"}
    assert "MESSAGES_SNAPSHOT" not in client.kinds


async def test_thoughts_are_messages_and_what_is_void_of_them_goes() -> None:
    stream = Stream()
    client = stream.take(at("1-1", STARTED), at("1-2", thought(1, "Hm")), at("1-3", thought(1, "Hm, so")))
    stream.take(at("1-4", thought(2, "But")), at("1-5", "It"))
    thoughts = [each["content"] for each in client.messages if each["role"] == "reasoning"]
    assert thoughts == ["Hm, so", "But"]

    _, ended = end(stream.run, output="So", last_entry=3, attempt=2)
    stream.take(at("2-1", lost(1, reasoning_kept=1)), at("2-2", thought(2, "No")), at("2-3", "So"), ended)
    assert [each["content"] for each in client.messages if each["role"] == "reasoning"] == ["Hm, so", "No"]
    assert client.said() == ["So"]


async def test_a_structured_output_is_the_state() -> None:
    stream = Stream(run_row(text_output=False))
    _, ended = end(stream.run, output='{"a": 1, "b": "\u2028"}', last_entry=3)
    client = stream.take(at("1-1", STARTED), at("1-2", '{"a": 1}'), at("1-3", '{"a": 1, "b": "\u2028"}'), ended)

    assert client.states == [{"a": 1}, {"a": 1, "b": "\u2028"}]
    assert client.last["result"] == client.state
    assert client.messages == [ASKED]


ITEMS = ["one", "two"]
REPORT = {"title": "What was seen, at such length that a patch is shorter. " * 4, "items": ITEMS}


async def test_only_what_changes_of_a_structured_output_is_told_and_a_new_attempt_begins_with_the_whole() -> None:
    stream = Stream(run_row(text_output=False))
    states = [REPORT, {**REPORT, "items": [*ITEMS, "th"]}, {**REPORT, "items": [*ITEMS, "three"]}]
    texts = [to_json(state).decode() for state in states]
    entries = [at(f"1-{number}", text) for number, text in enumerate(texts, 2)]
    client = stream.take(at("1-1", STARTED), *entries)
    assert client.states == states
    assert [each["type"] for each in client.events[1:]] == ["STATE_SNAPSHOT", "STATE_DELTA", "STATE_DELTA"]
    assert client.last["delta"] == [{"op": "replace", "path": "/items/2", "value": "three"}]

    _, ended = end(stream.run, output=texts[-1], last_entry=3, attempt=2)
    stream.take(at("2-1", lost(1)), at("2-2", texts[0]), at("2-3", texts[-1]), ended)
    assert client.states == [*states, states[0], states[-1]]
    kinds = ["STATE_SNAPSHOT", "STATE_DELTA", "STATE_DELTA", "STATE_SNAPSHOT", "STATE_DELTA", "RUN_FINISHED"]
    assert [each["type"] for each in client.events[1:]] == kinds


async def test_readers_that_are_at_different_places_are_each_told_what_they_miss() -> None:
    run = run_row(text_output=False)
    texts = [to_json({**REPORT, "items": ITEMS + ["more"] * number}).decode() for number in range(4)]
    feed = RunFeed(run)
    readers = [AgUiClient(), AgUiClient()]
    renderers = [EventRenderer(run, Called("thread", "run", [])) for _ in readers]
    feed.take_log([at("1-1", STARTED)])
    cursors = [BEFORE_ALL, BEFORE_ALL]
    for client, renderer in zip(readers, renderers, strict=True):
        client.take(renderer.opening.decode())
    for number, text in enumerate(texts, 2):
        feed.take_log([at(f"1-{number}", text)])
        for reader in (0, 1) if number != 4 else (0,):  # The second one is slow.
            for item in list(feed.after(cursors[reader])):
                cursors[reader] = item.id
                readers[reader].take(renderers[reader].render(item).decode())
    assert [client.state for client in readers] == [from_json(texts[-1])] * 2
    assert [len(client.states) for client in readers] == [4, 3]
    assert [client.last_type for client in readers] == ["STATE_DELTA"] * 2


async def test_a_state_that_clients_in_javascript_cannot_patch_is_told_as_a_whole() -> None:
    stream = Stream(run_row(text_output=False))
    odd = {**REPORT, "__proto__": {"a": 1}}
    texts = [to_json(state).decode() for state in (REPORT, odd)]
    client = stream.take(at("1-1", STARTED), at("1-2", texts[0]), at("1-3", texts[1]))
    assert [each["type"] for each in client.events[1:]] == ["STATE_SNAPSHOT", "STATE_SNAPSHOT"]
    assert client.state == odd


async def test_a_failure_is_an_error_and_a_cancelled_run_says_so() -> None:
    stream = Stream()
    error = {"code": "agent_error", "message": "The agent failed.", "retryable": False}
    _, ended = end(stream.run, status=RunStatus.FAILED, error=error, last_entry=2)
    client = stream.take(at("1-1", STARTED), at("1-2", "Hello"), ended)
    assert client.last == {"type": "RUN_ERROR", "message": "The agent failed.", "code": "agent_error"}

    stream = Stream()
    _, ended = end(stream.run, status=RunStatus.CANCELLED, partial_output="Hello", last_entry=2)
    client = stream.take(at("1-1", STARTED), at("1-2", "Hello"), ended)
    assert client.last["outcome"] == {"type": "cancelled"}
    assert client.said() == ["Hello"]


async def test_a_run_whose_log_is_gone_is_told_from_its_row() -> None:
    stream = Stream()
    ended, _ = end(stream.run, output="Hello", last_entry=9)
    client = stream.settle(ended)
    assert client.said() == ["Hello"]
    assert client.last["outcome"] == {"type": "success"}


async def test_a_hole_in_the_log_leaves_the_right_text() -> None:
    stream = Stream()
    client = stream.take(at("1-1", STARTED), at("1-2", "Hello"), at("1-7", "Hi there"))
    ended, _ = end(stream.run, output="Hi there!", last_entry=8)
    stream.settle(ended)
    assert client.said() == ["Hi there!"]


async def test_a_run_that_asks_ends_with_interrupts() -> None:
    stream = Stream()
    requests = [request("approval", prompt="Look?"), request("question", "2", schema={"type": "string"})]
    waits = [at("1-3", {"event": "waiting", "requests": requests}), at("1-4", {"event": "pause"})]
    client = stream.take(at("1-1", STARTED), at("1-2", CALL), *waits)

    assert client.last["outcome"]["type"] == "interrupt"
    approval, question = client.last["outcome"]["interrupts"]
    about = {"kind": "approval", "tool_name": "look", "args": {"at": 1}}
    assert approval | {"responseSchema": None} == {
        "id": "1",
        "reason": "tool_call",
        "message": "Look?",
        "toolCallId": "1",
        "responseSchema": None,
        "metadata": about,
    }
    assert approval["responseSchema"]["required"] == ["approved"]
    assert (question["reason"], question["responseSchema"]) == ("input_required", {"type": "string"})
    assert client.call("2")["function"]["arguments"] == '{"at":1}'


async def test_a_run_that_waits_for_results_only_names_the_calls() -> None:
    stream = Stream()
    waits = [at("1-2", {"event": "waiting", "requests": [request("external")]}), at("1-3", {"event": "pause"})]
    client = stream.take(at("1-1", STARTED), *waits)
    assert client.last["outcome"] == {"type": "success", "pendingToolCallIds": ["1"]}


async def test_what_goes_on_after_answers_is_told_once() -> None:
    stream = Stream()
    requests = {"event": "waiting", "requests": [request("external")]}
    before = [at("1-1", STARTED), at("1-2", "Hm"), at("1-3", CALL), at("1-4", requests), at("1-5", {"event": "pause"})]
    client = stream.take(*before)
    given = {"id": "given", "role": "tool", "toolCallId": "1", "content": "seen"}

    after = Stream(stream.run, messages=[*client.messages, given], after=1, cursor=Id(1, 5))
    _, ended = end(stream.run, output="So", last_entry=3, attempt=2)
    answered = at("1-6", {"event": "answered", "request_id": "1"})
    said = after.take(*before, answered, at("2-1", ANSWERED), at("2-2", RESULT), at("2-3", "So"), ended)
    assert said.said() == ["Hm", "So"]
    assert said.results() == {"1": "seen"}
    assert "usage" not in said.last


async def test_answers_keep_what_was_before_them_whatever_becomes_of_later_attempts() -> None:
    stream = Stream()
    requests = {"event": "waiting", "requests": [request("approval")]}
    answered = at("1-5", {"event": "answered", "request_id": "1", "approve": True})
    _, ended = end(stream.run, output="No", last_entry=2, attempt=3)
    client = stream.take(
        at("1-1", STARTED),
        at("1-2", "Hm"),
        at("1-3", CALL),
        at("1-4", requests),
        answered,
        at("2-1", ANSWERED),
        at("2-2", RESULT),
        at("2-3", "So"),
        at("3-1", lost()),
        at("3-2", "No"),
        ended,
    )
    assert client.said() == ["Hm", "No"]
    assert client.results() == {}


async def test_a_stream_that_broke_off_is_told_again_and_nothing_stands_twice() -> None:
    first = Stream()
    begun = [at("1-1", STARTED), at("1-2", CALL), at("1-3", RESULT), at("1-4", "Hel")]
    client = first.take(*begun)

    again = Stream(first.run, messages=client.messages)
    _, ended = end(first.run, output="Hello", last_entry=5)
    told = again.take(*begun, at("1-5", "Hello"), ended)
    assert [each["role"] for each in told.messages] == ["user", "assistant", "tool", "assistant"]
    assert told.said() == ["Hello"]


async def test_a_pause_without_anything_open_is_no_end() -> None:
    stream = Stream()
    client = stream.take(at("1-1", STARTED), at("1-3", {"event": "pause"}))
    assert client.last == {"type": "RUN_ERROR", "message": STILL_WAITS, "code": "run_waits"}


async def test_calls_of_the_providers_tools_belong_to_the_text_around_them() -> None:
    stream = Stream()
    _, ended = end(stream.run, output="A B", last_entry=5)
    native = [at("1-3", {**CALL, "native": True}), at("1-4", {**RESULT, "native": True})]
    client = stream.take(at("1-1", STARTED), at("1-2", "A"), *native, at("1-5", "A B"), ended)
    assert client.said() == ["A B"]
    assert client.messages[1]["toolCalls"][0]["id"] == "1"


async def test_what_is_not_shown_of_tools_is_empty_and_progress_is_an_event_of_its_own() -> None:
    stream = Stream()
    hidden = [at("1-2", {**CALL, "args": None}), at("1-3", {**RESULT, "content": None})]
    progress = at("1-4", {"event": "progress", "name": "half", "data": {"of": 2}, "tool_call_id": "1"})
    client = stream.take(at("1-1", STARTED), *hidden, progress)
    assert client.call("1")["function"]["arguments"] == ""
    assert client.results() == {"1": ""}
    about = {"metadata": {"tool_call_id": "1"}}
    assert client.last == {"type": "CUSTOM", "name": "half", "value": {"of": 2}, **about}


async def test_a_call_with_an_id_of_an_earlier_run_is_told() -> None:
    earlier = Stream()
    earlier.take(at("1-1", STARTED), at("1-2", CALL), at("1-3", RESULT))
    stream = Stream(messages=[*earlier.client.messages, {"id": "q2", "role": "user", "content": "?"}])
    before = len(stream.client.messages)
    stream.take(at("1-1", STARTED), at("1-2", {**CALL, "args": None}))
    assert stream.client.messages[before]["toolCalls"][0]["id"] == "1"
