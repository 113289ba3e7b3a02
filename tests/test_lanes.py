"""The order of a lane: tenants alternate, and who has waited already goes first."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator
from uuid import UUID

import pytest
from redis.asyncio import Redis

from shared.lanes import Lane, Lanes, Ring, run_of
from shared.names import DEFAULT

_ids = itertools.count(1)


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    """A Redis of the test's own."""
    async with Redis.from_url(redis_url) as client:
        yield client


def rings(tenant: str, count: int, *, first: bool = False, lane: Lane = Lane.INTERACTIVE) -> list[Ring]:
    """Calls for as many runs of a tenant, accepted one after the other."""
    return [Ring(UUID(int=next(_ids)), 1, "default", lane, tenant, first) for _ in range(count)]


async def order(redis: Redis, calls: list[Ring]) -> list[str]:
    """Pop everything, as workers do; returns whose turn it was."""
    tenants = {call.run_id: call.tenant for call in calls}
    popped: list[str] = []
    while member := await redis.zpopmin(DEFAULT.lane("default", Lane.INTERACTIVE)):
        popped.append(tenants[run_of(member[0][0])])
    return popped


async def test_a_tenant_is_answered_in_the_order_of_its_calls(redis: Redis) -> None:
    calls = rings("acme", 5)
    await Lanes(redis).ring(calls)

    assert [run_of(member) for member in await redis.zrange(DEFAULT.lane("default", Lane.INTERACTIVE), 0, -1)] == [
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

    assert await order(redis, now + newcomer) == ["busy", "new", "busy", "new"]


async def test_ringing_survives_a_redis_that_has_forgotten_the_script(redis: Redis) -> None:
    await redis.script_flush()

    assert await Lanes(redis).ring(rings("acme", 3))
    assert await redis.zcard(DEFAULT.lane("default", Lane.INTERACTIVE)) == 3


async def test_who_comes_new_is_next_but_one(redis: Redis) -> None:
    many, one = rings("many", 200), rings("one", 1)
    lanes = Lanes(redis)
    await lanes.ring(many)
    assert len(await redis.zpopmin(DEFAULT.lane("default", Lane.INTERACTIVE), 50)) == 50
    await lanes.ring(one)

    assert (await order(redis, many + one))[:3] == ["many", "one", "many"]


async def test_what_was_given_back_goes_in_the_order_of_its_acceptance(redis: Redis) -> None:
    lanes = Lanes(redis)
    back = rings("acme", 5, first=True)
    for call in reversed(back):
        await lanes.ring([call])

    assert [
        run_of(member) for member in await redis.zrange(DEFAULT.lane("default", Lane.INTERACTIVE), 0, -1)
    ] == sorted(call.run_id for call in back)


async def test_who_went_first_puts_no_newcomer_before_those_who_wait(redis: Redis) -> None:
    waiting, back, newcomer = rings("acme", 10), rings("back", 20, first=True), rings("new", 5)
    lanes = Lanes(redis)
    await lanes.ring(waiting)
    assert len(await redis.zpopmin(DEFAULT.lane("default", Lane.INTERACTIVE), 5)) == 5
    await lanes.ring(back)
    await lanes.ring(newcomer)

    assert await order(redis, waiting + back + newcomer) == ["back"] * 20 + ["acme", "new"] * 5


async def test_a_position_counts_what_goes_before(redis: Redis) -> None:
    interactive, batch = rings("acme", 3), rings("acme", 3, lane=Lane.BATCH)
    lanes = Lanes(redis)
    await lanes.ring(interactive)
    await lanes.ring(batch)

    positions = await lanes.positions([*interactive, *batch, *rings("acme", 1)])

    assert [positions[call.run_id] for call in interactive] == [0, 1, 2]
    assert [positions[call.run_id] for call in batch] == [3, 4, 5]
    assert len(positions) == 6


async def test_a_call_that_was_taken_back_leaves_nothing_behind(redis: Redis) -> None:
    lanes = Lanes(redis)
    calls = rings("acme", 5)
    await lanes.ring(calls)
    await lanes.silence(calls[1:])

    assert await redis.zrange(DEFAULT.lane("default", Lane.INTERACTIVE), 0, -1) == [calls[0].member.encode()]
    assert await redis.keys(f"{DEFAULT.jobs}*") == [f"{DEFAULT.jobs}{calls[0].member}".encode()]


async def test_many_calls_of_one_tenant_have_turns_one_after_the_other(redis: Redis) -> None:
    lanes = Lanes(redis)
    await lanes.ring(rings("many", 1200))
    await lanes.ring(rings("few", 2))
    scores = [
        score for _, score in await redis.zrange(DEFAULT.lane("default", Lane.INTERACTIVE), 0, -1, withscores=True)
    ]

    assert sorted(scores) == sorted([*range(1200), 0, 1])
    assert len(await redis.keys(f"{DEFAULT.jobs}*")) == 1202
