"""The hub on a real Redis: a wanted channel is always acknowledged, and a connection that went silent is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import pytest
from redis.asyncio import Redis

from agent_relay.api.streaming.subscriptions import Subscriptions
from agent_relay.shared.redis_names import DEFAULT


class Listener:
    """A hub at work, and what it said."""

    def __init__(self, redis: Redis) -> None:
        self.hub = Subscriptions(redis, DEFAULT, lambda _channel, message: self._note(message.decode()), self._note)
        self.said: list[str] = []
        self._news = asyncio.Event()

    def _note(self, what: str) -> None:
        self.said.append(what)
        self._news.set()

    async def until(self, so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(10):
            while not so():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def listening(redis: Redis) -> AsyncGenerator[Listener]:
    """Have a hub at work."""
    listener = Listener(redis)
    running = asyncio.create_task(listener.hub.run())
    try:
        yield listener
    finally:
        running.cancel()
        await asyncio.wait([running])


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    """A client of a Redis of the test's own."""
    async with Redis.from_url(redis_url) as client:
        yield client


class Proxy:
    """Stands before Redis, and can swallow what it sends to its subscribers, as a dead network does."""

    def __init__(self, redis_url: str) -> None:
        self._path = urlsplit(redis_url).path
        self.database = parse_qs(urlsplit(redis_url).query)["db"][0]
        self.swallowed = 0
        self.swallowing = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection; the subscribers that there are when the network dies stay dead."""
        redis_reader, redis_writer = await asyncio.open_unix_connection(self._path)
        subscribed = asyncio.Event()

        async def forth() -> None:
            while data := await reader.read(1 << 16):
                if b"SUBSCRIBE" in data:
                    subscribed.set()
                redis_writer.write(data)

        async def back() -> None:
            dead = False
            while data := await redis_reader.read(1 << 16):
                if self.swallowing and subscribed.is_set() and not dead:
                    dead, self.swallowing = True, False
                if dead:
                    self.swallowed += 1
                else:
                    writer.write(data)

        directions = [asyncio.create_task(forth()), asyncio.create_task(back())]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            redis_writer.close()
            writer.close()


async def test_what_is_wanted_is_acknowledged_and_heard(redis: Redis) -> None:
    async with listening(redis) as listener:
        listener.hub.want("news")
        await listener.until(lambda: listener.said == ["news"])
        await redis.publish("news", "hello")
        await listener.until(lambda: listener.said == ["news", "hello"])


async def test_what_is_dropped_and_wanted_in_one_breath_is_acknowledged_again(redis: Redis) -> None:
    async with listening(redis) as listener:
        listener.hub.want("news")
        await listener.until(lambda: listener.said == ["news"])
        listener.hub.drop("news")
        listener.hub.want("news")
        await listener.until(lambda: listener.said == ["news", "news"])


async def test_what_is_dropped_is_not_subscribed_any_more(redis: Redis) -> None:
    async with listening(redis) as listener:
        listener.hub.want("old")
        await listener.until(lambda: listener.said == ["old"])
        listener.hub.drop("old")
        listener.hub.want("new")
        await listener.until(lambda: listener.said == ["old", "new"])
        async with asyncio.timeout(10):
            while "old" in {channel.decode() for channel in await redis.pubsub_channels()}:  # noqa: ASYNC110  (a server)
                await asyncio.sleep(0.01)


async def test_a_killed_connection_is_replaced_and_every_channel_acknowledged_again(redis: Redis) -> None:
    async with listening(redis) as listener:
        channels = [f"news-{number}" for number in range(1200)]
        for channel in channels:
            listener.hub.want(channel)
        await listener.until(lambda: len(listener.said) == len(channels))
        assert await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await listener.until(lambda: sorted(listener.said) == sorted(channels * 2))


async def test_a_connection_that_went_silent_is_replaced(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_relay.api.streaming.subscriptions.CANARY_SECONDS", 0.05)
    monkeypatch.setattr("agent_relay.api.streaming.subscriptions.SILENCE_SECONDS", 0.3)
    proxy = Proxy(redis_url)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with Redis(host=host, port=port, db=int(proxy.database)) as redis, listening(redis) as listener:
            listener.hub.want("news")
            await listener.until(lambda: listener.said == ["news"])
            proxy.swallowing = True
            await redis.publish("news", "never heard")
            await listener.until(lambda: listener.said == ["news", "news"])
            await redis.publish("news", "hello")
            await listener.until(lambda: listener.said == ["news", "news", "hello"])

    assert proxy.swallowed
