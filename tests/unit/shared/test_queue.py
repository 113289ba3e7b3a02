"""The order of a lane: tenants alternate, and who has waited already goes first."""

from __future__ import annotations

import itertools
from uuid import UUID

from redis.asyncio import Redis

from agent_relay.shared.queue import Lane, QueueEntry, RunQueue, run_of
from agent_relay.shared.redis_names import DEFAULT

_ids = itertools.count(1)


def rings(tenant: str, count: int, *, first: bool = False, lane: Lane = Lane.INTERACTIVE) -> list[QueueEntry]:
    """Calls for as many runs of a tenant, accepted one after the other."""
    return [QueueEntry(UUID(int=next(_ids)), 1, "default", lane, tenant, first) for _ in range(count)]


async def order(redis: Redis, calls: list[QueueEntry]) -> list[str]:
    """Pop everything, as workers do; returns whose turn it was."""
    tenants = {call.run_id: call.tenant for call in calls}
    popped: list[str] = []
    while member := await redis.zpopmin(DEFAULT.lane("default", Lane.INTERACTIVE)):
        popped.append(tenants[run_of(member[0][0])])
    return popped


async def test_a_tenant_is_answered_in_the_order_of_its_calls(redis: Redis) -> None:
    calls = rings("acme", 5)
    await RunQueue(redis).ring(calls)

    assert [run_of(member) for member in await redis.zrange(DEFAULT.lane("default", Lane.INTERACTIVE), 0, -1)] == [
        call.run_id for call in calls
    ]


async def test_tenants_alternate_however_many_calls_one_of_them_has(redis: Redis) -> None:
    many, few = rings("many", 100), rings("few", 3)
    lanes = RunQueue(redis)
    await lanes.ring(many)
    await lanes.ring(few)

    popped = await order(redis, many + few)

    assert popped[:8].count("few") == 3
    assert len(popped) == 103


async def test_who_waited_already_goes_first(redis: Redis) -> None:
    waiting, back = rings("acme", 3), rings("other", 2, first=True)
    lanes = RunQueue(redis)
    await lanes.ring(waiting)
    await lanes.ring(back)

    assert await order(redis, waiting + back) == ["other"] * 2 + ["acme"] * 3


async def test_a_busy_past_is_not_held_against_a_tenant(redis: Redis) -> None:
    lanes = RunQueue(redis)
    past = rings("busy", 50)
    await lanes.ring(past)
    await order(redis, past)
    now, newcomer = rings("busy", 2), rings("new", 2)
    await lanes.ring(now)
    await lanes.ring(newcomer)

    assert await order(redis, now + newcomer) == ["new", "busy", "new", "busy"]


async def test_ringing_survives_a_redis_that_has_forgotten_the_script(redis: Redis) -> None:
    await redis.script_flush()

    assert await RunQueue(redis).ring(rings("acme", 3))
    assert await redis.zcard(DEFAULT.lane("default", Lane.INTERACTIVE)) == 3


async def test_a_tenant_that_comes_new_is_next(redis: Redis) -> None:
    many, one = rings("many", 200), rings("one", 1)
    lanes = RunQueue(redis)
    await lanes.ring(many)
    assert len(await redis.zpopmin(DEFAULT.lane("default", Lane.INTERACTIVE), 50)) == 50
    await lanes.ring(one)

    assert (await order(redis, many + one))[:3] == ["one", "many", "many"]


async def test_tenants_that_come_new_go_in_the_order_of_their_coming_and_once(redis: Redis) -> None:
    many, new = rings("many", 100), [rings(f"new{number}", 2) for number in range(3)]
    lanes = RunQueue(redis)
    await lanes.ring(many)
    for calls in new:
        await lanes.ring(calls)

    popped = await order(redis, many + [call for calls in new for call in calls])
    assert popped[:8] == ["new0", "new1", "new2", "many", "new0", "new1", "new2", "many"]


async def test_a_tenant_that_comes_again_and_again_alternates_with_one_that_waits(redis: Redis) -> None:
    many, lanes = rings("many", 20), RunQueue(redis)
    await lanes.ring(many)
    waiting = {call.run_id for call in many}
    popped: list[str] = []
    await lanes.ring(rings("again", 1))
    for _ in range(12):
        ((member, _),) = await redis.zpopmin(DEFAULT.lane("default", Lane.INTERACTIVE))
        is_many = run_of(member) in waiting
        popped.append("many" if is_many else "again")
        if not is_many:
            await lanes.ring(rings("again", 1))

    assert popped == ["again", "many"] * 6


async def test_what_was_given_back_goes_in_the_order_of_its_acceptance(redis: Redis) -> None:
    lanes = RunQueue(redis)
    back = rings("acme", 5, first=True)
    for call in reversed(back):
        await lanes.ring([call])

    assert [
        run_of(member) for member in await redis.zrange(DEFAULT.lane("default", Lane.INTERACTIVE), 0, -1)
    ] == sorted(call.run_id for call in back)


async def test_who_went_first_puts_no_newcomer_before_those_who_wait(redis: Redis) -> None:
    waiting, back, newcomer = rings("acme", 10), rings("back", 20, first=True), rings("new", 5)
    lanes = RunQueue(redis)
    await lanes.ring(waiting)
    assert len(await redis.zpopmin(DEFAULT.lane("default", Lane.INTERACTIVE), 5)) == 5
    await lanes.ring(back)
    await lanes.ring(newcomer)

    assert await order(redis, waiting + back + newcomer) == ["back"] * 20 + ["new", "acme"] * 5


async def test_a_position_counts_what_goes_before(redis: Redis) -> None:
    interactive, batch = rings("acme", 3), rings("acme", 3, lane=Lane.BATCH)
    lanes = RunQueue(redis)
    await lanes.ring(interactive)
    await lanes.ring(batch)

    positions = await lanes.positions([*interactive, *batch, *rings("acme", 1)])

    assert [positions[call.run_id] for call in interactive] == [0, 1, 2]
    assert [positions[call.run_id] for call in batch] == [3, 4, 5]
    assert len(positions) == 6


async def test_a_call_that_was_taken_back_leaves_nothing_behind(redis: Redis) -> None:
    lanes = RunQueue(redis)
    calls = rings("acme", 5)
    await lanes.ring(calls)
    await lanes.silence(calls[1:])

    assert await redis.zrange(DEFAULT.lane("default", Lane.INTERACTIVE), 0, -1) == [calls[0].member.encode()]
    assert await redis.keys(f"{DEFAULT.jobs}*") == [f"{DEFAULT.jobs}{calls[0].member}".encode()]


async def test_many_calls_of_one_tenant_have_turns_one_after_the_other(redis: Redis) -> None:
    lanes = RunQueue(redis)
    await lanes.ring(rings("many", 1200))
    await lanes.ring(rings("few", 2))
    scores = [
        score for _, score in await redis.zrange(DEFAULT.lane("default", Lane.INTERACTIVE), 0, -1, withscores=True)
    ]

    assert sorted(scores) == sorted([*range(1200), -0.5, 0])
    assert len(await redis.keys(f"{DEFAULT.jobs}*")) == 1202


async def test_who_follows_a_thread_hears_of_a_run_in_it(redis: Redis) -> None:
    thread_id = UUID(int=1)
    async with redis.pubsub(ignore_subscribe_messages=True) as heard:
        await heard.subscribe(DEFAULT.thread(thread_id))
        await heard.get_message(timeout=5)
        await RunQueue(redis).ring(rings("acme", 1))
        await RunQueue(redis).ring(rings("acme", 1), in_thread=thread_id)

        assert (await heard.get_message(timeout=5) or {})["channel"] == DEFAULT.thread(thread_id).encode()
        assert await heard.get_message() is None
