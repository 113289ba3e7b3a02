"""A run as a chat completion: what was sent is never taken back, and what follows is what the agent says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agent_relay.api.protocols.openai.chat_renderer import ChatRenderer
from agent_relay.api.streaming.run_feed import RunFeed
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.event_log import BEFORE_ALL, Entry, Id, end_entry, text_body
from agent_relay.shared.rows import RunRow
from tests.support.rows import run_row

STARTED = {"event": "message_started", "reason": "first"}
CALL = {"event": "tool_call", "tool_call_id": "1", "tool_name": "look", "args": "{}"}
RESULT = {"event": "tool_result", "tool_call_id": "1", "tool_name": "look", "content": "seen"}
USED = {"requests": 2, "input_tokens": 7, "output_tokens": 3, "cache_read_tokens": 2}


def at(place: str, body: dict[str, Any] | str) -> Entry:
    """Make an entry; a text is a whole one."""
    return Entry(Id.parse(place), text_body(body) if isinstance(body, str) else body)


class Stream:
    """What a reader of a chat completion has been sent."""

    def __init__(self, run: RunRow | None = None, *, include_usage: bool = False) -> None:
        self.run = run or run_row(text_output=True)
        self.renderer = ChatRenderer(self.run, include_usage=include_usage)
        self._feed = RunFeed(self.run)
        self._cursor = BEFORE_ALL
        self.sent = b""

    def take(self, *entries: Entry, read: bool = True) -> Stream:
        """Have the reader read after each of these, or only after all of them."""
        for entry in entries:
            assert self._feed.take_log([entry])
            if read:
                self.read()
        self.read()
        return self

    def settle(self, run: RunRow) -> Stream:
        """Have the end read from the run's row."""
        self._feed.settle(run)
        self.read()
        return self

    def read(self) -> None:
        """Send what is new."""
        for item in list(self._feed.after(self._cursor)):
            self.sent += self.renderer.render(item)
            self._cursor = item.id

    @property
    def frames(self) -> list[Any]:
        """The data of each frame; `[DONE]` as it is."""
        data = [frame.removeprefix("data: ") for frame in self.sent.decode().split("\n\n")[:-1]]
        return [each if each == "[DONE]" else json.loads(each) for each in data]

    @property
    def contents(self) -> list[str]:
        """What each chunk adds to the content."""
        choices: list[Any] = [choice for frame in self.chunks for choice in frame["choices"]]
        return [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]

    @property
    def chunks(self) -> Sequence[Any]:
        """The chunks."""
        return [frame for frame in self.frames if "choices" in frame]


def end(run: RunRow, **changed: Any) -> tuple[RunRow, Entry]:
    """End a run; returns its row and the entry."""
    values = {name: getattr(run, name) for name in RunRow.__dataclass_fields__}
    ended = run_row(**values | {"status": RunStatus.SUCCEEDED, "usage": USED} | changed)
    return ended, end_entry(ended)


async def test_a_text_comes_as_it_grows_and_is_the_output() -> None:
    stream = Stream()
    _, last = end(stream.run, output="Hello world\u2028!", last_entry=3)

    stream.take(at("1-1", STARTED), at("1-2", "Hello"), at("1-3", "Hello world\u2028!"), last)

    assert stream.contents == ["Hello", " world\u2028!"]
    assert b"\xe2\x80\xa8" not in stream.sent
    first, *_, final = stream.chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert final["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert {(chunk["id"], chunk["model"], "usage" in chunk) for chunk in stream.chunks} == {
        (f"chatcmpl-{stream.run.id.hex}", "echo", False)
    }
    assert stream.frames[-1] == "[DONE]"


async def test_usage_comes_last_where_it_is_asked_for() -> None:
    stream = Stream(include_usage=True)
    _, last = end(stream.run, output="Hi", last_entry=2)

    *before, usage = stream.take(at("1-1", STARTED), at("1-2", "Hi"), last).chunks

    assert all(chunk["usage"] is None for chunk in before)
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


async def test_a_structured_output_comes_whole_at_its_end() -> None:
    stream = Stream(run_row(text_output=False))
    _, last = end(stream.run, output='{"a":12}', last_entry=3)

    stream.take(at("1-1", STARTED), at("1-2", '{"a":1}'), at("1-3", '{"a":12}'))
    assert stream.contents == []
    assert stream.take(last).contents == ['{"a":12}']


async def test_a_text_before_a_tool_call_stays_and_the_next_one_follows_it() -> None:
    stream = Stream()
    _, last = end(stream.run, output="It is so.", last_entry=6)

    stream.take(at("1-1", STARTED), at("1-2", "Let me see."), at("1-3", CALL), at("1-4", RESULT))
    stream.take(at("1-5", "It is"), at("1-6", "It is so."), last)

    assert stream.contents == ["Let me see.", "\n\nIt is", " so."]


async def test_a_new_attempt_goes_on_after_what_was_sent_unless_it_says_the_same() -> None:
    same, other = Stream(), Stream()
    for stream, text in ((same, "Hello you"), (other, "Good day")):
        _, last = end(stream.run, attempt=2, output=text, last_entry=2)
        stream.take(at("1-1", STARTED), at("1-2", "Hello"), at("2-1", STARTED), at("2-2", text), last)

    assert same.contents == ["Hello", " you"]
    assert other.contents == ["Hello", "\n\nGood day"]


async def test_a_text_that_contradicts_itself_is_held_back_until_it_does_not() -> None:
    stream = Stream()
    _, last = end(stream.run, output="Hello world", last_entry=4)

    stream.take(at("1-1", STARTED), at("1-2", "Hello"), at("1-3", "Hell"), at("1-4", "Hello world"), last)

    assert stream.contents == ["Hello", " world"]


async def test_a_text_that_ends_as_another_one_is_said_whole_at_the_end() -> None:
    stream = Stream()
    _, last = end(stream.run, output="Good day", last_entry=3)

    stream.take(at("1-1", STARTED), at("1-2", "Hello"), at("1-3", "Good day"), last)

    assert stream.contents == ["Hello", "\n\nGood day"]


async def test_where_the_log_was_lost_the_row_says_the_rest() -> None:
    stream = Stream()
    ended, _ = end(stream.run, output="Hello world", last_entry=9)

    stream.take(at("1-1", STARTED), at("1-2", "Hello")).settle(ended)

    assert stream.contents == ["Hello", " world"]
    assert stream.frames[-1] == "[DONE]"


async def test_a_run_that_fails_or_is_cancelled_ends_with_an_error_and_done() -> None:
    error = {"code": "model_unavailable", "message": "Away.", "retryable": True}
    failing, cancelled = Stream(), Stream()
    _, failure = end(failing.run, status=RunStatus.FAILED, error=error, last_entry=1)
    _, cancel = end(cancelled.run, status=RunStatus.CANCELLED, last_entry=1)

    *_, of_failure, done = failing.take(at("1-1", STARTED), failure).frames
    *_, of_cancel, also_done = cancelled.take(at("1-1", STARTED), cancel).frames

    assert of_failure["error"] == {
        "message": "Away.",
        "type": "server_error",
        "param": None,
        "code": "model_unavailable",
    }
    assert of_cancel["error"]["code"] == "cancelled"
    assert done == also_done == "[DONE]"


async def test_a_run_that_waits_ends_the_stream_with_an_error() -> None:
    stream = Stream()
    stream.take(at("1-1", STARTED), at("1-2", {"event": "waiting", "requests": []}))
    assert not stream.renderer.waits

    *_, error, done = stream.take(at("1-3", {"event": "pause"})).frames

    assert stream.renderer.waits
    assert "waits" in error["error"]["message"]
    assert done == "[DONE]"
