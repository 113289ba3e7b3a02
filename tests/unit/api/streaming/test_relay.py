"""The relay: subscribe, then read; read again whatever fails; tell the end in any case."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from uuid import UUID

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisAway
from sqlalchemy.ext.asyncio import create_async_engine

from agent_relay.api.streaming.relay import Relay
from agent_relay.api.streaming.run_feed import RunFeed, Text
from agent_relay.shared.database.tables import RunStatus
from agent_relay.shared.event_log import BEFORE_ALL, Append, Entry, EventLog, Id
from agent_relay.shared.rows import RunRow
from tests.support.rows import run_row

TTL = 60


class EventfulLog(EventLog):
    """A log; something happens right after the first read of it, or the first reads fail."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.meanwhile: Append | None = None
        self.failures = 0

    async def read_many(self, reads: Iterable[tuple[UUID, Id]]) -> list[list[Entry]]:
        """Read as it was, before what happens meanwhile."""
        if self.failures:
            self.failures -= 1
            raise RedisAway("away")
        read = await super().read_many(reads)
        if self.meanwhile is not None:
            append, self.meanwhile = self.meanwhile, None
            await self.append([append])
        return read


@pytest.fixture
def log(redis: Redis) -> EventfulLog:
    """A log on a Redis of the test's own."""
    return EventfulLog(redis)


@pytest.fixture
def relay(log: EventfulLog, redis: Redis) -> Relay:
    """A relay that has not begun, and needs no database: no run of these tests is looked at again."""
    return Relay(create_async_engine("postgresql+psycopg://nowhere.invalid"), redis, log, keepalive_seconds=15)


@pytest.fixture
def run() -> RunRow:
    """The row of a run that is running."""
    return run_row()


def text(run: RunRow, n: int) -> Append:
    """Make the n-th text of a run."""
    return Append(run.id, Id(1, n - 1) if n > 1 else BEFORE_ALL, [Entry(Id(1, n), {"text": f"text {n}"})], TTL)


async def until_told(feed: RunFeed, whole: str) -> None:
    """Wait until a feed has a text."""
    async with asyncio.timeout(5):
        while not any(isinstance(item, Text) and item.whole == whole for item in feed.after(BEFORE_ALL)):
            await feed.wait()


async def test_what_is_told_between_subscription_and_read_is_not_missed(
    relay: Relay, log: EventfulLog, run: RunRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_relay.api.streaming.relay.FIRST_READ_SECONDS", 0.2)
    await log.append([text(run, 1)])
    log.meanwhile = text(run, 2)
    async with relay.follow(run) as feed:
        relaying = asyncio.create_task(relay.run())
        await until_told(feed, "text 2")
        relaying.cancel()


async def test_a_read_that_failed_is_tried_again(
    relay: Relay, log: EventfulLog, run: RunRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_relay.api.streaming.relay.READ_AGAIN_SECONDS", 0.05)
    log.failures = 2
    await log.append([text(run, 1)])
    relaying = asyncio.create_task(relay.run())
    async with relay.follow(run) as feed:
        await until_told(feed, "text 1")
    relaying.cancel()


@pytest.mark.parametrize("failures", [0, 1])
async def test_who_asks_for_an_ended_run_is_told_of_a_gap_only_where_its_log_could_not_be_read(
    relay: Relay, log: EventfulLog, run: RunRow, failures: int
) -> None:
    run = replace(run, status=RunStatus.SUCCEEDED, output="the answer", last_entry=3)
    log.failures = failures
    async with relay.follow(run) as feed:
        told = [item.whole if isinstance(item, Text) else item.name for item in feed.after(BEFORE_ALL)]
    assert told == ["message_created", *["gap"] * failures, "the answer", "message_complete", "done"]


async def test_followers_of_a_run_share_a_feed_and_the_last_one_takes_it_along(relay: Relay, run: RunRow) -> None:
    relaying = asyncio.create_task(relay.run())
    async with relay.follow(run) as one, relay.follow(run) as other:
        assert one is other
        assert len(relay) == 1
    assert len(relay) == 0
    relaying.cancel()


async def test_who_comes_as_the_last_one_leaves_is_told_everything(relay: Relay, log: EventfulLog, run: RunRow) -> None:
    relaying = asyncio.create_task(relay.run())
    await log.append([text(run, 1)])
    async with relay.follow(run) as feed:
        await until_told(feed, "text 1")
    async with relay.follow(run) as feed:
        await until_told(feed, "text 1")
        await log.append([text(run, 2)])
        await until_told(feed, "text 2")
    relaying.cancel()
