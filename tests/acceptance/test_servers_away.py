"""PostgreSQL away is a refusal for now, Redis away is hardly noticed, and when they are back, so is the service."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from agent_relay.embedded import PostgresServer, RedisServer
from agent_relay.shared.migrations.upgrade import upgrade
from agent_relay.worker.execution.job import AWAY_ATTEMPTS
from tests.support.client import Client, names
from tests.support.eventually import DEADLINE_SECONDS, eventually, soon
from tests.support.problems import problem_of
from tests.support.service import OPERATOR_KEY, Running, Service, serving

USER = "0198c5a4-7c9e-7000-8000-00000000000a"
ID = "0198c5a4-7c9e-7000-8000-000000000000"
QUERY = {"agent_type": "echo", "query": "hello"}
BODIES = {
    "/threads": {"agent_type": "echo"},
    "/threads/{thread_id}": {"title": "Another"},
    "/threads/{thread_id}/fork": {},
    "/runs": QUERY,
    "/runs/{run_id}/messages": {"query": "hello"},
    "/runs/{run_id}/answers": {"answers": [{"request_id": "one", "approve": True}]},
    "/agent/query": QUERY,
    "/agent/stream": QUERY,
    "/batches": {"agent_type": "echo", "items": [{"custom_id": "one", "query": "hello"}]},
    "/schedules": {"cron": "@daily", **QUERY},
    "/schedules/{schedule_id}": {"paused": True},
    "/user-tokens": {"user_id": USER, "ttl_s": 60},
    "/operator/dead-letters/requeue": {"run_ids": [ID]},
    "/operator/keys": {"tenant": "acme"},
    "/operator/keys/{key_id}/rotate": {},
}
SECONDS = 10
"""What a caller may wait for a refusal."""


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL to be stopped, with a migrated database."""
    with PostgresServer(durable=False) as server:
        server.ensure_database()
        upgrade(server.url().replace("postgresql://", "postgresql+psycopg://"))
        yield server


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis to be stopped."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_service(own_postgres: PostgresServer, own_redis: RedisServer, tmp_path: Path) -> Iterator[Service]:
    """Processes on servers of their own."""
    with serving(own_postgres.url(), own_redis.url(0), tmp_path) as service:
        yield service


@pytest.fixture
async def caller(own_service: Service) -> AsyncGenerator[Client]:
    """A user of an API with a worker beside it."""
    api = own_service.api()
    own_service.worker()
    async with Client(api.url) as client:
        yield client


async def ready_again(client: Client) -> None:
    """Wait until the process wants traffic; what is new at a thawed server comes a moment after it."""

    async def wanted() -> bool:
        return (await ready(client)).is_success

    await soon(wanted)
    assert (await ready(client)).json() == {"status": "ok", "degraded": []}


async def every_call(client: Client) -> list[tuple[str, httpx.Response]]:
    """Call everything there is."""
    root = str(client.http.base_url).removesuffix("/api/v1/")
    paths = (await client.http.get(f"{root}/openapi.json")).json()["paths"]
    answers: list[tuple[str, httpx.Response]] = []
    for path, methods in paths.items():
        for method in methods:
            body = BODIES.get(path.removeprefix("/api/v1")) if method in {"post", "patch"} else None
            url = root + re.sub(r"\{\w+\}", ID, path)
            url += f"?user_id={USER}" if method == "delete" and path.endswith("/user-tokens") else ""
            headers = {"X-API-Key": OPERATOR_KEY} if "/operator/" in path else {}
            sent: dict[str, Any] = {"json": body}
            if (method, path) == ("post", "/api/v1/files"):
                sent, headers = {"content": "hello"}, {"Content-Type": "text/plain"}
            answer = await client.http.request(method, url, **sent, headers=headers, timeout=SECONDS)
            answers.append((f"{method} {path}", answer))
    return answers


async def ready(client: Client) -> httpx.Response:
    """Ask whether the process should get traffic."""
    return await client.http.get(client.http.base_url.join("/health/ready"), timeout=SECONDS)


@dataclass(frozen=True)
class Outage:
    """A way in which PostgreSQL is away, and how it comes back."""

    begin: Callable[[PostgresServer], None]
    end: Callable[[PostgresServer], None]


OUTAGES = {
    "stopped": Outage(PostgresServer.stop, PostgresServer.start),
    "frozen": Outage(PostgresServer.pause, PostgresServer.resume),
}
however = pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)


async def test_without_redis_a_run_is_followed_by_way_of_its_row(caller: Client, own_redis: RedisServer) -> None:
    own_redis.stop()

    async with caller.asking("hello", agent_type="echo") as stream:
        events = [await anext(stream)]
        cancelled = await caller.http.post(f"/runs/{events[0]['run_id']}/cancel", timeout=SECONDS)
        events += [event async for event in stream]
    async with caller.asking("hello", agent_type="echo") as stream:
        later = [await anext(stream)]
        own_redis.start()
        later += [event async for event in stream]

    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert names(events) == ["message_created", "cancelled", "done"]
    assert names(later) == ["message_created", "message_started", "text_delta", "message_complete", "done"]


@however
async def test_without_postgres_every_call_is_refused_for_now_and_then_works_again(
    caller: Client, own_postgres: PostgresServer, outage: Outage
) -> None:
    before = await caller.ask("hello", agent_type="echo")

    outage.begin(own_postgres)
    answers = await every_call(caller)
    outage.end(own_postgres)

    assert before.status_code == 200
    assert len(answers) > 10
    for name, answer in answers:
        if name in {"get /health/live", "get /metrics"}:
            assert answer.status_code == 200, name
        else:
            assert problem_of(answer, 503, "service_unavailable")["detail"] == "The database cannot be reached.", name
            assert int(answer.headers["retry-after"]) > 0
    await ready_again(caller)
    assert (await caller.ask("hello", agent_type="echo")).status_code == 200
    assert len((await caller.http.get("/runs")).json()["items"]) == 2


async def test_without_redis_queries_are_still_taken_and_then_answered(caller: Client, own_redis: RedisServer) -> None:
    own_redis.stop()

    run = await caller.run("hello", agent_type="echo")
    degraded = await ready(caller)
    listed = await caller.http.get("/runs")
    bounded = await caller.http.post("/agent/query", json=QUERY, headers={"Prefer": "wait=1"}, timeout=SECONDS)
    cancelled = await caller.http.post(f"/runs/{bounded.json()['id']}/cancel", timeout=SECONDS)
    own_redis.start()

    assert (degraded.status_code, degraded.json()) == (
        200,
        {"status": "degraded", "degraded": ["redis"], "reasons": {"redis": "unreachable"}},
    )
    assert [item["id"] for item in listed.json()["items"]] == [run["id"]]
    assert bounded.status_code == 202
    assert cancelled.json()["status"] == "cancelled"
    assert (await caller.ended(run["id"]))["output"] == "You said: hello"
    assert (await caller.http.post("/agent/query", json=QUERY, timeout=3 * SECONDS)).status_code == 200
    assert (await ready(caller)).json() == {"status": "ok", "degraded": []}


async def test_without_redis_a_batch_is_taken_and_its_results_are_followed(
    caller: Client, own_redis: RedisServer
) -> None:
    items = [{"custom_id": f"row-{number}", "query": "1 second"} for number in range(5)]
    url = f"/batches/{(await caller.http.post('/batches', json={'agent_type': 'slow', 'items': items})).json()['id']}"
    async with asyncio.timeout(DEADLINE_SECONDS):
        while (await caller.http.get(url)).json()["counts"]["running"] < len(items):
            pass
    async with caller.http.stream("GET", f"{url}/results", params={"follow": "true"}) as response:
        own_redis.stop()
        lines = [json.loads(line) async for line in response.aiter_lines() if line]
    late = await caller.http.post("/batches", json=BODIES["/batches"], timeout=SECONDS)
    own_redis.start()

    assert {line["custom_id"] for line in lines if "cursor" in line} == {item["custom_id"] for item in items}
    assert lines[-1]["status"] == "completed"
    assert late.status_code == 202
    async with caller.http.stream("GET", f"/batches/{late.json()['id']}/results?follow=true") as response:
        assert json.loads((await response.aread()).splitlines()[-1])["counts"]["succeeded"] == 1


async def test_before_the_tables_are_there_no_traffic_is_wanted(
    own_postgres: PostgresServer, redis_url: str, tmp_path: Path
) -> None:
    own_postgres.ensure_database("empty")
    with serving(own_postgres.url("empty"), redis_url, tmp_path) as service:
        api: Running = service.api()
        async with Client(api.url) as client:
            problem = problem_of(await ready(client), 503, "service_unavailable")
            assert "has not been migrated" in problem["detail"]

            upgrade(own_postgres.url("empty").replace("postgresql://", "postgresql+psycopg://"))

            await ready_again(client)


async def test_a_postgres_that_hangs_harms_no_open_stream_and_no_answer(
    own_service: Service, own_postgres: PostgresServer
) -> None:
    patience = {"LEASE_SECONDS": "60", "DATABASE_POOL_SIZE": "3"}
    processes = [own_service.api(**patience), own_service.worker(**patience)]
    async with Client(processes[0].url) as client:
        thread_id = await client.thread("slow")
        async with client.asking("5 seconds", agent_type="slow") as stream:
            events = [await anext(stream) for _ in range(4)]
            in_hand = await client.run("1 second", thread_id=thread_id)
            behind = await client.run("0.1 seconds", thread_id=thread_id)
            while (await client.read(in_hand["id"]))["status"] != "running":  # noqa: ASYNC110  (another process)
                await asyncio.sleep(0.05)

            own_postgres.pause()
            await asyncio.to_thread(processes[1].await_line, f"job.database_away run_id={in_hand['id']}")
            events += [await anext(stream) for _ in range(10)]
            refused = await client.http.get("/runs", timeout=SECONDS)
            own_postgres.resume()

            events += [event async for event in stream]
        ended = [await client.ended(run_id) for run_id in (events[0]["run_id"], in_hand["id"], behind["id"])]

    problem_of(refused, 503, "service_unavailable")
    assert [(run["status"], run["attempt"]) for run in ended] == [("succeeded", 1)] * 3
    assert names(events) == ["message_created", "message_started", "text_delta", "message_complete", "done"]
    assert [running.process.poll() for running in processes] == [None, None]
    with psycopg.connect(own_postgres.url(), autocommit=True) as connection:
        ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'agent-relay%'"
        eventually(lambda: (connection.execute(ours).fetchone() or (99,))[0] <= 2 * 3 + 1)


async def test_a_stop_does_not_wait_for_a_postgres_that_hangs(
    own_service: Service, own_postgres: PostgresServer
) -> None:
    patience = {"LEASE_SECONDS": "60", "DRAIN_SECONDS": "0"}
    processes = [own_service.api(**patience), own_service.worker(**patience)]
    async with Client(processes[0].url) as client:
        run = await client.run("60 seconds", agent_type="slow")
        while (await client.read(run["id"]))["status"] != "running":  # noqa: ASYNC110  (another process)
            await asyncio.sleep(0.05)

        own_postgres.pause()
        ends = await asyncio.gather(*(asyncio.to_thread(running.terminate) for running in processes))
        own_postgres.resume()

    assert ends == [0, 0], processes[1].last_words()


@however
async def test_postgres_away_for_longer_than_a_lease_is_no_crash_of_anybody(
    own_service: Service, own_postgres: PostgresServer, outage: Outage
) -> None:
    short = {"LEASE_SECONDS": "5", "BEAT_SECONDS": "1"}
    api = own_service.api(**short)
    workers = [own_service.worker(**short) for _ in range(2)]
    async with Client(api.url) as client:
        threads = [await client.thread("slow") for _ in range(4)]
        runs = [await client.run("3 seconds", thread_id=thread_id) for thread_id in threads for _ in range(2)]
        runs += [await client.run("3 seconds", agent_type="slow") for _ in range(8)]
        in_hand, looking = await client.run("1 second", agent_type="slow"), await client.run("?", agent_type="looks")
        for run in (in_hand, looking):
            while (await client.read(run["id"]))["status"] != "running":  # noqa: ASYNC110  (another process)
                await asyncio.sleep(0.02)

        outage.begin(own_postgres)
        for worker in workers:
            await asyncio.to_thread(worker.await_line, "lease.lapsed")
        outage.end(own_postgres)

        await ready_again(client)
        ended = [await client.ended(run["id"]) for run in (*runs, in_hand, looking)]
    with psycopg.connect(own_postgres.url()) as connection:
        crashes = connection.execute("SELECT sum(crashes) FROM runs").fetchone()

    assert [run["status"] for run in ended] == ["succeeded"] * len(ended)
    assert crashes == (0,)
    assert (ended[-2]["attempt"], ended[-1]["attempt"]) == (1, 2)
    assert [worker.process.poll() for worker in workers] == [None, None]


def test_a_worker_that_starts_while_postgres_is_away_waits_for_it(
    own_service: Service, own_postgres: PostgresServer
) -> None:
    own_postgres.stop()
    worker = own_service.begin("worker")
    worker.await_line(r"start\.waits .*PostgreSQL cannot be reached")

    own_postgres.start()

    worker.await_line("worker.ready")


async def test_a_database_that_breaks_under_an_agent_each_time_is_the_agents_doing(client: Client) -> None:
    run = await client.run("?", agent_type="breaks_database")
    ended, events = await client.ended(run["id"]), await client.events(run["id"])

    assert (ended["error"]["code"], ended["attempt"]) == ("agent_error", AWAY_ATTEMPTS)
    assert names(events)[-2:] == ["error", "done"]
