"""PostgreSQL away is a refusal for now, Redis away is hardly noticed, and when they are back, so is the service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import httpx
import pytest

from shared.embedded import PostgresServer, RedisServer
from shared.migrations.upgrade import upgrade
from tests.client import Client
from tests.problems import problem_of
from tests.service import OPERATOR_KEY, Running, Service, serving

ID = "0198c5a4-7c9e-7000-8000-000000000000"
QUERY = {"agent_type": "echo", "query": "hello"}
BODIES = {
    "/threads": {"agent_type": "echo"},
    "/runs": QUERY,
    "/agent/query": QUERY,
    "/agent/stream": QUERY,
    "/batches": {"agent_type": "echo", "items": [{"custom_id": "one", "query": "hello"}]},
    "/operator/dead-letters/requeue": {"run_ids": [ID]},
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


async def every_call(client: Client) -> list[tuple[str, httpx.Response]]:
    """Call everything there is."""
    root = str(client.http.base_url).removesuffix("/api/v1/")
    paths = (await client.http.get(f"{root}/openapi.json")).json()["paths"]
    answers: list[tuple[str, httpx.Response]] = []
    for path, methods in paths.items():
        for method in methods:
            body = BODIES.get(path.removeprefix("/api/v1")) if method == "post" else None
            url = root + path.format(run_id=ID, thread_id=ID, batch_id=ID, delivery_id=ID)
            headers = {"X-API-Key": OPERATOR_KEY} if "/operator/" in path else {}
            answer = await client.http.request(method, url, json=body, headers=headers, timeout=SECONDS)
            answers.append((f"{method} {path}", answer))
    return answers


async def ready(client: Client) -> httpx.Response:
    """Ask whether the process should get traffic."""
    return await client.http.get(client.http.base_url.join("/health/ready"), timeout=SECONDS)


async def test_without_postgres_every_call_is_refused_for_now_and_then_works_again(
    caller: Client, own_postgres: PostgresServer
) -> None:
    before = await caller.ask("hello", agent_type="echo")

    own_postgres.stop()
    answers = await every_call(caller)
    own_postgres.start()

    assert before.status_code == 200
    assert len(answers) > 10
    for name, answer in answers:
        if name == "get /health/live":
            assert answer.status_code == 200
        else:
            assert problem_of(answer, 503, "service_unavailable")["detail"] == "The database cannot be reached.", name
            assert int(answer.headers["retry-after"]) > 0
    assert (await ready(caller)).json() == {"status": "ok", "degraded": []}
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

    assert (degraded.status_code, degraded.json()) == (200, {"status": "degraded", "degraded": ["redis"]})
    assert [item["id"] for item in listed.json()["items"]] == [run["id"]]
    assert bounded.status_code == 202
    assert cancelled.json()["status"] == "cancelled"
    assert (await caller.ended(run["id"]))["output"] == "You said: hello"
    assert (await caller.http.post("/agent/query", json=QUERY, timeout=3 * SECONDS)).status_code == 200
    assert (await ready(caller)).json() == {"status": "ok", "degraded": []}


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

            assert (await ready(client)).json() == {"status": "ok", "degraded": []}
