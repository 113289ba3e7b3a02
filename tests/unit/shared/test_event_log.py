"""The event log: what must not be written is refused, and what is written is announced as written."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from agent_relay.shared.event_log import BEFORE_ALL, Append, Entry, EventLog, Id, Outcome, parse_announcement
from agent_relay.shared.redis_names import DEFAULT

TTL = 60


@pytest.fixture
async def redis(redis: Redis) -> AsyncGenerator[Redis]:
    """A Redis of the test's own; every key in it must have a life time in the end."""
    yield redis
    for name in await redis.keys():
        assert 0 < await redis.ttl(name) <= TTL, f"{name} lives for ever"


@pytest.fixture
def event_log(redis: Redis) -> EventLog:
    """The logs on it."""
    return EventLog(redis)


def texts(attempt: int, *numbers: int) -> list[Entry]:
    """Make entries, with a text that would break lines if it could."""
    return [Entry(Id(attempt, n), {"text": f"é\u2028\n{n}"}) for n in numbers]


async def append(event_log: EventLog, run_id: UUID, wrote: Id, entries: list[Entry]) -> Outcome:
    """Append to one log."""
    (outcome,) = await event_log.append([Append(run_id, wrote, entries, TTL)])
    return outcome


async def heard(pubsub: PubSub) -> list[Entry]:
    """Hear one announcement."""
    while True:
        message: Any = await pubsub.get_message(ignore_subscribe_messages=True, timeout=10)  # pyright: ignore[reportUnknownVariableType]
        if message is not None:
            return parse_announcement(message["data"])


async def test_what_is_appended_is_announced_in_one_message_just_so(redis: Redis, event_log: EventLog) -> None:
    run_id, entries = uuid4(), texts(1, 1, 2, 3)
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(DEFAULT.log(run_id))
        assert await append(event_log, run_id, BEFORE_ALL, entries) is Outcome.APPENDED

        assert await heard(pubsub) == entries == await event_log.read(run_id)


async def test_a_resent_append_is_a_duplicate_and_nothing_is_twice(event_log: EventLog) -> None:
    run_id, entries = uuid4(), texts(1, 1, 2)
    await append(event_log, run_id, BEFORE_ALL, entries)

    assert await append(event_log, run_id, BEFORE_ALL, entries) is Outcome.DUPLICATE
    assert await event_log.read(run_id) == entries


async def test_a_zombie_is_fenced_and_not_heard(redis: Redis, event_log: EventLog) -> None:
    run_id = uuid4()
    await append(event_log, run_id, BEFORE_ALL, texts(1, 1))
    await append(event_log, run_id, BEFORE_ALL, texts(2, 1))
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(DEFAULT.log(run_id))
        assert await append(event_log, run_id, Id(1, 1), texts(1, 2)) is Outcome.FENCED
        assert await append(event_log, run_id, Id(2, 1), texts(2, 2)) is Outcome.APPENDED

        assert await heard(pubsub) == texts(2, 2)
    assert await event_log.read(run_id) == [*texts(1, 1), *texts(2, 1, 2)]


async def test_the_end_fences_its_own_attempt(event_log: EventLog) -> None:
    run_id, end = uuid4(), Entry(Id(2, 0), {"event": "message_complete"})
    await append(event_log, run_id, BEFORE_ALL, texts(1, 1))

    assert await append(event_log, run_id, BEFORE_ALL, [end]) is Outcome.APPENDED
    assert await append(event_log, run_id, BEFORE_ALL, [end]) is Outcome.DUPLICATE
    assert await append(event_log, run_id, Id(1, 1), texts(1, 2)) is Outcome.FENCED


@pytest.mark.parametrize("kept", [0, 1], ids=["all", "the tail"])
async def test_a_log_that_lost_what_was_written_refuses_more_of_it(
    redis: Redis, event_log: EventLog, kept: int
) -> None:
    run_id = uuid4()
    await append(event_log, run_id, BEFORE_ALL, texts(1, 1, 2))
    await redis.delete(DEFAULT.log(run_id))
    if kept:
        await append(event_log, run_id, BEFORE_ALL, texts(1, 1))

    assert await append(event_log, run_id, Id(1, 2), texts(1, 3)) is Outcome.LOST
    assert len(await event_log.read(run_id)) == kept


async def test_a_server_that_forgot_the_script_is_taught_it(redis: Redis, event_log: EventLog) -> None:
    run_id = uuid4()
    await append(event_log, run_id, BEFORE_ALL, texts(1, 1))
    await redis.script_flush()

    assert await append(event_log, run_id, Id(1, 1), texts(1, 2)) is Outcome.APPENDED


async def test_each_log_of_a_round_trip_is_decided_for_itself(event_log: EventLog) -> None:
    new, fenced, lost = uuid4(), uuid4(), uuid4()
    await append(event_log, fenced, BEFORE_ALL, texts(2, 1))

    outcomes = await event_log.append(
        [
            Append(fenced, BEFORE_ALL, texts(1, 1), TTL),
            Append(lost, Id(1, 5), texts(1, 6), TTL),
            Append(new, BEFORE_ALL, texts(1, 1), TTL),
        ]
    )

    assert outcomes == [Outcome.FENCED, Outcome.LOST, Outcome.APPENDED]


async def test_a_reader_gets_what_is_after_its_id(event_log: EventLog) -> None:
    run_id = uuid4()
    await append(event_log, run_id, BEFORE_ALL, [*texts(1, 1, 2), *texts(2, 1)])

    assert await event_log.read(run_id, after=Id(1, 1)) == [*texts(1, 2), *texts(2, 1)]
    assert await event_log.read(run_id, after=Id(2, 1)) == []
