"""A batch takes what time the loop of a worker has left, and never none of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest
from redis.asyncio import Redis

from agent_relay.shared.clock import new_id
from agent_relay.shared.queue import Lane, QueueEntry, RunQueue
from agent_relay.shared.settings import Settings
from agent_relay.worker.queue import adaptive_limit, consumer
from agent_relay.worker.queue.adaptive_limit import AdaptiveLimit
from agent_relay.worker.queue.consumer import QueueConsumer
from agent_relay.worker.queue.slots import Shares
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.stage import each

BUSY, FULL, IDLE = 0.9, 1.0, 0.1
SLOTS = 50
MOST = 40
"""Slots that batches may have of these."""


def looked(shares: Shares, *busy: float) -> list[int]:
    """Look at the loop again and again, while a batch takes all that it may have; returns how many that was."""
    room: list[int] = []
    held = 0
    for share in busy:
        while Lane.BATCH in shares.lanes():
            shares.take(Lane.BATCH)
            held += 1
        shares.look(share)
        room.append(held)
        while held and Lane.BATCH not in shares.lanes():  # Those above what it may have now end some time.
            shares.free(Lane.BATCH)
            held -= 1
    return room


def shares(interactive_share: float = 0.2) -> Shares:
    """Make the shares of a worker."""
    return Shares(SLOTS, interactive_share=interactive_share, batch_turn=10)


def test_a_batch_begins_with_a_few_and_has_all_where_the_loop_has_time() -> None:
    assert looked(shares(), *[IDLE] * 4) == [10, 20, 40, 40]


def test_a_busy_loop_leaves_batches_a_slot_and_no_more() -> None:
    assert looked(shares(), *[FULL] * 6) == [10, 5, 2, 1, 1, 1]
    assert looked(shares(), *[BUSY] * 30)[-1] == 1


def test_what_was_taken_is_given_back_once_there_is_time() -> None:
    assert looked(shares(), *[FULL] * 4, *[IDLE] * 7) == [10, 5, 2, 1, 1, 2, 4, 8, 16, 32, 40]


def test_nothing_changes_where_the_loop_is_as_busy_as_it_may_be() -> None:
    assert looked(shares(), IDLE, 0.78, 0.82, 0.8) == [10, 20, 20, 20]
    assert looked(shares(interactive_share=0.6), IDLE, 0.4, 0.4, 0.5) == [5, 10, 10, 10]


def test_where_nothing_is_kept_for_interactive_runs_a_batch_may_take_all_time() -> None:
    assert looked(shares(interactive_share=0), *[FULL] * 3) == [13, 13, 13]
    assert looked(shares(interactive_share=0), IDLE, FULL, FULL) == [13, 26, 26]


def test_a_batch_that_has_fewer_runs_than_it_may_says_nothing_of_more() -> None:
    some = AdaptiveLimit(MOST, busy_share=0.8)
    some.note(3)
    some.look(IDLE, 3)

    assert some.slots == 10


def test_a_batch_begins_as_if_there_had_been_none_before() -> None:
    some = AdaptiveLimit(MOST, busy_share=0.8)
    for _ in range(5):
        some.note(some.slots)
        some.look(IDLE, some.slots)
    assert some.slots == MOST
    some.look(IDLE, 0)  # Some were held until just now,
    assert some.slots == MOST
    some.look(IDLE, 0)  # and none since then.
    assert some.slots == 10


@pytest.mark.parametrize("linux", [True, False])
async def test_a_loop_that_waits_is_not_busy_and_one_that_works_or_would_is(
    linux: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, used = iter([0.0, 1.0, 3.0]), iter([7.0, 7.5, 9.5])
    told = tmp_path / "schedstat"

    def monotonic() -> float:
        if linux:
            told.write_text(next(seen))
        return next(clock)

    seen = iter(["7000000000 1000000000 9\n", "7200000000 1300000000 99\n", "8200000000 2300000000 999\n"])
    times = SimpleNamespace(monotonic=monotonic, thread_time=lambda: next(used))
    monkeypatch.setattr(adaptive_limit, "LOOK_SECONDS", 0)
    monkeypatch.setattr(adaptive_limit, "SCHEDULER", told)
    monkeypatch.setattr(adaptive_limit, "time", times)
    busy = adaptive_limit.busy_shares()

    assert [await anext(busy), await anext(busy)] == [0.5, 1.0]


async def test_a_batch_whose_runs_wait_for_a_model_soon_has_all_its_slots(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "POP_SECONDS", 3600)  # The pop that lists no batch does not return by itself.
    monkeypatch.setattr(adaptive_limit, "LOOK_SECONDS", 0.05)
    answering: set[UUID] = set()
    all_slots, answered = asyncio.Event(), asyncio.Event()

    async def answer(run_id: UUID, _lane: Lane) -> None:
        answering.add(run_id)
        if len(answering) == MOST:
            all_slots.set()
        await answered.wait()

    settings = Settings(database_url="postgresql://nobody@nowhere/none", redis_url=redis_url, worker_slots=SLOTS)
    bell = QueueConsumer(settings, each(answer), lambda: True)
    async with Redis.from_url(redis_url) as redis:
        await RunQueue(redis).ring(
            [QueueEntry(new_id(), 1, settings.pool, Lane.BATCH, "acme") for _ in range(MOST + 5)]
        )
    working = asyncio.create_task(bell.main())
    async with asyncio.timeout(DEADLINE_SECONDS):
        await all_slots.wait()
        bell.stop()
        answered.set()
        await asyncio.gather(working, *bell.tasks.values())
    await bell.close()

    assert len(answering) == MOST
