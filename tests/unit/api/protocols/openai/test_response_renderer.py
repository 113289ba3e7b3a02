"""A run as a response: wherever a reader is cut off, what it has and what it is sent after that is one story."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from agent_relay.api.protocols.openai.response_object import Beside
from agent_relay.api.protocols.openai.response_renderer import ResponseRenderer
from agent_relay.api.protocols.openai.sequence import DELTA, FROM_THE_START, Place, text_at
from agent_relay.api.streaming.run_feed import RunFeed
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.event_log import Entry, Id, end_entry, final_text, text_body
from agent_relay.shared.rows import RunRow
from agent_relay.shared.text_delta import growth
from tests.support.rows import run_row

STARTED = {"event": "message_started", "reason": "first"}
AGAIN = {"event": "message_started", "reason": "worker_lost"}
CALL = {"event": "tool_call", "tool_call_id": "1", "tool_name": "look", "args": "{}"}
RESULT = {"event": "tool_result", "tool_call_id": "1", "tool_name": "look", "content": "seen"}
PAUSE = {"event": "pause"}


def at(place: str, body: dict[str, Any] | str, before: str | None = None) -> Entry:
    """Make an entry; a text that follows another one is said as growth."""
    if isinstance(body, str):
        body = text_body(body, None if before is None else growth(before, body))
    return Entry(Id.parse(place), body)


def waiting(place: str, *requests: dict[str, Any]) -> Entry:
    """Make the entry of a run that comes to wait."""
    return at(place, {"event": "waiting", "requests": list(requests)})


def request(number: int, kind: str = "external", args: Any = None) -> dict[str, Any]:
    """Make a request."""
    return {"request_id": f"call_{number}", "kind": kind, "tool_name": "elsewhere", "args": args or {"x": number}}


STORIES: dict[str, tuple[list[Entry], dict[str, Any]]] = {
    "a text that grows": (
        [at("1-1", STARTED), at("1-2", "Hello"), at("1-3", "Hello you", before="Hello")],
        {"output": "Hello you", "last_entry": 3},
    ),
    "a new attempt": (
        [at("1-1", STARTED), at("1-2", "Hello"), at("2-1", AGAIN), at("2-2", "Good"), at("2-3", "Good day", "Good")],
        {"attempt": 2, "output": "Good day", "last_entry": 3},
    ),
    "a text before a tool call": (
        [at("1-1", STARTED), at("1-2", "Let me see."), at("1-3", CALL), at("1-4", RESULT), at("1-5", "So it is")],
        {"output": "So it is", "last_entry": 5},
    ),
    "a text that ends as another one": (
        [at("1-1", STARTED), at("1-2", "Hello"), at("1-3", "Good day")],
        {"output": "Good day", "last_entry": 3},
    ),
    "a structured output": (
        [at("1-1", STARTED), at("1-2", '{"a":1}'), at("1-3", '{"a":12}')],
        {"output": '{"a":12}', "last_entry": 3, "text_output": False},
    ),
    "a run that is cancelled": (
        [at("1-1", STARTED), at("1-2", "Hello"), at("1-3", "Hello you", before="Hello")],
        {"status": RunStatus.CANCELLED, "partial_output": "Hello you", "last_entry": 3},
    ),
    "a run that fails": (
        [at("1-1", STARTED), at("1-2", "Hello")],
        {
            "status": RunStatus.FAILED,
            "partial_output": "Hello",
            "error": {"code": "agent_error", "message": "It broke.", "retryable": False},
            "last_entry": 2,
        },
    ),
}


def values_of(run: RunRow) -> dict[str, Any]:
    """Return the columns of a row."""
    return {column: getattr(run, column) for column in RunRow.__dataclass_fields__}


class Reader:
    """A client, which keeps what it is sent, and may be cut off anywhere."""

    def __init__(self, run: RunRow, ended: RunRow, log: Sequence[Entry]) -> None:
        self.run, self.ended, self.log = run, ended, list(log)
        self.events: list[dict[str, Any]] = []

    def follow(
        self, run: RunRow, feeds: Sequence[Sequence[Entry]], *, most: int | None = None, lost: bool = False
    ) -> None:
        """Follow on from the last event, reading after each of these; `most` events, if it is cut off then."""
        seen = Place.of(self.events[-1]["sequence_number"]) if self.events else FROM_THE_START
        sent = None
        if seen.stage == DELTA and seen.item >= 0 and not lost:
            sent = final_text(self.ended) if seen.id >= Id(run.attempt, run.last_entry) else text_at(self.log, seen.id)
            if run.status == RunStatus.RUNNING:
                sent = text_at(self.log, seen.id)
        renderer = ResponseRenderer(run, Beside(), seen, sent)
        feed, cursor, written = RunFeed(run), seen.cursor, b""
        for entries in feeds:
            assert feed.take_log(entries)
            for item in list(feed.after(cursor)):
                written += renderer.render(item)
                cursor = item.id
        events = [json.loads(frame.partition("data: ")[2]) for frame in written.decode().split("\n\n")[:-1]]
        self.events += events if most is None else events[:most]

    @property
    def items(self) -> dict[int, dict[str, Any]]:
        """Put the items together, as a client does, and check that they can be."""
        numbers = [event["sequence_number"] for event in self.events]
        assert numbers == sorted(set(numbers))
        items: dict[int, dict[str, Any]] = {}
        for event in self.events:
            index: int = event.get("output_index", -1)
            match event["type"]:
                case "response.output_item.added":
                    assert index not in items
                    assert all(item["status"] != "in_progress" for item in items.values())
                    items[index] = {**event["item"], "text": None}
                case "response.content_part.added":
                    assert items[index]["text"] is None
                    items[index]["text"] = ""
                case "response.output_text.delta":
                    assert items[index]["status"] == "in_progress"
                    items[index]["text"] += event["delta"]
                case "response.output_item.done":
                    assert items[index]["status"] == "in_progress"
                    assert items[index]["id"] == event["item"]["id"]
                    items[index] |= event["item"]
                case _:
                    pass
        return items

    @property
    def last(self) -> dict[str, Any]:
        """The last event."""
        return self.events[-1]


def told(name: str) -> Reader:
    """Have a reader who is there from the beginning told a story."""
    log, changed = STORIES[name]
    ended = run_row(**{"status": RunStatus.SUCCEEDED, "text_output": True, **changed})
    running = run_row(
        **values_of(ended) | {"status": RunStatus.RUNNING, "output": None, "error": None, "partial_output": None}
    )
    return Reader(running, ended, log)


@pytest.mark.parametrize("name", STORIES)
async def test_a_reader_from_the_beginning_has_the_stored_output(name: str) -> None:
    reader = told(name)
    reader.follow(reader.run, [*([entry] for entry in reader.log), [end_entry(reader.ended)]])

    types = [event["type"] for event in reader.events]
    assert types[:2] == ["response.created", "response.in_progress"]
    check_end(reader)


async def test_a_new_attempt_closes_the_item_of_the_one_before_and_grows_in_its_own() -> None:
    reader = told("a new attempt")
    reader.follow(reader.run, [[entry] for entry in reader.log])

    first, second = reader.items.values()
    assert (first["status"], first["content"][0]["text"]) == ("incomplete", "Hello")
    assert (second["status"], second["text"]) == ("in_progress", "Good day")
    deltas = [event["delta"] for event in reader.events if event["type"] == "response.output_text.delta"]
    assert deltas == ["Hello", "Good", " day"]


def check_end(reader: Reader) -> None:
    """See that what a reader has is the run as it ended."""
    items, response = reader.items, reader.last["response"]
    status, text = reader.ended.status, final_text(reader.ended)
    if status == RunStatus.SUCCEEDED:
        assert reader.last["type"] == "response.completed"
        assert [part["text"] for item in response["output"] for part in item["content"]] == [text]
    else:
        assert (
            reader.last["type"]
            == {
                RunStatus.FAILED: "response.failed",
                RunStatus.CANCELLED: "response.incomplete",
            }[RunStatus(status)]
        )
        assert response["status"] == status
    last = items[max(items)]
    assert last["text"] == last["content"][0]["text"] == text
    assert last["status"] == ("completed" if status == RunStatus.SUCCEEDED else "incomplete")
    assert all(item["status"] == "incomplete" for index, item in items.items() if index != max(items))


@pytest.mark.parametrize("name", STORIES)
async def test_a_reader_who_is_cut_off_anywhere_goes_on_from_there(name: str) -> None:
    """It is cut off while the run runs, or comes back when it has ended; the log is read again."""
    whole = told(name)
    end = [end_entry(whole.ended)]
    whole.follow(whole.run, [*([entry] for entry in whole.log), end])

    for most in range(1, len(whole.events)):
        for run in (whole.run, whole.ended):
            reader = told(name)
            reader.run, reader.ended = whole.run, whole.ended
            reader.follow(reader.run, [*([entry] for entry in reader.log), end], most=most)
            assert len(reader.events) == most
            if Place.of(reader.last["sequence_number"]).id > Id(run.attempt, 2**31):
                run = whole.ended  # noqa: PLW2901  (its end is told: the row is as it ended)
            reader.follow(run, [[*reader.log, *end]])
            check_end(reader)
            assert reader.last["type"] == whole.last["type"]


@pytest.mark.parametrize("name", ["a text that grows", "a new attempt"])
async def test_a_reader_whose_text_is_forgotten_begins_a_new_item(name: str) -> None:
    reader = told(name)
    first_text = next(number for number, entry in enumerate(reader.log) if entry.event is None)
    reader.follow(reader.run, [[entry] for entry in reader.log[: first_text + 1]])
    assert reader.last["type"] == "response.output_text.delta"

    reader.follow(reader.ended, [[*reader.log, end_entry(reader.ended)]], lost=True)

    check_end(reader)
    assert len(reader.items) == 2


async def test_where_the_log_has_expired_the_row_says_it_all() -> None:
    reader = told("a text that grows")
    feed = RunFeed(reader.ended)
    feed.settle(reader.ended)
    renderer = ResponseRenderer(reader.ended, Beside())

    written = b"".join(renderer.render(item) for item in feed.after(Id(0, 0)))

    reader.events = [json.loads(frame.partition("data: ")[2]) for frame in written.decode().split("\n\n")[:-1]]
    check_end(reader)


async def test_a_run_that_waits_for_its_client_is_complete_with_calls() -> None:
    run = run_row(text_output=True)
    nothing = dict.fromkeys(("prompt", "schema", "answer"))
    stored = [{**request(n), **nothing, "args": f'{{"x":{n}}}', "created_at": "2026-01-01T00:00:00Z"} for n in (1, 2)]
    log = [at("1-1", STARTED), at("1-2", "Let me see."), waiting("1-3", request(1), request(2)), at("1-4", PAUSE)]
    whole = Reader(run, run, log)
    whole.follow(run, [[entry] for entry in log])

    response = whole.last["response"]
    assert (whole.last["type"], response["status"]) == ("response.completed", "completed")
    assert [(call["type"], call["call_id"], call["arguments"]) for call in response["output"]] == [
        ("function_call", "call_1", '{"x":1}'),
        ("function_call", "call_2", '{"x":2}'),
    ]
    for most in range(1, len(whole.events)):
        reader = Reader(run, run, log)
        reader.follow(run, [[entry] for entry in log], most=most)
        reader.follow(run_row(**values_of(run) | {"status": RunStatus.WAITING, "requests": stored}), [log])
        assert reader.last == whole.last
        calls = [item for item in reader.items.values() if item["type"] == "function_call"]
        assert [call["arguments"] for call in calls] == ['{"x":1}', '{"x":2}']


@pytest.mark.parametrize("kind", ["approval", "question"])
async def test_a_run_that_waits_for_somebody_else_is_incomplete(kind: str) -> None:
    run = run_row(text_output=True)
    reader = Reader(run, run, [])
    reader.follow(run, [[at("1-1", STARTED), waiting("1-2", request(1), request(2, kind)), at("1-3", PAUSE)]])

    assert reader.last["type"] == "response.incomplete"
    assert reader.last["response"]["incomplete_details"] == {"reason": "waiting"}
    assert reader.last["response"]["output"] == []


def test_a_sequence_number_says_its_place_and_grows_with_it() -> None:
    places = [
        Place(Id(attempt, n), item, stage)
        for attempt in (0, 1, 2, 90_000)
        for n in (0, 1, 2, 9_999_999)
        for item in (-1, 0, 98)
        for stage in range(10)
    ]

    numbers = [place.number for place in places]

    assert [Place.of(number) for number in numbers] == places
    assert numbers == sorted(set(numbers))
    assert numbers[-1] < 2**53
