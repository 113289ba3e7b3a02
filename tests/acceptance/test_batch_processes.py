"""A batch survives whatever dies while it runs: each item is answered once, and its results are read once."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, randrange
from typing import Any, LiteralString
from uuid import UUID

import httpx
import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agent_relay.shared.batches.accept import Accepted, Submission, accept
from agent_relay.shared.batches.spool import Spool
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.settings import Settings
from tests.support.client import Client
from tests.support.command import Terminal, batches_of, lines_of
from tests.support.eventually import eventually
from tests.support.service import Running, Service

log = logging.getLogger(__name__)

Json = dict[str, Any]

PATIENCE = {"LEASE_SECONDS": "2", "BEAT_SECONDS": "0.5"}
MAX_CRASHES = 3
WAITING = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
COMMIT_SECONDS = 0.2
"""What a worker sent before it died has arrived by then."""
_UNFINISHED: LiteralString = "SELECT custom_id FROM runs WHERE status IN ('queued', 'running')"
_HELD: LiteralString = """
    SELECT custom_id FROM runs JOIN workers ON workers.id = worker_id WHERE runs.status = 'running' AND workers.pid = %s
"""


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


@dataclass
class Killer:
    """Kills workers, each for another one, and an API process, which is started again; and keeps the ledger."""

    service: Service
    apis: list[Running]
    workers: list[Running]
    chance: Random
    ledger: Counter[str] = field(default_factory=Counter[str])
    """How often each item was killed, by the database: what a dead worker holds it holds until its lease is over."""

    async def kill_worker(self) -> None:
        """Kill one of them that holds items, or any where none is left to hold."""
        while True:
            doomed = self.chance.choice(self.workers)
            doomed.freeze()
            await asyncio.sleep(COMMIT_SECONDS)
            held = self._items(_HELD, doomed.process.pid)
            if held or not self._items(_UNFINISHED):
                break
            doomed.thaw()
        doomed.kill()
        self.ledger.update(held)
        self.workers.remove(doomed)
        self.workers.append(self.service.begin("worker"))

    async def kill_api(self) -> None:
        """Kill the one that is being followed, and start it again where it was."""
        doomed = self.apis[0]
        doomed.kill()
        again = await asyncio.to_thread(self.service.api, PORT=str(httpx.URL(doomed.url).port))
        self.apis[self.apis.index(doomed)] = again

    def _items(self, query: LiteralString, *values: int) -> list[str]:
        with psycopg.connect(self.service.database_url) as connection:
            return [row[0] for row in connection.execute(query, values)]


async def killing(killer: Killer, lines: AsyncGenerator[Json], count: int, kills: int) -> list[Json]:
    """Follow a batch to its end; on the way, at random places, kill workers and, in the middle, the API.

    The first of them is early: who follows is behind those who answer.
    """
    early = count // 10
    places = [killer.chance.randrange(1, early), *sorted(killer.chance.sample(range(early, count * 4 // 5), kills - 1))]
    told: list[Json] = []
    results = 0
    async for line in lines:
        told.append(line)
        results += "cursor" in line
        while places and results >= places[0]:
            if len(places) == (kills + 1) // 2:
                await killer.kill_api()
            else:
                await killer.kill_worker()
            places.pop(0)
    assert not places
    return told


def check(told: list[Json], count: int, dead: Collection[str] = ()) -> None:
    """Check that each item was answered, that each result came once and in order, and that the counts are right."""
    results = [line for line in told if "cursor" in line]
    assert [line["cursor"] for line in results] == list(range(1, count + 1))
    check_results(results, count, dead)
    assert told[-1] == {
        "counts": {
            "total": count,
            "queued": 0,
            "running": 0,
            "waiting": 0,
            "succeeded": count - len(dead),
            "failed": len(dead),
            "cancelled": 0,
        },
        "status": "completed",
    }


def check_results(results: list[Json], count: int, dead: Collection[str] = ()) -> None:
    """Check that each item has one result, and that it succeeded, but for the dead."""
    assert len(results) == count
    assert {line["custom_id"]: line["output"] for line in results if line["status"] == "succeeded"} == {
        f"row-{number}": f"You said: hello {number}" for number in range(count) if f"row-{number}" not in dead
    }
    failed = [(line["custom_id"], line["error"]["code"]) for line in results if line["status"] == "failed"]
    assert sorted(failed) == sorted((custom_id, "worker_crashed") for custom_id in dead)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("count", "slots", "kills"), [(300, 3, 3), pytest.param(20_000, 10, 15, marks=pytest.mark.long)]
)
async def test_killed_workers_and_a_killed_api_cost_no_result_and_double_none(
    service: Service, tmp_path: Path, count: int, slots: int, kills: int
) -> None:
    service.environment |= {**PATIENCE, "WORKER_SLOTS": str(slots), "MAX_CRASHES": str(MAX_CRASHES)}
    workers = [service.begin("worker"), service.begin("worker")]
    apis = [service.api(), service.api()]
    for worker in workers:
        worker.await_line(r"worker\.ready")
    seed = randrange(1 << 32)
    log.info("seed %d", seed)  # Shown where it fails.
    killer = Killer(service, apis, workers, Random(seed))
    folder = tmp_path / "home"
    folder.mkdir()
    async with Client(apis[1].url) as client, Terminal(apis[0].url, client.user_id, folder) as terminal:
        rows = terminal.file("rows.jsonl", "".join(json.dumps(item) + "\n" for item in items_of(count)))
        command = await terminal.begin("submit", rows, "--agent", "echo")
        while not (batches := await batches_of(client)):
            pass
        told = await killing(killer, follow(apis, client.user_id, batches[0]["id"]), count, kills)
        ended = await command.ended()

    dead = {custom_id for custom_id, deaths in killer.ledger.items() if deaths >= MAX_CRASHES}
    assert killer.ledger
    check(told, count, dead)
    check_results(lines_of(folder / "rows.results.jsonl"), count, dead)
    assert (ended.status, len(batches)) == (1 if dead else 0, 1)
    assert f"{count:,} results, {count - len(dead):,} succeeded" in ended.answer


@pytest.fixture
async def database(service: Service) -> AsyncGenerator[AsyncEngine]:
    """The database of the service."""
    engine = create_async_engine(service.database_url.replace("postgresql://", "postgresql+psycopg://"))
    yield engine
    await engine.dispose()


async def stored(database: AsyncEngine, user_id: str, count: int, **rest: Any) -> Accepted:
    """Store a batch as an API does that dies before it rings."""
    said: dict[str, Any] = {"deadline_seconds": 600, "run_seconds": 60, **rest}
    with Spool() as items:
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


async def test_ends_of_a_batch_that_wait_for_each_other_hold_nobody_else_up(service: Service) -> None:
    api = service.api()
    service.worker(DATABASE_POOL_SIZE="2")
    async with Client(api.url) as client:
        batch_id = await submit(client, items_of(6, "0.5 seconds"), "slow")
        with psycopg.connect(service.database_url) as holding, psycopg.connect(service.database_url) as looking:
            holding.execute("SELECT FROM batches WHERE id = %s FOR UPDATE", [batch_id])
            looking.autocommit = True
            await asyncio.to_thread(eventually, lambda: looking.execute(WAITING).fetchall())
            await asyncio.sleep(0.5)  # By now all of them wait: for the batch, or for a connection.
            answer = await client.http.post(
                "/agent/query", json={"agent_type": "echo", "query": "hello"}, headers={"Prefer": "wait=20"}
            )
        told = [line async for line in follow([api], client.user_id, batch_id)]

    assert answer.status_code == httpx.codes.OK
    assert [line["status"] for line in told if "cursor" in line] == ["succeeded"] * 6


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
        "counts": {
            "total": 1200,
            "queued": 0,
            "running": 0,
            "waiting": 0,
            "succeeded": 0,
            "failed": 0,
            "cancelled": 1200,
        },
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


async def test_an_open_upload_holds_no_connection(service: Service) -> None:
    api = service.api(DATABASE_POOL_SIZE="2")
    register(service)
    line = json.dumps({"custom_id": "row", "query": "x" * 1000}).encode() + b"\n"
    half, go_on = asyncio.Barrier(5), asyncio.Event()

    async def body() -> AsyncGenerator[bytes]:
        for number in range(200):
            yield line.replace(b"row", b"row-%d" % number)
        await half.wait()
        await go_on.wait()

    async def upload(client: Client) -> httpx.Response:
        headers = {"Content-Type": "application/x-ndjson"}
        return await client.http.post("/batches", params={"agent_type": "echo"}, content=body(), headers=headers)

    async with Client(api.url) as client, Client(api.url) as other:
        uploads = [asyncio.create_task(upload(client)) for _ in range(4)]
        await half.wait()
        with psycopg.connect(service.database_url) as connection:
            held = connection.execute("SELECT FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'").fetchall()
        runs = await asyncio.gather(*(other.run("hello", agent_type="echo") for _ in range(4)))
        go_on.set()
        accepted = await asyncio.gather(*uploads)

    assert held == []
    assert len(runs) == 4
    assert [response.status_code for response in accepted] == [httpx.codes.ACCEPTED] * 4


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
