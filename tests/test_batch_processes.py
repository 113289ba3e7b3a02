"""A batch survives whatever dies while it runs: each item is answered once, and its results are read once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.batches import Accepted, Manifest, Submission, accept
from shared.runs.admission import Admission
from shared.settings import Settings
from tests.client import Client
from tests.service import Running, Service

Json = dict[str, Any]

PATIENCE = {"LEASE_SECONDS": "2", "BEAT_SECONDS": "0.5"}


def items_of(count: int, query: str = "hello") -> list[Json]:
    """Make items whose ids say which they are."""
    return [{"custom_id": f"row-{number}", "query": f"{query} {number}"} for number in range(count)]


async def submit(client: Client, items: list[Json], agent_type: str = "echo", **rest: Any) -> str:
    """Submit a batch; returns its id."""
    response = await client.http.post("/batches", json={"agent_type": agent_type, "items": items, **rest})
    assert response.status_code == httpx.codes.ACCEPTED, response.text
    return response.json()["id"]


def register(service: Service) -> None:
    """Register the agent `echo` as a worker does, and have none."""
    with psycopg.connect(service.database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO agents (agent_type, pool, description, output_schema, text_output)"
            " VALUES ('echo', 'default', '', '{}', true)"
        )


async def follow(apis: list[Running], user_id: str, batch_id: str) -> AsyncGenerator[Json]:
    """Follow a batch as a client would that does not give up: when a stream is cut, at the next process."""
    place, ended = 0, False
    while not ended:
        api = apis[0]
        async with Client(api.url, user_id=user_id) as client:
            parameters = {"follow": "true", "after": place}
            try:
                async with client.http.stream("GET", f"/batches/{batch_id}/results", params=parameters) as response:
                    assert response.status_code == httpx.codes.OK, await response.aread()
                    async for line in response.aiter_lines():
                        if line:
                            told = json.loads(line)
                            place = told.get("cursor", place)
                            ended = told.get("status") in {"completed", "cancelled"} and "counts" in told
                            yield told
            except httpx.TransportError:
                pass
        if not ended:
            apis.append(apis.pop(0))


async def killing(service: Service, client: Client, apis: list[Running], count: int, kill_at: int) -> list[Json]:
    """Follow a batch to its end, and kill a worker, the API that is followed and another worker on the way."""
    workers = [service.worker(), service.worker()]
    batch_id = await submit(client, items_of(count))
    deaths: list[Callable[[], None]] = [workers[0].kill, apis[0].kill, workers[1].kill]
    told: list[Json] = []
    async for line in follow(list(apis), client.user_id, batch_id):
        told.append(line)
        if deaths and len(told) >= kill_at * (4 - len(deaths)):
            deaths.pop(0)()
            service.begin("worker")
    assert not deaths
    return told


def check(told: list[Json], count: int) -> None:
    """Check that each item was answered, that each result came once and in order, and that the counts are right."""
    results = [line for line in told if "cursor" in line]
    assert [line["cursor"] for line in results] == list(range(1, count + 1))
    assert {line["custom_id"]: line["output"] for line in results} == {
        f"row-{number}": f"You said: hello {number}" for number in range(count)
    }
    assert {line["status"] for line in results} == {"succeeded"}
    assert told[-1] == {
        "counts": {"total": count, "queued": 0, "running": 0, "succeeded": count, "failed": 0, "cancelled": 0},
        "status": "completed",
    }


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [2000, pytest.param(20_000, marks=pytest.mark.long)])
async def test_killed_workers_and_a_killed_api_cost_no_result_and_double_none(service: Service, count: int) -> None:
    service.environment |= {**PATIENCE, "WORKER_SLOTS": "10", "MAX_CRASHES": "10"}
    apis = [service.api(), service.api()]
    async with Client(apis[1].url) as client:
        told = await killing(service, client, apis, count, kill_at=count // 5)

    check(told, count)


@pytest.fixture
async def database(service: Service) -> AsyncGenerator[AsyncEngine]:
    """The database of the service."""
    engine = create_async_engine(service.database_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    await engine.dispose()


async def stored(database: AsyncEngine, user_id: str, count: int, **rest: Any) -> Accepted:
    """Store a batch as an API does that dies before it rings."""
    said: dict[str, Any] = {"deadline_seconds": 600, "run_seconds": 60, **rest}
    with Manifest() as items:
        for number in range(count):
            items.add(f"row-{number}", f"hello {number}", {})
        asked = Submission(tenant="acme", user_id=UUID(user_id), agent_type="echo", **said)
        settings = Settings(database_url="postgresql://nowhere/none", redis_url="redis://nowhere")
        return await accept(database, asked, items, Admission(settings))


async def test_what_was_not_rung_is_swept(service: Service, database: AsyncEngine) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client:
        accepted = await stored(database, client.user_id, 100)
        told = [line async for line in follow([api], client.user_id, str(accepted.batch.id))]

    check(told, 100)


async def test_max_running_is_kept_whoever_dies(service: Service) -> None:
    service.environment |= {**PATIENCE, "MAX_CRASHES": "10"}
    api = service.api()
    worker = service.worker()
    async with Client(api.url) as client:
        batch_id = await submit(client, items_of(30, "0.1 seconds"), "slow", max_running=3)
        most = 0
        while (batch := (await client.http.get(f"/batches/{batch_id}")).json())["status"] == "in_progress":
            most = max(most, batch["counts"]["running"])
            if worker.process.poll() is None and batch["counts"]["succeeded"] >= 6:
                worker.kill()
                service.worker()
    assert most == 3
    assert batch["counts"]["succeeded"] == 30


async def test_room_that_nobody_filled_is_swept(service: Service) -> None:
    api = service.api()
    register(service)
    async with Client(api.url) as client:
        batch_id = await submit(client, items_of(5), max_running=1)
        for number in range(4):
            runs = (await client.http.get("/runs", params={"batch_id": batch_id, "limit": 5})).json()["items"]
            await client.http.post(f"/runs/{runs[4 - number]['id']}/cancel")
        service.worker()
        told = [line async for line in follow([api], client.user_id, batch_id)]

    assert [line["status"] for line in told if "cursor" in line] == ["cancelled"] * 4 + ["succeeded"]


async def test_a_batch_whose_canceller_died_is_cancelled_all_the_same(service: Service) -> None:
    api = service.api()
    register(service)
    async with Client(api.url) as client:
        batch_id = await submit(client, items_of(1200))
        with psycopg.connect(service.database_url, autocommit=True) as connection:
            connection.execute("UPDATE batches SET status = 'cancelling' WHERE id = %s", (batch_id,))
        told = [line async for line in follow([api], client.user_id, batch_id)]

    assert told[-1] == {
        "counts": {"total": 1200, "queued": 0, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 1200},
        "status": "cancelled",
    }


async def test_an_api_that_stops_cuts_what_is_followed(service: Service) -> None:
    api = service.api()
    service.worker()
    async with Client(api.url) as client:
        batch_id = await submit(client, items_of(1, "60 seconds"), "slow")
        async with client.http.stream("GET", f"/batches/{batch_id}/results?follow=true") as response:
            lines = response.aiter_lines()
            assert json.loads(await anext(lines))["status"] == "in_progress"
            await asyncio.to_thread(api.terminate)
            rest = [json.loads(line) async for line in lines if line]

    assert all(line["status"] == "in_progress" for line in rest)


async def test_a_follower_hears_that_the_batch_is_alive(service: Service) -> None:
    api = service.api(KEEPALIVE_SECONDS="0.2")
    register(service)
    async with Client(api.url) as client:
        batch_id = await submit(client, items_of(1))
        async with client.http.stream("GET", f"/batches/{batch_id}/results?follow=true") as response:
            chunks = response.aiter_bytes()
            seen = b""
            while not seen.endswith(b"}\n\n\n"):
                seen += await anext(chunks)

    assert seen.count(b"counts") == 1
