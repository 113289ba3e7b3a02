"""The feed: what a follower at any id is still to be told, whatever came in, in whatever order."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from api.feed import KEPT_EVENTS, Event, Feed, Text, Waited, end_wait
from shared.event_log import BEFORE_ALL, CREATED, Entry, Id, end_entry, text_body
from shared.growth import growth
from shared.tables import RunStatus

STARTED = {"event": "message_started", "reason": "first"}
CALL = {"event": "tool_call", "tool_call_id": "1", "tool_name": "look", "args": "{}"}


def row(**changed: Any) -> Any:
    """Make the row of a run that succeeded at its first attempt, after three entries."""
    return SimpleNamespace(
        **{
            "id": uuid4(),
            "message_id": uuid4(),
            "user_message_id": uuid4(),
            "status": RunStatus.SUCCEEDED,
            "attempt": 1,
            "output": "Hello world",
            "partial_output": None,
            "last_entry": 3,
            "usage": {},
            "error": None,
            **changed,
        }
    )


def at(place: str, body: dict[str, Any] | str, before: str | None = None) -> Entry:
    """Make an entry; a text that follows another one is said as growth."""
    if isinstance(body, str):
        body = text_body(body, None if before is None else growth(before, body))
    return Entry(Id.parse(place), body)


STORY = [at("1-1", STARTED), at("1-2", "Hello"), at("1-3", "Hello world", before="Hello")]


def told(feed: Feed, cursor: Id = BEFORE_ALL) -> list[str]:
    """Say what a follower there is told: names and ids, texts as they are."""
    return [f"{item.id} {item.whole if isinstance(item, Text) else item.name}" for item in feed.after(cursor)]


@pytest.fixture
async def feed() -> Feed:
    """A feed that knows nothing yet."""
    return Feed(row())


async def test_a_story_is_told_in_its_order(feed: Feed) -> None:
    assert feed.take_live([*STORY, end_entry(row())])

    assert told(feed) == [
        "0-1 message_created",
        "1-1 message_started",
        "1-3 Hello world",
        "2-0 message_complete",
        "2-1 done",
    ]
    assert feed.ended


async def test_what_is_there_already_changes_nothing(feed: Feed) -> None:
    feed.take_log(STORY)

    assert feed.take_live(STORY)
    assert told(feed) == ["0-1 message_created", "1-1 message_started", "1-3 Hello world"]


async def test_a_jump_means_to_read_the_log(feed: Feed) -> None:
    assert feed.take_live(STORY[:1])
    assert not feed.take_live(STORY[2:])
    assert feed.top == Id(1, 1)

    assert feed.take_log(STORY[1:])
    assert told(feed, Id(1, 1)) == ["1-3 Hello world"]


async def test_a_hole_in_the_log_is_a_gap_and_growth_waits_for_a_whole_text(feed: Feed) -> None:
    feed.take_log([STORY[0], at("1-5", "Hello world", before="Hello")])
    assert told(feed, Id(1, 1)) == ["1-4 gap"]

    feed.take_live([at("1-6", "Hello world!")])
    assert told(feed, Id(1, 1)) == ["1-4 gap", "1-6 Hello world!"]


async def test_a_new_attempt_makes_the_one_before_obsolete(feed: Feed) -> None:
    feed.take_live([*STORY, at("1-4", CALL)])

    assert feed.take_live([at("2-1", STARTED), at("2-2", "Hi")])
    assert told(feed, Id(1, 2)) == ["2-1 message_started", "2-2 Hi"]


async def test_a_new_attempt_that_is_not_seen_from_its_beginning_means_to_read_the_log(feed: Feed) -> None:
    feed.take_live(STORY)

    assert not feed.take_live([at("2-2", "Hi")])


async def test_growth_of_a_new_attempt_never_grows_out_of_the_old_one(feed: Feed) -> None:
    feed.take_live(STORY)
    feed.take_log([at("2-1", STARTED), Entry(Id(2, 2), {"drop": 0, "append": "!"})])

    assert told(feed, CREATED) == ["2-1 message_started"]


async def test_texts_collapse_to_the_newest_and_nothing_else_does(feed: Feed) -> None:
    feed.take_live([at("1-1", STARTED), at("1-2", "a"), at("1-3", CALL), at("1-4", "ab"), at("1-5", CALL)])

    assert told(feed, CREATED) == ["1-1 message_started", "1-3 tool_call", "1-4 ab", "1-5 tool_call"]


async def test_a_cursor_gets_exactly_what_is_after_it(feed: Feed) -> None:
    feed.take_live([*STORY, end_entry(row())])
    whole = [BEFORE_ALL, *(item.id for item in feed.after(BEFORE_ALL))]

    for place, cursor in enumerate(whole):
        assert [item.id for item in feed.after(cursor)] == whole[place + 1 :]


async def test_an_end_is_believed_only_by_who_knows_all_before(feed: Feed) -> None:
    feed.take_live(STORY[:2])

    assert not feed.take_live([end_entry(row())])
    assert not feed.ended


async def test_an_end_with_another_text_is_not_believed(feed: Feed) -> None:
    feed.take_live(STORY)

    assert not feed.take_live([end_entry(row(output="Hello there"))])


async def test_the_row_tells_what_the_log_did_not(feed: Feed) -> None:
    feed.take_live(STORY[:1])

    feed.settle(row(last_entry=7))

    assert told(feed, CREATED) == [
        "1-1 message_started",
        "1-6 gap",
        "1-7 Hello world",
        "2-0 message_complete",
        "2-1 done",
    ]


async def test_the_row_tells_the_text_that_growth_without_a_base_did_not(feed: Feed) -> None:
    feed.take_log([STORY[0], at("1-3", "Hello world", before="Hello")])
    assert told(feed, Id(1, 1)) == ["1-2 gap"]

    feed.settle(row())

    assert told(feed, Id(1, 2)) == ["1-4 Hello world", "2-0 message_complete", "2-1 done"]


async def test_an_expired_log_is_no_gap_for_who_asks_from_the_start(feed: Feed) -> None:
    feed.settle(row())

    assert told(feed) == ["0-1 message_created", "1-3 Hello world", "2-0 message_complete", "2-1 done"]


async def test_an_expired_log_is_a_gap_for_who_had_begun(feed: Feed) -> None:
    feed.settle(row())

    assert told(feed, CREATED) == ["1-2 gap", "1-3 Hello world", "2-0 message_complete", "2-1 done"]


async def test_a_log_that_could_not_be_read_is_a_gap_for_who_asks_from_the_start(feed: Feed) -> None:
    feed.settle(row(), log_was_read=False)

    assert told(feed) == ["0-1 message_created", "1-2 gap", "1-3 Hello world", "2-0 message_complete", "2-1 done"]


async def test_a_run_cancelled_in_the_queue_has_an_end_and_no_gap(feed: Feed) -> None:
    end = row(status=RunStatus.CANCELLED, attempt=0, output=None, last_entry=0)

    assert feed.take_live([end_entry(end)])
    assert told(feed) == ["0-1 message_created", "1-0 cancelled", "1-1 done"]


async def test_a_second_attempt_that_died_at_once_leaves_no_gap(feed: Feed) -> None:
    feed.take_live(STORY)

    feed.settle(row(status=RunStatus.FAILED, attempt=2, output=None, last_entry=0, error={"code": "worker_crashed"}))

    assert told(feed, Id(1, 3)) == ["3-0 error", "3-1 done"]


async def test_nothing_is_taken_after_the_end(feed: Feed) -> None:
    feed.settle(row())

    assert feed.take_live([at("2-1", STARTED), at("3-1", STARTED)])
    assert told(feed)[-1] == "2-1 done"


async def test_forgotten_events_are_recalled_from_the_log_with_the_text_in_its_place(feed: Feed) -> None:
    log = [at("1-1", STARTED), at("1-2", "Hello"), *(at(f"1-{n}", CALL) for n in range(3, KEPT_EVENTS + 20))]
    feed.take_live(log)
    assert feed.has_forgotten(BEFORE_ALL)

    items = list(feed.after(BEFORE_ALL, feed.recall(BEFORE_ALL, log)))

    assert [item.id for item in items] == [CREATED, *(entry.id for entry in log)]
    assert not feed.has_forgotten(items[-1].id)


async def test_forgotten_events_that_the_log_has_lost_are_a_gap(feed: Feed) -> None:
    log = [at("1-1", STARTED), *(at(f"1-{n}", CALL) for n in range(2, KEPT_EVENTS + 20))]
    feed.take_live(log)

    items = list(feed.after(BEFORE_ALL, feed.recall(BEFORE_ALL, [])))

    assert isinstance(items[1], Event)
    assert items[1].name == "gap"
    assert [item.id for item in items[2:]] == [entry.id for entry in log[-KEPT_EVENTS:]]


async def test_who_waits_is_woken_by_news_and_only_by_news(feed: Feed) -> None:
    feed.take_live(STORY[:1])
    waiting = feed.wait()
    feed.tire(0)
    assert not waiting.done()  # It looked before it waited, so there are no news.
    feed.take_live(STORY[1:])
    assert await waiting is Waited.FOR_NEWS


async def test_who_has_waited_for_long_is_woken_and_only_then(feed: Feed) -> None:
    waiting = feed.wait()
    feed.tire(asyncio.get_running_loop().time() - 1)
    assert not waiting.done()
    feed.tire(asyncio.get_running_loop().time() + 1)
    assert await waiting is Waited.IN_VAIN


async def test_who_waits_may_go(feed: Feed) -> None:
    waiting = feed.wait()
    end_wait(waiting, Waited.NO_LONGER)
    feed.take_live(STORY)
    assert await waiting is Waited.NO_LONGER
