"""The order of a lane: tenants alternate, and who has waited already goes first."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from redis.asyncio import Redis

from shared.clock import new_id
from shared.lanes import Lane, Lanes, Ring, key, run_of


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    """A Redis of the test's own."""
    async with Redis.from_url(redis_url) as client:
        yield client


def rings(tenant: str, count: int, *, first: bool = False) -> list[Ring]:
    """Calls for as many runs of a tenant."""
    return [Ring(new_id(), 1, "default", Lane.INTERACTIVE, tenant, first) for _ in range(count)]


async def order(redis: Redis, calls: list[Ring]) -> list[str]:
    """Pop everything, as workers do; returns whose turn it was."""
    tenants = {call.run_id: call.tenant for call in calls}
    popped: list[str] = []
    while member := await redis.zpopmin(key("default", Lane.INTERACTIVE)):
        popped.append(tenants[run_of(member[0][0])])
    return popped


async def test_a_tenant_is_answered_in_the_order_of_its_calls(redis: Redis) -> None:
    calls = rings("acme", 5)
    await Lanes(redis).ring(calls)

    assert [run_of(member) for member in await redis.zrange(key("default", Lane.INTERACTIVE), 0, -1)] == [
        call.run_id for call in calls
    ]


async def test_tenants_alternate_however_many_calls_one_of_them_has(redis: Redis) -> None:
    many, few = rings("many", 100), rings("few", 3)
    lanes = Lanes(redis)
    await lanes.ring(many)
    await lanes.ring(few)

    popped = await order(redis, many + few)

    assert popped[:8].count("few") == 3
    assert len(popped) == 103


async def test_who_waited_already_goes_first(redis: Redis) -> None:
    waiting, back = rings("acme", 3), rings("other", 2, first=True)
    lanes = Lanes(redis)
    await lanes.ring(waiting)
    await lanes.ring(back)

    assert await order(redis, waiting + back) == ["other"] * 2 + ["acme"] * 3


async def test_a_busy_past_is_not_held_against_a_tenant(redis: Redis) -> None:
    lanes = Lanes(redis)
    past = rings("busy", 50)
    await lanes.ring(past)
    await order(redis, past)
    now, newcomer = rings("busy", 2), rings("new", 2)
    await lanes.ring(now)
    await lanes.ring(newcomer)

    assert await order(redis, now + newcomer) in (["busy", "new", "busy", "new"], ["busy", "busy", "new", "new"])


async def test_ringing_survives_a_redis_that_has_forgotten_the_script(redis: Redis) -> None:
    await redis.script_flush()

    assert await Lanes(redis).ring(rings("acme", 3))
    assert await redis.zcard(key("default", Lane.INTERACTIVE)) == 3
