"""How much may wait: what is refused is refused whole, with a status, a code and a time, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from sqlalchemy import text

from agent_relay.shared.clock import new_id
from agent_relay.shared.errors import Limit, QueueFull
from agent_relay.shared.runs.accept import Query, Strategy, accept
from agent_relay.shared.runs.queue_limits import Admission
from agent_relay.shared.settings import Settings
from tests.support.client import Client
from tests.support.eventually import DEADLINE_SECONDS
from tests.support.problems import errors_of, problem_of
from tests.support.service import Service
from tests.support.stage import Stage

ROUTES = ["/runs", "/agent/query", "/agent/stream"]
REGISTER = (
    "INSERT INTO agents (agent_type, pool, description, output_schema, text_output)"
    " VALUES ('echo', 'default', '', '{}', true)"
)
STORED = (
    "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM messages), (SELECT sum(last_seq) FROM threads),"
    " (SELECT count(*) FROM batches), (SELECT count(*) FROM idempotency_keys)"
)


def admission(**limits: Any) -> Admission:
    """Admit by these limits and no others."""
    no_others: dict[str, Any] = {"max_queued": 0, "max_queued_per_user": 0, "max_queued_per_tenant": 0} | limits
    return Admission(Settings(database_url="postgresql://no/where", redis_url="redis://nowhere", **no_others))


async def ask(stage: Stage, admits: Admission, **asked: Any) -> UUID:
    """Ask without a thread, as the stage's user unless told otherwise; returns the run."""
    usual: dict[str, Any] = {"tenant": "acme", "user_id": stage.user_id, "thread_id": None, "agent_type": "echo"}
    query = Query(query="?", deadline_seconds=600, **usual | asked)
    return (await accept(stage.database, query, None, admits)).run.id


async def refused(stage: Stage, admits: Admission, **asked: Any) -> Limit:
    """Ask, and be refused; returns the limit."""
    with pytest.raises(QueueFull) as refusal:
        await ask(stage, admits, **asked)
    return refusal.value.limit


async def grow_old(stage: Stage, run_id: UUID) -> None:
    """Let a run have been accepted and rung an hour ago."""
    await stage.execute(
        "UPDATE runs SET created_at = created_at - interval '1 hour', rung_at = rung_at - interval '1 hour',"
        " due_at = due_at - interval '1 hour' WHERE id = :id",
        id=run_id,
    )


async def test_full_queues_refuse_and_store_nothing(service: Service) -> None:
    api = service.api(MAX_QUEUED_PER_USER="2", MAX_QUEUED_PER_TENANT="3", MAX_QUEUED="4", MAX_QUEUED_SECONDS="600")
    with psycopg.connect(service.database_url, autocommit=True) as database:
        database.execute(REGISTER)
        async with (
            Client(api.url) as one,
            Client(api.url) as two,
            Client(api.url) as three,
            Client(api.url, "other") as other,
        ):
            accepted = [await one.run("?", agent_type="echo") for _ in range(2)]
            await refuse(database, one, 429, "user_queue_full")
            await two.run("?", agent_type="echo")
            await refuse(database, three, 429, "tenant_queue_full")
            await other.run("?", agent_type="echo")
            await refuse(database, other, 503, "queue_full")

            assert (await one.http.post(f"/runs/{accepted[0]['id']}/cancel")).status_code == httpx.codes.OK
            again = await three.run("?", agent_type="echo")
            database.execute(
                "UPDATE runs SET rung_at = now() - interval '1 hour', created_at = now() - interval '1 hour'"
            )
            assert (await three.http.post(f"/runs/{again['id']}/cancel")).status_code == httpx.codes.OK
            await refuse(database, two, 503, "queue_slow")


async def refuse(database: psycopg.Connection[Any], client: Client, status: int, code: str) -> None:
    """See that a user is refused on every route that asks, with a thread and without, and that nothing is stored."""
    thread_id = await client.thread("echo")
    before = database.execute(STORED).fetchone()
    for route in ROUTES:
        for target in ({"thread_id": thread_id}, {"agent_type": "echo"}):
            body = {"query": "?", **target}
            response = await client.http.post(route, json=body, headers={"Idempotency-Key": f"{route} {len(target)}"})
            problem_of(response, status, code)
            assert int(response.headers["retry-after"]) > 0
    assert database.execute(STORED).fetchone() == before


@pytest.mark.parametrize("most", [5, 60])
async def test_however_many_ask_at_once_a_user_has_no_more_than_may_wait(stage: Stage, most: int) -> None:
    admits = admission(max_queued_per_user=most)
    asked = await asyncio.gather(*(ask(stage, admits) for _ in range(most + 30)), return_exceptions=True)

    refusals = [outcome for outcome in asked if isinstance(outcome, BaseException)]
    assert len(refusals) == 30
    assert all(isinstance(refusal, QueueFull) and refusal.limit is Limit.USER for refusal in refusals)
    assert await ask(stage, admits, user_id=new_id())


@pytest.mark.parametrize("most", [5, 60])
async def test_however_many_users_ask_at_once_a_tenant_has_no_more_than_may_wait(stage: Stage, most: int) -> None:
    admits = admission(max_queued_per_user=most - 1, max_queued_per_tenant=most)
    asked = await asyncio.gather(
        *(ask(stage, admits, user_id=new_id()) for _ in range(most + 30)), return_exceptions=True
    )

    refusals = [outcome for outcome in asked if isinstance(outcome, BaseException)]
    assert len(refusals) == 30
    assert all(isinstance(refusal, QueueFull) and refusal.limit is Limit.TENANT for refusal in refusals)
    assert await ask(stage, admits, tenant="other")


async def test_the_queue_is_counted_anew_once_the_room_that_was_seen_is_used_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_relay.shared.runs.queue_limits.LOOK_SECONDS", 3600)
    admits, elsewhere = admission(max_queued=4), admission(max_queued=4)
    first = await ask(stage, admits)
    await ask(stage, elsewhere)
    for _ in range(2):
        await ask(stage, admits)

    for _ in range(2):
        await ask(stage, elsewhere)  # It saw room for three.
    for _ in range(2):
        assert await refused(stage, elsewhere) is Limit.QUEUE
    await stage.execute("DELETE FROM runs WHERE id <> :first", first=first)
    assert await ask(stage, elsewhere)


async def test_the_room_that_was_seen_is_not_believed_in_for_long(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_relay.shared.runs.queue_limits.LOOK_SECONDS", 0)
    admits = admission(max_queued=2)
    await ask(stage, admits)
    await ask(stage, admission())

    assert await refused(stage, admits) is Limit.QUEUE


async def test_what_no_longer_waits_does_not_count(stage: Stage) -> None:
    admits = admission(max_queued_per_user=1)
    first = await ask(stage, admits)
    assert await refused(stage, admits) is Limit.USER
    await stage.claimed(first, await stage.worker())

    assert await ask(stage, admits)


async def test_a_run_takes_the_place_of_those_that_it_interrupts(stage: Stage) -> None:
    admits = admission(max_queued_per_user=1, max_queued_per_tenant=1, max_queued=1)
    of_thread = {"thread_id": stage.thread_id, "agent_type": None}
    await ask(stage, admits, **of_thread)
    assert await refused(stage, admits, **of_thread) is Limit.USER

    assert await ask(stage, admits, strategy=Strategy.INTERRUPT, **of_thread)


async def test_batches_count_against_their_own_limits_only(service: Service) -> None:
    api = service.api(
        MAX_QUEUED_PER_USER="1",
        MAX_QUEUED_PER_TENANT="1",
        MAX_QUEUED="2",
        MAX_QUEUED_SECONDS="60",
        MAX_BATCH_UNFINISHED_PER_TENANT="3",
        MAX_BATCH_UNFINISHED="4",
    )
    with psycopg.connect(service.database_url, autocommit=True) as database:
        database.execute(REGISTER)
        async with Client(api.url) as client, Client(api.url, "other") as other:
            batch = (await submit(client, 2)).json()
            database.execute("UPDATE runs SET created_at = now() - interval '1 hour', rung_at = created_at")
            await refuse_batch(database, submit(client, 2), 429, "tenant_batches_full")
            assert errors_of(await submit(client, 4)) == {("/items", "too_long")}  # That would never fit in.
            assert (await submit(other, 2)).status_code == httpx.codes.ACCEPTED
            await refuse_batch(database, submit(other, 1), 503, "batches_full")
            for asking in (client, other):
                await asking.run("?", agent_type="echo")

            database.execute(
                "UPDATE runs SET status = 'failed', finished_at = now() WHERE batch_id = %s", [batch["id"]]
            )
            assert (await submit(client, 2)).status_code == httpx.codes.ACCEPTED
            retry = client.http.post(f"/batches/{batch['id']}/retry")
            await refuse_batch(database, retry, 429, "tenant_batches_full")


async def submit(client: Client, count: int) -> httpx.Response:
    """Submit a batch of so many items."""
    items = [{"custom_id": str(number), "query": "?"} for number in range(count)]
    return await client.http.post("/batches", json={"agent_type": "echo", "items": items})


async def refuse_batch(
    database: psycopg.Connection[Any], call: Awaitable[httpx.Response], status: int, code: str
) -> None:
    """See that a batch is refused, and that nothing is stored."""
    before = database.execute(STORED).fetchone()
    response = await call
    problem_of(response, status, code)
    assert int(response.headers["retry-after"]) > 0
    assert database.execute(STORED).fetchone() == before


async def test_batches_that_are_submitted_at_once_do_not_exceed_a_limit(stage: Stage) -> None:
    admits = admission(max_batch_unfinished_per_tenant=3)
    at_once = asyncio.Barrier(10)
    insert = text(
        "INSERT INTO batches (id, tenant, user_id, agent_type, metadata, run_seconds, total, deadline_at)"
        " VALUES (:id, 'acme', :id, 'echo', '{}', 1, 1, now())"
    )

    async def store() -> None:
        async with stage.database.begin() as connection:

            async def insert_with_others() -> None:
                await connection.execute(insert, {"id": new_id()})
                await at_once.wait()

            await admits.admit_batch(connection, "acme", 1, insert_with_others)

    stored = await asyncio.gather(*(store() for _ in range(10)), return_exceptions=True)

    assert stored.count(None) == 3
    assert all(isinstance(refusal, QueueFull) for refusal in stored if refusal is not None)


async def test_who_stores_a_batch_holds_up_no_other_before_its_commit(stage: Stage) -> None:
    admits = admission(max_batch_unfinished=3)
    at_once = asyncio.Barrier(2)

    async def store() -> None:
        async with stage.database.begin() as connection:
            await admits.admit_batch(connection, "acme", 1, at_once.wait)

    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(store(), store())


async def test_a_batch_that_has_no_room_is_not_even_stored(stage: Stage) -> None:
    admits = admission(max_batch_unfinished=3)

    async def store() -> None:
        raise AssertionError("stored")

    async with stage.database.begin() as connection:
        with pytest.raises(QueueFull):
            await admits.admit_batch(connection, "acme", 4, store)


async def test_a_run_that_has_waited_too_long_for_a_slot_closes_its_pool(stage: Stage) -> None:
    admits = admission(max_queued_seconds=60)
    await grow_old(stage, await ask(stage, admits))
    await stage.execute(
        "INSERT INTO agents (agent_type, pool, description, output_schema, text_output)"
        " VALUES ('elsewhere', 'other', '', '{}', true)"
    )

    assert await refused(stage, admits) is Limit.AGE
    assert await ask(stage, admits, agent_type="elsewhere")


@pytest.mark.parametrize(
    "instead",
    [
        "due_at = now() + interval '1 minute'",
        "crashes = 1",
        "rung_at = now()",
    ],
)
async def test_a_run_that_waits_for_something_else_than_a_slot_closes_nothing(stage: Stage, instead: str) -> None:
    admits = admission(max_queued_seconds=60)
    run_id = await ask(stage, admits)
    await grow_old(stage, run_id)
    await stage.execute(f"UPDATE runs SET {instead} WHERE id = :id", id=run_id)

    assert await ask(stage, admits)


async def test_a_run_that_waits_behind_its_thread_closes_nothing(stage: Stage) -> None:
    admits = admission(max_queued_seconds=60)
    first, second = [await ask(stage, admits, thread_id=stage.thread_id, agent_type=None) for _ in range(2)]
    await stage.claimed(first, await stage.worker())
    await grow_old(stage, second)

    assert await ask(stage, admits)
