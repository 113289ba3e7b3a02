"""The relay under fire: connections killed, Redis emptied, readers that never read, an API told to stop."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest
from redis.asyncio import Redis

from agent_relay.embedded import RedisServer
from tests.support.client import Client, Event, ids, names, rebuilt, texts
from tests.support.eventually import eventually
from tests.support.service import KEYS, Service, serving

KILL_EVERY_SECONDS = 0.05
RUNS_AT_ONCE = 100
POSTS_AT_ONCE = 10
BLOCKED = 200
RECEIVE_BYTES = 4 << 10
STALLED_SECONDS = 20
ONE_MEGABYTE = 1 << 20


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis server that the test may kill."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def fragile(own_redis: RedisServer, database_url: str, tmp_path: Path) -> Iterator[Service]:
    """Processes on a Redis that the test may kill."""
    with serving(database_url, own_redis.url(), tmp_path) as service:
        yield service


async def _kill(redis: Redis) -> int:
    return cast("int", await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub"))


@asynccontextmanager
async def killing_subscribers(url: str) -> AsyncGenerator[list[int]]:
    """Kill every pub/sub connection again and again; yields how many died each time."""
    killed: list[int] = []

    async def kill(redis: Redis) -> None:
        while True:
            killed.append(await _kill(redis))
            await asyncio.sleep(KILL_EVERY_SECONDS)

    async with Redis.from_url(url) as redis:
        killing = asyncio.create_task(kill(redis))
        try:
            yield killed
        finally:
            killing.cancel()


@pytest.mark.parametrize("runs", [200, pytest.param(2000, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
async def test_streams_are_whole_while_their_news_are_cut_off(
    fragile: Service, own_redis: RedisServer, runs: int
) -> None:
    api = fragile.api()
    fragile.worker(SCRIPTED_TOKENS_PER_SECOND="100", WORKER_SLOTS="100")
    followed, posting = asyncio.Semaphore(RUNS_AT_ONCE), asyncio.Semaphore(POSTS_AT_ONCE)

    async def story(number: int) -> list[Event]:
        async with followed:
            async with posting:
                agent_type = ("slow", "bank_support")[number % 2]
                run = await client.run("What is my balance? 1 second", agent_type=agent_type)
            return await client.events(run["id"], sse=number % 3 == 0)

    async with Client(api.url) as client:
        async with killing_subscribers(own_redis.url()) as killed:
            streams = await asyncio.gather(*(story(number) for number in range(runs)))
        ended = [await client.read(events[0]["run_id"]) for events in streams]

    assert sum(killed) > 10
    assert api.log.read_text().count("hub.broken") > 10  # The API's own connection among them.
    for events, run in zip(streams, ended, strict=True):
        assert ids(events) == sorted(set(ids(events)))
        assert names([event for event in events if event["event"] != "text_delta"]) == [
            "message_created",
            "message_started",
            *(["tool_call", "tool_result"] if run["agent_type"] == "bank_support" else []),
            "message_complete",
            "done",
        ]
        assert texts(events)[-1] == true_text(run)


def true_text(run: dict[str, Any]) -> str:
    """Say the run's output as a stream says it."""
    output = run["output"]
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False, separators=(",", ":"))


async def test_a_run_ends_for_its_readers_though_redis_never_comes_back(
    fragile: Service, own_redis: RedisServer
) -> None:
    api = fragile.api()
    fragile.worker()
    async with Client(api.url) as client:
        async with client.asking("1 second", agent_type="slow") as stream:
            events = [await anext(stream) for _ in range(5)]
            own_redis.stop(kill=True)
            events += [event async for event in stream]
        run = await client.read(events[0]["run_id"])

    assert names(events)[-4:] == ["gap", "text_delta", "message_complete", "done"]
    assert texts(events)[-1] == run["output"]


@pytest.mark.parametrize("loss", ["flushed", "killed", "killed before the last delta"])
async def test_streams_outlive_the_loss_of_all_of_redis(fragile: Service, own_redis: RedisServer, loss: str) -> None:
    api = fragile.api()
    fragile.worker()
    agent_types = ["slow", "bank_support", "second_thoughts"]
    query = "What is my balance? 1.5 seconds"
    seen = asyncio.Event()

    async def story(client: Client, agent_type: str, parameters: dict[str, str], *, sse: bool) -> list[Event]:
        events: list[Event] = []
        run = await client.run(query, agent_type=agent_type)
        async with client.following(run["id"], sse=sse, **parameters) as stream:
            async for event in stream:
                events.append(event)
                if agent_type == "slow" and len(rebuilt(events)) > (25 if "last" in loss else 5):
                    seen.set()
        return events

    async with Client(api.url) as client:
        following = asyncio.gather(
            *(
                story(client, kind, parameters, sse=sse)
                for kind in agent_types
                for parameters, sse in (({}, False), ({"deltas": "true"}, True))
            )
        )
        await seen.wait()
        if loss == "flushed":
            async with Redis.from_url(own_redis.url()) as redis:
                await redis.flushall()
        else:
            await asyncio.to_thread(own_redis.restart, kill=True)
        streams = await following
        ended = [await client.read(events[0]["run_id"]) for events in streams]
        late = [await client.events(events[0]["run_id"], after=events[1]["id"]) for events in streams]

    for events, run, rest in zip(streams, ended, late, strict=True):
        assert run["status"] == "succeeded"
        assert names(events)[-2:] == names(rest)[-2:] == ["message_complete", "done"]
        assert ids(events) == sorted(set(ids(events)))
        assert rebuilt(events)[-1] == texts(rest)[-1] == true_text(run)
        missing = {event["id"] for event in events[2:] if event["event"] not in {"text_delta", "gap"}}
        assert "gap" in names(rest) or missing <= {event["id"] for event in rest}


class Reader:
    """A reader with a tiny receive buffer, which reads only when it is told to."""

    def __init__(self, url: str, user_id: str, run_id: str) -> None:
        address = httpx.URL(url)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        self.socket.settimeout(60)
        self.socket.connect((address.host, address.port))
        self.socket.sendall(
            f"GET /api/v1/runs/{run_id}/stream HTTP/1.1\r\nHost: {address.host}\r\n"
            f"X-API-Key: {KEYS['acme']}\r\nX-User-ID: {user_id}\r\n\r\n".encode()
        )

    def drain(self) -> bytes:
        """Read what there is until the server lets go."""
        received = bytearray()
        try:
            while piece := self.socket.recv(1 << 16):
                received += piece
        except ConnectionResetError:
            pass
        return bytes(received)


async def test_readers_that_never_read_cost_little_and_delay_nobody(service: Service) -> None:
    api = service.api(STALLED_READER_SECONDS=str(STALLED_SECONDS))
    service.worker().terminate()  # Until the next one starts, the run waits.
    process = psutil.Process(api.process.pid)
    async with Client(api.url) as client:
        run = await client.run("1 megabyte", agent_type="big")
        before = process.memory_info().rss
        blocked = [Reader(api.url, client.user_id, run["id"]) for _ in range(BLOCKED)]
        following = asyncio.create_task(client.events(run["id"]))
        await asyncio.to_thread(service.worker)
        events = await following
        grown = process.memory_info().rss - before

        assert names(events)[-2:] == ["message_complete", "done"]
        assert sum(map(len, texts(events))) > 2 * ONE_MEGABYTE
        still_there = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
        assert len(still_there) >= BLOCKED  # The one had it all while the others' writes were blocked.
        assert grown < 100 * ONE_MEGABYTE

        eventually(lambda: api.log.read_text().count("reader.stalled") == BLOCKED)
        received = [reader.drain() for reader in blocked]
        for reader in blocked:
            reader.socket.close()
        assert all(b'"done"' not in piece for piece in received)
        rest = await client.events(run["id"], after="1-1")

    assert texts(rest) == texts(events)[-1:]
    assert names(rest)[-1] == "done"


async def test_an_api_told_to_stop_ends_its_streams_at_an_event_boundary(service: Service) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client:
        quiet = await client.run("30 seconds", agent_type="slow")
        busy = await client.run("50 megabytes", agent_type="big")
        stalled = Reader(api.url, client.user_id, busy["id"])
        async with client.following(quiet["id"]) as few, client.following(busy["id"], deltas="true") as many:
            began = [[await anext(stream) for _ in range(5)] for stream in (few, many)]
            stopping = asyncio.create_task(asyncio.to_thread(api.terminate))
            rest = [[event async for event in stream] for stream in (few, many)]  # Each line of it is whole.
            assert await stopping == 0
        stalled.socket.close()
        async with Client(service.api().url, user_id=client.user_id) as other:
            for run, head, tail in zip((quiet, busy), began, rest, strict=True):
                cursor = [*head, *tail][-1]["id"]
                async with other.following(run["id"], after=cursor) as again:
                    assert ids([await anext(again)]) > ids([*head, *tail])[-1:]
                await other.http.post(f"/runs/{run['id']}/cancel")
