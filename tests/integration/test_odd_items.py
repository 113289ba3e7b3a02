"""What stands in Redis is input: an item that cannot be read is refused, counted and said once, and spoils no other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from redis.asyncio import Redis

from agent_relay.api.streaming.relay import Relay
from agent_relay.api.streaming.run_feed import Event, RunFeed, Text
from agent_relay.api.streaming.subscriptions import Subscriptions
from agent_relay.shared import bad_input
from agent_relay.shared.bad_input import BadInput
from agent_relay.shared.database import connect
from agent_relay.shared.event_log import BEFORE_ALL, Append, Entry, EventLog, Id, Outcome
from agent_relay.shared.metrics import REGISTRY
from agent_relay.shared.queue import Lane, QueueEntry, RunQueue
from agent_relay.shared.redis_names import DEFAULT
from agent_relay.shared.rows import RunRow
from agent_relay.shared.settings import Settings
from agent_relay.worker.execution.publisher import Publisher
from tests.support.client import Client, names, texts
from tests.support.eventually import eventually, soon
from tests.support.rows import run_row
from tests.support.service import Service

TTL = 60
LANE = DEFAULT.lane("default", Lane.INTERACTIVE)
NO_IDS = [
    b"garbage",
    b"",
    b"\xff\xfe",
    b"\x00",
    b'{"run_id": 1}',
    b"1" * 100_000,
    str(uuid4()).encode() + b"\nworker.dead",
]
NO_CALLS = [b"", b"garbage", b"\xff\xfe:1", str(uuid4()).encode(), b"%s:x" % str(uuid4()).encode(), b":1", b"{run}:1"]
NO_JOBS = [b"", b"garbage", b"\xff\xfe", b"[]", b'{"f":[],"a":[],"k":{},"t":1,"et":1}', b'{"f":"answer","a":1,"k":2}']
NO_ENTRIES = [
    b"garbage",
    b"\xff\xfe",
    b"[1, 2]",
    b"null",
    b'{"text": 5}',
    b'{"drop": -1, "append": "x"}',
    b'{"event": "tool_call"}',
    b'{"event": "progress", "name": "looked"}',
    b'{"event": "reasoning_delta", "part": 1}',
    b'{"event": "reasoning_delta", "part": "1", "text": "Hm"}',
    b'{"event": "reasoning_delta", "part": 1, "drop": -1, "append": "m"}',
    b'{"event": "message_complete", "usage": {}, "status": "succeeded", "last": 3}',
    b'{"event": ["message_started"]}',
    b"[" * 5000,
]


def refused(kind: BadInput) -> float:
    """Read how many were refused in this process."""
    return REGISTRY.get_sample_value("agent_relay_bad_input_total", {"kind": kind}) or 0


@pytest.fixture
async def redis(redis_url: str) -> AsyncGenerator[Redis]:
    """A Redis of the test's own."""
    async with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def relay(redis: Redis, redis_url: str, database_url: str) -> AsyncGenerator[Relay]:
    """A relay at work."""
    engine = connect(Settings(database_url=database_url, redis_url=redis_url))
    relay = Relay(engine, redis, EventLog(redis), keepalive_seconds=15)
    relaying = asyncio.create_task(relay.run())
    yield relay
    assert not relaying.done()
    relaying.cancel()
    await engine.dispose()


def running() -> RunRow:
    """Make the row of a run at its first attempt."""
    return run_row()


async def wrote(redis: Redis, run_id: UUID, *numbers: int) -> None:
    """Append texts of the first attempt."""
    for n in numbers:
        before = Id(1, n - 1) if n > 1 else BEFORE_ALL
        append = Append(run_id, before, [Entry(Id(1, n), {"text": f"text {n}"})], TTL)
        assert await EventLog(redis).append([append]) == [Outcome.APPENDED]


async def told(feed: RunFeed, whole: str) -> list[str]:
    """Wait until a feed has a text; returns what a reader from the start is told."""
    async with asyncio.timeout(10):
        while not any(isinstance(item, Text) and item.whole == whole for item in feed.after(BEFORE_ALL)):
            await feed.wait()
    return [item.name if isinstance(item, Event) else item.whole for item in feed.after(BEFORE_ALL)]


async def test_a_followed_channel_may_carry_anything(redis: Redis, relay: Relay) -> None:
    run, other = running(), running()
    before = refused(BadInput.LOG_ENTRY)
    async with relay.follow(run) as feed, relay.follow(other) as bystander:
        await wrote(redis, run.id, 1)
        await told(feed, "text 1")
        for garbage in NO_ENTRIES:
            await redis.publish(DEFAULT.log(run.id), b"1-2 " + garbage)
        for garbage in (b"", b"\xff", b"1-2", b"x-y {}", b'-1-2 {"text": ""}', b'99999999999-1 {"text": "from afar"}'):
            await redis.publish(DEFAULT.log(run.id), garbage)
        await wrote(redis, run.id, 2)
        await wrote(redis, other.id, 1)

        assert await told(feed, "text 2") == ["message_created", "text 2"]
        assert await told(bystander, "text 1") == ["message_created", "text 1"]
    assert refused(BadInput.LOG_ENTRY) - before >= len(NO_ENTRIES) + 6
    assert relay.read == 0  # Nothing of it made anybody read a log again.


async def test_an_entry_that_cannot_be_read_is_a_hole_and_no_more(redis: Redis, relay: Relay) -> None:
    run, other = running(), running()
    await wrote(redis, run.id, 1)
    await redis.xadd(DEFAULT.log(run.id), {b"e": b"garbage"}, id="1-2")
    await redis.xadd(DEFAULT.log(run.id), {b"other": b"field"}, id="1-3")
    await wrote(redis, other.id, 1)
    async with relay.follow(run) as feed, relay.follow(other) as bystander:
        await told(feed, "text 1")
        assert await told(bystander, "text 1") == ["message_created", "text 1"]
        append = Append(run.id, Id(1, 3), [Entry(Id(1, 4), {"text": "text 4"})], TTL)
        assert await EventLog(redis).append([append]) == [Outcome.APPENDED]

        assert await told(feed, "text 4") == ["message_created", "gap", "text 4"]


async def test_an_event_of_a_newer_version_keeps_its_place_and_is_not_shown(redis: Redis, relay: Relay) -> None:
    run, before = running(), refused(BadInput.UNKNOWN_EVENT)
    newer = Append(run.id, Id(1, 1), [Entry(Id(1, 2), {"event": "surprise", "data": [{"prompt": "?"}]})], TTL)
    await wrote(redis, run.id, 1)
    await EventLog(redis).append([newer])
    async with relay.follow(run) as feed:
        await wrote(redis, run.id, 3)
        assert await told(feed, "text 3") == ["message_created", "text 3"]
        await EventLog(redis).append([Append(run.id, Id(1, 3), [Entry(Id(1, 4), {"event": "unheard_of"})], TTL)])
        await wrote(redis, run.id, 5)

        assert await told(feed, "text 5") == ["message_created", "text 5"]
        assert feed.top == Id(1, 5)
        assert feed.recall(Id(1, 1), await EventLog(redis).read(run.id)) == []
    assert refused(BadInput.UNKNOWN_EVENT) > before


@pytest.mark.parametrize("holds", ["a string", "a list", "an id of another form", "a stream that was trimmed"])
async def test_a_log_key_of_another_type_is_empty_to_readers_and_removed_by_the_writer(
    redis: Redis, relay: Relay, holds: str
) -> None:
    run, other = running(), running()
    match holds:
        case "a string":
            await redis.set(DEFAULT.log(run.id), "garbage")
        case "a list":
            await cast("Awaitable[int]", redis.lpush(DEFAULT.log(run.id), "garbage"))
        case "an id of another form":
            await redis.xadd(DEFAULT.log(run.id), {"e": "garbage"})  # Its id is a time.
        case _:
            await redis.xadd(DEFAULT.log(run.id), {"e": "{}"}, id="9-9")
            await redis.xtrim(DEFAULT.log(run.id), maxlen=0)
    await wrote(redis, other.id, 1)
    async with relay.follow(run) as feed, relay.follow(other) as bystander:
        assert await told(bystander, "text 1") == ["message_created", "text 1"]
        outcomes = await EventLog(redis).append(
            [
                Append(run.id, BEFORE_ALL, [Entry(Id(1, 1), {"text": "text 1"})], TTL),
                Append(other.id, Id(1, 1), [Entry(Id(1, 2), {"text": "text 2"})], TTL),
            ]
        )

        assert outcomes == [Outcome.APPENDED, Outcome.APPENDED]
        assert await told(feed, "text 1") == ["message_created", "text 1"]
        assert await told(bystander, "text 2") == ["message_created", "text 2"]
    assert [entry.id for entry in await EventLog(redis).read(run.id)] == [Id(1, 1)]


async def test_a_log_that_was_replaced_under_a_writer_is_lost_to_it(redis: Redis) -> None:
    run = running()
    await wrote(redis, run.id, 1)
    await redis.set(DEFAULT.log(run.id), "garbage")

    append = Append(run.id, Id(1, 1), [Entry(Id(1, 2), {"text": "text 2"})], TTL)
    assert await EventLog(redis).append([append]) == [Outcome.LOST]
    assert not await redis.exists(DEFAULT.log(run.id))


async def test_an_id_that_no_attempt_wrote_ends_no_attempt(redis: Redis) -> None:
    async def is_mine(_run_id: UUID, _attempt: int) -> bool:
        return True

    publisher, fenced = Publisher(EventLog(redis), is_mine), list[UUID]()
    publishing = asyncio.create_task(publisher.run())
    run_id = uuid4()
    telling = publisher.begin(run_id, 1, TTL, lambda: fenced.append(run_id))
    telling.show("Hello")
    await telling.flushed()
    await redis.xadd(DEFAULT.log(run_id), {"e": "garbage"}, id="7-0")

    telling.show("Hello world")
    await telling.flushed()

    assert not fenced
    assert [entry.text for entry in await EventLog(redis).read(run_id)] == ["Hello world"]
    publishing.cancel()


async def test_who_hears_badly_does_not_end_the_connection_of_the_others(redis: Redis) -> None:
    heard, subscribed = list[str](), list[str]()

    def hear(channel: str, _message: bytes) -> None:
        if channel == "bad":
            raise KeyError(channel)
        heard.append(channel)

    hub = Subscriptions(redis, DEFAULT, hear, subscribed.append)
    hub.want("bad")
    hub.want("good")
    listening = asyncio.create_task(hub.run())
    await soon(lambda: _is(len(subscribed) == 2))
    for channel in ("bad", "good", "bad", "good"):
        await redis.publish(channel, b"")
    await soon(lambda: _is(len(heard) == 2))

    assert len(subscribed) == 2  # Again after each reconnect.
    listening.cancel()


async def _is(so: bool) -> bool:
    return so


@pytest.mark.parametrize("wrong", [LANE, f"{LANE}:turns"])
async def test_a_lane_key_of_another_type_is_removed(redis: Redis, wrong: str) -> None:
    await cast("Awaitable[int]", redis.lpush(wrong, "garbage"))
    call = QueueEntry(uuid4(), 1, "default", Lane.INTERACTIVE, "acme")
    lanes = RunQueue(redis)

    assert await lanes.absent("default", Lane.INTERACTIVE, [call.member]) == [call.member]
    assert await lanes.ring([call])
    assert await redis.zrange(LANE, 0, -1) == [call.member.encode()]


async def test_a_kind_is_counted_each_time_and_said_once_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bad_input, "_said", {})
    caplog.set_level(logging.WARNING)
    before = refused(BadInput.CANCEL)
    for number in range(1000):
        bad_input.refuse(BadInput.CANCEL, "cancels", f"{number}\nworker.ready " + "x" * 10_000)
    bad_input.refuse(BadInput.JOB, "arq:job:1", b"\xff")

    assert refused(BadInput.CANCEL) - before == 1000
    assert len(caplog.messages) == 2
    assert all("\n" not in line and len(line) < 600 for line in caplog.messages)

    monkeypatch.setattr(bad_input, "SAY_AGAIN_SECONDS", 0)
    bad_input.refuse(BadInput.CANCEL, "cancels", "again")
    assert caplog.messages[-1].endswith("unsaid=999")


async def test_a_worker_lives_with_what_is_published_to_it_and_queued_for_it(service: Service, redis: Redis) -> None:
    service.worker().terminate()  # It has registered the agents.
    api = service.api()
    async with Client(api.url) as client:
        accepted = [await client.run("first", agent_type="echo") for _ in NO_JOBS]
        for run, garbage in zip(accepted, NO_JOBS, strict=True):
            await redis.set(f"{DEFAULT.jobs}{run['id']}:1", garbage)
        missing = await client.run("job is missing", agent_type="echo")
        odd = await client.run("job is a list", agent_type="echo")
        await redis.delete(f"{DEFAULT.jobs}{missing['id']}:1", f"{DEFAULT.jobs}{odd['id']}:1")
        await cast("Awaitable[int]", redis.lpush(f"{DEFAULT.jobs}{odd['id']}:1", "garbage"))
        await redis.zadd(LANE, dict.fromkeys(NO_CALLS, -1.0))
        worker = service.worker()
        eventually(lambda: _stands(worker.log, "kind=queue_entry"))
        for run in (*accepted, missing, odd):  # A sweeper rings again for those whose jobs were spoilt.
            assert (await client.ended(run["id"]))["status"] == "succeeded"

        for garbage in NO_IDS:
            await redis.publish(DEFAULT.cancels, garbage)
        eventually(lambda: _stands(worker.log, "kind=cancel"))
        await redis.set(LANE, "garbage")
        assert (await client.ask("hello", thread_id=await client.thread("echo"))).json()[
            "response"
        ] == "You said: hello"

        slow = await client.run("tick 600", agent_type="slow")
        async with client.following(slow["id"]) as stream:
            async for event in stream:
                if event["event"] == "text_delta":
                    break
        assert (await client.http.post(f"/runs/{slow['id']}/cancel?wait=30")).json()["status"] == "cancelled"

    said = worker.log.read_text()
    assert worker.process.poll() is None
    assert said.count("kind=cancel ") == said.count("kind=queue_entry ") == said.count("kind=job ") == 1
    assert "Traceback" not in said


async def test_a_status_of_a_newer_version_is_shown_as_it_is(service: Service, database_url: str) -> None:
    worker = service.worker()
    async with Client(service.api().url) as client:
        run = await client.run("hello", agent_type="echo")
        batch = (
            await client.http.post(
                "/batches", json={"agent_type": "echo", "items": [{"custom_id": "1", "query": "one"}]}
            )
        ).json()
        await client.ended(run["id"])
        worker.terminate()
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("UPDATE runs SET status = 'paused'")
            connection.execute("UPDATE batches SET status = 'paused'")
        shown = await client.http.get(f"/runs/{run['id']}")
        listed = await client.http.get("/runs")
        batches = await client.http.get(f"/batches/{batch['id']}")

    assert (shown.status_code, shown.json()["status"]) == (200, "paused")
    assert {item["status"] for item in listed.json()["items"]} == {"paused"}
    assert (batches.status_code, batches.json()["status"]) == (200, "paused")


async def test_streams_go_on_over_garbage_in_the_log_of_a_run(service: Service, redis: Redis) -> None:
    api = service.api()
    worker = service.worker()
    async with Client(api.url) as client:
        first = await client.run("tick 2", agent_type="slow")
        second = await client.run("tick 2", agent_type="slow")
        async with client.following(first["id"]) as one, client.following(second["id"]) as other:
            seen = [await anext(one), await anext(one), await anext(one)]
            await redis.xadd(DEFAULT.log(UUID(first["id"])), {"e": "garbage"}, id="40-0")
            await redis.publish(DEFAULT.log(UUID(first["id"])), b"\xff garbage")
            seen += [event async for event in one]
            bystander = [event async for event in other]
        ended = await client.ended(first["id"])
        log = await redis.xrange(DEFAULT.log(UUID(first["id"])))

    assert ended["status"] == "succeeded"
    assert ended["attempt"] == 1
    assert names(seen)[-2:] == ["message_complete", "done"]
    assert texts(seen)[-1] == ended["output"]
    assert names(bystander) == ["message_created", "message_started", "text_delta", "message_complete", "done"]
    assert log[-1][0] == b"2-0"
    assert "Traceback" not in api.log.read_text() + worker.log.read_text()


async def test_a_batch_is_followed_over_garbage_on_its_channel(service: Service, redis: Redis) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client:
        items = [{"custom_id": str(number), "query": "tick 1"} for number in range(3)]
        batch = (await client.http.post("/batches", json={"agent_type": "slow", "items": items})).json()
        url = f"/batches/{batch['id']}/results?follow=true"
        async with client.http.stream("GET", url) as response:
            lines = response.aiter_lines()
            first = await anext(lines)
            for garbage in NO_IDS:
                await redis.publish(DEFAULT.batch(UUID(batch["id"])), garbage)
            rest = [line async for line in lines if line]

    assert "counts" in first or "cursor" in first
    assert sum('"cursor"' in line for line in [first, *rest]) == len(items)
    assert '"completed"' in rest[-1]
    assert "Traceback" not in api.log.read_text()


def _stands(log: Any, words: str) -> bool:
    return words in log.read_text()
