"""A call that is made again under its key creates nothing again: whoever sends it, however often, whoever dies."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from agent_relay.api.requests.idempotency import WAIT_SECONDS
from agent_relay.embedded import RedisServer
from agent_relay.shared.clock import new_id
from agent_relay.shared.errors import KeyInUse, KeyReused, UnknownAgent
from agent_relay.shared.event_log import EventLog
from agent_relay.shared.idempotency import Key, Repeated, keep
from agent_relay.shared.maintenance.sweeper import Sweeper
from agent_relay.shared.queue import RunQueue
from agent_relay.shared.runs.accept import Query, accept
from agent_relay.shared.settings import Settings
from tests.support.client import Client, names, read_events, texts
from tests.support.eventually import eventually
from tests.support.problems import problem_of
from tests.support.service import Running, Service, serving

QUERY = {"agent_type": "echo", "query": "hello"}
BODIES: dict[str, dict[str, Any]] = {
    "/threads": {"agent_type": "echo"},
    "/runs": QUERY,
    "/agent/query": QUERY,
    "/agent/stream": QUERY,
    "/batches": {"agent_type": "echo", "items": [{"custom_id": "row", "query": "hello"}]},
}
COPIES = 50

creating = pytest.mark.parametrize("path", sorted(BODIES))


async def post(client: Client, path: str, key: str, **changes: Any) -> httpx.Response:
    """Make a call under a key."""
    return await client.http.post(path, json=BODIES[path] | changes, headers={"Idempotency-Key": key})


def created(path: str, response: httpx.Response) -> str:
    """Read the id of what a call created."""
    assert response.is_success, response.text
    match path:
        case "/agent/query":
            return response.json()["run_id"]
        case "/agent/stream":
            return json.loads(response.text.partition("\n")[0])["run_id"]
        case _:
            return response.json()["id"]


def is_replay(response: httpx.Response) -> bool:
    """Whether the answer says that it is of something created before."""
    return response.headers.get("idempotency-replayed") == "true"


async def count(client: Client) -> int:
    """Count what the user has."""
    lists = [(await client.http.get(f"/{noun}", params={"limit": 100})).json() for noun in ("threads", "runs")]
    return sum(len(page["items"]) for page in lists)


@creating
async def test_the_same_call_again_is_answered_with_what_it_created(client: Client, path: str) -> None:
    first, again = [await post(client, path, "k") for _ in range(2)]

    assert created(path, again) == created(path, first)
    assert [is_replay(response) for response in (first, again)] == [False, True]
    assert again.status_code == first.status_code
    assert again.headers.get("location") == first.headers.get("location")
    assert again.headers.get("content-location") == first.headers.get("content-location")
    assert await count(client) == 1


@creating
async def test_a_key_is_good_for_one_body(client: Client, path: str) -> None:
    await post(client, path, "k")

    problem = problem_of(await post(client, path, "k", metadata={"a": 1}), 422, "idempotency_key_reused")

    assert [(error["pointer"], error["code"]) for error in problem["errors"]] == [
        ("header:Idempotency-Key", "idempotency_key_reused")
    ]
    assert await count(client) == 1


async def test_a_key_is_of_its_tenant_its_user_and_its_route(shared_api: Running, client: Client) -> None:
    async with (
        Client(shared_api.url, user_id=str(uuid4())) as neighbour,
        Client(shared_api.url, tenant="other", user_id=client.user_id) as namesake,
    ):
        answers = [
            await post(client, "/runs", "k"),
            await post(client, "/agent/query", "k"),
            await post(client, "/runs", "K"),
            await post(neighbour, "/runs", "k"),
            await post(namesake, "/runs", "k"),
        ]

    assert all(answer.is_success for answer in answers)
    assert [is_replay(answer) for answer in answers] == [False] * 5


async def test_the_longest_key_is_a_key(client: Client) -> None:
    key = '"~ ' + "x" * 251 + "!"

    assert [is_replay(await post(client, "/threads", key)) for _ in range(2)] == [False, True]


@creating
async def test_a_refusal_is_not_kept(client: Client, path: str) -> None:
    refused = await post(client, path, "k", agent_type="unknown")
    then = await post(client, path, "k")

    problem_of(refused, 422)
    assert then.is_success
    assert not is_replay(then)


async def test_a_busy_thread_is_no_reason_to_refuse_what_was_accepted(client: Client) -> None:
    ask = {"thread_id": await client.thread("slow"), "query": "30 seconds", "multitask_strategy": "reject"}
    headers = {"Idempotency-Key": "k"}

    first, again = [await client.http.post("/runs", json=ask, headers=headers) for _ in range(2)]
    problem_of(await client.http.post("/runs", json=ask, headers={"Idempotency-Key": "l"}), 409, "thread_busy")
    await client.http.post(f"/runs/{first.json()['id']}/cancel")
    late = await client.http.post("/runs", json=ask, headers=headers)

    assert again.json()["id"] == late.json()["id"] == first.json()["id"]
    assert late.json()["status"] == "cancelled"


async def test_what_was_deleted_since_is_not_created_again(client: Client) -> None:
    thread_id = created("/threads", await post(client, "/threads", "k"))
    ask = {"thread_id": thread_id, "query": "hello"}
    await client.http.post("/runs", json=ask, headers={"Idempotency-Key": "k"})
    await client.http.delete(f"/threads/{thread_id}")

    problem_of(await post(client, "/threads", "k"), 404, "not_found")
    problem_of(await client.http.post("/runs", json=ask, headers={"Idempotency-Key": "k"}), 404, "not_found")


async def test_copies_of_a_blocking_call_wait_with_the_first(client: Client) -> None:
    changes = {"agent_type": "slow", "query": "0.5 seconds"}

    answers = await asyncio.gather(*(post(client, "/agent/query", "k", **changes) for _ in range(5)))

    assert len({answer.text for answer in answers}) == 1
    assert [answer.status_code for answer in answers] == [200] * 5
    assert Counter(map(is_replay, answers)) == {False: 1, True: 4}


async def test_a_copy_of_a_call_whose_run_failed_fails_alike(client: Client) -> None:
    first, again = [await post(client, "/agent/query", "k", agent_type="breaks") for _ in range(2)]

    problems = [problem_of(answer, 502, "agent_error") for answer in (first, again)]
    assert problems[0]["run_id"] == problems[1]["run_id"]
    assert [is_replay(answer) for answer in (first, again)] == [False, True]


async def test_a_copy_of_a_stream_follows_the_same_run_from_its_beginning(client: Client) -> None:
    body = {"agent_type": "slow", "query": "1 second"}
    headers = {"Idempotency-Key": "k"}
    async with client.http.stream("POST", "/agent/stream", json=body, headers=headers) as response:
        first = [event async for event in read_events(response)][:4]
    async with client.http.stream("POST", "/agent/stream", json=body, headers=headers) as response:
        again = [event async for event in read_events(response)]
        assert is_replay(response)

    assert again[:2] == first[:2]
    assert names(again)[-2:] == ["message_complete", "done"]
    assert texts(again)[-1] == (await client.read(again[0]["run_id"]))["output"]


async def answered(who: Client, path: str, key: str) -> httpx.Response:
    """Send a call again, as a client does, where the first one has not committed within two seconds."""
    while (answer := await post(who, path, key)).status_code == 409:
        problem_of(answer, 409, "idempotency_key_in_use")
    return answer


async def test_fifty_copies_over_two_apis_create_once(service: Service) -> None:
    apis = [service.api(DATABASE_POOL_SIZE="3") for _ in range(2)]
    service.worker()
    async with Client(apis[0].url) as here, Client(apis[1].url, user_id=here.user_id) as there:
        for before, path in enumerate(BODIES):
            answers = await asyncio.gather(*(answered(who, path, "k") for who in [here, there] * (COPIES // 2)))

            assert len({created(path, answer) for answer in answers}) == 1
            assert Counter(map(is_replay, answers)) == {False: 1, True: COPIES - 1}
            assert await count(here) == before + 1


async def test_who_comes_before_the_first_has_committed_waits_a_while_and_holds_no_connection(
    service: Service, database_url: str
) -> None:
    api = service.api(DATABASE_POOL_SIZE="2")
    service.worker()
    async with Client(api.url) as client:
        ask = {"thread_id": await client.thread("echo"), "query": "hello"}
        headers = {"Idempotency-Key": "k"}
        with psycopg.connect(database_url) as lock:
            lock.execute("SELECT FROM threads FOR UPDATE")
            first = asyncio.create_task(client.http.post("/runs", json=ask, headers=headers))
            await asyncio.to_thread(eventually, lambda: waits_for_a_lock(database_url))
            loop = asyncio.get_running_loop()
            began = loop.time()
            copies = [asyncio.create_task(client.http.post("/runs", json=ask, headers=headers)) for _ in range(10)]
            others = [await client.http.get("/threads") for _ in range(20)]
            for copy in copies:
                problem = problem_of(await copy, 409, "idempotency_key_in_use")
                assert "idempotency" not in problem["detail"]
            waited = loop.time() - began
            assert not first.done()
        accepted = await first
        late = await client.http.post("/runs", json=ask, headers=headers)

    assert [other.status_code for other in others] == [200] * 20
    assert waited >= WAIT_SECONDS
    assert accepted.status_code == 202
    assert (is_replay(late), late.json()["id"]) == (True, accepted.json()["id"])


def waits_for_a_lock(database_url: str) -> bool:
    """Whether somebody waits for a row in that database."""
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
    return row is not None and row[0] > 0


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis to be paused."""
    with RedisServer() as server:
        yield server


@pytest.mark.parametrize("path", ["/agent/query", "/batches"])
async def test_a_call_whose_api_was_killed_after_the_commit_is_answered_elsewhere(
    database_url: str, own_redis: RedisServer, tmp_path: Path, path: str
) -> None:
    with serving(database_url, own_redis.url(), tmp_path) as service:
        doomed, other = service.api(), service.api()
        service.worker()
        async with Client(doomed.url) as client, Client(other.url, user_id=client.user_id) as elsewhere:
            own_redis.pause()  # The API has committed, and is not done with the ring that comes before its reply.
            asking = asyncio.create_task(post(client, path, "k"))
            await asyncio.to_thread(eventually, lambda: keys(database_url))
            doomed.kill()
            own_redis.resume()
            with pytest.raises(httpx.TransportError):
                await asking

            again = await post(elsewhere, path, "k")

            assert is_replay(again)
            assert keys(database_url) == [created(path, again)]
            assert await count(elsewhere) == 1


def keys(database_url: str) -> list[str]:
    """Read what was created under keys."""
    with psycopg.connect(database_url) as connection:
        return [str(row[0]) for row in connection.execute("SELECT created FROM idempotency_keys")]


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[AsyncEngine]:
    """A database with an agent."""
    engine = create_async_engine(database_url.replace("postgresql://", "postgresql+psycopg://"))
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO agents (agent_type, pool, description, output_schema, text_output) "
                "VALUES ('echo', 'default', '', '{}', true)"
            )
        )
    yield engine
    await engine.dispose()


def key_of(body: bytes = b"", *, kept_seconds: float = 60, user_id: Any = None) -> Key:
    """Make a key."""
    return Key(
        tenant="acme",
        user_id=user_id or new_id(),
        route="/api/v1/runs",
        key="k",
        body_hash=body,
        kept_seconds=kept_seconds,
    )


def query(agent_type: str = "echo") -> Query:
    """Make a query."""
    return Query(tenant="acme", user_id=new_id(), thread_id=None, agent_type=agent_type, query="?", deadline_seconds=60)


async def scalar(database: AsyncEngine, statement: str) -> Any:
    """Ask for one value."""
    async with database.connect() as connection:
        return await connection.scalar(text(statement))


@pytest.mark.parametrize("failing", ["runs", "idempotency_keys"])
async def test_a_key_and_what_it_created_are_stored_together_or_not_at_all(database: AsyncEngine, failing: str) -> None:
    async with database.begin() as connection:  # At the commit, after everything was written.
        await connection.execute(
            text("CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no room'; END $$")
        )
        await connection.execute(
            text(
                f"CREATE CONSTRAINT TRIGGER fails AFTER INSERT ON {failing} "
                "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()"
            )
        )

    with pytest.raises(Exception, match="no room"):
        await accept(database, query(), key_of())

    assert await scalar(database, "SELECT count(*) FROM runs") == 0
    assert await scalar(database, "SELECT count(*) FROM idempotency_keys") == 0


async def test_a_key_whose_call_was_refused_is_free_again(database: AsyncEngine) -> None:
    key = key_of()

    with pytest.raises(UnknownAgent):
        await accept(database, query("unknown"), key)

    assert (await accept(database, query(), key)).run.id


async def test_a_key_that_has_expired_creates_anew(database: AsyncEngine) -> None:
    key = key_of(b"one", kept_seconds=0)
    first = await accept(database, query(), key)

    later = key_of(b"two", user_id=key.user_id)
    second = await accept(database, query(), later)
    with pytest.raises(Repeated) as repeated:
        await accept(database, query(), later)
    with pytest.raises(KeyReused):
        await accept(database, query(), key)

    assert second.run.id != first.run.id
    assert repeated.value.created == second.run.id


async def test_while_one_creates_another_is_turned_away_at_once(database: AsyncEngine) -> None:
    key = key_of()
    async with database.connect() as one, database.connect() as other:
        await keep(one, key, new_id())
        with pytest.raises(KeyInUse):
            await keep(other, key, new_id())
        await other.rollback()
        await one.rollback()

        await keep(other, key, new_id())


async def test_expired_keys_are_erased_and_others_stay(
    database: AsyncEngine, database_url: str, redis_url: str
) -> None:
    settings = Settings(database_url=database_url, redis_url=redis_url)
    for _ in range(3):
        await accept(database, query(), key_of(kept_seconds=0))
    kept = key_of()
    await accept(database, query(), kept)

    unused: Any = None
    await Sweeper(settings, database, RunQueue(unused), EventLog(unused)).erase()

    assert await scalar(database, "SELECT user_id FROM idempotency_keys") == kept.user_id
