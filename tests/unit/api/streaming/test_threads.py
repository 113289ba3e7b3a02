"""Who waits for the next run of a thread is woken by what is announced of it, and by nothing else."""

from __future__ import annotations

from uuid import UUID

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine

from agent_relay.api.streaming.relay import Relay
from agent_relay.api.streaming.wakeups import WakeReason
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.redis_names import DEFAULT

ONE, OTHER = UUID(int=1), UUID(int=2)


@pytest.fixture
def relay(redis: Redis) -> Relay:
    """A relay that has not begun, and needs no database."""
    engine = create_async_engine("postgresql+psycopg://nowhere.invalid")
    return Relay(engine, redis, EventLog(redis), keepalive_seconds=15)


async def test_what_is_announced_of_a_thread_wakes_those_who_wait_for_its_next_run(relay: Relay) -> None:
    with relay.threads.follow(ONE) as feed, relay.threads.follow(ONE) as same, relay.threads.follow(OTHER) as other:
        assert feed is same
        waiting, elsewhere = [feed.wait_after(1), feed.wait_after(2)], other.wait_after(1)
        relay._heard(DEFAULT.thread(ONE), b"")  # pyright: ignore[reportPrivateUsage]

        assert [await each for each in waiting] == [WakeReason.FOR_NEWS] * 2
        assert not elsewhere.done()


async def test_a_new_subscription_means_that_something_may_have_been_missed(relay: Relay) -> None:
    with relay.threads.follow(ONE) as feed:
        waiting = feed.wait_after(1)
        relay._subscribed(DEFAULT.thread(ONE))  # pyright: ignore[reportPrivateUsage]

        assert await waiting is WakeReason.FOR_NEWS


async def test_a_process_that_stops_wakes_those_who_wait(relay: Relay) -> None:
    with relay.threads.follow(ONE) as feed:
        waiting = feed.wait_after(1)
        relay.close()

        assert await waiting is WakeReason.FOR_NEWS


async def test_the_rows_are_looked_at_from_where_the_first_of_those_is_who_wait(relay: Relay) -> None:
    with relay.threads.follow(ONE) as feed:
        feed.wait_after(5)
        feed.wait_after(3)
        feed.wait_after(4)
        assert feed.told == 3
        feed.wake()
        assert not feed.is_awaited
        feed.wait_after(6)
        assert feed.told == 6


async def test_who_has_waited_for_long_is_woken_to_say_that_the_stream_is_alive(relay: Relay) -> None:
    with relay.threads.follow(ONE) as feed:
        waiting = feed.wait_after(1)
        relay.threads.tire(float("inf"))

        assert await waiting is WakeReason.IN_VAIN


async def test_a_thread_that_nobody_follows_is_forgotten(relay: Relay) -> None:
    with relay.threads.follow(ONE) as feed:
        pass
    with relay.threads.follow(ONE) as later:
        assert later is not feed
