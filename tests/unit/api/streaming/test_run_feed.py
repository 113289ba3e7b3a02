"""The feed: what a follower at any id is still to be told, whatever came in, in whatever order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent_relay.api.streaming.run_feed import KEPT_EVENTS, Event, RunFeed, Text
from agent_relay.api.streaming.wakeups import WakeReason, end_wait
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.event_log import BEFORE_ALL, CREATED, REASONING, Entry, Id, end_entry, text_body
from agent_relay.shared.rows import RunRow
from agent_relay.shared.text_delta import growth
from tests.support.rows import run_row

STARTED = {"event": "message_started", "reason": "first"}
CALL = {"event": "tool_call", "tool_call_id": "1", "tool_name": "look", "args": "{}"}


def row(**changed: Any) -> RunRow:
    """Make the row of a run that succeeded at its first attempt, after three entries."""
    return run_row(**{"status": RunStatus.SUCCEEDED, "output": "Hello world", "last_entry": 3} | changed)


def at(place: str, body: dict[str, Any] | str, before: str | None = None) -> Entry:
    """Make an entry; a text that follows another one is said as growth."""
    if isinstance(body, str):
        body = text_body(body, None if before is None else growth(before, body))
    return Entry(Id.parse(place), body)


def thought(place: str, part: int, text: str, before: str | None = None) -> Entry:
    """Make an entry of reasoning; one that follows another one of its part is said as growth."""
    body = text_body(text, None if before is None else growth(before, text))
    return Entry(Id.parse(place), {"event": REASONING, "part": part, **body})


THINKING = [
    at("1-1", STARTED),
    thought("1-2", 1, "The caller asks"),
    thought("1-3", 1, "The caller asks for it", before="The caller asks"),
    at("1-4", CALL),
    thought("1-5", 2, "It is so"),
    at("1-6", "Yes"),
    thought("1-7", 2, "It is so, then", before="It is so"),
]
STORY = [at("1-1", STARTED), at("1-2", "Hello"), at("1-3", "Hello world", before="Hello")]


def told(feed: RunFeed, cursor: Id = BEFORE_ALL) -> list[str]:
    """Say what a follower there is told: names and ids, texts as they are."""
    return [f"{item.id} {item.whole if isinstance(item, Text) else item.name}" for item in feed.after(cursor)]


@pytest.fixture
async def feed() -> RunFeed:
    """A feed that knows nothing yet."""
    return RunFeed(row())


async def test_a_story_is_told_in_its_order(feed: RunFeed) -> None:
    assert feed.take_live([*STORY, end_entry(row())])

    assert told(feed) == [
        "0-1 message_created",
        "1-1 message_started",
        "1-3 Hello world",
        "2-0 message_complete",
        "2-1 done",
    ]
    assert feed.ended


async def test_what_is_there_already_changes_nothing(feed: RunFeed) -> None:
    feed.take_log(STORY)

    assert feed.take_live(STORY)
    assert told(feed) == ["0-1 message_created", "1-1 message_started", "1-3 Hello world"]


async def test_a_jump_means_to_read_the_log(feed: RunFeed) -> None:
    assert feed.take_live(STORY[:1])
    assert not feed.take_live(STORY[2:])
    assert feed.top == Id(1, 1)

    assert feed.take_log(STORY[1:])
    assert told(feed, Id(1, 1)) == ["1-3 Hello world"]


async def test_a_hole_in_the_log_is_a_gap_and_growth_waits_for_a_whole_text(feed: RunFeed) -> None:
    feed.take_log([STORY[0], at("1-5", "Hello world", before="Hello")])
    assert told(feed, Id(1, 1)) == ["1-4 gap"]

    feed.take_live([at("1-6", "Hello world!")])
    assert told(feed, Id(1, 1)) == ["1-4 gap", "1-6 Hello world!"]


async def test_a_new_attempt_makes_the_one_before_obsolete(feed: RunFeed) -> None:
    feed.take_live([*STORY, at("1-4", CALL)])

    assert feed.take_live([at("2-1", STARTED), at("2-2", "Hi")])
    assert told(feed, Id(1, 2)) == ["2-1 message_started", "2-2 Hi"]


async def test_a_new_attempt_that_is_not_seen_from_its_beginning_means_to_read_the_log(feed: RunFeed) -> None:
    feed.take_live(STORY)

    assert not feed.take_live([at("2-2", "Hi")])


async def test_growth_of_a_new_attempt_never_grows_out_of_the_old_one(feed: RunFeed) -> None:
    feed.take_live(STORY)
    feed.take_log([at("2-1", STARTED), Entry(Id(2, 2), {"drop": 0, "append": "!"})])

    assert told(feed, CREATED) == ["2-1 message_started"]


async def test_texts_collapse_to_the_newest_and_nothing_else_does(feed: RunFeed) -> None:
    feed.take_live([at("1-1", STARTED), at("1-2", "a"), at("1-3", CALL), at("1-4", "ab"), at("1-5", CALL)])

    assert told(feed, CREATED) == ["1-1 message_started", "1-3 tool_call", "1-4 ab", "1-5 tool_call"]


async def test_reasoning_collapses_part_by_part_each_in_its_place(feed: RunFeed) -> None:
    feed.take_live(THINKING[:6])
    assert told(feed, Id(1, 1)) == ["1-3 The caller asks for it", "1-4 tool_call", "1-5 It is so", "1-6 Yes"]

    feed.take_live(THINKING[6:])
    assert told(feed, Id(1, 1)) == ["1-3 The caller asks for it", "1-4 tool_call", "1-6 Yes", "1-7 It is so, then"]
    assert told(feed, Id(1, 2)) == told(feed, Id(1, 1))
    assert told(feed, Id(1, 3)) == ["1-4 tool_call", "1-6 Yes", "1-7 It is so, then"]
    assert [item.part for item in feed.after(Id(1, 1)) if isinstance(item, Text)] == [1, 0, 2]


async def test_growth_of_reasoning_after_a_hole_waits_for_a_whole_part(feed: RunFeed) -> None:
    feed.take_log([*THINKING[:2], thought("1-9", 1, "The caller asks why", before="The caller asks")])
    assert told(feed, Id(1, 1)) == ["1-2 The caller asks", "1-8 gap"]

    feed.take_live([thought("1-10", 1, "The caller asks why now")])
    assert told(feed, Id(1, 1)) == ["1-8 gap", "1-10 The caller asks why now"]


async def test_reasoning_of_another_part_is_no_base_for_growth(feed: RunFeed) -> None:
    feed.take_log([*THINKING[:2], Entry(Id(1, 3), {"event": REASONING, "part": 2, "drop": 0, "append": "!"})])

    assert told(feed, Id(1, 1)) == ["1-2 The caller asks"]


@pytest.mark.parametrize(
    ("started", "valid"),
    [
        ({}, []),
        ({"steps_kept": 2, "reasoning_kept": 1}, ["1-3 The caller asks for it", "1-4 tool_call"]),
        ({"steps_kept": 2}, ["1-4 tool_call"]),
        ({"steps_kept": 2, "reasoning_kept": True}, ["1-4 tool_call"]),
        (
            {"reason": "answered", "after": "1-7", "reasoning_kept": 2},
            ["1-3 The caller asks for it", "1-4 tool_call", "1-7 It is so, then"],
        ),
    ],
    ids=["from the query", "after steps", "after steps without reasoning", "what is no number", "after a wait"],
)
async def test_reasoning_of_kept_steps_stays_valid_and_that_of_the_step_in_hand_does_not(
    feed: RunFeed, started: dict[str, Any], valid: list[str]
) -> None:
    feed.take_live([*THINKING, at("2-1", STARTED | started)])

    assert told(feed, Id(1, 1))[:-1] == valid
    again = next(item for item in feed.after(Id(1, 7)) if isinstance(item, Event))
    kept = started.get("reasoning_kept")
    assert again.fields.get("reasoning_kept") == (None if kept is True else kept)


async def test_reasoning_told_before_a_wait_outlives_an_attempt_of_which_nothing_is_known(feed: RunFeed) -> None:
    feed.take_live([*THINKING, at("2-1", STARTED | {"reason": "answered", "after": "1-7", "reasoning_kept": 2})])
    feed.take_live([thought("2-2", 3, "Void")])

    feed.settle(row(status=RunStatus.FAILED, attempt=3, output=None, last_entry=0, error={"code": "worker_crashed"}))

    assert told(feed, Id(1, 4)) == ["1-7 It is so, then", "4-0 error", "4-1 done"]


@pytest.mark.parametrize("story", [STORY, THINKING], ids=["text", "reasoning"])
async def test_a_cursor_gets_exactly_what_is_after_it(feed: RunFeed, story: list[Entry]) -> None:
    feed.take_live([*story, end_entry(row(last_entry=len(story), output=None if story is THINKING else "Hello world"))])
    whole = [BEFORE_ALL, *(item.id for item in feed.after(BEFORE_ALL))]

    for place, cursor in enumerate(whole):
        assert [item.id for item in feed.after(cursor)] == whole[place + 1 :]


async def test_an_end_is_believed_only_by_who_knows_all_before(feed: RunFeed) -> None:
    feed.take_live(STORY[:2])

    assert not feed.take_live([end_entry(row())])
    assert not feed.ended


async def test_an_end_with_another_text_is_not_believed(feed: RunFeed) -> None:
    feed.take_live(STORY)

    assert not feed.take_live([end_entry(row(output="Hello there"))])


async def test_the_row_tells_what_the_log_did_not(feed: RunFeed) -> None:
    feed.take_live(STORY[:1])

    feed.settle(row(last_entry=7))

    assert told(feed, CREATED) == [
        "1-1 message_started",
        "1-6 gap",
        "1-7 Hello world",
        "2-0 message_complete",
        "2-1 done",
    ]


async def test_the_row_tells_the_text_that_growth_without_a_base_did_not(feed: RunFeed) -> None:
    feed.take_log([STORY[0], at("1-3", "Hello world", before="Hello")])
    assert told(feed, Id(1, 1)) == ["1-2 gap"]

    feed.settle(row())

    assert told(feed, Id(1, 2)) == ["1-4 Hello world", "2-0 message_complete", "2-1 done"]


async def test_an_expired_log_is_no_gap_for_who_asks_from_the_start(feed: RunFeed) -> None:
    feed.settle(row())

    assert told(feed) == ["0-1 message_created", "1-3 Hello world", "2-0 message_complete", "2-1 done"]


async def test_an_expired_log_is_a_gap_for_who_had_begun(feed: RunFeed) -> None:
    feed.settle(row())

    assert told(feed, CREATED) == ["1-2 gap", "1-3 Hello world", "2-0 message_complete", "2-1 done"]


async def test_a_log_that_could_not_be_read_is_a_gap_for_who_asks_from_the_start(feed: RunFeed) -> None:
    feed.settle(row(), log_was_read=False)

    assert told(feed) == ["0-1 message_created", "1-2 gap", "1-3 Hello world", "2-0 message_complete", "2-1 done"]


async def test_a_run_cancelled_in_the_queue_has_an_end_and_no_gap(feed: RunFeed) -> None:
    end = row(status=RunStatus.CANCELLED, attempt=0, output=None, last_entry=0)

    assert feed.take_live([end_entry(end)])
    assert told(feed) == ["0-1 message_created", "1-0 cancelled", "1-1 done"]


async def test_a_second_attempt_that_died_at_once_leaves_no_gap(feed: RunFeed) -> None:
    feed.take_live(STORY)

    feed.settle(row(status=RunStatus.FAILED, attempt=2, output=None, last_entry=0, error={"code": "worker_crashed"}))

    assert told(feed, Id(1, 3)) == ["3-0 error", "3-1 done"]


async def test_nothing_is_taken_after_the_end(feed: RunFeed) -> None:
    feed.settle(row())

    assert feed.take_live([at("2-1", STARTED), at("3-1", STARTED)])
    assert told(feed)[-1] == "2-1 done"


async def test_forgotten_events_are_recalled_from_the_log_with_the_text_in_its_place(feed: RunFeed) -> None:
    log = [at("1-1", STARTED), at("1-2", "Hello"), *(at(f"1-{n}", CALL) for n in range(3, KEPT_EVENTS + 20))]
    feed.take_live(log)
    assert feed.has_forgotten(BEFORE_ALL)

    items = list(feed.after(BEFORE_ALL, feed.recall(BEFORE_ALL, log)))

    assert [item.id for item in items] == [CREATED, *(entry.id for entry in log)]
    assert not feed.has_forgotten(items[-1].id)


async def test_reasoning_is_not_forgotten_with_the_events_around_it(feed: RunFeed) -> None:
    log = [*THINKING, *(at(f"1-{n}", CALL) for n in range(8, KEPT_EVENTS + 20))]
    feed.take_live(log)
    assert feed.has_forgotten(BEFORE_ALL)

    items = list(feed.after(BEFORE_ALL, feed.recall(BEFORE_ALL, log)))

    passed = {Id(1, 2), Id(1, 5)}
    assert [item.id for item in items] == [CREATED, *(entry.id for entry in log if entry.id not in passed)]


async def test_progress_and_tools_that_are_not_the_agents_own_are_told_as_they_stand_in_the_log(feed: RunFeed) -> None:
    progress = {"event": "progress", "name": "looked", "data": {"done": [1, None]}}
    result = {"event": "tool_result", "tool_call_id": "1", "tool_name": "look", "content": None}
    log = [
        at("1-1", STARTED),
        at("1-2", CALL | {"native": True}),
        at("1-3", progress | {"tool_call_id": "1"}),
        at("1-4", progress | {"data": None, "of a newer version": 1}),
        at("1-5", result | {"parent_tool_call_id": "0"}),
    ]
    feed.take_live(log)

    call, first, second, returned = (dict(item.fields) for item in feed.after(Id(1, 1)) if isinstance(item, Event))
    assert call.keys() == {"message_id", "tool_call_id", "tool_name", "args", "native"}
    assert first == {
        "message_id": first["message_id"],
        "tool_call_id": "1",
        "name": "looked",
        "data": {"done": [1, None]},
    }
    assert second == {"message_id": first["message_id"], "name": "looked", "data": None}
    assert returned.keys() == {"message_id", "tool_call_id", "tool_name", "content", "parent_tool_call_id"}
    assert [item.id for item in feed.after(Id(1, 3))] == [Id(1, 4), Id(1, 5)]


async def test_forgotten_events_that_the_log_has_lost_are_a_gap(feed: RunFeed) -> None:
    log = [at("1-1", STARTED), *(at(f"1-{n}", CALL) for n in range(2, KEPT_EVENTS + 20))]
    feed.take_live(log)

    items = list(feed.after(BEFORE_ALL, feed.recall(BEFORE_ALL, [])))

    assert isinstance(items[1], Event)
    assert items[1].name == "gap"
    assert [item.id for item in items[2:]] == [entry.id for entry in log[-KEPT_EVENTS:]]


async def test_who_waits_is_woken_by_news_and_only_by_news(feed: RunFeed) -> None:
    feed.take_live(STORY[:1])
    waiting = feed.wait()
    feed.tire(0)
    assert not waiting.done()  # It looked before it waited, so there are no news.
    feed.take_live(STORY[1:])
    assert await waiting is WakeReason.FOR_NEWS


async def test_who_has_waited_for_long_is_woken_and_only_then(feed: RunFeed) -> None:
    waiting = feed.wait()
    feed.tire(asyncio.get_running_loop().time() - 1)
    assert not waiting.done()
    feed.tire(asyncio.get_running_loop().time() + 1)
    assert await waiting is WakeReason.IN_VAIN


async def test_who_waits_may_go(feed: RunFeed) -> None:
    waiting = feed.wait()
    end_wait(waiting, WakeReason.NO_LONGER)
    feed.take_live(STORY)
    assert await waiting is WakeReason.NO_LONGER
