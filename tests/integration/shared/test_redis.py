"""The few connections of a process to Redis, and who has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from agent_relay.shared.fair_turns import CALLER
from agent_relay.shared.redis import RedisError, connect_few
from agent_relay.shared.settings import Settings


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    """A client with two connections."""
    client = connect_few(Settings(database_url="postgresql://none", redis_url=redis_url), 2)
    yield client
    await client.aclose(close_connection_pool=True)


async def test_connections_go_round_among_tenants(redis: Redis) -> None:
    """Fifty calls of one tenant wait for two connections; a call of another is served next but one."""
    served: list[str] = []
    pool: Any = redis.connection_pool

    async def call(tenant: str) -> None:
        CALLER.set((tenant, "somebody"))
        connection = await pool.get_connection()
        served.append(tenant)
        await asyncio.sleep(0)
        await pool.release(connection)

    loud = [asyncio.create_task(call("loud")) for _ in range(50)]
    other = asyncio.create_task(call("other"))
    await asyncio.gather(other, *loud)
    assert served.index("other") <= 5


async def test_all_connections_come_back_however_a_call_ends(redis: Redis) -> None:
    await redis.set("text", "x")
    for _ in range(5):
        with pytest.raises(RedisError):
            await redis.lpush("text", "y")  # pyright: ignore[reportGeneralTypeIssues]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await redis.blpop(["nothing"])  # pyright: ignore[reportGeneralTypeIssues]
    async with redis.pubsub() as listener:
        await listener.subscribe("news")
        assert await redis.get("text") == b"x"
    async with asyncio.timeout(5):
        await asyncio.gather(*(redis.get("text") for _ in range(20)))


@pytest.mark.parametrize("turns", range(5))
async def test_a_command_that_is_about_to_be_sent_as_all_connections_are_given_up_fails_as_on_a_closed_one(
    redis: Redis, turns: int
) -> None:
    pool: Any = redis.connection_pool
    renewal = pool.connection_kwargs["parser_class"].args[0]
    connection = await pool.get_connection()
    sending = asyncio.create_task(connection.send_command("PING"))
    for _ in range(turns):
        await asyncio.sleep(0)
    await renewal._renew()
    with suppress(RedisError):
        await sending
    await pool.release(connection)

    assert await redis.get("nothing") is None
