"""Who gets a free slot: somebody who waits goes before a batch, and neither is ever left without."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.rows import dict_row
from redis.asyncio import Redis

from agent_relay.shared.clock import new_id
from agent_relay.shared.queue import Lane, QueueEntry, RunQueue
from agent_relay.shared.redis_names import DEFAULT
from agent_relay.shared.settings import Settings
from agent_relay.worker.queue import consumer
from agent_relay.worker.queue.consumer import QueueConsumer
from agent_relay.worker.queue.slots import Shares
from tests.support.client import Client
from tests.support.eventually import DEADLINE_SECONDS, eventually
from tests.support.service import Service
from tests.support.stage import each

INTERACTIVE, BATCH = Lane.INTERACTIVE, Lane.BATCH


def taken(shares: Shares, *lanes: Lane) -> Shares:
    """Take slots, in a worker whose loop has all its time."""
    for lane in lanes:
        assert lane in shares.lanes()
        shares.take(lane)
        shares.look(0)
    return shares


def test_somebody_who_waits_goes_before_a_batch() -> None:
    assert Shares(10, interactive_share=0.2, batch_turn=5).lanes() == [INTERACTIVE, BATCH]


def test_batches_leave_the_last_slots_free() -> None:
    shares = taken(Shares(10, interactive_share=0.2, batch_turn=50), *[BATCH] * 8)
    assert shares.lanes() == [INTERACTIVE]

    mixed = taken(Shares(10, interactive_share=0.2, batch_turn=50), *[INTERACTIVE] * 6, BATCH, BATCH)
    assert mixed.lanes() == [INTERACTIVE]
    mixed.free(INTERACTIVE)
    assert mixed.lanes() == [INTERACTIVE, BATCH]


def test_where_interactive_runs_take_every_slot_a_batch_has_its_turn() -> None:
    shares = taken(Shares(10, interactive_share=0.2, batch_turn=10), *[INTERACTIVE] * 10)
    shares.free(INTERACTIVE)
    assert shares.lanes() == [BATCH, INTERACTIVE]

    shares.take(BATCH)
    shares.free(INTERACTIVE)
    assert shares.lanes() == [INTERACTIVE]


def test_a_turn_takes_nothing_of_what_is_kept_for_interactive_runs() -> None:
    shares = taken(Shares(4, interactive_share=0.5, batch_turn=2), BATCH, BATCH, INTERACTIVE, INTERACTIVE)
    shares.free(INTERACTIVE)

    assert shares.lanes() == [INTERACTIVE]


@pytest.mark.parametrize(("slots", "share", "room"), [(1, 0.2, 1), (1, 0.9, 1), (2, 0.2, 1), (50, 0.2, 40), (3, 0, 3)])
def test_however_few_the_slots_a_batch_has_one(slots: int, share: float, room: int) -> None:
    shares = taken(Shares(slots, interactive_share=share, batch_turn=10), *[BATCH] * room)

    assert BATCH not in shares.lanes()


def test_as_many_are_taken_at_once_as_may_be_taken_one_by_one() -> None:
    shares = Shares(40, interactive_share=0.5, batch_turn=4)
    assert (shares.room(INTERACTIVE), shares.room(BATCH)) == (4, 5)  # A batch begins with a quarter of its slots.

    def take(*lanes: Lane) -> None:
        for lane in lanes:
            shares.take(lane)

    take(*[INTERACTIVE] * 3, BATCH, BATCH)
    assert (shares.room(INTERACTIVE), shares.room(BATCH)) == (4, 3)
    take(*[INTERACTIVE] * 4)
    assert shares.lanes() == [BATCH, INTERACTIVE]
    assert (shares.room(INTERACTIVE), shares.room(BATCH)) == (1, 1)
    take(INTERACTIVE)  # No batch waited in its turn.
    assert (shares.lanes(), shares.room(INTERACTIVE)) == ([INTERACTIVE, BATCH], 4)
    take(*[BATCH] * 3, *[INTERACTIVE] * 5)
    assert (shares.lanes(), shares.room(INTERACTIVE)) == ([INTERACTIVE], 40 - 18)


def store(
    service: Service, query: str, count: int, lane: Lane, tenant: str = "acme", user_id: UUID | None = None
) -> list[QueueEntry]:
    """Store runs of the agent `slow` as if they had been accepted, each of its own user unless one is given."""
    rings = [QueueEntry(new_id(), 1, "default", lane, tenant) for _ in range(count)]
    with psycopg.connect(service.database_url) as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO runs (id, tenant, user_id, agent_type, pool, text_output, lane, query, metadata,"
            " user_message_id, message_id, deadline_at)"
            " VALUES (%s, %s, %s, 'slow', 'default', true, %s, %s, '{}', %s, %s, now() + interval '5 minutes')",
            [(ring.run_id, tenant, user_id or uuid4(), lane, query, uuid4(), uuid4()) for ring in rings],
        )
    return rings


async def ring(service: Service, rings: Sequence[QueueEntry]) -> None:
    """Call for workers."""
    async with Redis.from_url(service.redis_url) as redis:
        assert await RunQueue(redis).ring(rings)


def rows(service: Service, condition: str) -> list[dict[str, object]]:
    """Read runs, in the order in which they were begun."""
    with psycopg.connect(service.database_url) as connection, connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(f"SELECT * FROM runs WHERE {condition} ORDER BY started_at")  # pyright: ignore[reportArgumentType, reportCallIssue]
        return cursor.fetchall()


def begun(service: Service, count: int) -> list[dict[str, object]]:
    """Wait until so many runs were begun, and read those that were."""
    return eventually(lambda: begun if len(begun := rows(service, "started_at IS NOT NULL")) >= count else [])


async def test_a_thousand_runs_of_a_batch_and_two_hundred_of_a_tenant_hold_nobody_up(service: Service) -> None:
    await ring(service, store(service, "0.05", 1000, BATCH))
    await ring(service, store(service, "0.05", 200, INTERACTIVE, "acme"))
    await ring(service, store(service, "0.05", 1, INTERACTIVE, "other"))
    service.worker(WORKER_SLOTS="1", BATCH_TURN="4")
    first = begun(service, 10)[:10]

    assert [run["lane"] for run in first] == [*[INTERACTIVE] * 4, BATCH] * 2
    assert [run["tenant"] for run in first if run["lane"] == INTERACTIVE] == ["other", *["acme"] * 7]


async def test_ten_thousand_long_runs_of_a_user_leave_the_next_free_slot_to_another_tenant(service: Service) -> None:
    await ring(service, store(service, "300 seconds", 10_000, INTERACTIVE, "acme", uuid4()))
    service.worker(WORKER_SLOTS="3")
    held = begun(service, 3)
    await ring(service, [other := store(service, "300 seconds", 1, INTERACTIVE, "other")[0]])
    with psycopg.connect(service.database_url) as connection:
        connection.execute("UPDATE runs SET cancel_requested_at = now() WHERE id = %s", (held[0]["id"],))
    after = begun(service, 4)

    assert [run["tenant"] for run in held] == ["acme"] * 3
    assert [run["id"] for run in after[3:]] == [other.run_id]


async def test_the_last_slots_stay_free_for_interactive_runs(service: Service) -> None:
    api = service.api()
    await ring(service, store(service, "30 seconds", 5, BATCH))
    service.worker(WORKER_SLOTS="4", INTERACTIVE_SHARE="0.5")
    begun(service, 2)
    async with Client(api.url) as client:
        ended = [await client.ended((await client.run("hello", agent_type="echo"))["id"]) for _ in range(3)]

    assert [run["status"] for run in ended] == ["succeeded"] * 3
    assert [run["lane"] for run in rows(service, "status = 'running'")] == [BATCH] * 2


async def test_a_slot_that_a_batch_left_is_filled_at_once(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consumer, "POP_SECONDS", 3600)  # The pop that lists no batch does not return by itself.
    answered: list[UUID] = []

    async def answer(run_id: UUID, lane: Lane) -> None:
        assert lane is BATCH
        await asyncio.sleep(0.01)
        answered.append(run_id)

    settings = Settings(
        database_url="postgresql://nobody@nowhere/none", redis_url=redis_url, worker_slots=2, interactive_share=0.5
    )
    bell = QueueConsumer(settings, each(answer), lambda: True)
    async with Redis.from_url(redis_url) as redis:
        await RunQueue(redis).ring([QueueEntry(new_id(), 1, settings.pool, BATCH, "acme") for _ in range(5)])
    working = asyncio.create_task(bell.main())
    async with asyncio.timeout(DEADLINE_SECONDS):
        while len(answered) < 5:  # noqa: ASYNC110  (bounded)
            await asyncio.sleep(0.01)
        bell.stop()
        await working  # A stop wakes it, too.
    await bell.close()

    assert "doorbell.redis_away" not in caplog.text  # Nor did it time out.


async def test_no_more_is_popped_than_there_are_slots_for(redis_url: str) -> None:
    may_end, begun = asyncio.Event(), list[UUID]()

    async def answer(run_id: UUID, _: Lane) -> None:
        begun.append(run_id)
        await may_end.wait()

    settings = Settings(database_url="postgresql://nobody@nowhere/none", redis_url=redis_url, worker_slots=3)
    rings = [QueueEntry(new_id(), 1, settings.pool, INTERACTIVE, "acme") for _ in range(consumer.POP_MOST)]
    bell = QueueConsumer(settings, each(answer), lambda: True)
    async with Redis.from_url(redis_url) as redis, asyncio.timeout(DEADLINE_SECONDS):
        await RunQueue(redis).ring(rings)
        working = asyncio.create_task(bell.main())
        while len(begun) < 3:  # noqa: ASYNC110  (bounded)
            await asyncio.sleep(0.01)
        assert await redis.zcard(DEFAULT.lane(settings.pool, INTERACTIVE)) == len(rings) - 3

        may_end.set()
        while bell.tasks or len(begun) < len(rings):  # noqa: ASYNC110  (bounded)
            await asyncio.sleep(0.01)
        bell.stop()
        await working
        await bell.close()
        assert await redis.keys("*arq:*") == []  # Nothing is left of the jobs.

    assert begun == [ring.run_id for ring in rings]
